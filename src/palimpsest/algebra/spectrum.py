"""Spectrum of a second moment, and the rules that split it into protected and free directions.

AlphaEdit (Eq. 7 to 10) protects the eigenvectors of C0 whose eigenvalue is at least 2e-2. This threshold
depends on the scale of the activations; the other rules do not.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from palimpsest.errors import NonFiniteError, ShapeError

PUBLISHED_THRESHOLD = 2e-2

BLOCK = 1024
"""Rows of a moment that are checked together."""


@dataclass(frozen=True)
class Cut:
    """Rule for the number of leading directions of a spectrum that are protected.

    Attributes:
        name: ``absolute``, ``relative``, ``energy`` or ``rank``.
        parameter: the rule's number: a threshold, a share or a rank.
        protected: spectrum (d_k,), largest first -> number of protected directions.
    """

    name: str
    parameter: float
    protected: Callable[[Tensor], int]


def absolute(threshold: float = PUBLISHED_THRESHOLD) -> Cut:
    """Protect eigenvalues at or above ``threshold`` (AlphaEdit's published rule, 2e-2).

    Raises:
        ShapeError: if the threshold is negative.
    """
    _require(threshold >= 0, f"absolute threshold must be 0 or more, got {threshold}")
    return Cut("absolute", threshold, lambda s: int((s >= threshold).sum()))


def relative(threshold: float) -> Cut:
    """Protect eigenvalues at or above ``threshold`` times the largest; independent of activation scale.

    Raises:
        ShapeError: if the threshold is outside [0, 1].
    """
    _require(0 <= threshold <= 1, f"relative threshold must lie in [0, 1], got {threshold}")
    return Cut("relative", threshold, lambda s: int((s >= threshold * s[0]).sum()))


def energy(share: float) -> Cut:
    """Protect the fewest leading directions that hold at least ``share`` of the key energy, the trace of C0.

    Raises:
        ShapeError: if the share is outside [0, 1].
    """
    _require(0 <= share <= 1, f"energy share must lie in [0, 1], got {share}")

    def protected(spectrum: Tensor) -> int:
        held = torch.cumsum(spectrum, 0) / spectrum.sum()
        return 0 if share == 0 else min(int((held < share - 1e-12).sum()) + 1, len(spectrum))

    return Cut("energy", share, protected)


def rank(r: int) -> Cut:
    """Keep exactly the ``r`` directions with the least key energy free; protect the others.

    Raises:
        ShapeError: if r is negative; from ``protected``, if r exceeds the number of directions.
    """
    _require(r >= 0, f"rank must be 0 or more, got {r}")

    def protected(spectrum: Tensor) -> int:
        _require(r <= len(spectrum), f"rank {r} is more than the {len(spectrum)} directions there are")
        return len(spectrum) - r

    return Cut("rank", r, protected)


def smallest(multiple: float) -> Cut:
    """Protect eigenvalues above ``multiple`` times the smallest one (Adam-NSCL's published rule).

    Independent of the scale of the features. An eigenvalue below the rounding of the largest one, d_k times
    2⁻⁵² of it, counts as that rounding: where the features leave a direction out altogether, these directions
    and those up to ``multiple`` times the rounding are free.

    Raises:
        ShapeError: if the multiple is below 1.
    """
    _require(multiple >= 1, f"the multiple of the smallest eigenvalue must be 1 or more, got {multiple}")

    def protected(spectrum: Tensor) -> int:
        rounding = len(spectrum) * torch.finfo(torch.float64).eps * spectrum[0]
        return int((spectrum > multiple * torch.maximum(spectrum[-1], rounding)).sum())

    return Cut("smallest", multiple, protected)


CUTS = {"absolute": absolute, "relative": relative, "energy": energy}
"""Rules by their names in settings, where the number of each is called threshold."""


@runtime_checkable
class HasValue(Protocol):
    """Any object that holds a matrix as ``.value``, such as `palimpsest.memory.moments.SecondMoment`."""

    @property
    def value(self) -> Tensor:
        """The matrix."""
        ...


def eigendirections(c0: Tensor | HasValue) -> tuple[Float[Tensor, " d_k"], Float[Tensor, "d_k d_k"]]:
    """Eigenvalues of a second moment, largest first, and its eigenvectors as columns, in float64.

    A rule's ``protected`` can be applied to the eigenvalues without another decomposition. Eigenvalues that
    rounding made negative are set to 0.

    Args:
        c0: second moment (d_k, d_k), or an object that holds it as ``.value``.

    Raises:
        ShapeError: if ``c0`` is not square and symmetric, is all zero, or has an eigenvalue below −1e-5 times
            the largest absolute one.
        NonFiniteError: if it holds NaN or infinity.
    """
    values, vectors = torch.linalg.eigh(moment_of(c0))
    require_no_negative(float(values[0]), float(values.abs().max()))
    return values.flip(0).clamp(min=0), vectors.flip(1)


def moment_of(c0: Tensor | HasValue) -> Float64[Tensor, "d_k d_k"]:
    """A second moment in float64, checked to be square, finite, symmetric and not zero.

    Raises:
        ShapeError, NonFiniteError: if it is not.
    """
    matrix = torch.as_tensor(getattr(c0, "value", c0)).double()
    _check_moment(matrix)
    return matrix


def require_no_negative(least: float, largest: float) -> None:
    """Check that the least eigenvalue is negative by rounding at most.

    Raises:
        ShapeError: if it lies below −1e-5 times the largest one.
    """
    if not least >= -1e-5 * largest:
        raise ShapeError(
            f"the second moment has the negative eigenvalue {least:.1e}; a sum of k kᵀ has none, so check "
            "what was collected"
        )


def energy_along(directions: Float[Tensor, "d_k r"], moment: Float[Tensor, "d_k d_k"]) -> Float[Tensor, " r"]:
    """Mean energy uᵀCu (r,) along each column u of the keys with second moment C.

    Its sum over the free eigenvectors of a projector is the energy that the projector lets through of those
    keys, for example of held-out ones.
    """
    return (directions * (moment.to(directions) @ directions)).sum(0)


def _check_moment(matrix: Tensor) -> None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ShapeError(f"the second moment must be square (d_k, d_k), got {tuple(matrix.shape)}")
    largest = float(torch.linalg.vector_norm(matrix, torch.inf))
    if not math.isfinite(largest):
        raise NonFiniteError("the second moment holds NaN or infinity; collect it again")
    if not largest:
        raise ShapeError("the second moment is all zero; collect it from at least one token")
    # By blocks of rows: a second copy of a large moment takes gigabytes.
    gap = 0.0
    for start in range(0, len(matrix), BLOCK):
        rows = matrix[start : start + BLOCK, start:] - matrix[start:, start : start + BLOCK].T
        gap = max(gap, float(torch.linalg.vector_norm(rows, torch.inf)) / largest)
    if gap > 1e-6:
        raise ShapeError(f"the second moment must be symmetric; relative asymmetry {gap:.1e}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ShapeError(message)
