"""The random layer of memorize-the-latest against the printed equations written out densely."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.errors import ShapeError, UnknownNameError
from palimpsest.theory.random_layer import UPDATES, Layer, _facts, _outputs, _run, divide, simulate

pytestmark = pytest.mark.usefixtures("one_thread")


def dense(layer: Layer, steps: int, seed: int, rule: str) -> list[torch.Tensor]:
    """D after each step, each from a d × d system as the paper prints it."""
    energy = layer.spectrum[layer.protected :]
    eye = torch.eye(len(energy), dtype=torch.float64)
    moment = layer.preserve_weight * torch.diag(energy)
    total, past, found = torch.zeros(layer.d_v, len(energy), dtype=torch.float64), 0 * eye, []
    for keys, wanted in _facts(layer, steps, seed):
        left = keys @ keys.T + layer.ridge * eye
        right = (wanted - total @ keys) @ keys.T
        if rule == "full":  # Labyrinth Eq. 4, with V_0 - W_{t-1} K_0 = -D K_0
            left, right = left + moment, right - total @ moment
        if rule == "aligned":  # Eq. 2
            left, past = left + past, past + keys @ keys.T
        if rule == "restart":
            total, right = 0 * total, wanted @ keys.T
        total = total + torch.linalg.solve(left, right.T).T
        found.append(total)
    return found


@given(
    rule=st.sampled_from(UPDATES),
    d_k=st.integers(3, 16),
    batch=st.integers(1, 20),
    seed=st.integers(0, 10**6),
    ridge=st.floats(0.1, 100),
)
def test_each_rule_is_its_printed_equation(rule: str, d_k: int, batch: int, seed: int, ridge: float) -> None:
    layer = Layer(d_k=d_k, d_v=4, protected=2, batch=batch, ridge=ridge)
    for (total, _), expected in zip(_run(layer, 6, seed, rule), dense(layer, 6, seed, rule), strict=True):
        assert (total - expected).norm() <= 1e-8 * expected.norm()


@given(d=st.integers(1, 12), n=st.integers(1, 20), seed=st.integers(0, 10**6))
def test_division_through_the_small_system(d: int, n: int, seed: int) -> None:
    draw = torch.Generator().manual_seed(seed)
    x, keys = (torch.randn(*s, dtype=torch.float64, generator=draw) for s in ((3, d), (d, n)))
    diagonal = 0.1 + torch.rand(d, dtype=torch.float64, generator=draw)
    assert torch.allclose(divide(x, diagonal, keys) @ (diagonal.diag() + keys @ keys.T), x, atol=1e-9)


def test_the_simplification_lets_damage_grow_and_the_full_equation_does_not() -> None:
    table = simulate(Layer(d_k=64, d_v=16), 64, seed=0).set_index(["rule", "step"])
    table = table.unstack("step")
    grown = {name: table[name][64] / table[name][2] for name in ("norm", "damage")}
    assert grown["damage"]["simplified"] > 5
    assert grown["damage"]["full"] < 2
    assert table["damage"][64]["simplified"] > 50 * table["damage"][64]["full"]
    assert grown["norm"]["simplified"] > grown["norm"]["aligned"] > grown["norm"]["restart"]


def test_draws_are_those_of_the_seed() -> None:
    layer = Layer(d_k=16, d_v=4, protected=3)
    assert simulate(layer, 3, seed=1).equals(simulate(layer, 3, seed=1))
    assert not simulate(layer, 3, seed=1).equals(simulate(layer, 3, seed=2))
    assert int((layer.spectrum >= 0.02).sum()) == layer.protected
    assert _outputs(layer, 1) > 0


@pytest.mark.parametrize("protected", [0, 16, -1])
def test_nothing_or_everything_protected_is_refused(protected: int) -> None:
    with pytest.raises(ShapeError, match=f"got {protected}"):
        Layer(d_k=16, protected=protected)


def test_an_unknown_rule_is_named_with_those_there_are() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown rule of the random layer 'simplfied'; choose"):
        simulate(Layer(), 1, 0, ("simplfied",))
