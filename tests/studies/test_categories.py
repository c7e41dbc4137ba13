"""Tests between classes: against all relabellings, scipy's analysis of variance and known coverage."""

import random
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from palimpsest.errors import ScoreError
from palimpsest.studies.categories import (
    class_differences,
    explained,
    share_of_facts,
    spread_evenly,
    visible_share,
    wilson,
    worst_class,
)
from tests.studies.test_trajectory import CASES

VALUES, CLASSES = [0.0, 0.5, 1.0, 1.0, 1.0, 0.5], list("aabbcc")


def test_p_values_are_those_of_all_relabellings() -> None:
    """Against every order of six values, one by one."""

    def statistics(values: tuple[float, ...]) -> tuple[float, list[float]]:
        numbers, whole = np.array(values), np.mean(values)
        parts = [numbers[[name == c for name in CLASSES]] for c in "abc"]
        between = sum(len(part) * (part.mean() - whole) ** 2 for part in parts)
        gaps = []
        for c in "abc":
            mine = np.array([name == c for name in CLASSES])
            gaps.append(abs(numbers[mine].mean() - numbers[~mine].mean()))  # equal sizes: equal scales
        return between, gaps

    wanted, gaps = statistics(tuple(VALUES))
    drawn = [statistics(order) for order in permutations(VALUES)]
    chance = np.mean([one[0] >= wanted - 1e-9 for one in drawn])
    adjusted = [np.mean([max(one[1]) >= gap - 1e-9 for one in drawn]) for gap in gaps]
    found = class_differences(VALUES, CLASSES, seed=0, permutations=20_000)
    assert found.chance == pytest.approx(chance, abs=0.02)
    assert found.classes["chance"].tolist() == pytest.approx(adjusted, abs=0.02)
    assert found.classes["gap"].tolist() == pytest.approx([-0.625, 0.5, 0.125])
    assert found.classes["mean"].tolist() == pytest.approx([0.25, 1.0, 0.75])


QUARTERS = st.integers(0, 4).map(lambda n: n / 4)


@given(st.lists(st.lists(QUARTERS, min_size=2, max_size=6), min_size=2, max_size=5), st.randoms())
def test_labels_and_order_do_not_matter(groups: list[list[float]], chooser: random.Random) -> None:
    rows = [(value, str(i)) for i, group in enumerate(groups) for value in group]
    found = class_differences([value for value, _ in rows], [name for _, name in rows], 0, 50)
    chooser.shuffle(rows)
    other = class_differences([value for value, _ in rows], [name for _, name in rows], 0, 50)
    assert other.share.mean == pytest.approx(found.share.mean, abs=1e-6)
    one, two = (d.classes.set_index("class")["gap"].sort_index() for d in (found, other))
    assert two.to_list() == pytest.approx(one.to_list(), abs=1e-9)
    assert 0 <= found.share.low <= found.share.mean <= found.share.high <= 1
    weighted = found.classes["mean"] * found.classes["n"]
    assert weighted.sum() == pytest.approx(sum(value for value, _ in rows))


def test_the_interval_inverts_the_f_test_of_scipy() -> None:
    """Its lower end leaves zero exactly where scipy's p-value passes 2.5 %."""
    draw = np.random.default_rng(0)
    for shift in np.linspace(0, 2, 15):
        groups = [draw.normal(shift * i, 1, 9) for i in range(3)]
        found = class_differences(np.concatenate(groups), list("a" * 9 + "b" * 9 + "c" * 9), 0, 9)
        assert (found.share.low > 0) == (stats.f_oneway(*groups).pvalue < 0.025)


def test_the_interval_covers_the_share_that_was_drawn() -> None:
    """Normal values with fixed class means of a known η²: about 95 of 100 intervals hold it."""
    draw, means = np.random.default_rng(1), np.array([-0.4, 0.0, 0.4])
    truth, held = means.var() / (means.var() + 1), 0
    for _ in range(200):
        values = draw.normal(np.repeat(means, 30), 1)
        between = sum(30 * (part.mean() - values.mean()) ** 2 for part in values.reshape(3, 30))
        found = explained(between, ((values - values.mean()) ** 2).sum(), 90, 3)
        held += found.low <= truth <= found.high
    assert 180 <= held <= 199


def test_the_estimate_is_without_the_bias_of_chance() -> None:
    draw = np.random.default_rng(2)
    classes = [c for c in "abcdefgh" for _ in range(5)]
    plain, found = [], []
    for _ in range(300):
        values = draw.normal(size=40)
        rows = values.reshape(8, 5)
        between = 5 * ((rows.mean(1) - values.mean()) ** 2).sum()
        plain.append(between / ((values - values.mean()) ** 2).sum())
        found.append(class_differences(values, classes, 0, 1).share.mean)
    assert np.mean(plain) == pytest.approx(7 / 39, abs=0.03)
    assert np.median(found) < 0.03


def test_values_that_differ_by_rounding_alone_say_nothing() -> None:
    found = class_differences([0.1, 0.1 + 1e-17, 0.3 - 0.2, 0.1], list("aabb"), 0, 9)
    assert (found.share.mean, found.share.low, found.share.high) == (0, 0, 1)


def test_the_visible_share_is_seen_four_times_in_five() -> None:
    draw, n, k = np.random.default_rng(3), 64, 4
    share = visible_share(n, k)
    means = np.array([-1.0, 1.0, -1.0, 1.0]) * np.sqrt(share / (1 - share))
    seen = np.mean(
        [stats.f_oneway(*(draw.normal(m, 1, n // k) for m in means)).pvalue < 0.05 for _ in range(400)]
    )
    assert seen == pytest.approx(0.8, abs=0.07)


@given(st.integers(1, 60), st.data())
def test_wilson_is_that_of_scipy(n: int, data: st.DataObject) -> None:
    hits = data.draw(st.integers(0, n))
    wanted = stats.binomtest(hits, n).proportion_ci(0.9, method="wilson")
    found = wilson(hits / n, n, 0.9)
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high), abs=1e-9)


def test_intervals_of_shares_have_a_width_where_all_facts_agree() -> None:
    assert share_of_facts([1.0] * 40, 0).low == pytest.approx(40 / (40 + stats.norm.ppf(0.975) ** 2))
    assert share_of_facts([0.5] * 4, 0).low < 0.5 < share_of_facts([0.5] * 4, 0).high
    mixed = share_of_facts([1.0, 0.5, 0.75, 1.0], 0)
    assert 0.5 <= mixed.low < mixed.mean < mixed.high <= 1


def test_the_worst_class_needs_no_correction_below_and_one_above() -> None:
    groups = {name: [1.0] * hits + [0.0] * (40 - hits) for name, hits in (("a", 39), ("b", 36), ("c", 40))}
    found = worst_class(groups, 0)
    assert found.mean == 0.9
    assert found.low == wilson(0.9, 40).low
    assert found.high == wilson(0.9, 40, 1 - 0.05 / 3).high
    assert found.n == 40


def test_cases_are_spread_over_batches() -> None:
    groups = {"a": CASES[:3], "b": CASES[3:6]}
    mixed = spread_evenly(groups, 3)
    assert [case.id for case in mixed[::2]] == [case.id for case in CASES[:3]]
    for i in range(0, 6, 2):
        assert {next(name for name, some in groups.items() if c in some) for c in mixed[i : i + 2]} == {
            "a",
            "b",
        }
    assert spread_evenly(groups, 1) == [CASES[0], CASES[3]]


def test_what_cannot_be_compared_is_refused() -> None:
    with pytest.raises(ScoreError, match="only 3 of a"):
        spread_evenly({"a": CASES[:3], "b": CASES}, 4)
    for values, classes in (([1.0], ["a"]), ([1.0, 0.0], ["a", "b"]), ([1.0, np.nan, 0.0], list("aab"))):
        with pytest.raises(ScoreError, match="more facts than classes"):
            class_differences(values, classes, 0)
    for shares in ([], [1.5]):
        with pytest.raises(ScoreError, match="between 0 and 1"):
            share_of_facts(shares, 0)
