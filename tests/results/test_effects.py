"""Rules about effects: each reaches each of its labels, and no label depends on the sign that was chosen."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from palimpsest.errors import DataError
from palimpsest.results.effects import (
    RANK,
    VISIBLE,
    Count,
    Effect,
    Limit,
    ends,
    exact_interval,
)
from palimpsest.results.rules import MissingIntervalError
from tests.results.made_up import entry, label

COUNTS = st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
NUMBERS = st.floats(-100, 100)
THREE = st.lists(NUMBERS, min_size=3, max_size=3).map(sorted)
SIZES = st.none() | st.floats(0.1, 100)
CHANCES = st.lists(st.floats(0, 1), max_size=8)


# One effect -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [
        (10, 5, 15, "reproduced"),
        (5, 1, 9, "reproduced"),  # half the published size: the limit itself still counts
        (20, 15, 25, "reproduced"),
        (4.9, 1, 9, "direction only"),
        (20.1, 15, 25, "direction only"),
        (-10, -15, -5, "opposite here"),
        (2, 0, 4, "absent here"),  # an interval that touches no effect does not exclude it
        (2, -1, 4.9, "absent here"),
        (2, -1, 5, "undecided"),  # nor half the published size
        (-5, -13.9, 0, "absent here"),
        (-5, -14.1, 0, "undecided"),  # the smallest visible effect is larger than the published one
    ],
)
def test_effect(value, low, high, expected):
    rule = Effect(value="d", direction="positive", published=10, factor=2)
    assert label(rule, d=entry(value, low, high)) == expected
    mirrored = Effect(value="d", direction="negative", published=-10, factor=2)
    assert label(mirrored, d=entry(-value, -high, -low)) == expected


def test_an_effect_without_a_published_size_is_at_most_a_direction():
    rule = Effect(value="d", direction="positive")
    assert label(rule, d=entry(3, 1, 5)) == "direction only"
    assert "no size is published" in rule.judge({"d": entry(3, 1, 5)}).reason


def test_an_effect_without_a_size_worth_naming_is_never_absent():
    rule = Effect(value="d", direction="positive")
    assert label(rule, d=entry(0, -1e-6, 1e-6)) == "undecided"
    assert label(Effect(value="d", direction="positive", worth=1), d=entry(0, -1e-6, 1e-6)) == "absent here"


def test_the_reasons_of_the_undecided_differ():
    rule = Effect(value="d", direction="positive", published=10)
    assert "more than the published 10" in rule.judge({"d": entry(0, -20, 1)}).reason
    assert "both no effect and 5 are possible" in rule.judge({"d": entry(2, -1, 5)}).reason
    assert rule.judge({"d": entry(2)}) == (
        "undecided",
        "2, published 10, recorded without an interval that has a width",
    )
    assert "5 or more is excluded" in rule.judge({"d": entry(2, -1, 4)}).reason


def test_a_size_worth_naming_replaces_the_share_of_the_published_one():
    rule = Effect(value="d", direction="positive", published=10, worth=2)
    assert label(rule, d=entry(1, -1, 1.9)) == "absent here"
    assert label(rule, d=entry(1, -1, 2)) == "undecided"


def test_effect_of_a_ratio_is_judged_against_one():
    rule = Effect(value="r", direction="positive", published=3.0, factor=1.5, reference=1.0)
    assert label(rule, r=entry(2.5, 1.2, 4.0)) == "reproduced"
    assert label(rule, r=entry(2.2, 1.2, 4.0)) == "direction only"
    assert label(rule, r=entry(1.5, 0.9, 2.4)) == "undecided"
    assert label(rule, r=entry(1.5, 0.9, 2.3)) == "absent here"
    assert label(rule, r=entry(0.5, 0.2, 0.9)) == "opposite here"


@given(THREE, SIZES, SIZES, NUMBERS, st.floats(1, 5), st.booleans(), st.booleans())
def test_the_negative_direction_mirrors_the_positive_one(ordered, size, worth, at, factor, exact, sign_test):
    low, value, high = ordered
    found = []
    for sign, name in ((1, "positive"), (-1, "negative")):
        published = None if size is None else sign * (at + size)
        given_size = None if published is None or sign * published <= at else published
        rule = Effect(
            value="d",
            direction=name,
            published=given_size,
            worth=worth,
            reference=sign * at,
            factor=factor,
            exact=exact,
            sign_test=sign_test,
        )
        first, last = sorted((sign * low, sign * high))
        found.append(label(rule, d=entry(sign * value, first, last, unit="percent", n=100)))
    assert found[0] == found[1]
    assert found[0] in RANK


def test_a_property_of_what_is_on_disk_needs_no_interval():
    rule = Effect(value="s", direction="positive", published=0.8, exact=True)
    found = [label(rule, s=value) for value in (0.5, 0.3, 0.0, -0.1)]
    assert found == ["reproduced", "direction only", "absent here", "opposite here"]
    assert rule.judge({"s": entry(0.5, -1, 2)}).reason == "0.5, published 0.8; 0.62 times the published size"


def test_a_published_size_lies_on_the_side_of_its_direction():
    with pytest.raises(ValidationError, match="does not lie on the negative side of 1; correct direction"):
        Effect(value="d", direction="negative", published=1.2, reference=1)


def test_a_property_is_compared_with_that_of_a_control():
    rule = Effect(value="s", minus="c", direction="positive", published=0.2, exact=True)
    assert rule.names() == ("s", "c")
    assert label(rule, s=0.5, c=0.3) == "reproduced"
    assert label(rule, s=0.3, c=0.5) == "opposite here"
    with pytest.raises(ValidationError, match="s minus c has no interval; set exact, or record it"):
        Effect(value="s", minus="c", direction="positive")


def test_what_is_certain_and_too_small_to_name_is_absent():
    rule = Effect(value="r", direction="positive", reference=1, worth=0.1)
    assert label(rule, r=entry(1.02, 1.01, 1.03)) == "absent here"
    assert label(rule, r=entry(1.1, 1.01, 1.2)) == "direction only"
    assert label(rule, r=entry(0.98, 0.97, 0.99)) == "opposite here"


def test_an_interval_without_width_decides_nothing():
    rule = Effect(value="r", direction="positive", published=10)
    assert label(rule, r=entry(0, 0, 0, "ratio", 4, "cases")) == "undecided"


def test_the_sign_test_needs_the_number_of_cases():
    rule = Effect(value="d", direction="positive", sign_test=True)
    with pytest.raises(DataError, match="value d has no n, which the sign test needs; record the number"):
        rule.judge({"d": entry(4, 1, 8, "percent")})


def test_half_an_interval_is_not_one():
    rule = Effect(value="d", direction="positive")
    with pytest.raises(MissingIntervalError, match="value d has no interval"):
        rule.judge({"d": entry(3, low=1)})


# Few cases ------------------------------------------------------------------------------------


def test_the_smallest_visible_effect_has_80_percent_power():
    assert pytest.approx((1.959964 + 0.841621) / (2 * 1.959964), rel=1e-6) == VISIBLE


@given(st.integers(1, 5), st.floats(0, 2), st.sampled_from(["positive", "negative"]), st.booleans())
def test_five_cases_on_one_side_prove_no_direction(moved, half, direction, mirrored):
    value = -moved if mirrored else moved
    rule = Effect(value="d", direction=direction, worth=2, sign_test=True)
    found = label(rule, d=entry(value, value - half * moved, value + half * moved, "percent", 100))
    assert found in ("undecided", "absent here")


def test_the_sign_test_can_pass_from_six_cases_on():
    rule = Effect(value="d", direction="positive", published=10, sign_test=True)
    assert label(rule, d=entry(4, 1, 8, "percent", 100)) == "undecided"
    assert label(rule, d=entry(6, 2, 11, "percent", 100)) == "reproduced"
    assert label(rule, d=entry(6, -1, 12, "percent", 100)) == "undecided"  # the bootstrap has to agree
    assert label(rule, d=entry(4, 1, 8, "percent", 1000)) == "direction only"  # forty cases
    assert label(rule, d=entry(0, 0, 0, "percent", 100, "cases")) == "absent here"


@given(st.integers(1, 2000))
def test_equal_differences_of_n_cases_are_widened_to_the_exact_bound(n):
    bound = 100 * (1 - 0.025 ** (1 / n))
    found = ends({"d": entry(0, 0, 0, "percent", n, "cases")}, "d")
    assert found == pytest.approx((-bound, bound))


@pytest.mark.parametrize(
    "kept",
    [
        entry(0, 0, 0, "ratio", 10, "cases"),
        entry(0, 0, 0, "percent", over="cases"),
        entry(0, 0, 0, "percent", 3, "seeds"),
        entry(0, -1, 2, "percent", 10, "cases"),
    ],
)
def test_other_intervals_stay_as_they_were_recorded(kept):
    assert ends({"d": kept}, "d") == (kept["low"], kept["high"])


def test_no_difference_in_few_cases_excludes_little():
    rule = Effect(value="d", direction="positive", published=10)
    assert label(rule, d=entry(0, 0, 0, "percent", 10, "cases")) == "undecided"
    assert label(rule, d=entry(0, 0, 0, "percent", 100, "cases")) == "absent here"


@pytest.mark.parametrize(("hits", "n", "low"), [(10, 10, 0.6915), (50, 50, 0.9289)])
def test_exact_interval_of_all_of_n(hits, n, low):
    assert exact_interval(hits, n) == pytest.approx((low, 1), abs=5e-5)


@given(COUNTS)
def test_exact_interval_holds_the_share_and_is_mirrored(count):
    hits, n = count
    low, high = exact_interval(hits, n)
    assert 0 <= low <= hits / n <= high <= 1
    assert exact_interval(n - hits, n) == pytest.approx((1 - high, 1 - low), abs=1e-9)


@pytest.mark.parametrize(("hits", "n"), [(-1, 5), (6, 5), (0, 0)])
def test_an_impossible_count_is_refused(hits, n):
    with pytest.raises(DataError, match=f"{hits} of {n} is no count; give 0 to n successes of n trials"):
        exact_interval(hits, n)


# Limits and counts ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limits", "inside", "outside"),
    [
        ({"at_least": 5}, (5, 7), (3, 4.9)),
        ({"at_most": 5}, (3, 5), (5.1, 7)),
        ({"at_least": -5, "at_most": 5}, (-5, 5), (5.1, 7)),
        ({"at_least": -5, "at_most": 5}, (-1, 1), (-9, -5.1)),
    ],
)
def test_limit(limits, inside, outside):
    rule = Limit(value="v", **limits)
    for (low, high), expected in ((inside, "reproduced"), (outside, "opposite here")):
        middle = (low + high) / 2
        assert label(rule, v=entry(middle, low, high)) == expected
        assert label(rule, v=middle) == expected  # a value without an interval is a point
    across = sorted((inside[0], inside[1], outside[0], outside[1]))
    assert label(rule, v=entry(inside[0], across[0], across[-1])) == "undecided"


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "limit on v: give at_least, at_most or both"),
        ({"at_least": 1, "at_most": 1}, "limit on v: at_least must lie below at_most"),
    ],
)
def test_a_limit_has_a_side_and_room(limits, message):
    with pytest.raises(ValidationError, match=message):
        Limit(value="v", **limits)


def test_a_limit_is_told_in_words():
    reasons = [
        Limit(value="v", **limits).judge({"v": entry(0.5, 0, 1)}).reason
        for limits in ({"at_least": 0}, {"at_most": 0.5}, {"at_least": 2, "at_most": 3})
    ]
    assert reasons == [
        "0.5 [0, 1], at least 0 is claimed",
        "0.5 [0, 1], at most 0.5 is claimed: the interval reaches over the limit",
        "0.5 [0, 1], 2 to 3 is claimed: all of it lies outside",
    ]


@pytest.mark.parametrize(("hits", "n", "expected"), [(10, 10, 1), (100, 100, 2), (50, 100, 0), (71, 71, 1)])
def test_count(hits, n, expected):
    share = entry(100 * hits / n, 100 * hits / n, 100 * hits / n, "percent", n)
    labels = ("opposite here", "undecided", "reproduced")
    assert label(Count(value="v", at_least=95), v=share) == labels[expected]
    missed = entry(100 - share["value"], unit="percent", n=n)
    assert label(Count(value="v", at_most=5), v=missed) == labels[expected]


def test_a_count_needs_its_number_of_cases():
    with pytest.raises(DataError, match="value v has no n; record the number of cases with it"):
        Count(value="v", at_least=95).judge({"v": entry(100, 100, 100, "percent")})
