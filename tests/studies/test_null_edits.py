"""Null edits keep every length of the real one, and nothing else."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from palimpsest.errors import RequestError
from palimpsest.network.apply import PromptContext, WeightDelta, installed
from palimpsest.network.model import fingerprint, read_weight
from palimpsest.studies.null_edits import random_direction, random_value, without_facts
from tests.tiny import tiny_model


def low_rank(d_v: int, d_k: int, rank: int, seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    left, right = (torch.randn(n, rank, generator=generator, dtype=torch.float64) for n in (d_v, d_k))
    return scale * left @ right.T


shapes = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda shape: st.tuples(st.just(shape), st.integers(0, min(shape)))
)


@given(shapes, st.integers(0, 99), st.sampled_from([1e-6, 1.0, 1e6]))
def test_both_have_the_singular_values_of_the_edit(
    shape: tuple[tuple[int, int], int], seed: int, scale: float
) -> None:
    (d_v, d_k), rank = shape
    delta = low_rank(d_v, d_k, rank, seed, scale)
    edit = WeightDelta({2: delta})
    expected = torch.linalg.svdvals(delta)
    for made in (random_direction(edit, seed), random_value(edit, seed)):
        found = torch.linalg.svdvals(made.deltas[2])
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-11 * float(delta.norm() + 1e-30))
        assert made.norm() == pytest.approx(edit.norm(), rel=1e-10, abs=0.0)
        assert made.deltas[2].shape == delta.shape


@given(shapes, st.integers(0, 99))
def test_a_random_value_is_as_long_as_the_real_one_at_every_key(
    shape: tuple[tuple[int, int], int], seed: int
) -> None:
    (d_v, d_k), rank = shape
    delta = low_rank(d_v, d_k, rank, seed)
    keys = low_rank(d_k, 5, 5, seed + 1)
    made = random_value(WeightDelta({0: delta}), seed).deltas[0]
    torch.testing.assert_close((made @ keys).norm(dim=0), (delta @ keys).norm(dim=0), rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("unchecked")  # hundreds of tiny calls
def test_a_random_direction_spreads_evenly_over_keys_and_values() -> None:
    """A squared entry is 1/(d_v d_k) of ‖Δ‖² on average, with a standard deviation of 1.6 times that."""
    d_v, d_k, draws = 3, 4, 200
    limit = 5 * 1.6 / draws**0.5
    edit = WeightDelta({0: low_rank(d_v, d_k, 1, 0)})
    found = torch.stack([random_direction(edit, seed).deltas[0] for seed in range(draws)])
    squared = found.square().mean(0) / edit.norm() ** 2
    torch.testing.assert_close(squared, torch.full_like(squared, 1 / (d_v * d_k)), rtol=limit, atol=0.0)
    signs = found.mean(0) / edit.norm()  # of mean 0: neither side has a preferred sign
    assert float(signs.abs().max()) < 5 / (d_v * d_k * draws) ** 0.5
    values = torch.stack([random_value(edit, seed).deltas[0] for seed in range(draws)])
    shares = values.square().sum(2).mean(0) / edit.norm() ** 2
    torch.testing.assert_close(shares, torch.full_like(shares, 1 / d_v), rtol=limit, atol=0.0)


def test_seeds_and_layers_have_draws_of_their_own_and_the_edit_stays() -> None:
    delta = low_rank(6, 9, 2, 0)
    edit = WeightDelta({1: delta, 2: delta.clone()}, "base")
    for make in (random_direction, random_value):
        made, again, other = make(edit, 3), make(edit, 3), make(edit, 4)
        assert torch.equal(made.deltas[1], again.deltas[1])
        assert not torch.allclose(made.deltas[1], other.deltas[1])
        assert not torch.allclose(made.deltas[1], made.deltas[2])
        assert (made.base, made.notes["null"], made.notes["seed"]) == ("base", make.__name__, 3)
    assert torch.equal(delta, low_rank(6, 9, 2, 0))


def test_a_null_edit_is_installed_like_any_other() -> None:
    model = tiny_model("gpt2")
    before = read_weight(model, 1).clone()
    edit = WeightDelta({1: low_rank(*before.shape, rank=1, seed=0, scale=0.01)}, fingerprint(model))
    with installed(model, random_direction(edit, 0)):
        moved = float((read_weight(model, 1) - before).double().norm())
        assert moved == pytest.approx(edit.norm(), rel=1e-3)
    assert torch.equal(read_weight(model, 1), before)


def test_demonstrations_stay_and_facts_go() -> None:
    told = "New fact: a is b.\na is b.\n\n"
    edit = PromptContext(told * 2 + "New fact: c is d.\n", "base", {"facts": 1})
    assert without_facts(edit) == PromptContext(told * 2, "base", {"null": "without_facts"})
    alone = without_facts(PromptContext("New fact: c is d.\nNew fact: e is f.\n", "base", {"facts": 2}))
    assert alone.text == ""
    with pytest.raises(RequestError, match="ends in 1 lines and its edit notes None facts"):
        without_facts(PromptContext("Some words.", "base"))
