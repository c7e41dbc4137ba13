"""Means of an evaluation's metrics over cases, and their paired differences, with intervals."""

from collections.abc import Sequence

import pandas as pd

from palimpsest.evaluation.evaluate import records_frame
from palimpsest.results.intervals import Interval, bootstrap_mean, paired_difference
from palimpsest.types import Record

FEWEST = 2
"""Cases from which a mean has an interval."""


def means(records: Sequence[Record], seed: int = 0) -> pd.DataFrame:
    """Mean of each metric over cases, with a 95 % bootstrap interval over cases.

    Args:
        records: from `palimpsest.evaluation.evaluate.evaluate`.
        seed: of the bootstrap.

    Returns:
        A row per metric, in the order of the records: ``metric``, ``mean``, ``low`` and ``high`` (NaN for a
        single case), ``cases`` and ``prompts``.
    """
    frame = records_frame(records)
    rows = []
    for metric, own in frame.groupby("metric", sort=False):
        found = _interval(own["value"].tolist(), seed)
        rows.append(_row(str(metric), found) | {"prompts": int(own["prompts"].sum())})
    return pd.DataFrame(rows, columns=["metric", "mean", "low", "high", "cases", "prompts"])


def differences(first: Sequence[Record], second: Sequence[Record], seed: int = 0) -> pd.DataFrame:
    """Mean of second − first of each metric over the same cases, with a paired 95 % bootstrap interval.

    Returns:
        A row per metric: ``metric``, ``first`` and ``second`` (means), ``mean``, ``low``, ``high``, and
        ``cases``.

    Raises:
        ScoreError: if the two were not made of the same cases.
    """
    frames = [records_frame(records) for records in (first, second)]
    rows = []
    for metric in frames[0]["metric"].unique():
        a, b = (frame[frame["metric"] == metric].set_index("case")["value"] for frame in frames)
        if len(a) >= FEWEST:
            found = paired_difference(b, a, seed)
        else:
            found = Interval(float(b.mean() - a.mean()), float("nan"), float("nan"), len(a))
        row = _row(str(metric), found)
        rows.append({"metric": metric, "first": a.mean(), "second": b.mean(), **row})
    return pd.DataFrame(rows, columns=["metric", "first", "second", "mean", "low", "high", "cases"])


def _interval(values: list[float], seed: int) -> Interval:
    if len(values) < FEWEST:
        return Interval(values[0], float("nan"), float("nan"), 1)
    return bootstrap_mean(values, seed)


def _row(metric: str, found: Interval) -> dict[str, object]:
    return {
        "metric": metric,
        "mean": found.mean,
        "low": found.low,
        "high": found.high,
        "cases": found.n,
    }
