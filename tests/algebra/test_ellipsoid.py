"""The nearest state that a norm can give, against a search over directions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.algebra.ellipsoid import nearest_direction
from tests.problems import gaussian


@given(st.integers(0, 10_000), st.booleans(), st.floats(0.01, 100))
def test_no_direction_is_nearer(seed: int, centred: bool, size: float) -> None:
    scale, goal, draws = gaussian(seed, 3, 6), size * gaussian(seed + 1, 3, 6), gaussian(seed + 2, 400, 6)
    found = nearest_direction(scale, goal, centred)
    torch.testing.assert_close(found.square().mean(1), torch.ones(3, dtype=found.dtype))
    if centred:
        torch.testing.assert_close(found.sum(1), torch.zeros(3, dtype=found.dtype), rtol=0, atol=1e-6)
    gap = (scale * found - goal).norm(dim=1)
    for others in (draws, found[:1] + 0.05 * draws, found[1:2] + 0.05 * draws, found[2:] + 0.05 * draws):
        around = others - others.mean(1, keepdim=True) if centred else others
        around = around / around.square().mean(1, keepdim=True).sqrt()
        trial = (scale[:, None] * around - goal[:, None]).norm(dim=2).amin(1)
        assert (trial >= gap * (1 - 1e-6) - 1e-9).all()


@pytest.mark.parametrize("centred", [False, True])
def test_a_direction_that_can_be_had_is_had(centred: bool) -> None:
    scale, wanted = gaussian(0, 4, 8), gaussian(1, 4, 8)
    wanted = wanted - wanted.mean(1, keepdim=True) if centred else wanted
    wanted = wanted / wanted.square().mean(1, keepdim=True).sqrt()
    torch.testing.assert_close(
        nearest_direction(scale, scale * wanted, centred), wanted, rtol=1e-6, atol=1e-6
    )


def test_a_scale_of_one_turns_a_goal_into_its_direction() -> None:
    goal = gaussian(3, 2, 5)
    found = nearest_direction(torch.ones_like(goal), goal, False)
    torch.testing.assert_close(found, goal / goal.square().mean(1, keepdim=True).sqrt())
