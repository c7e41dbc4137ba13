"""A Cholesky factor that grows by blocks at its end and shrinks by rows anywhere. Pure tensors.

With S = L Lᵀ of size N, appending or removing n rows costs O(N² n), where factorising S anew costs O(N³).
Removing rows f leaves L without those rows times its transpose, and with the columns split the same way

    S_ss = L_ss L_ssᵀ + L_sf L_sfᵀ,

a positive update of rank n, which orthogonal transformations carry out without any loss of definiteness
(Golub and Van Loan, Matrix Computations, 4th ed., §6.5). It is done panel by panel, so that nearly all of
the work is matrix products.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float64
from torch import Tensor

from palimpsest.errors import SingularProblemError

PANEL = 48
"""Columns transformed together when few rows are removed; only speed depends on it."""
POWER_STEPS = 12


@dataclass(frozen=True)
class Cholesky:
    """The lower triangular L of a positive definite S = L Lᵀ; every method returns a new factor.

    Attributes:
        lower: L (n, n) with a positive diagonal.
    """

    lower: Float64[Tensor, "n n"]

    @classmethod
    def of(cls, matrix: Float64[Tensor, "n n"]) -> "Cholesky":
        """Factor of a symmetric matrix, of which the lower triangle is read.

        Raises:
            SingularProblemError: if the matrix is not positive definite.
        """
        lower, info = torch.linalg.cholesky_ex(matrix)
        if int(info) != 0:
            raise SingularProblemError(
                f"the {len(matrix)} × {len(matrix)} matrix is not positive definite (pivot {int(info)}); "
                "raise the ridge, or remove dependent columns"
            )
        return cls(lower)

    def __len__(self) -> int:
        return len(self.lower)

    def append(self, cross: Float64[Tensor, "n m"], corner: Float64[Tensor, "m m"]) -> "Cholesky":
        """Factor of [[S, cross], [crossᵀ, corner]].

        Raises:
            SingularProblemError: if the larger matrix is not positive definite.
        """
        n, m = cross.shape
        left = torch.linalg.solve_triangular(self.lower, cross, upper=False).T
        lower = self.lower.new_zeros(n + m, n + m)
        lower[:n, :n] = self.lower
        lower[n:, :n] = left
        lower[n:, n:] = Cholesky.of(corner - left @ left.T).lower
        return Cholesky(lower)

    def remove(self, rows: Sequence[int]) -> "Cholesky":
        """Factor of S without these rows and columns; the others keep their order."""
        gone = sorted(set(rows))
        if not gone:
            return self
        stay = sorted(set(range(len(self))) - set(gone))
        first = gone[0]
        lower, extra = self.lower[stay][:, stay], self.lower[stay[first:]][:, gone]
        for start in range(first, len(stay), max(PANEL, len(gone))):
            width = min(max(PANEL, len(gone)), len(stay) - start)
            extra = _absorb(lower[start:, start : start + width], extra)
        return Cholesky(lower)

    def tail(self, m: int) -> "Cholesky":
        """Factor of the Schur complement of all but the last m rows, (m, m)."""
        n = len(self) - m
        return Cholesky(self.lower[n:, n:])

    def solve(self, right: Float64[Tensor, "n m"]) -> Float64[Tensor, "n m"]:
        """S⁻¹ times the columns of ``right``."""
        return torch.cholesky_solve(right, self.lower)

    @cached_property
    def condition(self) -> float:
        """Condition number of S by power iterations on S and S⁻¹, a close lower bound; 1 if empty."""
        if len(self) == 0:
            return 1.0
        seeded = torch.Generator().manual_seed(0)
        start = torch.randn(len(self), 4, dtype=torch.float64, generator=seeded).to(self.lower)
        big, small = start, start
        for _ in range(POWER_STEPS):
            big = self.lower @ (self.lower.T @ (big / big.norm(dim=0)))
            small = self.solve(small / small.norm(dim=0))
        return float(big.norm(dim=0).max() * small.norm(dim=0).max())


def _absorb(panel: Float64[Tensor, "t b"], extra: Float64[Tensor, "t m"]) -> Float64[Tensor, "u m"]:
    """Turn [panel, extra] so that the panel's top is triangular again and nothing of extra is left beside it.

    Args:
        panel: columns of a trailing factor from their diagonal down; overwritten.
        extra: the columns to take in.

    Returns:
        What remains of extra below the panel's top, u = t − b.
    """
    b = panel.shape[1]
    both = torch.cat([panel, extra], 1)
    turn, upper = torch.linalg.qr(both[:b].T, mode="complete")
    sign = torch.where(upper.diagonal() < 0, -1.0, 1.0).to(upper)
    panel[:b] = upper[:b].T * sign
    below = both[b:] @ turn
    panel[b:] = below[:, :b] * sign
    return below[:, b:]
