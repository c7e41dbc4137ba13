"""When two records of a page count as the same."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.book.regression import (
    Allowance,
    Difference,
    Tolerances,
    check_against_carried,
    differences,
    load_tolerances,
)
from palimpsest.errors import DataError
from palimpsest.files import as_json, write_atomically
from palimpsest.results import records
from tests.clone import Clone, make_clone

EXACT = {"": Allowance(reason="one machine")}
numbers = st.floats(-1e6, 1e6) | st.integers(-1000, 1000)


def entry(value: Any, low: float | None = None, high: float | None = None, unit: str = "score") -> Any:
    return {"value": value, "low": low, "high": high, "unit": unit}


def record(**values: Any) -> dict[str, Any]:
    kept = {name: value if isinstance(value, dict) else entry(value) for name, value in values.items()}
    return {"notebook": "01_tiny", "values": kept}


def found(one: Any, other: Any, allowed: Any = EXACT) -> list[str]:
    return [str(difference) for difference in differences(record(**one), record(**other), allowed)]


@given(st.dictionaries(st.sampled_from("abc"), numbers | st.booleans() | st.text(max_size=3)))
def test_a_record_does_not_differ_from_itself(values: dict[str, Any]) -> None:
    assert found(values, values) == []


@given(numbers, st.floats(0, 0.5), st.floats(0, 2))
def test_a_number_may_move_by_its_allowance_and_no_further(
    value: float, relative: float, part: float
) -> None:
    allowed = {"": Allowance(relative=relative, reason="rounding")}
    moved = value + part * relative * value
    if part <= 0.99 or value * relative == 0:
        assert found({"a": value}, {"a": moved}, allowed) == []
    if part >= 1 / (1 - relative) + 0.01 and abs(value * relative) > 1e-9:
        assert found({"a": value}, {"a": moved}, allowed) != []


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ({"a": 1.0}, {"a": 2.0}, ["01_tiny: a was 1.0, is 2.0"]),
        ({"a": "yes"}, {"a": "no"}, ["01_tiny: a was 'yes', is 'no'"]),
        ({"a": "1.0"}, {"a": 1.0}, ["01_tiny: a was '1.0', is 1.0"]),
        ({"a": True}, {"a": False}, ["01_tiny: a was True, is False"]),
        ({"a": True}, {"a": 0.5}, ["01_tiny: a was True, is 0.5"]),
        ({"a": 1.0}, {}, ["01_tiny: a was 1.0, is missing"]),
        ({}, {"a": 1.0}, ["01_tiny: a was missing, is 1.0"]),
        ({"a": entry(2, 1, 3)}, {"a": entry(2, 1, 4)}, ["01_tiny: a was [2, 1, 3], is [2, 1, 4]"]),
        ({"a": entry(2, 1, 3)}, {"a": entry(2)}, ["01_tiny: a was [2, 1, 3], is 2"]),
        ({"a": 2}, {"a": 2.0}, []),
        ({"b": 1, "a": 1}, {"b": 2, "a": 2}, ["01_tiny: a was 1, is 2", "01_tiny: b was 1, is 2"]),
        ({"a": entry(2.0, unit="seconds")}, {"a": entry(9.0, unit="seconds")}, []),
        ({"a": entry(2.0, unit="seconds")}, {}, ["01_tiny: a was 2.0, is missing"]),
    ],
)
def test_what_differs_is_named_with_both_values(one: Any, other: Any, said: list[str]) -> None:
    assert found(one, other) == said


def test_allowances_are_by_page_and_value() -> None:
    tolerances = Tolerances(
        default=Allowance(relative=1e-6, reason="rounding"),
        pages={
            "01_tiny": {
                "flips": Allowance(anything=True, reason="an argmax of two equal values"),
                "small": Allowance(absolute=0.5, reason="one case of two hundred"),
            },
            "02_other": {"default": Allowance(anything=True, reason="another page")},
        },
    )
    before = {"flips": "yes", "small": 1.0, "default": 1.0}
    assert found(before, {"flips": 3, "small": 1.5, "default": 1.0000001}, tolerances) == []
    assert found(before, {"flips": "no", "small": 1.6, "default": 1.00001}, tolerances) == [
        "01_tiny: default was 1.0, is 1.00001",
        "01_tiny: small was 1.0, is 1.6",
    ]


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    return make_clone(tmp_path / "clone", monkeypatch)


@pytest.mark.parametrize(
    "content",
    [
        None,
        "a: [",
        "- a",
        "{}",
        "default: {relative: 1.0e-6}",
        "default: {reason: ''}",
        "default: {reason: r, relative: -1}",
        "default: {reason: r, absolute: .inf}",
        "default: {reason: r, share: 1}",
        "{default: {reason: r}, pages: {a: {b: {relative: 1}}}}",
    ],
)
def test_allowances_that_cannot_be_read_are_an_error_that_names_the_file(
    clone: Clone, content: str | None
) -> None:
    file = clone.root / "results/smoke/tolerances.yaml"
    file.unlink() if content is None else file.write_text(content)
    with pytest.raises(DataError, match=r"(?s)smoke/tolerances.yaml: no allowances can be read .* from git"):
        load_tolerances()


def test_the_carried_allowances_say_why() -> None:
    tolerances = load_tolerances()
    assert all(row.reason for page in tolerances.pages.values() for row in page.values())


def write(folder: Path, **values: Any) -> None:
    content = {"schema": records.SCHEMA, **record(**values)}
    write_atomically(folder / "01_tiny.json", as_json(content))


def test_new_records_are_compared_with_those_carried(clone: Clone) -> None:
    carried, new = clone.root / "results/smoke", clone.root / "build/smoke"
    write(new, doubled=2.0, rate=1.0)
    with pytest.raises(DataError, match=r"01_tiny.json is missing: no values of 01_tiny are carried to"):
        check_against_carried(new, ["01_tiny"])
    write(carried, doubled=2.0000001, rate=1.1)
    assert check_against_carried(new, ["01_tiny"]) == [Difference("01_tiny", "rate", 1.1, 1.0)]
    allowed = {"default": {"reason": "r", "relative": 0.2}}
    (carried / "tolerances.yaml").write_text(yaml.safe_dump(allowed))
    assert check_against_carried(new, ["01_tiny"]) == []
    (carried / "01_tiny.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as a record"):
        check_against_carried(new, ["01_tiny"])
