"""Parts of sentences on AlphaEdit+'s page: none, one, some and all of the things compared."""

import pytest

from palimpsest.errors import DataError
from palimpsest.results.sentences import sided

CLAUSES = {"more": "it falls without {names}", "less": "it rises without {names}", "neither": "{names} stay"}
UP, DOWN, OPEN = (2.0, 1.0, 3.0), (-2.0, -3.0, -1.0), (0.0, -1.0, 1.0)


def said(**values: tuple[float, float, float]) -> str:
    entries = {
        name: {"value": value, "low": low, "high": high, "unit": "percent"}
        for name, (value, low, high) in values.items()
    }
    return sided(entries, **CLAUSES)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"a": UP}, "it falls without a"),
        ({"a": DOWN}, "it rises without a"),
        ({"a": OPEN}, "a stay"),
        ({"a": UP, "b": UP, "c": UP}, "it falls without a, b and c"),
        ({"a": OPEN, "b": OPEN}, "a and b stay"),
        ({"a": UP, "b": OPEN, "c": DOWN}, "it falls without a; it rises without c; b stay"),
        ({"a": UP, "b": OPEN, "c": UP}, "it falls without a and c; b stay"),
        ({"a": (0.0, 0.0, 0.0)}, "a stay"),
    ],
)
def test_things_are_grouped_by_side(values: dict[str, tuple[float, float, float]], text: str) -> None:
    assert said(**values) == text


def test_a_reference_moves_the_sides() -> None:
    entry = {"value": 2.0, "low": 1.0, "high": 3.0, "unit": "percent"}
    assert sided({"a": entry}, **CLAUSES, reference=4.0) == "it rises without a"


def test_nothing_to_group_is_an_error() -> None:
    with pytest.raises(DataError, match="nothing to group"):
        said()


def test_an_interval_is_needed() -> None:
    with pytest.raises(DataError, match="no interval"):
        sided({"a": {"value": 1.0, "low": None, "high": None, "unit": "percent"}}, **CLAUSES)
