"""Knowledge neurons: the integral step by step, what it sums to, and which columns get which value."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from palimpsest.editors import Prepared, edit, kn
from palimpsest.editors.kn import KnowledgeNeurons, answer_of, attributions
from palimpsest.errors import ModelError, NonFiniteError
from palimpsest.network.model import EditableModel, generate, read_weight
from palimpsest.network.tokens import encode, encode_target
from palimpsest.types import EditRequest
from tests.editing import CONTEXTS, EXACT, REQUESTS, double, every_family, every_kind, same_bits, snapshot
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")

START = Prepared(contexts=("",))
LAYERS = (0, 2, 3)


def editor(**options: Any) -> KnowledgeNeurons:
    return KnowledgeNeurons(**{"layers": LAYERS, "steps": 6, **options})


def probability(
    model: EditableModel, ids: Sequence[int], token: int, layer: int, neurons: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """p(token) after one whole, unpadded pass, and the neurons of a layer at its last token.

    Other neurons may stand in for them.
    """
    seen: list[Tensor] = []

    def put(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        rows = inputs[0].flatten(0, -2)
        seen.append(rows[-1].detach())
        if neurons is None:
            return inputs
        changed = torch.cat([rows[:-1], neurons[None]])
        return (changed.reshape(inputs[0].shape),)

    handle = model.projection(layer).register_forward_pre_hook(put)
    logits = model.net(input_ids=torch.tensor([list(ids)])).logits[0, -1]
    handle.remove()
    return logits.double().softmax(0)[token], seen[0]


def twin(
    model: EditableModel, prompt: Sequence[int], answer: Sequence[int], layers: Sequence[int], steps: int
) -> Tensor:
    """One point of the integral, one layer and one token at a time (layers, d_k)."""
    rows = []
    for layer in layers:
        mean = torch.zeros(read_weight(model, layer).shape[1], dtype=torch.float64)
        for j, token in enumerate(answer):
            ids = [*prompt, *answer[:j]]
            _, whole = probability(model, ids, token, layer)
            total = torch.zeros_like(mean)
            for k in range(1, steps + 1):
                point = (k / steps * whole).requires_grad_()
                p, _ = probability(model, ids, token, layer, point)
                (slope,) = torch.autograd.grad(p, point)
                total += slope.double()
            mean += whole.double() * total / steps / len(answer)
        rows.append(mean)
    return torch.stack(rows)


def prompt_of(model: EditableModel, request: EditRequest) -> list[int]:
    return encode(model.tokenizer, request.text)


@every_family
def test_attributions_are_the_sum_over_points_one_at_a_time(kind: str) -> None:
    """In every family: all points, layers and the shared beginning at once change nothing but rounding."""
    model = double(kind, bos=kind == "llama")
    for request, answer in ((REQUESTS[1], [5, 17]), (REQUESTS[3], [40])):
        prompt = prompt_of(model, request)
        expected = twin(model, prompt, answer, LAYERS, 3)
        found = attributions(model, prompt, answer, LAYERS, 3)
        assert float((found.double() - expected).norm()) < 10 * EXACT[kind] * float(expected.norm())


@every_family
def test_the_sum_goes_to_what_the_neurons_do_altogether(kind: str) -> None:
    """Completeness: p as it is, less p with the layer's neurons at zero; the error falls as 1/m.

    Where a norm stands behind the map, the length of what it returns does not count but near zero, and
    equally spaced points miss what happens there.
    """
    model = double(kind)
    prompt, answer = prompt_of(model, REQUESTS[0]), [23]
    whole = []
    for layer in LAYERS:
        with torch.no_grad():
            p, neurons = probability(model, prompt, answer[0], layer)
            zero, _ = probability(model, prompt, answer[0], layer, torch.zeros_like(neurons))
        whole.append(p - zero)
    exact = torch.stack(whole)
    sums = {m: attributions(model, prompt, answer, LAYERS, m).double().sum(1) for m in (32, 512)}
    error = {m: float((found - exact).norm()) for m, found in sums.items()}
    if model.norm_behind(LAYERS[0]) is not None:
        assert float(sums[512].norm()) < 0.1 * float(exact.norm())
        return
    assert error[512] < 0.01 * float(exact.norm())
    assert error[512] < error[32] / 4 or error[32] < 1e-6


@pytest.mark.parametrize("batch", [1, 6, 13, 1000])
def test_how_many_rows_are_read_together_changes_nothing_but_rounding(batch: int) -> None:
    model = double("llama")
    prompt = prompt_of(model, REQUESTS[1])
    expected = attributions(model, prompt, [5, 17], LAYERS, 6)
    torch.testing.assert_close(attributions(model, prompt, [5, 17], LAYERS, 6, batch), expected)


@every_kind
def test_a_prompt_of_one_token_has_nothing_before_it(kind: str) -> None:
    model = double(kind)
    found = attributions(model, [7], [5, 17], LAYERS, 3)
    torch.testing.assert_close(found, twin(model, [7], [5, 17], LAYERS, 3), rtol=1e-6, atol=1e-12)


@every_kind
def test_the_old_object_is_what_the_model_answers(kind: str) -> None:
    model = tiny_model(kind)
    prompt = prompt_of(model, REQUESTS[3])
    found = answer_of(model, prompt, 4)
    whole = generate(model, REQUESTS[3].text, 4)
    assert model.tokenizer.decode([*prompt, *found], skip_special_tokens=True) == whole
    assert answer_of(model, prompt, 2) == found[:2]


@every_kind
def test_the_columns_of_the_neurons_get_the_new_object_for_the_old_one(kind: str) -> None:
    """Everywhere else the update is zero; a neuron of two facts gets the sum of both."""
    model, asked = tiny_model(kind), editor(old_weight=1.0, new_weight=8.0)
    made, _ = edit(asked, model, REQUESTS, START)
    words = model.net.get_input_embeddings().weight.double()
    expected = {layer: torch.zeros_like(delta) for layer, delta in made.deltas.items()}
    for request, kept in zip(REQUESTS, made.notes["neurons"], strict=True):
        prompt = prompt_of(model, request)
        new = encode_target(model.tokenizer, request.target, request.text)
        old = answer_of(model, prompt, len(new))
        scores = attributions(model, prompt, old, LAYERS, 6)
        above = (scores > 0.2 * scores.max()).nonzero().tolist()
        assert kept == sorted([LAYERS[row], neuron] for row, neuron in above) != []
        for layer, neuron in kept:
            expected[layer][:, neuron] += 8 * words[new].sum(0) - words[old].sum(0)
    for layer, delta in expected.items():
        torch.testing.assert_close(made.deltas[layer], delta, rtol=1e-9, atol=1e-9)
        columns = {neuron for kept in made.notes["neurons"] for at, neuron in kept if at == layer}
        assert set(delta.any(0).nonzero()[:, 0].tolist()) == columns


def test_a_higher_threshold_keeps_some_of_the_neurons() -> None:
    model = tiny_model("llama")
    kept = []
    for threshold in (0.0, 0.2, 0.6, 0.99):
        made, _ = edit(editor(adaptive_threshold=threshold), model, REQUESTS[:1], START)
        kept.append({tuple(one) for one in made.notes["neurons"][0]})
    assert kept[0] > kept[1] > kept[2] >= kept[3]
    assert len(kept[3]) == 1


@pytest.mark.parametrize("sharing", [0.0, 0.4, 0.7])
def test_neurons_are_kept_that_enough_prompts_share(sharing: float) -> None:
    model, asked = tiny_model("llama"), editor(sharing=sharing)
    old = answer_of(model, prompt_of(model, REQUESTS[0]), 1)
    each = [set(editor().neurons(model, REQUESTS[0], old, (context,))) for context in CONTEXTS]
    found = set(asked.neurons(model, REQUESTS[0], old, CONTEXTS))
    assert found == {one for one in set.union(*each) if sum(one in own for own in each) > 3 * sharing}
    assert len({frozenset(own) for own in each}) > 1


def test_an_object_that_the_model_answers_already_is_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """With equal weights: what is added to its neurons is what is taken away."""
    model = tiny_model("llama")
    new = encode_target(model.tokenizer, REQUESTS[0].target, REQUESTS[0].text)
    monkeypatch.setattr(kn, "answer_of", lambda *_: new)
    made, _ = edit(editor(), model, REQUESTS[:1], START)
    assert made.notes["neurons"][0]
    assert made.norm() == 0
    louder, _ = edit(editor(new_weight=8.0), model, REQUESTS[:1], START)
    assert louder.notes["neurons"] == made.notes["neurons"]
    assert louder.norm() > 0


def test_embeddings_of_another_width_are_refused() -> None:
    """As in OPT-350M, whose embeddings pass a map of their own."""
    model = tiny_model("opt_after")
    message = "word embeddings of tiny-opt_after-0 are 16 wide and its values 32, so that KN cannot add"
    with pytest.raises(ModelError, match=message):
        edit(editor(), model, REQUESTS, START)


def test_a_damaged_model_is_refused_and_nothing_is_left_on_the_network() -> None:
    model = tiny_model("gpt2")
    edit(editor(), model, REQUESTS, START)
    assert all(p.grad is None and not p.requires_grad for p in model.net.parameters())
    assert not any(model.projection(layer)._forward_pre_hooks for layer in LAYERS)
    read_weight(model, 2)[0, 0] = float("nan")
    before = snapshot(model)
    message = "an attribution of 'The mother tongue of Danielle Darrieux is' is NaN or infinite; look at"
    with pytest.raises(NonFiniteError, match=message):
        edit(editor(), model, REQUESTS, START)
    assert same_bits(model, before)
