"""The one-time problem of a ledger without its facts, and a step from one solution to the next.

    minimise over D = DP:   Σ w_i ‖(W₀ + D) k_i − v_i‖² + tr(D M Dᵀ) + λ‖D‖²

The columns of K and of R = V − W₀K are scaled by √w, and A = M + λI on range(P).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Generic, TypeVar

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from palimpsest.algebra.cholesky import Cholesky
from palimpsest.algebra.fact_file import mapped
from palimpsest.algebra.ledger_facts import Facts
from palimpsest.algebra.projector import Projector
from palimpsest.algebra.solve import CONDITION_LIMIT, PROTECTED_KEY
from palimpsest.errors import SingularProblemError

WELL_CONDITIONED = 1e4
"""Condition number up to which a form is kept: its errors are about 1e-15 times that number."""
EPS, HUGE = torch.finfo(torch.float64).eps, torch.finfo(torch.float64).max
DRIFT = 3e-15
"""Relative backward error above which a solution is recomputed from the facts."""
PROBES = 4
"""Random columns on which a backward error is measured."""

Form = TypeVar("Form")


@dataclass(frozen=True)
class Problem:
    """The one-time problem without its facts.

    Args:
        preserve: M (d_k, d_k), or None for zero.
        ridge: λ.
        projector: P.
    """

    preserve: Float[Tensor, "d_k d_k"] | None
    ridge: float
    projector: Projector

    @cached_property
    def factor(self) -> Cholesky | None:
        """Cholesky factor of A in the projector's coordinates; None if A is a multiple of I, or singular."""
        if self.preserve is None or not self.projector.kept:
            return None
        try:
            found = Cholesky.of(self.projector.pad(self.matrix()))
        except SingularProblemError:
            return None
        return found if found.condition <= CONDITION_LIMIT else None

    def spill(self) -> None:
        """Keep M in a temporary file from now on: it was needed for the factor, and is seldom read again."""
        if self.preserve is not None:
            object.__setattr__(self, "preserve", mapped(self.preserve))  # the same numbers elsewhere

    @cached_property
    def condition(self) -> float:
        """Condition number of A on range(P); infinite if it is singular."""
        if not self.projector.kept:
            return 1.0
        if self.preserve is None:
            return 1.0 if self.ridge > 0 else float("inf")
        return float("inf") if self.factor is None else self.factor.condition

    def matrix(self) -> Float64[Tensor, "c c"]:
        """A in the projector's coordinates, zero in protected directions."""
        held, d_k = self.projector.basis, self.projector.dim
        held = self.projector.complement if held is None else held
        assert held is not None  # a projector holds one of both
        full = torch.zeros(d_k, d_k, dtype=torch.float64, device=held.device)
        if self.preserve is not None:
            full = self.preserve.double()
            full = (full + full.T).div_(2)
        full.diagonal().add_(self.ridge)
        return self.projector.restrict(full)

    def keys(self, facts: Facts) -> Float64[Tensor, "d_k n"]:
        """√w K, and 0 for protected keys, where the rounding error in PK would count as a direction."""
        keys = facts.scaled_keys
        inside, whole = self.projector.apply(keys).norm(dim=0), keys.norm(dim=0)  # (n,) each
        # The condition (n,) broadcasts over the rows of (d_k, n).
        return torch.where(inside <= PROTECTED_KEY * whole.clamp(max=HUGE), 0.0, keys)

    def inside(self, y: Float64[Tensor, "c n"]) -> Float64[Tensor, "c n"]:
        """The part of columns in the projector's coordinates that lies in range(P)."""
        return y if self.projector.basis is not None else self.projector.apply(y)

    def metric(self, x: Float64[Tensor, "d_k n"]) -> Float64[Tensor, "d_k n"]:
        """P A P x, for columns x and an A that is not singular."""
        if self.factor is None:
            return self.ridge * self.projector.apply(x)
        return self.projector.embed(self.factor.product(self.projector.coordinates(x)))

    def inverse(self, x: Float64[Tensor, "d_k n"]) -> Float64[Tensor, "d_k n"]:
        """P A⁻¹ P x, for columns x and an A that is not singular."""
        if not self.projector.kept:
            return torch.zeros_like(x)
        if self.factor is None:
            return self.projector.apply(x) / self.ridge
        # (d_k, n) -> coordinates (c, n) -> (d_k, n)
        return self.projector.embed(self.factor.solve(self.projector.coordinates(x)))

    def refusal(self, n: int, what: str) -> SingularProblemError:
        """The error for n facts without a unique solution, with its cause and the remedy."""
        preserve = "no preserve" if self.preserve is None else "preserve given"
        return SingularProblemError(
            f"the problem has no unique solution ({what}): {n} keys on {self.projector.kept} free "
            f"directions, ridge {self.ridge:g}, {preserve}. Raise ridge above 0, give preserve a positive "
            "definite second moment (more tokens), or remove repeated, dependent or protected keys"
        )


@dataclass(frozen=True)
class SolutionStep(Generic[Form]):
    """A solution and its difference ΔW = left @ rightᵀ to the one before.

    Attributes:
        after: the new solution.
        left: (d_v, r).
        right: (d_k, r); None stands for the identity, r = d_k.
    """

    after: Form
    left: Float64[Tensor, "d_v r"]
    right: Float64[Tensor, "d_k r"] | None

    def delta(self, dtype: torch.dtype) -> Float[Tensor, "d_v d_k"]:
        """ΔW (d_v, d_k), multiplied out in this dtype."""
        left = self.left.to(dtype)
        return left if self.right is None else left @ self.right.to(dtype).T


def random_mix(columns: Float64[Tensor, "n m"], most: int = 2) -> Float64[Tensor, "n r"]:
    """At most two columns: these, or fixed random combinations of them."""
    if columns.shape[1] <= most:
        return columns
    seeded = torch.Generator().manual_seed(1)
    mix = torch.randn(columns.shape[1], most, dtype=torch.float64, generator=seeded)  # (m, r)
    return columns @ mix.to(columns)
