"""Facts as columns of matrices, and checks of the ids and tensors that a caller passes to a ledger."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64
from torch import Tensor

from palimpsest.algebra.checks import expect
from palimpsest.errors import LedgerError


@dataclass(frozen=True)
class Facts:
    """Facts as columns, in float64.

    Attributes:
        ids: names, each once.
        keys: K (d_k, n).
        values: V (d_v, n).
        weights: w (n,), above 0.
        outputs: W₀K (d_v, n), outputs of the unedited weight.
    """

    ids: tuple[str, ...]
    keys: Float64[Tensor, "d_k n"]
    values: Float64[Tensor, "d_v n"]
    weights: Float64[Tensor, " n"]
    outputs: Float64[Tensor, "d_v n"]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def scaled_keys(self) -> Float64[Tensor, "d_k n"]:
        """Keys times the roots of their weights, √w K."""
        return self.weights.sqrt() * self.keys

    @property
    def residual(self) -> Float64[Tensor, "d_v n"]:
        """Residuals times the roots of their weights, √w (V − W₀K)."""
        return self.weights.sqrt() * (self.values - self.outputs)

    def blocks(self) -> Iterator["Facts"]:
        """The facts, some after the other; here all at once."""
        yield self

    def take(self, columns: Sequence[int]) -> "Facts":
        """Facts in these columns, in this order."""
        at = list(columns)
        pick = (self.keys[:, at], self.values[:, at], self.weights[at], self.outputs[:, at])
        return Facts(tuple(self.ids[i] for i in at), *pick)

    def others(self, columns: Sequence[int]) -> list[int]:
        """All column indices except these."""
        gone = set(columns)
        return [i for i in range(len(self)) if i not in gone]

    def without(self, columns: Sequence[int]) -> "Facts":
        """All facts except those in these columns."""
        return self.take(self.others(columns)) if columns else self

    def put(self, columns: Sequence[int], values: Float64[Tensor, "d_v m"]) -> "Facts":
        """The same facts, with other values in some columns."""
        if not columns:
            return self
        fresh = self.values.clone()
        fresh[:, list(columns)] = values
        return replace(self, values=fresh)

    def join(self, other: "Facts") -> "Facts":
        """These facts, followed by the others."""
        if not len(other):
            return self
        return Facts(
            self.ids + other.ids,
            torch.cat([self.keys, other.keys], 1),
            torch.cat([self.values, other.values], 1),
            torch.cat([self.weights, other.weights]),
            torch.cat([self.outputs, other.outputs], 1),
        )


def unique(ids: Sequence[str]) -> tuple[str, ...]:
    """Ids as a tuple of distinct strings.

    Raises:
        LedgerError: if an id is not a string or is given twice, or if ``ids`` is a single string.
    """
    if isinstance(ids, str):
        raise LedgerError(f"ids must be a list of texts, got the one text {ids!r}; write [{ids!r}]")
    for name, times in Counter(ids).items():
        if not isinstance(name, str):
            raise LedgerError(f"id {name!r} is no text; write {str(name)!r}")
        if times > 1:
            raise LedgerError(f"id {name!r} is given {times} times in one call; give every fact its own id")
    return tuple(ids)


def check(name: str, tensor: Tensor, shape: tuple[int | str, ...]) -> None:
    """Check the shape of a ledger's input, and that it is finite.

    Raises:
        ShapeError, NonFiniteError: as `palimpsest.algebra.checks.expect`; the ledger is unchanged.
    """
    expect(name, tensor, shape, "nothing was changed")
