"""How sure a mean over a few runs is, each with many measurements of its own.

Runs with different draws of facts differ by more than their cases do, and three of them alone say little.
Both are resampled here: runs with replacement, and within each drawn run its measurements.
"""

import numpy as np
import pandas as pd

from palimpsest.errors import ScoreError
from palimpsest.intervals import Interval, bootstrap_mean


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
        ScoreError: if a run has fewer than two values, or as `palimpsest.intervals.bootstrap_mean`.
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
