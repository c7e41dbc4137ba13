"""UltraEdit: its closed form from plain passes, and statistics that do not know how facts were batched."""

from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch import Tensor

from palimpsest.editors import Prepared, edit
from palimpsest.editors.ultraedit import Running, UltraEdit, features
from palimpsest.errors import NonFiniteError
from palimpsest.network.apply import commit
from palimpsest.network.model import EditableModel, read_weight
from palimpsest.network.tokens import encode, encode_target
from palimpsest.types import EditRequest
from tests.editing import CONTEXTS, EXACT, REQUESTS, double, every_family, every_kind, same_bits, snapshot
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")

START = Prepared(contexts=("",))
LAYERS = (0, 2)


def editor(**options: Any) -> UltraEdit:
    return UltraEdit(**{"layers": LAYERS, "lr": 1e-3, **options})


def plain(model: EditableModel, request: EditRequest, context: str = "") -> dict[int, tuple[Tensor, Tensor]]:
    """Inputs and gradients of the outputs of the edited maps, in one unpadded pass of the whole network."""
    target = encode_target(model.tokenizer, request.target, request.text)
    ids = encode(model.tokenizer, context + request.text)
    seen: dict[int, tuple[Tensor, Tensor]] = {}

    def keep(layer: int) -> Any:
        def hook(_: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            output = output.detach().requires_grad_() if not output.requires_grad else output
            output.retain_grad()
            seen[layer] = inputs[0], output
            return output

        return hook

    handles = [model.projection(layer).register_forward_hook(keep(layer)) for layer in LAYERS]
    log_p = model.net(input_ids=torch.tensor([ids + target[:-1]])).logits[0].log_softmax(1)
    for handle in handles:
        handle.remove()
    at = range(len(ids) - 1, len(ids) - 1 + len(target))
    (-torch.stack([log_p[i, token] for i, token in zip(at, target, strict=True)]).mean()).backward()
    found = {}
    for layer, (received, out) in seen.items():
        assert out.grad is not None
        found[layer] = received.detach().flatten(0, -2), out.grad.flatten(0, -2)
    return found


def twin(model: EditableModel, requests: list[EditRequest], lr: float) -> dict[int, Tensor]:
    """As printed, row by row: normalise all tokens of all layers, then one linear system a layer."""
    read = [plain(model, request) for request in requests]
    parts = {
        layer: (torch.cat([one[layer][0] for one in read]), torch.cat([one[layer][1] for one in read]))
        for layer in LAYERS
    }
    whole = torch.cat([torch.cat(both, 1) for both in parts.values()])
    eps = torch.finfo(torch.float32).eps
    found = {}
    for layer, (hidden, slopes) in parts.items():
        both = (torch.cat([hidden, slopes], 1) - whole.mean(0)) / (whole.std(0) + eps)
        h, g = both[:, : hidden.shape[1]], both[:, hidden.shape[1] :]
        wanted = torch.stack([-lr * (row @ row) * slope for row, slope in zip(h, g, strict=True)])
        system = hidden.T @ hidden + torch.eye(hidden.shape[1], dtype=hidden.dtype)
        found[layer] = torch.linalg.solve(system, hidden.T @ wanted).T
    return found


@every_kind
@pytest.mark.parametrize("batch", [1, 3, 64])
def test_equal_to_the_closed_form_from_plain_passes(kind: str, batch: int) -> None:
    model = double(kind, bos=kind == "llama")
    made, _ = edit(editor(batch=batch), model, REQUESTS, START)
    for layer, delta in twin(model, REQUESTS, 1e-3).items():
        torch.testing.assert_close(made.deltas[layer], delta, rtol=1e-5, atol=1e-8)


@every_family
def test_gradients_at_tokens_make_up_that_of_the_weight(kind: str) -> None:
    """∂L/∂W = G Hᵀ in every family, padding left out."""
    model = double(kind)
    found, losses = features(model, REQUESTS, LAYERS, CONTEXTS, 3)
    weights = {layer: model.projection(layer).weight for layer in LAYERS}
    for weight in weights.values():
        weight.requires_grad_(True)
    total = torch.zeros((), dtype=torch.float64)
    for request in REQUESTS:
        target = encode_target(model.tokenizer, request.target, request.text)
        for context in CONTEXTS:
            ids = encode(model.tokenizer, context + request.text)
            log_p = model.net(input_ids=torch.tensor([ids + target[:-1]])).logits[0].log_softmax(1)
            rows = [log_p[len(ids) - 1 + j, token] for j, token in enumerate(target)]
            total = total - torch.stack(rows).mean() / len(CONTEXTS)
    total.backward()
    assert sum(losses) == pytest.approx(total.item(), rel=10 * EXACT[kind])
    for layer, (hidden, slopes) in found.items():
        assert weights[layer].grad is not None
        slope = weights[layer].grad
        slope = slope if slope.shape == read_weight(model, layer).shape else slope.T
        gap = float((slopes.double().T @ hidden.double() - slope).norm())
        assert gap < 100 * EXACT[kind] * float(slope.norm())


# Statistics.


@given(st.integers(0, 10_000), st.lists(st.integers(0, 5), min_size=1, max_size=6), st.floats(-1e3, 1e3))
def test_statistics_of_batches_are_those_of_all_rows_at_once(seed: int, cuts: list[int], far: float) -> None:
    drawn = torch.Generator().manual_seed(seed)
    rows = torch.randn(sum(cuts), 4, generator=drawn, dtype=torch.float64) + far
    seen = Running()
    for part in rows.split(cuts):
        seen = seen.after(part)
    assert seen.count == len(rows)
    if not len(rows):
        assert seen == Running()
        assert torch.equal(seen.normalised(torch.ones(2, 4)), torch.zeros(2, 4, dtype=torch.float64))
        return
    assert seen.mean is not None
    assert seen.spread is not None
    torch.testing.assert_close(seen.mean, rows.mean(0), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(seen.spread, (rows - rows.mean(0)).square().sum(0), rtol=1e-6, atol=1e-6)
    if len(rows) > 1:
        deviation = rows.std(0) + torch.finfo(torch.float32).eps
        torch.testing.assert_close(
            seen.normalised(rows), (rows - rows.mean(0)) / deviation, rtol=1e-5, atol=1e-5
        )


def test_a_feature_that_never_varies_is_nothing() -> None:
    rows = torch.tensor([[1.0, 2.0], [1.0, 4.0]], dtype=torch.float64)
    assert torch.equal(Running().after(rows).normalised(rows)[:, 0], torch.zeros(2, dtype=torch.float64))
    assert torch.equal(Running().after(rows[:1]).normalised(rows[:1]), torch.zeros(1, 2, dtype=torch.float64))


@every_kind
def test_a_sequence_has_seen_what_one_batch_of_all_facts_has(kind: str) -> None:
    """On one model, so that features are the same; the number of facts in a pass does not matter either."""
    model = double(kind)
    _, whole = edit(editor(), model, REQUESTS, START)
    state: Any = START
    for request in REQUESTS:
        _, state = edit(editor(batch=1), model, [request], state)
    assert state.seen.count == whole.seen.count  # type: ignore[attr-defined]
    for name in ("mean", "spread"):
        torch.testing.assert_close(getattr(state.seen, name), getattr(whole.seen, name))  # type: ignore[attr-defined]


def test_what_was_seen_before_changes_the_update() -> None:
    model = double("llama")
    fresh, _ = edit(editor(), model, REQUESTS[2:], START)
    _, state = edit(editor(), model, REQUESTS[:2], START)
    after, later = edit(editor(), model, REQUESTS[2:], state)
    assert not torch.allclose(fresh.deltas[0], after.deltas[0], rtol=1e-2)
    commit(model, after)
    _, last = edit(editor(), model, REQUESTS[:1], later)
    assert last.seen.count > later.seen.count > state.seen.count  # type: ignore[attr-defined]
    assert repr(later.seen) == f"Running(tokens {later.seen.count})"  # type: ignore[attr-defined]


@every_kind
def test_the_update_grows_with_the_rate_and_counts_its_tokens(kind: str) -> None:
    model = tiny_model(kind)
    one, _ = edit(editor(lr=1e-4), model, REQUESTS, START)
    ten, _ = edit(editor(lr=1e-3), model, REQUESTS, START)
    for layer in LAYERS:
        torch.testing.assert_close(ten.deltas[layer], 10 * one.deltas[layer])
    rows = [
        encode(model.tokenizer, request.text)
        + encode_target(model.tokenizer, request.target, request.text)[:-1]
        for request in REQUESTS
    ]
    assert one.notes["tokens"] == sum(map(len, rows))


def test_a_damaged_model_is_refused_and_nothing_is_left_on_the_network() -> None:
    model = tiny_model("gpt2")
    edit(editor(), model, REQUESTS, START)
    assert all(p.grad is None and not p.requires_grad for p in model.net.parameters())
    assert not any(model.projection(layer)._forward_hooks for layer in LAYERS)
    read_weight(model, 2)[0, 0] = float("nan")
    before = snapshot(model)
    with pytest.raises(NonFiniteError, match="is nan at pass 0"):
        edit(editor(), model, REQUESTS, START)
    assert same_bits(model, before)
