"""Forward passes through only the layers and positions that a moved hidden state can change.

Used by `palimpsest.memory.values`, where a vector δ is added to one layer's output at the subject's last
token. Activations up to that layer do not change, and neither do the keys and values that attention reads
above it at earlier positions. Both are computed once; each pass then runs the upper layers on the few
positions from the subject's last token on, and the head only where a loss needs it.

Axes besides those of `palimpsest.types`: rows are sequences of the chunk, t their positions, q = t − column
the positions from the subject's last token on, h key/value heads, and a the requests still active.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from palimpsest.network.activations import first_tensor, run_body, watched
from palimpsest.network.model import EditableModel, Site
from palimpsest.network.tokens import Batch, encode_around_subject, encode_target
from palimpsest.types import EditRequest

KL_PROMPT = "{} is a"

IDLE_POSITIONS = 16
"""Most KL positions for which one pass beats two: where arithmetic takes about as long as reading weights."""


class Rows:
    """All sequences of a chunk, aligned so that every subject ends in the same column.

    Each request gives one row per context (prompt, and target without its last token) and a last one for the
    KL term (KL_PROMPT filled with the subject, cut after the subject's last token).

    Attributes:
        batch: ids and mask (rows, t), padded on both sides.
        column: column in which all subjects end.
        request: request of each row (rows,).
        kl_row: KL row of each request (n,).
        labels: target ids, flat (labels,); with `label_row`, `label_offset` (columns after `column`) and
            `label_weight` (1 / tokens / contexts) of equal length.
    """

    def __init__(
        self, model: EditableModel, requests: Sequence[EditRequest], contexts: Sequence[str]
    ) -> None:
        tokenizer = model.tokenizer
        sequences: list[tuple[list[int], int]] = []
        owner: list[int] = []
        labels: list[tuple[int, int, int, float]] = []
        kl_rows = []
        for index, request in enumerate(requests):
            target = encode_target(tokenizer, request.target)
            for context in contexts:
                ids, end = encode_around_subject(tokenizer, request.prompt, request.subject, context)
                weight = 1 / len(target) / len(contexts)
                first = len(ids) - 1 - end
                labels += [(len(sequences), first + j, t, weight) for j, t in enumerate(target)]
                sequences.append((ids + target[:-1], end))
                owner.append(index)
            ids, end = encode_around_subject(tokenizer, KL_PROMPT, request.subject)
            kl_rows.append(len(sequences))
            sequences.append((ids[: end + 1], end))
            owner.append(index)
        self.batch, self.column = _aligned(sequences)
        self.batch = self.batch.to(model.device)
        self.request, self.kl_row = _ints(owner, model), _ints(kl_rows, model)
        row, offset, ids_, weight_ = zip(*labels, strict=True)
        self.label_row, self.label_offset = _ints(row, model), _ints(offset, model)
        self.labels = _ints(ids_, model)
        self.label_weight = torch.tensor(weight_, device=model.device)


def _ints(values: Sequence[int], model: EditableModel) -> Int[Tensor, " k"]:
    return torch.tensor(values, device=model.device)


def _aligned(sequences: Sequence[tuple[list[int], int]]) -> tuple[Batch, int]:
    """Sequences as one batch in which the given index of each lies in one common column."""
    column = max(end for _, end in sequences)
    width = column + max(len(ids) - end for ids, end in sequences)
    # (rows, t) each
    ids_, mask = torch.zeros(len(sequences), width, dtype=torch.long), torch.zeros(len(sequences), width)
    for row, (ids, end) in enumerate(sequences):
        start = column - end
        ids_[row, start : start + len(ids)] = torch.tensor(ids)
        mask[row, start : start + len(ids)] = 1
    return Batch(ids_, mask.bool()), column


class _Prefix:
    """Attention keys and values before the subject's last token, passed to attention like a cache."""

    def __init__(self, states: dict[int, tuple[Tensor, Tensor]], rows: Tensor) -> None:
        # (all rows, h, column, d_head) -> (rows, h, column, d_head)
        self.states = {layer: (k[rows], v[rows]) for layer, (k, v) in states.items()}

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """The prefix's states followed by those of the new positions; nothing is stored."""
        k, v = self.states[layer]
        # (rows, h, column, d_head) and (rows, h, q, d_head) -> (rows, h, column + q, d_head)
        return torch.cat([k, keys], 2), torch.cat([v, values], 2)


class UpperLayers:
    """The network above the edited layer, on the positions that an edit can change."""

    def __init__(self, model: EditableModel, rows: Rows, layer: int, last: int, reference: str) -> None:
        self.model, self.rows, self.layers = model, rows, range(layer + 1, last + 1)
        column, batch = rows.column, rows.batch
        seen: dict[str, Tensor] = {}
        with (
            torch.no_grad(),
            watched(model, Site(layer, "hidden"), lambda x: seen.update(hidden=x)),
            watched(model, Site(layer, "value"), lambda x: seen.update(value=x)),
        ):
            past = run_body(model, batch, use_cache=True).past_key_values
        self.hidden = seen["hidden"][:, column:].detach()  # (rows, q, d_v)
        # First row of each request (n,), the one of the first context; rows are sorted by request.
        first_row = torch.searchsorted(rows.request, torch.arange(len(rows.kl_row), device=model.device))
        # δ is optimised in float32 at least: Adam's small steps are lost in half precision.
        exact = torch.promote_types(self.hidden.dtype, torch.float32)
        self.initial = seen[reference][first_row, column].detach().to(exact)  # (n, d_v)
        # layer -> attention keys and values (rows, h, column, d_head)
        self.states = {
            i: (past.layers[i].keys[:, :, :column], past.layers[i].values[:, :, :column]) for i in self.layers
        }
        self.positions = batch.positions[:, column:]  # (rows, q)
        self.bias = _causal_bias(batch, column, self.hidden.dtype)  # (rows, 1, q, t)
        self._prefixes: dict[str, tuple[Tensor, _Prefix]] = {}

    def losses(
        self, delta: Float[Tensor, "n d_v"], active: Int[Tensor, " a"]
    ) -> tuple[Float[Tensor, " a"], Float[Tensor, "a vocabulary"]]:
        """NLL of the target (mean over contexts) and log-probabilities of the KL row, per active request."""
        rows, model = self.rows, self.model
        wanted = torch.isin(rows.request, active)  # (rows,), True at the e edit rows of active requests
        wanted[rows.kl_row] = False
        # (e, q, d_v) and (a, d_v), from row indices (e,) and (a,)
        hidden, of_kl = self._passes(wanted.nonzero()[:, 0], rows.kl_row[active], delta)
        place = torch.cumsum(wanted, 0) - 1  # row -> its place among the wanted ones
        kept = wanted[rows.label_row]  # (labels,), True at the l labels of those rows
        at = (place[rows.label_row[kept]], rows.label_offset[kept])  # (l,) each
        log_p = _log_probabilities(model, torch.cat([hidden[at], of_kl]))  # (l + a, vocabulary)
        log_p, log_p_kl = log_p[: len(at[0])], log_p[len(at[0]) :]
        # (l, vocabulary) gathered at (l, 1) -> (l,)
        picked = -log_p.gather(1, rows.labels[kept, None])[:, 0] * rows.label_weight[kept]
        total = torch.zeros(len(rows.kl_row), device=model.device, dtype=picked.dtype)
        nll = total.index_add(0, rows.request[rows.label_row[kept]], picked)[active]  # (n,) -> (a,)
        return nll, log_p_kl

    def _passes(
        self, edits: Int[Tensor, " e"], kl: Int[Tensor, " a"], delta: Float[Tensor, "n d_v"]
    ) -> tuple[Float[Tensor, "e q d_v"], Float[Tensor, "a d_v"]]:
        """Hidden states of the edit rows e at all q positions, and of the KL rows at their one position.

        A pass over few positions takes as long as reading the weights. Few rows therefore go through in one
        pass, where the KL rows are as wide as the others; many go through in two, without idle positions.
        """
        width = self.hidden.shape[1]
        if len(kl) * width <= IDLE_POSITIONS:
            hidden = self._run("both", torch.cat([edits, kl]), delta, width)  # (e + a, q, d_v)
            return hidden[: len(edits)], hidden[len(edits) :, 0]
        return self._run("edits", edits, delta, width), self._run("kl", kl, delta, 1)[:, 0]

    def _run(
        self, name: str, chosen: Int[Tensor, " rows"], delta: Float[Tensor, "n d_v"], width: int
    ) -> Float[Tensor, "rows q d_v"]:
        """Upper layers on some rows with their δ, on ``width`` positions from the subject's last one on."""
        model, end = self.model, self.rows.column + width
        # (rows, width, d_v), (rows, width)
        hidden, positions = self.hidden[chosen, :width], self.positions[chosen, :width]
        # δ of each row's request, (rows, 1, d_v), added at the subject's last token.
        moved = hidden[:, :1] + delta[self.rows.request[chosen], None].to(hidden.dtype)
        hidden = torch.cat([moved, hidden[:, 1:]], 1)  # (rows, width, d_v)
        # bias (rows, 1, width, column + width)
        prefix, bias = self._prefix_of(name, chosen), self.bias[chosen, :, :width, :end]
        extra: dict[str, Any] = {model.family.past: prefix}
        if model.family.rotary is not None:
            rotary = model.net.get_submodule(model.family.rotary)
            extra["position_embeddings"] = rotary(hidden, positions)
        for layer in self.layers:
            output = model.layer(layer)(
                hidden, attention_mask=bias, position_ids=positions, use_cache=True, **extra
            )
            hidden = first_tensor(output)  # (rows, width, d_v)
        return hidden

    def _prefix_of(self, name: str, chosen: Tensor) -> _Prefix:
        """Cached prefix states of the rows: requests only drop out, so an equal number means equal rows."""
        held = self._prefixes.get(name)
        if held is None or len(held[0]) != len(chosen):
            held = self._prefixes[name] = (chosen, _Prefix(self.states, chosen))
        return held[1]


def _log_probabilities(model: EditableModel, hidden: Float[Tensor, "k d_v"]) -> Float[Tensor, "k vocabulary"]:
    norm, head = model.net.get_submodule(model.family.norm), model.net.get_submodule(model.family.head)
    return head(norm(hidden)).float().log_softmax(1)


def _causal_bias(batch: Batch, column: int, dtype: torch.dtype) -> Float[Tensor, "rows 1 q t"]:
    """Additive attention mask of the positions from ``column`` on: 0 where attention is allowed."""
    width = batch.ids.shape[1]
    index = torch.arange(width, device=batch.ids.device)
    # (rows, 1, t) & (1, q, t) -> (rows, q, t): real tokens at or before the position
    allowed = batch.mask[:, None, :] & (index[None, :] <= index[column:, None])[None]
    bias = torch.zeros(allowed.shape, dtype=dtype, device=batch.ids.device)
    return bias.masked_fill(~allowed, torch.finfo(dtype).min)[:, None]  # (rows, 1, q, t)
