"""AlphaEdit's appendix B.2 to B.5: its left null space, closed form and bracket, and what proves them.

    minimise over Δ̃ (d_v, d_k):    ‖Δ̃PK₁ − R‖² + ‖Δ̃PK_p‖² + λ‖Δ̃P‖²,      Δ = Δ̃P
    Eq. 14 and 34:                  Δ = RK₁ᵀP Z⁻¹,      Z = K_pK_pᵀP + K₁K₁ᵀP + λI

For an orthogonal projector and λ > 0 this is the minimiser. B.5 calls Z positive definite because the two
products are positive semidefinite, which they need not be. With K = [K₁, K_p] and G = KᵀPK + λI, Z has the
inverse

    Z⁻¹ = (I − K G⁻¹ KᵀP)/λ                          for every square P for which G is invertible

and for P = PᵀP, an orthogonal projector, G is positive definite, so that Z is invertible after all. The
argument of B.5 uses nothing about the two products but the sign of each factor, and proves too much: with one
projector in the first product and another in the second, Z can be singular (`two_projectors`).

All tensors are float64; keys are columns. P is a dense (d_k, d_k) matrix, so that it may be no projector.
Verdicts: the project's own derivations.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from palimpsest.algebra.projector import Projector
from palimpsest.algebra.solve import LeastSquares


def dense(projector: Projector) -> Float[Tensor, "d_k d_k"]:
    """The matrix P of a projector, float64."""
    return projector.apply(torch.eye(projector.dim, dtype=torch.float64))


def left_null_basis(keys: Float[Tensor, "d_k n"], tolerance: float = 1e-10) -> Float[Tensor, "d_k r"]:
    """Orthonormal basis of the left null space {x: xᵀA = 0} of A, by the singular vectors of A itself.

    Args:
        keys: A, at least one column, not all zero.
        tolerance: singular values up to this share of the largest one count as zero.

    Source: AlphaEdit, App. B.2.
    """
    left, sigma, _ = torch.linalg.svd(keys, full_matrices=True)
    return left[:, int((sigma > tolerance * sigma[0]).sum()) :]


def bracket(keys: Float[Tensor, "d_k n"], p: Float[Tensor, "d_k d_k"], ridge: float) -> Tensor:
    """Z = KKᵀP + λI (d_k, d_k), with new and past keys as the columns of K. Eq. 14; not symmetric."""
    return keys @ (keys.T @ p) + ridge * torch.eye(len(p), dtype=p.dtype)


def bracket_inverse(keys: Float[Tensor, "d_k n"], p: Float[Tensor, "d_k d_k"], ridge: float) -> Tensor:
    """Z⁻¹ (d_k, d_k) in closed form, through the n × n matrix KᵀPK + λI (Woodbury)."""
    inner = keys.T @ p @ keys + ridge * torch.eye(keys.shape[1], dtype=p.dtype)  # (n, n)
    eye = torch.eye(len(p), dtype=p.dtype)
    return (eye - keys @ torch.linalg.solve(inner, keys.T @ p)) / ridge


def inverse_bound(keys: Float[Tensor, "d_k n"], p: Float[Tensor, "d_k d_k"], ridge: float) -> float:
    """Bound (1 + ‖(I − P)K‖₂/(2√λ))/λ on ‖Z⁻¹‖₂ for an orthogonal projector P and λ > 0.

    In the basis of range(P) and its complement Z is block triangular with λI in the second block. The part
    of the keys outside range(P) enters through the other block alone, and is the larger one where P removes
    the directions in which keys are large.
    """
    outside = float(torch.linalg.matrix_norm(keys - p @ keys, 2))
    return (1 + outside / (2 * math.sqrt(ridge))) / ridge


def lowest_symmetric(matrix: Float[Tensor, "d d"]) -> float:
    """Lowest eigenvalue of the symmetric part: the least xᵀAx over unit vectors x."""
    return float(torch.linalg.eigvalsh((matrix + matrix.T) / 2)[0])


def printed_update(
    keys: Float[Tensor, "d_k n"],
    residual: Float[Tensor, "d_v n"],
    past: Float[Tensor, "d_k m"],
    p: Float[Tensor, "d_k d_k"],
    ridge: float,
) -> Float[Tensor, "d_v d_k"]:
    """Δ = RK₁ᵀP Z⁻¹ as printed, by the unsymmetric d_k × d_k system. Eq. 14 and 34, which have λ = 1."""
    system = bracket(torch.cat([keys, past], 1), p, ridge)
    return torch.linalg.solve(system.T, (residual @ keys.T @ p).T).T


def projected_objective(
    free: Float[Tensor, "d_v d_k"],
    keys: Float[Tensor, "d_k n"],
    residual: Float[Tensor, "d_v n"],
    past: Float[Tensor, "d_k m"],
    p: Float[Tensor, "d_k d_k"],
    ridge: float,
) -> Float[Tensor, ""]:
    """Objective of Eq. 12 and 31 at the free variable Δ̃, differentiable; Eq. 31 has λ = 1."""
    delta = free @ p
    terms = (delta @ keys - residual, delta @ past, ridge**0.5 * delta)
    return sum((term.square().sum() for term in terms), torch.zeros((), dtype=p.dtype))


def printed_gradient(
    free: Float[Tensor, "d_v d_k"],
    keys: Float[Tensor, "d_k n"],
    residual: Float[Tensor, "d_v n"],
    past: Float[Tensor, "d_k m"],
    p: Float[Tensor, "d_k d_k"],
    ridge: float,
) -> Float[Tensor, "d_v d_k"]:
    """Half the gradient of the objective in Δ̃ as Eq. 32 prints it; right for any square P."""
    delta = free @ p
    return (delta @ keys - residual) @ keys.T @ p.T + ridge * delta @ p.T + delta @ past @ past.T @ p.T


def stacked_minimiser(problem: LeastSquares) -> Float[Tensor, "d_v d_k"]:
    """Minimiser of a problem without ``preserve``, by a least-squares solve of [KᵀP; √λ I] Δᵀ = [Rᵀ; 0].

    Neither the paper's formula nor the package's solver takes part. Its rows lie in range(P).
    """
    projector = problem.projector or Projector.identity(len(problem.keys))
    eye = torch.eye(len(problem.keys), dtype=torch.float64)
    matrix = torch.cat([projector.apply(problem.keys).T, problem.ridge**0.5 * eye])
    right = torch.zeros(len(matrix), len(problem.residual), dtype=torch.float64)
    right[: problem.keys.shape[1]] = problem.residual.T
    return torch.linalg.lstsq(matrix, right, driver="gelsd").solution.T


class Bracket(NamedTuple):
    """Two products of a positive semidefinite matrix and an orthogonal projector, and a ridge."""

    first: Float[Tensor, "d d"]
    second: Float[Tensor, "d d"]
    ridge: float


def slanted_key(angle: float = math.pi / 3) -> tuple[Float[Tensor, "2 1"], Float[Tensor, "2 2"]]:
    """A unit key k in the plane, and the projector on the line at an angle to it.

    Its product kkᵀP has a symmetric part with the lowest eigenvalue −(cos θ − cos² θ)/2: −1/8 at 60 degrees,
    which no unit key and projector exceed in size. B.5 calls this product positive semidefinite.
    """
    key = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    line = torch.tensor([[math.cos(angle)], [math.sin(angle)]], dtype=torch.float64)
    return key, line @ line.T


def two_projectors() -> Bracket:
    """Counter-example to the argument of B.5: every sentence applies, and the sum is singular.

    e₁e₁ᵀP₁ + e₂e₂ᵀP₂ + αI, with P₁ on the line at 60 degrees and P₂ on that at 30 degrees, has determinant 0
    at α = (√3 − 1)/4 = 0.183. Each product is one of positive semidefinite matrices and has no negative
    eigenvalue; their sum has −0.183. AlphaEdit's own bracket has one projector, a fact that B.5 never uses.
    """
    first, second = (slanted_key(angle)[1] for angle in (math.pi / 3, math.pi / 6))
    place = torch.eye(2, dtype=torch.float64)
    products = (place[:, :1] @ place[:, :1].T @ first, place[:, 1:] @ place[:, 1:].T @ second)
    return Bracket(*products, (math.sqrt(3) - 1) / 4)
