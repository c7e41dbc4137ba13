"""Algorithm 1: what error feedback keeps exact under any post-processing, and how each variant fails."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from palimpsest.theory import labyrinth as eq
from tests.problems import error, gaussian
from tests.theory.labyrinths import SEEDS, all_facts, eye, longest, references, right_divide, runs, solvable

pytestmark = pytest.mark.usefixtures("one_thread")


# L06: Algorithm 1.


def keep(share: float) -> Callable[[Tensor], Tensor]:
    """The entries of largest size, a share of them, at least one."""

    def post(delta: Tensor) -> Tensor:
        count = max(1, round(share * delta.numel()))
        smallest = delta.abs().flatten().topk(count).values[-1]
        return delta * (delta.abs() >= smallest)

    return post


def random_post(seed: int) -> Callable[[Tensor], Tensor]:
    """Not even a function of Δ: half of its entries are noise."""
    generator = torch.Generator().manual_seed(seed)

    def post(delta: Tensor) -> Tensor:
        noise = torch.randn(delta.shape, dtype=delta.dtype, generator=generator)
        return torch.where(torch.rand(delta.shape, generator=generator) < 0.5, noise, delta)

    return post


POSTS: dict[str, Callable[[int], Callable[[Tensor], Tensor]]] = {
    "keep": lambda _: keep(0.4),
    "clip": lambda _: lambda delta: delta.clamp(-0.1, 0.1),
    "nothing at all": lambda _: lambda delta: 0 * delta,
    "backwards": lambda _: lambda delta: -delta,
    "random": random_post,
}


@given(run=runs(), name=st.sampled_from(sorted(POSTS)), seed=SEEDS)
def test_before_post_processing_the_weights_are_the_one_time_ones(run, name, seed):
    allowed, wanted = solvable(run, 1e8), references(run)
    found = eq.error_feedback(run.problem, run.batches, POSTS[name](seed))
    scale = longest([w - run.problem.weight for w in (*found.before, *found.after)])
    for one, other in zip(found.before, wanted, strict=True):
        assert error(one - run.problem.weight, other, scale) < 10 * allowed


@given(run=runs(), name=st.sampled_from(sorted(POSTS)), seed=SEEDS)
def test_the_state_form_is_the_same_run(run, name, seed):
    allowed = solvable(run, 1e8)
    found = eq.error_feedback(run.problem, run.batches, POSTS[name](seed))
    again = eq.state_feedback(run.problem, run.batches, POSTS[name](seed))
    assume(name != "keep")  # a tie between two entries may fall either way
    assert error(again.after[-1], found.after[-1], longest(found.before + found.after)) < 10 * allowed


@given(run=runs(), seed=SEEDS)
def test_the_weights_returned_miss_by_the_last_loss(run, seed):
    # Δ_t = (one-time_t − one-time_{t−1}) − e_{t−1}, and what is returned is off by e_t.
    allowed, wanted = solvable(run, 1e8), references(run)
    found = eq.error_feedback(run.problem, run.batches, random_post(seed))
    w0, scale = run.problem.weight, longest(found.before + found.after)
    losses = [after - before for before, after in zip(found.before, found.after, strict=True)]
    assert error(found.after[-1] - w0 - wanted[-1], losses[-1], scale) < 10 * allowed
    if len(wanted) > 1:
        delta = found.before[-1] - found.after[-2]
        assert error(delta, wanted[-1] - wanted[-2] - losses[-2], scale) < 10 * allowed


@given(run=runs())
def test_without_post_processing_there_is_no_error_to_feed_back(run):
    solvable(run)
    found = eq.error_feedback(run.problem, run.batches, lambda delta: delta)
    assert not any(bool(e.any()) for e in found.errors)


@given(run=runs(kinds=("identity",), ridge=(-1, 2), steps=(2, 4)), seed=SEEDS)
def test_start_error_for_preserved_facts_that_are_not_stored(run, seed):
    # W₀K0 ≠ V0: E_0 = −(V0 − W₀K0)K0ᵀ makes it the fit of all facts; zero, as printed, does not.
    wrong = gaussian(seed, *run.preserved.values.shape)
    start = -wrong @ run.preserved.keys.T
    found = eq.error_feedback(run.problem, run.batches, random_post(seed), start=start)
    facts = all_facts(run)
    lacking = facts.values - run.problem.weight @ facts.keys
    lacking[:, : wrong.shape[1]] += wrong
    a = torch.cat([facts.keys.T, run.problem.ridge**0.5 * eye(len(facts.keys))])
    b = torch.cat([lacking.T, torch.zeros(len(facts.keys), len(lacking)).double()])
    wanted = torch.from_numpy(np.linalg.lstsq(a.numpy(), b.numpy(), rcond=None)[0]).T
    allowed = 10 * solvable(run, 1e8)
    assert error(found.before[-1] - run.problem.weight, wanted, longest(found.after)) < allowed
    assume(float(start.norm()) > 1)
    plain = eq.error_feedback(run.problem, run.batches, random_post(seed)).before[-1]
    missing = right_divide(start, eq.system(run.problem, eq.joined(run.batches).keys))
    assert error(plain - found.before[-1], missing, longest(found.after)) < allowed


WRONG = {
    # What stays wrong is the first loss e_1, in the metric it was given and not taken back in.
    "none": ({"correction": "none"}, 1, lambda m, ridge: m),
    "summed": ({"correction": "summed"}, 2, lambda m, ridge: -m),
    "ridge not in E": ({"error_ridge": 0.0}, 1, lambda m, ridge: ridge * eye(len(m))),
}


@given(
    run=runs(steps=(3, 3), ridge=(-1, 1), kinds=("identity", "exact")), name=st.sampled_from(sorted(WRONG))
)
def test_variants_of_algorithm_1_must_fail_by_a_known_error(run, name):
    options, step, metric = WRONG[name]
    allowed, wanted = 10 * solvable(run, 1e6), references(run)
    found = eq.error_feedback(run.problem, run.batches, keep(0.4), **options)
    first = found.after[0] - found.before[0]
    s = [eq.system(run.problem, eq.joined(run.batches[: t + 1]).keys) for t in range(3)]
    left = right_divide(first @ metric(s[0], run.problem.ridge), s[step])
    missed = found.before[step] - run.problem.weight - wanted[step]
    assert error(missed, left, longest(found.after + wanted)) < allowed
    assume(float(first.norm()) > 1e-3 * float(wanted[0].norm()) and float(wanted[0].norm()) > 1e-3)
    # ‖e_1 M‖ and S invertible: the error cannot vanish.
    assert float(missed.norm()) > 1e-6 * float(first.norm())
