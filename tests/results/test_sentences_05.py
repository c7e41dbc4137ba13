"""Sentences of the page on memorize-the-latest."""

import pytest

from palimpsest.results.sentences import graded, share


@pytest.mark.parametrize(
    ("value", "said"),
    [(1.0, "keeps"), (1.5, "keeps"), (1.6, "harms"), (10.0, "harms"), (10.1, "collapses")],
)
def test_a_value_is_graded_by_its_range(value: float, said: str) -> None:
    assert graded(value, {1.5: "keeps", 10: "harms"}, "collapses") == said


@pytest.mark.parametrize(
    ("number", "total", "said"),
    [
        (0, 1, "no run"),
        (1, 1, "the only run"),
        (0, 22, "none of 22 runs"),
        (1, 22, "1 of 22 runs"),
        (5, 22, "5 of 22 runs"),
        (1200, 1200, "all 1,200 runs"),
    ],
)
def test_a_share_of_things(number: int, total: int, said: str) -> None:
    assert share(number, total, "run") == said


def test_a_share_of_things_with_a_plural_of_their_own() -> None:
    assert share(2, 3, "batch", "batches") == "2 of 3 batches"
