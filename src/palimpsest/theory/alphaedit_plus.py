"""Lemmas of AlphaEdit+ as functions, each with the paper's equation and whether it is right.

All tensors are float64. Keys are columns (d_k, n); W is (d_v, d_k); R = V − WK is the residual; P is an
orthogonal projector; λ is the ridge. With G = KᵀPK and M = (G + λI)⁻¹ every result below follows from one
identity of the update Δ = R M KᵀP:

    ΔK − R = −λ R M                                                        (AlphaEdit+ Eq. 12)

"As printed" and "corrected" refer to AlphaEdit+; a function of either kind says so in its first line.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from palimpsest.algebra.admission import shifted_inverse
from palimpsest.algebra.projector import Projector

Factor = Float[Tensor, "*batch"] | float

# One key against the preserved knowledge: Lemma 1 and Eq. 6.


def projected_energy(keys: Float[Tensor, "d_k n"], projector: Projector) -> Float[Tensor, " n"]:
    """‖Pk‖² (n,) of each key, the part of its squared norm that an edit can use."""
    return projector.apply(keys).square().sum(0)


def residual_factor(projected: Factor, ridge: float) -> Factor:
    """Remaining share of the residual after one edit, λ/(λ + ‖Pk‖²). Lemma 1, Eq. 7 and 26: right as printed.

    Args:
        projected: ‖Pk‖², of a key of any norm.
        ridge: λ > 0.
    """
    return ridge / (ridge + projected)


def cosine_residual_factor(cosine: Factor, ridge: float) -> Factor:
    """Residual factor λ/(λ + 1 − s²) for unit keys. Second equality of Eq. 7, as printed: only a lower bound.

    s² is ‖k_∥‖² times the largest squared cosine between k_∥ and a column of K0, so s² ≤ ‖k_∥‖².
    """
    return ridge / (ridge + 1 - cosine**2)


def single_update(
    key: Float[Tensor, " d_k"],
    residual: Float[Tensor, " d_v"],
    projector: Projector,
    ridge: float,
) -> Float[Tensor, "d_v d_k"]:
    """Δ = r (Pk)ᵀ/(λ + ‖Pk‖²). Eq. 4 and 24, corrected (the first form of Eq. 24)."""
    inside = projector.apply(key[:, None])[:, 0]  # (d_k, 1) -> (d_k,)
    return torch.outer(residual, inside) / (ridge + inside @ inside)


def printed_single_update(
    key: Float[Tensor, " d_k"],
    residual: Float[Tensor, " d_v"],
    projector: Projector,
    ridge: float,
) -> Float[Tensor, "d_v d_k"]:
    """Δ = λ r (Pk)ᵀ/(λ + ‖Pk‖²). Eq. 4 and the second form of Eq. 24, as printed: off by the factor λ."""
    return ridge * single_update(key, residual, projector, ridge)


def printed_residual_factor(projected: Factor, ridge: float) -> Factor:
    """Remaining share of the residual for the update of Eq. 4 as printed; it contradicts Lemma 1."""
    return (ridge + (1 - ridge) * projected) / (ridge + projected)


# One key against earlier edits: Lemma 2 and appendix A.5.


def prior_residual_factor(cosine: Factor, ridge: float, weight: float = 1.0) -> Factor:
    """Residual factor λ(λ + β)/((λ + 1)(λ + β) − βs²) for unit keys; right as printed.

    Lemma 2, Eq. 9 for β = 1, and Eq. 54.
    """
    return ridge * (ridge + weight) / ((ridge + 1) * (ridge + weight) - weight * cosine**2)


def prior_update(
    key: Float[Tensor, " d_k"],
    prior: Float[Tensor, " d_k"],
    residual: Float[Tensor, " d_v"],
    ridge: float,
    weight: float = 1.0,
    signed: bool = True,
) -> Float[Tensor, "d_v d_k"]:
    """Update for a unit key, given one earlier unit key, both inside range(P). Eq. 8 and 53.

    Args:
        key: k₁.
        prior: k_p.
        residual: r₁.
        ridge: λ > 0.
        weight: β on the earlier key.
        signed: True for s = k₁ᵀk_p, as the derivation needs (corrected); False for s = |k₁ᵀk_p|, as
            the text defines it (as printed; wrong for a negative product).
    """
    s = key @ prior if signed else (key @ prior).abs()
    determinant = (ridge + 1) * (ridge + weight) - weight * s**2
    return torch.outer(residual, (ridge + weight) * key - weight * s * prior) / determinant


def many_priors_factor(
    key: Float[Tensor, " d_k"],
    past: Float[Tensor, "d_k m"],
    projector: Projector,
    ridge: float,
    weights: Float[Tensor, " m"] | None = None,
) -> float:
    """Residual factor 1/(1 + kᵀP A⁻¹ Pk) with A = P KpΛKpᵀ P + λI.

    Lemmas 1 and 2 for any number of earlier keys; not in the paper. Keys of any norm; Λ = I without
    ``weights``.
    """
    inside = projector.apply(key[:, None])  # (d_k, 1)
    scaled = projector.apply(past if weights is None else past * weights.sqrt())
    system = scaled @ scaled.T
    system.diagonal().add_(ridge)
    solved = torch.cholesky_solve(inside, torch.linalg.cholesky(system))
    return float(1 / (1 + (inside * solved).sum()))


# Several keys at once: Eq. 12 and Lemma 3.


def gram(keys: Float[Tensor, "d_k n"], projector: Projector) -> Float[Tensor, "n n"]:
    """Gram matrix G = KᵀPK. Eq. 11 and 36."""
    inside = projector.apply(keys)
    return inside.T @ inside


def post_edit_error(
    gram: Float[Tensor, "n n"], residual: Float[Tensor, "d_v n"], ridge: float
) -> Float[Tensor, "d_v n"]:
    """Error after the edit, E = ΔK − R = −λ R (G + λI)⁻¹. Eq. 12 and 37: right as printed."""
    return -ridge * residual @ shifted_inverse(gram, ridge)


def two_edit_bounds(gram: Float[Tensor, "2 2"], ridge: float, ratio: Factor) -> tuple[Factor, Factor]:
    """Bounds on ‖e₁‖ and ‖e₂‖, divided by ‖r₁‖, at ρ = ‖r₂‖/‖r₁‖. Lemma 3, Eq. 14: right as printed."""
    (g11, g12), (_, g22) = gram.tolist()
    determinant = (ridge + g11) * (ridge + g22) - g12**2
    first = ridge / determinant * ((ridge + g22) + ratio * abs(g12))
    second = ridge / determinant * (abs(g12) + ratio * (ridge + g11))
    return first, second


def worst_second_residual(
    gram: Float[Tensor, "2 2"], first: Float[Tensor, " d_v"], ratio: float
) -> Float[Tensor, " d_v"]:
    """Second residual r₂ = −sign(g₁₂) ρ r₁, for which both bounds of Lemma 3 are attained."""
    return -torch.sign(gram[0, 1]) * ratio * first


# The search for a relaxed projector: Eq. 15, Lemma 4 and Algorithm 1.


def objective_at_update(gram: Float[Tensor, "n n"], residual: Float[Tensor, "d_v n"], ridge: float) -> float:
    """Smallest value J(P) = λ tr(R M Rᵀ) of the objective in Eq. 15 for a given P.

    Not in the paper, which evaluates the objective term by term at each step.
    """
    return float(ridge * ((residual @ shifted_inverse(gram, ridge)) * residual).sum())
