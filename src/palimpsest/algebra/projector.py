"""Null-space projectors of the preserved keys, from the spectrum of their second moment.

AlphaEdit (Eq. 7 to 10) keeps every update inside the directions where preserved keys have little energy:
P = U Uᵀ over the eigenvectors of C0 whose eigenvalue is below 2e-2. The rule that separates these directions
is a parameter here, because an absolute threshold depends on the scale of the activations. P multiplies an
update from the right, that is, it acts on rows: ΔP = Δ means that Δ is zero on the protected directions.
AlphaEdit+ (Algorithm 1) frees some protected directions that new facts need: `palimpsest.algebra.admission`.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from palimpsest import cache
from palimpsest.algebra.leading import leading_directions
from palimpsest.algebra.spectrum import (
    CUTS,
    Cut,
    HasValue,
    absolute,
    eigendirections,
)
from palimpsest.cache import tensor_sha256
from palimpsest.errors import ProfileError, ShapeError, UnknownNameError

REVISION = 1
"""Part of the cache key; raise it when the same moment gives another projector than before."""

LARGE = 2048
"""Width of a second moment from which a whole decomposition is avoided where that is possible."""


@dataclass(frozen=True)
class Projector:
    """Orthogonal projector P (d_k, d_k), stored as the smaller of its basis and its complement.

    Attributes:
        basis: B (d_k, r) with orthonormal columns, P = B Bᵀ; None when the complement is stored.
        complement: U (d_k, r) with orthonormal columns, P = I − U Uᵀ; None when the basis is stored.
        spectrum: eigenvalues of the second moment it was built from, largest first, (d_k,), or only those of
            the protected directions; or None.
        rule: rule that chose the protected directions, or None.
        energy: sum of all eigenvalues where the spectrum lacks some; or None.

    Raises:
        ShapeError: unless exactly one of basis and complement is given.
    """

    basis: Float[Tensor, "d_k r"] | None = None
    complement: Float[Tensor, "d_k r"] | None = None
    spectrum: Float[Tensor, " m"] | None = None
    rule: Cut | None = None
    energy: Float[Tensor, ""] | None = None

    def __post_init__(self) -> None:
        if (self.basis is None) == (self.complement is None):
            raise ShapeError("a projector holds exactly one of basis and complement")

    @classmethod
    def identity(cls, d_k: int, device: torch.device | str = "cpu") -> "Projector":
        """The projector P = I, which protects nothing."""
        return cls(complement=torch.zeros(d_k, 0, dtype=torch.float64, device=device))

    @property
    def dim(self) -> int:
        """Width d_k of the keys."""
        return self._held.shape[0]

    @property
    def kept(self) -> int:
        """Rank of P: the number of free directions, in which an update may act."""
        return self.basis.shape[1] if self.basis is not None else self.dim - self._held.shape[1]

    @property
    def protected_energy(self) -> float:
        """Share of the key energy (trace of the second moment) in protected directions, in [0, 1].

        Raises:
            ShapeError: if the projector has no spectrum.
        """
        if self.spectrum is None:
            raise ShapeError("this projector has no spectrum; build it with null_space")
        whole = self.spectrum.sum() if self.energy is None else self.energy
        return float(self.spectrum[: self.dim - self.kept].sum() / whole)

    def apply(self, x: Float[Tensor, "d_k n"]) -> Float[Tensor, "d_k n"]:
        """P x, for columns x."""
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

    # Coordinates on range(P), so that a solver needs no case distinction: c = r numbers per column with
    # a basis, c = d_k with a complement. In the second case `pad` makes the matrix to factorise invertible
    # in the protected directions, where right-hand sides are zero.

    def coordinates(self, x: Float[Tensor, "d_k n"]) -> Float[Tensor, "c n"]:
        """Columns of x projected onto range(P), in the solver's coordinates."""
        return self.basis.to(x).T @ x if self.basis is not None else self.apply(x)

    def embed(self, y: Float[Tensor, "c n"]) -> Float[Tensor, "d_k n"]:
        """Columns of width d_k inside range(P), from coordinates."""
        return self.basis.to(y) @ y if self.basis is not None else self.apply(y)

    def restrict(self, a: Float[Tensor, "d_k d_k"]) -> Float[Tensor, "c c"]:
        """Symmetric matrix ``a`` restricted to range(P): Bᵀ a B, or P a P."""
        if self.basis is not None:
            b = self.basis.to(a)
            return b.T @ a @ b
        return a if self.kept == self.dim else self.apply(self.apply(a).T)

    def pad(self, a: Float[Tensor, "c c"]) -> Float[Tensor, "c c"]:
        """Restricted matrix, filled in protected directions with the mean of its eigenvalues on range(P).

        The mean lies between the extremes, so the condition number remains that on range(P).
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


def null_space(c0: Tensor | HasValue, rule: Cut | None = None) -> Projector:
    """Projector onto the directions in which the preserved keys have little energy.

    Args:
        c0: mean second moment of the preserved keys (d_k, d_k), symmetric, or an object that holds it
            as ``.value``.
        rule: which directions to protect; default ``absolute(2e-2)``, as published.

    Returns:
        Projector with its spectrum and rule; basis or complement, whichever is smaller. Of a moment that is
        `LARGE` only the protected directions are computed, if they are few and lie apart from the others
        (`palimpsest.algebra.leading`); their angle to the true ones is then known to be below 1e-8.

    Raises:
        ShapeError: if ``c0`` is not square and symmetric, is all zero, has a negative eigenvalue, or
            the rule needs more directions than there are.
        NonFiniteError: if ``c0`` holds NaN or infinity.

    Source: AlphaEdit Eq. 7 to 10 and its released code (threshold on the mean second moment).
    """
    rule = rule or absolute()
    found = leading_directions(c0, rule) if len(torch.as_tensor(getattr(c0, "value", c0))) >= LARGE else None
    if found is not None:
        return Projector(None, found.vectors, found.values, rule, found.energy)
    spectrum, vectors = eigendirections(c0)
    protected = rule.protected(spectrum)
    if protected <= len(spectrum) // 2:
        held = vectors[:, :protected].contiguous()
        return Projector(complement=held, spectrum=spectrum, rule=rule)
    return Projector(basis=vectors[:, protected:].contiguous(), spectrum=spectrum, rule=rule)


def projectors(
    moments: Mapping[int, Float[Tensor, "d_k d_k"] | HasValue], rule: str, threshold: float
) -> dict[int, Projector]:
    """Null-space projectors of several layers, read from disk if the same moment was decomposed before.

    Each must have a free direction for edits.

    Args:
        moments: layer -> second moment C₀.
        rule: name of the rule, a key of `palimpsest.algebra.spectrum.CUTS`.
        threshold: the rule's number.

    Raises:
        UnknownNameError: if there is no such rule.
        ProfileError: if a layer has no free direction.
        ShapeError, NonFiniteError: as `null_space`.
        ResourceError: if a stored file is damaged or cannot be written.
    """
    if rule not in CUTS:
        raise UnknownNameError("rule of the projector", rule, list(CUTS))
    found = {layer: _stored(moment, CUTS[rule](threshold)) for layer, moment in moments.items()}
    for layer, projector in found.items():
        if projector.kept == 0:
            raise ProfileError(
                f"layer {layer}: rule {rule!r} at {threshold} protects every direction, so "
                "no fact could be written; choose a threshold between the eigenvalues of C0"
            )
    return found


def _stored(moment: Tensor | HasValue, rule: Cut) -> Projector:
    """`null_space`, kept under the bits of the moment; decompositions by several threads differ in theirs."""
    matrix = torch.as_tensor(getattr(moment, "value", moment))
    key = {
        "revision": REVISION,
        "moment": tensor_sha256(matrix),
        "dtype": str(matrix.dtype),
        "rule": [rule.name, rule.parameter],
        "threads": torch.get_num_threads() if matrix.device.type == "cpu" else matrix.device.type,
    }

    def compute() -> dict[str, Tensor]:
        made = null_space(matrix, rule)
        parts = {name: getattr(made, name) for name in ("basis", "complement", "spectrum", "energy")}
        return {name: part for name, part in parts.items() if part is not None}

    parts = {name: part.to(matrix.device) for name, part in cache.tensors("projectors", key, compute).items()}
    return Projector(**parts, rule=rule)


def line_energy(vectors: Float[Tensor, "n d"], states: Float[Tensor, "m d"]) -> Float[Tensor, " n"]:
    """Energy L_kp of states x along each vector v: Σ over x of (vᵀx)²/‖v‖² (n,), any dtype; 0 where v is 0.

    It has no gradient at v = 0; autograd returns 0 there, so that an optimisation can start from v = 0.

    Args:
        vectors: one row v per edit, (n, d).
        states: one row per state x, (m, d).

    Source: Diagnosing Hidden Instabilities, Eq. 1, for a subspace of one dimension.
    """
    length = vectors.square().sum(1)
    # (n, m) products, summed over the states.
    return (vectors @ states.T).square().sum(1) / torch.where(length > 0, length, 1)
