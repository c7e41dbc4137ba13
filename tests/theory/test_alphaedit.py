"""AlphaEdit's appendix B.2 to B.5: each statement against a twin, each beside a control on which it fails."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from palimpsest.algebra.projector import null_space
from palimpsest.algebra.solve import LeastSquares, solve, with_past
from palimpsest.algebra.spectrum import absolute, relative
from palimpsest.theory import alphaedit as theory
from palimpsest.theory.random_problems import PROJECTORS, Draws
from tests.problems import EPS, Case, cases, error, gaussian, natural_floor, oracle

pytestmark = pytest.mark.usefixtures("one_thread")

SEEDS = st.integers(0, 2**31)


def slack(case: Case) -> float:
    z = theory.bracket(every_key(case), case.matrix, case.ridge)
    return 1e-8 + 100 * EPS * float(torch.linalg.cond(z))


def every_key(case: Case) -> Tensor:
    return torch.cat([case.keys, case.past], 1)


def update(case: Case, p: Tensor) -> Tensor:
    return theory.printed_update(case.keys, case.residual, case.past, p, case.ridge)


# A01: App. B.2 and B.3 ------------------------------------------------------------------------


@given(case=cases())
def test_keys_and_their_moment_have_the_same_left_null_space(case):
    assume(case.preserved.shape[1] > 3)
    of_keys = theory.left_null_basis(case.preserved)
    of_moment = theory.dense(null_space(case.preserved @ case.preserved.T, relative(1e-12)))
    assert of_keys.shape[1] == case.basis.shape[1]
    assert error(of_keys @ of_keys.T, of_moment) < 1e-8


@given(case=cases(), seed=SEEDS)
def test_a_projected_update_keeps_the_preserved_outputs(case, seed):
    assume(case.preserved.shape[1] > 3)
    projector = null_space(case.preserved @ case.preserved.T, relative(1e-12))
    delta = gaussian(seed, 3, len(case.preserved))
    change = delta @ theory.dense(projector) @ case.preserved
    assert float(change.norm()) < 1e-10 * float(delta.norm() * case.preserved.norm())
    # Control: P acts on the rows of an update, not on its columns, as the text after Eq. 9 has it.
    square = gaussian(seed, *projector.apply(torch.eye(projector.dim).double()).shape)
    assume(0 < projector.kept < projector.dim)
    assert float((projector.apply(square) @ case.preserved).norm()) > 1e-3 * float(case.preserved.norm())


@given(case=cases(), seed=SEEDS, threshold=st.floats(0.01, 1))
def test_a_threshold_leaks_at_most_itself(case, seed, threshold):
    keys = gaussian(seed + 1, case.preserved.shape[0], 40)
    moment = keys @ keys.T / keys.shape[1]
    projector = null_space(moment, absolute(threshold * float(torch.linalg.matrix_norm(moment, 2))))
    delta = gaussian(seed, 3, len(moment)) @ theory.dense(projector)
    assume(projector.kept > 0)
    leak = float((delta @ keys).square().sum()) / keys.shape[1]
    assert 0 < leak <= projector.rule.parameter * float(delta.square().sum()) * (1 + 1e-9)


def test_the_step_of_the_proof_needs_more_than_it_says():
    # "Their product is zero, so xᵀK0 is": false of a row that is not of this form.
    keys = gaussian(1, 4, 9)
    row = theory.left_null_basis(keys.T).T[:1]
    assert float(row.norm()) == pytest.approx(1)
    assert float((row @ keys.T).norm()) < 1e-12


def test_the_product_hides_small_singular_values():
    # Singular values from 1 to 1e-11: their squares sink below the rounding of the largest.
    frame, other = torch.linalg.qr(gaussian(1, 12, 12)).Q, torch.linalg.qr(gaussian(2, 20, 12)).Q
    keys = frame * 10.0 ** -torch.arange(12, dtype=torch.float64) @ other.T
    assert theory.left_null_basis(keys, 1e-12).shape[1] == 0
    assert null_space(keys @ keys.T, relative(12 * EPS)).kept >= 4


# A02: Eq. 14, App. B.4 ------------------------------------------------------------------------


@given(case=cases())
def test_the_closed_form_is_the_minimiser(case):
    assert error(update(case, case.matrix), oracle(case), natural_floor(case)) < slack(case)


@given(case=cases(well_conditioned=True))
def test_the_stacked_minimiser_is_the_solver_s(case):
    problem = with_past(case.problem(preserve=None), case.past)
    found = theory.stacked_minimiser(problem)
    assert error(found, solve(problem).delta, natural_floor(case)) < 1e-8
    assume(case.span.shape[1] > 0 and case.keys.norm() > 0.1)
    unprojected = LeastSquares(problem.keys, problem.residual, None, problem.ridge)
    assert error(theory.stacked_minimiser(unprojected), found) > 1e-6


@given(case=cases(), kind=st.sampled_from(PROJECTORS), seed=SEEDS)
def test_the_printed_gradient_is_the_gradient_for_any_matrix(case, kind, seed):
    p = Draws(seed).projector(kind, gaussian(seed, len(case.keys), 2))
    given_ = (case.keys, case.residual, case.past, p, case.ridge)
    free = gaussian(seed + 1, len(case.residual), len(p)).requires_grad_()
    (gradient,) = torch.autograd.grad(theory.projected_objective(free, *given_), free)
    assert error(2 * theory.printed_gradient(free.detach(), *given_), gradient) < 1e-12


def excess(case: Case, p: Tensor) -> float:
    """Objective at the closed form above its minimum over Δ̃, relative to the minimum."""
    keys, target = every_key(case), torch.zeros(len(case.residual), every_key(case).shape[1]).double()
    target[:, : case.keys.shape[1]] = case.residual
    matrix = torch.cat([keys.T @ p.T, case.ridge**0.5 * p.T])
    right = torch.cat([target.T, torch.zeros(len(p), len(target)).double()])
    least = torch.linalg.lstsq(matrix, right, driver="gelsd").solution
    least_value = float((matrix @ least - right).square().sum())
    delta = update(case, p).T
    rows = torch.cat([keys.T @ delta, case.ridge**0.5 * delta]) - right
    return float(rows.square().sum()) / least_value - 1


@given(case=cases(well_conditioned=True, min_kept=2), kind=st.sampled_from(PROJECTORS), seed=SEEDS)
def test_for_a_matrix_that_is_no_orthogonal_projector_it_is_no_minimiser(case, kind, seed):
    # The closed form is Δ̃P for every square P, so that it never lies below the minimum.
    assume(case.keys.norm() > 0.1)
    p = Draws(seed).projector(kind, gaussian(seed, len(case.keys), 2))
    inner = every_key(case).T @ p @ every_key(case)
    assume(torch.linalg.cond(inner + case.ridge * torch.eye(len(inner)).double()) < 1e6)
    above = excess(case, p)
    assert above > -1e-7
    if kind in ("identity", "exact", "thresholded"):
        assert above < 1e-7
    elif kind == "arbitrary":
        assert above > 1e-7


@given(case=cases(well_conditioned=True, awkward=()))
def test_without_the_projector_in_the_bracket_it_is_another_update(case):
    assume(case.span.shape[1] > 0)
    keys = every_key(case)
    plain = theory.bracket(keys, torch.eye(len(keys)).double(), case.ridge)
    wrong = torch.linalg.solve(plain.T, (case.residual @ case.keys.T @ case.matrix).T).T
    assert error(wrong, oracle(case)) > 1e-6


# A03: App. B.5 --------------------------------------------------------------------------------


@given(case=cases(), kind=st.sampled_from(PROJECTORS), seed=SEEDS)
def test_the_bracket_has_the_inverse_in_closed_form(case, kind, seed):
    keys = every_key(case)
    p = Draws(seed).projector(kind, gaussian(seed, len(keys), 2))
    inner = keys.T @ p @ keys + case.ridge * torch.eye(keys.shape[1]).double()
    z, inverse = theory.bracket(keys, p, case.ridge), theory.bracket_inverse(keys, p, case.ridge)
    # Rounding of the inner solve counts as well; a matrix that is no projector may make it singular.
    condition = max(float(torch.linalg.cond(z)), float(torch.linalg.cond(inner)))
    assume(condition < 1e9)
    assert error(z @ inverse, torch.eye(len(p)).double()) < 1e-8 + 1000 * EPS * condition


@given(case=cases())
def test_for_an_orthogonal_projector_it_always_exists(case):
    keys = every_key(case)
    z = theory.bracket(keys, case.matrix, case.ridge)
    inner = keys.T @ case.matrix @ keys
    assert theory.lowest_symmetric(inner) > -1e-9 * float(keys.square().sum())
    bound = theory.inverse_bound(keys, case.matrix, case.ridge)
    smallest = float(torch.linalg.svdvals(z)[-1])
    assert 1 / bound <= smallest * (1 + 1e-9) + 100 * EPS * float(z.norm())


def test_a_product_of_semidefinite_matrices_is_not_semidefinite():
    key, p = theory.slanted_key()
    product = key @ key.T @ p
    assert theory.lowest_symmetric(product) == pytest.approx(-1 / 8)
    assert float(torch.linalg.eigvals(product).real.min()) > -1e-15
    x = torch.linalg.eigh((product + product.T) / 2).eigenvectors[:, :1]
    for ridge, sign in ((0.12, -1), (0.13, 1)):  # positive definite above ‖k‖²/8 alone
        assert math.copysign(1, float(x.T @ theory.bracket(key, p, ridge) @ x)) == sign


@given(angle=st.floats(0, math.pi))
def test_an_eighth_is_the_worst(angle):
    key, p = theory.slanted_key(angle)
    assert theory.lowest_symmetric(key @ key.T @ p) >= -1 / 8 - 1e-12


def test_the_argument_of_b5_would_prove_a_singular_matrix_invertible():
    first, second, ridge = theory.two_projectors()
    for product in (first, second):
        assert float(torch.linalg.eigvals(product).real.min()) > -1e-15
        assert float(torch.linalg.matrix_rank(product)) == 1
    total = first + second + ridge * torch.eye(2).double()
    assert ridge > 0.18
    assert float(torch.linalg.svdvals(total)[-1]) < 1e-15
