"""Facts as columns of matrices, and the checks on what a caller gives for them. Pure tensors."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64
from torch import Tensor

from palimpsest.errors import LedgerError, NonFiniteError, ShapeError


@dataclass(frozen=True)
class Facts:
    """Facts as columns, in float64.

    Attributes:
        ids: names, each once.
        keys: K (d_k, n).
        values: V (d_v, n).
        weights: w (n,), above 0.
        outputs: W₀K (d_v, n), what the unedited weight gives.
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
        """√w K."""
        return self.weights.sqrt() * self.keys

    @property
    def residual(self) -> Float64[Tensor, "d_v n"]:
        """√w (V − W₀K)."""
        return self.weights.sqrt() * (self.values - self.outputs)

    def take(self, columns: Sequence[int]) -> "Facts":
        """The facts in these columns, in this order."""
        at = list(columns)
        pick = (self.keys[:, at], self.values[:, at], self.weights[at], self.outputs[:, at])
        return Facts(tuple(self.ids[i] for i in at), *pick)

    def others(self, columns: Sequence[int]) -> list[int]:
        """All columns but these."""
        gone = set(columns)
        return [i for i in range(len(self)) if i not in gone]

    def without(self, columns: Sequence[int]) -> "Facts":
        """All facts but those in these columns."""
        return self.take(self.others(columns)) if columns else self

    def put(self, columns: Sequence[int], values: Float64[Tensor, "d_v m"]) -> "Facts":
        """The same facts with other values in some columns."""
        fresh = self.values.clone()
        fresh[:, list(columns)] = values
        return replace(self, values=fresh)

    def join(self, other: "Facts") -> "Facts":
        """These facts, then the others."""
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
    """Ids as a tuple of different texts."""
    if isinstance(ids, str):
        raise LedgerError(f"ids must be a list of texts, got the one text {ids!r}; write [{ids!r}]")
    for name, times in Counter(ids).items():
        if not isinstance(name, str):
            raise LedgerError(f"id {name!r} is no text; write {str(name)!r}")
        if times > 1:
            raise LedgerError(f"id {name!r} is given {times} times in one call; give every fact its own id")
    return tuple(ids)


def check(name: str, tensor: Tensor, shape: tuple[int | str, ...]) -> None:
    """Check a tensor's shape (a name stands for any length) and that it is finite."""
    fits = tensor.ndim == len(shape) and all(
        isinstance(want, str) or have == want for have, want in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        raise ShapeError(f"{name} must have shape ({wanted}), got {tuple(tensor.shape)}; nothing was changed")
    if not torch.isfinite(tensor).all():
        raise NonFiniteError(f"{name} holds NaN or infinity; nothing was changed")
