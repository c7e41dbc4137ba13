"""Random editing problems in float64, on which statements about every key, residual and projector are tested.

All draws come from one generator, in the order in which they are asked for, so that a seed names a whole
series of problems.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from palimpsest.algebra.projector import null_space
from palimpsest.algebra.solve import LeastSquares
from palimpsest.algebra.spectrum import relative
from palimpsest.errors import UnknownNameError
from palimpsest.theory.labyrinth import FactBatch, RunProblem

RIDGES = (-2.0, 2.0)
"""Powers of ten between which λ is drawn."""

PROJECTORS = ("identity", "exact", "thresholded", "semidefinite", "oblique", "arbitrary")
"""Kinds of P: ``exact`` removes span(K_0), ``thresholded`` the stronger half of it, ``oblique`` is its own
square and not symmetric; ``semidefinite`` and ``arbitrary`` are no projectors."""


class Draws:
    """A seeded series of random numbers, matrices and problems.

    Attributes:
        generator: source of all draws; every draw advances it.
    """

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal matrix, float64."""
        return torch.randn(*shape, dtype=torch.float64, generator=self.generator)

    def whole(self, low: int, high: int) -> int:
        """Whole number from low to high, both included."""
        return int(torch.randint(low, high + 1, (), generator=self.generator))

    def power(self, low: float, high: float) -> float:
        """Ten to a power that is uniform between low and high."""
        return 10 ** (low + (high - low) * float(torch.rand((), generator=self.generator)))

    def edit_problem(
        self, new: int = 1, past: int = 0
    ) -> tuple[LeastSquares, Float[Tensor, "d_k n_0"], Float[Tensor, "d_k past"]]:
        """An edit under a projector that removes exactly the span of its preserved keys.

        Keys have width 4 to 40 and values 1 to 12; the norm of keys varies by a factor of a hundred, and
        preserved keys span from one direction to all but two.

        Args:
            new: facts to write.
            past: keys of earlier facts.

        Returns:
            The problem, its preserved keys K_0, and the earlier keys.
        """
        d_k = self.whole(4, 40)
        preserved = self.normal(d_k, self.whole(1, d_k - 2))
        projector = null_space(preserved @ preserved.T, relative(1e-12))
        scale, residual = self.power(-1, 1), self.normal(self.whole(1, 12), new)
        keys = scale * self.normal(d_k, new)
        problem = LeastSquares(keys, residual, None, self.power(*RIDGES), projector)
        return problem, preserved, scale * self.normal(d_k, past)

    def run_problem(
        self, kind: str, ridge: float | None = None
    ) -> tuple[RunProblem, list[FactBatch], Float[Tensor, "d_k n_0"]]:
        """A sequence of two to six batches of one to six facts, keys of width 4 to 24, values 1 to 8.

        Args:
            kind: of P, a name from `PROJECTORS`.
            ridge: λ; by default drawn between the powers `RIDGES`.

        Returns:
            The problem, its batches, and the preserved keys K_0 that make up its moment.

        Raises:
            UnknownNameError: if there is no such kind.
        """
        d_k = self.whole(4, 24)
        weight = self.normal(self.whole(1, 8), d_k)
        preserved = self.normal(d_k, self.whole(1, d_k - 2)) / d_k**0.5
        ridge = self.power(*RIDGES) if ridge is None else ridge
        problem = RunProblem(weight, preserved @ preserved.T, self.projector(kind, preserved), ridge)
        sizes = [self.whole(1, 6) for _ in range(self.whole(2, 6))]
        return problem, self.batches(weight, sizes, self.power(-0.5, 1)), preserved

    def batches(
        self, weight: Float[Tensor, "d_v d_k"], sizes: list[int], scale: float = 1.0
    ) -> list[FactBatch]:
        """Batches of these sizes: keys of a norm near ``scale``, residuals with unit variance per entry."""
        batches = []
        for size in sizes:
            keys = scale * self.normal(weight.shape[1], size) / weight.shape[1] ** 0.5
            batches.append(FactBatch(keys, weight @ keys + self.normal(len(weight), size)))
        return batches

    def projector(self, kind: str, preserved: Float[Tensor, "d_k n_0"]) -> Float[Tensor, "d_k d_k"]:
        """P of one of the kinds `PROJECTORS`, for these preserved keys.

        Raises:
            UnknownNameError: if there is no such kind.
        """
        if kind not in PROJECTORS:
            raise UnknownNameError("kind of projector", kind, list(PROJECTORS))
        d = len(preserved)
        values, vectors = torch.linalg.eigh(preserved @ preserved.T)
        spanned = int((values > 1e-9 * values[-1]).sum())
        mixed, half = self.normal(d, d), d // 2
        if kind in ("exact", "thresholded"):
            removed = spanned if kind == "exact" else (spanned + 1) // 2
            return vectors[:, : d - removed] @ vectors[:, : d - removed].T
        if kind == "semidefinite":
            return mixed @ mixed.T / d
        if kind == "oblique":
            left, right = mixed[:, :half], mixed[:, :half] + 0.3 * self.normal(d, half)
            return left @ torch.linalg.solve(right.T @ left, right.T)
        return torch.eye(d).double() if kind == "identity" else mixed
