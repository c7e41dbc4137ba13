"""Student's interval: against scipy, by hand, and its coverage."""

import numpy as np
import pytest
from scipy import stats

from palimpsest.errors import ScoreError
from palimpsest.results.few_values import student_mean


def test_student_against_scipy_and_by_hand() -> None:
    values = [1.0, 2.0, 4.0]
    found = student_mean(values, 0.9)
    low, high = stats.t.interval(0.9, 2, np.mean(values), stats.sem(values))
    assert (found.mean, found.n) == (pytest.approx(7 / 3), 3)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    # of two values at level 1/2 the quantile of t is 1 and the interval reaches from one to the other
    assert student_mean([3.0, 5.0], 0.5).low == pytest.approx(3)
    assert student_mean([3.0, 5.0], 0.5).high == pytest.approx(5)


def test_student_covers_as_often_as_it_says() -> None:
    drawn = np.random.default_rng(0).normal(1, 2, (4000, 3))
    held = [abs(found.mean - 1) <= found.high - found.mean for found in map(student_mean, drawn)]
    assert 0.94 < np.mean(held) < 0.96


@pytest.mark.parametrize("values", [[1.0], [1.0, float("nan")], [1.0, float("inf")]])
def test_student_needs_two_finite_values(values: list[float]) -> None:
    with pytest.raises(ScoreError):
        student_mean(values)
