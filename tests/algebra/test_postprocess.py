"""Post-processing against its formulas: what RECT keeps, what PRUNE makes of a spectrum."""

import math
from typing import Any

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from palimpsest.algebra.postprocess import TINY, Post, Prune, Rect, compress, largest_singular_value
from tests.problems import gaussian

pytestmark = pytest.mark.usefixtures("one_thread")

shapes = st.tuples(st.integers(1, 12), st.integers(1, 12))
seeds = st.integers(0, 2**20)
shares = st.floats(0.01, 1)
bases = st.floats(1.05, 20)


def matrices(shape: tuple[int, int], seed: int, count: int = 3) -> list[Tensor]:
    return [gaussian(seed + i, *shape) for i in range(count)]


def squeezed(delta: Tensor, limit: float, base: float) -> Tensor:
    """PRUNE's formula on every singular value in turn, by numbers."""
    u, sigma, vt = torch.linalg.svd(delta, full_matrices=False)
    new = [math.log(s, base) - math.log(limit, base) + limit if s > limit else s for s in sigma.tolist()]
    return u @ torch.diag(torch.tensor(new, dtype=torch.float64)) @ vt


def spectral(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, 2))


# RECT.


@given(shapes, seeds, shares)
def test_rect_keeps_the_entries_with_the_largest_relative_change(
    shape: tuple[int, int], seed: int, keep: float
) -> None:
    delta, weight, start = matrices(shape, seed)
    after = Rect(keep=keep)(delta, weight, start)
    kept = after != 0
    count = math.ceil(keep * delta.numel())
    assert int(kept.sum()) == count
    assert torch.equal(after[kept], delta[kept])
    order = sorted(
        range(delta.numel()), key=lambda i: -float(delta.flatten()[i].abs() / weight.flatten()[i].abs())
    )
    assert {*order[:count]} == {*kept.flatten().nonzero()[:, 0].tolist()}


@given(shapes, seeds, shares)
def test_rect_measures_against_the_weight_it_is_told(shape: tuple[int, int], seed: int, keep: float) -> None:
    delta, weight, start = matrices(shape, seed)
    now, then = Rect(keep=keep), Rect(keep=keep, against="start")
    assert torch.equal(now(delta, weight, start), now(delta, weight, weight))
    assert torch.equal(then(delta, weight, start), then(delta, start, start))
    assert torch.equal(then(delta, weight, start), now(delta, start, weight))


def test_rect_against_the_start_is_not_against_the_model_as_it_is() -> None:
    delta, weight, start = matrices((8, 8), 0)
    assert not torch.equal(Rect()(delta, weight, start), Rect(against="start")(delta, weight, start))


@given(shapes, seeds, shares)
def test_rect_twice_is_rect_once_and_signs_do_not_matter(
    shape: tuple[int, int], seed: int, keep: float
) -> None:
    delta, weight, start = matrices(shape, seed)
    rect = Rect(keep=keep)
    once = rect(delta, weight, start)
    assert torch.equal(rect(once, weight, start), once)
    assert torch.equal(rect(-delta, -weight, start), -once)
    assert torch.equal(rect(delta, 8 * weight, start) != 0, once != 0)


@given(shapes, seeds)
def test_rect_that_keeps_everything_is_the_identity(shape: tuple[int, int], seed: int) -> None:
    delta, weight, start = matrices(shape, seed)
    assert Rect(keep=1)(delta, weight, start) is delta


def test_ties_with_the_smallest_kept_entry_are_kept_too() -> None:
    """Five of eight entries change their weight alike; keeping three keeps all five beside the largest."""
    weight = torch.tensor([[1.0, 2.0, 4.0, 8.0], [1.0, 1.0, 1.0, 1.0]], dtype=torch.float64)
    share = torch.tensor([[0.5, 0.5, 0.5, 0.5], [0.5, 3.0, 0.1, 0.2]], dtype=torch.float64)
    delta = share * (weight + TINY)
    after = Rect(keep=3 / 8)(delta, weight, weight)
    assert torch.equal(after != 0, share >= 0.5)
    assert torch.equal(Rect(keep=1 / 8)(delta, weight, weight) != 0, share == 3.0)


def test_a_change_of_a_zero_weight_counts_as_huge_and_no_change_as_none() -> None:
    delta = torch.tensor([[1e-6, 0.0, 0.9, 0.0]], dtype=torch.float64)
    weight = torch.tensor([[0.0, 0.0, 1.0, -1.0]], dtype=torch.float64)
    after = Rect(keep=0.25)(delta, weight, weight)
    assert torch.equal(after, torch.tensor([[1e-6, 0.0, 0.0, 0.0]], dtype=torch.float64))
    assert torch.equal(Rect(keep=0.5)(delta, weight, weight), delta)
    nothing = torch.zeros_like(delta)
    assert torch.equal(Rect(keep=0.25)(nothing, weight, weight), nothing)


# PRUNE.


@given(shapes, seeds, st.floats(0.1, 10))
def test_the_largest_singular_value(shape: tuple[int, int], seed: int, scale: float) -> None:
    matrix = scale * gaussian(seed, *shape)
    assert float(largest_singular_value(matrix)) == pytest.approx(spectral(matrix), rel=1e-12)
    assert float(largest_singular_value(torch.zeros(shape).double())) == 0


@given(shapes, seeds, st.floats(0.05, 3), bases)
def test_compress_is_the_formula_on_each_singular_value(
    shape: tuple[int, int], seed: int, limit: float, base: float
) -> None:
    delta = gaussian(seed, *shape)
    sigma = torch.linalg.svdvals(delta)
    assume((sigma - limit).abs().min() > 1e-9)
    found = compress(delta, limit, base)
    torch.testing.assert_close(found, squeezed(delta, limit, base), rtol=1e-9, atol=1e-9)
    if sigma[0] <= limit:
        assert found is delta


@given(shapes, seeds, st.floats(0.05, 1), bases)
def test_compress_keeps_the_small_values_and_the_order_of_the_others(
    shape: tuple[int, int], seed: int, limit: float, base: float
) -> None:
    """The spectrum that comes out, as a set: what was below the limit is there still, the rest above it.

    A value is lowered where its slope 1/(σ ln a) is below 1 from the limit on, and may be raised elsewhere.
    """
    delta = gaussian(seed, *shape)
    before, after = torch.linalg.svdvals(delta), torch.linalg.svdvals(compress(delta, limit, base))
    above = before > limit
    torch.testing.assert_close(after[~above], before[~above], rtol=1e-8, atol=1e-9)
    assert (after[above] >= limit - 1e-9).all()
    if limit * math.log(base) > 1:
        assert (after <= before + 1e-9).all()


def test_a_value_just_above_a_low_limit_is_raised() -> None:
    """As published: at σ_max = 0.1 and base e, 0.2 becomes ln 2 + 0.1."""
    found = compress(torch.diag(torch.tensor([0.2, 0.05], dtype=torch.float64)), 0.1, math.e)
    torch.testing.assert_close(found.diagonal(), torch.tensor([math.log(2) + 0.1, 0.05]).double())


@given(shapes, seeds, bases, st.sampled_from(["start", "current"]))
def test_prune_of_a_step(shape: tuple[int, int], seed: int, base: float, bound: Any) -> None:
    delta, weight, start = matrices(shape, seed)
    weight, start = 0.1 * weight, 0.2 * start
    found = Prune(base=base, bound=bound)(delta, weight, start)
    limit = spectral(start if bound == "start" else weight)
    torch.testing.assert_close(found, squeezed(delta, limit, base), rtol=1e-7, atol=1e-8)


@given(shapes, seeds, bases, st.sampled_from(["start", "current"]), st.sampled_from(["step", "end"]))
def test_prune_of_the_total(shape: tuple[int, int], seed: int, base: float, bound: Any, when: Any) -> None:
    """The weight that follows is W_0 + f(W − W_0), whatever part of the total this step brought."""
    delta, drift, start = matrices(shape, seed)
    weight, start = 0.2 * start + drift, 0.2 * start
    prune = Prune(base=base, of="total", bound=bound, when=when)
    limit = spectral(start if bound == "start" else weight)
    wanted = start + squeezed(drift + delta, limit, base)
    torch.testing.assert_close(weight + prune(delta, weight, start), wanted, rtol=1e-7, atol=1e-7)


@given(shapes, seeds, bases)
def test_doubled_adds_the_pruned_total_to_the_edited_weight(
    shape: tuple[int, int], seed: int, base: float
) -> None:
    """W_0 + D + f(D), as at the end of a sequence, where the last delta is zero."""
    drift, start = matrices(shape, seed, 2)
    start = 0.2 * start
    weight, nothing = start + drift, torch.zeros(shape).double()
    prune = Prune(base=base, of="total", when="end", doubled=True)
    wanted = weight + squeezed(drift, spectral(start), base)
    torch.testing.assert_close(weight + prune(nothing, weight, start), wanted, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    "options", [{}, {"bound": "current"}, {"of": "total"}, {"of": "total", "when": "end"}]
)
def test_nothing_above_the_limit_changes_nothing(options: dict[str, Any]) -> None:
    """Bit by bit; a step on its own is the same tensor."""
    delta, drift, start = matrices((6, 9), 3)
    weight, delta = start + 0.01 * drift, 0.01 * delta
    after = Prune(**options)(delta, weight, start)
    assert torch.equal(after, delta)
    if options.get("of") != "total":
        assert after is delta
    doubled = Prune(of="total", when="end", doubled=True)(delta, weight, start)
    torch.testing.assert_close(doubled, delta + (weight + delta - start))


def test_pruning_again_lowers_again() -> None:
    """It is no projection: a compressed value stays above the limit unless nothing was above it."""
    delta = torch.diag(torch.tensor([5.0, 3.0, 0.5], dtype=torch.float64))
    once = compress(delta, 2.0, math.e)
    twice = compress(once, 2.0, math.e)
    assert (once.diagonal()[:2] > 2).all()
    assert (twice.diagonal()[:2] < once.diagonal()[:2]).all()
    assert (twice.diagonal()[:2] > 2).all()


# Settings.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"when": "end"}, "a single step cannot be pruned at the end; set of='total' or when='step'"),
        ({"when": "end", "of": "step", "doubled": True}, "a single step cannot be pruned at the end"),
        ({"of": "total", "doubled": True}, "doubled belongs to pruning at the end; set when='end' or leave"),
        ({"doubled": True}, "doubled belongs to pruning at the end"),
        ({"base": 1}, "base\n.*greater than 1"),
        ({"bound": "end"}, "bound\n.*'start' or 'current'"),
        ({"limit": 3}, "limit\n.*[Uu]nexpected keyword"),
    ],
)
def test_prune_refuses_what_contradicts(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Prune(**options)


@pytest.mark.parametrize("keep", [0, -0.1, 1.01, float("nan")])
def test_rect_keeps_a_share(keep: float) -> None:
    with pytest.raises(ValidationError, match="keep\n"):
        Rect(keep=keep)


def test_posts_are_chosen_by_kind_and_know_when_they_act() -> None:
    read: TypeAdapter[Any] = TypeAdapter(Post)
    assert read.validate_python({"kind": "rect", "keep": 0.2}) == Rect(keep=0.2)
    end = read.validate_python({"kind": "prune", "of": "total", "when": "end"})
    assert end == Prune(of="total", when="end")
    assert [post.at_end for post in (Rect(), Prune(), Prune(of="total"), end)] == [False, False, False, True]
