"""Causal traces equal their slow twin: one restoration at a time, by plain hooks on whole passes."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest
import torch

from palimpsest.evaluation import statements
from palimpsest.evaluation.traced import window_around
from palimpsest.evaluation.tracing import embedding_spread, noise_of, trace
from palimpsest.network.model import FAMILIES, EditableModel
from palimpsest.network.restoring import KINDS
from palimpsest.network.tokens import encode_target
from palimpsest.types import EditRequest, EvalCase, unspaced
from tests.tiny import tiny_model

ATTENTION = {"llama": "self_attn", "qwen2": "self_attn", "gpt2": "attn", "gptj": "attn"}
PROMPT, SUBJECT = "The mother tongue of {} is", "Danielle Darrieux"
LAYERS, WINDOW = 4, 3

Change = Callable[[torch.Tensor], torch.Tensor]


def known(model: EditableModel, tokens: int = 2, count: int = 1) -> list[EvalCase]:
    """Facts that a random model answers rightly: it is asked what it says, in so many tokens."""
    found: list[EvalCase] = []
    for prompt in (
        PROMPT,
        "Where does {} live? She lives in",
        "The field of {} and the piano is",
        "In {} is",
    ):
        for subject in (SUBJECT, "Anna Berg", "Marie Curie", "Xu Ω", "France"):
            request = EditRequest(prompt, subject, "unlike")
            ids = model.encode(request.text)
            with torch.no_grad():
                for _ in range(tokens):
                    ids.append(int(model.net(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
            said = model.tokenizer.decode(ids[-tokens:])
            text = said[1:] if said.startswith(" ") else unspaced(said)
            if said.strip() and encode_target(model.tokenizer, text, request.text) == ids[-tokens:]:
                found.append(EvalCase(f"{prompt}/{subject}", request, text))
            if len(found) == count:
                return found
    raise AssertionError("the random model says nothing that can be tokenised again")


@contextmanager
def hooked(modules: Sequence[tuple[torch.nn.Module, Change]]) -> Iterator[None]:
    """Outputs of modules, changed in every pass."""

    def hook(change: Change) -> Any:
        def after(_: torch.nn.Module, __: Any, output: Any) -> Any:
            if isinstance(output, tuple):
                return (change(output[0]), *output[1:])
            return change(output)

        return after

    with ExitStack() as stack:
        for module, change in modules:
            stack.callback(module.register_forward_hook(hook(change)).remove)
        yield


class Twin:
    """A fact under noise, of which single outputs are put back in whole passes over the whole text."""

    def __init__(self, model: EditableModel, fact: statements.Statement, noise: torch.Tensor) -> None:
        self.model, self.fact, self.noise = model, fact, noise

    def module(self, kind: str, layer: int) -> torch.nn.Module:
        whole = self.model.net.get_submodule(self.model.family.layers)[layer]
        if kind == "state":
            return whole
        return getattr(whole, "mlp" if kind == "mlp" else ATTENTION[self.model.net.config.model_type])

    def probability(self) -> float:
        """Of the answer, token after token."""
        ids, p = list(self.fact.ids), 1.0
        for token in self.fact.answer:
            with torch.no_grad():
                p *= float(self.model.net(input_ids=torch.tensor([ids])).logits[0, -1].softmax(0)[token])
            ids.append(token)
        return p

    def outputs(self, kind: str, layer: int) -> torch.Tensor:
        """Outputs of the clean run at the prompt's tokens (t, d_v)."""
        found: list[torch.Tensor] = []

        def keep(output: torch.Tensor) -> torch.Tensor:
            found.append(output[0])
            return output

        with hooked([(self.module(kind, layer), keep)]), torch.no_grad():
            self.model.net(input_ids=torch.tensor([list(self.fact.ids)]))
        return found[0]

    def corrupted(self, draw: int) -> tuple[torch.nn.Module, Change]:
        def add(embedded: torch.Tensor) -> torch.Tensor:
            embedded = embedded.clone()
            embedded[0, self.fact.first : self.fact.last + 1] += self.noise[draw]
            return embedded

        return self.model.net.get_input_embeddings(), add

    def restored(self, kind: str, layers: Sequence[int], token: int, draw: int) -> float:
        """Probability of the answer with one token's output restored at some layers."""

        def put(own: torch.Tensor) -> Change:
            def change(output: torch.Tensor) -> torch.Tensor:
                output = output.clone()
                output[0, token] = own[token]
                return output

            return change

        places = [(self.module(kind, layer), put(self.outputs(kind, layer))) for layer in layers]
        with hooked([self.corrupted(draw), *places]):
            return self.probability()

    def effect(self, kind: str, layers: Sequence[int], token: int) -> float:
        draws = range(len(self.noise))
        return sum(
            self.restored(kind, layers, token, i) - self.restored(kind, [], token, i) for i in draws
        ) / len(draws)


def twin_of(model: EditableModel, fact: EvalCase | EditRequest, samples: int, seed: int) -> Twin:
    (one,) = statements.statements(model, [fact], "")
    return Twin(model, one, noise_of(model, one, samples, seed, 3 * embedding_spread(model, [one])))


@pytest.mark.parametrize("bos", [False, True])
@pytest.mark.parametrize("kind", FAMILIES)
def test_restorations_computed_together_equal_those_one_by_one(kind: str, bos: bool) -> None:
    model = tiny_model(kind, bos=bos)
    (fact,) = known(model, tokens=2)
    found = trace(model, [fact], window=WINDOW, samples=2, seed=5, rows=3)
    twin = twin_of(model, fact, 2, 5)
    assert found.facts["clean"][0] == pytest.approx(Twin.probability(twin), abs=1e-5)
    seen = found.effects.set_index(["kind", "layer", "token"])["effect"]
    for what in KINDS:
        for layer in (0, 2, LAYERS - 1):
            at = [layer] if what == "state" else list(window_around(layer, WINDOW, LAYERS))
            for token in range(twin.fact.first, len(twin.fact.ids)):
                assert seen[what, layer, token] == pytest.approx(twin.effect(what, at, token), abs=1e-5)
    assert seen.abs().max() > 1e-3
    for token in range(twin.fact.first):
        assert twin.effect("state", [1], token) == pytest.approx(0, abs=1e-6)  # which the trace leaves out
