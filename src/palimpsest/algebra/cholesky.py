"""Cholesky factor that can be updated, and the condition number of what it factorises.

With S = L Lᵀ of size N, rows are appended at the end and removed anywhere, and matrices of low rank n are
added and subtracted. Each costs O(N² n), whereas refactorising S costs O(N³). Let rows f be removed and rows
s stay. With the columns of L split in the same way,

    S_ss = L_ss L_ssᵀ + L_sf L_sfᵀ,

an update of rank n with positive sign. Orthogonal transformations carry it out without any loss of
definiteness, and a subtraction too, if its outcome is definite (Golub and Van Loan, Matrix Computations,
4th ed., §6.5). They are made panel by panel, so that nearly all of the work is matrix products.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Float64
from torch import Tensor

from palimpsest.errors import SingularProblemError

PANEL = 48
"""Columns transformed together when few rows are removed; affects only speed."""
POWER_STEPS = 12
PER_STEP = 32
"""Rank of a change for which a condition estimate from earlier directions makes one more iteration."""
WIDTH = 4
"""Directions in which a condition number is estimated together."""

Linear = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Extremes:
    """Directions in which a positive definite matrix H is largest and smallest.

    Attributes:
        big, small: orthonormal columns, at most `WIDTH` each, the most extreme one first.
        largest, least: estimates of the largest eigenvalue, from below, and of the smallest, from above.
    """

    big: Float64[Tensor, "n r"]
    small: Float64[Tensor, "n q"]
    largest: float
    least: float

    @classmethod
    def of(cls, apply: Linear, inverse: Linear, start: Float64[Tensor, "n r"]) -> "Extremes":
        """Extremes of H from its products with H and H⁻¹, by subspace iteration from ``start``."""
        return cls(start, start, 1.0, 1.0)._searched(apply, inverse, start, start, POWER_STEPS)

    @property
    def condition(self) -> float:
        """Estimated condition number (a close lower bound); infinite after an overflow, 1 if H is empty."""
        known = math.isfinite(self.largest) and self.least > 0
        return max(self.largest / self.least, 1.0) if known else math.inf

    def after(
        self,
        apply: Linear,
        inverse: Linear,
        big: Float64[Tensor, "n b"],
        small: Float64[Tensor, "n s"],
        changed: int = 1,
    ) -> "Extremes":
        """Extremes after a change of H, searched from given directions.

        Args:
            apply: product with the changed H.
            inverse: product with its inverse.
            big: directions to begin with: the earlier ones, and those that the change brings in.
            small: the same for the inverse.
            changed: rank of the change; the larger, the more iterations.
        """
        return self._searched(apply, inverse, big, small, min(1 + changed // PER_STEP, POWER_STEPS))

    def _searched(self, apply: Linear, inverse: Linear, big: Tensor, small: Tensor, steps: int) -> "Extremes":
        """Subspace iteration from (n, b) and (n, s)."""
        if not len(big):
            return Extremes(big, small, 1.0, 1.0)
        for _ in range(steps):
            big, small = apply(torch.linalg.qr(big).Q), inverse(torch.linalg.qr(small).Q)
            if not bool(torch.isfinite(big).all() and torch.isfinite(small).all()):
                return Extremes(self.big, self.small, math.inf, 0.0)
        (big, largest), (small, growth) = _leading(big), _leading(small)
        return Extremes(big, small, largest, 1 / growth if growth > 0 else math.inf)


def _leading(columns: Float64[Tensor, "n m"]) -> tuple[Float64[Tensor, "n r"], float]:
    """Leading left singular vectors, at most `WIDTH`, and the largest singular value."""
    directions, upper = torch.linalg.qr(columns)
    left, sizes, _ = torch.linalg.svd(upper)
    return directions @ left[:, :WIDTH], float(sizes[0])


def times(matrix: Float64[Tensor, "a b"], columns: Float64[Tensor, "b n"]) -> Float64[Tensor, "a n"]:
    """Product of a matrix and a few columns.

    In this form the product is fast for either order of the matrix in memory; ``matrix @ columns`` takes
    about ten times as long if neighbours in a column of the matrix are neighbours in memory.
    """
    return (columns.T @ matrix.T).T


def random_columns(n: int, m: int, like: Tensor) -> Float64[Tensor, "n m"]:
    """Normal numbers (n, m) in float64, the same at each call."""
    seeded = torch.Generator().manual_seed(0)
    return torch.randn(n, m, dtype=torch.float64, generator=seeded).to(like)


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
        _absorb_all(lower, extra, first)
        return Cholesky(lower)

    def plus(self, columns: Float64[Tensor, "n m"]) -> "Cholesky":
        """Factor of S + C Cᵀ for columns C."""
        lower = self.lower.clone()
        _absorb_all(lower, _narrow(columns), 0)
        return Cholesky(lower)

    def minus(self, columns: Float64[Tensor, "n m"]) -> "Cholesky":
        """Factor of S − C Cᵀ for columns C.

        With p = L⁻¹C and αᵀα = I − pᵀp, the columns of [p; α] are orthonormal. A rotation of [L, 0] that
        moves them to the last places leaves C there, and the new factor before it.

        Raises:
            SingularProblemError: if S − C Cᵀ is not positive definite.
        """
        if not columns.shape[1]:
            return self
        columns = _narrow(columns)
        inner = torch.linalg.solve_triangular(self.lower, columns, upper=False)  # p (n, m)
        rest = torch.eye(columns.shape[1]).to(inner) - inner.T @ inner
        corner = Cholesky.of(rest).lower.T  # α (m, m)
        lower, extra = self.lower.clone(), columns[:0]
        width = max(PANEL, columns.shape[1])
        for start in reversed(range(0, len(self), width)):
            panel = slice(start, start + width)
            corner, extra = _emit(lower[start:, panel], inner[panel], corner, extra)
        return Cholesky(lower)

    def tail(self, m: int) -> "Cholesky":
        """Factor of the Schur complement (m, m) of the first n − m rows and columns in S."""
        n = len(self) - m
        return Cholesky(self.lower[n:, n:])

    def solve(self, right: Float64[Tensor, "n m"]) -> Float64[Tensor, "n m"]:
        """S⁻¹ times the columns of ``right``, (n, m)."""
        half = torch.linalg.solve_triangular(self.lower, right, upper=False)
        return torch.linalg.solve_triangular(self.lower.T, half, upper=True)

    def product(self, right: Float64[Tensor, "n m"]) -> Float64[Tensor, "n m"]:
        """S times the columns of ``right``, (n, m)."""
        return times(self.lower, times(self.lower.T, right))

    @cached_property
    def extremes(self) -> Extremes:
        """Extreme directions of S, estimated without earlier ones."""
        return Extremes.of(self.product, self.solve, random_columns(len(self), WIDTH, self.lower))

    @property
    def condition(self) -> float:
        """Estimated condition number of S (a close lower bound); 1 if empty."""
        return self.extremes.condition


def _absorb_all(lower: Float64[Tensor, "n n"], extra: Float64[Tensor, "t m"], first: int) -> None:
    """Make ``lower`` the factor of L Lᵀ + E Eᵀ, in place; E is 0 above row ``first``, and ``extra`` below."""
    n, width = len(lower), max(PANEL, extra.shape[1])
    for start in range(first, n, width):
        extra = _absorb(lower[start:, start : start + width], extra)


def _narrow(columns: Float64[Tensor, "n m"]) -> Float64[Tensor, "n r"]:
    """At most n columns C with the same C Cᵀ."""
    n, m = columns.shape
    return columns if m <= n else torch.linalg.qr(columns.T, mode="r").R.T


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


def _emit(
    panel: Float64[Tensor, "t b"],
    inner: Float64[Tensor, "b m"],
    corner: Float64[Tensor, "m m"],
    extra: Float64[Tensor, "u m"],
) -> tuple[Float64[Tensor, "m m"], Float64[Tensor, "t m"]]:
    """Rotate [panel, extra] so that [inner; corner] becomes [0; corner'], and the panel stays triangular.

    Args:
        panel: columns of a trailing factor from their diagonal down, (t, b); overwritten.
        inner: rows of p that belong to the panel, (b, m).
        corner: α (m, m).
        extra: columns rotated out of the panels below, (u, m) with u = t − b.

    Returns:
        α' (m, m), and the columns rotated out so far, (t, m).
    """
    (b, m), t = inner.shape, len(panel)
    turn, upper = torch.linalg.qr(torch.cat([inner, corner]), mode="complete")  # (b + m, b + m), (b + m, m)
    turn = turn.roll(-m, 1)  # what was [p; α] comes last
    again, top = torch.linalg.qr((panel[:b] @ turn[:b, :b]).T)  # (b, b) each
    sign = torch.where(top.diagonal() < 0, -1.0, 1.0).to(top)
    turn = torch.cat([turn[:, :b] @ (again * sign), turn[:, b:]], 1)
    both = torch.cat([panel, torch.cat([panel.new_zeros(b, m), extra])], 1)  # (t, b + m)
    turned = both @ turn
    panel[:b] = top.T * sign
    panel[b:] = turned[b:, :b]
    return upper[:m], turned[:t, b:]
