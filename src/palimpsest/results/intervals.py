"""How sure a mean is: seeded percentile bootstraps, over cases or over seeds, with numpy alone.

Every function takes the seed as an argument and builds its own generator from it: the same values and seed
give the same interval, whatever the order of the values. Units are those of the values.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from palimpsest.errors import ScoreError

_DRAWS_AT_ONCE = 1_000_000


@dataclass(frozen=True)
class Interval:
    """A mean with a confidence interval.

    Attributes:
        mean: of the values as given.
        low: lower end.
        high: upper end.
        n: number of values.
    """

    mean: float
    low: float
    high: float
    n: int


def bootstrap_mean(values: ArrayLike, seed: int, level: float = 0.95, resamples: int = 10_000) -> Interval:
    """Percentile bootstrap interval of the mean (Efron 1979).

    Resamples the values with replacement and takes the (1 - level)/2 and (1 + level)/2 quantiles of the
    resampled means. It is somewhat narrow for few values (true coverage about 90 % at n = 10 for 95 %) and
    has no width when all values are equal, which does not make their mean certain.

    Args:
        values: one number per case, (n,).
        seed: of the generator made here.
        level: share of repetitions the interval should cover.
        resamples: number of resampled means.

    Raises:
        ScoreError: for fewer than two values, values that are not finite, or a level or number of resamples
            that makes no sense.
    """
    sample = _checked(values, level, resamples)
    mean = float(sample.mean())
    if sample[0] == sample[-1]:
        return Interval(float(sample[0]), float(sample[0]), float(sample[0]), len(sample))
    generator = np.random.default_rng(seed)
    means = np.concatenate(list(_resampled_means(sample, generator, resamples)))
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(low), float(high), len(sample))


def paired_difference(
    a: Mapping[str, float] | pd.Series,
    b: Mapping[str, float] | pd.Series,
    seed: int,
    level: float = 0.95,
    resamples: int = 10_000,
) -> Interval:
    """Interval of the mean of a - b over the same cases, matched by id whatever their order.

    Narrower than two separate intervals suggest when hard cases are hard for both.

    Args:
        a: case id -> value, as a mapping or a series indexed by case id.
        b: the same ids -> value.
        seed: of the generator made here.
        level: share of repetitions the interval should cover.
        resamples: number of resampled means.

    Raises:
        ScoreError: if the ids differ or repeat, and as `bootstrap_mean`.
    """
    first, second = _matched(a, b)
    return bootstrap_mean(first - second, seed, level, resamples)


def relative_growth(
    before: Mapping[str, float] | pd.Series,
    after: Mapping[str, float] | pd.Series,
    seed: int,
    level: float = 0.95,
    resamples: int = 10_000,
) -> Interval:
    """Interval of mean(after) / mean(before) - 1 over the same cases, matched by id whatever their order.

    A ratio of means, where the mean of each case's own ratio would be above 0 for two noisy measurements of
    one thing, by about the squared coefficient of variation of a case. Cases are drawn with both their
    values. A draw in which all values before are 0 counts as infinite growth, or as none if those after are
    0 as well.

    Args:
        before: case id -> value, 0 or more, as a mapping or a series indexed by case id.
        after: the same ids -> value.
        seed: of the generator made here.
        level: share of repetitions the interval should cover.
        resamples: number of resampled ratios.

    Raises:
        ScoreError: if the ids differ or repeat, a value is negative, or all values before are 0; and as
            `bootstrap_mean`.
    """
    first, second = _matched(before, after)
    for values in (first, second):
        _checked(values, level, resamples)
    if (first < 0).any() or (second < 0).any() or not first.any():
        raise ScoreError(
            "relative growth needs values of 0 or more that are not all 0 before, got a mean of "
            f"{first.mean():.3g} before and {second.mean():.3g} after; take the difference instead"
        )
    order = np.lexsort((second, first))
    pairs = np.stack([first[order], second[order]], 1)
    generator = np.random.default_rng(seed)
    means = np.concatenate(list(_resampled_means(pairs, generator, resamples)))
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.where(means.any(1), means[:, 1] / means[:, 0], 1.0) - 1
    low, high = np.quantile(ratios, [(1 - level) / 2, (1 + level) / 2], method="inverted_cdf")
    mean = pairs.mean(0)
    return Interval(float(mean[1] / mean[0] - 1), float(low), float(high), len(pairs))


def bootstrap_table(
    frame: pd.DataFrame,
    by: Sequence[str],
    seed: int,
    over: str = "case",
    value: str = "value",
    level: float = 0.95,
    resamples: int = 10_000,
) -> pd.DataFrame:
    """`bootstrap_mean` of every group of a tidy table, each with the same seed.

    Args:
        frame: one row per group and case, as `palimpsest.evaluation.evaluate.records_frame` gives it.
        by: columns that tell the groups apart, for example method, metric and moment.
        seed: of the generator made for each group, so that a group's interval does not depend on the others.
        over: column of what is resampled; holds each value once per group.
        value: column of the numbers.
        level: share of repetitions the interval should cover.
        resamples: number of resampled means.

    Returns:
        A table with the columns of ``by`` and mean, low, high, n; groups in their order of appearance.

    Raises:
        ScoreError: if a column is missing or a group holds a case twice, and as `bootstrap_mean`.
    """
    missing = [name for name in (*by, over, value) if name not in frame.columns]
    if missing or not by:
        raise ScoreError(
            f"columns {missing or 'to group by'} are missing; the table has {list(frame.columns)}"
        )
    rows: list[dict[str, Any]] = []
    for key, group in frame.groupby(list(by), sort=False, dropna=False):
        _each_once(group[over], key)
        try:
            interval = bootstrap_mean(group[value].to_numpy(), seed, level, resamples)
        except ScoreError as error:
            raise ScoreError(f"group {key}: {error}") from error
        rows.append(dict(zip(by, key, strict=True)) | vars(interval))
    return pd.DataFrame(rows, columns=[*by, "mean", "low", "high", "n"])


def bootstrap_rows(
    rows: pd.DataFrame,
    statistic: Callable[[Mapping[str, NDArray[Any]]], float],
    over: str,
    seed: int,
    level: float = 0.95,
    resamples: int = 1000,
) -> Interval:
    """Percentile bootstrap interval of any statistic of a table whose rows belong together in groups.

    Args:
        rows: the table, for example one row per edit and run.
        statistic: of the table's columns, name -> array; may be NaN where a resample cannot bear it.
        over: column that names what is resampled, for example the fact; a drawn one brings all its rows.
        seed: of the generator made here.
        level: share of repetitions the interval should cover.
        resamples: number of resampled tables.

    Returns:
        The statistic of the table as it is, with the interval widened to hold it; n counts the groups. Both
        ends are NaN if no resample gave a number.

    Raises:
        ScoreError: if the column is missing, there are fewer than two groups, or level or resamples make no
            sense.
    """
    groups = list(rows.reset_index(drop=True).groupby(over).indices.values()) if over in rows else []
    if len(groups) < 2:
        raise ScoreError(
            f"an interval over {over!r} needs two or more of them, the table has {len(groups)}; score more"
        )
    _checked(np.zeros(2), level, resamples)
    columns = {str(name): rows[name].to_numpy() for name in rows}
    generator, found = np.random.default_rng(seed), []
    for _ in range(resamples):
        drawn = np.concatenate([groups[i] for i in generator.integers(0, len(groups), len(groups))])
        found.append(statistic({name: column[drawn] for name, column in columns.items()}))
    mean, numbers = float(statistic(columns)), np.asarray(found, dtype=np.float64)
    if np.isnan(numbers).all():
        return Interval(mean, np.nan, np.nan, len(groups))
    low, high = np.nanquantile(numbers, [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, float(min(low, mean)), float(max(high, mean)), len(groups))


def _checked(values: ArrayLike, level: float, resamples: int) -> NDArray[np.float64]:
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or len(sample) < 2:
        raise ScoreError(
            f"an interval needs a list of two or more values, got shape {sample.shape}; score more cases"
        )
    if not np.isfinite(sample).all():
        raise ScoreError(
            f"{int((~np.isfinite(sample)).sum())} of {len(sample)} values are not finite; "
            "find out where they arise instead of averaging over them"
        )
    if not 0 < level < 1 or resamples < 1:
        raise ScoreError(
            f"level must lie between 0 and 1 and resamples be 1 or more, got {level} and {resamples}"
        )
    return np.sort(sample)


def _resampled_means(
    sample: NDArray[np.float64], generator: np.random.Generator, resamples: int
) -> Iterator[NDArray[np.float64]]:
    """Means of the rows drawn with replacement, some resamples at a time."""
    n = len(sample)
    at_once = max(1, _DRAWS_AT_ONCE // n)
    for start in range(0, resamples, at_once):
        drawn = generator.integers(0, n, size=(min(at_once, resamples - start), n))
        yield sample[drawn].mean(axis=1)


def _matched(
    a: Mapping[str, float] | pd.Series, b: Mapping[str, float] | pd.Series
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Values of the same cases in the same order."""
    first, second = _by_case(a), _by_case(b)
    alone = first.index.symmetric_difference(second.index)
    if len(alone):
        raise ScoreError(
            f"{len(alone)} cases are on one side only, for example {list(alone[:3])}; "
            "a paired difference needs the same cases on both sides: score both on one list"
        )
    return np.asarray(first, np.float64), np.asarray(second.loc[first.index], np.float64)


def _by_case(values: Mapping[str, float] | pd.Series) -> "pd.Series[float]":
    series = pd.Series(dict(values), dtype=float) if isinstance(values, Mapping) else values.astype(float)
    if not series.index.is_unique:
        twice = series.index[series.index.duplicated()][0]
        raise ScoreError(f"case {twice!r} has more than one value; select one metric and moment first")
    return series


def _each_once(cases: pd.Series, key: Any) -> None:
    if cases.duplicated().any():
        raise ScoreError(
            f"group {key} holds {cases.name} {cases[cases.duplicated()].iloc[0]!r} more than once; "
            "group by the column that tells its rows apart as well"
        )


def nested_mean(
    frame: pd.DataFrame,
    seed: int,
    run: str = "seed",
    value: str = "value",
    level: float = 0.95,
    resamples: int = 4000,
) -> Interval:
    """Percentile bootstrap interval of the mean over runs of their means; of a single run, over its cases.

    It is too narrow in the runs where they are few (three can be drawn in ten ways only), and too wide in the
    cases, whose spread the runs' means hold already.

    Args:
        frame: one row per measurement.
        seed: of the generator made here.
        run: column that tells the runs apart.
        value: column of the numbers.
        level: share of repetitions the interval should cover.
        resamples: number of resampled means.

    Returns:
        The interval, with n the number of runs, or of the measurements of a single run.

    Raises:
        ScoreError: if a run has fewer than two values, or as `palimpsest.results.intervals.bootstrap_mean`.
    """
    groups = [np.sort(group[value].to_numpy(dtype=float)) for _, group in frame.groupby(run, sort=True)]
    if not groups:
        raise ScoreError("an interval needs measurements, got none; check what was selected")
    alone = [bootstrap_mean(group, seed, level, 1) for group in groups]  # checks every run
    if len(groups) == 1:
        return bootstrap_mean(groups[0], seed, level, resamples)
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, len(groups), size=(resamples, len(groups)))
    means = np.empty(drawn.shape)
    for number, group in enumerate(groups):
        places = drawn == number
        count = int(places.sum())
        means[places] = group[generator.integers(0, len(group), size=(count, len(group)))].mean(axis=1)
    mean = float(np.mean([one.mean for one in alone]))
    low, high = np.quantile(means.mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return Interval(mean, min(float(low), mean), max(float(high), mean), len(groups))
