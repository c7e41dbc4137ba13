"""The lemmas of AlphaEdit+ as functions, each with the paper's equation and whether it is right.

All tensors are float64. Keys are columns (d_k, n); W is (d_v, d_k); R = V − WK is what the keys still
lack; P is an orthogonal projector; λ is the ridge. With G = KᵀPK and M = (G + λI)⁻¹ every result
below follows from one identity of the update Δ = R M KᵀP:

    ΔK − R = −λ R M                                                        (AlphaEdit+ Eq. 12)

"As printed" and "corrected" refer to AlphaEdit+; a function of either kind says so in its first line.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from palimpsest.errors import ShapeError, SingularProblemError
from palimpsest.projector import Projector
from palimpsest.solve import LeastSquares, solve

Factor = Float[Tensor, "*batch"] | float

# One key against the preserved knowledge: Lemma 1 and Eq. 6.


def projected_energy(keys: Float[Tensor, "d_k n"], projector: Projector) -> Float[Tensor, " n"]:
    """‖Pk‖² of each key: what an edit can use of it."""
    return projector.apply(keys).square().sum(0)


def conflict(keys: Float[Tensor, "d_k n"], projector: Projector) -> Float[Tensor, " n"]:
    """Share of each key that P removes, 1 − ‖Pk‖²/‖k‖², in [0, 1]. Corrected form of Eq. 3 and 6."""
    return 1 - projected_energy(keys, projector) / keys.square().sum(0)


def largest_cosine(keys: Float[Tensor, "d_k n"], others: Float[Tensor, "d_k m"]) -> Float[Tensor, " n"]:
    """s: largest absolute cosine of each key with a single column of ``others``. Eq. 3, as printed.

    Zero columns of ``others`` have cosine 0; without any column s is 0.
    """
    if others.shape[1] == 0:
        return torch.zeros(keys.shape[1], dtype=keys.dtype)
    lengths = others.norm(dim=0).clamp(min=torch.finfo(others.dtype).tiny)
    return (keys.T @ (others / lengths)).abs().amax(1) / keys.norm(dim=0)


def residual_factor(projected: Factor, ridge: float) -> Factor:
    """Share of the residual left after one edit, λ/(λ + ‖Pk‖²). Lemma 1, Eq. 7 and 26: right as printed.

    Args:
        projected: ‖Pk‖², of a key of any length.
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
    inside = projector.apply(key[:, None])[:, 0]
    return torch.outer(residual, inside) / (ridge + inside @ inside)


def printed_single_update(
    key: Float[Tensor, " d_k"],
    residual: Float[Tensor, " d_v"],
    projector: Projector,
    ridge: float,
) -> Float[Tensor, "d_v d_k"]:
    """Δ = λ r (Pk)ᵀ/(λ + ‖Pk‖²). Eq. 4 and the second form of Eq. 24, as printed: λ times too long."""
    return ridge * single_update(key, residual, projector, ridge)


def printed_residual_factor(projected: Factor, ridge: float) -> Factor:
    """Share of the residual that the update of Eq. 4, as printed, would leave; Lemma 1 does not say so."""
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
    """Update of a unit key beside one earlier unit key, both inside range(P). Eq. 8 and 53.

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

    Lemmas 1 and 2 for any number of earlier keys; not in the paper. Any lengths; Λ = I without
    ``weights``.
    """
    inside = projector.apply(key[:, None])
    scaled = projector.apply(past if weights is None else past * weights.sqrt())
    system = scaled @ scaled.T
    system.diagonal().add_(ridge)
    solved = torch.cholesky_solve(inside, torch.linalg.cholesky(system))
    return float(1 / (1 + (inside * solved).sum()))


# Several keys at once: Eq. 12 and Lemma 3.


def gram(keys: Float[Tensor, "d_k n"], projector: Projector) -> Float[Tensor, "n n"]:
    """G = KᵀPK. Eq. 11 and 36."""
    inside = projector.apply(keys)
    return inside.T @ inside


def _inverse(gram: Float[Tensor, "n n"], ridge: float) -> Float[Tensor, "n n"]:
    """M = (G + λI)⁻¹."""
    if not ridge > 0:
        raise SingularProblemError(f"these closed forms need a ridge above 0, got {ridge}; raise it")
    system = gram + ridge * torch.eye(len(gram), dtype=gram.dtype)
    return torch.cholesky_inverse(torch.linalg.cholesky(system))


def post_edit_error(
    gram: Float[Tensor, "n n"], residual: Float[Tensor, "d_v n"], ridge: float
) -> Float[Tensor, "d_v n"]:
    """E = ΔK − R = −λ R (G + λI)⁻¹. Eq. 12 and 37: right as printed."""
    return -ridge * residual @ _inverse(gram, ridge)


def two_edit_bounds(gram: Float[Tensor, "2 2"], ridge: float, ratio: Factor) -> tuple[Factor, Factor]:
    """Bounds on ‖e₁‖ and ‖e₂‖ in units of ‖r₁‖, ρ = ‖r₂‖/‖r₁‖. Lemma 3, Eq. 14: right as printed."""
    (g11, g12), (_, g22) = gram.tolist()
    determinant = (ridge + g11) * (ridge + g22) - g12**2
    first = ridge / determinant * ((ridge + g22) + ratio * abs(g12))
    second = ridge / determinant * (abs(g12) + ratio * (ridge + g11))
    return first, second


def worst_second_residual(
    gram: Float[Tensor, "2 2"], first: Float[Tensor, " d_v"], ratio: float
) -> Float[Tensor, " d_v"]:
    """r₂ = −sign(g₁₂) ρ r₁, the second residual for which both bounds of Lemma 3 are reached."""
    return -torch.sign(gram[0, 1]) * ratio * first


# The search for a relaxed projector: Eq. 15, Lemma 4 and Algorithm 1.


def objective_at_update(gram: Float[Tensor, "n n"], residual: Float[Tensor, "d_v n"], ridge: float) -> float:
    """J(P) = λ tr(R M Rᵀ), the smallest value of the objective in Eq. 15 for a given P.

    Not in the paper, which evaluates the objective term by term at each step.
    """
    return float(ridge * ((residual @ _inverse(gram, ridge)) * residual).sum())


def past_weights(past: Float[Tensor, "d_k m"], new: Float[Tensor, "d_k n"]) -> Float[Tensor, " m"]:
    """Λ = 1 − s(k_j, K1) of each past key, after Eq. 15, clamped at 0 against rounding."""
    return (1 - largest_cosine(past, new)).clamp(0, 1)


@dataclass(frozen=True)
class Search:
    """Path of Algorithm 1's search over one eigenvector at a time.

    Attributes:
        gains: fall of the objective at every direction tried, the refused one included.
        objectives: J before the first direction and after each admitted one.
        admitted: number of directions added to P.
        images: g = Kᵀu of the admitted directions, (n, admitted).
        inverse: M at the end, (n, n).
        update: Δ (d_v, d_k) for the relaxed projector.
    """

    gains: Float[Tensor, " tried"]
    objectives: Float[Tensor, " steps"]
    admitted: int
    images: Float[Tensor, "n admitted"]
    inverse: Float[Tensor, "n n"]
    update: Float[Tensor, "d_v d_k"]


def admission_gain(
    inverse: Float[Tensor, "n n"],
    image: Float[Tensor, " n"],
    residual: Float[Tensor, "d_v n"],
    ridge: float,
) -> float:
    """J(P) − J(P + uuᵀ) = λ‖R M g‖²/(1 + gᵀMg) with g = Kᵀu, by Sherman and Morrison: never negative.

    Hence Algorithm 1's condition, that the objective no longer falls, cannot occur.
    """
    q = inverse @ image
    return float(ridge * (residual @ q).square().sum() / (1 + image @ q))


def search(
    problem: LeastSquares, pool: Float[Tensor, "d_k m"], epsilon: float, past: Tensor | None = None
) -> Search:
    """Admit directions in the given order until one lowers the objective by less than ε. Algorithm 1.

    O(n²) a step: the inverse is updated instead of solving the problem again.

    Args:
        problem: keys, residual, ridge λ > 0 and P; ``preserve`` must be None.
        pool: unit eigenvectors of K0K0ᵀ outside range(P), by ascending eigenvalue.
        epsilon: smallest fall of the objective that admits a direction; 0 admits all.
        past: KpΛ^½ (d_k, p), penalised as further keys with residual zero.

    Raises:
        ShapeError: if the pool overlaps range(P) (its directions would count twice), or past keys are
            given as ``preserve``.
    """
    projector = problem.projector or Projector.identity(len(problem.keys))
    if problem.preserve is not None:
        raise ShapeError("search takes past keys as 'past', not as the problem's preserve")
    overlap = float(projector.apply(pool).norm(dim=0).amax()) if pool.shape[1] else 0.0
    if overlap > 1e-6:
        raise ShapeError(
            f"a direction of the pool lies inside range(P) (length {overlap:.2g}) and would count "
            "twice; give eigenvectors that P removes"
        )
    problem = with_past(problem, past)
    inverse = _inverse(gram(problem.keys, projector), problem.ridge)
    images = problem.keys.T @ pool
    gains: list[float] = []
    admitted = 0
    for image in images.T:
        gains.append(admission_gain(inverse, image, problem.residual, problem.ridge))
        if gains[-1] < epsilon:
            break
        q = inverse @ image
        inverse = inverse - torch.outer(q, q) / (1 + image @ q)
        admitted += 1
    inside = projector.apply(problem.keys) + pool[:, :admitted] @ images[:, :admitted].T
    start = objective_at_update(gram(problem.keys, projector), problem.residual, problem.ridge)
    falls = torch.tensor([0.0, *gains[:admitted]], dtype=torch.float64)
    return Search(
        gains=torch.tensor(gains, dtype=torch.float64),
        objectives=start - falls.cumsum(0),
        admitted=admitted,
        images=images[:, :admitted],
        inverse=inverse,
        update=problem.residual @ inverse @ inside.T,
    )


def with_past(problem: LeastSquares, past: Float[Tensor, "d_k p"] | None) -> LeastSquares:
    """The same problem with past keys as further columns of K whose residual is zero."""
    if past is None:
        return problem
    zeros = torch.zeros(len(problem.residual), past.shape[1], dtype=problem.residual.dtype)
    keys = torch.cat([problem.keys, past], dim=1)
    return replace(problem, keys=keys, residual=torch.cat([problem.residual, zeros], dim=1))


def preservation_damage(
    found: Search, residual: Float[Tensor, "d_v n"], eigenvalues: Float[Tensor, " admitted"]
) -> float:
    """‖ΔK0‖² = Σ σ_l ‖R M g_l‖² over admitted directions, M at the end. The search ignores it.

    Args:
        found: a path that started at an exact null-space projector.
        residual: R̄, with a zero column for each past key.
        eigenvalues: σ of the admitted directions in K0K0ᵀ.
    """
    lengths = (residual @ found.inverse @ found.images).square().sum(0)
    return float((eigenvalues * lengths).sum())


# Smoothed targets: Eq. 16 and 18.


def smoothing_scale(step: int, steps: int) -> float:
    """Share of a hard column's residual that is aimed at, c = 1 − β(t) = (T + t)/(2T). Eq. 16.

    Raises:
        ShapeError: if T is below 1 (the formula divides by it) or t is outside 0 to T.
    """
    if steps < 1 or not 0 <= step <= steps:
        raise ShapeError(
            f"smoothing needs T ≥ 1 steps and t from 0 to T, got t = {step}, T = {steps}; "
            "for no smoothing leave it out"
        )
    return (steps + step) / (2 * steps)


def smoothing_scales(residual: Float[Tensor, "d_v n"], threshold: float, steps: int) -> list[float]:
    """Every scale Algorithm 1 tries: ½ to 1 in T + 1 steps, or only 1 if no column exceeds τ."""
    if not (residual.norm(dim=0) > threshold).any():
        return [1.0]
    return [smoothing_scale(step, steps) for step in range(steps + 1)]


def smoothed_targets(
    values: Float[Tensor, "d_v n"],
    present: Float[Tensor, "d_v n"],
    threshold: float,
    step: int,
    steps: int,
) -> Float[Tensor, "d_v n"]:
    """Targets v + β(t)(v₀ − v) where ‖v − v₀‖ > τ, else v. Eq. 16; v₀ = Wk, which it leaves undefined."""
    hard = (values - present).norm(dim=0) > threshold
    return torch.where(hard, values + (1 - smoothing_scale(step, steps)) * (present - values), values)


def smoothing_scan(
    problem: LeastSquares, threshold: float
) -> tuple[Float[Tensor, "d_v d_k"], Float[Tensor, "d_v d_k"]]:
    """Δ_easy and Δ_hard, so that Eq. 18 at any t is Δ_easy + c(t) Δ_hard. One factorisation gives both.

    Eq. 16 is thus a scan over one scalar between ½ and 1, not a curriculum: no step uses another's
    result.
    """
    hard = problem.residual.norm(dim=0) > threshold
    both = torch.cat([problem.residual * ~hard, problem.residual * hard])
    easy, difficult = solve(replace(problem, residual=both)).delta.chunk(2)
    return easy, difficult
