"""What a page says about chance beside counts of comparisons."""

import pytest
from scipy.stats import binom

from palimpsest.results.sentences import by_chance


@pytest.mark.parametrize(
    ("found", "compared", "said"),
    [
        (
            0,
            20,
            "1 of 20 comparisons would be expected to look different if nothing differed; here none does.",
        ),
        (1, 20, "nothing differed; 1 or more would in 64 of 100 cases if they were independent."),
        (3, 20, "nothing differed; 3 or more would in 8 of 100 cases if they were independent."),
        (
            4,
            15,
            "0.75 of 15 comparisons would be expected to look different if nothing differed; 4 or more would "
            "in 5 of 1,000 cases if they were independent.",
        ),
        (15, 15, "nothing differed; all 15 would in less than 1 of 1,000 cases if they were independent."),
    ],
)
def test_what_chance_gives(found: int, compared: int, said: str) -> None:
    assert by_chance(found, compared).startswith("With 95 % intervals ")
    assert by_chance(found, compared).endswith(said)


def test_a_single_comparison() -> None:
    assert by_chance(1, 1, 0.9) == (
        "With 90 % intervals 0.1 of 1 comparison would be expected to look different if nothing differed; it "
        "would in 10 of 100 cases."
    )


@pytest.mark.parametrize("found", range(1, 8))
def test_the_chance_is_that_of_the_binomial(found: int) -> None:
    often = float(binom.sf(found - 1, 20, 0.05))
    text = by_chance(found, 20).split(" would in ")[1]
    if often >= 0.01:
        assert text.startswith(f"{100 * often:.0f} of 100 cases")
    elif often >= 0.001:
        assert text.startswith(f"{1000 * often:.0f} of 1,000 cases")
    else:
        assert text.startswith("less than 1 of 1,000")
