"""Confidence intervals by seeded percentile bootstraps, over cases or over runs, with numpy.

Every function builds its generator from a seed argument: the same values and seed give the same interval,
whatever the order of the values. Units are those of the values.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
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

    The values are resampled with replacement; the ends are the (1 - level)/2 and (1 + level)/2 quantiles of
    the resampled means. The interval is somewhat narrow for few values (coverage about 90 % at n = 10 and
    level 0.95), and has width 0 if all values are equal, although their mean is not certain then.

    Args:
        values: one number per case, (n,).
        seed: of the generator.
        level: nominal coverage, in (0, 1).
        resamples: number of resampled means, 1 or more.

    Raises:
        ScoreError: for fewer than two values, values that are not finite, or a level or number of resamples
            out of range.
    """
    sample = checked(values, level, resamples)
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
    """Interval of the mean of a - b over the same cases, matched by id.

    It is narrower than two separate intervals suggest if the values of a case are positively correlated. Both
    ``a`` and ``b`` are case id -> value, as mappings or series indexed by case id, in any order; the other
    arguments are those of `bootstrap_mean`.

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
    """Interval of mean(after) / mean(before) - 1 over the same cases, matched by id.

    This is a ratio of means. The mean of the ratios of the cases would be above 0 for two noisy measurements
    of one quantity, by about the squared coefficient of variation of a case. Both values of a case are drawn
    together. If all drawn values before are 0, growth counts as infinite, or as 0 if those after are 0 too.

    Both ``before`` and ``after`` are case id -> value, 0 or more, as mappings or series indexed by case id,
    in any order; the other arguments are those of `bootstrap_mean`.

    Raises:
        ScoreError: if the ids differ or repeat, a value is negative, or all values before are 0; and as
            `bootstrap_mean`.
    """
    first, second = _matched(before, after)
    for values in (first, second):
        checked(values, level, resamples)
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
    """`bootstrap_mean` of every group of a tidy table.

    Args:
        frame: one row per group and case, for example from `palimpsest.evaluation.evaluate.records_frame`.
        by: columns that define the groups, for example method, metric and moment.
        seed: the same for each group, so that a group's interval does not depend on the others.
        over: column of the resampled units; each occurs once per group.
        value: column of the numbers.
        level: nominal coverage, in (0, 1).
        resamples: number of resampled means.

    Returns:
        A table with the columns of ``by`` and mean, low, high, n; groups in order of appearance.

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
    """Percentile bootstrap interval of any statistic of a table whose rows are resampled in groups.

    Args:
        rows: the table, for example one row per edit and run.
        statistic: columns as name -> array -> number; may be NaN for resamples that do not define it.
        over: column that defines the groups, for example the fact; all rows of a drawn group are used.
        seed: of the generator.
        level: nominal coverage, in (0, 1).
        resamples: number of resampled tables.

    Returns:
        The statistic of the whole table, with the interval widened to contain it; n is the number of groups.
        Both ends are NaN if no resample gave a number.

    Raises:
        ScoreError: if the column is missing, there are fewer than two groups, or level or resamples are out
            of range.
    """
    groups = list(rows.reset_index(drop=True).groupby(over).indices.values()) if over in rows else []
    if len(groups) < 2:
        raise ScoreError(
            f"an interval over {over!r} needs two or more of them, the table has {len(groups)}; score more"
        )
    checked(np.zeros(2), level, resamples)
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


@dataclass(frozen=True)
class Resampling:
    """`bootstrap_rows` with fixed seed, groups and number of resamples, for use throughout a page.

    Attributes:
        over: column that defines the groups, for example the fact.
        seed: of every generator.
        resamples: number of resampled tables.
        rows: default table.
    """

    over: str
    seed: int
    resamples: int
    rows: pd.DataFrame = field(default_factory=pd.DataFrame, repr=False)

    def __call__(
        self,
        statistic: Callable[[Mapping[str, NDArray[Any]]], float],
        columns: Sequence[str] | None = None,
        rows: pd.DataFrame | None = None,
    ) -> Interval:
        """A statistic with its interval.

        Args:
            statistic: as `bootstrap_rows`.
            columns: those that the statistic uses; all by default, which takes longer.
            rows: a table to use instead of the default one.

        Raises:
            ScoreError: as `bootstrap_rows`.
        """
        table = self.rows if rows is None else rows
        part = table if columns is None else table[[self.over, *columns]]
        return bootstrap_rows(part, statistic, self.over, self.seed, resamples=self.resamples)


def checked(values: ArrayLike, level: float, resamples: int) -> NDArray[np.float64]:
    """The values in ascending order, (n,), if an interval can be made of them; else a `ScoreError`."""
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
    """Yield means over resampled rows, some resamples at a time."""
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
    """Confidence interval of a mean over a few runs with many measurements each, by a nested bootstrap.

    Runs are resampled, then measurements within runs; a single run is resampled over its measurements. The
    interval is too narrow for few runs (three runs give only ten distinct draws), and too wide because the
    spread of measurements is counted twice: it is already in the runs' means.

    Args:
        frame: one row per measurement.
        seed: of the generator.
        run: column that identifies the run.
        value: column of the numbers.
        level: nominal coverage, in (0, 1).
        resamples: number of resampled means.

    Returns:
        The mean over runs of their means with its interval; n is the number of runs, or of the measurements
        of a single run.

    Raises:
        ScoreError: if a run has fewer than two values, and as `bootstrap_mean`.
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
