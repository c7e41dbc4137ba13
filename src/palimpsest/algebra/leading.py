"""Leading eigenpairs of a second moment by a block Krylov method, where a whole decomposition takes minutes.

A null-space projector needs only the few directions that its rule protects. With a random block X, the space
[X, CX, C²X, …] holds the leading eigenvectors ever more closely, faster the faster the spectrum falls. Its
basis is kept orthonormal, and Rayleigh-Ritz on it gives eigenvalues and eigenvectors with their residuals, so
that the error is known: the sine of the largest angle between the space found and the true one is at most
‖CV − VΛ‖ divided by the gap between its eigenvalues and the next one.

Source: Musco and Musco, Randomized Block Krylov Methods (2015); Davis and Kahan, sin Θ theorem.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float64
from torch import Tensor

from palimpsest.algebra.spectrum import Cut, HasValue, moment_of, require_no_negative

BLOCK = 64
"""Columns of the first block; a rule that protects more directions gets wider ones."""

BUFFER = 8
"""Further columns of a block, which make the last wanted directions come out fast."""

STEPS = 14
"""Most products with C from one block."""

FIRST = 6
"""Product after which eigenpairs are looked at first; they never come out sooner to within ANGLE."""

SHARE = 8
"""A decomposition of all d_k directions is cheaper if more than a share 1 / SHARE of them is protected."""

Narrow = Literal["too narrow"]
NARROW: Narrow = "too narrow"

ANGLE = 1e-8
"""Largest sine of an angle between the protected space that is found and the true one."""


@dataclass(frozen=True)
class Leading:
    """Leading eigenpairs of C, as many as a rule protects.

    Attributes:
        values: eigenvalues (m,), largest first, float64.
        vectors: orthonormal eigenvectors (d_k, m), float64.
        angle: bound on the sine of the largest angle between their space and the true one.
        least: smallest Ritz value found: an upper bound on the smallest eigenvalue.
        energy: sum of all eigenvalues.
    """

    values: Float64[Tensor, " m"]
    vectors: Float64[Tensor, "d_k m"]
    angle: float
    least: float
    energy: Float64[Tensor, ""]


def leading_directions(c0: Tensor | HasValue, rule: Cut) -> Leading | None:
    """The protected eigenpairs of a second moment, or None where a whole decomposition should be made.

    That is so if the rule protects more than a share 1 / `SHARE` of the directions, or if the eigenvalues on
    both sides of its cut lie so close that `ANGLE` cannot be vouched for.

    Args:
        c0: second moment C (d_k, d_k), or an object that holds it as ``.value``.
        rule: which directions count as protected.

    Raises:
        ShapeError, NonFiniteError: as `palimpsest.algebra.spectrum.eigendirections`; a negative eigenvalue is
            found if it is among the extreme ones.
    """
    matrix = moment_of(c0)
    most = len(matrix) // SHARE - BUFFER
    block = BLOCK
    while block <= most:
        found = _krylov(matrix, rule, block)
        if isinstance(found, Leading):
            require_no_negative(found.least, float(matrix.diagonal().max()))
        if found != NARROW:
            return found
        block = 2 * block if 2 * block <= most or block == most else most
    return None


def _krylov(matrix: Float64[Tensor, "d d"], rule: Cut, block: int) -> "Leading | Narrow | None":
    """Protected eigenpairs from one random block, or that it is too narrow, or None.

    Each product C Q_j is split along the basis Q and a rest Q_{j+1} R, so that C Q = Q S + [0, Q_{j+1} R]:
    S and R tell eigenvalues and residuals without another product.
    """
    seeded = torch.Generator().manual_seed(0)
    start = torch.randn(len(matrix), block + BUFFER, dtype=torch.float64, generator=seeded).to(matrix)
    basis = fresh = torch.linalg.qr(start).Q  # (d, b), and (d, b·steps) later
    small = matrix.new_zeros(0, 0)  # S = QᵀCQ
    for step in range(STEPS):
        image = matrix @ fresh
        column = basis.T @ image  # (b·step, b), the new columns of S
        image -= basis @ column
        image -= basis @ (basis.T @ image)  # removes what rounding left of the earlier directions
        small = torch.cat([torch.cat([small, column[: len(small)].T]), column], 1)
        following, rest = torch.linalg.qr(image)
        found = _ritz(matrix, rule, basis, small, rest, block) if step >= FIRST else None
        if found is not None:
            return found
        if basis.shape[1] + following.shape[1] > len(matrix):
            return None
        fresh, basis = following, torch.cat([basis, following], 1)
    return None


def _ritz(
    matrix: Float64[Tensor, "d d"], rule: Cut, basis: Tensor, small: Tensor, rest: Tensor, block: int
) -> "Leading | Narrow | None":
    """Eigenpairs by Rayleigh-Ritz if they are close enough, or that the block is too narrow, or None."""
    values, turns = torch.linalg.eigh((small + small.T) / 2)
    least, values, turns = float(values[0]), values.flip(0)[:block], turns.flip(1)[:, :block]
    off = (rest @ turns[-len(rest) :]).norm(dim=0)  # within which an eigenvalue lies of each
    rounding = torch.finfo(values.dtype).eps * len(matrix) * float(values[0])
    bounds = (values - rounding, values + off + rounding)
    low, high = (rule.protected(_filled(matrix, one)) for one in bounds)
    if low >= block:
        return NARROW
    if low != high:
        return None
    if low == 0:
        return Leading(values[:0], basis[:, :0], 0.0, least, matrix.diagonal().sum())
    gap = float(values[low - 1] - values[low] - off[low])
    if not gap > 0 or float(off[:low].norm()) > ANGLE * gap:
        return None
    held, values = torch.linalg.qr(basis @ turns[:, :low]).Q, values[:low]
    angle = float((matrix @ held - held * values).norm()) / gap
    return Leading(values, held, angle, least, matrix.diagonal().sum()) if angle <= ANGLE else None


def _filled(matrix: Float64[Tensor, "d d"], values: Float64[Tensor, " m"]) -> Float64[Tensor, " d"]:
    """A spectrum of d eigenvalues that begins with these and has the trace of C: the rest are their mean."""
    rest = len(matrix) - len(values)
    mean = ((matrix.diagonal().sum() - values.sum()) / max(rest, 1)).clamp(min=0)
    return torch.cat([values, torch.minimum(mean, values[-1]).expand(rest)])
