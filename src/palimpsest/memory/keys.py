"""Keys and hidden states at the last token of each request's subject, where the model looks up a fact.

Attention is causal: later tokens cannot affect the subject's last one, so all rows end there. Rows are packed
(`palimpsest.network.packed`), so that a context is read once for all requests.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from palimpsest.errors import RequestError
from palimpsest.network.activations import capture, capture_in, run_layers
from palimpsest.network.cores import side_by_side
from palimpsest.network.model import EditableModel, Site
from palimpsest.network.packed import Packed, pack
from palimpsest.network.tokens import encode, encode_around_subject
from palimpsest.types import EditRequest

ROWS_PER_PASS = 128
"""Rows that one core reads together."""


def states_at_subjects(
    model: EditableModel,
    requests: Sequence[EditRequest],
    site: Site,
    contexts: Sequence[str] = ("",),
) -> Float[Tensor, "n c d"]:
    """Activations at a site at the subject's last token, for every request in every context.

    Args:
        model: the model as it is now.
        requests: n requests.
        site: where to read.
        contexts: c prefixes.

    Returns:
        (n, c, d), with d = d_k or d_v depending on the site.

    Raises:
        RequestError: if a subject's last character belongs to no token.
        SiteError: if the site does not exist or did not fire.
    """
    rows = [ids for own in _rows(model, requests, contexts) for ids in own]
    found = _at_the_end(model, rows, [site])[site]  # (n·c, d)
    return found.reshape(len(requests), len(contexts), -1)


def last_states(model: EditableModel, texts: Sequence[str], site: Site) -> Float[Tensor, "n d"]:
    """Activations at a site at the last token of each text, (n, d).

    Raises:
        RequestError: if a text gives no token.
        SiteError: if the site does not exist or did not fire.
    """
    rows = [encode(model.tokenizer, text) for text in texts]
    for text, ids in zip(texts, rows, strict=True):
        if not ids:
            raise RequestError(f"text {text!r} gives no token, so there is no state to read; give it a word")
    return _at_the_end(model, rows, [site])[site]


def _rows(
    model: EditableModel, requests: Sequence[EditRequest], contexts: Sequence[str]
) -> list[list[list[int]]]:
    """Ids up to the subject's last token, for every request in every context."""
    found = []
    for request in requests:
        around = partial(encode_around_subject, model.tokenizer, request.prompt, request.subject)
        found.append([ids[: last + 1] for ids, last in map(around, contexts)])
    return found


def _at_the_end(
    model: EditableModel, rows: Sequence[list[int]], sites: Sequence[Site]
) -> dict[Site, Float[Tensor, "n d"]]:
    """Activations at sites at the last token of each row of token ids, (n, d) each."""

    def read(start: int) -> dict[Site, Tensor]:
        packed = pack(rows[start : start + ROWS_PER_PASS]).to(model.device)
        # (b, t, d) -> (b·t, d), of which the rows' ends are kept
        return {
            site: found.flatten(0, 1)[packed.last] for site, found in capture(model, packed, sites).items()
        }

    parts = side_by_side(read, range(0, len(rows), ROWS_PER_PASS), model.device)
    return {site: torch.cat([part[site] for part in parts]) for site in sites}


@dataclass(frozen=True)
class Reads:
    """What an update of one layer is computed from.

    Attributes:
        layer: the layer.
        keys: its keys (d_k, n), as `subject_keys`.
        hidden: output of the last edited layer at each subject (d_v, n), as `subject_hidden`.
        inside: input of the norm behind the edited map at each subject (d_v, n), bare prompt; None in
            families without one.
    """

    layer: int
    keys: Float[Tensor, "d_k n"]
    hidden: Float[Tensor, "d_v n"]
    inside: Float[Tensor, "d_v n"] | None = None


def read_unedited(
    model: EditableModel, requests: Sequence[EditRequest], layers: Sequence[int], contexts: Sequence[str]
) -> list[Reads]:
    """Keys of several layers and the output of the last one, in one pass over the model as it is.

    Args:
        model: the model.
        requests: n requests.
        layers: ascending.
        contexts: prefixes, the empty one first.
    """
    rows = [ids for own in _rows(model, requests, contexts) for ids in own]
    last = Site(layers[-1], "hidden")
    found = _at_the_end(model, rows, [*(Site(layer) for layer in layers), last])
    states = {site: part.unflatten(0, (len(requests), len(contexts))) for site, part in found.items()}
    return [
        Reads(
            layer,
            _averaged(states[Site(layer)]),
            states[last][:, 0].T,
            subject_inside(model, requests, layer),
        )
        for layer in layers
    ]


def read_ascending(
    model: EditableModel, requests: Sequence[EditRequest], layers: Sequence[int], contexts: Sequence[str]
) -> Iterator[Reads]:
    """Keys of each layer and the output of the last one, while the caller edits one layer after the other.

    The caller writes the weight of a layer before it asks for the next. A layer below is never read again:
    states are kept where the next layer begins, so that all layers together cost little more than one pass.

    Args:
        model: the model, whose weights in ``layers`` the caller may write between two reads, each once read.
        requests: n requests.
        layers: ascending.
        contexts: prefixes, the empty one first.

    Yields:
        What is read with all lower layers edited, layer by layer.
    """
    rows = _rows(model, requests, contexts)
    each = max(1, ROWS_PER_PASS // len(contexts))
    groups = [rows[start : start + each] for start in range(0, len(rows), each)]
    climbs = side_by_side(lambda own: _Climb(model, own, layers), groups, model.device)
    for layer, above in zip(layers, [*layers[1:], None], strict=True):
        read = side_by_side(lambda climb: climb.read(layer), climbs, model.device)  # noqa: B023 -- used at once
        keys, hidden = (torch.cat(parts) for parts in zip(*read, strict=True))  # (n, c, d_k), (n, d_v)
        yield Reads(layer, _averaged(keys), hidden.T, subject_inside(model, requests, layer))
        if above is not None:
            side_by_side(lambda climb: climb.rise(layer, above), climbs, model.device)  # noqa: B023


class _Climb:
    """Some requests' rows at the input of a layer: the bare prompts, and those in sampled contexts."""

    def __init__(
        self, model: EditableModel, rows: Sequence[Sequence[list[int]]], layers: Sequence[int]
    ) -> None:
        self.model, self.last = model, layers[-1]
        groups = [[own[0] for own in rows], [ids for own in rows for ids in own[1:]]]
        self.packs: list[Packed] = [pack(group).to(model.device) for group in groups if group]
        entry = Site(layers[0], "input")
        self.states = [capture(model, packed, [entry])[entry] for packed in self.packs]  # (b, t, d_v) each

    def read(self, layer: int) -> tuple[Float[Tensor, "n c d_k"], Float[Tensor, "n d_v"]]:
        """Keys of a layer in every context, and the output of the last layer for the bare prompts."""
        found, hidden = [], self.states[0]
        for packed, states in zip(self.packs, self.states, strict=True):
            keys = capture_in(self.model, layer, states, packed).flatten(0, 1)[packed.last]
            found.append(keys.unflatten(0, (len(self.packs[0].place), -1)))  # (n, 1 or c − 1, d_k)
        hidden = self._run(self.packs[0], hidden, range(layer, self.last + 1))
        return torch.cat(found, 1), hidden.flatten(0, 1)[self.packs[0].last]

    def rise(self, layer: int, above: int) -> None:
        """Go up from the input of a layer to that of another."""
        self.states = [
            self._run(packed, states, range(layer, above))
            for packed, states in zip(self.packs, self.states, strict=True)
        ]

    def _run(self, packed: Packed, states: Tensor, layers: range) -> Float[Tensor, "b t d_v"]:
        with torch.no_grad():
            return run_layers(self.model, layers, states, packed.positions, packed.attention(states.dtype))


def subject_keys(
    model: EditableModel, requests: Sequence[EditRequest], layer: int, contexts: Sequence[str]
) -> Float[Tensor, "d_k n"]:
    """Key of each subject: the bare prompt has weight one half, the sampled contexts share the other half.

    Args:
        model: the model as it is now; keys depend on edits in lower layers only.
        requests: n requests.
        layer: the edited layer.
        contexts: prefixes, the empty one first; if it is the only one, the key is that of the bare prompt.

    Source: MEMIT's released ``compute_ks`` (mean within each template group, then over groups).
    """
    return _averaged(states_at_subjects(model, requests, Site(layer), contexts))


def _averaged(states: Float[Tensor, "n c d_k"]) -> Float[Tensor, "d_k n"]:
    """Key of each subject from its states in every context."""
    bare, sampled = states[:, 0], states[:, 1:]  # (n, d_k), (n, c − 1, d_k)
    mean = (bare + sampled.mean(1)) / 2 if sampled.shape[1] else bare
    return mean.T


def subject_hidden(
    model: EditableModel, requests: Sequence[EditRequest], layer: int
) -> Float[Tensor, "d_v n"]:
    """Output of a whole layer at each subject's last token, (d_v, n), bare prompt."""
    return states_at_subjects(model, requests, Site(layer, "hidden"))[:, 0].T


def subject_inside(
    model: EditableModel, requests: Sequence[EditRequest], layer: int
) -> Float[Tensor, "d_v n"] | None:
    """Input of the norm behind the edited map at each subject (d_v, n), bare prompt; None without one."""
    if model.norm_behind(layer) is None:
        return None
    return states_at_subjects(model, requests, Site(layer, "before_norm"))[:, 0].T
