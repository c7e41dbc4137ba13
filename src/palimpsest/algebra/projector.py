"""Null-space projectors of the preserved keys, from the spectrum of their second moment.

AlphaEdit (Eq. 7 to 10) keeps every update inside the directions where preserved keys have little
energy: P = U Uᵀ over the eigenvectors of C0 whose eigenvalue is below 2e-2. The rule that draws that
line is a parameter here, because an absolute threshold depends on the scale of the activations.
P acts on the right of an update, that is on its rows: ΔP = Δ means that Δ ignores the protected
directions. AlphaEdit+ (Algorithm 1) gives some of the protected directions back where new facts need them:
`palimpsest.algebra.admission`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from palimpsest.algebra.spectrum import (
    HasValue,
    Rule,
    absolute,
    eigendirections,
)
from palimpsest.errors import ShapeError


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


def line_energy(vectors: Float[Tensor, "n d"], states: Float[Tensor, "m d"]) -> Float[Tensor, " n"]:
    """L_kp of n edits of one direction each: Σ over x of (vᵀx)²/‖v‖² (n,), any precision; 0 where v is 0.

    Its gradient at v = 0, where it has none, is taken as 0, so that an optimisation can start there.
    """
    length = vectors.square().sum(1)
    return (vectors @ states.T).square().sum(1) / torch.where(length > 0, length, 1)
