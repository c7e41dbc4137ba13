"""Shift of a distribution of hidden states: the measures of AlphaEdit, and measures without a basis.

H (n, d) holds the states of n prompts in the unedited model, H' (n, d) those of the same prompts in the
edited one. The papers draw both after t-SNE or "dimensionality reduction", with the curve of each marginal
(AlphaEdit, Fig. 5; The Labyrinth and the Thread, Fig. 4, 6, 7). t-SNE depends on a random start, has no unit
of length and no common plane for two models. Here the two components are the first two principal ones
(`Plane`), so that every model is seen in the plane of the unedited one. In the plane:

    D1, D2   overlap of the marginal curves of a component, ∫ min(p, p')      `overlap`     1 if nothing moved
    H        Hausdorff distance between both sets of points                   `hausdorff`   0
    P        share of edited points in the confidence region of the others    `inside`      ``LEVEL``

(AlphaEdit, App. C.3, H by Eq. 35. The paper gives neither the curves' bandwidth nor the level of the region:
Scott's rule and 95 % here.) In all d dimensions:

    CKA      likeness of the geometry of both sets, up to rotation, scale and translation   `linear_cka`  1
    MMD      distance of both distributions                                                 `mmd`         0
    moved    ‖h' - h‖ of each prompt                                                        `moved`       0
    turned   angle between h and h' of each prompt                                          `turned`      0

All values are finite for finite states, for a single prompt and for states that are all alike too.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float64
from scipy.integrate import trapezoid
from scipy.spatial.distance import cdist
from scipy.stats import gaussian_kde

from palimpsest.errors import NonFiniteError, ShapeError

LEVEL = 0.95
"""Share of the unedited points in their confidence region."""

_ALIKE = 1e-12
"""Values whose spread is at most this share of their size differ by rounding only."""
_GRID = 256
"""Points at which each of two marginal curves is integrated; the other's points are added."""
_REACH = 4.0
"""Bandwidths beyond the outermost point up to which a curve is integrated; 6e-5 of a kernel lies outside."""

States = Float64[np.ndarray, "n d"]
Points = Float64[np.ndarray, "n 2"]


@dataclass(frozen=True)
class Plane:
    """Two orthonormal directions in which states are drawn.

    Attributes:
        centre: mean of the states it was fitted to (d,).
        axes: the first two principal components, as columns (d, 2); each points to the side on which its
            entry of largest size is positive. 0 where there is no second direction.
        scale: root mean square distance of the unedited points from their mean in the plane, the unit of
            H; 1 if they are all alike.
    """

    centre: Float64[np.ndarray, " d"]
    axes: Float64[np.ndarray, "d 2"]
    scale: float

    @classmethod
    def fit(cls, before: States, after: States, to: Literal["before", "both"] = "before") -> "Plane":
        """Principal components of the states.

        Args:
            before: unedited states.
            after: edited ones of the same prompts. They complete the plane where the others span fewer than
                two dimensions.
            to: fit to the unedited states, so that all edited models share one plane, or to both sets
                together, which is what a t-SNE of both sees.

        Raises:
            ShapeError, NonFiniteError: if the states do not fit together or are not finite.
        """
        together(before, after)
        fitted = before if to == "before" else np.concatenate([before, after])
        centre, least = fitted.mean(0), _rounding(before, after)
        axes = _principal(fitted - centre, least)
        if axes.shape[1] < 2:
            rest = after - centre
            further = _principal(rest - (rest @ axes) @ axes.T, least)
            axes = np.concatenate([axes, further, np.zeros((len(centre), 2))], 1)[:, :2]
        radius = _radius((before - before.mean(0)) @ axes)
        return cls(centre, axes, radius if radius > least else 1.0)

    def points(self, states: States) -> Points:
        """Coordinates of states in the plane, in units of the states."""
        return (states - self.centre) @ self.axes


def _principal(centred: States, least: float) -> Float64[np.ndarray, "d k"]:
    """At most two right singular vectors of singular values above the least, each with a definite sign."""
    _, lengths, rows = np.linalg.svd(centred, full_matrices=False)
    kept = rows[:2][lengths[:2] > least].T
    largest = kept[np.abs(kept).argmax(0), np.arange(kept.shape[1])]
    return kept * np.sign(largest)


def _radius(centred: Float64[np.ndarray, "n k"]) -> float:
    """Root mean square distance from the origin."""
    return float(np.sqrt(np.square(centred).sum(1).mean()))


def _rounding(*states: States) -> float:
    """Distance below which states differ by rounding only."""
    return _ALIKE * max(float(np.abs(one).max()) * one.size for one in states)


def together(before: States, after: States) -> None:
    """Check that both are finite states of the same prompts.

    Raises:
        ShapeError: if their shapes differ or there is no prompt.
        NonFiniteError: if one holds NaN or infinity.
    """
    if before.shape != after.shape or not before.size:
        raise ShapeError(
            f"unedited states {before.shape} and edited ones {after.shape} must be of the same prompts, one "
            "or more, at the same place"
        )
    for name, states in (("unedited", before), ("edited", after)):
        bad = int((~np.isfinite(states)).any(1).sum())
        if bad:
            raise NonFiniteError(
                f"the {name} states of {bad} of {len(states)} prompts hold NaN or infinity; undo the last "
                "edit, weaken it, or load the model in a wider dtype"
            )


def overlap(before: Float64[np.ndarray, " n"], after: Float64[np.ndarray, " m"]) -> float:
    """Overlap of two marginal curves, ∫ min(p, p') = 1 - ½ ∫ |p - p'|, in [0, 1]: D1 or D2.

    The curves are Gaussian kernel density estimates, each with the bandwidth of Scott's rule. Samples whose
    values are all alike have no curve; two of them overlap wholly if their values agree, and one of them
    overlaps with nothing else.

    Source: AlphaEdit, App. C.3.
    """
    size = max(np.abs(before).max(), np.abs(after).max())
    flat = [bool(np.ptp(one) <= _ALIKE * size) for one in (before, after)]
    if any(flat):
        return float(all(flat) and abs(before.mean() - after.mean()) <= _ALIKE * size)
    centre, unit = before.mean(), before.std()
    curves = [gaussian_kde((one - centre) / unit) for one in (before, after)]
    grid = np.unique(np.concatenate([_grid(curve) for curve in curves]))
    gap = np.abs(curves[0](grid) - curves[1](grid))
    return float(np.clip(1 - trapezoid(gap, grid) / 2, 0, 1))


def _grid(curve: gaussian_kde) -> Float64[np.ndarray, " g"]:
    reach = _REACH * float(curve.covariance[0, 0]) ** 0.5
    return np.linspace(curve.dataset.min() - reach, curve.dataset.max() + reach, _GRID)


def hausdorff(before: Float64[np.ndarray, "n k"], after: Float64[np.ndarray, "m k"]) -> float:
    """Hausdorff distance of two sets of points, in their units, 0 or more.

    Source: AlphaEdit, Eq. 35.
    """
    apart = cdist(before, after)
    return float(max(apart.min(0).max(), apart.min(1).max()))


def inside(before: Points, after: Points, level: float = LEVEL) -> float:
    """Share of edited points in the confidence region of the unedited ones, in [0, 1]: P.

    The region is the ellipse of constant Mahalanobis distance from the mean of the unedited points that holds
    the smallest share of them that is at least ``level``: that share is P of a model that did not move. Along
    a direction in which all unedited points agree, a point is inside only if it agrees too.

    Source: AlphaEdit, App. C.3, which does not define the region.
    """
    size = max(np.abs(before).max(), np.abs(after).max())
    centred = before - before.mean(0)
    spread, directions = np.linalg.eigh(centred.T @ centred / len(before))
    wide = np.sqrt(spread.clip(min=0)) > 1e-9 * size
    # (n, 2) coordinates along the ellipse's axes
    own, other = (points @ directions for points in (centred, after - before.mean(0)))
    squares = [np.square(one[:, wide] / np.sqrt(spread[wide])).sum(1) for one in (own, other)]
    limit = np.quantile(squares[0], level, method="inverted_cdf")
    agrees = (np.abs(other[:, ~wide]) <= 1e-8 * size).all(1)
    return float(((squares[1] <= limit + 1e-9 * (1 + limit)) & agrees).mean())


def gram(states: States) -> Float64[np.ndarray, "n n"]:
    """Inner products of all pairs of states, of their linear kernel."""
    return states @ states.T


def linear_cka(before: Float64[np.ndarray, "n n"], after: Float64[np.ndarray, "n n"]) -> float:
    """Linear centred kernel alignment of two sets of states, in [0, 1].

    It is blind to rotations, to a common scale and to translations. Of sets whose states are all alike, two
    have 1, and one has 0 with any other.

    Args:
        before: inner products of the unedited states, from `gram`.
        after: of the edited states of the same prompts.

    Source: Kornblith et al., Similarity of Neural Network Representations Revisited, Eq. 4.
    """
    size = [float(np.abs(one).max()) for one in (before, after)]
    centred = [_centred(one) for one in (before, after)]
    norms = [float(np.linalg.norm(one)) for one in centred]
    flat = [norm <= 1e-10 * scale * len(before) for norm, scale in zip(norms, size, strict=True)]
    if any(flat):
        return float(all(flat))
    return float(np.clip(np.vdot(centred[0], centred[1]) / (norms[0] * norms[1]), 0, 1))


def _centred(kernel: Float64[np.ndarray, "n n"]) -> Float64[np.ndarray, "n n"]:
    rows = kernel.mean(0)
    return kernel - rows - rows[:, None] + rows.mean()


def width(before: States) -> float:
    """Median distance between the states of two prompts, the width of `gaussian_kernel`; 1 where it is 0."""
    apart = cdist(before, before)[np.triu_indices(len(before), 1)]
    median = float(np.median(apart)) if len(apart) else 0.0
    return median if median > 0 else 1.0


def gaussian_kernel(states: States, scale: float) -> Float64[np.ndarray, "n n"]:
    """exp(-‖x - y‖²/(2ℓ²)) of all pairs of states, with ℓ = ``scale``."""
    return np.exp(-np.square(cdist(states, states) / scale) / 2)


def mmd(
    before: Float64[np.ndarray, "n n"],
    after: Float64[np.ndarray, "m m"],
    across: Float64[np.ndarray, "n m"],
) -> float:
    """Maximum mean discrepancy of edited and unedited states, in [0, √2].

    It is the distance of both means in the kernel's feature space, with the biased estimate, which is 0 for
    equal sets and never below.

    Args:
        before: kernel of all pairs of unedited states.
        after: of all pairs of edited ones.
        across: of an unedited and an edited one.

    Source: Gretton et al., A Kernel Two-Sample Test, Eq. 5.
    """
    square = float(before.mean() + after.mean() - 2 * across.mean())
    return max(square, 0.0) ** 0.5


def spread(before: States) -> float:
    """Root mean square distance of the unedited states from their mean; 1 if they are all alike."""
    found = _radius(before - before.mean(0))
    return found if found > _rounding(before) else 1.0


def moved(before: States, after: States) -> Float64[np.ndarray, " n"]:
    """Distance between the edited and the unedited state of each prompt, in their units."""
    return np.linalg.norm(after - before, axis=1)


def turned(before: States, after: States) -> Float64[np.ndarray, " n"]:
    """Angle between the edited and the unedited state of each prompt, in degrees, [0, 180].

    From half the angle's tangent, which is exact for small angles; of a state that is 0, 0 with itself and 90
    with any other.
    """
    lengths = [np.linalg.norm(one, axis=1, keepdims=True) for one in (before, after)]
    a, b = (one / np.where(norm > 0, norm, 1) for one, norm in zip((before, after), lengths, strict=True))
    angle = 2 * np.arctan2(np.linalg.norm(a - b, axis=1), np.linalg.norm(a + b, axis=1))
    return np.degrees(angle)
