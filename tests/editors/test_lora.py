"""LoRA against a twin that puts factors into the network's own weights, and the rank of what is merged."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from palimpsest.editors import FineTune, Prepared, edit
from palimpsest.editors.lora import Lora
from palimpsest.errors import NonFiniteError
from palimpsest.evaluation.answers import target_nll
from palimpsest.network.apply import commit, installed
from palimpsest.network.model import EditableModel, read_weight
from tests.editing import REQUESTS, double, every_kind, same_bits, snapshot
from tests.editors.test_ft import plain_loss
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")

START = Prepared(contexts=("",))


def editor(**options: Any) -> Lora:
    return Lora(**{"layers": (1,), "rank": 3, "alpha": 6.0, "lr": 0.02, "steps": 5, **options})


class Factors(nn.Module):
    """W + (α/r) B A in place of W, transposed where a network stores it so."""

    def __init__(self, a: Tensor, b: Tensor, scale: float, turned: bool) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(a), nn.Parameter(b)
        self.scale, self.turned = scale, turned

    def forward(self, weight: Tensor) -> Tensor:
        delta = self.scale * self.b @ self.a
        return weight + (delta.T if self.turned else delta)


def twin(model: EditableModel, asked: Lora) -> tuple[dict[int, Tensor], list[list[float]]]:
    """Adam on parametrisations of the network, one unpadded forward pass for each fact."""
    drawn, own = torch.Generator().manual_seed(asked.seed), {}
    for layer in asked.layers:
        d_v, d_k = read_weight(model, layer).shape
        a = (2 * torch.rand(asked.rank, d_k, generator=drawn, dtype=torch.float64) - 1) / d_k**0.5
        b = torch.zeros(d_v, asked.rank, dtype=torch.float64)
        turned = model.projection(layer).weight.shape != (d_v, d_k)
        own[layer] = Factors(a, b, asked.alpha / asked.rank, turned)
        parametrize.register_parametrization(model.projection(layer), "weight", own[layer])
    adam = torch.optim.Adam([p for one in own.values() for p in one.parameters()], lr=asked.lr)
    history = []
    for _ in range(asked.steps):
        losses = torch.stack([plain_loss(model, r, ("",), asked.objective) for r in REQUESTS])
        history.append(losses.tolist())
        adam.zero_grad()
        losses.mean().backward()
        adam.step()
    for layer in asked.layers:
        parametrize.remove_parametrizations(model.projection(layer), "weight", leave_parametrized=False)
    return {layer: one.scale * (one.b @ one.a).detach() for layer, one in own.items()}, history


@every_kind
@pytest.mark.parametrize("options", [{}, {"layers": (0, 2), "seed": 4}, {"objective": "prompt_last"}])
def test_equal_to_training_factors_in_the_network(kind: str, options: dict[str, Any]) -> None:
    model, asked = double(kind, bos=kind == "llama"), editor(**options)
    made, _ = edit(asked, model, REQUESTS, START)
    deltas, history = twin(model, asked)
    assert made.deltas.keys() == deltas.keys()
    for layer, delta in deltas.items():
        torch.testing.assert_close(made.deltas[layer], delta, rtol=1e-5, atol=1e-8)
    found = torch.tensor(made.notes["loss_history"]).T
    torch.testing.assert_close(found, torch.tensor(history), rtol=1e-6, atol=1e-6)


@every_kind
@pytest.mark.parametrize("rank", [1, 3, 8])
def test_the_merged_update_has_the_rank_of_its_factors(kind: str, rank: int) -> None:
    """In a model of single precision too: what is left beyond the rank is rounding of float64."""
    made, _ = edit(editor(layers=(0, 2), rank=rank), tiny_model(kind), REQUESTS, START)
    for delta in made.deltas.values():
        sizes = torch.linalg.svdvals(delta)
        assert sizes[rank - 1] > 1e-6 * sizes[0]
        assert sizes[rank] < 1e-12 * sizes[0]


def test_a_rank_above_the_weight_is_cut_to_it() -> None:
    wide, _ = edit(editor(rank=1000, alpha=32.0), tiny_model("llama"), REQUESTS, START)
    full, _ = edit(editor(rank=32, alpha=32.0), tiny_model("llama"), REQUESTS, START)
    assert torch.equal(wide.deltas[1], full.deltas[1])


def test_the_first_step_stays_in_the_rows_of_the_factor_that_was_drawn() -> None:
    """B is zero, so that A has no gradient yet."""
    made, _ = edit(editor(steps=1), tiny_model("llama"), REQUESTS, START)
    drawn = 2 * torch.rand(3, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1
    drawn = drawn.float().double()
    beside = made.deltas[1] - made.deltas[1] @ torch.linalg.pinv(drawn) @ drawn
    assert made.deltas[1].norm() > 0
    assert beside.norm() < 1e-6 * made.deltas[1].norm()


@every_kind
def test_facts_are_learnt_and_held_ones_left_alone(kind: str) -> None:
    model = tiny_model(kind)
    asked = editor(rank=8, alpha=16.0, lr=0.01, steps=200, stop_below=0.3)
    pairs = [(REQUESTS[0].text, REQUESTS[0].target)]
    before = target_nll(model, pairs)
    made, state = edit(asked, model, REQUESTS[:1], START)
    assert 1 < len(made.notes["loss_history"][0]) < 200
    with installed(model, made):
        assert (target_nll(model, pairs) < 0.2 * before).all()
    commit(model, made)
    again, _ = edit(asked, model, REQUESTS[:1], state)
    assert not again.deltas[1].any()
    assert len(again.notes["loss_history"][0]) == 1


def test_the_seed_draws_the_factor() -> None:
    model = tiny_model("llama")
    made = [edit(editor(seed=seed), model, REQUESTS, START)[0].deltas[1] for seed in (0, 0, 1)]
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_the_objective_is_that_of_fine_tuning() -> None:
    """The first loss, before any update, is the same number."""
    model = tiny_model("llama")
    for objective in ("target_new", "prompt_last"):
        one, _ = edit(editor(objective=objective), model, REQUESTS, START)
        other, _ = edit(FineTune(layers=(1,), objective=objective, steps=1), model, REQUESTS, START)
        assert [row[0] for row in one.notes["loss_history"]] == [
            row[0] for row in other.notes["loss_history"]
        ]


def test_half_precision_models_are_trained_in_single_precision() -> None:
    model = tiny_model("llama")
    model.net.to(torch.bfloat16)
    made, _ = edit(editor(lr=1e-3), model, REQUESTS, START)
    assert made.deltas[1].any()
    assert torch.linalg.svdvals(made.deltas[1])[3] < 1e-12 * made.norm()


def test_training_that_diverges_is_refused_and_leaves_nothing() -> None:
    model = tiny_model("llama")
    before = snapshot(model)
    message = r"the loss of '.*' -> '.*' is nan at pass 1; lower the learning rate or set a limit\. No weight"
    with pytest.raises(NonFiniteError, match=message):
        edit(editor(lr=float("inf")), model, REQUESTS, START)
    assert same_bits(model, before)
    assert not model.projection(1)._forward_hooks
    edit(editor(), model, REQUESTS, START)
    assert same_bits(model, before)
    assert all(p.grad is None and not p.requires_grad for p in model.net.parameters())
