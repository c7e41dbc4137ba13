"""Intervals for a few independent values, such as one for each order of the facts."""

from numpy.typing import ArrayLike
from scipy import stats

from palimpsest.results.intervals import Interval, checked


def student_mean(values: ArrayLike, level: float = 0.95) -> Interval:
    """Student's t interval of the mean, for a few values such as one for each order of the facts.

    A bootstrap over three values can draw only ten different samples and is far too narrow; this one is exact
    for normal values. Take logarithms of ratios first.

    Args:
        values: (n,), two or more.
        level: nominal coverage, in (0, 1).

    Raises:
        ScoreError: if there are fewer than two values, one is not finite, or the level is out of range.
    """
    sample = checked(values, level, 1)
    mean = float(sample.mean())
    half = float(stats.t.ppf((1 + level) / 2, len(sample) - 1) * sample.std(ddof=1) / len(sample) ** 0.5)
    return Interval(mean, mean - half, mean + half, len(sample))
