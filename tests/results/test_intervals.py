"""Bootstrap intervals: exact cases, coverage, seeds, pairing."""

import subprocess
import sys
from random import Random
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from palimpsest.errors import ScoreError
from palimpsest.results.intervals import (
    Interval,
    Resampling,
    bootstrap_mean,
    bootstrap_rows,
    bootstrap_table,
    paired_difference,
    relative_growth,
)

NUMBERS = st.lists(st.floats(-100, 100), min_size=2, max_size=12)


def test_two_points_are_exact() -> None:
    # resampled means are 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4
    assert bootstrap_mean([0.0, 1.0], seed=3) == Interval(0.5, 0.0, 1.0, 2)
    assert bootstrap_mean([0.0, 1.0], seed=3, level=0.4) == Interval(0.5, 0.5, 0.5, 2)


@pytest.mark.parametrize(("hits", "n"), [(3, 10), (9, 10), (50, 100), (97, 100)])
def test_zeros_and_ones_give_the_binomial_quantiles(hits: int, n: int) -> None:
    found = bootstrap_mean([1] * hits + [0] * (n - hits), seed=0, resamples=100_000)
    low, high = binom.ppf([0.025, 0.975], n, hits / n) / n
    assert (found.mean, found.n) == (hits / n, n)
    assert (found.low, found.high) == pytest.approx((low, high))


def test_equal_values_have_an_interval_without_width() -> None:
    assert bootstrap_mean([0.1] * 7, seed=0) == Interval(0.1, 0.1, 0.1, 7)


def test_coverage_of_a_normal_mean() -> None:
    draws = np.random.default_rng(11).normal(5.0, 2.0, size=(400, 30))
    found = [bootstrap_mean(row, seed=i, resamples=1000) for i, row in enumerate(draws)]
    covered = np.mean([interval.low <= 5.0 <= interval.high for interval in found])
    assert 0.90 <= covered <= 0.99
    narrower = [bootstrap_mean(row, seed=i, level=0.5, resamples=1000) for i, row in enumerate(draws)]
    assert 0.40 <= np.mean([interval.low <= 5.0 <= interval.high for interval in narrower]) <= 0.60


def test_width_is_that_of_the_standard_error() -> None:
    values = np.random.default_rng(5).normal(0.0, 1.0, 2000)
    found = bootstrap_mean(values, seed=1)
    expected = 1.96 * values.std() / np.sqrt(2000)
    assert (found.high - found.low) / 2 == pytest.approx(expected, rel=0.05)


def test_the_seed_and_nothing_else_decides() -> None:
    values = np.random.default_rng(0).normal(size=40)
    np.random.seed(1)  # noqa: NPY002 -- shows that the global generator is not used
    first = bootstrap_mean(values, seed=7)
    np.random.seed(2)  # noqa: NPY002
    assert bootstrap_mean(values, seed=7) == first
    other = bootstrap_mean(values, seed=8)
    assert other.mean == first.mean
    assert (other.low, other.high) != (first.low, first.high)


@given(NUMBERS, st.randoms(use_true_random=False))
def test_order_does_not_matter_and_the_interval_lies_within_the_values(
    values: list[float], random: Random
) -> None:
    found = bootstrap_mean(values, seed=0, resamples=200)
    shuffled = list(values)
    random.shuffle(shuffled)
    assert bootstrap_mean(shuffled, seed=0, resamples=200) == found
    slack = 1e-9 * max(map(abs, values))
    assert min(values) - slack <= found.low <= found.high <= max(values) + slack


def test_more_draws_than_fit_at_once_still_give_every_resample(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).normal(size=50)
    whole = bootstrap_mean(values, seed=0, resamples=333)
    monkeypatch.setattr("palimpsest.results.intervals._DRAWS_AT_ONCE", 64 * 50)
    assert bootstrap_mean(values, seed=0, resamples=333) == whole


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([], {}, r"two or more values, got shape \(0,\); score more cases"),
        ([1.0], {}, r"two or more values, got shape \(1,\)"),
        ([[1.0, 2.0]], {}, r"two or more values, got shape \(1, 2\)"),
        ([1.0, np.nan, np.inf], {}, "2 of 3 values are not finite"),
        ([1.0, 2.0], {"level": 95.0}, "level must lie between 0 and 1 .*got 95.0"),
        ([1.0, 2.0], {"resamples": 0}, "resamples be 1 or more, got 0.95 and 0"),
    ],
)
def test_values_without_an_interval_are_refused(
    values: list[Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ScoreError, match=message):
        bootstrap_mean(values, seed=0, **options)


def test_paired_difference_matches_cases_by_id() -> None:
    a = {"x": 3.0, "y": 20.0, "z": 100.0}
    b = {"z": 98.0, "x": 1.0, "y": 18.0}
    assert paired_difference(a, b, seed=0) == Interval(2.0, 2.0, 2.0, 3)
    assert paired_difference(pd.Series(b), pd.Series(a), seed=0) == Interval(-2.0, -2.0, -2.0, 3)


def test_pairing_removes_what_cases_share() -> None:
    generator = np.random.default_rng(3)
    difficulty = generator.normal(0, 10, 200)
    b = pd.Series(difficulty, index=[f"case {i}" for i in range(200)])
    a = b + 0.5 + generator.normal(0, 0.1, 200)
    paired = paired_difference(a.sample(frac=1, random_state=0), b, seed=0)
    assert 0.4 < paired.low < 0.5 < paired.high < 0.6
    alone = bootstrap_mean(a, seed=0)
    assert alone.high - alone.low > 50 * (paired.high - paired.low)


def test_paired_difference_refuses_other_cases_and_repeated_ones() -> None:
    with pytest.raises(ScoreError, match=r"2 cases are on one side only, for example \['y', 'z'\]"):
        paired_difference({"x": 1.0, "y": 2.0}, {"x": 1.0, "z": 2.0}, seed=0)
    twice = pd.Series([1.0, 2.0, 3.0], index=["x", "x", "y"])
    with pytest.raises(ScoreError, match="case 'x' has more than one value; select one metric"):
        paired_difference(twice, twice, seed=0)


def scores() -> pd.DataFrame:
    generator = np.random.default_rng(0)
    rows = [
        {"method": method, "metric": metric, "case": f"c{i}", "value": float(generator.random() < rate)}
        for method, rate in (("memit", 0.9), ("alphaedit", 0.7))
        for metric in ("specificity", "efficacy")
        for i in range(20)
    ]
    return pd.DataFrame(rows)


def test_relative_growth_of_two_cases_is_exact() -> None:
    # draws: twice x, x and y (half of them), twice y: growths 1, 7/5 - 1 and 1/4
    before, after = {"x": 1.0, "y": 4.0}, {"y": 5.0, "x": 2.0}
    assert relative_growth(before, after, seed=1) == Interval(7 / 5 - 1, 0.25, 1.0, 2)
    assert relative_growth(before, after, seed=1, level=0.4) == Interval(7 / 5 - 1, 7 / 5 - 1, 7 / 5 - 1, 2)


def test_growth_in_proportion_is_certain_and_order_does_not_matter() -> None:
    before = pd.Series(np.random.default_rng(0).gamma(2.0, size=60))
    found = relative_growth(before, 1.25 * before, seed=0)
    assert (found.mean, found.low, found.high) == pytest.approx((0.25, 0.25, 0.25))
    after = pd.Series(np.random.default_rng(1).gamma(2.0, size=60))
    straight = relative_growth(before, after, seed=4)
    assert relative_growth(before.sample(frac=1, random_state=1), after[::-1], seed=4) == straight
    assert relative_growth(before, after, seed=5) != straight


def test_noise_alone_is_no_growth_where_the_mean_of_ratios_says_so() -> None:
    rng = np.random.default_rng(3)
    covered, ratios = [], []
    for seed in range(200):
        before, after = (pd.Series(rng.gamma(4.0, 0.25, size=80)) for _ in range(2))
        found = relative_growth(before, after, seed, resamples=500)
        covered.append(found.low <= 0 <= found.high)
        ratios.append((after / before - 1).mean())
    assert 0.88 <= np.mean(covered) <= 0.99
    assert np.mean(ratios) > 0.2


def test_growth_from_nothing_is_named_and_a_draw_of_nothing_is_no_nan() -> None:
    few = relative_growth({"x": 0.0, "y": 1.0}, {"x": 1.0, "y": 1.0}, seed=0)
    assert (few.mean, few.low, few.high) == (1.0, 0.0, np.inf)
    still = relative_growth({"x": 0.0, "y": 1.0}, {"x": 0.0, "y": 3.0}, seed=0)
    assert (still.mean, still.low, still.high) == (2.0, 0.0, 2.0)
    for before, after in [
        ({"x": 0.0, "y": 0.0}, {"x": 1.0, "y": 0.0}),
        ({"x": 1, "y": -1}, {"x": 1, "y": 1}),
    ]:
        with pytest.raises(ScoreError, match=r"not all 0 before, got a mean of .*; take the difference"):
            relative_growth(before, after, seed=0)
    with pytest.raises(ScoreError, match="2 cases are on one side only"):
        relative_growth({"x": 1.0, "y": 2.0}, {"x": 1.0, "z": 2.0}, seed=0)
    with pytest.raises(ScoreError, match="1 of 2 values are not finite"):
        relative_growth({"x": 1.0, "y": 2.0}, {"x": 1.0, "y": float("inf")}, seed=0)


def test_table_is_the_interval_of_every_group() -> None:
    frame = scores()
    table = bootstrap_table(frame, by=["method", "metric"], seed=4)
    assert list(table.columns) == ["method", "metric", "mean", "low", "high", "n"]
    assert list(table["method"] + " " + table["metric"]) == [
        "memit specificity",
        "memit efficacy",
        "alphaedit specificity",
        "alphaedit efficacy",
    ]
    for row in table.to_dict("records"):
        method, metric = row.pop("method"), row.pop("metric")
        values = frame[(frame["method"] == method) & (frame["metric"] == metric)]["value"]
        assert row == vars(bootstrap_mean(values, seed=4))


def test_a_group_does_not_depend_on_the_others() -> None:
    frame = scores()
    alone = bootstrap_table(frame[frame["method"] == "alphaedit"], by=["method", "metric"], seed=4)
    table = bootstrap_table(frame, by=["method", "metric"], seed=4)
    pd.testing.assert_frame_equal(alone, table.iloc[2:].reset_index(drop=True))


def test_table_over_seeds() -> None:
    frame = pd.DataFrame({"method": "memit", "seed": [0, 1, 2], "value": [1.0, 1.0, 1.0]})
    table = bootstrap_table(frame, by=["method"], seed=0, over="seed")
    assert table.to_dict("records") == [{"method": "memit", "mean": 1.0, "low": 1.0, "high": 1.0, "n": 3}]


def test_table_refuses_what_it_would_have_to_guess() -> None:
    frame = scores()
    with pytest.raises(ScoreError, match=r"group \('memit',\) holds case 'c0' more than once; group by"):
        bootstrap_table(frame, by=["method"], seed=0)
    with pytest.raises(ScoreError, match=r"columns \['moment'\] are missing; the table has \['method'"):
        bootstrap_table(frame, by=["method", "moment"], seed=0)
    with pytest.raises(ScoreError, match="columns to group by are missing"):
        bootstrap_table(frame, by=[], seed=0)
    with pytest.raises(ScoreError, match=r"group \('memit', 'efficacy'\): an interval needs .* shape \(1,\)"):
        bootstrap_table(frame.iloc[[20]], by=["method", "metric"], seed=0)


def test_intervals_need_no_torch() -> None:
    code = "import sys, palimpsest.results.intervals; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def table_of_groups(per_fact: int = 3, facts: int = 40) -> pd.DataFrame:
    """Rows of one fact are alike, so only facts carry information."""
    means = np.random.default_rng(5).normal(size=facts)
    spread = np.random.default_rng(6).normal(size=(facts, per_fact)) / 100
    fact = np.repeat(np.arange(facts), per_fact)
    return pd.DataFrame({"fact": fact, "x": (means[:, None] + spread).ravel()})


def test_rows_of_one_group_are_drawn_together() -> None:
    """Repeating rows adds nothing: the interval is that of the groups' means, not of so many rows."""
    rows = table_of_groups()
    found = bootstrap_rows(rows, lambda c: float(c["x"].mean()), "fact", seed=1, resamples=4000)
    alone = bootstrap_mean(rows.groupby("fact")["x"].mean(), seed=2)
    naive = bootstrap_mean(rows["x"], seed=2)
    assert found.n == alone.n == 40
    assert found.mean == pytest.approx(alone.mean)
    width = found.high - found.low
    assert width == pytest.approx(alone.high - alone.low, rel=0.1)
    assert width > 1.4 * (naive.high - naive.low)


def test_any_statistic_of_the_columns_and_the_seed_decides() -> None:
    rows = table_of_groups().assign(y=lambda t: 2 * t["x"])
    ratio = lambda c: float(c["y"].mean() / c["x"].mean())  # noqa: E731
    found = bootstrap_rows(rows, ratio, "fact", seed=1, resamples=50)
    assert (found.mean, found.low, found.high) == pytest.approx((2, 2, 2))
    spread = lambda c: float(np.ptp(c["x"]))  # noqa: E731
    one, same, other = (bootstrap_rows(rows, spread, "fact", seed=s, resamples=50) for s in (1, 1, 2))
    assert one == same != other
    assert one.low <= one.mean == one.high  # a resample's range is never larger


def test_resamples_without_a_number_are_left_out() -> None:
    rows = pd.DataFrame({"fact": ["a", "b"], "x": [1.0, 2.0]})
    only_both = lambda c: float(c["x"].sum()) if len(set(c["x"])) == 2 else float("nan")  # noqa: E731
    assert bootstrap_rows(rows, only_both, "fact", seed=0).high == 3
    none = bootstrap_rows(rows, lambda _: float("nan"), "fact", seed=0)
    assert np.isnan([none.mean, none.low, none.high]).all()


def test_rows_refuse_too_few_groups_and_odd_numbers() -> None:
    rows = pd.DataFrame({"fact": ["a", "a"], "x": [1.0, 2.0]})
    mean = lambda c: float(c["x"].mean())  # noqa: E731
    with pytest.raises(
        ScoreError, match=r"over 'fact' needs two or more of them, the table has 1; score more"
    ):
        bootstrap_rows(rows, mean, "fact", seed=0)
    with pytest.raises(ScoreError, match=r"over 'case' needs two or more of them, the table has 0"):
        bootstrap_rows(rows, mean, "case", seed=0)
    with pytest.raises(ScoreError, match="level must lie between 0 and 1"):
        bootstrap_rows(table_of_groups(), lambda c: float(c["x"].mean()), "fact", seed=0, level=1.5)


def test_resampling_is_the_bootstrap_of_rows_with_the_same_draws() -> None:
    rows = pd.DataFrame({"fact": list("aabbcc"), "x": range(6), "y": range(6, 12)})
    resampled = Resampling("fact", 3, 40, rows)

    def statistic(columns):
        return float(columns["x"].mean())

    expected = bootstrap_rows(rows, statistic, "fact", 3, resamples=40)
    assert resampled(statistic) == resampled(statistic, ["x"]) == expected
    part = rows[rows["fact"].ne("a")]
    assert resampled(statistic, rows=part) == bootstrap_rows(part, statistic, "fact", 3, resamples=40)
