"""What protection costs, against oracles by stacked least squares and by automatic differentiation.

Properties 21 and 22 of the project's mathematics, each with the statement it corrects as a failing control.
"""

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from palimpsest.algebra.projector import line_energy
from palimpsest.errors import SingularProblemError
from palimpsest.theory.preservation import (
    disturbance_bound,
    gaussian_share,
    optimum,
    preservation_gradient,
    printed_gradient,
    rank_one_optimum,
    span_energy,
    span_of,
)
from tests.problems import error, gaussian

seeds = st.integers(0, 2**20)
betas = st.floats(-2, 2).map(lambda exponent: 10**exponent)


def losses(delta: Tensor, key: Tensor, residual: Tensor, protected: Tensor) -> tuple[float, float]:
    """‖Δk − r‖² and ‖ΔX‖², as shares of ‖r‖²."""
    whole = float(residual.square().sum())
    edit, kept = (delta @ key - residual).square().sum(), (delta @ protected).square().sum()
    return float(edit) / whole, float(kept) / whole


def oracle(key: Tensor, residual: Tensor, protected: Tensor, beta: float) -> Tensor:
    """The minimum-norm Δ by numpy's SVD least squares on the stacked rows kᵀ and √β Xᵀ."""
    a = torch.cat([key[None], beta**0.5 * protected.T])
    b = torch.cat([residual[None], torch.zeros(protected.shape[1], len(residual)).double()])
    return torch.from_numpy(np.linalg.lstsq(a.numpy(), b.numpy(), rcond=None)[0].T)


# Property 21.


@given(seeds, st.integers(2, 12), st.integers(1, 8), st.integers(1, 4))
def test_the_bound_holds_and_is_reached_by_orthonormal_factors(
    seed: int, d_k: int, d_v: int, rank: int
) -> None:
    left, right, states = gaussian(seed, d_v, rank), gaussian(seed + 1, d_k, rank), gaussian(seed + 2, d_k, 5)
    update = left @ right.T
    moved = (update @ states).norm(dim=0)
    bound = disturbance_bound(left, right, states)
    assert (moved <= bound * (1 + 1e-12)).all()
    u, sigma, vt = torch.linalg.svd(update, full_matrices=False)
    torch.testing.assert_close(disturbance_bound(u, vt.T * sigma, states), moved, rtol=1e-9, atol=1e-12)


@given(seeds, st.integers(3, 12), st.floats(2, 100))
def test_the_bound_belongs_to_the_factors_and_not_to_the_update(seed: int, d_k: int, scale: float) -> None:
    """The same ΔW split unevenly: what the norm of a right vector alone says is arbitrary."""
    left, right, states = gaussian(seed, 4, 2), gaussian(seed + 1, d_k, 2), gaussian(seed + 2, d_k, 3)
    weights = torch.tensor([scale, 1 / scale], dtype=torch.float64)
    torch.testing.assert_close((left * weights) @ (right / weights).T, left @ right.T)
    even, uneven = (disturbance_bound(left * w, right / w, states) for w in (torch.ones(2), weights))
    moved = (left @ right.T @ states).norm(dim=0)
    assert (uneven >= moved * (1 - 1e-12)).all()
    assert not torch.allclose(even, uneven, rtol=1e-3)


@given(seeds, st.integers(4, 12), st.integers(1, 3))
def test_where_the_paper_states_the_bound_both_sides_are_zero(seed: int, d_k: int, rank: int) -> None:
    """On the complement of span(V); off it the bound is positive, so this is no accident."""
    left, right = gaussian(seed, 5, rank), gaussian(seed + 1, d_k, rank)
    basis = torch.linalg.qr(right).Q
    states = gaussian(seed + 2, d_k, 4)
    inside = states - basis @ (basis.T @ states)
    assert (disturbance_bound(left, right, inside) < 1e-12 * disturbance_bound(left, right, states)).all()


# Property 22.


@given(seeds, st.integers(2, 16), st.integers(1, 5), betas, st.data())
def test_fewer_protected_keys_than_dimensions_cost_nothing(
    seed: int, d_k: int, d_v: int, beta: float, data: st.DataObject
) -> None:
    """Both losses reach zero at once; the control is the family of the paper, where they do not."""
    count = data.draw(st.integers(0, d_k - 1))
    key, residual, protected = gaussian(seed, d_k), gaussian(seed + 1, d_v), gaussian(seed + 2, d_k, count)
    best = optimum(key, residual, protected, beta)
    assert best.given_up == 0
    again = optimum(key, residual, span_of(protected), beta)
    assert torch.equal(again.delta, best.delta)
    assert max(losses(best.delta, key, residual, protected)) < 1e-14
    assert error(best.delta, oracle(key, residual, protected, beta)) < 1e-6
    paper = rank_one_optimum(key, residual, protected, beta)
    overlap = float((protected.T @ key).norm() / key.norm()) if count else 0.0
    assume(overlap > 0.1)
    assert max(losses(paper.delta, key, residual, protected)) > 1e-9
    assert paper.given_up > 0


@given(seeds, st.integers(2, 10), st.integers(1, 4), st.integers(0, 20), betas)
def test_the_share_given_up_with_more_keys_than_dimensions(
    seed: int, d_k: int, d_v: int, more: int, beta: float
) -> None:
    """What the least-squares optimum leaves of r is 1/(1 + kᵀ(βS)⁻¹k) of it, in r's own direction."""
    key, residual = gaussian(seed, d_k), gaussian(seed + 1, d_v)
    protected = gaussian(seed + 2, d_k, d_k + more)
    second = beta * protected @ protected.T
    assume(float(torch.linalg.cond(second)) < 1e6)
    best = optimum(key, residual, protected, beta)
    assert best.given_up == pytest.approx(1 / (1 + float(key @ torch.linalg.solve(second, key))), rel=1e-8)
    reference = oracle(key, residual, protected, beta)
    assert error(best.delta, reference) < 1e-8
    left = (residual - reference @ key) / residual
    torch.testing.assert_close(left, torch.full_like(left, best.given_up), rtol=1e-6, atol=1e-9)
    assert 0 < best.given_up < 1


@given(seeds, st.integers(3, 10), st.integers(1, 2), betas)
def test_a_key_inside_a_deficient_span_pays_as_well(seed: int, d_k: int, rank: int, beta: float) -> None:
    """Protected keys of low rank, the edited key among their combinations."""
    span, residual = gaussian(seed, d_k, rank), gaussian(seed + 1, 3)
    protected, key = span @ gaussian(seed + 2, rank, 6), span @ gaussian(seed + 3, rank)
    best = optimum(key, residual, protected, beta)
    second = np.linalg.pinv((beta * protected @ protected.T).numpy(), rcond=1e-10)
    assert best.given_up == pytest.approx(1 / (1 + key.numpy() @ second @ key.numpy()), rel=1e-5)
    assert error(best.delta, oracle(key, residual, protected, beta)) < 1e-5


@given(seeds, st.integers(2, 10), st.integers(1, 12), betas, st.booleans())
def test_the_best_of_one_direction(seed: int, d_k: int, count: int, beta: float, own: bool) -> None:
    """Against least squares over c; no direction beats the free optimum, and S⁻¹k reaches it."""
    key, residual, protected = gaussian(seed, d_k), gaussian(seed + 1, 3), gaussian(seed + 2, d_k, count)
    u = key if own else gaussian(seed + 3, d_k)
    assume(abs(float(u @ key)) > 0.05 * float(u.norm() * key.norm()))
    found = rank_one_optimum(key, residual, protected, beta, None if own else u)
    rows = torch.cat([(u @ key)[None], beta**0.5 * protected.T @ u])[:, None]
    wanted = torch.cat([residual[None], torch.zeros(count, 3).double()])
    c = torch.from_numpy(np.linalg.lstsq(rows.numpy(), wanted.numpy(), rcond=None)[0])[0]
    torch.testing.assert_close(found.delta, torch.outer(c, u), rtol=1e-8, atol=1e-10)
    assert found.given_up == pytest.approx(1 - float(found.delta @ key @ residual / residual.square().sum()))
    free = optimum(key, residual, protected, beta)
    assert found.given_up >= free.given_up - 1e-9
    second = protected @ protected.T
    if float(torch.linalg.cond(second)) < 1e6:
        along = rank_one_optimum(key, residual, protected, beta, torch.linalg.solve(second, key))
        assert error(along.delta, free.delta) < 1e-6


@given(seeds, st.integers(3, 10), betas, st.floats(0.2, 3))
def test_collinear_keys_are_the_worst_case_and_orthogonal_ones_the_best(
    seed: int, d_k: int, beta: float, size: float
) -> None:
    """Sec. 3.4.2 has it the other way round."""
    key, residual, noise = gaussian(seed, d_k), gaussian(seed + 1, 3), gaussian(seed + 2, d_k, 2)
    unit = key / key.norm()
    orthogonal = noise - torch.outer(unit, unit @ noise)
    orthogonal = size * key.norm() * orthogonal / orthogonal.norm(dim=0)
    free = rank_one_optimum(key, residual, orthogonal, beta)
    assert free.given_up < 1e-20
    assert max(losses(free.delta, key, residual, orthogonal)) < 1e-20
    collinear = torch.outer(key, torch.tensor([size, -size]).double())
    worst = rank_one_optimum(key, residual, collinear, beta)
    assert worst.given_up == pytest.approx(2 * beta * size**2 / (1 + 2 * beta * size**2))
    assert optimum(key, residual, collinear, beta).given_up == pytest.approx(worst.given_up)


@given(seeds, st.integers(2, 8), st.integers(1, 10), betas)
def test_a_stationary_point_exists_and_is_the_optimum(seed: int, d_k: int, count: int, beta: float) -> None:
    key, residual, protected = gaussian(seed, d_k), gaussian(seed + 1, 3), gaussian(seed + 2, d_k, count)
    delta = optimum(key, residual, protected, beta).delta.requires_grad_()
    edit, kept = (delta @ key - residual).square().sum(), (delta @ protected).square().sum()
    assert (
        torch.autograd.grad(edit + beta * kept, delta, retain_graph=True)[0].norm() < 1e-5 * residual.norm()
    )
    (gradient,) = torch.autograd.grad(kept, delta)
    torch.testing.assert_close(preservation_gradient(delta.detach(), protected), gradient)


@given(seeds, st.integers(4, 10), st.integers(1, 3))
def test_the_printed_gradient_belongs_to_erasing_what_is_protected(seed: int, d_k: int, count: int) -> None:
    """It is not zero before any edit, and its optimum holds no protected value; the right one is zero."""
    weight, protected = gaussian(seed, 3, d_k).requires_grad_(), gaussian(seed + 1, d_k, count)
    (gradient,) = torch.autograd.grad((weight @ protected).square().sum() / 2, weight)
    weight = weight.detach()
    torch.testing.assert_close(printed_gradient(weight, protected), gradient)
    assert printed_gradient(weight, protected).norm() > 1e-3 * weight.norm()
    assert not preservation_gradient(torch.zeros_like(weight), protected).any()
    basis = torch.linalg.qr(protected).Q
    erased = weight - weight @ basis @ basis.T
    assert printed_gradient(erased, protected).norm() < 1e-10 * weight.norm() * protected.norm() ** 2


@given(seeds, st.integers(2, 8), st.integers(1, 3), st.integers(1, 6))
def test_the_published_loss_sees_the_span_alone(seed: int, width: int, rank: int, count: int) -> None:
    """So along a fixed key it is the same for every value that is written there."""
    rank = min(rank, width)
    span, states, mix = (
        gaussian(seed, width, rank),
        gaussian(seed + 1, width, count),
        gaussian(seed, rank, rank),
    )
    assume(float(torch.linalg.cond(mix)) < 1e6)
    assume(float(torch.linalg.cond(span)) < 1e6)
    projector = span @ torch.linalg.pinv(span)
    expected = (projector @ states).square().sum()
    torch.testing.assert_close(span_energy(span, states), expected, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(span_energy(span @ mix, states), expected, rtol=1e-6, atol=1e-9)
    lines = line_energy(span.T, states.T)
    single = torch.stack([span_energy(column[:, None], states) for column in span.T])
    torch.testing.assert_close(lines, single, rtol=1e-8, atol=1e-10)


def test_the_loss_of_a_line_has_a_start() -> None:
    vector = torch.zeros(1, 4, requires_grad=True)
    energy = line_energy(vector, torch.ones(3, 4))
    energy.sum().backward()
    assert energy.item() == 0
    assert not vector.grad.any()


@pytest.mark.parametrize(("count", "share"), [(31, 0.0), (40, 0.21), (64, 0.51), (128, 0.75), (512, 0.94)])
def test_gaussian_keys_cost_what_their_number_says(count: int, share: float) -> None:
    """Mean over 200 draws of 32 dimensions, and the approximation beside it."""
    draws = [
        optimum(gaussian(7 * i, 32), torch.ones(1).double(), gaussian(7 * i + 1, 32, count), 1.0).given_up
        for i in range(200)
    ]
    assert np.mean(draws) == pytest.approx(share, abs=0.015)
    assert gaussian_share(32, count) == pytest.approx(share, abs=0.04)


def test_keys_that_cannot_be_written_at() -> None:
    one, nothing = torch.eye(3).double(), torch.zeros(3).double()
    for solve in (optimum, rank_one_optimum):
        with pytest.raises(SingularProblemError, match="the key is zero, so nothing can be written at it"):
            solve(nothing, one[0], one, 1.0)
    with pytest.raises(
        SingularProblemError, match="orthogonal to the key, so nothing can be written; choose"
    ):
        rank_one_optimum(one[0], one[1], one, 1.0, direction=one[2])
