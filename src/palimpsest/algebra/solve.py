"""The least-squares problem that every editor solves, in float64 and without a model.

    minimise over Δ (d_v, d_k):   ‖ΔK − R‖² + tr(Δ M Δᵀ) + λ‖Δ‖²     subject to   Δ = ΔP

K (d_k, n) holds the keys to edit and R (d_v, n) their residuals, wanted minus present values. M is the second
moment of what must be preserved, λ a ridge, P an orthogonal projector. MEMIT is M = λ₀C₀. AlphaEdit is a
null-space P, λ = L2 and M = past keys. ROME has the same cost M, under the constraint ΔK = R (`solve_exact`).

Two forms give the same Δ. Both factorise only symmetric positive definite matrices on range(P) (Cholesky):

    primal   Δ = R Xᵀ,       (M + λI + KKᵀ) X = K            one d_k × d_k system
    dual     Δ = R G⁻¹ Yᵀ,   (M + λI) Y = K,  G = KᵀY + I    one n × n system when M is absent

The published codes instead solve the unsymmetric system (P(KKᵀ + M) + λI) Δᵀ = PKRᵀ in float32. Its condition
number also depends on the protected part of K, and float32 can lose every digit.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from palimpsest.algebra.checks import expect
from palimpsest.algebra.projector import Projector
from palimpsest.errors import ShapeError, SingularProblemError

CONDITION_LIMIT = 0.1 / torch.finfo(torch.float64).eps
UNSOLVED = "nothing was solved"
PROTECTED_KEY = 1e-12
"""Smallest ‖Pk‖/‖k‖ that counts; below it Pk is rounding error, and k is fully protected."""


@dataclass(frozen=True)
class LeastSquares:
    """Least-squares problem of the module docstring.

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
        expect("keys", self.keys, ("d_k", "n"), UNSOLVED)
        d_k, n = self.keys.shape
        expect("residual", self.residual, ("d_v", n), UNSOLVED)
        check_terms(d_k, self.preserve, self.ridge, self.projector)


def check_terms(width: int, preserve: Tensor | None, ridge: float, projector: Projector | None) -> None:
    """Check that M, λ and P fit keys of a given width.

    Args:
        width: d_k.
        preserve: M, or None.
        ridge: λ.
        projector: P, or None.

    Raises:
        ShapeError: if shapes do not fit, or λ is negative or infinite.
        NonFiniteError: if M holds NaN or infinity.
    """
    if preserve is not None:
        expect("preserve", preserve, (width, width), UNSOLVED)
    if projector is not None and projector.dim != width:
        raise ShapeError(f"projector has width {projector.dim}, the keys have {width}")
    if not 0 <= ridge < float("inf"):
        raise ShapeError(f"ridge must be 0 or more and finite, got {ridge}")


@dataclass(frozen=True)
class Solution:
    """Update with its condition number and the residual it does not write.

    Attributes:
        delta: Δ (d_v, d_k), float64.
        condition: estimated 2-norm condition number of the factorised system (a lower bound, usually
            within a few per cent); relative errors of Δ are of the order of 1e-16 times this.
        fit: remaining share of the residual, ‖ΔK − R‖/‖R‖; 0 when R is zero.
    """

    delta: Float[Tensor, "d_v d_k"]
    condition: float
    fit: float


def with_past(problem: LeastSquares, past: Float[Tensor, "d_k p"]) -> LeastSquares:
    """Append past keys to K as columns with residual zero.

    The penalty ‖ΔK_pΛ^½‖² then is part of ‖ΔK − R‖², and the dual system has one row per key, new or past.

    Args:
        problem: the problem without past keys.
        past: K_pΛ^½ (d_k, p), past keys times the square roots of their weights.
    """
    nothing = problem.residual.new_zeros(len(problem.residual), past.shape[1])
    keys, residual = torch.cat([problem.keys, past], 1), torch.cat([problem.residual, nothing], 1)
    return replace(problem, keys=keys, residual=residual)


def solve(problem: LeastSquares, path: Literal["primal", "dual"] | None = None) -> Solution:
    """Solve the problem for its unique minimiser.

    Args:
        problem: problem to solve.
        path: form to use; by default the dual if M is absent and n is smaller than the rank of P,
            otherwise the primal.

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

    For one key and M = C₀ this is ROME's rank-one update Δ = r (C₀⁻¹k)ᵀ / (kᵀC₀⁻¹k); for several keys it is
    EMMET's.

    Raises:
        SingularProblemError: if keys are linearly dependent on range(P), a key has no part in range(P),
            or M + λI is singular there.

    Source: ROME Eq. 2. With one key, M = C₀, λ = 0 and P = I, the minimum is ‖r‖²/(kᵀC₀⁻¹k).
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
    """Value of the objective at ``delta`` (d_v, d_k); the constraint Δ = ΔP is not checked."""
    delta = delta.double()
    value = (delta @ problem.keys.double() - problem.residual.double()).square().sum()
    value = value + problem.ridge * delta.square().sum()
    if problem.preserve is not None:
        value = value + (delta @ problem.preserve.double() * delta).sum()
    return float(value)


def share_left(
    delta: Float[Tensor, "d_v d_k"], keys: Float[Tensor, "d_k n"], residual: Float[Tensor, "d_v n"]
) -> float:
    """Remaining share of the residual, ‖ΔK − R‖/‖R‖; 0 when R is zero."""
    scale = residual.norm()
    return float((delta @ keys - residual).norm() / scale) if scale > 0 else 0.0


def _solve_dual(problem: LeastSquares, projector: Projector, slack: float) -> Solution:
    """Dual form, an n × n system: slack 1 for the penalised problem, slack 0 for ΔK = R exactly."""
    keys = projector.coordinates(problem.keys.double())
    # Push-through identity, A = M + λI: (A + KKᵀ)⁻¹K = A⁻¹K (KᵀA⁻¹K + I)⁻¹.
    y, outer = _apply_inverse_metric(problem, projector, keys)  # A⁻¹K (c, n)
    gram = keys.T @ y  # (n, n)
    gram = (gram + gram.T) / 2 + slack * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    factor, inner = _factor(gram, problem)
    x = torch.cholesky_solve(y.T, factor).T  # Y G⁻¹ (c, n)
    return _solution(problem, projector, x, max(inner, outer))


def _apply_inverse_metric(
    problem: LeastSquares, projector: Projector, keys: Float[Tensor, "c n"]
) -> tuple[Float[Tensor, "c n"], float]:
    """(M + λI)⁻¹K on range(P), and the condition number of M + λI there."""
    if problem.preserve is None:
        if problem.ridge == 0:
            raise SingularProblemError(_singular_message(problem, "no ridge and nothing preserved"))
        return keys / problem.ridge, 1.0
    factor, condition = _factor(projector.pad(_metric(problem, projector)), problem)
    return torch.cholesky_solve(keys, factor), condition


def _metric(problem: LeastSquares, projector: Projector) -> Float[Tensor, "c c"]:
    """M + λI restricted to range(P), in the projector's coordinates."""
    if problem.preserve is None:
        d_k = problem.keys.shape[0]
        full = torch.zeros(d_k, d_k, dtype=torch.float64, device=problem.keys.device)
    else:
        full = problem.preserve.double()
    full = (full + full.T) / 2
    full.diagonal().add_(problem.ridge)
    return projector.restrict(full)


def _factor(matrix: Float[Tensor, "c c"], problem: LeastSquares) -> tuple[Tensor, float]:
    """Cholesky factor and condition number of a symmetric matrix, refused unless positive definite."""
    factor, info = torch.linalg.cholesky_ex(matrix)
    if int(info) != 0:
        raise SingularProblemError(_singular_message(problem, f"pivot {int(info)} is not positive"))
    condition = _condition(matrix, factor)
    if not condition <= CONDITION_LIMIT:  # also when it is not a number, after an overflow
        raise SingularProblemError(_singular_message(problem, f"condition number {condition:.1e}"))
    return factor, condition


def _condition(matrix: Float[Tensor, "c c"], factor: Tensor, steps: int = 12) -> float:
    """Estimated condition number: power iterations on the matrix and its inverse, from four starts."""
    seeded = torch.Generator().manual_seed(0)
    start = torch.randn(len(matrix), 4, dtype=matrix.dtype, generator=seeded).to(matrix.device)  # (c, 4)
    big, small = start, start
    for _ in range(steps):
        big = matrix @ (big / big.norm(dim=0))
        small = torch.cholesky_solve(small / small.norm(dim=0), factor)
    return float(big.norm(dim=0).max() * small.norm(dim=0).max())


def _solution(
    problem: LeastSquares, projector: Projector, x: Float[Tensor, "c n"], condition: float
) -> Solution:
    """Δ = R Xᵀ. Mapping back from coordinates comes last, so that rounding errors lie in range(P) too."""
    residual = problem.residual.double()
    delta = projector.embed(x @ residual.T).T  # (c, d_v) -> (d_k, d_v) -> (d_v, d_k)
    if not torch.isfinite(delta).all():
        raise SingularProblemError(_singular_message(problem, "the update is not finite"))
    return Solution(delta, condition, share_left(delta, problem.keys.double(), residual))


def _nothing(problem: LeastSquares) -> Solution:
    """Zero update, for a problem without keys or without a free direction."""
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
