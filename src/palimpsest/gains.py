"""What the objective of an edit gains from one more free direction, by an N × N recursion in float64.

For Δ = ΔP the smallest value of ‖ΔK − R‖² + λ‖Δ‖² is J(P) = λ tr(RMRᵀ) with M = (KᵀPK + λI)⁻¹. Directions
added to P add their images g = Kᵀu to the Gram matrix, so that no d_k × d_k matrix is ever needed.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from palimpsest.errors import SingularProblemError

REFRESH = 50
"""Added directions after which M is inverted anew, so that rounding does not pile up."""


class Gains:
    """M for P and the directions added so far, and what any others would gain.

    Args:
        inside: PK (d_k, N).
        images: g = Kᵀu of every direction that may be added, (N, m).
        residual: R (d_v, N).
        ridge: λ.

    Raises:
        SingularProblemError: if λ is not above 0.
    """

    def __init__(
        self,
        inside: Float[Tensor, "d_k n"],
        images: Float[Tensor, "n m"],
        residual: Float[Tensor, "d_v n"],
        ridge: float,
    ) -> None:
        self.gram, self.images, self.ridge = inside.T @ inside, images, ridge
        self.root = torch.linalg.qr(residual, mode="r").R  # ‖root q‖ = ‖Rq‖ without the d_v rows
        self.inverse, self.since = shifted_inverse(self.gram, ridge), 0

    def objective(self) -> float:
        """J as it is now."""
        return float(self.ridge * (self.root @ self.inverse * self.root).sum())

    def alone(self, which: Int64[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Fall of J for each direction if it were added alone: λ‖RMg‖²/(1 + gᵀMg), never negative."""
        g = self.images[:, which]
        q = self.inverse @ g
        return (self.ridge * (self.root @ q).square().sum(0) / (1 + (g * q).sum(0))).cpu()

    def together(self, which: Int64[Tensor, " b"]) -> tuple[float, Float[Tensor, "n b"]]:
        """Fall of J for a block, λ‖RY‖², and Y, with which M becomes M − YYᵀ."""
        g = self.images[:, which]
        q = self.inverse @ g
        system = (g.T @ q + q.T @ g) / 2
        system.diagonal().add_(1)
        y = torch.linalg.solve_triangular(torch.linalg.cholesky(system), q.T, upper=False).T
        return float(self.ridge * (self.root @ y).square().sum()), y

    def add(self, which: Int64[Tensor, " b"], y: Float[Tensor, "n b"]) -> None:
        """Add a block, with the Y that `together` gave for it."""
        self.gram = self.gram + self.images[:, which] @ self.images[:, which].T
        self.since += len(which)
        if self.since < REFRESH:
            self.inverse = self.inverse - y @ y.T
        else:
            self.inverse, self.since = shifted_inverse(self.gram, self.ridge), 0

    def damage(self, which: Int64[Tensor, " b"], eigenvalues: Float[Tensor, " m"]) -> float:
        """Σ σ‖RMg‖² over added directions, with the present M."""
        lengths = (self.root @ self.inverse @ self.images[:, which]).square().sum(0)
        return float((eigenvalues[which] * lengths).sum())


def shifted_inverse(gram: Float[Tensor, "n n"], ridge: float) -> Float[Tensor, "n n"]:
    """M = (G + λI)⁻¹ of a positive semidefinite G.

    Raises:
        SingularProblemError: if λ is not above 0.
    """
    if not ridge > 0:
        raise SingularProblemError(f"(G + λI)⁻¹ needs a ridge above 0, got {ridge:g}; raise it")
    system = gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.cholesky_inverse(torch.linalg.cholesky(system))
