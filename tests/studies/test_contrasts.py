"""Differences between runs, against numbers worked out by hand."""

from math import exp, log

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.errors import ScoreError
from palimpsest.results.few_values import student_mean
from palimpsest.results.intervals import Interval
from palimpsest.studies.contrasts import CEILING, MEASURES, Contrasts, in_units


def rows(runs: dict[str, dict[int, list[float]]], edits: int = 2, metric: str = "efficacy") -> pd.DataFrame:
    """Runs with a fact for each value, all written at two facts."""
    found = []
    for run, orders in runs.items():
        for order, values in orders.items():
            for place, value in enumerate(values):
                found.append((run, order, edits, "fact", f"{order}/{place}", metric, value))
                found.append((run, order, 2, "fact", f"{order}/{place}", "value_norm", 1.0))
            for at in sorted({2, edits}):
                found.append((run, order, at, "window", "0", "nll", 3.0 + log(2)))
                found.append((run, order, at, "window", "0", "nll_before", 3.0))
    return pd.DataFrame(found, columns=["run", "order", "edits", "of", "key", "metric", "value"])


def test_several_orders_have_students_interval_and_one_a_bootstrap_over_items() -> None:
    runs = {"a": {0: [1, 1], 1: [1, 0], 2: [1, 1]}, "b": {0: [0, 1], 1: [0, 0], 2: [1, 1]}, "c": {0: [0, 1]}}
    made = Contrasts(rows(runs))
    found, over = made.contrast("efficacy", [(1, "a"), (-1, "b")], 2)
    by_hand = student_mean([0.5, 0.5, 0.0])
    assert (over, found.n) == ("seeds", 3)
    assert (found.mean, found.low) == pytest.approx((100 * by_hand.mean, 100 * by_hand.low))
    found, over = made.contrast("efficacy", [(1, "a"), (-1, "c")], 2)
    assert (over, found.mean, found.n) == ("cases", 50.0, 2)


def test_perplexity_is_a_ratio_and_early_facts_are_those_of_the_first_checkpoint() -> None:
    table = pd.concat(
        [rows({"a": {0: [1, 0], 1: [0, 0]}}), rows({"a": {0: [0, 0, 1], 1: [1, 1, 1]}}, edits=4)]
    )
    late = table["key"].str.endswith("/2") & table["metric"].eq("value_norm")
    table.loc[late, "edits"] = 4
    made = Contrasts(table.drop_duplicates(["order", "edits", "key", "metric"]))
    assert made.contrast("perplexity", [(1, "a")], 4)[0].mean == pytest.approx(2)
    assert made.contrast("early_efficacy", [(1, "a")], 4)[0].mean == pytest.approx(50)
    assert made.contrast("efficacy", [(1, "a")], 4)[0].mean == pytest.approx(100 * (1 / 3 + 1) / 2)
    assert made.contrast("efficacy", [(1, "a")], 3)[0].mean == pytest.approx(25)


def test_a_change_is_taken_from_an_earlier_checkpoint_on() -> None:
    table = pd.concat(
        [
            pd.DataFrame(
                [("a", order, edits, "early", "x", "hidden", length) for order in (0, 1)],
                columns=["run", "order", "edits", "of", "key", "metric", "value"],
            )
            for edits, length in ((0, 1.0), (2, 4.0), (4, 6.0))
        ]
    )
    made = Contrasts(table)
    assert made.contrast("hidden", [(1, "a")], 4)[0].mean == pytest.approx(6)
    assert made.contrast("hidden", [(1, "a")], 4, since=2)[0].mean == pytest.approx(1.5)


def test_an_order_with_fewer_facts_is_left_out_unless_the_run_had_to_end() -> None:
    short = rows({"a": {1: [0, 0]}})
    table = pd.concat([rows({"a": {0: [1, 1]}}, edits=4), short], ignore_index=True)
    assert Contrasts(table).contrast("efficacy", [(1, "a")], 4)[0].mean == 100
    ended = pd.DataFrame([("a", 1, 2, "step", "2", "stopped", 1.0)], columns=table.columns)
    made = Contrasts(pd.concat([table, ended], ignore_index=True))
    assert made.contrast("efficacy", [(1, "a")], 4)[0].mean == 50


def test_lengths_of_states_are_ratios_to_the_unedited_model() -> None:
    lengths = {0: (5, 7), 2: (10, 14)}
    told = [("a", 0, n, "early", str(i), "hidden", v) for n, of in lengths.items() for i, v in enumerate(of)]
    table = pd.DataFrame(told, columns=["run", "order", "edits", "of", "key", "metric", "value"])
    assert Contrasts(table).contrast("hidden", [(1, "a")], 2)[0].mean == pytest.approx(2)


def test_runs_that_share_nothing_are_refused() -> None:
    made = Contrasts(rows({"a": {0: [1, 1]}, "b": {1: [1, 1]}}))
    with pytest.raises(ScoreError, match="share no"):
        made.contrast("efficacy", [(1, "a"), (-1, "b")], 2)
    with pytest.raises(ScoreError, match="has no"):
        made.items("a", "choice", 2)
    with pytest.raises(ScoreError, match="has no"):
        made.items("a", "efficacy", 1)


@given(st.sampled_from(sorted(MEASURES)), st.lists(st.floats(-60, 60), min_size=3, max_size=3))
def test_units_keep_the_order_of_the_ends_and_every_ratio_is_finite(measure: str, ends: list[float]) -> None:
    low, mean, high = sorted(ends)
    found = in_units(measure, Interval(mean, low, high, 3))
    assert found.low <= found.mean <= found.high < np.inf
    if MEASURES[measure][2] == "ratio":
        assert found.high <= CEILING * (1 + 1e-9)
        assert found.mean == pytest.approx(exp(min(max(mean, -log(CEILING)), log(CEILING))))
