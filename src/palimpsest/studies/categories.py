"""Do edits of some classes of facts work less well than others? Tests for means of several groups.

Scores of a fact are shares in [0, 1], most of them 0 or 1, so that nothing here relies on a normal
distribution but the interval of the effect size, beside which the permutation test stands. Multiplicity: the
overall test comes first, and each class against the others is adjusted for all classes by the largest
statistic of each permutation (Westfall and Young 1993).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, zip_longest

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from palimpsest.errors import ScoreError
from palimpsest.results.intervals import Interval, bootstrap_mean
from palimpsest.types import EvalCase

LEVEL = 0.95
POWER = 0.8
ROUNDING = 1e-12
"""Relative distance from their mean below which all values count as equal."""
AT_ONCE = 1000
"""Permutations whose class means are computed together."""


def spread_evenly(groups: Mapping[str, Sequence[EvalCase]], each: int) -> list[EvalCase]:
    """The first ``each`` cases of every group, in turns, so that all groups are spread evenly over batches.

    Raises:
        ScoreError: if a group has fewer cases.
    """
    short = {name: len(cases) for name, cases in groups.items() if len(cases) < each}
    if short or each < 1:
        raise ScoreError(
            f"{each} facts of every class were asked for; there are only "
            f"{', '.join(f'{count} of {name}' for name, count in short.items()) or 'classes without any'}"
        )
    turns = zip_longest(*(cases[:each] for cases in groups.values()))
    return [case for case in chain.from_iterable(turns) if case is not None]


@dataclass(frozen=True)
class ClassDifferences:
    """Differences between the means of several classes.

    Attributes:
        classes: one row per class: ``class``, ``mean``, ``n``, ``gap`` (its mean minus that of all other
            facts) and ``chance``, the p-value of the gap, adjusted for the number of classes.
        share: η², the share of the variance between facts that lies between classes, in [0, 1]: estimated
            without the bias of chance differences (ε², 0 where it would be negative), with the interval from
            inverting the F test.
        chance: p-value of the overall permutation test of equal means.
        visible: smallest η² that the F test of this size would see with 80 % power at the 5 % level.
    """

    classes: pd.DataFrame
    share: Interval
    chance: float
    visible: float


def class_differences(
    values: ArrayLike, classes: Iterable[str], seed: int, permutations: int = 10_000
) -> ClassDifferences:
    """Test whether facts of several classes have the same mean.

    Args:
        values: of each fact, (n,).
        classes: of each fact, (n,); two or more different ones.
        seed: of the permutations.
        permutations: number of random relabellings; the smallest p-value is 1/(permutations + 1).

    Raises:
        ScoreError: if a value is not finite, there are fewer than two classes, or not more facts than
            classes.

    Source: one-way analysis of variance; interval of η² by the noncentral F distribution (Steiger 2004).
    """
    numbers, kinds = np.asarray(values, np.float64), list(classes)
    names = list(dict.fromkeys(kinds))
    n, k = len(numbers), len(names)
    if len(kinds) != n or k < 2 or n <= k or not np.isfinite(numbers).all():
        raise ScoreError(
            f"{n} values of {k} classes: a comparison needs a finite value and a class for each fact, two "
            "classes or more, and more facts than classes"
        )
    member = np.array([[name == other for other in names] for name in kinds], np.float64)  # (n, k)
    counts = member.sum(0)
    centred = numbers - numbers.mean()
    found = centred @ member / counts  # (k,)
    overall, gaps = _statistics(found[None], counts)
    reached, largest = 1, np.ones(k)
    generator = np.random.default_rng(seed)
    for start in range(0, permutations, AT_ONCE):
        drawn = [generator.permutation(centred) for _ in range(min(AT_ONCE, permutations - start))]
        between, one_by_one = _statistics(np.stack(drawn) @ member / counts, counts)
        reached += int((between >= overall[0] - 1e-12).sum())
        largest += (one_by_one.max(1)[:, None] >= gaps[0] - 1e-12).sum(0)
    table = pd.DataFrame(
        {
            "class": names,
            "mean": found + numbers.mean(),
            "n": counts.astype(int),
            "gap": found * n / (n - counts),
            "chance": largest / (permutations + 1),
        }
    )
    total = float(centred @ centred)
    if np.abs(centred).max() <= ROUNDING * np.abs(numbers).max():
        total = 0.0
    share = explained(float(overall[0]), total, n, k)
    return ClassDifferences(table, share, reached / (permutations + 1), visible_share(n, k))


def _statistics(
    means: NDArray[np.float64], counts: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum of squares between classes (m,), and each class's gap in equal units of chance (m, k).

    Args:
        means: of the classes after subtracting the mean of all facts, one row per permutation (m, k).
        counts: facts of each class (k,).
    """
    n = counts.sum()
    return (counts * means**2).sum(1), np.abs(means) * np.sqrt(n * counts / (n - counts))


def explained(between: float, total: float, n: int, k: int) -> Interval:
    """Share of the variance between classes, with a 95 % interval.

    Args:
        between: sum of squares between classes.
        total: sum of squares of all facts.
        n: number of facts.
        k: number of classes.

    Returns:
        ε² = (between − (k − 1)·MS within)/total, at least 0, and the ends λ/(λ + n) for the noncentralities λ
        of F at which the observed F is the upper or lower 2.5 % point. Where all facts agree nothing is
        known, and the interval is [0, 1].
    """
    if not total:
        return Interval(0.0, 0.0, 1.0, n)
    within = max(total - between, 0.0) / (n - k)
    value = max((between - (k - 1) * within) / total, 0.0)
    if within <= 1e-12 * total:
        return Interval(1.0, 0.0, 1.0, n)
    ratio = between / (k - 1) / within
    low, high = (
        _noncentrality(partial(_below, ratio, n, k), at) for at in ((1 + LEVEL) / 2, (1 - LEVEL) / 2)
    )
    low, high = low / (low + n), high / (high + n)
    return Interval(value, min(low, value), max(high, value), n)


def visible_share(n: int, k: int) -> float:
    """Smallest η² that an F test of k classes and n facts sees with 80 % power at the 5 % level."""
    critical = float(stats.f.ppf(LEVEL, k - 1, n - k))
    needed = _noncentrality(partial(_below, critical, n, k), 1 - POWER)
    return needed / (needed + n)


def _below(ratio: float, n: int, k: int, noncentrality: float) -> float:
    """Probability of an F ratio below one, (k − 1, n − k) degrees of freedom."""
    if noncentrality == 0:
        return float(stats.f.cdf(ratio, k - 1, n - k))
    return float(stats.ncf.cdf(ratio, k - 1, n - k, noncentrality))


def _noncentrality(below: Callable[[float], float], wanted: float) -> float:
    """Noncentrality at which a falling probability has the wanted value; 0 where it never is so large."""
    if below(0.0) <= wanted:
        return 0.0
    top = 1.0
    while below(top) > wanted:
        top *= 2
    return float(optimize.brentq(lambda x: below(x) - wanted, 0.0, top))


def share_of_facts(values: ArrayLike, seed: int, level: float = LEVEL) -> Interval:
    """Interval of the mean of shares in [0, 1], one for each fact.

    Args:
        values: of each fact, (n,).
        seed: of the bootstrap.
        level: nominal coverage, in (0, 1).

    Returns:
        Wilson's score interval where every value is 0 or 1 or all are the same, else a percentile bootstrap.
        Wilson's has a width even where all facts agree, and for any values in [0, 1] it is wide enough: their
        variance is at most mean·(1 − mean).

    Raises:
        ScoreError: if there is no value, or one lies outside [0, 1].
    """
    numbers = np.asarray(values, np.float64)
    if not len(numbers) or not ((numbers >= 0) & (numbers <= 1)).all():
        raise ScoreError(f"{len(numbers)} shares, which must be one or more numbers between 0 and 1")
    if np.isin(numbers, (0, 1)).all() or len(set(numbers.tolist())) == 1:
        return wilson(float(numbers.mean()), len(numbers), level)
    return bootstrap_mean(numbers, seed, level)


def wilson(mean: float, n: int, level: float = LEVEL) -> Interval:
    """Wilson's score interval of a share of n facts (Wilson 1927)."""
    z = float(stats.norm.ppf((1 + level) / 2))
    centre = (mean + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(mean * (1 - mean) / n + z**2 / (4 * n**2))
    return Interval(mean, min(max(centre - half, 0.0), mean), max(min(centre + half, 1.0), mean), n)


def worst_class(values: Mapping[str, ArrayLike], seed: int) -> Interval:
    """Mean of the class with the smallest one, in [0, 1].

    The lower end is the smallest lower end of the classes' 95 % intervals, without a correction: "all classes
    reach a limit" is established if each of them is (intersection-union test). The upper end is the smallest
    one of simultaneous intervals, at 1 − 0.05/k each (Bonferroni): "some class misses it" is looked for in k
    of them.

    Args:
        values: class -> share of each of its facts.
        seed: of the bootstraps.

    Returns:
        n is the number of facts of the class with the smallest mean.
    """
    alone = [share_of_facts(shares, seed) for shares in values.values()]
    corrected = 1 - (1 - LEVEL) / len(values)
    together = [share_of_facts(shares, seed, corrected) for shares in values.values()]
    worst = min(alone, key=lambda one: one.mean)
    return Interval(worst.mean, min(one.low for one in alone), min(one.high for one in together), worst.n)
