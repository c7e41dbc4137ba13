"""Forward passes through only the layers and positions that a moved hidden state can change.

Used by `palimpsest.memory.values`, where a vector δ is added to one layer's output at the subject's last
token. Activations up to that layer do not change, and neither do the keys and values that attention reads
above it at earlier positions. Both are computed once, with beginnings that rows share read once; each pass
then runs the upper layers on the few positions from the subject's last token on, packed into lines without
padding, and the head reads only the states that a loss needs (`palimpsest.memory.readout`).

Axes besides those of `palimpsest.types`: rows are sequences, t their positions, q the moving ones, from the
subject's last token on, h key/value heads, and a the requests still active.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from palimpsest.memory.behind_norms import passed
from palimpsest.network.activations import capture, run_layers
from palimpsest.network.model import EditableModel, Part, Site
from palimpsest.network.packed import added_mask, pack
from palimpsest.network.tokens import encode_around_subject, encode_target
from palimpsest.types import EditRequest

KL_PROMPT = "{} is a"

LINE = 32
"""Moving positions of a line, unless a row has more. Few rows a line keep attention cheap."""


@dataclass(frozen=True)
class Sequences:
    """Token ids that one request is optimised on: one row per context, and a last one for the KL term.

    Attributes:
        rows: prompt in each context, and target without its last token; then KL_PROMPT filled with the
            subject, cut after the subject's last token.
        ends: index of the subject's last token in each row.
        labels: (row, moving position, target id) of each label.
    """

    rows: list[list[int]]
    ends: list[int]
    labels: list[tuple[int, int, int]]

    @property
    def moving(self) -> int:
        """Number of positions from the subject's last token on, over all rows."""
        return sum(len(row) - end for row, end in zip(self.rows, self.ends, strict=True))


def sequences(model: EditableModel, request: EditRequest, contexts: Sequence[str]) -> Sequences:
    """Encode a request for the optimisation of its value.

    Raises:
        RequestError: if the subject's last character belongs to no token, or the target gives none.
    """
    tokenizer = model.tokenizer
    target = encode_target(tokenizer, request.target, request.text)
    rows, ends, labels = [], [], []
    for row, context in enumerate(contexts):
        ids, end = encode_around_subject(tokenizer, request.prompt, request.subject, context)
        labels += [(row, len(ids) - 1 - end + j, token) for j, token in enumerate(target)]
        rows.append(ids + target[:-1])
        ends.append(end)
    ids, end = encode_around_subject(tokenizer, KL_PROMPT, request.subject)
    return Sequences([*rows, ids[: end + 1]], [*ends, end], labels)


@dataclass(frozen=True)
class _Lines:
    """Moving positions of some rows as lines (b, q), and where their states are read.

    Attributes:
        hidden: output of the edited layer without δ (b, q, d_v).
        positions: of the tokens in their rows (b, q).
        mask: added to attention, over s earlier positions and the q moving ones (b, 1, q, s + q).
        past: attention keys and values of the earlier positions.
        first, owner: index of each row's first moving position among the b·q, and its request (rows,).
        inside: input of the norm behind the edited map there (rows, d_v), where δ is added before a norm.
        read: index among the b·q of the state of each label, then of each active request's KL row.
        label_at: which labels of the chunk those are (l,).
    """

    hidden: Float[Tensor, "b q d_v"]
    positions: Int[Tensor, "b q"]
    mask: Float[Tensor, "b 1 q u"]
    past: "_Past"
    first: Int[Tensor, " rows"]
    owner: Int[Tensor, " rows"]
    inside: Float[Tensor, "rows d_v"] | None
    read: Int[Tensor, " r"]
    label_at: Int[Tensor, " l"]


class _Past:
    """Attention keys and values of earlier positions, passed to attention like a cache.

    Without states, those of the first pass are kept.
    """

    def __init__(self, states: dict[int, tuple[Tensor, Tensor]] | None = None) -> None:
        self.states = states or {}  # layer -> (b, h, s, d_head) twice
        self.keep = states is None

    def update(self, keys: Tensor, values: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """The earlier states followed by those of the new positions."""
        if self.keep:
            self.states[layer] = keys, values
        if self.keep or layer not in self.states:
            return keys, values
        k, v = self.states[layer]
        # (b, h, s, d_head) and (b, h, q, d_head) -> (b, h, s + q, d_head)
        return torch.cat([k, keys], 2), torch.cat([v, values], 2)


class UpperLayers:
    """The network above the edited layer, for the requests of a chunk, on the positions an edit can change.

    Attributes:
        initial: unedited state h₀ of each request at its subject's last token (n, d_v), float32 at least.
        labels, weight, request: target id, 1 / tokens / contexts, and request of each label (labels,).
    """

    def __init__(
        self, model: EditableModel, chunk: Sequence[Sequences], layer: int, last: int, reference: Part
    ) -> None:
        self.model, self.layers = model, range(layer + 1, last + 1)
        self.rows = [ids for one in chunk for ids in one.rows]
        self.ends = [end for one in chunk for end in one.ends]
        self.owner = [request for request, one in enumerate(chunk) for _ in one.rows]
        offsets = [sum(len(one.rows) for one in chunk[:request]) for request in range(len(chunk))]
        self.kl_row = [start + len(one.rows) - 1 for start, one in zip(offsets, chunk, strict=True)]
        own = [(start, one, label) for start, one in zip(offsets, chunk, strict=True) for label in one.labels]
        self.label_row = [start + row for start, _, (row, _, _) in own]
        self.label_offset = [offset for _, _, (_, offset, _) in own]
        self.labels = torch.tensor([token for _, _, (_, _, token) in own], device=model.device)
        self.weight = torch.tensor([1 / len(one.labels) for _, one, _ in own], device=model.device)
        self.request = torch.tensor([self.owner[row] for row in self.label_row], device=model.device)
        self._read(layer, reference, offsets)
        self._held: tuple[list[int], _Lines] | None = None

    def _read(self, layer: int, reference: Part, first_rows: Sequence[int]) -> None:
        """Read what δ cannot change: output of the edited layer, and what attention reads above it."""
        model = self.model
        packed = pack(self.rows).to(model.device)
        # δ on the map's output reaches the layer's output through the norm that some families have there.
        self.norm = model.norm_behind(layer) if reference == "value" else None
        sites = list({Site(layer, "hidden"), Site(layer, reference)})
        sites += [Site(layer, "before_norm")] if self.norm is not None else []
        seen = {site.part: found.flatten(0, 1) for site, found in capture(model, packed, sites).items()}
        self.hidden, self.place, hidden = seen["hidden"], packed.place, seen["hidden"]  # (b·t, d_v)
        self.before_norm = seen.get("before_norm")
        # δ is optimised in float32 at least: Adam's small steps are lost in half precision.
        exact = torch.promote_types(hidden.dtype, torch.float32)
        ends = torch.tensor([self.ends[row] for row in first_rows], device=model.device)
        subject = packed.place[torch.tensor(first_rows, device=model.device), ends]  # (n,)
        self.initial = seen[reference][subject].to(exact)  # (n, d_v)
        early = pack([ids[:end] for ids, end in zip(self.rows, self.ends, strict=True)]).to(model.device)
        self.early = early.place  # (rows, longest)
        past = _Past()
        if early.place.shape[1] and self.layers:
            real = early.place >= 0
            source = torch.zeros(early.ids.numel(), dtype=torch.long, device=model.device)
            source[early.place[real]] = packed.place[:, : real.shape[1]][real]
            with torch.no_grad():
                run_layers(
                    model,
                    self.layers,
                    hidden[source].unflatten(0, early.ids.shape),
                    early.positions,
                    early.attention(hidden.dtype),
                    past,
                )
        # layer -> attention keys and values (b·t, h, d_head)
        self.attended = {
            i: tuple(part.transpose(1, 2).flatten(0, 1) for part in pair) for i, pair in past.states.items()
        }

    def states(
        self, delta: Float[Tensor, "n d_v"], active: Sequence[int]
    ) -> tuple[Float[Tensor, "r d_v"], Int[Tensor, " l"]]:
        """Last hidden states that a loss reads, r = l + a, and which l labels those are.

        Args:
            delta: δ of each request.
            active: the a requests to run, ascending.

        Returns:
            The states at the labels of the active requests, in their order, then those at the KL row of each
            active request; and the indices of the labels.
        """
        if self._held is None or self._held[0] != list(active):
            self._held = list(active), self._lines(active)
        lines = self._held[1]
        flat = lines.hidden.flatten(0, 1)  # (b·q, d_v)
        step = delta[lines.owner].to(flat.dtype)
        if self.norm is not None and lines.inside is not None:
            step = passed(self.norm, lines.inside, step)
        moved = flat.index_add(0, lines.first, step)
        hidden = run_layers(
            self.model,
            self.layers,
            moved.unflatten(0, lines.positions.shape),
            lines.positions,
            lines.mask,
            lines.past,
        )
        return hidden.flatten(0, 1)[lines.read], lines.label_at

    def _lines(self, active: Sequence[int]) -> _Lines:
        """Lay out the rows of some requests; those with the same beginning come together."""
        rows = [row for row, request in enumerate(self.owner) if request in set(active)]
        rows.sort(key=lambda row: self.rows[row][: self.ends[row]])
        lines = _filled([(row, len(self.rows[row]) - self.ends[row]) for row in rows])
        width = max(sum(count for _, count in line) for line in lines)
        source, positions = torch.zeros(2, len(lines), width, dtype=torch.long)
        early, seen, own = self._laid_out(lines, width)
        first: dict[int, int] = {}
        for at, line in enumerate(lines):
            start = 0
            for row, count in line:
                end, here = self.ends[row], slice(start, start + count)
                first[row] = at * width + start
                source[at, here] = self.place[row, end : end + count].cpu()
                positions[at, here] = torch.arange(end, end + count)
                start += count
        device, chosen = self.model.device, set(active)
        labels = [i for i, row in enumerate(self.label_row) if self.owner[row] in chosen]
        read = [first[self.label_row[i]] + self.label_offset[i] for i in labels]
        read += [first[self.kl_row[request]] for request in active]
        nodes = early.to(device)
        states = {
            i: (k[nodes].transpose(1, 2), v[nodes].transpose(1, 2)) for i, (k, v) in self.attended.items()
        }
        return _Lines(
            self.hidden[source.to(device)],
            positions.to(device),
            added_mask(torch.cat([seen, own], 2), self.hidden.dtype).to(device),
            _Past(states),
            torch.tensor(list(first.values()), device=device),
            torch.tensor([self.owner[row] for row in first], device=device),
            self._inside(list(first)),
            torch.tensor(read, device=device),
            torch.tensor(labels, device=device),
        )

    def _inside(self, rows: Sequence[int]) -> Float[Tensor, "rows d_v"] | None:
        """Input of the norm behind the edited map at the subject's last token of some rows."""
        if self.before_norm is None:
            return None
        ends = torch.tensor([self.ends[row] for row in rows], device=self.place.device)
        return self.before_norm[self.place[torch.tensor(rows, device=self.place.device), ends]]

    def _laid_out(
        self, lines: Sequence[Sequence[tuple[int, int]]], width: int
    ) -> tuple[Int[Tensor, "b s"], Bool[Tensor, "b q s"], Bool[Tensor, "b q q"]]:
        """Earlier positions that each line needs; which of them and of its own each position sees."""
        paths = [path[: self.ends[row]] for row, path in enumerate(self.early.tolist())]
        needed = [list(dict.fromkeys(node for row, _ in line for node in paths[row])) for line in lines]
        early = torch.zeros(len(lines), max(map(len, needed)) if self.attended else 0, dtype=torch.long)
        seen = torch.zeros(len(lines), width, early.shape[1], dtype=torch.bool)
        own = torch.eye(width, dtype=torch.bool).repeat(len(lines), 1, 1)  # unfilled places see themselves
        for at, line in enumerate(lines):
            column, start = {node: place for place, node in enumerate(needed[at])}, 0
            early[at, : len(column)] = torch.tensor(needed[at], dtype=torch.long)[: early.shape[1]]
            for row, count in line:
                here = slice(start, start + count)
                if self.attended:
                    seen[at, here, [column[node] for node in paths[row]]] = True
                own[at, here, here] = torch.ones(count, count).tril().bool()
                start += count
        return early, seen, own


def _filled(rows: Sequence[tuple[int, int]]) -> list[list[tuple[int, int]]]:
    """Rows with their numbers of positions, in lines of at most LINE positions, or of the longest row's."""
    width = max(LINE, *(count for _, count in rows))
    lines: list[list[tuple[int, int]]] = [[]]
    for row, count in rows:
        if sum(other for _, other in lines[-1]) + count > width:
            lines.append([])
        lines[-1].append((row, count))
    return lines
