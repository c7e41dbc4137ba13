"""Rows of token ids packed into lines: a pass reads each shared beginning once and pads almost nothing.

Rows that begin alike are paths of one tree: a token that several of them share is one position of a line, and
every position attends to its ancestors only. Rows are laid out in the order of their ids, so that those that
begin alike lie in one line. Every state at a row's position is that of a pass over the row alone, but for
rounding: attention is causal, and positions are counted along the row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

WIDTH = 128
"""Positions of a line, unless a row is longer: wide for few unfilled ones, narrow for cheap attention."""


@dataclass(frozen=True)
class Packed:
    """Lines of token ids with the positions of n rows in them.

    Attributes:
        ids: token ids (b, t).
        positions: place of each token in its own row (b, t); 0 where a line is not filled.
        allowed: True where a position attends to another (b, t, t); unfilled ones attend to themselves.
        place: index of each token of each row among the b·t positions (n, longest), −1 behind its end.
    """

    ids: Int[Tensor, "b t"]
    positions: Int[Tensor, "b t"]
    allowed: Bool[Tensor, "b t t"]
    place: Int[Tensor, "n longest"]

    @property
    def last(self) -> Int[Tensor, " n"]:
        """Index of the last token of each row among the b·t positions."""
        length = (self.place >= 0).sum(1)
        return self.place[torch.arange(len(length), device=length.device), length - 1]

    def attention(self, dtype: torch.dtype, seen: int = 0) -> Float[Tensor, "b 1 t s"]:
        """Mask added to attention: 0 at allowed positions and at all ``seen`` ones before; s = seen + t."""
        return added_mask(self.allowed, dtype, seen)

    def to(self, device: torch.device | str) -> "Packed":
        """The same lines on another device."""
        parts = (self.ids, self.positions, self.allowed, self.place)
        return Packed(*(part.to(device) for part in parts))


def added_mask(allowed: Bool[Tensor, "b t s"], dtype: torch.dtype, seen: int = 0) -> Float[Tensor, "b 1 t u"]:
    """0 where attention is allowed and at ``seen`` positions before, else the dtype's least; u = seen + s."""
    mask = torch.zeros(*allowed.shape[:2], seen + allowed.shape[2], dtype=dtype, device=allowed.device)
    mask[..., seen:].masked_fill_(~allowed, torch.finfo(dtype).min)
    return mask[:, None]


def pack(rows: Sequence[Sequence[int]], width: int = WIDTH) -> Packed:
    """Rows of token ids as lines of at most ``width`` positions, or of the longest row's.

    Args:
        rows: n rows of ids; they may repeat, and an empty one has no position.
        width: most positions of a line.
    """
    width = max(width, *(len(ids) for ids in rows)) if rows else width
    lines: list[_Line] = []
    found: dict[int, tuple[int, list[int]]] = {}  # row -> its line, and its columns there
    for row in sorted(range(len(rows)), key=lambda i: tuple(rows[i])):
        if not lines or not lines[-1].takes(rows[row], width):
            lines.append(_Line())
        found[row] = len(lines) - 1, lines[-1].add(rows[row])
    longest = max((len(line.ids) for line in lines), default=0)
    ids, positions = torch.zeros(2, len(lines), longest, dtype=torch.long)
    allowed = torch.eye(longest, dtype=torch.bool).repeat(len(lines), 1, 1)
    for at, line in enumerate(lines):
        ids[at, : len(line.ids)] = torch.tensor(line.ids, dtype=torch.long)
        positions[at, : len(line.ids)] = torch.tensor(line.positions, dtype=torch.long)
        for before, first, stop in line.added:
            allowed[at, first:stop, before] = True
            allowed[at, first:stop, first:stop] = torch.ones(stop - first, stop - first).tril().bool()
    place = torch.full((len(rows), max((len(own) for own in rows), default=0)), -1)
    for row, (at, columns) in found.items():
        place[row, : len(columns)] = torch.tensor(columns, dtype=torch.long) + at * longest
    return Packed(ids, positions, allowed, place)


class _Line:
    """A line that is being filled; rows come in the order of their ids."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.positions: list[int] = []
        self.added: list[tuple[list[int], int, int]] = []  # columns before; first and last of the new ones
        self.row: Sequence[int] = ()  # the last row, and its columns
        self.columns: list[int] = []

    def _shared(self, ids: Sequence[int]) -> int:
        """Number of tokens that a row shares with the last one."""
        return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(self.row, ids, strict=False)))

    def takes(self, ids: Sequence[int], width: int) -> bool:
        """Whether a row's new tokens fit in."""
        return len(self.ids) + len(ids) - self._shared(ids) <= width

    def add(self, ids: Sequence[int]) -> list[int]:
        """Columns of a row, of which those that it shares with the last row are there already."""
        shared, first = self._shared(ids), len(self.ids)
        before = self.columns[:shared]
        self.ids += ids[shared:]
        self.positions += range(shared, len(ids))
        self.added.append((before, first, len(self.ids)))
        self.row, self.columns = ids, [*before, *range(first, len(self.ids))]
        return self.columns
