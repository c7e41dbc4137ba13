"""Fine-tuning against a twin that trains the network's own parameters, and its constraint."""

from typing import Any

import pytest
import torch
from torch import Tensor

from palimpsest.editors import FineTune, Prepared, edit, editor_for
from palimpsest.editors.steps import steps
from palimpsest.errors import NonFiniteError
from palimpsest.evaluation.answers import target_nll
from palimpsest.network.apply import commit, installed
from palimpsest.network.model import EditableModel, read_weight
from palimpsest.network.tokens import encode, encode_target
from palimpsest.types import EditRequest
from tests.editing import CONTEXTS, REQUESTS, double, every_kind, same_bits, snapshot
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")

START = Prepared(contexts=("",))
BESIDE = Prepared(contexts=CONTEXTS)


def editor(**options: Any) -> FineTune:
    return FineTune(**{"layers": (1,), "lr": 0.02, "steps": 5, **options})


def plain_loss(
    model: EditableModel, request: EditRequest, contexts: tuple[str, ...], objective: str
) -> Tensor:
    """Mean over contexts and tokens, one unpadded forward pass each."""
    target, losses = encode_target(model.tokenizer, request.target), []
    for context in contexts:
        ids = encode(model.tokenizer, context + request.text)
        behind = target[:-1] if objective == "target_new" else []
        log_p = model.net(input_ids=torch.tensor([ids + behind])).logits[0].log_softmax(1)
        at = [len(ids) - 1 + (j if behind else 0) for j in range(len(target))]
        losses.append(-torch.stack([log_p[i, token] for i, token in zip(at, target, strict=True)]).mean())
    return torch.stack(losses).mean()


def twin(
    model: EditableModel, asked: FineTune, contexts: tuple[str, ...] = ("",)
) -> tuple[dict[int, Tensor], list[list[float]]]:
    """Adam on the parameters themselves, clipped around where they were; the model is put back."""
    before = snapshot(model)
    parameters = {layer: model.projection(layer).weight for layer in asked.layers}
    start = {layer: p.detach().clone() for layer, p in parameters.items()}
    for p in parameters.values():
        p.requires_grad_(True)
    adam = torch.optim.Adam(parameters.values(), lr=asked.lr)
    history: list[list[float]] = []
    for _ in range(asked.steps):
        row, still = [], True
        for first in range(0, len(REQUESTS), asked.batch):
            part = REQUESTS[first : first + asked.batch]
            losses = torch.stack([plain_loss(model, r, contexts, asked.objective) for r in part])
            row += losses.tolist()
            if losses.mean() >= asked.stop_below:
                still = False
                adam.zero_grad()
                losses.mean().backward()
                adam.step()
                if asked.limit is not None:
                    with torch.no_grad():
                        for layer, p in parameters.items():
                            p.copy_(p.clamp(start[layer] - asked.limit, start[layer] + asked.limit))
        history.append(row)
        if still:
            break
    for p in parameters.values():
        p.requires_grad_(False)
        p.grad = None
    now = {layer: read_weight(model, layer).clone() for layer in asked.layers}
    model.net.load_state_dict(before)
    return {layer: weight - read_weight(model, layer) for layer, weight in now.items()}, history


SETTINGS: list[dict[str, Any]] = [
    {},
    {"layers": (0, 2), "limit": 0.03},
    {"objective": "prompt_last"},
    {"batch": 3, "limit": 0.05},
    {"batch": 1, "stop_below": 6.0},
]


@every_kind
@pytest.mark.parametrize("options", SETTINGS)
def test_equal_to_training_the_parameters_themselves(kind: str, options: dict[str, Any]) -> None:
    model, asked = double(kind, bos=kind == "llama"), editor(**options)
    made, _ = edit(asked, model, REQUESTS, START)
    deltas, history = twin(model, asked)
    for layer, delta in deltas.items():
        torch.testing.assert_close(made.deltas[layer], delta, rtol=1e-5, atol=1e-7)
    found = torch.tensor(made.notes["loss_history"]).T
    torch.testing.assert_close(found, torch.tensor(history), rtol=1e-5, atol=1e-5)


def test_equal_to_the_twin_behind_contexts() -> None:
    model, asked = double("llama"), editor(steps=3)
    made, _ = edit(asked, model, REQUESTS, BESIDE)
    deltas, _ = twin(model, asked, CONTEXTS)
    torch.testing.assert_close(made.deltas[1], deltas[1], rtol=1e-5, atol=1e-7)


def test_some_stop_before_others() -> None:
    """One of the twin's settings leaves some batches alone and not others."""
    made, _ = edit(editor(batch=1, stop_below=6.0), double("llama"), REQUESTS, START)
    below = torch.tensor(made.notes["loss_history"]) < 6.0
    assert below.any()
    assert not below.all()


@every_kind
def test_no_entry_moves_further_than_the_limit(kind: str) -> None:
    model = tiny_model(kind)
    free, _ = edit(editor(), model, REQUESTS, START)
    held, _ = edit(editor(limit=0.01), model, REQUESTS, START)
    assert float(free.deltas[1].abs().max()) > 0.05
    assert float(held.deltas[1].abs().max()) == pytest.approx(0.01)
    assert held.notes["largest_change"][1] == float(held.deltas[1].abs().max())
    assert held.norm() < free.norm()
    pairs = [(r.text, r.target) for r in REQUESTS]
    before = target_nll(model, pairs).mean()
    nll = []
    for made in (free, held):
        with installed(model, made):
            nll.append(target_nll(model, pairs).mean())
    assert nll[0] < nll[1] < before


@every_kind
def test_a_fact_that_the_model_holds_is_not_written_again(kind: str) -> None:
    """The second edit of the same fact is exactly zero: the first brought its loss below the threshold."""
    model = tiny_model(kind)
    asked = editor(steps=60, stop_below=0.3)
    made, state = edit(asked, model, REQUESTS[:1], START)
    assert made.norm() > 0
    assert 1 < len(made.notes["loss_history"][0]) < 60
    commit(model, made)
    again, _ = edit(asked, model, REQUESTS[:1], state)
    assert not any(delta.any() for delta in again.deltas.values())
    assert again.notes["loss_history"][0][0] < 0.3
    assert len(again.notes["loss_history"][0]) == 1


def test_a_sequence_of_edits_by_training() -> None:
    """`steps` takes it like any editor of weights, notes both norms, and puts every bit back."""
    model = tiny_model("llama")
    before, start = snapshot(model), read_weight(model, 1).clone()
    totals = []
    for step in steps(model, editor(steps=2), [REQUESTS[:2], REQUESTS[2:]]):
        now = float((read_weight(model, 1) - start).double().norm())
        assert step.edit.notes["total_norm"][1] == pytest.approx(now)
        totals.append(now)
    assert totals[1] > totals[0]
    assert same_bits(model, before)


def test_half_precision_models_are_trained_in_single_precision() -> None:
    model = tiny_model("llama")
    model.net.to(torch.bfloat16)
    made, _ = edit(editor(lr=1e-4), model, REQUESTS, START)
    assert not torch.equal(made.deltas[1], made.deltas[1].bfloat16().double())
    assert made.deltas[1].any()


LOSS = r"the loss of '.*' -> '.*' is nan at pass 1; lower the learning rate or set a limit\. No weight was"
WEIGHT = "layer 1: fine-tuning led to NaN or infinity; lower the learning rate or set a limit. No weight was"


@pytest.mark.parametrize(("passes", "message"), [(3, LOSS), (1, WEIGHT)])
def test_training_that_diverges_is_refused(passes: int, message: str) -> None:
    """At the next loss, or at the end where no loss follows."""
    model = tiny_model("llama")
    before = snapshot(model)
    with pytest.raises(NonFiniteError, match=message):
        edit(editor(lr=float("inf"), steps=passes), model, REQUESTS, START)
    assert same_bits(model, before)
    assert not model.projection(1)._forward_hooks


def test_a_damaged_model_is_refused() -> None:
    model = tiny_model("gpt2")
    read_weight(model, 2)[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match="is nan at pass 0"):
        edit(editor(), model, REQUESTS, START)


def test_nothing_is_left_on_the_network() -> None:
    model = tiny_model("llama")
    edit(editor(), model, REQUESTS, START)
    assert all(p.grad is None and not p.requires_grad for p in model.net.parameters())
    assert not model.projection(1)._forward_hooks


@pytest.mark.parametrize("model", ["smollm2-135m", "gpt2-xl", "gpt-j-6b", "llama3-8b", "qwen2.5-7b"])
def test_ft_m_trains_the_object_alone_in_one_layer(model: str) -> None:
    """Each token of the object after those before it; as EasyEdit, in the layer of its settings."""
    asked: Any = editor_for("ft_m", model)
    assert type(asked) is FineTune
    assert (asked.objective, len(asked.layers), asked.contexts.count) == ("target_new", 1, 0)
    assert asked.steps == 25


def test_ft_m_and_prompt_last_are_one_for_an_object_of_one_token() -> None:
    """And differ for an object of several, whose later tokens are read at other positions."""
    model = double("llama")
    for request, same in ((REQUESTS[3], True), (REQUESTS[1], False)):
        tokens = len(encode_target(model.tokenizer, request.target, request.text))
        assert (tokens == 1) == same
        made = [
            edit(editor(objective=objective), model, [request], START)[0].deltas[1]
            for objective in ("target_new", "prompt_last")
        ]
        assert torch.equal(*made) == same


def test_both_forms_are_on_file() -> None:
    free: Any = editor_for("ft", "gpt2-xl")
    held: Any = editor_for("ft_l", "gpt2-xl")
    assert (free.layers, free.limit, free.steps, free.lr) == ((1,), None, 25, 5e-4)
    assert (held.layers, held.limit, held.stop_below) == ((0,), 5e-4, 1e-2)
