"""Cost of preserving protected outputs while a fact is written: a bound, a loss, and the exact optimum.

    minimise over Δ (d_v, d_k):    ‖Δk − r‖² + β‖ΔX‖²         X: protected keys (d_k, m), S = XXᵀ

The share of r that the optimum gives up, for any β > 0:

    every Δ        0 if k is outside span(X); inside it 1/(1 + kᵀ(βS)⁺k)
    Δ = c uᵀ       β uᵀSu / ((uᵀk)² + β uᵀSu), for one fixed u

"Diagnosing Hidden Instabilities" (Sec. 3.4.2) argues in the second family with u = k and finds that both
losses can vanish only for collinear keys. In that family they vanish for orthogonal keys, and collinear keys
are the worst case. Among all Δ the obstacle is the number of protected keys; the optimum again has rank one,
with u along S⁺k, or along the part of k outside span(X).

All tensors are float64 unless stated otherwise; keys are columns. Verdicts: the project's own derivations.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from palimpsest.errors import SingularProblemError


def disturbance_bound(
    left: Float[Tensor, "d_v r"], right: Float[Tensor, "d_k r"], states: Float[Tensor, "d_k m"]
) -> Float[Tensor, " m"]:
    """Bound ‖U‖₂‖Vᵀz‖ (m,) on ‖ΔW z‖ for each state z and ΔW = UVᵀ; equal where U has orthonormal columns.

    It depends on how ΔW is split into U and V, and is 0 where V's columns are orthogonal to z.

    Source: Diagnosing Hidden Instabilities, Sec. 3.1.
    """
    return torch.linalg.matrix_norm(left, 2) * (right.T @ states).norm(dim=0)


def span_energy(span: Float[Tensor, "d r"], states: Float[Tensor, "d m"]) -> Float[Tensor, ""]:
    """Energy L_kp = Σ‖P x‖² of states x, with P the projector on the span of independent columns. Eq. 1."""
    basis = torch.linalg.qr(span).Q
    return (basis.T @ states).square().sum()


class Compromise(NamedTuple):
    """Optimum of a family: the update (d_v, d_k), and the share of r that it gives up, in [0, 1]."""

    delta: Float[Tensor, "d_v d_k"]
    given_up: float


class Held(NamedTuple):
    """The span of protected keys X: an orthonormal basis (d_k, rank), and the singular values (rank,)."""

    basis: Float[Tensor, "d_k rank"]
    sigma: Float[Tensor, " rank"]


def span_of(protected: Float[Tensor, "d_k m"]) -> Held:
    """The span of protected keys, of any rank and maybe none, by one singular value decomposition."""
    basis, sigma, _ = torch.linalg.svd(protected, full_matrices=False)
    held = sigma > max(protected.shape) * torch.finfo(sigma.dtype).eps * sigma.max() if len(sigma) else sigma
    return Held(basis[:, held.bool()], sigma[held.bool()])


def optimum(
    key: Float[Tensor, " d_k"],
    residual: Float[Tensor, " d_v"],
    protected: Float[Tensor, "d_k m"] | Held,
    beta: float,
) -> Compromise:
    """Optimum over all updates; if it is not unique, the one of smallest norm.

    Args:
        key: k, not zero.
        residual: r, wanted minus present value of the key.
        protected: X, of any rank; may have no columns. For several keys with the same X, its `span_of`.
        beta: β > 0.

    Raises:
        SingularProblemError: if k is zero.
    """
    _require(key)
    basis, sigma = protected if isinstance(protected, Held) else span_of(protected)
    inside = basis.T @ key
    outside = key - basis @ inside
    outside = outside - basis @ (basis.T @ outside)  # again, to remove rounding inside the span
    if outside.norm() > OUTSIDE * key.norm():
        return Compromise(torch.outer(residual, outside) / (outside @ key), 0.0)
    direction = basis @ (inside / sigma.square()) / beta  # (βS)⁺k (d_k,)
    gain = float(direction @ key)
    return Compromise(torch.outer(residual, direction) / (1 + gain), 1 / (1 + gain))


OUTSIDE = 1e-10
"""Smallest share of a key's norm outside a span that counts; below it the key lies in the span."""


def rank_one_optimum(
    key: Float[Tensor, " d_k"],
    residual: Float[Tensor, " d_v"],
    protected: Float[Tensor, "d_k m"],
    beta: float,
    direction: Float[Tensor, " d_k"] | None = None,
) -> Compromise:
    """Optimum over updates c uᵀ with a fixed u: the key itself unless another is given (ROME: C⁻¹k).

    Raises:
        SingularProblemError: if u is zero, or orthogonal to the key, so that nothing could be written.
    """
    u = key if direction is None else direction
    _require(u)
    reach = float(u @ key)
    if abs(reach) <= OUTSIDE * float(u.norm() * key.norm()):
        raise SingularProblemError(
            "the direction of the update is orthogonal to the key, so nothing can be written; choose another"
        )
    disturbed = beta * float((protected.T @ u).square().sum())
    share = disturbed / (reach**2 + disturbed)
    return Compromise(torch.outer(residual, u) * reach / (reach**2 + disturbed), share)


def preservation_gradient(
    delta: Float[Tensor, "d_v d_k"], protected: Float[Tensor, "d_k m"]
) -> Float[Tensor, "d_v d_k"]:
    """Gradient of ‖ΔX‖² with respect to Δ, 2ΔS; zero before any edit."""
    return 2 * delta @ protected @ protected.T


def printed_gradient(
    weight: Float[Tensor, "d_v d_k"], protected: Float[Tensor, "d_k m"]
) -> Float[Tensor, "d_v d_k"]:
    """Σ(W′kᵢ)kᵢᵀ as Sec. 3.4.2 prints it: the gradient of ½‖W′X‖², whose optimum erases protected values."""
    return weight @ protected @ protected.T


def gaussian_share(width: int, keys: int, beta: float = 1.0) -> float:
    """Approximate share given up for n isotropic Gaussian keys of width d: 1/(1 + d/(β(n − d − 1))), or 0."""
    spare = keys - width - 1
    return 0.0 if spare <= 0 else 1 / (1 + width / (beta * spare))


def _require(vector: Tensor) -> None:
    if not vector.any():
        raise SingularProblemError("the key is zero, so nothing can be written at it; leave the fact out")
