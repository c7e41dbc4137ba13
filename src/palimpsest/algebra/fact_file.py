"""Facts, and matrices that are seldom read, in temporary files, so that a ledger needs less memory."""

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO, cast

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from palimpsest.algebra.ledger_facts import Facts
from palimpsest.errors import ResourceError

BLOCK = 512
"""Facts that are read together."""


class Records:
    """A temporary file of float64 rows [k, v, W₀k, w], which is only ever appended to.

    It has no name, so that the system removes it with the last object that uses it, also after a crash.

    Args:
        d_k, d_v: sizes of a key and of a value.
    """

    def __init__(self, d_k: int, d_v: int) -> None:
        self.d_k, self.d_v, self.rows = d_k, d_v, 0
        try:
            self._file = cast(BinaryIO, tempfile.TemporaryFile(prefix="palimpsest-facts-"))  # noqa: SIM115
        except OSError as error:
            raise self._full(error) from error

    @property
    def width(self) -> int:
        """Numbers in one row."""
        return self.d_k + 2 * self.d_v + 1

    def append(self, facts: Facts) -> int:
        """Add facts as rows at the end; returns the first one's number.

        Raises:
            ResourceError: if they cannot be written; the rows before stay as they are.
        """
        columns = torch.cat([facts.keys, facts.values, facts.outputs, facts.weights[None]])  # (width, n)
        first = self.rows
        try:
            self._file.seek(first * self.width * 8)
            self._file.write(columns.T.contiguous().cpu().numpy().tobytes())
            self._file.flush()
        except OSError as error:
            raise self._full(error) from error
        self.rows += len(facts)
        return first

    def mapped(self) -> np.ndarray:
        """All rows (rows, width), mapped into memory; a write into the map does not reach the file."""
        if not self.rows:
            return np.zeros((0, self.width))
        return np.memmap(self._file, np.float64, "c", shape=(self.rows, self.width))

    def _full(self, error: OSError) -> ResourceError:
        return ResourceError(
            f"cannot write facts to a temporary file in {tempfile.gettempdir()}: {error}; free some space or "
            "set TMPDIR to another disk. Nothing was changed"
        )


@dataclass(frozen=True)
class FactFile:
    """Facts as rows of a file, with the interface of `Facts`; every change returns a new object.

    A changed fact is a new row. Rows without a fact stay until no object uses the file.

    Attributes:
        ids: names, each once.
        runs: first row and number of rows of each run of neighbours, in the order of the facts.
        records: the file, shared by all that came from one another.
        device: where facts are handed out.
    """

    ids: tuple[str, ...]
    runs: tuple[tuple[int, int], ...]
    records: Records
    device: torch.device

    @classmethod
    def of(cls, facts: "Facts | FactFile") -> "FactFile":
        """These facts in a file, in their order: the one that they are in if most of its rows are theirs.

        Raises:
            ResourceError: if it cannot be written.
        """
        if isinstance(facts, FactFile) and facts.records.rows <= 2 * len(facts) + BLOCK:
            return facts
        empty = facts.take([])
        found = cls((), (), Records(len(empty.keys), len(empty.values)), empty.keys.device)
        for block in facts.blocks():
            found = found.join(block)
        return found

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def rows(self) -> np.ndarray:
        """Row of each fact, (n,)."""
        return np.concatenate([np.arange(0), *(np.arange(first, first + n) for first, n in self.runs)])

    @property
    def keys(self) -> Float64[Tensor, "d_k n"]:
        """Keys K; from the file's map if the facts are neighbours in it, otherwise a copy."""
        return self._columns(0, self.records.d_k)

    @property
    def values(self) -> Float64[Tensor, "d_v n"]:
        """Values V, as `keys`."""
        return self._columns(self.records.d_k, self.records.d_v)

    @property
    def outputs(self) -> Float64[Tensor, "d_v n"]:
        """Outputs W₀K of the unedited weight, as `keys`."""
        return self._columns(self.records.d_k + self.records.d_v, self.records.d_v)

    @property
    def weights(self) -> Float64[Tensor, " n"]:
        """Weights w, as `keys`."""
        return self._columns(self.records.width - 1, 1)[0]

    def blocks(self) -> Iterator[Facts]:
        """The facts in memory, some after the other."""
        for start in range(0, len(self), BLOCK):
            yield self.take(range(start, min(start + BLOCK, len(self))))

    def take(self, columns: Sequence[int]) -> Facts:
        """Facts in these columns, in this order, in memory."""
        at = list(columns)
        rows = (
            torch.from_numpy(np.array(self.records.mapped()[self.rows[at]])).to(self.device).T
        )  # (width, n)
        d_k, d_v = self.records.d_k, self.records.d_v
        keys, values, outputs, weights = rows.contiguous().split([d_k, d_v, d_v, 1])
        return Facts(tuple(self.ids[i] for i in at), keys, values, weights[0], outputs)

    def without(self, columns: Sequence[int]) -> "FactFile":
        """All facts except those in these columns."""
        if not columns:
            return self
        stay = np.ones(len(self), bool)
        stay[list(columns)] = False
        ids = tuple(name for name, kept in zip(self.ids, stay, strict=True) if kept)
        return FactFile(ids, _runs(self.rows[stay]), self.records, self.device)

    def put(self, columns: Sequence[int], values: Float64[Tensor, "d_v m"]) -> "FactFile":
        """The same facts, with other values in some columns."""
        if not columns:
            return self
        at = list(columns)
        first = self.records.append(self.take(at).put(range(len(at)), values))
        rows = self.rows
        rows[at] = np.arange(first, first + len(at))
        return FactFile(self.ids, _runs(rows), self.records, self.device)

    def join(self, other: Facts) -> "FactFile":
        """These facts, followed by the others."""
        if not len(other):
            return self
        run = self.records.append(other), len(other)
        *before, last = self.runs or ((run[0], 0),)
        joined = [(last[0], last[1] + run[1])] if last[0] + last[1] == run[0] else [last, run]
        return FactFile(self.ids + other.ids, (*before, *joined), self.records, self.device)

    def _columns(self, first: int, n: int) -> Tensor:
        """Some numbers of every fact, (n, number of facts)."""
        everything = self.records.mapped()
        if len(self.runs) == 1:
            start, count = self.runs[0]
            part = everything[start : start + count, first : first + n]
        else:
            part = everything[:, first : first + n][self.rows]
        return torch.from_numpy(np.asarray(part)).to(self.device).T


def mapped(tensor: Tensor) -> Tensor:
    """The same tensor in a temporary file without a name, mapped: it takes memory only once it is read.

    On another device than the CPU, or where no file can be written, it is returned as it is.
    """
    if tensor.device.type != "cpu" or not tensor.numel():
        return tensor
    content = tensor.detach().contiguous()
    try:
        file = cast(BinaryIO, tempfile.TemporaryFile(prefix="palimpsest-tensor-"))  # noqa: SIM115
        file.write(content.reshape(-1).view(torch.uint8).numpy().data)
        file.flush()
        there = np.memmap(file, np.uint8, "c")  # a write into the map does not reach the file
    except OSError:
        return tensor
    return torch.from_numpy(there).view(tensor.dtype).reshape(tensor.shape)


def _runs(rows: np.ndarray) -> tuple[tuple[int, int], ...]:
    """First row and length of each run of neighbours."""
    if not len(rows):
        return ()
    starts = np.concatenate([[0], np.flatnonzero(np.diff(rows) != 1) + 1, [len(rows)]])
    return tuple((int(rows[a]), int(b - a)) for a, b in pairwise(starts))
