"""Uncertainty of a model's answers to one question, from embedded samples, and the bias of its estimates.

h_jk is the embedding of sample k of K, drawn for wording j of M; h̄_j its mean over k. Source: Diagnosing
Hidden Instabilities in Model Editing via Uncertainty Quantification, appendix C.1, from which

    U_alea = 1/M Σ_j 1/K Σ_k ‖h_jk - h̄_j‖          how far samples of one wording lie from their mean
    U_epis = 2/(M(M-1)) Σ_{j<l} ‖h̄_j - h̄_l‖         how far the wordings' means lie apart
    U      = (U_alea + U_epis) / 2
    Δ_U    = (U_after - U_before) / U_before

Both parts are biased at small K. A mean of K samples is itself uncertain: if all wordings have the same true
mean, U_epis is σ √(2/K) c_d, not 0, while U_alea is σ √(1 - 1/K) c_d (`without_drift`). At K = 5 sampling
noise alone makes U_epis 0.71 of U_alea. The squared distance between the wordings' true means has an unbiased
estimate, with s_j² = Σ_k ‖h_jk - h̄_j‖² / (K-1):

    drift² = mean over j<l of ‖h̄_j - h̄_l‖² - (s_j² + s_l²)/K
           = 2/(M-1) Σ_j ‖h̄_j - h̄‖² - 2/(KM) Σ_j s_j²

which is negative about half of the time if the true means are equal. Average it over facts without
truncation: setting negative values to 0 would bring the bias back.

Distances are Euclidean, in the units of the embeddings; between unit vectors they lie in [0, 2].
"""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from palimpsest.errors import NonFiniteError, ScoreError, ShapeError

_ROWS_AT_ONCE = 256


@dataclass(frozen=True)
class Decomposition:
    """Uncertainty of the answers to one question, defined in the module's docstring.

    Attributes:
        aleatoric: U_alea, a distance.
        epistemic: U_epis as published, a distance that includes sampling noise.
        total: U, their mean.
        drift_squared: unbiased estimate of the mean squared distance between the wordings' true means; may be
            negative.
    """

    aleatoric: float
    epistemic: float
    total: float
    drift_squared: float


@dataclass(frozen=True)
class Change:
    """Change of the uncertainty of the answers to one question by an edit.

    Attributes:
        delta_total: Δ_U, relative growth of the total; see `growth` for a total of 0.
        delta_aleatoric: relative growth of the aleatoric part.
        delta_epistemic: relative growth of the epistemic part.
        delta_drift_squared: drift² after minus drift² before, unbiased.
    """

    delta_total: float
    delta_aleatoric: float
    delta_epistemic: float
    delta_drift_squared: float


def decompose(embeddings: Float[Tensor, "m k d"]) -> Decomposition:
    """Uncertainty of M wordings with K embedded samples each: the mean of `by_wording`.

    Computed in float64; time grows with M·K·d and M²·d, memory with M·K·d.

    Args:
        embeddings: (M, K, d) with M and K at least 2.

    Raises:
        ShapeError: if there are not three axes, or M or K is below 2, or d below 1.
        NonFiniteError: if a value is NaN or infinite.
    """
    aleatoric, epistemic, drift_squared = (float(part.mean()) for part in _parts(embeddings))
    return Decomposition(aleatoric, epistemic, (aleatoric + epistemic) / 2, drift_squared)


def by_wording(embeddings: Float[Tensor, "m k d"]) -> list[Decomposition]:
    """Contribution of each wording: its spread, and its distance from the other wordings.

    Aleatoric is the mean distance of its samples from their mean, epistemic the mean distance of that mean
    from those of the other wordings, drift² the unbiased estimate of the mean of the squared distances. Their
    means over the wordings are the result of `decompose`. Arguments and errors as there.
    """
    rows = torch.stack(_parts(embeddings), 1).tolist()
    return [Decomposition(scatter, apart, (scatter + apart) / 2, drift) for scatter, apart, drift in rows]


def _parts(embeddings: Tensor) -> tuple[Float64[Tensor, " m"], Float64[Tensor, " m"], Float64[Tensor, " m"]]:
    """Aleatoric, epistemic and unbiased squared drift of each wording, (m,) each."""
    samples = _checked(embeddings, "embeddings")
    m, k, _ = samples.shape
    means = _mean(samples, 1)
    apart = samples - means[:, None]
    noise = apart.square().sum((1, 2)) / (k - 1)  # s_j²
    between = (means - _mean(means, 0)).square().sum(1)
    # mean over l != j of ‖h̄_j - h̄_l‖², and of s_j² + s_l²
    squared = (m * between + between.sum()) / (m - 1)
    inflation = ((m - 2) * noise + noise.sum()) / (m - 1)
    return apart.norm(dim=2).mean(1), _mean_distances(means), squared - inflation / k


def compare(before: Decomposition, after: Decomposition) -> Change:
    """Change from one decomposition to the other; both need the same wordings, K and embedder."""
    return Change(
        delta_total=growth(before.total, after.total),
        delta_aleatoric=growth(before.aleatoric, after.aleatoric),
        delta_epistemic=growth(before.epistemic, after.epistemic),
        delta_drift_squared=after.drift_squared - before.drift_squared,
    )


def growth(before: float, after: float) -> float:
    """Relative growth (after - before) / before of an uncertainty, the paper's Δ_U.

    If ``before`` is 0, as for identical answers to every wording, growth is 0 for ``after`` 0 and infinite
    otherwise. It is never NaN.

    Raises:
        ScoreError: if one of them is negative or not finite.
    """
    if not (0 <= before < math.inf and 0 <= after < math.inf):
        raise ScoreError(
            f"an uncertainty is a distance, 0 or more and finite, got {before} and {after}; "
            "drift_squared may be negative and has no relative growth: take the difference"
        )
    if before == 0:
        return math.inf if after > 0 else 0.0
    return after / before - 1


def shift_squared(before: Float[Tensor, "m k d"], after: Float[Tensor, "m k d"]) -> tuple[float, float]:
    """Squared shift of the answers to each wording by an edit: a biased and an unbiased estimate.

    Let e_jk = h_jk(after) - h_jk(before), for samples with the same random numbers, and ē_j their mean over
    k. The biased estimate is the mean over j of ‖ē_j‖², which includes sampling noise as the published U_epis
    does. The unbiased one is the mean of ‖ē_j‖² - Σ_k ‖e_jk - ē_j‖² / (K(K-1)); it estimates
    ‖E h_j(after) - E h_j(before)‖² whatever the dependence within a pair, and may be negative.

    Args:
        before: (M, K, d), K at least 2.
        after: (M, K, d), in the same order.

    Returns:
        (biased, unbiased), squared distances.

    Raises:
        ShapeError: if the shapes differ, and as `decompose`.
        NonFiniteError: as `decompose`.
    """
    first, second = _checked(before, "embeddings before"), _checked(after, "embeddings after")
    if first.shape != second.shape:
        raise ShapeError(
            f"embeddings before are {tuple(first.shape)}, those after {tuple(second.shape)}; ask both models "
            "the same wordings with the same number of samples and the same embedder"
        )
    moved = second - first
    k = moved.shape[1]
    means = _mean(moved, 1)
    biased = float(means.square().sum(1).mean())
    noise = float((moved - means[:, None]).square().sum((1, 2)).mean()) / (k * (k - 1))
    return biased, biased - noise


def without_drift(spread: float, dimensions: int, samples: int) -> Decomposition:
    """Expected values of the estimates of C.1 if all wordings have the same true mean.

    For samples N(μ, σ² I) in d dimensions: U_alea = σ √(1 - 1/K) c_d and U_epis = σ √(2/K) c_d with
    c_d = √2 Γ((d+1)/2) / Γ(d/2), the mean norm of a standard normal vector. Neither depends on the number of
    wordings. The unbiased drift² is 0.

    Args:
        spread: σ, above 0.
        dimensions: d, 1 or more.
        samples: K, 2 or more.

    Raises:
        ScoreError: if a number is outside its range.
    """
    if not (0 < spread < math.inf and dimensions >= 1 and samples >= 2):
        raise ScoreError(
            f"spread must be above 0, dimensions 1 or more and samples 2 or more, got {spread}, {dimensions} "
            f"and {samples}"
        )
    length = spread * math.sqrt(2) * math.exp(math.lgamma((dimensions + 1) / 2) - math.lgamma(dimensions / 2))
    aleatoric, epistemic = length * math.sqrt(1 - 1 / samples), length * math.sqrt(2 / samples)
    return Decomposition(aleatoric, epistemic, (aleatoric + epistemic) / 2, 0.0)


def _mean(values: Float64[Tensor, "*shape"], axis: int) -> Float64[Tensor, "*rest"]:
    """Mean along an axis; of equal values exactly that value, so that their spread is exactly 0."""
    first = values.narrow(axis, 0, 1)
    return first.squeeze(axis) + (values - first).mean(axis)


def _mean_distances(points: Float64[Tensor, "m d"]) -> Float64[Tensor, " m"]:
    """Mean distance of each row from the others (m,), computed in blocks of rows."""
    exact = "donot_use_mm_for_euclid_dist"
    sums = [torch.cdist(rows, points, compute_mode=exact).sum(1) for rows in points.split(_ROWS_AT_ONCE)]
    return torch.cat(sums) / (len(points) - 1)


def _checked(embeddings: Tensor, name: str) -> Float64[Tensor, "m k d"]:
    shape = tuple(embeddings.shape)
    if len(shape) != 3 or shape[0] < 2 or shape[1] < 2 or shape[2] < 1:
        raise ShapeError(
            f"{name} must be (M, K, d) with 2 or more wordings M and 2 or more samples K of each, got "
            f"{shape}; one wording shows no drift and one sample no scatter, so ask for more"
        )
    samples = embeddings.detach().double()
    bad = int((~samples.isfinite()).sum())
    if bad:
        raise NonFiniteError(
            f"{name}: {bad} of {samples.numel()} values are NaN or infinite; look at the texts and the "
            "embedder they come from instead of averaging over them"
        )
    return samples
