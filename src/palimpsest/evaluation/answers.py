"""Teacher-forced scoring of (prompt, target) pairs: the negative log-likelihood of every target token.

Prompts and targets are joined as token ids, and equal beginnings are read once: the last token of a target is
never an input, so targets of one token share their prompt's row, and prompts of one template share its start.
Inputs are packed into lines in the order of their ids (`palimpsest.network.packed`), batches of them run side
by side, and the output head is applied only at positions from which a target token is predicted.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from palimpsest import cache
from palimpsest.errors import NonFiniteError, ScoreError
from palimpsest.evaluation.metrics import mean_nll
from palimpsest.network.activations import context_of, run_behind
from palimpsest.network.cores import side_by_side
from palimpsest.network.head import logits_of
from palimpsest.network.model import EditableModel, fingerprint
from palimpsest.network.packed import pack
from palimpsest.network.tokens import encode_target, pad

REVISION = 1
"""Part of the cache key; raise it when the same questions give other answers than before."""

Pair = tuple[str, str]
"""(prompt, target), the target without its leading space."""


@dataclass(frozen=True)
class Answers:
    """Teacher-forced scores of n pairs.

    Attributes:
        token_nll: -log p of each target token (n, t) in nats, computed in float32, stored as float64; 0 where
            ``mask`` is False.
        hits: whether the target token has the highest logit (n, t), bool.
        mask: True at tokens of the target (n, t), False at padding.
    """

    token_nll: Float[Tensor, "n t"]
    hits: Bool[Tensor, "n t"]
    mask: Bool[Tensor, "n t"]

    @property
    def nll(self) -> Float[Tensor, " n"]:
        """Mean NLL per target token (n,)."""
        return mean_nll(self.token_nll, self.mask)


@dataclass(frozen=True)
class _Plan:
    """Distinct inputs, in the order of their ids, and where each target token is predicted."""

    inputs: list[tuple[int, ...]]
    row: Int[Tensor, "n t"]  # index into inputs
    position: Int[Tensor, "n t"]
    token: Int[Tensor, "n t"]
    mask: Bool[Tensor, "n t"]


def target_nll(model: EditableModel, pairs: Sequence[Pair], batch_size: int = 64) -> Float[Tensor, " n"]:
    """Mean NLL per token (n,), float64, in nats, of each target after its prompt.

    Raises:
        As `ask`.
    """
    return ask(model, pairs, batch_size).nll


def ask(model: EditableModel, pairs: Sequence[Pair], batch_size: int = 64) -> Answers:
    """Score targets after prompts with a model; all metrics are computed from this.

    Answers of a model as it was loaded are read from disk if they were computed before: every editor and page
    asks the unedited model the same.

    Args:
        model: the model, edited or not.
        pairs: (prompt, target), any number; pairs may repeat.
        batch_size: sequences per forward pass.

    Returns:
        Answers on the CPU, in the order of the pairs.

    Raises:
        ScoreError: if a prompt gives no token, prompt and target exceed the model's context, or the batch
            size is less than 1.
        RequestError: if a target gives no token.
        NonFiniteError: if the model gives NaN or infinity.
        ResourceError: if a stored file is damaged or cannot be written.
    """
    if batch_size < 1:
        raise ScoreError(f"batch_size is {batch_size}; it must be 1 or more")
    if not pairs:
        nothing = torch.zeros(0, 0, dtype=torch.bool)
        return Answers(nothing.double(), nothing, nothing)
    if not model.loaded or model.loaded != fingerprint(model):
        return _computed(model, pairs, batch_size)
    key = {"revision": REVISION, "model": model.loaded, "pairs": [list(pair) for pair in pairs]}
    return Answers(**cache.tensors("answers", key, lambda: vars(_computed(model, pairs, batch_size))))


def _computed(model: EditableModel, pairs: Sequence[Pair], batch_size: int) -> Answers:
    plan = _plan(model, pairs)
    token_nll, hits = torch.zeros(plan.mask.shape, dtype=torch.float64), torch.zeros_like(plan.mask)
    starts = range(0, len(plan.inputs), batch_size)
    with tqdm(total=len(starts), desc="scoring", unit="batch", leave=False) as bar:

        def run(first: int) -> None:
            inputs = plan.inputs[first : first + batch_size]
            here = plan.mask & (plan.row >= first) & (plan.row < first + len(inputs))
            token_nll[here], hits[here] = _forward(
                model, inputs, plan.row[here] - first, plan.position[here], plan.token[here]
            )
            bar.update()

        side_by_side(run, starts, model.device)
    _require_finite(token_nll, pairs, model.name)
    return Answers(token_nll, hits, plan.mask)


def _plan(model: EditableModel, pairs: Sequence[Pair]) -> _Plan:
    tokenizer = model.tokenizer
    prompts = {prompt: _prompt_ids(model, prompt) for prompt in {prompt for prompt, _ in pairs}}
    targets = {pair: encode_target(tokenizer, pair[1], pair[0]) for pair in set(pairs)}
    joined = [(*prompts[pair[0]], *targets[pair][:-1]) for pair in pairs]
    inputs = sorted(set(joined))
    place = {ids: row for row, ids in enumerate(inputs)}
    for (prompt, _), ids in zip(pairs, joined, strict=True):
        model.require_room(prompt, len(ids))
    tokens = pad(tokenizer, [targets[pair] for pair in pairs])
    row = torch.tensor([place[ids] for ids in joined])[:, None].expand_as(tokens.ids)
    last = torch.tensor([len(prompts[prompt]) - 1 for prompt, _ in pairs])
    position = last[:, None] + torch.arange(tokens.ids.shape[1])
    return _Plan(inputs, row, position, tokens.ids, tokens.mask)


def _prompt_ids(model: EditableModel, prompt: str) -> list[int]:
    ids = model.encode(prompt)
    if not ids:
        raise ScoreError(f"prompt {prompt!r} gives no token, so nothing predicts its target; give it a text")
    return ids


def _forward(
    model: EditableModel,
    inputs: Sequence[Sequence[int]],
    rows: Int[Tensor, " q"],
    positions: Int[Tensor, " q"],
    tokens: Int[Tensor, " q"],
) -> tuple[Float[Tensor, " q"], Bool[Tensor, " q"]]:
    """NLL and hits of q tokens, each predicted at a row and position of the inputs, which run packed."""
    # Rows that share their prompt share tokens of targets too; what predicts these lies behind the prefix.
    prefix = context_of(model, inputs)[: int(positions.min())]
    packed = pack([ids[len(prefix) :] for ids in inputs]).to(model.device)
    rows, positions, tokens = (i.to(model.device) for i in (rows, positions - len(prefix), tokens))
    with torch.no_grad():
        hidden = run_behind(model, prefix, packed).flatten(0, 1)  # (b·t, d_v)
        logits = logits_of(model, hidden[packed.place[rows, positions]]).float()
    nll = logits.logsumexp(1) - logits.gather(1, tokens[:, None])[:, 0]
    return nll.double().cpu(), (logits.argmax(1) == tokens).cpu()


def _require_finite(token_nll: Float[Tensor, "n t"], pairs: Sequence[Pair], name: str) -> None:
    bad = (~torch.isfinite(token_nll)).any(1).nonzero()[:, 0].tolist()
    if bad:
        raise NonFiniteError(
            f"{name} gives NaN or infinity at {len(bad)} of {len(pairs)} targets, first {pairs[bad[0]]}: "
            "its activations overflow: undo the last edit, weaken it, or load the model in a wider dtype"
        )
