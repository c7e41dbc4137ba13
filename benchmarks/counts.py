"""Multiply-adds that a stage needs, whatever code carries them out: the limit that times are compared with.

Counted are matrix products on real tokens, in a decoder layer with grouped key/value heads and a gated MLP
(Llama, Qwen2) or a plain one (GPT-2, GPT-J):

    linear maps   one multiply-add per weight and position
    attention     2·h·d_head per position and attended position, at or before it: scores, and sums of values
    head          vocabulary · d_v per position whose logits a loss or score needs

A backward pass with frozen weights costs as much again for each linear map (gradient of its input), and for
attention 2·h·d_head per pair for queries and attention weights, and as much for keys and values of those
positions that depend on δ. Norms, activations and softmax are not counted, nor is the embedding, a look-up.

Equal token prefixes are counted once: causal attention gives every row that begins with the same tokens the
same states there. So the counts are lower bounds, and the share of the limit of real code is below 1.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from torch import nn

from palimpsest.network.model import EditableModel, read_weight
from palimpsest.network.tokens import encode_around_subject, encode_target
from palimpsest.types import EditRequest, EvalCase

KL_PROMPT = "{} is a"


@dataclass(frozen=True)
class Costs:
    """Multiply-adds of the parts of a model.

    Attributes:
        layer: linear maps of a decoder layer, per position.
        pair: attention of a layer, forward, per pair of a position and one that it attends to.
        head: output head, per position.
        down: the edited map (the last of a layer), per position.
    """

    layer: int
    pair: int
    head: int
    down: int


def costs(model: EditableModel) -> Costs:
    """Costs of a model, from the shapes of its weight matrices."""
    matrices = [weight for weight in model.layer(0).parameters() if weight.ndim == 2]
    config = model.net.config
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    head = model.net.get_submodule(model.family.head)
    assert isinstance(head, nn.Linear)
    return Costs(
        layer=sum(weight.numel() for weight in matrices),
        pair=2 * config.num_attention_heads * width,
        head=head.weight.numel(),
        down=next(model.projection(0).parameters()).numel(),
    )


@dataclass(frozen=True)
class Positions:
    """Positions that are run, and the pairs of positions that their attention needs.

    Attributes:
        run: number of positions.
        pairs: Σ over these of the positions attended to, their own included.
    """

    run: int
    pairs: int

    def __add__(self, other: "Positions") -> "Positions":
        return Positions(self.run + other.run, self.pairs + other.pairs)


def distinct(rows: Iterable[Sequence[int]]) -> Positions:
    """Positions of all rows, equal token prefixes counted once."""
    prefixes = {tuple(row[: end + 1]) for row in rows for end in range(len(row))}
    return Positions(len(prefixes), sum(map(len, prefixes)))


def behind(start: int, end: int) -> Positions:
    """Positions ``start`` to ``end − 1`` of one row, which attend to all before them."""
    return Positions(end - start, sum(range(start + 1, end + 1)))


def forward(costs: Costs, layers: int, at: Positions) -> int:
    """Forward pass of some layers."""
    return layers * (costs.layer * at.run + costs.pair * at.pairs)


def backward(costs: Costs, layers: int, at: Positions, own_pairs: int) -> int:
    """Gradient with respect to activations through some layers.

    Args:
        costs: of the model.
        layers: their number.
        at: positions that depend on δ, and all pairs of their attention.
        own_pairs: those of the pairs in which both positions depend on δ.
    """
    return layers * (costs.layer * at.run + costs.pair * (at.pairs + own_pairs))


def of_values(
    model: EditableModel, requests: Sequence[EditRequest], contexts: Sequence[str], layer: int, steps: int
) -> int:
    """Optimisation of values for a fixed number of steps, without early stop.

    Once, without a gradient: all layers up to the edited one on every distinct token prefix, and the layers
    above on those before the subject's last token. Then ``steps`` forward and ``steps − 1`` backward passes
    of the layers above, from the subject's last token to the target's last but one, in every context, and on
    one position of the KL prompt; the head only where a target token, or the distribution of the KL term, is
    predicted.
    """
    cost, above = costs(model), model.n_layers - 1 - layer
    whole: list[list[int]] = []
    fixed: list[list[int]] = []
    moved, own, heads = Positions(0, 0), 0, 0
    for request in requests:
        target = encode_target(model.tokenizer, request.target)
        prompts = [(request.prompt, context, target) for context in contexts] + [(KL_PROMPT, "", [])]
        for prompt, context, wanted in prompts:
            ids, end = encode_around_subject(model.tokenizer, prompt, request.subject, context)
            row = ids + wanted[:-1] if wanted else ids[: end + 1]
            whole.append(row)
            fixed.append(row[:end])
            moved += behind(end, len(row))
            own += behind(0, len(row) - end).pairs
            heads += len(wanted) or 1
    once = forward(cost, layer + 1, distinct(whole)) + forward(cost, above, distinct(fixed))
    ahead = forward(cost, above, moved) + cost.head * heads
    back = backward(cost, above, moved, own) + cost.head * heads
    return once + steps * ahead + (steps - 1) * back


def of_moments(model: EditableModel, layers: Sequence[int], windows: Sequence[Sequence[int]]) -> int:
    """Forward pass to the keys of the highest layer, and one half of the symmetric K Kᵀ for every layer."""
    cost, d_k = costs(model), read_weight(model, layers[0]).shape[1]
    at = Positions(0, 0)
    for window in windows:
        at += behind(0, len(window))
    passes = forward(cost, max(layers) + 1, at) - cost.down * at.run
    return passes + len(layers) * at.run * d_k * (d_k + 1) // 2


def of_evaluation(model: EditableModel, cases: Sequence[EvalCase]) -> int:
    """All layers on every distinct token prefix of prompts and targets; the head once for each place.

    A place is a token prefix after which a target token is scored; the last token of a target is never run.
    """
    cost = costs(model)
    prompts = {(prompt, target) for case in cases for prompt, target in questions(case)}
    rows, places = set(), set()
    for prompt, target in prompts:
        ids, wanted = model.encode(prompt), encode_target(model.tokenizer, target)
        rows.add((*ids, *wanted[:-1]))
        places |= {(*ids, *wanted[:at]) for at in range(len(wanted))}
    return forward(cost, model.n_layers, distinct(rows)) + cost.head * len(places)


def questions(case: EvalCase) -> list[tuple[str, str]]:
    """Every prompt of a case with both of its targets."""
    new, true = case.request.target, case.target_true
    own = [(prompt, target) for prompt in (case.request.text, *case.paraphrases) for target in (new, true)]
    return own + [(probe.prompt, target) for probe in case.neighbours for target in (probe.target, new)]
