"""One least-squares problem behind every editor, solved in float64. Pure tensors, no model.

    minimise over Δ (d_v, d_k):   ‖ΔK − R‖² + tr(Δ M Δᵀ) + λ‖Δ‖²     subject to   Δ = ΔP

K (d_k, n) are the keys to edit, R (d_v, n) what each of them still lacks, M the second moment of what
must be preserved, λ a ridge, P an orthogonal projector. MEMIT is M = λ₀C₀; AlphaEdit is a null-space P,
λ = L2 and M = past keys; ROME is the same cost M under ΔK = R exactly (`solve_exact`).

Two ways to the same Δ, both one symmetric positive definite Cholesky on range(P):

    primal   Δ = R Xᵀ,       (M + λI + KKᵀ) X = K            one d_k × d_k system
    dual     Δ = R G⁻¹ Yᵀ,   (M + λI) Y = K,  G = KᵀY + I    one n × n system when M is absent

The published codes solve the unsymmetric (P(KKᵀ + M) + λI) Δᵀ = PKRᵀ in float32 instead, whose condition
number also sees the protected part of K and can lose every digit.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from palimpsest.algebra.projector import Projector
from palimpsest.errors import NonFiniteError, ShapeError, SingularProblemError

CONDITION_LIMIT = 0.1 / torch.finfo(torch.float64).eps
PROTECTED_KEY = 1e-12
"""A key with a smaller share of its length inside range(P) has no part there but rounding."""


@dataclass(frozen=True)
class LeastSquares:
    """The problem at the head of this module.

    Args:
        keys: K (d_k, n), one column per fact.
        residual: R (d_v, n), wanted value minus present value of each key.
        preserve: M (d_k, d_k), symmetric positive semidefinite; None for zero.
        ridge: λ ≥ 0.
        projector: P; None for the identity.

    Raises:
        ShapeError: if shapes do not fit, or λ is negative or infinite.
        NonFiniteError: if a tensor holds NaN or infinity.
    """

    keys: Float[Tensor, "d_k n"]
    residual: Float[Tensor, "d_v n"]
    preserve: Float[Tensor, "d_k d_k"] | None = None
    ridge: float = 0.0
    projector: Projector | None = None

    def __post_init__(self) -> None:
        _expect("keys", self.keys, ("d_k", "n"))
        d_k, n = self.keys.shape
        _expect("residual", self.residual, ("d_v", n))
        if self.preserve is not None:
            _expect("preserve", self.preserve, (d_k, d_k))
        if self.projector is not None and self.projector.dim != d_k:
            raise ShapeError(f"projector has width {self.projector.dim}, the keys have {d_k}")
        if not 0 <= self.ridge < float("inf"):
            raise ShapeError(f"ridge must be 0 or more and finite, got {self.ridge}")


@dataclass(frozen=True)
class Solution:
    """An update and how far to trust it.

    Attributes:
        delta: Δ (d_v, d_k), float64.
        condition: estimated 2-norm condition number of the factorised system (a lower bound, usually
            within a few per cent); relative errors of Δ are of the order of 1e-16 times this.
        fit: share of the residual left, ‖ΔK − R‖/‖R‖; 0 when R is zero.
    """

    delta: Float[Tensor, "d_v d_k"]
    condition: float
    fit: float


def with_past(problem: LeastSquares, past: Float[Tensor, "d_k p"]) -> LeastSquares:
    """The same problem with past keys, times the root of their weights, as further columns without residual.

    ‖ΔK_pΛ^½‖² is thus part of ‖ΔK − R‖², and the dual stays as small as the number of keys.
    """
    nothing = problem.residual.new_zeros(len(problem.residual), past.shape[1])
    keys, residual = torch.cat([problem.keys, past], 1), torch.cat([problem.residual, nothing], 1)
    return replace(problem, keys=keys, residual=residual)


def solve(problem: LeastSquares, path: Literal["primal", "dual"] | None = None) -> Solution:
    """The unique minimiser of the problem.

    Args:
        problem: what to minimise.
        path: force one of the two forms; by default the dual when M is absent and n is smaller than
            the rank of P, else the primal.

    Raises:
        SingularProblemError: if the minimiser is not unique; the message says what to raise.

    Source: MEMIT Eq. 14 (M = λ₀C₀) and AlphaEdit Eq. 14 (P, λ = L2) as one problem.
    """
    projector = _projector(problem)
    if path is None:
        few = problem.keys.shape[1] < projector.kept
        path = "dual" if problem.preserve is None and few else "primal"
    if projector.kept == 0 or problem.keys.shape[1] == 0:
        return _nothing(problem)
    if path == "dual":
        return _solve_dual(problem, projector, slack=1.0)
    keys = projector.coordinates(problem.keys.double())
    system = projector.pad(_metric(problem, projector) + keys @ keys.T)
    factor, condition = _factor(system, problem)
    return _solution(problem, projector, torch.cholesky_solve(keys, factor), condition)


def solve_exact(problem: LeastSquares) -> Solution:
    """Minimise tr(Δ M Δᵀ) + λ‖Δ‖² subject to ΔK = R exactly and Δ = ΔP.

    For one key and M = C₀ this is ROME's rank-one update Δ = r (C₀⁻¹k)ᵀ / (kᵀC₀⁻¹k); for several it is
    EMMET's.

    Raises:
        SingularProblemError: if keys are linearly dependent on range(P) or a key has no part in it,
            or M + λI is singular there.

    Source: ROME Eq. 2; cost ‖r‖²/(kᵀC₀⁻¹k).
    """
    projector = _projector(problem)
    if problem.keys.shape[1] == 0:
        return _nothing(problem)
    keys = problem.keys.double()
    inside, length = projector.apply(keys).norm(dim=0), keys.norm(dim=0)
    if (inside <= PROTECTED_KEY * length).any():
        raise SingularProblemError(_singular_message(problem, "a key has no part in range(P)"))
    return _solve_dual(problem, projector, slack=0.0)


def objective(problem: LeastSquares, delta: Float[Tensor, "d_v d_k"]) -> float:
    """Value of the problem's objective at ``delta`` (the constraint is not checked)."""
    delta = delta.double()
    value = (delta @ problem.keys.double() - problem.residual.double()).square().sum()
    value = value + problem.ridge * delta.square().sum()
    if problem.preserve is not None:
        value = value + (delta @ problem.preserve.double() * delta).sum()
    return float(value)


def share_left(
    delta: Float[Tensor, "d_v d_k"], keys: Float[Tensor, "d_k n"], residual: Float[Tensor, "d_v n"]
) -> float:
    """‖ΔK − R‖/‖R‖; 0 when R is zero."""
    scale = residual.norm()
    return float((delta @ keys - residual).norm() / scale) if scale > 0 else 0.0


def _solve_dual(problem: LeastSquares, projector: Projector, slack: float) -> Solution:
    """The N × N form; slack 1 gives the penalised problem, slack 0 the equality constraint."""
    keys = projector.coordinates(problem.keys.double())
    y, outer = _apply_inverse_metric(problem, projector, keys)
    gram = keys.T @ y
    gram = (gram + gram.T) / 2 + slack * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    factor, inner = _factor(gram, problem)
    x = torch.cholesky_solve(y.T, factor).T
    return _solution(problem, projector, x, max(inner, outer))


def _apply_inverse_metric(
    problem: LeastSquares, projector: Projector, keys: Float[Tensor, "c n"]
) -> tuple[Float[Tensor, "c n"], float]:
    """(M + λI)⁻¹ on range(P), applied to the keys, with its condition number."""
    if problem.preserve is None:
        if problem.ridge == 0:
            raise SingularProblemError(_singular_message(problem, "no ridge and nothing preserved"))
        return keys / problem.ridge, 1.0
    factor, condition = _factor(projector.pad(_metric(problem, projector)), problem)
    return torch.cholesky_solve(keys, factor), condition


def _metric(problem: LeastSquares, projector: Projector) -> Float[Tensor, "c c"]:
    """M + λI on range(P), in the projector's coordinates."""
    if problem.preserve is None:
        d_k = problem.keys.shape[0]
        full = torch.zeros(d_k, d_k, dtype=torch.float64, device=problem.keys.device)
    else:
        full = problem.preserve.double()
    full = (full + full.T) / 2
    full.diagonal().add_(problem.ridge)
    return projector.restrict(full)


def _factor(matrix: Float[Tensor, "c c"], problem: LeastSquares) -> tuple[Tensor, float]:
    """Cholesky factor and condition number of a symmetric matrix that should be positive definite."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) != 0:
        raise SingularProblemError(_singular_message(problem, f"pivot {int(info)} is not positive"))
    condition = _condition(matrix, factor)
    if not condition <= CONDITION_LIMIT:  # also when it is not a number, after an overflow
        raise SingularProblemError(_singular_message(problem, f"condition number {condition:.1e}"))
    return factor, condition


def _condition(matrix: Float[Tensor, "c c"], factor: Tensor, steps: int = 12) -> float:
    """Condition number by power iterations on the matrix and on its inverse, from four starts."""
    seeded = torch.Generator().manual_seed(0)
    start = torch.randn(len(matrix), 4, dtype=matrix.dtype, generator=seeded).to(matrix.device)
    big, small = start, start
    for _ in range(steps):
        big = matrix @ (big / big.norm(dim=0))
        small = torch.cholesky_solve(small / small.norm(dim=0), factor)
    return float(big.norm(dim=0).max() * small.norm(dim=0).max())


def _solution(
    problem: LeastSquares, projector: Projector, x: Float[Tensor, "c n"], condition: float
) -> Solution:
    """Δ = R Xᵀ, carried back from coordinates last, so that rounding stays inside range(P) too."""
    residual = problem.residual.double()
    delta = projector.embed(x @ residual.T).T
    if not torch.isfinite(delta).all():
        raise SingularProblemError(_singular_message(problem, "the update is not finite"))
    return Solution(delta, condition, share_left(delta, problem.keys.double(), residual))


def _nothing(problem: LeastSquares) -> Solution:
    """The zero update: there is no key, or no direction to act in."""
    shape = len(problem.residual), len(problem.keys)
    zero = torch.zeros(shape, dtype=torch.float64, device=problem.keys.device)
    return Solution(zero, 1.0, 1.0 if problem.residual.any() else 0.0)


def _singular_message(problem: LeastSquares, what: str) -> str:
    n = problem.keys.shape[1]
    kept = _projector(problem).kept
    return (
        f"the problem has no unique solution ({what}): {n} keys on {kept} free directions, "
        f"ridge {problem.ridge:g}, {'no preserve' if problem.preserve is None else 'preserve given'}. "
        "Raise ridge above 0, give preserve a positive definite second moment (more tokens), or "
        "remove repeated, dependent or protected keys if the constraint must hold exactly"
    )


def _projector(problem: LeastSquares) -> Projector:
    identity = Projector.identity(problem.keys.shape[0], problem.keys.device)
    return problem.projector or identity


def _expect(name: str, tensor: Tensor, shape: tuple[int | str, int | str]) -> None:
    """Check a tensor's shape (a name stands for any length) and that it is finite."""
    fits = tensor.ndim == len(shape) and all(
        isinstance(want, str) or have == want for have, want in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(map(str, shape))
        raise ShapeError(f"{name} must have shape ({wanted}), got {tuple(tensor.shape)}")
    if not torch.isfinite(tensor).all():
        raise NonFiniteError(f"{name} holds NaN or infinity; nothing was solved")
