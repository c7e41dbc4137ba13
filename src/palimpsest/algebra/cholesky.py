"""Cholesky factor that can be updated: rows are appended at the end and removed anywhere.

With S = L Lᵀ of size N, appending or removing n rows costs O(N² n), whereas refactorising S costs O(N³).
Let rows f be removed and rows s stay. With the columns of L split in the same way,

    S_ss = L_ss L_ssᵀ + L_sf L_sfᵀ,

an update of rank n with positive sign. Orthogonal transformations carry it out without any loss of
definiteness (Golub and Van Loan, Matrix Computations, 4th ed., §6.5), panel by panel, so that nearly all of
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
"""Columns transformed together when few rows are removed; affects only speed."""
POWER_STEPS = 12


@dataclass(frozen=True)
class Cholesky:
    """Lower triangular factor L of a positive definite S = L Lᵀ; every change returns a new factor.

    Attributes:
        lower: L (n, n) with a positive diagonal.
    """

    lower: Float64[Tensor, "n n"]

    @classmethod
    def of(cls, matrix: Float64[Tensor, "n n"]) -> "Cholesky":
        """Factor of a symmetric matrix, of which only the lower triangle is read.

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
        left = torch.linalg.solve_triangular(self.lower, cross, upper=False).T  # (m, n)
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
        # L_ss (s, s), and the rows of L_sf from the first change on (s − first, f); L_sf is 0 above them.
        lower, extra = self.lower[stay][:, stay], self.lower[stay[first:]][:, gone]
        for start in range(first, len(stay), max(PANEL, len(gone))):
            width = min(max(PANEL, len(gone)), len(stay) - start)
            extra = _absorb(lower[start:, start : start + width], extra)
        return Cholesky(lower)

    def tail(self, m: int) -> "Cholesky":
        """Factor of the Schur complement (m, m) of the first n − m rows and columns in S."""
        n = len(self) - m
        return Cholesky(self.lower[n:, n:])

    def solve(self, right: Float64[Tensor, "n m"]) -> Float64[Tensor, "n m"]:
        """S⁻¹ times the columns of ``right``, (n, m)."""
        return torch.cholesky_solve(right, self.lower)

    @cached_property
    def condition(self) -> float:
        """Estimated condition number of S (power iterations, a close lower bound); 1 if empty."""
        if len(self) == 0:
            return 1.0
        seeded = torch.Generator().manual_seed(0)
        start = torch.randn(len(self), 4, dtype=torch.float64, generator=seeded).to(self.lower)  # (n, 4)
        big, small = start, start
        for _ in range(POWER_STEPS):
            big = self.lower @ (self.lower.T @ (big / big.norm(dim=0)))
            small = self.solve(small / small.norm(dim=0))
        return float(big.norm(dim=0).max() * small.norm(dim=0).max())


def _absorb(panel: Float64[Tensor, "t b"], extra: Float64[Tensor, "t m"]) -> Float64[Tensor, "u m"]:
    """Rotate [panel, extra] so that the panel's top b rows become triangular and those of extra become zero.

    Args:
        panel: columns of a trailing factor from their diagonal down, (t, b); overwritten.
        extra: columns to absorb, (t, m).

    Returns:
        The rows of extra below the panel's top, (u, m) with u = t − b.
    """
    b = panel.shape[1]
    both = torch.cat([panel, extra], 1)  # (t, b + m)
    turn, upper = torch.linalg.qr(both[:b].T, mode="complete")  # (b + m, b + m), (b + m, b)
    sign = torch.where(upper.diagonal() < 0, -1.0, 1.0).to(upper)
    panel[:b] = upper[:b].T * sign
    below = both[b:] @ turn  # (u, b + m)
    panel[b:] = below[:, :b] * sign
    return below[:, b:]
