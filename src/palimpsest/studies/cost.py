"""Costs of an edit by count: multiply-adds of each stage and memory, from the shapes of a model's weights.

Counted are matrix products in a decoder layer with grouped key/value heads and a gated or a plain MLP:

    linear maps   one multiply-add per weight and position
    attention     2·h·d_head per pair of a position and one that it attends to
    head          vocabulary · d_v per position whose logits are needed

A backward pass with frozen weights costs as much again. Norms, activations and softmax are not counted.
Memory is that of the tensors held, in bytes; what a library allocates around them is not counted.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import reduce
from operator import add

import torch

from palimpsest.algebra.primal import PENDING
from palimpsest.memory.optimisation import ACTIVATIONS, FEWEST_POSITIONS
from palimpsest.memory.upper_layers import sequences
from palimpsest.network.model import EditableModel
from palimpsest.network.tokens import encode_target
from palimpsest.types import EditRequest, EvalCase

FLOAT64 = 8
"""Bytes of a number in second moments, projectors and ledgers."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a model, as its ``config.json`` gives them.

    Attributes:
        name: printed name.
        layers: decoder layers.
        d_v, d_k: width of the hidden state and of the MLP's inner state, of the keys.
        heads, groups, d_head: attention heads, key/value heads, and width of one.
        vocabulary: rows of the output head.
        maps: weight matrices d_v × d_k of an MLP: 3 if it is gated, else 2.
        tied: whether the head shares the embedding's weights.
        positions: learned positions, 0 for rotary ones.
    """

    name: str
    layers: int
    d_v: int
    d_k: int
    heads: int
    groups: int
    d_head: int
    vocabulary: int
    maps: int
    tied: bool
    positions: int = 0

    @property
    def layer(self) -> int:
        """Weights of a decoder layer: multiply-adds of its linear maps per position."""
        attention = self.d_v * self.d_head * (2 * self.heads + 2 * self.groups)
        return attention + self.maps * self.d_v * self.d_k

    @property
    def pair(self) -> int:
        """Multiply-adds of a layer's attention for a pair of positions: scores, and sums of values."""
        return 2 * self.heads * self.d_head

    @property
    def head(self) -> int:
        """Multiply-adds of the output head per position."""
        return self.vocabulary * self.d_v

    @property
    def weights(self) -> int:
        """All weights but biases and norms, which are less than a thousandth of them."""
        embeddings = (1 if self.tied else 2) * self.head + self.positions * self.d_v
        return self.layers * self.layer + embeddings


SHAPES: dict[str, Shape] = {
    "smollm2-135m": Shape("SmolLM2-135M", 30, 576, 1536, 9, 3, 64, 49_152, 3, tied=True),
    "gpt2-xl": Shape("GPT2-XL", 48, 1600, 6400, 25, 25, 64, 50_257, 2, tied=True, positions=1024),
    "gpt-j-6b": Shape("GPT-J-6B", 28, 4096, 16_384, 16, 16, 256, 50_400, 2, tied=False),
    "qwen2.5-7b": Shape("Qwen2.5-7B", 28, 3584, 18_944, 28, 4, 128, 152_064, 3, tied=False),
    "llama3-8b": Shape("LLaMA3-8B", 32, 4096, 14_336, 32, 8, 128, 128_256, 3, tied=False),
}
"""Short name, as in ``config/models`` -> shape. Source: ``config.json`` of each model on the Hugging Face
hub: HuggingFaceTB/SmolLM2-135M-Instruct, openai-community/gpt2-xl, EleutherAI/gpt-j-6b, Qwen/Qwen2.5-7B,
meta-llama/Meta-Llama-3-8B."""


@dataclass(frozen=True)
class Positions:
    """Token positions that are run, and the pairs of positions that their attention needs.

    Attributes:
        run: positions.
        pairs: Σ over these of the positions attended to, their own included.
        heads: places whose logits are needed.
    """

    run: int = 0
    pairs: int = 0
    heads: int = 0

    def __add__(self, other: "Positions") -> "Positions":
        return Positions(self.run + other.run, self.pairs + other.pairs, self.heads + other.heads)

    def forward(self, shape: Shape, layers: int) -> int:
        """Multiply-adds of some layers, and of the head."""
        return layers * (shape.layer * self.run + shape.pair * self.pairs) + shape.head * self.heads


def behind(start: int, end: int, heads: int = 0) -> Positions:
    """Positions ``start`` to ``end − 1`` of one row, which attend to all before them."""
    return Positions(end - start, (end * (end + 1) - start * (start + 1)) // 2, heads)


@dataclass(frozen=True)
class Asked:
    """Positions of a batch, by what is done with them. Rows with equal beginnings are counted each.

    Attributes:
        facts: number of requests.
        whole: all positions of the rows that values are optimised on.
        fixed: those before the subject's last token, which no value changes.
        moving: those from the subject's last token on, with the places whose logits the loss needs.
        own_pairs: pairs of moving positions in which both move.
        subjects: positions up to the subject's last token in each context, where keys are read.
    """

    facts: int
    whole: Positions
    fixed: Positions
    moving: Positions
    own_pairs: int
    subjects: Positions


def asked(model: EditableModel, requests: Sequence[EditRequest], contexts: Sequence[str]) -> Asked:
    """Positions of some requests under a model's tokenizer.

    Args:
        model: whose tokenizer encodes them.
        requests: one or more.
        contexts: prefixes, the empty one first.

    Raises:
        RequestError: if a subject or a target gives no token.
    """
    rows = [sequences(model, request, contexts) for request in requests]
    spans = [(end, len(row)) for one in rows for end, row in zip(one.ends, one.rows, strict=True)]
    # The last row of a request is that of the KL term, in which no key is read.
    keyed = [end for one in rows for end in one.ends[:-1]]
    heads = sum(len(one.labels) + 1 for one in rows)
    return Asked(
        facts=len(requests),
        whole=_sum(behind(0, length) for _, length in spans),
        fixed=_sum(behind(0, end) for end, _ in spans),
        moving=_sum(behind(end, length) for end, length in spans) + Positions(heads=heads),
        own_pairs=sum(behind(0, length - end).pairs for end, length in spans),
        subjects=_sum(behind(0, end + 1) for end in keyed),
    )


def scored(model: EditableModel, cases: Sequence[EvalCase]) -> Positions:
    """Positions of the evaluation of some cases: each prompt once, with both of its targets behind it."""
    found = []
    for case in cases:
        new, true = case.request.target, case.target_true
        prompts = [(text, (new, true)) for text in (case.request.text, *case.paraphrases)]
        prompts += [(probe.prompt, (probe.target, new)) for probe in case.neighbours]
        for text, targets in prompts:
            start = len(model.encode(text))
            found.append(behind(0, start, heads=1))
            for target in targets:
                more = len(encode_target(model.tokenizer, target, text)) - 1
                found.append(behind(start, start + more, heads=more))
    return _sum(found)


def values_work(shape: Shape, at: Asked, layer: int, steps: int) -> int:
    """Multiply-adds of the optimisation of values at a layer, all steps, without early stop.

    Once all layers up to the edited one, and those above on positions that no value changes; then ``steps``
    forward and ``steps − 1`` backward passes of the layers above.
    """
    above = shape.layers - 1 - layer
    once = at.whole.forward(shape, layer + 1) + at.fixed.forward(shape, above)
    ahead = at.moving.forward(shape, above)
    back = ahead + above * shape.pair * at.own_pairs
    return once + steps * ahead + (steps - 1) * back


def keys_work(shape: Shape, at: Asked, layer: int) -> int:
    """Multiply-adds of reading keys in every context, up to the highest edited layer."""
    return at.subjects.forward(shape, layer + 1)


def evaluation_work(shape: Shape, at: Positions) -> int:
    """Multiply-adds of a forward pass of the whole model."""
    return at.forward(shape, shape.layers)


def step_work(shape: Shape, held: int, facts: int) -> int:
    """Multiply-adds, in leading order, of a ledger's step at one layer.

    Args:
        shape: of the model.
        held: N, facts in the ledger.
        facts: n, facts that enter.

    Source: the docstrings of `palimpsest.algebra.dual` and `palimpsest.algebra.primal`.
    """
    d_v, d_k = shape.d_v, shape.d_k
    if held + facts <= d_k:
        return facts * (2 * held * (d_k + d_v) + 3 * held * held // 2 + d_v * d_k)
    return facts * (3 * d_k * d_k + 2 * d_v * d_k)


def released_work(shape: Shape, facts: int, *, projected: bool) -> int:
    """Multiply-adds of the released dense solution of a batch at one layer: d_k × d_k, by elimination.

    Args:
        shape: of the model.
        facts: n, facts of the batch.
        projected: AlphaEdit, P (K Kᵀ + past) + λI with all d_v right sides; else MEMIT, λ₀C₀ + K Kᵀ with n.

    Source: ``torch.linalg.solve`` in the released code of AlphaEdit (Eq. 14) and MEMIT (Eq. 14).
    """
    d_v, d_k = shape.d_v, shape.d_k
    both = d_k**3 // 3 + d_k * d_k * facts + d_v * d_k * facts  # elimination, K Kᵀ, and R times keys
    if not projected:
        return both + d_k * d_k * facts
    return both + d_k**3 + d_k * d_k * facts + d_k * d_k * d_v  # P times K Kᵀ, P K, and d_v right sides


def ledger_bytes(shape: Shape, held: int, weight: torch.dtype = torch.float32) -> int:
    """Memory of AlphaEdit's ledger of one weight between steps, in bytes, with the copy of W₀.

    Up to d_k facts are held in memory; with more, the ledger holds the weight and a d_k × d_k factor, and the
    facts stand in a file. A preserved second moment needs its matrix and its factor besides.

    Args:
        shape: of the model.
        held: N, facts in the ledger.
        weight: dtype of W₀.
    """
    d_v, d_k = shape.d_v, shape.d_k
    numbers = held * (2 * d_k + 3 * d_v + held + 1)
    if held > d_k:
        numbers = d_k * d_k + d_v * d_k + 2 * PENDING * d_k
    return FLOAT64 * numbers + d_v * d_k * weight.itemsize


def activation_bytes(shape: Shape, layer: int, dtype: torch.dtype = torch.float32) -> int:
    """Memory that a chunk of the value optimisation keeps for its gradient, at most, in bytes.

    A chunk is cut so that it fits into ACTIVATIONS, but holds FEWEST_POSITIONS at least.
    """
    above = max(shape.layers - 1 - layer, 1)
    each = (20 * shape.d_v + 6 * shape.d_k) * dtype.itemsize * above
    return each * max(ACTIVATIONS // each, FEWEST_POSITIONS)


def memory_plan(
    shape: Shape, layers: Sequence[int], held: Sequence[int], dtype: torch.dtype
) -> dict[str, int]:
    """What an edit holds in memory, by part, in bytes.

    Args:
        shape: of the model.
        layers: edited layers.
        held: numbers of facts, for one ledger each.
        dtype: of the model.

    Returns:
        ``weights``; ``moments``, of all edited layers; ``projectors``, at most: the smaller of a basis and
        its complement; ``ledger N`` for each number of facts; ``activations`` of a chunk at the last layer.
    """
    square = shape.d_k * shape.d_k * FLOAT64 * len(layers)
    ledgers = {f"ledger {n}": len(layers) * ledger_bytes(shape, n, dtype) for n in held}
    return {
        "weights": shape.weights * dtype.itemsize,
        "moments": square,
        "projectors": square // 2,
        **ledgers,
        "activations": activation_bytes(shape, layers[-1], dtype),
    }


def _sum(parts: Iterable[Positions]) -> Positions:
    return reduce(add, parts, Positions())
