"""What a model says after a prompt: its first answer, and the probability and rank of an object.

The rank of an object is the largest rank that any of its tokens has among all tokens at its position, given
the prompt and the object's tokens before it. So rank 1 means that greedy decoding gives the object.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Float, Int
from torch import Tensor

from palimpsest.errors import NonFiniteError, ScoreError
from palimpsest.evaluation.answers import Pair
from palimpsest.network.activations import run_behind
from palimpsest.network.head import logits_of
from palimpsest.network.model import EditableModel
from palimpsest.network.packed import pack
from palimpsest.network.sampling import sample
from palimpsest.network.tokens import encode_target

TOKENS = 8
"""Tokens of a first answer, at most."""

ROWS_PER_PASS = 64
"""Prompts with their objects that are read together."""


@dataclass(frozen=True)
class Said:
    """What a model says after one prompt.

    Attributes:
        answer: greedy continuation of at most ``TOKENS`` tokens, white space as single spaces.
        probability: of the whole object after the prompt, the product over its tokens, in [0, 1].
        rank: of the object, from 1; see the module.
    """

    answer: str
    probability: float
    rank: int


def say(model: EditableModel, pairs: Sequence[Pair], tokens: int = TOKENS) -> list[Said]:
    """Ask a model as it is now about objects after prompts.

    Args:
        model: the model, edited or not.
        pairs: (prompt, object) of each question.
        tokens: of a first answer, at most.

    Returns:
        One answer per pair, in their order.

    Raises:
        ScoreError: if a prompt gives no token, or prompt and answer exceed the model's context.
        RequestError: if an object gives no token.
        NonFiniteError: if the model gives NaN or infinity.
    """
    texts = first_answers(model, [prompt for prompt, _ in pairs], tokens)
    scores: list[tuple[float, int]] = []
    for start in range(0, len(pairs), ROWS_PER_PASS):
        scores += _scores(model, pairs[start : start + ROWS_PER_PASS])
    return [Said(text, *score) for text, score in zip(texts, scores, strict=True)]


def first_answers(model: EditableModel, prompts: Sequence[str], tokens: int = TOKENS) -> list[str]:
    """Greedy continuation of each prompt, without the prompt, white space as single spaces.

    Raises:
        ScoreError, NonFiniteError: as `palimpsest.network.sampling.sample`.
    """
    return [" ".join(text.split()) for text in sample(model, prompts, tokens, top_k=1)]


def _scores(model: EditableModel, pairs: Sequence[Pair]) -> list[tuple[float, int]]:
    """Probability and rank of each pair's object."""
    prompts = [model.encode(prompt) for prompt, _ in pairs]
    for (text, _), ids in zip(pairs, prompts, strict=True):
        if not ids:
            raise ScoreError(f"prompt {text!r} gives no token, so nothing follows it; give it a text")
    targets = [encode_target(model.tokenizer, target, prompt) for prompt, target in pairs]
    packed = pack([ids + own[:-1] for ids, own in zip(prompts, targets, strict=True)]).to(model.device)
    at = [
        packed.place[row, len(ids) - 1 : len(ids) - 1 + len(own)]
        for row, (ids, own) in enumerate(zip(prompts, targets, strict=True))
    ]
    with torch.no_grad():
        hidden = run_behind(model, [], packed).flatten(0, 1)  # (b·t, d_v)
        logits = logits_of(model, hidden[torch.cat(at)]).float()  # (q, v)
    wanted = torch.tensor([token for own in targets for token in own], device=logits.device)  # (q,)
    log_p, rank = _of_tokens(logits, wanted)
    if not torch.isfinite(log_p).all():
        raise NonFiniteError(
            f"{model.name} gives NaN or infinity: undo the last edit, weaken it, or load a wider dtype"
        )
    ends = [0, *torch.tensor([len(own) for own in targets]).cumsum(0).tolist()]
    return [(float(log_p[a:b].sum().exp()), int(rank[a:b].max())) for a, b in pairwise(ends)]


def _of_tokens(
    logits: Float[Tensor, "q v"], wanted: Int[Tensor, " q"]
) -> tuple[Float[Tensor, " q"], Int[Tensor, " q"]]:
    """Log-probability and rank, from 1, of one token in each row."""
    own = logits.gather(1, wanted[:, None])  # (q, 1)
    return (own[:, 0] - logits.logsumexp(1)).double().cpu(), 1 + (logits > own).sum(1).cpu()
