"""An interval over runs and what was measured in them: known distributions, properties, errors."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.errors import ScoreError
from palimpsest.results.intervals import bootstrap_mean, nested_mean


def frame(*runs: list[float]) -> pd.DataFrame:
    rows = [(number, value) for number, values in enumerate(runs) for value in values]
    return pd.DataFrame(rows, columns=["seed", "value"])


def test_one_run_is_an_ordinary_bootstrap_over_its_cases() -> None:
    values = [0.0, 1.0, 1.0, 0.5, 0.25, 1.0]
    assert nested_mean(frame(values), seed=3) == bootstrap_mean(values, 3, 0.95, 4000)


def test_runs_without_spread_of_their_own_are_drawn_as_wholes() -> None:
    """Two runs at 0 and 1: the mean of two draws is 0, ½ or 1, at a quarter, a half and a quarter."""
    table = frame([0.0] * 50, [1.0] * 50)
    wide, half = nested_mean(table, seed=0), nested_mean(table, seed=0, level=0.4)
    assert (wide.mean, wide.low, wide.high, wide.n) == (0.5, 0.0, 1.0, 2)
    assert (half.low, half.high) == (0.5, 0.5)
    pooled = bootstrap_mean(table["value"], 0)  # blind to the runs, and far too sure
    assert pooled.high - pooled.low < 0.25


def test_spread_within_runs_counts_where_runs_agree() -> None:
    generator = np.random.default_rng(0)
    runs = [generator.normal(size=400).tolist() for _ in range(3)]
    found = nested_mean(frame(*runs), seed=0)
    wanted = 2 * 1.96 / 1200**0.5  # of 1,200 independent cases
    assert 0.9 * wanted < found.high - found.low < 2 * wanted


def test_runs_of_different_sizes_weigh_the_same() -> None:
    assert nested_mean(frame([0.0, 0.0], [1.0] * 98), seed=0).mean == 0.5


runs = st.lists(st.lists(st.floats(-10, 10), min_size=2, max_size=6), min_size=1, max_size=4)


@given(runs, st.integers(0, 5))
def test_the_mean_lies_inside_and_nothing_outside_the_values(values: list[list[float]], seed: int) -> None:
    found = nested_mean(frame(*values), seed, resamples=50)
    every = [value for run in values for value in run]
    assert found.low <= found.mean <= found.high
    assert min(every) - 1e-9 <= found.low
    assert found.high <= max(every) + 1e-9


@given(runs, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(values: list[list[float]], chooser: object) -> None:
    table = frame(*values)
    mixed = table.sample(frac=1, random_state=chooser.randrange(2**31))  # type: ignore[attr-defined]
    assert nested_mean(table, 1, resamples=50) == nested_mean(mixed, 1, resamples=50)


def test_what_cannot_be_an_interval_is_refused() -> None:
    with pytest.raises(ScoreError, match="an interval needs measurements, got none; check what was selected"):
        nested_mean(frame(), seed=0)
    with pytest.raises(ScoreError, match="two or more values"):
        nested_mean(frame([1.0, 2.0], [1.0]), seed=0)
    with pytest.raises(ScoreError, match="1 of 2 values are not finite"):
        nested_mean(frame([1.0, 2.0], [1.0, float("nan")]), seed=0)
