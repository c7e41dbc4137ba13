"""Relaxed projectors: AlphaEdit+ (Algorithm 1) frees protected directions that new facts need.

`admit` searches greedily over `candidates`. The minimum of ‖ΔK − R‖² + λ‖Δ‖² over Δ = ΔP is J(P) = λ tr(RMRᵀ)
with M = (KᵀPK + λI)⁻¹. Adding a direction u to P adds ggᵀ, g = Kᵀu, to the Gram matrix KᵀPK. `Gains` updates
the N × N matrix M accordingly, in float64, so that no d_k × d_k matrix is needed.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from palimpsest.algebra.projector import Projector
from palimpsest.algebra.solve import LeastSquares
from palimpsest.algebra.spectrum import (
    HasValue,
    eigendirections,
)
from palimpsest.errors import NonFiniteError, ShapeError, SingularProblemError, UnknownNameError

ORDERS = ("ascending", "descending", "gain")
"""Orders in which `admit` offers candidates: by eigenvalue, or by the drop of J each would bring now."""

OVERLAP = 1e-6
"""Largest deviation from orthonormal, and overlap with range(P), that passes as rounding in candidates."""

REFRESH = 50
"""Number of added directions after which M is recomputed, so that rounding does not accumulate."""


class Gains:
    """Inverse M for P and the directions added so far, and the drop of J that further directions bring.

    Args:
        inside: PK (d_k, N).
        images: g = Kᵀu of every direction that may be added, (N, m).
        residual: R (d_v, N).
        ridge: λ.

    Raises:
        SingularProblemError: if λ is not above 0.
    """

    def __init__(
        self,
        inside: Float[Tensor, "d_k n"],
        images: Float[Tensor, "n m"],
        residual: Float[Tensor, "d_v n"],
        ridge: float,
    ) -> None:
        self.gram, self.images, self.ridge = inside.T @ inside, images, ridge
        self.root = torch.linalg.qr(residual, mode="r").R  # (min(d_v, N), N), ‖root q‖ = ‖Rq‖
        self.inverse = shifted_inverse(self.gram, ridge)
        self.added: list[int] = []  # that M has taken up since it was computed

    def objective(self) -> float:
        """Present value of J."""
        return float(self.ridge * (self.root @ self.inverse * self.root).sum())

    def alone(self, which: Int64[Tensor, " b"]) -> Float[Tensor, " b"]:
        """Drop of J (b,) for each direction if added alone: λ‖RMg‖²/(1 + gᵀMg), never negative."""
        g = self.images[:, which]  # (N, b)
        q = self.inverse @ g  # Sherman-Morrison: ggᵀ in the Gram matrix turns M into M − qqᵀ/(1 + gᵀq)
        return (self.ridge * (self.root @ q).square().sum(0) / (1 + (g * q).sum(0))).cpu()

    def together(self, which: Int64[Tensor, " b"]) -> tuple[float, Float[Tensor, "n b"]]:
        """Drop of J for a block, λ‖RY‖², and Y (N, b), with which M becomes M − YYᵀ."""
        g = self.images[:, which]  # (N, b)
        q = self.inverse @ g  # (N, b)
        # Woodbury: M becomes M − Q H⁻¹ Qᵀ with H = I + GᵀQ = LLᵀ (b, b), so that Y = Q L⁻ᵀ.
        if len(which) == 1:  # H is a number
            y = q / (1 + (g * q).sum()).sqrt()
        else:
            system = (g.T @ q + q.T @ g) / 2
            system.diagonal().add_(1)
            y = torch.linalg.solve_triangular(torch.linalg.cholesky(system), q.T, upper=False).T
        return float(self.ridge * (self.root @ y).square().sum()), y

    def add(self, which: Int64[Tensor, " b"], y: Float[Tensor, "n b"]) -> None:
        """Add a block, with the Y that `together` returned for it."""
        self.added += which.tolist()
        if len(self.added) < REFRESH:
            self.inverse.addmm_(y, y.T, alpha=-1)
        else:
            images = self.images[:, self.added]
            self.gram.addmm_(images, images.T)
            self.inverse, self.added = shifted_inverse(self.gram, self.ridge), []

    def damage(self, which: Int64[Tensor, " b"], eigenvalues: Float[Tensor, " m"]) -> float:
        """Σ σ‖RMg‖² over added directions, with the present M."""
        lengths = (self.root @ self.inverse @ self.images[:, which]).square().sum(0)
        return float((eigenvalues[which] * lengths).sum())


def shifted_inverse(gram: Float[Tensor, "n n"], ridge: float) -> Float[Tensor, "n n"]:
    """M = (G + λI)⁻¹ for a positive semidefinite G.

    Raises:
        SingularProblemError: if λ is not above 0.
    """
    if not ridge > 0:
        raise SingularProblemError(f"(G + λI)⁻¹ needs a ridge above 0, got {ridge:g}; raise it")
    system = gram + ridge * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    return torch.cholesky_inverse(torch.linalg.cholesky(system))


@dataclass(frozen=True)
class Candidates:
    """Protected directions of a projector that `admit` may free.

    Attributes:
        vectors: orthonormal columns outside range(P), (d_k, m).
        eigenvalues: energy of the preserved keys along each, (m,), 0 or more.

    Raises:
        ShapeError: if there is not one eigenvalue per vector, or one is negative.
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
    """Protected (leading) eigenvectors of C0 with their eigenvalues, largest first.

    A projector that `null_space` stored as its complement holds them already; otherwise C0 is decomposed.

    Args:
        moment: C0, or the result of `eigendirections` for it, which saves the decomposition.
        projector: result of `null_space` for the same C0.

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
        projector: P plus the admitted directions, stored as P was; P itself if there is none. It has no
            spectrum and no rule, because its protected directions need no longer be the leading ones.
        admitted: indices into the candidates, in the order they were added.
        objective_path: J before the first and after each admitted block, (blocks + 1,), float64.
        gains: drop of J for every block tried, a refused one included, (tried,), float64.
        damage: Σ σ_l‖R̄Mg_l‖² over admitted directions, with the final M: the update's change of preserved
            outputs along them, tr(ΔC0Δᵀ), or ‖ΔK0‖² if σ are eigenvalues of K0K0ᵀ. The search ignores it.
    """

    projector: Projector
    admitted: Int64[Tensor, " admitted"]
    objective_path: Float64[Tensor, " steps"]
    gains: Float64[Tensor, " tried"]
    damage: float


def admit(
    problem: LeastSquares,
    candidates: Candidates,
    threshold: float,
    block: int = 1,
    order: str = "ascending",
    relative: bool = True,
    limit: int | None = None,
) -> Admission:
    """Add protected directions to P, block by block, until a block lowers the objective too little.

    The update for it is ``solve(replace(problem, projector=found.projector)).delta``. The objective J(P), as
    above, never rises when a direction is added, so that only threshold, limit or the end of the candidates
    stop the search. A block costs O(N²) per candidate.

    Args:
        problem: λ > 0 and no ``preserve``. Past keys are further columns of K, times the root of their
            weight, with residual zero (`palimpsest.algebra.solve.with_past`).
        candidates: directions outside range(P).
        threshold: smallest drop. 0 admits every candidate; above 0, a block without any drop is refused.
        block: candidates tried at once (released code: 10); the last block may be smaller.
        order: by eigenvalue "ascending" (as published) or "descending"; or "gain", where a block holds the
            candidates that would each lower J most if added alone at that moment.
        relative: True compares ``threshold`` with a block's drop over J and its number of directions (as
            released); False with the drop itself, in units of ‖R‖² (as printed, with ``block=1``).
        limit: largest number of directions to admit; None for all.

    Raises:
        ShapeError: if ``preserve`` is given; candidates have another width, are not orthonormal or reach
            into range(P); or threshold, block or limit is out of range.
        SingularProblemError, UnknownNameError: if λ is 0; if the order does not exist.

    Source: AlphaEdit+ Eq. 15 and Algorithm 1; the drop follows from the Sherman-Morrison identity.
    """
    keys, vectors = problem.keys.double(), candidates.vectors.to(problem.keys.device).double()
    projector = problem.projector or Projector.identity(len(keys), keys.device)
    _check_admission(problem, projector, vectors)
    _check_settings(threshold, block, order, limit)
    budget = len(candidates) if limit is None else min(limit, len(candidates))
    search = Gains(projector.apply(keys), keys.T @ vectors, problem.residual.double(), problem.ridge)
    path, gains, admitted = [search.objective()], list[float](), list[int]()
    left = candidates.eigenvalues.cpu().argsort(stable=True, descending=order == "descending")
    while size := min(block, budget - len(admitted)):
        if order == "gain":
            best = search.alone(left).topk(size).indices
            left = torch.cat([left[best], left[~torch.isin(left, left[best])]])
        tried, left = left[:size], left[size:]
        gain, y = search.together(tried)
        gains.append(gain)
        if gain < threshold * (size * path[-1] if relative else 1) or gain == 0 < threshold:
            break
        search.add(tried, y)
        path.append(path[-1] - gain)
        admitted += tried.tolist()
    chosen = torch.tensor(admitted, dtype=torch.long)
    return Admission(
        projector=_relaxed(projector, vectors[:, chosen]) if len(chosen) else projector,
        admitted=chosen,
        objective_path=torch.tensor(path, dtype=torch.float64),
        gains=torch.tensor(gains, dtype=torch.float64),
        damage=search.damage(chosen, candidates.eigenvalues.to(keys)),
    )


def _relaxed(projector: Projector, vectors: Float[Tensor, "d_k a"]) -> Projector:
    """P plus orthonormal directions outside range(P); a QR completes the remaining complement."""
    if projector.basis is not None:
        return Projector(basis=torch.cat([projector.basis, vectors.to(projector.basis)], 1))
    u = projector._held.to(vectors)  # (d_k, r)
    # (r, a) -> complete Q (r, r), whose last r − a columns are orthogonal to the admitted directions.
    rest = torch.linalg.qr(u.T @ vectors, mode="complete").Q[:, vectors.shape[1] :]
    return Projector(complement=u @ rest)


def _check_admission(problem: LeastSquares, projector: Projector, vectors: Tensor) -> None:
    if problem.preserve is not None:
        raise ShapeError(
            "admit got a problem with preserve; give past keys, times the root of their weight, as further "
            "columns of keys with residual 0 (palimpsest.algebra.solve.with_past)"
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
