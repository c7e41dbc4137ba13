"""Null-space projectors of the preserved keys, from the spectrum of their second moment, and relaxed ones.

AlphaEdit (Eq. 7 to 10) keeps every update inside the directions where preserved keys have little
energy: P = U Uᵀ over the eigenvectors of C0 whose eigenvalue is below 2e-2. The rule that draws that
line is a parameter here, because an absolute threshold depends on the scale of the activations.
P acts on the right of an update, that is on its rows: ΔP = Δ means that Δ ignores the protected
directions. AlphaEdit+ (Algorithm 1) gives some of the protected directions back where new facts need them:
`candidates` and `admit`.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from palimpsest.cuts import PUBLISHED_THRESHOLD as PUBLISHED_THRESHOLD
from palimpsest.cuts import RULES as RULES
from palimpsest.cuts import HasValue as HasValue
from palimpsest.cuts import Rule as Rule
from palimpsest.cuts import absolute as absolute
from palimpsest.cuts import eigendirections as eigendirections
from palimpsest.cuts import energy as energy
from palimpsest.cuts import energy_along as energy_along
from palimpsest.cuts import rank as rank
from palimpsest.cuts import relative as relative
from palimpsest.errors import NonFiniteError, ShapeError, UnknownNameError
from palimpsest.gains import Gains

if TYPE_CHECKING:  # solve.py imports this module
    import palimpsest.solve

ORDERS = ("ascending", "descending", "gain")
"""In which order `admit` offers candidates: by eigenvalue, or by what each would gain at that moment."""
OVERLAP = 1e-6
"""How far candidates may be from orthonormal, and reach into range(P), by rounding."""


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


@dataclass(frozen=True)
class Candidates:
    """Directions that a projector removes and that `admit` may give back.

    Attributes:
        vectors: orthonormal columns outside range(P), (d_k, m).
        eigenvalues: energy of the preserved keys along each, (m,), 0 or more.

    Raises:
        ShapeError: if there is not one eigenvalue a vector, or one is negative.
        NonFiniteError: if either holds NaN or infinity.
    """

    vectors: Float[Tensor, "d_k m"]
    eigenvalues: Float[Tensor, " m"]

    def __post_init__(self) -> None:
        if self.vectors.ndim != 2 or self.eigenvalues.shape != self.vectors.shape[1:]:
            raise ShapeError(
                "candidates need vectors (d_k, m) and eigenvalues (m,), got "
                f"{tuple(self.vectors.shape)} and {tuple(self.eigenvalues.shape)}"
            )
        if not (torch.isfinite(self.vectors).all() and torch.isfinite(self.eigenvalues).all()):
            raise NonFiniteError("candidates hold NaN or infinity; take them from eigendirections")
        if (self.eigenvalues < 0).any():
            least = float(self.eigenvalues.min())
            raise ShapeError(f"candidates have the negative eigenvalue {least:.1e}; clamp it at 0")

    def __len__(self) -> int:
        return self.vectors.shape[1]


def candidates(moment: Tensor | HasValue | tuple[Tensor, Tensor], projector: Projector) -> Candidates:
    """The protected eigenvectors of C0, its leading ones, with their eigenvalues, largest first.

    A projector that `null_space` left as a complement holds them already; else C0 is decomposed again.

    Args:
        moment: C0, or what `eigendirections` returned for it.
        projector: what `null_space` made of the same C0.

    Raises:
        ShapeError, NonFiniteError: as `null_space`, or if the widths differ.
    """
    if projector.complement is not None and projector.spectrum is not None:
        return Candidates(projector.complement, projector.spectrum[: projector.complement.shape[1]])
    spectrum, vectors = moment if isinstance(moment, tuple) else eigendirections(moment)
    if len(spectrum) != projector.dim:
        raise ShapeError(f"the second moment has width {len(spectrum)}, the projector {projector.dim}")
    protected = projector.dim - projector.kept
    return Candidates(vectors[:, :protected], spectrum[:protected])


@dataclass(frozen=True)
class Admission:
    """A relaxed projector and the path of the search that led to it.

    Attributes:
        projector: P plus the admitted directions, held as P was; P itself if there is none. It carries no
            spectrum and no rule, since protected directions need no longer be the leading ones.
        admitted: indices into the candidates, in the order they were added.
        objective_path: J before the first and after each admitted block, (blocks + 1,), float64.
        gains: fall of J for every block tried, the refused one included, (tried,), float64.
        damage: Σ σ_l‖R̄Mg_l‖² over admitted directions, M at the end: what the update does to preserved keys
            along them, tr(ΔC0Δᵀ), or ‖ΔK0‖² if σ are eigenvalues of K0K0ᵀ. The search ignores it.
    """

    projector: Projector
    admitted: Int64[Tensor, " admitted"]
    objective_path: Float64[Tensor, " steps"]
    gains: Float64[Tensor, " tried"]
    damage: float


def admit(
    problem: "palimpsest.solve.LeastSquares",
    candidates: Candidates,
    threshold: float,
    block: int = 1,
    order: str = "ascending",
    relative: bool = True,
    limit: int | None = None,
) -> Admission:
    """Give protected directions back to P until a block of them lowers the objective too little.

    The update for the relaxed projector is ``solve(replace(problem, projector=found.projector)).delta``.
    Its objective J(P) = λ tr(R̄MR̄ᵀ), M = (KᵀPK + λI)⁻¹, never rises with a direction, so only the threshold,
    the limit or the end of the candidates stops the search. N × N work a block, in float64.

    Args:
        problem: λ > 0 and no ``preserve``. Past keys are further columns of K, times the root of their
            weight, with residual zero (`palimpsest.solve.with_past`).
        candidates: directions outside range(P).
        threshold: 0 admits every candidate. A block that gains nothing stops any larger one.
        block: candidates tried at once (released code: 10); the last block may be smaller.
        order: by eigenvalue "ascending" (as published) or "descending"; or "gain", where a block is those
            that would each lower J most if added alone at that moment.
        relative: True stops at a block whose drop, as a share of J before it, is below ``threshold`` times
            the number of directions in it (released code). False stops at a block whose whole drop is below
            ``threshold``, in the unit of a squared residual whatever its size (as printed, with ``block=1``).
        limit: most directions to admit; None for all.

    Raises:
        ShapeError: if ``preserve`` is given; candidates have another width, are not orthonormal or reach
            into range(P); or threshold, block or limit is out of range.
        SingularProblemError: if λ is 0.
        UnknownNameError: if the order does not exist.

    Source: AlphaEdit+ Eq. 15 and Algorithm 1; the gain is Sherman and Morrison's.
    """
    keys = problem.keys.double()
    projector = problem.projector or Projector.identity(len(keys), keys.device)
    vectors = candidates.vectors.to(keys)
    _check_admission(problem, projector, vectors)
    _check_settings(threshold, block, order, limit)
    budget = len(candidates) if limit is None else min(limit, len(candidates))
    search = Gains(projector.apply(keys), keys.T @ vectors, problem.residual.double(), problem.ridge)
    path, gains, chosen = [search.objective()], [], torch.zeros(0, dtype=torch.long)
    left = candidates.eigenvalues.cpu().argsort(stable=True, descending=order == "descending")
    while len(chosen) < budget:
        size = min(block, budget - len(chosen))
        tried = left[search.alone(left).topk(size).indices] if order == "gain" else left[:size]
        gain, y = search.together(tried)
        gains.append(gain)
        if gain < threshold * (size * path[-1] if relative else 1) or gain == 0 < threshold:
            break
        search.add(tried, y)
        path.append(path[-1] - gain)
        chosen, left = torch.cat([chosen, tried]), left[~torch.isin(left, tried)]
    return Admission(
        projector=_relaxed(projector, vectors[:, chosen]) if len(chosen) else projector,
        admitted=chosen,
        objective_path=torch.tensor(path, dtype=torch.float64),
        gains=torch.tensor(gains, dtype=torch.float64),
        damage=search.damage(chosen, candidates.eigenvalues.to(keys)),
    )


def _relaxed(projector: Projector, vectors: Float[Tensor, "d_k a"]) -> Projector:
    """P plus orthonormal directions that it removes; what remains of a complement is completed by a QR."""
    if projector.basis is not None:
        return Projector(basis=torch.cat([projector.basis, vectors.to(projector.basis)], 1))
    u = projector._held.to(vectors)
    rest = torch.linalg.qr(u.T @ vectors, mode="complete").Q[:, vectors.shape[1] :]
    return Projector(complement=u @ rest)


def _check_admission(problem: "palimpsest.solve.LeastSquares", projector: Projector, vectors: Tensor) -> None:
    if problem.preserve is not None:
        raise ShapeError(
            "admit got a problem with preserve; give past keys, times the root of their weight, as further "
            "columns of keys with residual 0 (palimpsest.solve.with_past)"
        )
    if len(vectors) != projector.dim:
        raise ShapeError(f"candidates have width {len(vectors)}, the keys have {projector.dim}")
    gap = vectors.T @ vectors - torch.eye(vectors.shape[1]).to(vectors)
    if gap.numel() and gap.abs().max() > OVERLAP:
        raise ShapeError(
            f"candidates are not orthonormal (their products are off by {float(gap.abs().max()):.1e}); "
            "give eigenvectors of one decomposition"
        )
    overlap = projector.coordinates(vectors).norm(dim=0)
    if len(overlap) and overlap.max() > OVERLAP:
        raise ShapeError(
            f"candidate {int(overlap.argmax())} lies inside range(P) (length {float(overlap.max()):.2g}) "
            "and would count twice; give directions that P removes, as candidates() does"
        )


def _check_settings(threshold: float, block: int, order: str, limit: int | None) -> None:
    if not threshold >= 0:
        raise ShapeError(f"threshold must be 0 or more, got {threshold}; 0 admits every candidate")
    if block < 1:
        raise ShapeError(f"block must be 1 or more, got {block}")
    if limit is not None and limit < 0:
        raise ShapeError(f"limit must be 0 or more, got {limit}; None sets no limit")
    if order not in ORDERS:
        raise UnknownNameError("order", order, list(ORDERS))
