"""A shift as a whole: measures of resampled prompts, intervals and controls."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.errors import ScoreError, UnknownNameError
from palimpsest.evaluation import shift_measures as measures
from palimpsest.evaluation.shift import SHIFT_MEASURES, Shift, over_prompts
from palimpsest.results.records import UNITS

Array = np.ndarray[Any, np.dtype[np.float64]]
SEEDS = st.integers(0, 999)
SHIFTING = ("d1", "d2", "h", "p", "mmd")


def states(seed: int, n: int = 30, size: float = 0.5, away: float = 0.0) -> tuple[Array, Array]:
    draw = np.random.default_rng(seed)
    before = draw.standard_normal((n, 5)) * [4, 3, 1, 1, 1] + 10
    return before, before + size * draw.standard_normal((n, 5)) + away


def plain(before: Array, after: Array, whole: Shift) -> dict[str, float]:
    """All measures of some prompts, from their states alone; plane and units are those of the whole."""
    points = [whole.plane.points(one) / whole.plane.scale for one in (before, after)]
    kernel = measures.gaussian_kernel(np.concatenate([before, after]), whole.width)
    n = len(before)
    return {
        "d1": 100 * measures.overlap(points[0][:, 0], points[1][:, 0]),
        "d2": 100 * measures.overlap(points[0][:, 1], points[1][:, 1]),
        "h": measures.hausdorff(*points),
        "p": 100 * measures.inside(*points),
        "cka": measures.linear_cka(measures.gram(before), measures.gram(after)),
        "mmd": measures.mmd(kernel[:n, :n], kernel[n:, n:], kernel[:n, n:]),
        "moved": float(measures.moved(before, after).mean() / whole.spread),
        "turned": float(measures.turned(before, after).mean()),
    }


@given(SEEDS, st.booleans())
def test_measures_of_some_prompts_are_those_of_their_states(seed: int, repeated: bool) -> None:
    before, after = states(seed)
    whole = Shift.between(before, after)
    of = np.random.default_rng(seed).choice(30, 12, replace=repeated)
    wanted = plain(before[of], after[of], whole)
    assert {*wanted} == {*SHIFT_MEASURES}
    for name, value in wanted.items():
        assert whole.measure(name, of) == pytest.approx(value, rel=1e-7, abs=1e-7), name
        assert whole.measure(name) == pytest.approx(plain(before, after, whole)[name], rel=1e-7, abs=1e-7)


@pytest.mark.parametrize("n", [1, 2, 40])
def test_a_model_that_did_not_move_has_the_values_that_are_told(n: int) -> None:
    before, _ = states(0, n)
    same = Shift.between(before, before.copy())
    for name, about in SHIFT_MEASURES.items():
        nearest = 100 * np.ceil(measures.LEVEL * n) / n if name == "p" else about.same
        assert same.measure(name) == pytest.approx(nearest, abs=1e-12), name
        if n > 1 and name != "p":
            found = same.interval(name, 0, 20)
            assert (found.low, found.high) == pytest.approx((about.same, about.same), abs=1e-12)
    assert all(about.unit in UNITS for about in SHIFT_MEASURES.values())


@given(SEEDS)
def test_a_larger_shift_is_told_as_larger(seed: int) -> None:
    before, _ = states(seed)
    direction = np.random.default_rng(seed).standard_normal(5)
    found = [Shift.between(before, before + far * direction) for far in (0.0, 5.0, 50.0)]
    for name in ("moved", "mmd", "h", "turned"):
        values = [one.measure(name) for one in found]
        assert values == sorted(values), name
        assert values[0] < values[2], name
    assert found[2].measure("mmd") <= 2**0.5
    assert found[0].measure("cka") == pytest.approx(found[2].measure("cka")), "blind to a common shift"


def test_a_plane_of_both_contains_the_direction_of_the_shift_and_one_of_the_unedited_need_not() -> None:
    draw = np.random.default_rng(0)
    before = draw.standard_normal((60, 5)) * [4, 3, 1, 1, 0.01]
    after = before + np.array([0, 0, 0, 0, 100])
    assert Shift.between(before, after).measure("d1") > 99
    assert Shift.between(before, after, to="both").measure("d1") == pytest.approx(0, abs=1e-6)
    assert Shift.between(before, after).measure("mmd") > 1


def test_an_interval_is_a_bootstrap_over_prompts() -> None:
    shift = Shift.between(*states(1))
    found = shift.interval("moved", seed=3, resamples=400)
    again = shift.interval("moved", seed=3, resamples=400)
    moved = measures.moved(*states(1)) / shift.spread
    error = moved.std() / len(moved) ** 0.5
    assert found == again
    assert found.mean == pytest.approx(moved.mean())
    assert found.high - found.low == pytest.approx(3.92 * error, rel=0.2)
    assert found.n == 30
    for name in SHIFT_MEASURES:
        one = shift.interval(name, seed=0, resamples=30)
        assert one.low <= one.mean <= one.high
    with pytest.raises(ScoreError, match="two or more"):
        over_prompts(lambda _: 0.0, 1, 0, 10)


@pytest.mark.parametrize("name", SHIFTING)
def test_exchanged_states_show_no_shift_and_a_shifted_model_lies_outside(name: str) -> None:
    moved = Shift.between(*states(2, 60, 0.5, away=8.0))
    still = Shift.between(*states(2, 60, 0.5))
    null = still.control(name, seed=0, draws=60)
    assert null.low - 1e-9 <= still.measure(name) <= null.high + 1e-9
    far = moved.control(name, seed=0, draws=60)
    value = moved.measure(name)
    assert value > far.high if SHIFT_MEASURES[name].same == 0 else value < far.low


def test_mismatched_prompts_have_nothing_to_do_with_each_other() -> None:
    shift = Shift.between(*states(3, 60, 0.3))
    assert shift.control("cka", 0, 60).high < 0.5 < shift.measure("cka")
    for name in ("moved", "turned"):
        assert shift.control(name, 0, 60).low > shift.measure(name)
    assert shift.control("cka", 0, 60) == shift.control("cka", 0, 60)


def test_other_measures_are_refused() -> None:
    shift = Shift.between(*states(0))
    for ask in (shift.measure, lambda name: shift.control(name, 0)):
        with pytest.raises(UnknownNameError, match="unknown measure of a shift 'd3'; choose one of: cka, d1"):
            ask("d3")
