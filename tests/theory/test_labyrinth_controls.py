"""Departures from the equivalence, what Eq. 3 leaves out included: each makes an error known exactly."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from palimpsest.theory import labyrinth as eq
from palimpsest.theory.labyrinth import FactBatch, RunProblem
from tests.problems import EPS, error, gaussian
from tests.theory.labyrinths import (
    POSITIVE,
    SEEDS,
    Run,
    eye,
    longest,
    references,
    right_divide,
    runs,
    solvable,
)

pytestmark = pytest.mark.usefixtures("one_thread")


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
    batches = [FactBatch(keys[:, :2], values[:, :2]), FactBatch(keys[:, 2:], values[:, 2:])]
    moment = torch.zeros(d_k, d_k).double()
    problem = RunProblem(weight, moment, kept @ kept.T, 10 ** draw(st.floats(-1, 1)))
    return Run(problem, batches, FactBatch(keys[:, :0], values[:, :0]), "exact")


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
    batches = [FactBatch(keys[:, [i]], run.problem.weight[:, [i]]) for i in range(2)]
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
    weighted = replace(run, batches=[FactBatch(level**0.5 * first.keys, level**0.5 * first.values), second])
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
