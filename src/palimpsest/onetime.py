"""The one-time problem behind a ledger: all facts at once, anchored at the unedited weight.

    minimise over D = DP:   Σ w_i ‖(W₀ + D) k_i − v_i‖² + tr(D M Dᵀ) + λ‖D‖²

With columns scaled by √w_i this is the problem of `palimpsest.solve` for R = V − W₀K.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from palimpsest.errors import LedgerError, NonFiniteError, ShapeError
from palimpsest.projector import Projector
from palimpsest.solve import LeastSquares, solve


@dataclass(frozen=True)
class Facts:
    """Facts as columns, in float64.

    Attributes:
        ids: names, each once.
        keys: K (d_k, n).
        values: V (d_v, n).
        weights: w (n,), above 0.
        residual: R = V − W₀K (d_v, n).
    """

    ids: tuple[str, ...]
    keys: Float64[Tensor, "d_k n"]
    values: Float64[Tensor, "d_v n"]
    weights: Float64[Tensor, " n"]
    residual: Float64[Tensor, "d_v n"]

    def take(self, columns: Sequence[int]) -> "Facts":
        """The facts in these columns, in this order."""
        at = torch.tensor(columns, dtype=torch.long, device=self.keys.device)
        pick = (self.keys[:, at], self.values[:, at], self.weights[at], self.residual[:, at])
        return Facts(tuple(self.ids[i] for i in columns), *pick)

    def without(self, columns: Sequence[int]) -> "Facts":
        """All facts but those in these columns."""
        gone = set(columns)
        return self.take([i for i in range(len(self.ids)) if i not in gone]) if gone else self

    def put(self, columns: Sequence[int], other: "Facts") -> "Facts":
        """These facts with the values in some columns replaced by those of other facts."""
        at = torch.tensor(columns, dtype=torch.long, device=self.keys.device)
        values = self.values.index_copy(1, at, other.values)
        return replace(self, values=values, residual=self.residual.index_copy(1, at, other.residual))

    def join(self, other: "Facts") -> "Facts":
        """These facts, then the others."""
        return Facts(
            self.ids + other.ids,
            torch.cat([self.keys, other.keys], 1),
            torch.cat([self.values, other.values], 1),
            torch.cat([self.weights, other.weights]),
            torch.cat([self.residual, other.residual], 1),
        )


@dataclass(frozen=True)
class Problem:
    """What a ledger is anchored at and what it must preserve."""

    base: Float[Tensor, "d_v d_k"]
    preserve: Float[Tensor, "d_k d_k"] | None = None
    ridge: float = 0.0
    projector: Projector | None = None
    empty: Facts = field(init=False)

    def __post_init__(self) -> None:
        check("weight", self.base, ("d_v", "d_k"))
        keys, values = self.base.new_zeros(self.base.shape[1], 0), self.base.new_zeros(len(self.base), 0)
        LeastSquares(keys, values, self.preserve, self.ridge, self.projector)  # raises what does not fit
        object.__setattr__(self, "empty", self.facts((), keys, values, None))

    def facts(self, ids: Sequence[str], keys: Tensor, values: Tensor, weights: Tensor | None) -> Facts:
        """Facts from what a user gave, checked and in float64."""
        if isinstance(ids, str):
            raise LedgerError(f"ids must be a list of names, got the one text {ids!r}; write [{ids!r}]")
        names, device = tuple(ids), self.base.device
        again = [name for i, name in enumerate(names) if name in names[:i]]
        if again:
            raise LedgerError(f"id {again[0]!r} is given twice in one call; give every fact its own id")
        d_v, d_k = self.base.shape
        check("keys", keys, (d_k, len(names)))
        check("values", values, (d_v, len(names)))
        weights = torch.ones(len(names), device=device) if weights is None else weights
        check("weights", weights, (len(names),))
        if not (weights > 0).all():
            worst = int(weights.argmin())
            raise LedgerError(
                f"the weight of {names[worst]!r} is {float(weights[worst]):g}; weights must be above 0, "
                "use forget to remove a fact"
            )
        k, v, w = (t.detach().to(device, torch.float64) for t in (keys, values, weights))
        return Facts(names, k, v, w, v - self.base.double() @ k)

    def fit(self, facts: Facts) -> "Fit":
        """The one-time solution over these facts."""
        root = facts.weights.sqrt()
        found = solve(
            LeastSquares(root * facts.keys, root * facts.residual, self.preserve, self.ridge, self.projector)
        )
        return Fit(facts, found.delta, found.condition)


@dataclass(frozen=True)
class Fit:
    """A solved one-time problem."""

    facts: Facts
    delta: Float64[Tensor, "d_v d_k"]
    condition: float

    def total(self) -> Float64[Tensor, "d_v d_k"]:
        """D."""
        return self.delta


def check(name: str, tensor: Tensor, shape: tuple[int | str, ...]) -> None:
    """Check a tensor's shape (a name stands for any length) and that it is finite.

    Raises:
        ShapeError, NonFiniteError: naming the tensor.
    """
    fits = tensor.ndim == len(shape) and all(
        isinstance(want, str) or have == want for have, want in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        raise ShapeError(f"{name} must have shape ({wanted}), got {tuple(tensor.shape)}; nothing was changed")
    if not torch.isfinite(tensor).all():
        raise NonFiniteError(f"{name} holds NaN or infinity; nothing was changed")
