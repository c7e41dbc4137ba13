"""The Labyrinth's propositions against direct least squares; each control makes an error known exactly."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from problems import EPS, error, gaussian
from torch import Tensor

from palimpsest import equivalence as eq
from palimpsest.equivalence import Batch, Problem
from palimpsest.errors import ShapeError, SingularProblemError

pytestmark = pytest.mark.usefixtures("one_thread")

KINDS = ("identity", "exact", "thresholded", "soft", "psd", "oblique", "arbitrary")
SYMMETRIC = ("identity", "exact", "thresholded")
"""Orthogonal projectors."""
POSITIVE = (*SYMMETRIC, "soft", "psd")
SEEDS = st.integers(0, 2**20)


@dataclass(frozen=True, repr=False)
class Run:
    """A problem, its batches and its preserved facts."""

    problem: Problem
    batches: list[Batch]
    preserved: Batch
    kind: str

    def __repr__(self) -> str:
        sizes = [batch.keys.shape[1] for batch in self.batches]
        shape = tuple(self.problem.weight.shape)
        return f"Run({self.kind}, W {shape}, batches {sizes}, ridge {self.problem.ridge:.3g})"


def eye(d: int) -> Tensor:
    return torch.eye(d, dtype=torch.float64)


def projector(kind: str, preserved: Tensor, ridge: float, seed: int) -> Tensor:
    """P of each kind; those that look at the preserved keys remove or damp what they span."""
    d, moment = len(preserved), preserved @ preserved.T
    values, vectors = torch.linalg.eigh(moment)
    if kind == "identity":
        return eye(d)
    if kind == "exact":
        kept = vectors[:, values <= 1e-9 * max(float(values[-1]), 1e-9)]
        return kept @ kept.T
    if kind == "thresholded":
        kept = vectors[:, : (d + 1) // 2]
        return kept @ kept.T
    if kind == "soft":
        return torch.linalg.inv(eye(d) + moment / max(ridge, 1e-3))
    mixed = gaussian(seed, d, d)
    if kind == "psd":
        return mixed @ mixed.T / d
    if kind == "oblique":  # P² = P but P ≠ Pᵀ
        left, right = (
            mixed[:, : (d + 1) // 2],
            mixed[:, : (d + 1) // 2] + 0.5 * gaussian(seed + 1, d, (d + 1) // 2),
        )
        return left @ torch.linalg.solve(right.T @ left, right.T)
    return mixed


@st.composite
def runs(
    draw: st.DrawFn,
    kinds: tuple[str, ...] = KINDS,
    ridge: tuple[float, float] = (-6, 3),
    steps: tuple[int, int] = (1, 5),
    awkward: bool = True,
    scale: tuple[float, float] = (-1, 1),
) -> Run:
    """Shapes with N above and below d_k, any rank of K0, repeated and zero keys, W₀K0 = V0."""
    d_k, d_v, kind = draw(st.integers(2, 10)), draw(st.integers(1, 4)), draw(st.sampled_from(kinds))
    rank, seed = draw(st.integers(0, d_k - 1)), draw(SEEDS)
    lam, size = 10 ** draw(st.floats(*ridge)), 10 ** draw(st.floats(*scale))
    sizes = draw(st.lists(st.integers(1, 6), min_size=steps[0], max_size=steps[1]))
    keys = size * gaussian(seed, d_k, sum(sizes))
    if awkward and draw(st.booleans()):
        keys[:, -1] = -keys[:, 0]
    if awkward and draw(st.booleans()):
        keys[:, len(keys.T) // 2] = 0
    preserved = gaussian(seed + 1, d_k, rank) @ gaussian(seed + 2, rank, rank + 2)
    weight = gaussian(seed + 3, d_v, d_k)
    values = weight @ keys + gaussian(seed + 4, d_v, sum(sizes))
    batches = [Batch(*pair) for pair in zip(keys.split(sizes, 1), values.split(sizes, 1), strict=True)]
    p = projector(kind, preserved, lam, seed + 5)
    problem = Problem(weight, preserved @ preserved.T, p, lam)
    return Run(problem, batches, Batch(preserved, weight @ preserved), kind)


def solvable(run: Run, limit: float = 1e10) -> float:
    """Allowed relative error; discards what is singular, as the proposition's corrected form does."""
    worst = max(eq.conditions(run.problem, run.batches))
    assume(worst < limit)
    return 1e-8 + 100 * EPS * worst


def longest(totals: list[Tensor]) -> float:
    """Rounding grows with the largest total on the way."""
    return max(1e-9, *(float(total.norm()) for total in totals))


def references(run: Run) -> list[Tensor]:
    return [eq.one_time(run.problem, run.batches[: t + 1]) for t in range(len(run.batches))]


def stacked_least_squares(run: Run) -> Tensor:
    """D = X√P for the X that minimises ‖X√PK − R'‖² + ‖X√PK0‖² + λ‖X‖², by SVD; no normal equations."""
    facts, p = eq.joined(run.batches), run.problem.projector
    values, vectors = torch.linalg.eigh((p + p.T) / 2)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    ridge = run.problem.ridge**0.5 * eye(len(p))
    a = torch.cat([(root @ facts.keys).T, (root @ run.preserved.keys).T, ridge])
    b = torch.zeros(len(a), len(run.problem.weight)).double()
    b[: facts.keys.shape[1]] = (facts.values - run.problem.weight @ facts.keys).T
    found = np.linalg.lstsq(a.numpy(), b.numpy(), rcond=None)[0]
    return torch.from_numpy(found).T @ root


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
    split = [Batch(facts.keys[:, [i]], facts.values[:, [i]]) for i in order]
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
    problem, batches = Problem(0 * one, 0 * one, -one, 1.0), [Batch(one, one), Batch(one, 2 * one)]
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


# Negative controls: each departure makes an error that is known exactly, and large where it has to be.


@st.composite
def coupled(draw: st.DrawFn) -> Run:
    """Batches [u, a] and [u] with u ⟂ a unit keys inside range(P), C = 0 and 0.1 ≤ λ ≤ 10.

    The second residual of u is 1.2 to 2 times the first, so that on u everything is a scalar and no
    departure can cancel; where batches are orthogonal, each of them could.
    """
    d_k, d_v, seed = draw(st.integers(3, 8)), draw(st.integers(1, 4)), draw(SEEDS)
    kept = torch.linalg.qr(gaussian(seed, d_k, d_k)).Q[:, : draw(st.integers(2, d_k))]
    weight, lacking = gaussian(seed + 3, d_v, d_k), gaussian(seed + 4, d_v, 2)
    lacking = lacking / lacking.norm(dim=0)
    lacking = torch.cat([lacking, draw(st.floats(1.2, 2)) * lacking[:, :1]], 1)
    keys = kept[:, [0, 1, 0]]
    values = weight @ keys + lacking
    batches = [Batch(keys[:, :2], values[:, :2]), Batch(keys[:, 2:], values[:, 2:])]
    moment = torch.zeros(d_k, d_k).double()
    problem = Problem(weight, moment, kept @ kept.T, 10 ** draw(st.floats(-1, 1)))
    return Run(problem, batches, Batch(keys[:, :0], values[:, :0]), "exact")


def right_divide(left: Tensor, system: Tensor) -> Tensor:
    return torch.linalg.solve(system.T, left.T).T


def two_steps(run: Run) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """D*_1, D*_2, and S_2 of the first two batches, and K_2."""
    first, second = run.batches
    wanted = references(run)
    return wanted[0], wanted[1], eq.system(run.problem, eq.joined([first, second]).keys), second.keys


@given(run=runs(steps=(2, 2), ridge=(-2, 2)))
def test_misprinted_residual_of_a3(run):
    # With R' in place of R the second step repeats D_1K_2K_2ᵀP S_2⁻¹.
    allowed = solvable(run, 1e7)
    before, wanted, s, k = two_steps(run)
    found = eq.sequential(run.problem, run.batches, residuals="original")[-1]
    repeated = right_divide(before @ k @ k.T @ run.problem.projector, s)
    assert error(found - wanted, repeated, longest([before, wanted, found])) < 10 * allowed


@given(run=coupled())
def test_misprinted_residual_must_fail_where_keys_are_shared(run):
    _, wanted, *_ = two_steps(run)
    assert error(eq.sequential(run.problem, run.batches, residuals="original")[-1], wanted) > 1e-2


@given(run=runs(kinds=("identity",), ridge=(-2, 2), awkward=False))
def test_misprinted_residual_is_right_for_orthogonal_keys(run):
    # The misprint hides where keys are orthogonal; there is no floor without a shared direction.
    d = len(run.problem.moment)
    keys = torch.linalg.qr(run.problem.moment + eye(d)).Q[:, :2]
    batches = [Batch(keys[:, [i]], run.problem.weight[:, [i]]) for i in range(2)]
    plain = replace(run.problem, moment=0 * run.problem.moment)
    found = eq.sequential(plain, batches, residuals="original")[-1]
    assert error(found, eq.one_time(plain, batches)) < 1e-8


@given(run=runs(steps=(2, 2), ridge=(-2, 2)), factor=st.floats(0.01, 100))
def test_changing_ridge(run, factor):
    # The second step adds (λ_2 − λ_1) D_1 S_2⁻¹.
    allowed = solvable(run, 1e7)
    later = replace(run.problem, ridge=factor * run.problem.ridge)
    allowed += solvable(replace(run, problem=later), 1e7)
    before = eq.one_time(run.problem, run.batches[:1])
    wanted = eq.one_time(later, run.batches)
    found = eq.sequential([run.problem, later], run.batches)[-1]
    s = eq.system(later, eq.joined(run.batches).keys)
    added = right_divide((later.ridge - run.problem.ridge) * before, s)
    assert error(found - wanted, added, longest([before, wanted, found])) < 10 * allowed


@given(run=coupled(), factor=st.sampled_from([0.1, 0.5, 2.0, 10.0]))
def test_changing_ridge_must_fail(run, factor):
    later = replace(run.problem, ridge=factor * run.problem.ridge)
    found = eq.sequential([run.problem, later], run.batches)[-1]
    assert error(found, eq.one_time(later, run.batches)) > 1e-2


def weights(level: float) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda past, _: torch.full((past.shape[1],), level, dtype=torch.float64)


@given(run=runs(steps=(2, 2), ridge=(-2, 2)), level=st.floats(0, 100))
def test_weight_on_past_keys(run, level):
    # Even against the one-time problem with the same weights, (β − 1) D_1(CP + λI) S_2⁻¹ is missing.
    first, second = run.batches
    weighted = replace(run, batches=[Batch(level**0.5 * first.keys, level**0.5 * first.values), second])
    allowed = solvable(run, 1e7) + solvable(weighted, 1e7)
    before, wanted = eq.one_time(run.problem, [first]), eq.one_time(run.problem, weighted.batches)
    found = eq.sequential(run.problem, run.batches, past_weight=weights(level))[-1]
    s = eq.system(run.problem, eq.joined(weighted.batches).keys)
    anchored = eq.system(run.problem, first.keys[:, :0])
    missing = right_divide((1 - level) * before @ anchored, s)
    assert error(found - wanted, missing, (1 + level) * longest([before, wanted, found])) < 10 * allowed


@given(run=coupled(), level=st.sampled_from([0.0, 0.3, 3.0, 100.0]))
def test_weight_on_past_keys_must_fail(run, level):
    found = eq.sequential(run.problem, run.batches, past_weight=weights(level))[-1]
    assert error(found, eq.one_time(run.problem, run.batches)) > 1e-2


@given(run=runs(steps=(1, 4)))
def test_weight_one_changes_nothing(run):
    solvable(run)
    found = eq.sequential(run.problem, run.batches, past_weight=weights(1.0))[-1]
    assert torch.equal(found, eq.sequential(run.problem, run.batches)[-1])


@given(run=coupled())
def test_changing_projector_must_fail(run):
    # P_1 = I, and P_2 removes a key of the first batch: what D_1 does there is never taken back.
    key = run.batches[0].keys[:, :1]
    whole = replace(run.problem, projector=eye(len(key)))
    later = replace(run.problem, projector=eye(len(key)) - key @ key.T)
    found = eq.sequential([whole, later], run.batches)
    wanted = eq.one_time(later, run.batches)
    assert error(found[1] @ key, found[0] @ key) < 1e-8
    assert float((wanted @ key).norm()) < 1e-10
    assert float((found[1] - wanted).norm()) > 1e-2 * float(found[1].norm())


@given(run=coupled(), power=st.floats(-4, -1))
def test_keys_remembered_with_an_error_must_fail_in_proportion(run, power):
    noise = 10**power
    off = [(1 + noise) * batch.keys for batch in run.batches]
    found = eq.sequential(run.problem, run.batches, remembered=off)[-1]
    assert 1e-2 * noise < error(found, eq.one_time(run.problem, run.batches)) < 10 * noise


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
    problem = Problem(torch.zeros(2, d).double(), torch.zeros(d, d).double(), inside @ inside.T, 0.0)
    batches = [Batch(keys[:, [i]], lacking[:, [i]]) for i in range(2)]
    return Run(problem, batches, Batch(keys[:, :0], lacking[:, :0]), "exact")


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


# L02: what Eq. 3 leaves out.


@given(run=runs(kinds=POSITIVE))
def test_omission_is_the_sum_that_is_printed(run):
    allowed = solvable(run)
    for omit in (True, False):
        totals = eq.latest(run.problem, run.batches, omit)
        deltas = [now - was for was, now in zip([0 * totals[0], *totals], totals, strict=False)]
        weight = run.problem.weight + (totals[-2] if len(totals) > 1 else 0)
        p = run.problem.projector
        direct = eq.left_out(run.preserved, weight, deltas[-1], p)
        printed = eq.printed_omission(deltas, run.problem.moment, p)
        scale = float((longest(totals) + run.problem.weight.norm()) * run.problem.moment.norm()) + 1e-9
        assert error(printed, direct, scale) < allowed
        assert error(direct, -totals[-1] @ run.problem.moment @ p, scale) < allowed


@given(run=runs(kinds=("exact",)))
def test_nothing_is_omitted_for_an_exact_projector(run):
    allowed = solvable(run)
    full, short = (eq.latest(run.problem, run.batches, omit) for omit in (False, True))
    assert error(short[-1], full[-1], longest(full)) < allowed
    dropped = eq.printed_omission([short[-1]], run.problem.moment, run.problem.projector)
    assert float(dropped.norm()) <= 1e-9 * float(short[-1].norm() * run.problem.moment.norm() + 1e-9)


@given(run=coupled())
def test_much_is_omitted_where_the_projector_keeps_preserved_directions(run):
    # Negative control: the shared key is a preserved one too, and P keeps it.
    key = run.batches[0].keys[:, :1]
    run = replace(run, problem=replace(run.problem, moment=key @ key.T))
    full, short = (eq.latest(run.problem, run.batches, omit)[-1] for omit in (False, True))
    assert error(short, full) > 1e-2
    assert float(eq.printed_omission([short], key @ key.T, run.problem.projector).norm()) > 1e-2


@given(run=runs())
def test_latest_in_closed_form(run):
    # Eq. 4 is D_t = (λD_{t−1} + R'_tK_tᵀP)(CP + K_tK_tᵀP + λI)⁻¹, and Eq. 3 the same without CP.
    for omit in (True, False):
        used = replace(run.problem, moment=run.problem.moment * (not omit))
        total, totals = 0 * used.weight, []
        worst = max(eq.conditions(used, [batch])[0] for batch in run.batches)
        assume(worst < 1e9)
        for batch in run.batches:
            lacking = (batch.values - used.weight @ batch.keys) @ batch.keys.T @ used.projector
            total = right_divide(used.ridge * total + lacking, eq.system(used, batch.keys))
            totals.append(total)
        found = eq.latest(run.problem, run.batches, omit)
        assert error(found[-1], total, longest(totals)) < 1e-8 + 1000 * EPS * worst


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


def all_facts(run: Run) -> Batch:
    return eq.joined([run.preserved, *run.batches])


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
    facts = Batch(keys, values)
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
    facts = Batch(torch.ones(2, 1).double(), torch.ones(1, 1).double())
    weight = torch.zeros(1, 2).double()
    splits = [torch.tensor([[share, 1 - share]]).double() / 2 for share in (0.0, 0.25, 0.5, 0.75, 1.0)]
    found = [float(eq.one_time_objective(weight, facts, l1, d)) for d in splits]
    other = [float(eq.one_time_objective(weight, facts, l1, 1.1 * d)) for d in splits]
    assert max(found) - min(found) < 1e-12
    assert min(other) > max(found)


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


# L07: Proposition 3.5.


@dataclass(frozen=True, repr=False)
class Conflict:
    """Old facts in C and W, of which some are met again with other values."""

    weight: Tensor
    moment: Tensor
    cross: Tensor
    keys: Tensor  # of the overlap
    old: Tensor
    new: Tensor
    fresh: Batch

    def fit(self, resolved: Tensor) -> Tensor:
        """W*: (B − V_oldK_oᵀ + V_resolvedK_oᵀ + VKᵀ of fresh facts)(C + KKᵀ)⁻¹."""
        cross = self.cross + (resolved - self.old) @ self.keys.T + self.fresh.values @ self.fresh.keys.T
        moment = self.moment + self.fresh.keys @ self.fresh.keys.T
        return torch.from_numpy(np.linalg.solve(moment.numpy(), cross.T.numpy())).T

    def update(self, entered: Tensor, subtracted: Tensor) -> Tensor:
        overlap = Batch(self.keys, entered)
        return self.weight + eq.conflict_update(self.weight, self.moment, self.fresh, overlap, subtracted)


@st.composite
def conflicts(draw: st.DrawFn) -> Conflict:
    """Keys of length about one, C well conditioned, values of the overlap that differ by about one."""
    d_k, d_v, seed = draw(st.integers(2, 8)), draw(st.integers(1, 4)), draw(SEEDS)
    shared, more, fresh = (draw(st.integers(low, 4)) for low in (1, 0, 0))
    old_keys, old_values = (
        gaussian(seed, d_k, shared + more) / d_k**0.5,
        gaussian(seed + 1, d_v, shared + more),
    )
    base = gaussian(seed + 2, d_k, 2 * d_k + 4) / d_k**0.5
    weight = gaussian(seed + 3, d_v, d_k)
    cross = weight @ base @ base.T + old_values @ old_keys.T
    moment = base @ base.T + old_keys @ old_keys.T
    keys, old = old_keys[:, :shared], old_values[:, :shared]
    new_keys = gaussian(seed + 4, d_k, fresh) / d_k**0.5
    return Conflict(
        weight=torch.linalg.solve(moment, cross.T).T,
        moment=moment,
        cross=cross,
        keys=keys,
        old=old,
        new=old + 1 + gaussian(seed + 5, *old.shape).abs(),  # a sign in common: nothing cancels
        fresh=Batch(new_keys, gaussian(seed + 6, d_v, fresh)),
    )


RESOLVE = {"new": lambda old, new: new, "old": lambda old, new: old, "mean": lambda old, new: (old + new) / 2}


def slack(case: Conflict) -> float:
    return 1e-8 + 100 * EPS * float(torch.linalg.cond(case.moment))


@given(case=conflicts(), rule=st.sampled_from(sorted(RESOLVE)))
def test_corrected_conflict_update_is_the_direct_fit(case, rule):
    resolved = RESOLVE[rule](case.old, case.new)
    assert error(case.update(resolved, case.old), case.fit(resolved)) < slack(case)
    # If V_t is to hold the new values, what is subtracted is new + old − resolved.
    assert error(case.update(case.new, case.new + case.old - resolved), case.fit(resolved)) < slack(case)


@given(case=conflicts())
def test_printed_conflict_update_takes_new_for_old_and_old_for_new(case):
    for rule, other in (("new", "old"), ("old", "new"), ("mean", "mean")):
        resolved = RESOLVE[rule](case.old, case.new)
        printed, instead = case.update(case.new, resolved), case.fit(RESOLVE[other](case.old, case.new))
        assert error(printed, instead) < slack(case)
        if rule != other:
            assert error(printed, case.fit(resolved)) > 1e-3


@given(case=conflicts())
def test_other_readings_of_the_conflict_update_hold_for_one_rule_each(case):
    for rule, resolve in RESOLVE.items():
        resolved = resolve(case.old, case.new)
        proof = error(case.update(resolved, resolved), case.fit(resolved))  # as the proof has it
        mixed = error(case.update(case.new, case.old), case.fit(resolved))
        for found, right in ((proof, "old"), (mixed, "new")):
            assert found < slack(case) if rule == right else found > 1e-3


@st.composite
def changes(draw: st.DrawFn) -> tuple[Tensor, float, list[tuple[str, int, float]], int]:
    """W₀, λ, a list of operations (name, fact, weight) on up to five facts, and a seed."""
    seed = draw(SEEDS)
    operation = st.tuples(
        st.sampled_from(["insert", "forget", "overwrite", "reweight"]), st.integers(0, 4), st.floats(0.1, 4)
    )
    return (
        gaussian(seed, 2, draw(st.integers(2, 6))),
        10 ** draw(st.floats(-2, 1)),
        draw(st.lists(operation, min_size=1, max_size=12)),
        seed,
    )


def apply_change(
    kept: dict[int, tuple[Tensor, Tensor, float]],
    name: str,
    fact: int,
    weight: float,
    fresh: tuple[Tensor, Tensor],
) -> tuple[Tensor, Tensor]:
    """dC and dB of one operation; ``kept`` is changed. An operation without its fact does nothing."""
    was = kept.pop(fact, None)
    key, value = fresh
    if (name == "insert") == (was is None) and name != "forget":
        now = {"insert": (key, value, weight)}.get(name)
        if was is not None:
            now = (was[0], value, was[2]) if name == "overwrite" else (*was[:2], weight)
        kept[fact] = now
    elif was is not None and name != "forget":
        kept[fact] = was
    pairs = [(sign, fact_) for sign, fact_ in ((-1, was), (1, kept.get(fact))) if fact_ is not None]
    zero = torch.zeros(len(key), len(key)).double(), torch.zeros(len(value), len(key)).double()
    moment = sum((sign * w * k @ k.T for sign, (k, _, w) in pairs), start=zero[0])
    return moment, sum((sign * w * v @ k.T for sign, (k, v, w) in pairs), start=zero[1])


@given(given_=changes())
def test_any_sequence_of_changes_ends_at_the_fit_of_what_is_left(given_):
    start, ridge, operations, seed = given_
    d_v, d_k = start.shape
    weight, moment, kept = start, ridge * eye(d_k), {}
    for number, (name, fact, level) in enumerate(operations):
        fresh = gaussian(seed + 2 * number + 1, d_k, 1), gaussian(seed + 2 * number + 2, d_v, 1)
        d_moment, d_cross = apply_change(kept, name, fact, level, fresh)
        weight = weight + eq.general_update(weight, moment, d_moment, d_cross)
        moment = moment + d_moment
        rows = [ridge**0.5 * eye(d_k), *(w**0.5 * k.T for k, _, w in kept.values())]
        right = [ridge**0.5 * start.T, *(w**0.5 * v.T for _, v, w in kept.values())]
        wanted = np.linalg.lstsq(torch.cat(rows).numpy(), torch.cat(right).numpy(), rcond=None)[0]
        cond = float(torch.linalg.cond(moment))
        assert error(weight, torch.from_numpy(wanted).T) < 1e-8 + 1000 * EPS * cond
    if not kept:
        assert error(weight, start) < 1e-8 + 1000 * EPS / ridge * 100


@given(case=conflicts())
def test_insert_then_forget_and_an_overwrite_with_the_same_value_do_nothing(case):
    k, v = case.fresh.keys, case.fresh.values
    inserted = case.weight + eq.general_update(case.weight, case.moment, k @ k.T, v @ k.T)
    back = inserted + eq.general_update(inserted, case.moment + k @ k.T, -k @ k.T, -v @ k.T)
    assert error(back, case.weight) < slack(case)
    nothing = Batch(case.keys[:, :0], case.old[:, :0])
    same = eq.conflict_update(
        case.weight, case.moment, nothing, Batch(case.keys, case.old), subtracted=case.old
    )
    assert float(same.norm()) < slack(case) * float(case.weight.norm())


@given(case=conflicts())
def test_forgetting_at_another_key_than_the_stored_one_must_fail(case):
    assume(case.fresh.keys.shape[1] > 0)
    k, v = case.fresh.keys, case.fresh.values
    inserted = case.weight + eq.general_update(case.weight, case.moment, k @ k.T, v @ k.T)
    other = k + 0.2 * gaussian(0, *k.shape) / len(k) ** 0.5
    back = inserted + eq.general_update(inserted, case.moment + k @ k.T, -other @ other.T, -v @ other.T)
    assert error(back, case.weight) > 1e-4


# Eq. 31 and 32: memorise-the-latest by deletion or anew.


@given(case=conflicts(), seed=SEEDS, offset=st.floats(0.1, 10))
def test_deletion_keeps_an_initial_error_for_ever_and_solving_anew_forgets_it(case, seed, offset):
    d_v, d_k = case.weight.shape
    c, cross, nothing = case.moment, case.cross, Batch(case.keys[:, :0], case.old[:, :0])
    batches = [Batch(gaussian(seed + i, d_k, 2), gaussian(seed + 9 + i, d_v, 2)) for i in range(3)]
    started = offset * gaussian(seed + 20, d_v, d_k)
    exact, moved, previous = case.weight, case.weight + started, nothing
    for batch in batches:
        system = c + batch.keys @ batch.keys.T
        wanted = torch.from_numpy(
            np.linalg.solve(system.numpy(), (cross + batch.values @ batch.keys.T).T.numpy())
        ).T
        anew = moved + eq.latest_anew(moved, c, cross, batch)
        exact = exact + eq.latest_by_deletion(exact, c, previous, batch)
        moved = moved + eq.latest_by_deletion(moved, c, previous, batch)
        allowed = 1e-8 + 1000 * EPS * float(torch.linalg.cond(system))
        assert error(exact, wanted) < allowed
        assert error(anew, wanted, offset) < allowed
        assert error((moved - wanted) @ system, started @ c) < allowed * (1 + 1 / offset)
        previous = batch


# Errors a caller can make.


def test_a_negative_ridge_is_refused():
    zero = torch.zeros(1, 1).double()
    with pytest.raises(ShapeError, match="ridge must be 0 or more, got -1"):
        Problem(zero, zero, zero, -1.0)


def test_a_run_without_batches_is_refused():
    with pytest.raises(ShapeError, match="at least one batch, got none"):
        eq.joined([])
