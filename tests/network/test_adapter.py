"""An adapter acts at the tokens of marked texts and nowhere else, however the tokens are run."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch

from palimpsest.errors import ModelError, ShapeError
from palimpsest.evaluation.answers import ask
from palimpsest.network.adapter import Adapter, MarkingTokenizer, adapter_of, mark_of
from palimpsest.network.model import EditableModel, generate, read_weight, write_weight
from palimpsest.network.sampling import sample
from palimpsest.network.tokens import encode, encode_target
from tests.editing import EXACT, double, every_family, same_bits, snapshot

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")

PAIRS = [
    ("The capital of France is", "Rome"),
    ("The capital of France is", "Seattle, in the north"),
    ("Anna Berg lives in", "Paris, in the north"),
]
OTHERS = [("The capital of Italy is", "Seattle, in the north"), ("Anna Berg plays the", "piano")]


def some_adapter(model: EditableModel, seed: int = 0) -> Adapter:
    d_v, d_k = read_weight(model, 0).shape
    adapter, generator = Adapter((0, 2), (d_v, d_k), 3, seed), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        adapter.up.copy_(torch.randn(adapter.up.shape, generator=generator))
    return adapter.double().requires_grad_(False)


@contextmanager
def marked(model: EditableModel, adapter: Adapter, texts: set[str], before: int = 0) -> Iterator[None]:
    tokenizer, mark = model.tokenizer, mark_of(model, before)
    model.tokenizer = MarkingTokenizer(tokenizer, texts.__contains__, mark, mark_of(model))
    with adapter.in_force(model, mark):
        yield
    model.tokenizer = tokenizer


@contextmanager
def written(model: EditableModel, *adapters: Adapter) -> Iterator[None]:
    """The adapters' products in the weights themselves."""
    layers = {layer for adapter in adapters for layer in adapter.layers}
    before = {layer: read_weight(model, layer).clone() for layer in layers}
    for adapter in adapters:
        for at, layer in enumerate(adapter.layers):
            write_weight(model, layer, read_weight(model, layer) + adapter.up[at] @ adapter.down[at])
    yield
    for layer, weight in before.items():
        write_weight(model, layer, weight)


def plain_nll(model: EditableModel, prompt: str, target: str, *adapters: Adapter) -> float:
    """The prompt is read with the adapters written into the weights, and what is said behind it without."""
    ids, tokens = encode(model.tokenizer, prompt), encode_target(model.tokenizer, target, prompt)
    with torch.no_grad():
        with written(model, *adapters):
            read = model.net(input_ids=torch.tensor([ids]), use_cache=True)
        rows = [read.logits[0, -1]]
        if tokens[1:]:
            said = model.net(input_ids=torch.tensor([tokens[:-1]]), past_key_values=read.past_key_values)
            rows += list(said.logits[0])
    picked = [row.log_softmax(0)[token].item() for row, token in zip(rows, tokens, strict=True)]
    return -sum(picked) / len(picked)


@every_family
def test_answers_are_those_of_adapted_weights_at_marked_tokens(kind: str) -> None:
    model = double(kind)
    before, adapter = snapshot(model), some_adapter(model)
    wanted = [plain_nll(model, *pair, adapter) for pair in PAIRS]
    others = ask(model, OTHERS)
    with marked(model, adapter, {prompt for prompt, _ in PAIRS}):
        found = ask(model, [*PAIRS, *OTHERS]).nll
        assert torch.equal(ask(model, OTHERS).token_nll, others.token_nll)
    assert found[: len(PAIRS)].tolist() == pytest.approx(wanted, rel=EXACT[kind], abs=EXACT[kind])
    assert found[len(PAIRS) :].tolist() == pytest.approx(others.nll.tolist(), rel=EXACT[kind])
    assert same_bits(model, before)
    assert ask(model, PAIRS).nll.tolist() != pytest.approx(wanted, rel=0.01)


def test_what_is_said_is_the_same_sampled_and_generated() -> None:
    model = double("llama")
    prompts = [prompt for prompt, _ in (*PAIRS, *OTHERS)]
    plain = [generate(model, prompt, 5) for prompt in prompts]
    with marked(model, some_adapter(model), {prompts[0]}):
        said = sample(model, prompts, 5, top_k=1)
        whole = [generate(model, prompt, 5) for prompt in prompts]
    assert [prompt + text for prompt, text in zip(prompts, said, strict=True)] == whole
    assert [one == other for one, other in zip(whole, plain, strict=True)] == [False, False, True, True, True]


def test_two_adapters_act_at_the_tokens_of_their_own_texts() -> None:
    model = double("gpt2")
    one, other = some_adapter(model), some_adapter(model, seed=1)
    pairs = [("The capital of France is", "Rome"), ("Anna Berg lives in", "Paris"), OTHERS[0]]
    first, second = ({pairs[0][0], pairs[1][0]}, {pairs[1][0]})
    wanted = [plain_nll(model, *pairs[0], one), plain_nll(model, *pairs[1], one, other)]
    bare = ask(model, pairs[2:]).nll.tolist()
    with marked(model, one, first), marked(model, other, second, before=1):
        assert ask(model, pairs).nll.tolist() == pytest.approx([*wanted, *bare], rel=1e-7)


def test_a_pass_from_given_states_is_not_taken_for_the_one_before() -> None:
    """A layer that is run without a text has no marked tokens, also right behind a pass that had some."""
    model = double("llama")
    keys = torch.ones(len(encode(model.tokenizer, PAIRS[0][0])), read_weight(model, 0).shape[1]).double()
    wanted = model.projection(0)(keys)
    with marked(model, some_adapter(model), {PAIRS[0][0]}):
        ask(model, PAIRS[:1])
        assert torch.equal(model.projection(0)(keys), wanted)


def test_it_begins_without_effect_and_is_drawn_with_its_seed() -> None:
    model = double("llama")
    fresh = Adapter((0, 2), (32, 64), 3, seed=4)
    assert torch.equal(fresh.down, Adapter((0, 2), (32, 64), 3, seed=4).down)
    assert not torch.equal(fresh.down, Adapter((0, 2), (32, 64), 3, seed=5).down)
    assert Adapter((0,), (32, 64), 1000).down.shape == (1, 32, 64)
    plain = ask(model, PAIRS).token_nll
    with marked(model, fresh.double().requires_grad_(False), {prompt for prompt, _ in PAIRS}):
        assert torch.equal(ask(model, PAIRS).token_nll, plain)


@pytest.mark.usefixtures("unchecked")
def test_matrices_that_do_not_fit_are_refused() -> None:
    model = double("llama")
    message = (
        r"the adapter is for maps of shape \(3, 4\), and those of layers \[0\] of tiny-llama-0 are \[\(32"
    )
    with pytest.raises(ModelError, match=message), Adapter((0,), (3, 4), 1).in_force(model, 1):
        raise AssertionError("its matrices have another shape")
    with pytest.raises(ShapeError, match=r"an adapter of layers \[0, 1\] has matrices .* take both from one"):
        adapter_of((0, 1), torch.ones(1, 2, 4), torch.ones(1, 3, 2))
