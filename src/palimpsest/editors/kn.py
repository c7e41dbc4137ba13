"""KN: knowledge neurons (Dai et al., ACL 2022), found by integrated gradients and given another value.

A neuron is one input of the edited map, whose column of W is its value. For a fact with the old object y, and
the neurons x̄ (d_k,) of a layer at the last token of a prompt, the attribution is

    Attr_i = x̄_i ∫₀¹ ∂p(y | αx̄)/∂x_i dα  ≈  (x̄_i/m) Σ_{k=1..m} ∂p(y | (k/m) x̄)/∂x_i

where αx̄ stands in for the neurons of that layer (Sec. 3.2). A neuron is kept if its attribution is above a
share t of the largest one, in more than a share p of the prompts. The columns of the kept ones become

    W_:i ← W_:i − λ₁ e(y) + λ₂ e(y*)        e: word embedding, summed over the tokens; y*: the new object

A request names no old object and no other wordings. The old object is what the model answers: as many tokens
as the new one has, each the most probable after those before it. The prompts are the request's own behind
each prefix. If the model answers the new object already, and the weights λ are equal, nothing changes.

In families with a norm behind the map (Gemma 2 and 3, OLMo 2) the length of αx̄ counts only near zero, where
the sum has no point: attributions then compare the neurons of a layer, and sum to almost nothing.

Differences from EasyEdit's code, whose weights for one token are the defaults: the sum has k = 1..m as in the
paper, where it has 0..m−1 over m−1; neurons are inputs of the edited map in every family, as in the paper
(there outputs of the map before it, without the activation); the weights do not depend on the number of
tokens (there 2 for one token, 1 for each of several; in the paper λ₁ = 1, λ₂ = 8); the facts of a batch are
all found on the model as it is at the start of the call, where the code writes the first request only. As
there, the attributions of an object of several tokens are averaged over them.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor
from tqdm import tqdm

from palimpsest.editors.base import Prepared, State, WeightEditor, start, step_norms
from palimpsest.editors.settings import Layers
from palimpsest.errors import ModelError, NonFiniteError
from palimpsest.memory.settings import ContextSettings
from palimpsest.network.activations import capture, read_once, run_body
from palimpsest.network.apply import WeightDelta
from palimpsest.network.head import logits_of
from palimpsest.network.model import EditableModel, Site, fingerprint, read_weight
from palimpsest.network.tokens import encode, encode_target, pad
from palimpsest.types import EditRequest


class KnowledgeNeuronsState(State):
    """State of KN; it keeps nothing of earlier edits."""


@dataclass(frozen=True, config={"extra": "forbid"})
class KnowledgeNeurons(WeightEditor):
    """Knowledge neurons; the fields are its settings.

    Attributes:
        layers: layers whose neurons are searched, ascending; all of a model as published. An edit holds a
            matrix for each, zero where no neuron was found.
        steps: m, points of the integral.
        adaptive_threshold: t, share of a prompt's largest attribution above which a neuron is kept.
        sharing: p, a neuron is kept if more than this share of the prompts keep it.
        old_weight: λ₁.
        new_weight: λ₂.
        batch: rows of one token that are read together: points of the integral times layers.
        contexts: settings of the prefixes, each of which gives a prompt; none in EasyEdit.
    """

    keeps = KnowledgeNeuronsState
    printed = "KN"

    layers: Layers
    steps: int = Field(default=20, ge=1)
    adaptive_threshold: float = Field(default=0.2, ge=0, lt=1)
    sharing: float = Field(default=0.4, ge=0, lt=1)
    old_weight: float = Field(default=2.0, ge=0)
    new_weight: float = Field(default=2.0, ge=0)
    batch: int = Field(default=100, ge=1)
    contexts: ContextSettings = ContextSettings(count=0)

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], state: State | Prepared | None = None
    ) -> tuple[WeightDelta, KnowledgeNeuronsState]:
        """Give the neurons of all requests another value; see `palimpsest.edit`.

        Raises:
            ModelError: if word embeddings are not as wide as values.
            NonFiniteError: if an attribution is NaN or infinite; no weight is changed.
        """
        own: KnowledgeNeuronsState = self.own(state)
        at = self.prepare(model, own.prepared)
        words = _word_embeddings(model, self.layers[0])
        deltas = {layer: torch.zeros_like(read_weight(model, layer)).double() for layer in self.layers}
        found: list[list[tuple[int, int]]] = []
        for request in tqdm(requests, desc="attributing", unit="fact", leave=False):
            new = encode_target(model.tokenizer, request.target, request.text)
            old = answer_of(model, encode(model.tokenizer, request.text), len(new))
            step = self.new_weight * words[new].double().sum(0) - self.old_weight * words[old].double().sum(0)
            found.append(self.neurons(model, request, old, at.contexts))
            for layer, neuron in found[-1]:
                deltas[layer][:, neuron] += step
        notes = {
            "contexts": list(at.contexts),
            "facts": len(requests),
            "neurons": [[list(neuron) for neuron in kept] for kept in found],
            "step_norm": step_norms(deltas),
        }
        return WeightDelta(deltas, fingerprint(model), notes), replace(own, prepared=at)

    def prepare(self, model: EditableModel, prepared: Prepared | None = None) -> Prepared:
        """Sample the prefixes; no other quantity is needed."""
        return start(model, prepared, self.contexts, (), 0)

    def neurons(
        self, model: EditableModel, request: EditRequest, old: Sequence[int], contexts: Sequence[str]
    ) -> list[tuple[int, int]]:
        """Neurons that say the old object, as (layer, column of W), ascending.

        Args:
            model: the model as it is now.
            request: the fact.
            old: tokens of the old object.
            contexts: prefixes, each of which gives a prompt.

        Raises:
            NonFiniteError: if an attribution is NaN or infinite.
        """
        counts: Counter[tuple[int, int]] = Counter()
        for context in contexts:
            prompt = encode(model.tokenizer, context + request.text)
            found = attributions(model, prompt, old, self.layers, self.steps, self.batch)
            if not torch.isfinite(found).all():
                raise NonFiniteError(
                    f"an attribution of {request.text!r} is NaN or infinite; look at the model's weights. No "
                    "weight was changed"
                )
            kept = (found > self.adaptive_threshold * found.max().clamp(min=0)).nonzero()
            counts.update((self.layers[row], neuron) for row, neuron in kept.tolist())
        return sorted(one for one, count in counts.items() if count > self.sharing * len(contexts))


def attributions(
    model: EditableModel,
    prompt: Sequence[int],
    answer: Sequence[int],
    layers: Sequence[int],
    steps: int,
    batch: int = 100,
) -> Float[Tensor, "layers d_k"]:
    """Attribution of an answer to every neuron at the last token before each of its tokens, their mean.

    Everything before that token is read once: its states do not depend on the neurons, which change at the
    last token only.

    Args:
        model: the model as it is now.
        prompt: token ids.
        answer: token ids that follow; the probability of each after those before it is attributed.
        layers: ascending.
        steps: m, points of the integral.
        batch: rows that are read together at most; at least the points of one layer.

    Returns:
        (layers, d_k), in the dtype of the model, or float32 if that is narrower. As ``steps`` grows, the
        sum of a row goes to the mean probability of the answer's tokens, less that with the layer's neurons
        at zero (completeness); without a norm behind the map the error is of the order of 1/m.
    """
    each, parts = max(1, batch // steps), []
    for first in range(0, len(layers), each):
        some = layers[first : first + each]
        rows = [
            _of_token(model, [*prompt, *answer[:j]], token, some, steps) for j, token in enumerate(answer)
        ]
        parts.append(torch.stack(rows).mean(0))
    return torch.cat(parts)


def answer_of(model: EditableModel, prompt: Sequence[int], tokens: int) -> list[int]:
    """What the model answers: so many tokens, each the most probable after those before it."""
    found: list[int] = []
    with torch.no_grad():
        for _ in range(tokens):
            row = pad(model.tokenizer, [[*prompt, *found]]).to(model.device)
            states = run_body(model, row, use_cache=False).last_hidden_state  # (1, t, d_v)
            found.append(int(logits_of(model, states[:, -1])[0].argmax()))
    return found


def _of_token(
    model: EditableModel, ids: Sequence[int], token: int, layers: Sequence[int], steps: int
) -> Float[Tensor, "layers d_k"]:
    """Attribution of one token after some ids, all layers and points as rows of one pass."""
    sites = [Site(layer) for layer in layers]
    read = capture(model, pad(model.tokenizer, [ids]).to(model.device), sites)
    whole = torch.stack([read[site][0, -1] for site in sites])  # (layers, d_k)
    share = torch.arange(1, steps + 1, device=model.device).to(whole) / steps
    scaled = (share[:, None] * whole[:, None]).requires_grad_()  # (layers, m, d_k)
    rows = pad(model.tokenizer, [ids[-1:]] * (len(layers) * steps)).to(model.device)
    before = ids[:-1]
    past = read_once(model, before, len(rows.ids)) if before else None
    with _replaced(model, dict(zip(layers, scaled, strict=True))):
        body = run_body(model, rows, len(before), past_key_values=past, use_cache=past is not None)
    logits = logits_of(model, body.last_hidden_state[:, 0])  # (layers·m, vocabulary)
    p = logits.to(torch.promote_types(logits.dtype, torch.float32)).softmax(1)[:, token]
    (slope,) = torch.autograd.grad(p.sum(), scaled)
    return (whole * slope.mean(1)).to(p)


@contextmanager
def _replaced(model: EditableModel, neurons: Mapping[int, Float[Tensor, "m d_k"]]) -> Iterator[None]:
    """Inside the block the edited map of each layer gets its m neurons in m rows of the batch.

    The first m rows are those of the first layer, the next m of the second, ...; all have one token.
    """

    def putting(first: int, mine: Tensor) -> Any:
        def put(_: Any, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            rows = inputs[0].reshape(-1, mine.shape[1])  # (rows, d_k), also where a row is (1, d_k)
            changed = torch.cat([rows[:first], mine.to(rows), rows[first + len(mine) :]])
            return (changed.reshape(inputs[0].shape), *inputs[1:])

        return put

    with ExitStack() as stack:
        for index, (layer, mine) in enumerate(neurons.items()):
            handle = model.projection(layer).register_forward_pre_hook(putting(index * len(mine), mine))
            stack.callback(handle.remove)
        yield


def _word_embeddings(model: EditableModel, layer: int) -> Float[Tensor, "vocabulary d_v"]:
    """Word embeddings of the model.

    Raises:
        ModelError: if they are not as wide as the values of a layer.
    """
    words: Tensor = model.net.get_input_embeddings().weight
    wide = read_weight(model, layer).shape[0]
    if words.shape[1] != wide:
        raise ModelError(
            f"word embeddings of {model.name} are {words.shape[1]} wide and its values {wide}, so that KN "
            "cannot add one to the other; use another editor"
        )
    return words
