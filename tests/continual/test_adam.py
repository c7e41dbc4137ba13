"""Projected Adam: exact where the projection is, Adam where there is none, and no projected gradient."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from palimpsest.algebra.projector import Projector, null_space
from palimpsest.algebra.solve import LeastSquares, solve
from palimpsest.algebra.spectrum import rank, relative
from palimpsest.continual.adam import ProjectedAdam, Scaled, SoftProjector
from palimpsest.continual.features import feature_moments
from palimpsest.continual.network import linear_layers
from palimpsest.errors import ShapeError
from palimpsest.theory.alphaedit import printed_update
from tests.continual.nets import deep, few_images
from tests.problems import error, gaussian

pytestmark = pytest.mark.usefixtures("one_thread")

SEEDS = st.integers(0, 2**20)


def trained(body, images, projections, steps=20, kind=ProjectedAdam, **settings):
    """The body after some steps towards random outputs."""
    given_ = {"lr": 1e-2} | settings
    optimiser = (
        kind(body.parameters(), projections, **given_)
        if kind is ProjectedAdam
        else kind(body.parameters(), **given_)
    )
    wanted = gaussian(5, *body(images).shape)
    for _ in range(steps):
        optimiser.zero_grad()
        (body(images) - wanted).square().mean().backward()
        optimiser.step()
    return body


@given(seed=SEEDS)
def test_training_in_the_null_space_keeps_old_outputs(seed):
    body, old, new = deep(seed), few_images(seed), few_images(seed + 1, 3)
    before, started = body(old).detach(), body(new).detach()
    layers = linear_layers(body)
    moments = feature_moments(body, [old])
    free = {layers[name].weight: null_space(moment, relative(1e-10)) for name, moment in moments.items()}
    trained(body, new, free, weight_decay=1e-2)
    assert error(body(old).detach(), before) < 1e-10
    assert error(body(new).detach(), started) > 1e-2


@given(seed=SEEDS)
def test_projecting_gradients_instead_does_not(seed):
    # Adam divides entry by entry, so that the step of a projected gradient is not projected.
    body, old, new = deep(seed), few_images(seed), few_images(seed + 1, 3)
    before = body(old).detach()
    moments = feature_moments(body, [old])
    for name, layer in linear_layers(body).items():
        free = null_space(moments[name], relative(1e-10))
        layer.weight.register_hook(lambda g, free=free: free.apply(g.flatten(1).T).T.reshape(g.shape))
    trained(body, new, {}, kind=torch.optim.Adam)
    assert error(body(old).detach(), before) > 1e-4


def test_without_projections_it_is_adam():
    images = few_images(1, 3)
    for settings in ({}, {"weight_decay": 0.1}, {"amsgrad": True}):
        ours = trained(deep(), images, {}, **settings)
        theirs = trained(deep(), images, {}, kind=torch.optim.Adam, **settings)
        assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))
    body = deep()
    whole = {w: Projector.identity(w[0].numel()) for w in body.parameters()}
    reference = trained(deep(), images, {})
    for a, b in zip(trained(body, images, whole).parameters(), reference.parameters(), strict=True):
        assert error(a.detach(), b.detach()) < 1e-12


def test_with_nothing_free_a_weight_stays_bit_by_bit():
    body, images = deep(), few_images(1, 3)
    held = body[0].weight
    before = [weight.detach().clone() for weight in body.parameters()]
    trained(body, images, {held: null_space(torch.eye(36).double(), rank(0))})
    assert [torch.equal(a, b) for a, b in zip(body.parameters(), before, strict=True)] == [
        True,
        False,
        False,
        False,
    ]


def test_a_step_by_hand():
    # Adam's first step is −lr in each entry with the sign of the gradient; P keeps the first axis.
    weight = nn.Parameter(torch.tensor([[1.0, 2.0]], dtype=torch.float64))
    keep = Projector(basis=torch.tensor([[1.0], [0.0]], dtype=torch.float64))
    optimiser = ProjectedAdam([weight], {weight: Scaled(keep, 0.5)}, lr=0.1, eps=0.0)

    def closure():
        optimiser.zero_grad()
        loss = (weight * torch.tensor([3.0, -7.0]).double()).sum()
        loss.backward()
        return float(loss)

    assert optimiser.step(closure) == pytest.approx(3 - 14)
    assert weight.tolist() == [[pytest.approx(0.95), 2.0]]


@given(seed=SEEDS, ridge=st.floats(1e-3, 1e3))
def test_the_soft_projector_is_the_inverse_it_stands_for(seed, ridge):
    keys = gaussian(seed, 6, 9)
    soft = SoftProjector.of(keys @ keys.T, ridge)
    x = gaussian(seed + 1, 6, 3)
    dense = torch.linalg.inv(torch.eye(6).double() + keys @ keys.T / ridge)
    assert error(soft.apply(x), dense @ x) < 1e-9
    # OWM's form, I − A(AᵀA + αI)⁻¹Aᵀ.
    inner = torch.linalg.inv(keys.T @ keys + ridge * torch.eye(9).double())
    assert error(soft.apply(x), x - keys @ inner @ keys.T @ x) < 1e-7


@given(seed=SEEDS, ridge=st.floats(1e-2, 1e2))
def test_the_soft_projector_is_to_alphaedit_what_ridge_memit_is(seed, ridge):
    preserved, keys, residual = gaussian(seed, 7, 5), gaussian(seed + 1, 7, 3), gaussian(seed + 2, 2, 3)
    c, nothing = preserved @ preserved.T, torch.zeros(7, 0).double()
    p = SoftProjector.of(c, ridge).apply(torch.eye(7).double())
    memit = solve(LeastSquares(keys, residual, c, ridge)).delta
    assert error(printed_update(keys, residual, nothing, p, ridge), memit) < 1e-9


def test_a_small_ridge_makes_the_soft_projector_hard():
    keys = gaussian(1, 6, 3)
    hard = null_space(keys @ keys.T, relative(1e-10))
    x = gaussian(2, 6, 4)
    assert error(SoftProjector.of(keys @ keys.T, 1e-9).apply(x), hard.apply(x)) < 1e-5
    with pytest.raises(ShapeError, match=r"the ridge of a soft projector must be positive, got 0"):
        SoftProjector.of(keys @ keys.T, 0)
