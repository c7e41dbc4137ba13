"""Null-space projectors of the preserved keys, from the spectrum of their second moment.

AlphaEdit (Eq. 7 to 10) keeps every update inside the directions where preserved keys have little
energy: P = U Uᵀ over the eigenvectors of C0 whose eigenvalue is below 2e-2. The rule that draws that
line is a parameter here, because an absolute threshold depends on the scale of the activations.
P acts on the right of an update, that is on its rows: ΔP = Δ means that Δ ignores the protected
directions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from palimpsest.errors import NonFiniteError, ShapeError

PUBLISHED_THRESHOLD = 2e-2


@dataclass(frozen=True)
class Rule:
    """How many leading directions of a spectrum are protected.

    Attributes:
        name: ``absolute``, ``relative``, ``energy`` or ``rank``.
        parameter: the rule's number.
        protected: spectrum (d_k,), largest first -> number of protected directions.
    """

    name: str
    parameter: float
    protected: Callable[[Tensor], int]


def absolute(threshold: float = PUBLISHED_THRESHOLD) -> Rule:
    """Protect eigenvalues at or above ``threshold`` (AlphaEdit's published rule, 2e-2)."""
    _require(threshold >= 0, f"absolute threshold must be 0 or more, got {threshold}")
    return Rule("absolute", threshold, lambda s: int((s >= threshold).sum()))


def relative(threshold: float) -> Rule:
    """Protect eigenvalues at or above ``threshold`` times the largest; free of activation scale."""
    _require(0 <= threshold <= 1, f"relative threshold must lie in [0, 1], got {threshold}")
    return Rule("relative", threshold, lambda s: int((s >= threshold * s[0]).sum()))


def energy(share: float) -> Rule:
    """Protect the fewest leading directions that hold at least ``share`` of the key energy."""
    _require(0 <= share <= 1, f"energy share must lie in [0, 1], got {share}")

    def protected(spectrum: Tensor) -> int:
        held = torch.cumsum(spectrum, 0) / spectrum.sum()
        return 0 if share == 0 else min(int((held < share - 1e-12).sum()) + 1, len(spectrum))

    return Rule("energy", share, protected)


def rank(r: int) -> Rule:
    """Keep exactly the ``r`` directions with the least key energy; protect the others."""
    _require(r >= 0, f"rank must be 0 or more, got {r}")

    def protected(spectrum: Tensor) -> int:
        _require(r <= len(spectrum), f"rank {r} is more than the {len(spectrum)} directions there are")
        return len(spectrum) - r

    return Rule("rank", r, protected)


RULES = {"absolute": absolute, "relative": relative, "energy": energy}
"""Rules by the name that settings give them; the number of each is then called threshold."""


@dataclass(frozen=True)
class Projector:
    """Orthogonal projector P (d_k, d_k), held as the smaller of its basis and its complement.

    Attributes:
        basis: B (d_k, r) with orthonormal columns, P = B Bᵀ; None when the complement is held.
        complement: U (d_k, r) with orthonormal columns, P = I − U Uᵀ; None when the basis is held.
        spectrum: eigenvalues of the second moment it came from, (d_k,), largest first, or None.
        rule: the rule that drew the line, or None.
    """

    basis: Float[Tensor, "d_k r"] | None = None
    complement: Float[Tensor, "d_k r"] | None = None
    spectrum: Float[Tensor, " d_k"] | None = None
    rule: Rule | None = None

    def __post_init__(self) -> None:
        if (self.basis is None) == (self.complement is None):
            raise ShapeError("a projector holds exactly one of basis and complement")

    @classmethod
    def identity(cls, d_k: int, device: torch.device | str = "cpu") -> "Projector":
        """The projector that protects nothing."""
        return cls(complement=torch.zeros(d_k, 0, dtype=torch.float64, device=device))

    @property
    def dim(self) -> int:
        """Width d_k of the keys."""
        return self._held.shape[0]

    @property
    def kept(self) -> int:
        """Rank of P: the number of directions in which an update may act."""
        return self.basis.shape[1] if self.basis is not None else self.dim - self._held.shape[1]

    @property
    def protected_energy(self) -> float:
        """Share of the key energy (trace of the second moment) in protected directions, in [0, 1]."""
        if self.spectrum is None:
            raise ShapeError("this projector has no spectrum; build it with null_space")
        return float(self.spectrum[: self.dim - self.kept].sum() / self.spectrum.sum())

    def apply(self, x: Float[Tensor, "d_k n"]) -> Float[Tensor, "d_k n"]:
        """P @ x."""
        u = self._held.to(x)
        inside = u @ (u.T @ x)
        return inside if self.basis is not None else x - inside

    def leakage(self, keys: Float[Tensor, "d_k n"]) -> float:
        """Share of the keys' energy that P lets through, ‖PK‖²/‖K‖², in [0, 1]; 0 is full protection.

        Raises:
            ShapeError: if the keys have another width, or are all zero.
        """
        if keys.shape[0] != self.dim:
            raise ShapeError(f"keys have width {keys.shape[0]}, the projector {self.dim}")
        keys = keys.double()
        total = keys.square().sum()
        if total == 0:
            raise ShapeError("leakage of keys that are all zero is undefined; give real keys")
        return float(self.apply(keys).square().sum() / total)

    # Coordinates on range(P), so that a solver needs no case distinction: with a basis they are
    # r numbers per column; with a complement they stay d_k numbers, and `pad` fills the protected
    # directions, where right-hand sides are zero, so that the matrix to factorise is invertible.

    def coordinates(self, x: Float[Tensor, "d_k n"]) -> Float[Tensor, "c n"]:
        """Columns of x, projected, in the coordinates the solver works in."""
        return self.basis.to(x).T @ x if self.basis is not None else self.apply(x)

    def embed(self, y: Float[Tensor, "c n"]) -> Float[Tensor, "d_k n"]:
        """Back from coordinates to columns of width d_k, inside range(P)."""
        return self.basis.to(y) @ y if self.basis is not None else self.apply(y)

    def restrict(self, a: Float[Tensor, "d_k d_k"]) -> Float[Tensor, "c c"]:
        """The symmetric matrix ``a`` as it acts on range(P): Bᵀ a B, or P a P."""
        if self.basis is not None:
            b = self.basis.to(a)
            return b.T @ a @ b
        return self.apply(self.apply(a).T)

    def pad(self, a: Float[Tensor, "c c"]) -> Float[Tensor, "c c"]:
        """A restricted matrix with the mean of its eigenvalues on range(P) in protected directions.

        The mean lies between the extremes, so the condition number stays that on range(P).
        """
        if self.basis is not None or self.kept == self.dim:
            return a
        u = self._held.to(a)
        scale = a.diagonal().sum() / max(self.kept, 1)
        return a + (scale if scale > 0 else 1.0) * (u @ u.T)

    @property
    def _held(self) -> Tensor:
        held = self.basis if self.basis is not None else self.complement
        assert held is not None  # guaranteed by __post_init__
        return held


@runtime_checkable
class HasValue(Protocol):
    """Anything that carries a matrix as ``.value``, such as ``statistics.SecondMoment``."""

    @property
    def value(self) -> Tensor:
        """The matrix."""
        ...


def null_space(c0: Tensor | HasValue, rule: Rule | None = None) -> Projector:
    """Projector onto the directions in which the preserved keys have little energy.

    Args:
        c0: mean second moment of the preserved keys (d_k, d_k), symmetric, or an object that holds it
            as ``.value``.
        rule: where to draw the line; default ``absolute(2e-2)``, as published.

    Returns:
        Projector with the spectrum attached; basis or complement, whichever is smaller.

    Raises:
        ShapeError: if ``c0`` is not square and symmetric, is all zero, has a negative eigenvalue, or
            the rule asks for more directions than there are.
        NonFiniteError: if ``c0`` holds NaN or infinity.

    Source: AlphaEdit Eq. 7 to 10 and its released code (threshold on the mean second moment).
    """
    rule = rule or absolute()
    spectrum, vectors = eigendirections(c0)
    protected = rule.protected(spectrum)
    if protected <= len(spectrum) // 2:
        held = vectors[:, :protected].contiguous()
        return Projector(complement=held, spectrum=spectrum, rule=rule)
    return Projector(basis=vectors[:, protected:].contiguous(), spectrum=spectrum, rule=rule)


def eigendirections(c0: Tensor | HasValue) -> tuple[Float[Tensor, " d_k"], Float[Tensor, "d_k d_k"]]:
    """Eigenvalues of a second moment, largest first, and its eigenvectors as columns, in float64.

    A rule's ``protected`` applied to the eigenvalues says what it would keep without a new decomposition.

    Raises:
        ShapeError, NonFiniteError: as `null_space`.
    """
    matrix = torch.as_tensor(getattr(c0, "value", c0)).double()
    _check_moment(matrix)
    values, vectors = torch.linalg.eigh(matrix)
    _require(
        float(values[0]) >= -1e-5 * float(values.abs().max()),
        f"the second moment has the negative eigenvalue {float(values[0]):.1e}; a sum of k kᵀ has "
        "none, so check what was collected",
    )
    return values.flip(0).clamp(min=0), vectors.flip(1)


def energy_along(directions: Float[Tensor, "d_k r"], moment: Float[Tensor, "d_k d_k"]) -> Float[Tensor, " r"]:
    """Mean energy uᵀCu, along each column u, of the keys behind a second moment C.

    Over the eigenvectors of C0 that a projector keeps, it adds up to what the projector lets through of those
    keys, for example of held-out ones.
    """
    return (directions * (moment.to(directions) @ directions)).sum(0)


def _check_moment(matrix: Tensor) -> None:
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ShapeError(f"the second moment must be square (d_k, d_k), got {tuple(matrix.shape)}")
    if not torch.isfinite(matrix).all():
        raise NonFiniteError("the second moment holds NaN or infinity; collect it again")
    if not matrix.any():
        raise ShapeError("the second moment is all zero; collect it from at least one token")
    gap = (matrix - matrix.T).abs().max() / matrix.abs().max()
    if gap > 1e-6:
        raise ShapeError(f"the second moment must be symmetric; relative asymmetry {float(gap):.1e}")


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ShapeError(message)
