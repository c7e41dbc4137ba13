"""One-time equals sequential: Lemma 3.1 and Propositions 3.2 and 3.4, against direct least squares."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from palimpsest.errors import ShapeError, SingularProblemError
from palimpsest.theory import labyrinth as eq
from palimpsest.theory.labyrinth import FactBatch, RunProblem
from tests.problems import EPS, error, gaussian
from tests.theory.labyrinths import (
    POSITIVE,
    SEEDS,
    SYMMETRIC,
    Run,
    all_facts,
    longest,
    references,
    runs,
    solvable,
    stacked_least_squares,
)

pytestmark = pytest.mark.usefixtures("one_thread")


# L03 and L04: Lemma 3.1 and Proposition 3.2.


@given(run=runs())
def test_sequential_equals_one_time_after_every_step(run):
    allowed, wanted = solvable(run), references(run)
    found = eq.sequential(run.problem, run.batches)
    for one, other in zip(found, wanted, strict=True):
        assert error(one, other, longest(wanted)) < allowed


@given(run=runs(kinds=POSITIVE))
def test_one_time_solution_is_the_least_squares_one(run):
    # For a projector the penalty is λ‖D‖²; for another positive semidefinite P it is λ tr(DP⁺Dᵀ).
    found, wanted = eq.one_time(run.problem, run.batches), stacked_least_squares(run)
    facts = eq.joined(run.batches)
    lacking = float((facts.values - run.problem.weight @ facts.keys).norm())
    # Updates far shorter than they could be, ‖R'‖/(2√λ), are rounding in the oracle.
    assert error(found, wanted, 1e-4 * lacking / (2 * run.problem.ridge**0.5)) < solvable(run)


@given(run=runs(kinds=("exact",)))
def test_alphaedits_own_rule(run):
    # Lemma 3.1: C = 0 and λ = 1, that is Eq. 2.
    run = replace(run, problem=replace(run.problem, moment=0 * run.problem.moment, ridge=1.0))
    wanted, allowed = references(run), solvable(run)
    assert error(eq.sequential(run.problem, run.batches)[-1], wanted[-1], longest(wanted)) < allowed


@given(run=runs(ridge=(-2, 2)), seed=SEEDS)
def test_neither_order_nor_size_of_the_batches_matters(run, seed):
    wanted = eq.sequential(run.problem, run.batches)
    facts = eq.joined(run.batches)
    order = torch.randperm(facts.keys.shape[1], generator=torch.Generator().manual_seed(seed))
    split = [FactBatch(facts.keys[:, [i]], facts.values[:, [i]]) for i in order]
    again = replace(run, batches=split)
    allowed = solvable(run) + solvable(again)
    assert error(eq.sequential(run.problem, split)[-1], wanted[-1], longest(references(again))) < allowed


@given(run=runs(kinds=POSITIVE))
def test_a_positive_ridge_and_a_positive_projector_are_enough(run):
    s = eq.system(run.problem, eq.joined(run.batches).keys)
    real = torch.linalg.eigvals(s).real.min()
    assert float(real) >= run.problem.ridge - 1e-10 * float(torch.linalg.matrix_norm(s, 2))


def test_not_any_projector():
    # K = 1, P = −1, λ = 1: S_1 = 0 although S_2 = −1 is fine, so the step does not exist.
    one = torch.ones(1, 1, dtype=torch.float64)
    problem, batches = RunProblem(0 * one, 0 * one, -one, 1.0), [FactBatch(one, one), FactBatch(one, 2 * one)]
    assert float(eq.system(problem, one)) == 0
    with pytest.raises(SingularProblemError, match=r"no inverse .*choose a pseudo-inverse"):
        eq.sequential(problem, batches)
    assert float(eq.one_time(problem, batches)) == 3
    assert float(eq.sequential(problem, batches, inverse="printed")[-1]) == 2  # the first fact is lost


@given(run=runs(kinds=("oblique", "arbitrary"), ridge=(-1, 1), awkward=False))
def test_other_matrices_do_not_solve_the_stated_problem(run):
    # A.3: "solves a valid one-time target for any choice of P". It is not the minimum over the same rows.
    solvable(run, 1e6)
    found = eq.one_time(run.problem, run.batches)
    inside = run.problem.projector
    frame = torch.linalg.qr(inside.T).Q[:, : int(torch.linalg.matrix_rank(inside))]
    best = eq.one_time(replace(run.problem, projector=frame @ frame.T), run.batches)
    values = [eq.stated_objective(run.problem, run.batches, total) for total in (best, found)]
    assert values[0] <= values[1] * (1 + 1e-9)


# L04 at λ = 0: which pseudo-inverse.


def without_ridge(run: Run) -> Run:
    return replace(run, problem=replace(run.problem, ridge=0.0))


def effective_condition(run: Run) -> float:
    """Largest over smallest non-zero singular value of PS_t, over the steps."""
    found = []
    for t in range(len(run.batches)):
        s = run.problem.projector @ eq.system(run.problem, eq.joined(run.batches[: t + 1]).keys)
        values = torch.linalg.svdvals(s)
        kept = values[values > eq.PSEUDO * values[0]]
        found.append(float(kept[0] / kept[-1]) if len(kept) else 1.0)
    return max(found)


@given(run=runs(kinds=SYMMETRIC, scale=(-0.3, 0.3)))
def test_without_ridge_the_symmetrised_pseudo_inverse_is_right(run):
    run = without_ridge(run)
    assume(effective_condition(run) < 1e7)
    totals = eq.sequential(run.problem, run.batches, inverse="symmetrised")
    wanted = eq.one_time(run.problem, run.batches, inverse="symmetrised")
    allowed = 1e-8 + 1000 * EPS * effective_condition(run)
    assert error(totals[-1], wanted, longest([*totals, wanted])) < allowed
    assert error(wanted @ run.problem.projector, wanted, 1e-9) < allowed


@st.composite
def same_inside(draw: st.DrawFn) -> Run:
    """Two single keys that agree inside range(P) and differ outside it, by about their own length."""
    d, seed = draw(st.integers(3, 8)), draw(SEEDS)
    frame = torch.linalg.qr(gaussian(seed, d, d)).Q
    inside, one, other = frame[:, :1], frame[:, 1:2], frame[:, 2:3]
    scale = draw(st.floats(0.5, 2))
    keys = torch.cat([inside + scale * one, inside + scale * other], 1)
    lacking = gaussian(seed + 1, 2, 2)
    lacking[:, 0] = lacking[:, 0] / lacking[:, 0].norm()
    lacking[:, 1] = draw(st.floats(0.2, 2)) * lacking[:, 0]  # no cancellation between the facts
    problem = RunProblem(torch.zeros(2, d).double(), torch.zeros(d, d).double(), inside @ inside.T, 0.0)
    batches = [FactBatch(keys[:, [i]], lacking[:, [i]]) for i in range(2)]
    return Run(problem, batches, FactBatch(keys[:, :0], lacking[:, :0]), "exact")


@given(run=same_inside())
def test_without_ridge_the_printed_pseudo_inverse_must_fail(run):
    found = eq.sequential(run.problem, run.batches, inverse="printed")[-1]
    assert error(found, eq.one_time(run.problem, run.batches, inverse="printed")) > 0.1
    right = eq.sequential(run.problem, run.batches, inverse="symmetrised")[-1]
    assert error(right, eq.one_time(run.problem, run.batches, inverse="symmetrised")) < 1e-8
    with pytest.raises(SingularProblemError, match="condition number"):
        eq.sequential(run.problem, run.batches)


@given(run=runs(kinds=("exact",), awkward=False, scale=(-0.3, 0.3)))
def test_without_ridge_the_printed_one_passes_for_independent_keys(run):
    run = without_ridge(run)
    inside = run.problem.projector @ eq.joined(run.batches).keys
    assume(torch.linalg.matrix_rank(inside) == inside.shape[1])
    assume(effective_condition(run) < 1e5)
    found = eq.sequential(run.problem, run.batches, inverse="printed")
    wanted = eq.one_time(run.problem, run.batches, inverse="printed")
    assert error(found[-1], wanted, longest(found)) < 1e-6


# L05: Proposition 3.4 and Corollary A.2.


def l1(total: Tensor) -> Tensor:
    return total.abs().sum()


def nuclear(total: Tensor) -> Tensor:
    return torch.linalg.matrix_norm(total, "nuc")


def shrink_l1(total: Tensor, by: float) -> Tensor:
    return total.sign() * (total.abs() - by).clamp(min=0)


def shrink_nuclear(total: Tensor, by: float) -> Tensor:
    u, s, v = torch.linalg.svd(total, full_matrices=False)
    return u * (s - by).clamp(min=0) @ v


PENALTIES = {"l1": (l1, shrink_l1), "nuclear": (nuclear, shrink_nuclear)}


@given(run=runs(), seed=SEEDS, name=st.sampled_from(sorted(PENALTIES)))
def test_the_step_problem_is_the_one_time_problem_re_centred(run, seed, name):
    # Any penalty, any D_{t−1}, optimal or not: a change of variable.
    facts, (penalty, _) = all_facts(run), PENALTIES[name]
    before, delta = (gaussian(seed + i, *run.problem.weight.shape) for i in (1, 2))
    step = eq.step_objective(run.problem.weight, facts, penalty, before, delta)
    offset = eq.one_time_objective(run.problem.weight, facts, lambda _: torch.zeros(()), before)
    whole = eq.one_time_objective(run.problem.weight, facts, penalty, before + delta)
    assert float(step + offset) == pytest.approx(float(whole), rel=1e-10)


def minimise(smooth: Callable, shrink: Callable, moment: Tensor, start: Tensor, steps: int = 400) -> Tensor:
    """Accelerated proximal gradient for smooth(x) + penalty, restarted when it turns back."""
    rate = 1 / (2 * float(torch.linalg.matrix_norm(moment, 2)))
    x = ahead = start
    momentum = 1.0
    for _ in range(steps):
        new = shrink(ahead - rate * smooth(ahead), rate)
        if ((ahead - new) * (new - x)).sum() > 0:
            momentum = 1.0
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        x, ahead, momentum = new, new + (momentum - 1) / following * (new - x), following
    return x


@given(seed=SEEDS, name=st.sampled_from(sorted(PENALTIES)))
def test_step_plus_previous_optimum_is_the_one_time_optimum(seed, name):
    # Full row rank keys: strictly convex, so that the optimum is one point and weights can be compared.
    weight, keys = gaussian(seed, 3, 4), gaussian(seed + 1, 4, 16)
    values, (penalty, shrink) = weight @ keys + gaussian(seed + 2, 3, 16), PENALTIES[name]
    k, lacking = keys, values - weight @ keys
    early = minimise(
        lambda d: 2 * (d @ k[:, :10] - lacking[:, :10]) @ k[:, :10].T, shrink, k @ k.T, 0 * weight
    )
    whole = minimise(lambda d: 2 * (d @ k - lacking) @ k.T, shrink, k @ k.T, 0 * weight)
    gradient = 2 * ((weight + early) @ k - values) @ k.T  # of L_t at D_{t−1}
    step = minimise(
        lambda d: 2 * d @ k @ k.T + gradient,
        lambda d, by: shrink(early + d, by) - early,
        k @ k.T,
        gaussian(seed + 3, 3, 4),
    )
    assert error(early + step, whole) < 1e-6
    facts = FactBatch(keys, values)
    best = eq.step_objective(weight, facts, penalty, early, step)
    for change in (gaussian(seed + i, 3, 4) for i in range(4, 8)):
        assert eq.step_objective(weight, facts, penalty, early, step + 1e-3 * change) > best


@given(run=runs(kinds=("identity",)), seed=SEEDS)
def test_ridge_step_reaches_the_optimum_from_anywhere(run, seed):
    before = gaussian(seed, *run.problem.weight.shape)
    step = eq.ridge_step(run.problem.weight, all_facts(run), run.problem.ridge, before)
    wanted = stacked_least_squares(run)
    assert error(before + step, wanted, float(before.norm())) < 10 * solvable(run)


def test_without_strict_convexity_the_minimiser_is_not_unique():
    # ℓ1 with K = (1, 1)ᵀ: every split of the same sum costs the same.
    facts = FactBatch(torch.ones(2, 1).double(), torch.ones(1, 1).double())
    weight = torch.zeros(1, 2).double()
    splits = [torch.tensor([[share, 1 - share]]).double() / 2 for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    found = [float(eq.one_time_objective(weight, facts, l1, d)) for d in splits]
    other = [float(eq.one_time_objective(weight, facts, l1, 1.1 * d)) for d in splits]
    assert max(found) - min(found) < 1e-12
    assert min(other) > max(found)


# Errors a caller can make.


def test_a_negative_ridge_is_refused():
    zero = torch.zeros(1, 1).double()
    with pytest.raises(ShapeError, match="ridge must be 0 or more, got -1"):
        RunProblem(zero, zero, zero, -1.0)


def test_a_run_without_batches_is_refused():
    with pytest.raises(ShapeError, match="at least one batch, got none"):
        eq.joined([])
