"""Values to write: hidden states that make the model say the new object, optimised for many requests at once.

For each request a vector δ is added to one layer's output at the subject's last token, in every context, and
Adam lowers the loss of the new object. What cannot change is computed once: everything up to that layer, and
above it the keys and values that attention reads at positions before the subject's last token. A step then
runs only the upper layers on the few positions from there on, and the head only where a loss needs it.

Loss of one request (as in the released MEMIT and AlphaEdit code; every term is a setting):

    mean over contexts of NLL(target)/tokens + kl·KL(p₀‖p) at "{subject} is a" + decay·‖δ‖/‖h₀‖²
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from palimpsest import cache
from palimpsest.activations import first_tensor, run_body, watched
from palimpsest.errors import NonFiniteError, SiteError
from palimpsest.model import EditableModel, Site, fingerprint
from palimpsest.settings import TargetSettings
from palimpsest.tokens import Batch, encode_around_subject, encode_target
from palimpsest.types import SLOT, EditRequest

KL_PROMPT = "{} is a"
REVISION = 1
"""Part of the cache key; raise it when the same settings give other values than before."""


@dataclass(frozen=True)
class Targets:
    """Optimised values.

    Attributes:
        values: h₀ + δ (d_v, n), the state each subject should reach.
        deltas: δ (d_v, n).
        losses: total loss (n, steps); NaN after a request was done.
    """

    values: Float[Tensor, "d_v n"]
    deltas: Float[Tensor, "d_v n"]
    losses: Float[Tensor, "n steps"]


def optimise_targets(
    model: EditableModel,
    requests: Sequence[EditRequest],
    layer: int,
    settings: TargetSettings,
    contexts: Sequence[str] = ("",),
    chunk: int = 16,
) -> Targets:
    """Values of many requests, from disk when the same were computed on the same weights before.

    Args:
        model: the model as it is now.
        requests: n requests; they do not influence each other.
        layer: whose output is moved.
        settings: losses and steps.
        contexts: prefixes, the empty one first; h₀ is read in the first.
        chunk: requests optimised together; changes memory, not results.

    Raises:
        NonFiniteError: if a loss becomes NaN or infinite; names the request.
        SiteError: if a layer does not exist, or the loss layer lies below the edited one.
    """
    last = settings.loss_layer if settings.loss_layer is not None else model.n_layers - 1
    for needed in (layer, last):
        model.layer(needed)
    if last < layer:
        raise SiteError(f"loss_layer {last} lies below the edited layer {layer}; raise it or leave it out")
    asked = [(r.prompt, r.subject, r.target) for r in requests]
    key = {
        "revision": REVISION,
        "model": fingerprint(model),
        "requests": asked,
        "layer": layer,
        "contexts": list(contexts),
        "settings": asdict(settings),
    }

    def compute() -> dict[str, Tensor]:
        # Requests with as much text behind the subject go together: a chunk is as wide as its widest row.
        behind = [len(r.prompt.split(SLOT)[1]) + len(r.target) for r in requests]
        order = sorted(range(len(requests)), key=behind.__getitem__)
        parts, bar = [], tqdm(total=len(requests), desc="optimising values", unit="fact")
        for start in range(0, len(order), chunk):
            some = [requests[i] for i in order[start : start + chunk]]
            parts.append(_optimise_chunk(model, some, layer, last, settings, contexts))
            bar.update(len(some))
        bar.close()
        back = torch.argsort(torch.tensor(order))
        return {name: torch.cat([p[name] for p in parts])[back] for name in parts[0]}

    found = cache.tensors("targets", key, compute)
    found = {name: tensor.to(model.device) for name, tensor in found.items()}
    return Targets((found["initial"] + found["delta"]).T, found["delta"].T, found["losses"])


def _optimise_chunk(
    model: EditableModel,
    requests: Sequence[EditRequest],
    layer: int,
    last: int,
    settings: TargetSettings,
    contexts: Sequence[str],
) -> dict[str, Tensor]:
    rows = _Rows(model, requests, contexts)
    upper = _UpperLayers(model, rows, layer, last, settings.reference)
    initial = upper.initial
    limit = settings.clamp * initial.norm(dim=1, keepdim=True)
    delta = torch.zeros_like(initial, requires_grad=True)
    final = torch.zeros_like(initial)
    losses = torch.full((len(requests), settings.steps), float("nan"))
    adam = torch.optim.Adam([delta], lr=settings.lr)
    active = torch.arange(len(requests), device=model.device)
    before = None  # log-probabilities of the KL prompt without an edit
    for step in range(settings.steps):
        nll, log_p = upper.losses(delta, active)
        before = log_p.detach() if before is None else before
        kl = (before[active].exp() * (before[active] - log_p)).sum(1)
        size = delta[active].norm(dim=1) / initial[active].norm(dim=1).square()
        loss = nll + settings.kl * kl + settings.decay * size
        losses[active.cpu(), step] = loss.detach().float().cpu()
        _check_finite(loss, [requests[i] for i in active.tolist()], step)
        final[active] = delta.detach()[active]
        going = loss.detach() >= settings.stop_below
        if step == settings.steps - 1 or not going.any():
            break
        adam.zero_grad()
        loss.sum().backward()
        adam.step()
        active = active[going]
        with torch.no_grad():
            delta.mul_((limit / delta.norm(dim=1, keepdim=True).clamp(min=1e-12)).clamp(max=1))
    return {"initial": initial, "delta": final, "losses": losses}


def _check_finite(loss: Tensor, requests: Sequence[EditRequest], step: int) -> None:
    for value, request in zip(loss.tolist(), requests, strict=True):
        if value != value or value == float("inf"):
            raise NonFiniteError(
                f"the loss of {request.text!r} -> {request.target!r} is {value} at step {step}; "
                "lower the learning rate or the clamp. No weight was changed"
            )


class _Rows:
    """All sequences of a chunk, aligned so that every subject ends in the same column.

    Each request gives one row per context (prompt and target but its last token) and a last one for the KL
    term (the subject in KL_PROMPT, cut after its last token).

    Attributes:
        batch: rows × columns, padded on both sides.
        column: where all subjects end.
        request: row -> request (rows,).
        kl_row: request -> its KL row (n,).
        labels: target ids, flat; with `label_row`, `label_offset` (columns after `column`) and
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
    """Sequences side by side with the given index of each in one common column."""
    column = max(end for _, end in sequences)
    width = column + max(len(ids) - end for ids, end in sequences)
    ids_, mask = torch.zeros(len(sequences), width, dtype=torch.long), torch.zeros(len(sequences), width)
    for row, (ids, end) in enumerate(sequences):
        start = column - end
        ids_[row, start : start + len(ids)] = torch.tensor(ids)
        mask[row, start : start + len(ids)] = 1
    return Batch(ids_, mask.bool()), column


class _Prefix:
    """Key/value states before the subject's last token, handed to attention as if it were a cache."""

    def __init__(self, states: dict[int, tuple[Tensor, Tensor]], rows: Tensor) -> None:
        self.states = {layer: (k[rows], v[rows]) for layer, (k, v) in states.items()}

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """The prefix's states with those of the new positions behind them; nothing is stored."""
        k, v = self.states[layer]
        return torch.cat([k, keys], 2), torch.cat([v, values], 2)


class _UpperLayers:
    """The part of the network above the edited layer, on the positions that an edit can change."""

    def __init__(self, model: EditableModel, rows: _Rows, layer: int, last: int, reference: str) -> None:
        self.model, self.rows, self.layers = model, rows, range(layer + 1, last + 1)
        column, batch = rows.column, rows.batch
        seen: dict[str, Tensor] = {}
        with (
            torch.no_grad(),
            watched(model, Site(layer, "hidden"), lambda x: seen.update(hidden=x)),
            watched(model, Site(layer, "value"), lambda x: seen.update(value=x)),
        ):
            past = run_body(model, batch, use_cache=True).past_key_values
        self.hidden = seen["hidden"][:, column:].detach()
        first_row = torch.searchsorted(rows.request, torch.arange(len(rows.kl_row), device=model.device))
        # δ is optimised in float32 at least: Adam's small steps are lost in half precision.
        exact = torch.promote_types(self.hidden.dtype, torch.float32)
        self.initial = seen[reference][first_row, column].detach().to(exact)
        self.states = {
            i: (past.layers[i].keys[:, :, :column], past.layers[i].values[:, :, :column]) for i in self.layers
        }
        self.positions = batch.positions[:, column:]
        self.bias = _causal_bias(batch, column, self.hidden.dtype)
        self._prefixes: dict[bool, tuple[Tensor, _Prefix]] = {}

    def losses(
        self, delta: Float[Tensor, "n d_v"], active: Int[Tensor, " a"]
    ) -> tuple[Float[Tensor, " a"], Float[Tensor, "a vocabulary"]]:
        """NLL of the target (mean over contexts) and log-probabilities of the KL row, per active request."""
        rows, model = self.rows, self.model
        wanted = torch.isin(rows.request, active)
        wanted[rows.kl_row] = False
        hidden = self._run(wanted.nonzero()[:, 0], delta)
        place = torch.cumsum(wanted, 0) - 1  # row -> its place among the wanted ones
        kept = wanted[rows.label_row]
        at = (place[rows.label_row[kept]], rows.label_offset[kept])
        log_p = _log_probabilities(model, hidden[at])
        picked = -log_p.gather(1, rows.labels[kept, None])[:, 0] * rows.label_weight[kept]
        total = torch.zeros(len(rows.kl_row), device=model.device, dtype=picked.dtype)
        nll = total.index_add(0, rows.request[rows.label_row[kept]], picked)[active]
        return nll, _log_probabilities(model, self._run(rows.kl_row[active], delta, kl=True)[:, 0])

    def _run(
        self, chosen: Int[Tensor, " rows"], delta: Float[Tensor, "n d_v"], kl: bool = False
    ) -> Float[Tensor, "rows q d_v"]:
        """The upper layers on some rows with their δ; rows of the KL term have one position."""
        width = 1 if kl else self.hidden.shape[1]
        model, end = self.model, self.rows.column + width
        hidden, positions = self.hidden[chosen, :width], self.positions[chosen, :width]
        moved = hidden[:, :1] + delta[self.rows.request[chosen], None].to(hidden.dtype)
        hidden = torch.cat([moved, hidden[:, 1:]], 1)
        prefix, bias = self._prefix_of(chosen, kl), self.bias[chosen, :, :width, :end]
        extra = {}
        if model.family.rotary is not None:
            rotary = model.net.get_submodule(model.family.rotary)
            extra["position_embeddings"] = rotary(hidden, positions)
        for layer in self.layers:
            output = model.layer(layer)(
                hidden,
                attention_mask=bias,
                position_ids=positions,
                past_key_values=prefix,
                use_cache=True,
                **extra,
            )
            hidden = first_tensor(output)
        return hidden

    def _prefix_of(self, chosen: Tensor, kl: bool) -> _Prefix:
        """Prefix states of the rows; requests only ever drop out, so as many rows are the same rows."""
        held = self._prefixes.get(kl)
        if held is None or len(held[0]) != len(chosen):
            held = self._prefixes[kl] = (chosen, _Prefix(self.states, chosen))
        return held[1]


def _log_probabilities(model: EditableModel, hidden: Float[Tensor, "k d_v"]) -> Float[Tensor, "k vocabulary"]:
    norm, head = model.net.get_submodule(model.family.norm), model.net.get_submodule(model.family.head)
    return head(norm(hidden)).float().log_softmax(1)


def _causal_bias(batch: Batch, column: int, dtype: torch.dtype) -> Float[Tensor, "rows 1 q t"]:
    """Additive attention mask of the positions from ``column`` on: 0 where attention may look."""
    width = batch.ids.shape[1]
    index = torch.arange(width, device=batch.ids.device)
    allowed = batch.mask[:, None, :] & (index[None, :] <= index[column:, None])[None]
    bias = torch.zeros(allowed.shape, dtype=dtype, device=batch.ids.device)
    return bias.masked_fill(~allowed, torch.finfo(dtype).min)[:, None]
