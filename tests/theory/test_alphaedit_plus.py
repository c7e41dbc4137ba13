"""The lemmas' closed forms against the solver, each wrong print with the counter-example it fails on."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from palimpsest.algebra.conflict import conflict
from palimpsest.algebra.projector import Projector
from palimpsest.algebra.solve import LeastSquares, objective, solve, with_past
from palimpsest.errors import SingularProblemError
from palimpsest.theory import alphaedit_plus as theory
from tests.problems import EPS, Case, cases, error, gaussian

pytestmark = pytest.mark.usefixtures("one_thread")

RIDGES = st.floats(-3, 2).map(lambda power: 10**power)


def unit(tensor: Tensor) -> Tensor:
    return tensor / tensor.norm(dim=0)


def one_key(case: Case) -> tuple[Tensor, Tensor]:
    return case.keys[:, 0], case.residual[:, 0]


def alone(case: Case) -> LeastSquares:
    return case.problem(keys=case.keys[:, :1], residual=case.residual[:, :1], preserve=None)


def slack(problem: LeastSquares, projector: Projector) -> float:
    g = theory.gram(problem.keys, projector)
    cond = torch.linalg.cond(g + problem.ridge * torch.eye(len(g), dtype=g.dtype))
    return 1e-8 + 100 * EPS * float(cond)


# P01: Lemma 1. The residual is right, the update printed beside it is not.


@given(case=cases(awkward=()))
def test_residual_factor_of_one_edit(case):
    energy = float(theory.projected_energy(case.keys[:, :1], case.projector))
    wanted = solve(alone(case)).fit
    assert float(theory.residual_factor(energy, case.ridge)) == pytest.approx(wanted, rel=1e-7)


@given(case=cases(awkward=()))
def test_corrected_update_of_one_edit(case):
    k, r = one_key(case)
    corrected = theory.single_update(k, r, case.projector, case.ridge)
    assert error(corrected, solve(alone(case)).delta, 1e-9) < 1e-8


@given(case=cases(awkward=()))
def test_printed_update_of_one_edit_is_off_by_the_factor_ridge(case):
    k, r = one_key(case)
    printed = theory.printed_single_update(k, r, case.projector, case.ridge)
    right = solve(alone(case)).delta
    assert error(printed, case.ridge * right, 1e-12) < 1e-8
    assume(abs(case.ridge - 1) > 0.01)
    assert error(printed, right, 1e-12) > 1e-3 * min(1, float(right.norm()) * 1e12)
    left = (printed @ k - r).norm() / r.norm()
    energy = float(theory.projected_energy(k[:, None], case.projector))
    wanted = float(theory.printed_residual_factor(energy, case.ridge))
    assert float(left) == pytest.approx(abs(wanted), rel=1e-7, abs=1e-12)


def test_residual_of_one_edit_by_hand():
    # λ = 0.1 and ‖Pk‖ = 1: 0.1/1.1 of the residual stays, and 1/1.1 of it with the printed update.
    assert theory.residual_factor(1.0, 0.1) == pytest.approx(1 / 11)
    assert theory.printed_residual_factor(1.0, 0.1) == pytest.approx(10 / 11)


# P02: Eq. 6. A bound, not an equality.


@given(case=cases(awkward=("repeated", "opposite")))
def test_residual_from_the_cosine_is_a_lower_bound(case):
    s = conflict(case.keys, case.preserved)
    energy = theory.projected_energy(unit(case.keys), case.projector)
    bound = theory.cosine_residual_factor(s, case.ridge)
    assert (bound <= theory.residual_factor(energy, case.ridge) * (1 + 1e-9) + 1e-9).all()


# P03: Lemma 2 and A.5.


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor, Tensor]:
    """Two unit keys at a chosen signed cosine, and a residual."""
    d_k, cosine = draw(st.integers(2, 12)), draw(st.floats(-1, 1))
    frame = torch.linalg.qr(gaussian(draw(st.integers(0, 999)), d_k, 2)).Q
    prior = cosine * frame[:, 0] + (1 - cosine**2) ** 0.5 * frame[:, 1]
    return frame[:, 0], prior, gaussian(7, 4)


@given(pair=pairs(), ridge=RIDGES, weight=st.floats(0.01, 100))
def test_one_earlier_edit(pair, ridge, weight):
    key, prior, residual = pair
    problem = LeastSquares(key[:, None], residual[:, None], weight * torch.outer(prior, prior), ridge)
    found, cosine = solve(problem), key @ prior
    factor = float(theory.prior_residual_factor(cosine, ridge, weight))
    assert found.fit == pytest.approx(factor, rel=1e-7)
    assert error(theory.prior_update(key, prior, residual, ridge, weight), found.delta) < 1e-8
    whole = Projector.identity(len(key))
    beside = theory.many_priors_factor(
        key, prior[:, None], whole, ridge, torch.tensor([weight], dtype=torch.float64)
    )
    assert beside == pytest.approx(factor, rel=1e-7)


@given(pair=pairs(), ridge=RIDGES)
def test_unsigned_cosine_is_wrong_exactly_for_negative_products(pair, ridge):
    key, prior, residual = pair
    cosine = float(key @ prior)
    right = theory.prior_update(key, prior, residual, ridge)
    printed = theory.prior_update(key, prior, residual, ridge, signed=False)
    if cosine >= 0:
        assert torch.equal(printed, right)
    elif cosine < -0.01:
        # The two differ by 2|s| r kₚᵀ over the determinant.
        gap = 2 * abs(cosine) * float(residual.norm()) / ((ridge + 1) ** 2 - cosine**2)
        assert float((printed - right).norm()) == pytest.approx(gap, rel=1e-6)


def test_one_earlier_edit_by_hand():
    # λ = 1, s = 1: (λ+1)/(λ+2) = 2/3 of the residual stays, not all of it; β = 3 leaves 4/5.
    assert theory.prior_residual_factor(1.0, 1.0) == pytest.approx(2 / 3)
    assert theory.prior_residual_factor(1.0, 1.0, weight=3.0) == pytest.approx(4 / 5)
    assert theory.prior_residual_factor(0.0, 0.5) == pytest.approx(theory.residual_factor(1.0, 0.5))


@given(case=cases(awkward=("past repeated",)), low=st.floats(0, 5), more=st.floats(0.1, 5))
def test_any_number_of_earlier_keys(case, low, more):
    k, _ = one_key(case)
    factors = []
    for level in (low, low + more):
        weights = torch.full((case.past.shape[1],), level, dtype=torch.float64)
        problem = replace(alone(case), preserve=(case.past * weights) @ case.past.T)
        factors.append(theory.many_priors_factor(k, case.past, case.projector, case.ridge, weights))
        found = solve(problem)
        assert found.fit == pytest.approx(factors[-1], abs=1e-8 + 1e3 * EPS * found.condition)
    assert 0 <= factors[0] <= factors[1] + 1e-6 <= 1 + 2e-6  # weight on the past costs the new edit


# P04: Lemma 3.


@given(case=cases())
def test_post_edit_error_identity(case):
    problem = case.problem(preserve=None)
    wanted = solve(problem).delta @ case.keys - case.residual
    found = theory.post_edit_error(theory.gram(case.keys, case.projector), case.residual, case.ridge)
    assert error(found, wanted) < 10 * slack(problem, case.projector)


@st.composite
def two_edits(draw: st.DrawFn) -> tuple[Tensor, Tensor, float]:
    """G of two keys inside range(P), r₁ and ρ."""
    seed, d_k = draw(st.integers(0, 999)), draw(st.integers(1, 6))
    return (
        theory.gram(gaussian(seed, d_k, 2), Projector.identity(d_k)),
        gaussian(seed + 1, 3),
        draw(st.floats(1, 50)),
    )


@given(given_=two_edits(), ridge=RIDGES, seed=st.integers(0, 999))
def test_two_edit_bounds_hold(given_, ridge, seed):
    g, first, ratio = given_
    second = ratio * first.norm() * unit(gaussian(seed, 3))
    errors = theory.post_edit_error(g, torch.stack([first, second], 1), ridge).norm(dim=0)
    bounds = theory.two_edit_bounds(g, ridge, ratio)
    for found, bound in zip(errors.tolist(), bounds, strict=True):
        assert found <= bound * float(first.norm()) * (1 + 1e-7)


@given(given_=two_edits(), ridge=RIDGES)
def test_two_edit_bounds_are_reached(given_, ridge):
    g, first, ratio = given_
    assume(abs(float(g[0, 1])) > 1e-6)
    second = theory.worst_second_residual(g, first, ratio)
    errors = theory.post_edit_error(g, torch.stack([first, second], 1), ridge).norm(dim=0)
    bounds = first.norm() * torch.tensor(theory.two_edit_bounds(g, ridge, ratio)).double()
    assert torch.allclose(errors, bounds, rtol=1e-6)


def test_the_error_itself_can_fall_to_zero_as_the_ratio_grows():
    # λ = 0.1, G = [[1, 1.6], [1.6, 4]], r₂ = ρ r₁: e₁ ∝ (λ + g₂₂) − ρ g₁₂ vanishes at ρ = 4.1/1.6.
    g = torch.tensor([[1.0, 1.6], [1.6, 4.0]], dtype=torch.float64)
    lengths = {}
    for ratio in (1.0, 4.1 / 1.6):
        both = torch.tensor([[1.0, ratio]], dtype=torch.float64)
        lengths[ratio] = float(theory.post_edit_error(g, both, 0.1)[0, 0].abs())
    assert lengths[1.0] == pytest.approx(0.1 * 2.5 / 1.95)
    assert lengths[4.1 / 1.6] < 1e-12


# P05 and P06: the objective of the search, which tests/algebra/test_admission.py goes through.


@given(case=cases())
def test_objective_in_closed_form(case):
    problem = with_past(case.problem(preserve=None), case.past)
    closed = theory.objective_at_update(
        theory.gram(problem.keys, case.projector), problem.residual, case.ridge
    )
    value = objective(problem, solve(problem).delta)
    assert value == pytest.approx(closed, rel=10 * slack(problem, case.projector))


def test_closed_forms_need_a_ridge():
    with pytest.raises(SingularProblemError, match="ridge above 0, got 0"):
        theory.objective_at_update(torch.eye(2), torch.ones(1, 2), 0.0)
