"""The one-time problem of a ledger, with low-rank updates of its solution when facts enter or leave.

    minimise over D = DP:   Σ w_i ‖(W₀ + D) k_i − v_i‖² + tr(D M Dᵀ) + λ‖D‖²

With R = V − W₀K and the columns of K and R scaled by √w, A = M + λI on range(P) and Y = A⁻¹PK,

    D = X Yᵀ,   X S = R,   S = KᵀY + I.

A is factorised once; without M it is λI and no d_k × d_k matrix is formed. When facts t enter beside facts o,
or facts f leave and facts s stay, the weight changes by a matrix of rank n, the number of these facts:

    enter:  ΔD = (R_t − X_o S_ot)(S_tt − S_to S_oo⁻¹ S_ot)⁻¹ (Y_t − Y_o S_oo⁻¹ S_ot)ᵀ
    leave:  ΔD = X_f (Y_s S_ss⁻¹ S_sf − Y_f)ᵀ

The cost is O(N² n + d_k N n + d_v d_k n), with one Cholesky factor of S that grows and shrinks.

Rounding accumulates over a sequence of steps, so each step ends with two checks. If the relative backward
error of X S = R on fixed random probes exceeds `DRIFT`, S is refactorised and X recomputed. The primal form
of `palimpsest.algebra.solve`, at a cost of d_k³ per step, is used if A is singular, or if the condition
number of A or S exceeds `WELL_CONDITIONED` and that of the primal system A + KKᵀ is estimated to be ten times
smaller: with more facts than directions and a small λ, or with keys that fill the null space of M.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from palimpsest.algebra.cholesky import POWER_STEPS, Cholesky
from palimpsest.algebra.ledger_facts import Facts
from palimpsest.algebra.projector import Projector
from palimpsest.algebra.solve import CONDITION_LIMIT, PROTECTED_KEY, LeastSquares, solve
from palimpsest.errors import SingularProblemError

WELL_CONDITIONED = 1e4
"""Condition number up to which the dual form is kept: its errors are about 1e-15 times that number."""
TELESCOPE = 1e5
"""Condition number above which ΔW is the difference of both totals: steps then add up to the last total."""
EPS, HUGE = torch.finfo(torch.float64).eps, torch.finfo(torch.float64).max
DRIFT = 3e-15
"""Relative backward error above which the factor and the coefficients are recomputed."""


@dataclass(frozen=True)
class Problem:
    """The one-time problem without its facts.

    Args:
        preserve: M (d_k, d_k), or None for zero.
        ridge: λ.
        projector: P.
    """

    preserve: Float[Tensor, "d_k d_k"] | None
    ridge: float
    projector: Projector

    @cached_property
    def factor(self) -> Cholesky | None:
        """Cholesky factor of A in the projector's coordinates; None if A is a multiple of I, or singular."""
        if self.preserve is None or not self.projector.kept:
            return None
        full = self.preserve.double()
        full = (full + full.T) / 2
        full.diagonal().add_(self.ridge)
        try:
            found = Cholesky.of(self.projector.pad(self.projector.restrict(full)))
        except SingularProblemError:
            return None
        return found if found.condition <= CONDITION_LIMIT else None

    @cached_property
    def condition(self) -> float:
        """Condition number of A on range(P); infinite if it is singular."""
        if not self.projector.kept:
            return 1.0
        if self.preserve is None:
            return 1.0 if self.ridge > 0 else float("inf")
        return float("inf") if self.factor is None else self.factor.condition

    def keys(self, facts: Facts) -> Float64[Tensor, "d_k n"]:
        """√w K, and 0 for protected keys, where the rounding error in PK would count as a direction."""
        keys = facts.scaled_keys
        inside, whole = self.projector.apply(keys).norm(dim=0), keys.norm(dim=0)  # (n,) each
        # The condition (n,) broadcasts over the rows of (d_k, n).
        return torch.where(inside <= PROTECTED_KEY * whole.clamp(max=HUGE), 0.0, keys)

    def metric(self, x: Float64[Tensor, "d_k n"]) -> Float64[Tensor, "d_k n"]:
        """P A P x, for columns x."""
        x = self.projector.apply(x)
        inside = self.ridge * x
        return inside if self.preserve is None else self.projector.apply(inside + self.preserve.to(x) @ x)

    def inverse(self, x: Float64[Tensor, "d_k n"]) -> Float64[Tensor, "d_k n"]:
        """P A⁻¹ P x, for columns x and an A that is not singular."""
        if not self.projector.kept:
            return torch.zeros_like(x)
        if self.factor is None:
            return self.projector.apply(x) / self.ridge
        # (d_k, n) -> coordinates (c, n) -> (d_k, n)
        return self.projector.embed(self.factor.solve(self.projector.coordinates(x)))

    def solve(self, facts: Facts) -> "Dual | Primal":
        """One-time solution over these facts, computed without an earlier one.

        Raises:
            SingularProblemError: if it is not unique; the message says what to raise.
        """
        dual = self._dual(facts)
        if dual is not None and not dual.primal_is_better():
            return dual
        try:
            primal = self._primal(facts)
        except SingularProblemError:
            if dual is None:
                raise
            return dual
        return primal if dual is None or primal.condition < dual.condition else dual

    def _dual(self, facts: Facts) -> "Dual | None":
        """Dual form, or None where it would have no accurate digit."""
        if self.condition > CONDITION_LIMIT:
            return None
        keys = self.keys(facts)
        images = self.inverse(keys)  # Y (d_k, n)
        try:
            factor = Cholesky.of(_plus_identity(keys.T @ images))  # S (n, n)
        except SingularProblemError:
            return None
        # X = R S⁻¹ (d_v, n), as (S⁻¹ Rᵀ)ᵀ because S is symmetric.
        found = Dual(self, facts, images, factor, factor.solve(facts.residual.T).T)
        usable = found.condition <= CONDITION_LIMIT and bool(torch.isfinite(found.coefficients).all())
        return found if usable else None

    def _primal(self, facts: Facts) -> "Primal":
        keys = self.keys(facts)
        found = solve(
            LeastSquares(keys, facts.residual, self.preserve, self.ridge, self.projector), path="primal"
        )
        return Primal(self, facts, found.delta, found.condition)


@dataclass(frozen=True)
class SolutionStep:
    """A solution and its difference ΔW = left @ rightᵀ to the one before.

    Attributes:
        after: the new solution.
        left: (d_v, r).
        right: (d_k, r); None stands for the identity, r = d_k.
    """

    after: "Dual | Primal"
    left: Float64[Tensor, "d_v r"]
    right: Float64[Tensor, "d_k r"] | None

    def delta(self, dtype: torch.dtype) -> Float[Tensor, "d_v d_k"]:
        """ΔW (d_v, d_k), multiplied out in this dtype."""
        left = self.left.to(dtype)
        return left if self.right is None else left @ self.right.to(dtype).T


@dataclass(frozen=True)
class Primal:
    """Solution stored as the matrix D; every step solves the problem again."""

    problem: Problem
    facts: Facts
    delta: Float64[Tensor, "d_v d_k"]
    condition: float

    def total(self) -> Float64[Tensor, "d_v d_k"]:
        """Total update D."""
        return self.delta

    def change(self, gone: Sequence[int], fresh: Facts) -> SolutionStep:
        """Facts in some columns leave, others enter at the end."""
        return anew(self, self.facts.without(gone).join(fresh))

    def put(self, columns: Sequence[int], values: Float64[Tensor, "d_v m"]) -> SolutionStep:
        """Facts in some columns get other values."""
        return anew(self, self.facts.put(columns, values))


@dataclass(frozen=True)
class Dual:
    """Solution stored as D = X Yᵀ.

    Attributes:
        problem: M, λ and P.
        facts: K, V, w.
        images: Y (d_k, n), of the scaled keys.
        factor: Cholesky factor of S (n, n).
        coefficients: X (d_v, n).
    """

    problem: Problem
    facts: Facts
    images: Float64[Tensor, "d_k n"]
    factor: Cholesky
    coefficients: Float64[Tensor, "d_v n"]

    def total(self) -> Float64[Tensor, "d_v d_k"]:
        """Total update D."""
        return self.coefficients @ self.images.T

    @cached_property
    def condition(self) -> float:
        """The larger condition number of A and S."""
        return max(self.problem.condition, self.factor.condition)

    def change(self, gone: Sequence[int], fresh: Facts) -> SolutionStep:
        """Facts in some columns leave, others enter at the end.

        Raises:
            SingularProblemError: if the solution over the resulting facts is not unique.
        """
        try:
            rest, *away = self._leave(gone)
            after, *added = rest._enter(fresh)
        except SingularProblemError:
            return anew(self, self.facts.without(gone).join(fresh))
        # (d_v, f + t) and (d_k, f + t)
        left, right = (torch.cat(pair, 1) for pair in zip(away, added, strict=True))
        return self._step(after, left, right)

    def put(self, columns: Sequence[int], values: Float64[Tensor, "d_v m"]) -> SolutionStep:
        """Facts in some columns get other values."""
        at, facts = list(columns), self.facts.put(columns, values)
        unit = self.images.new_zeros(len(facts), len(at))  # (n, m), the changed columns of I
        unit[at, range(len(at))] = 1.0
        rows = self.factor.solve(unit)  # (n, m), those of S⁻¹
        change = facts.take(at).residual - self.facts.take(at).residual  # (d_v, m)
        after = replace(self, facts=facts, coefficients=self.coefficients + change @ rows.T)
        return self._step(after, change, self.images @ rows)

    def _step(self, after: "Dual", left: Tensor, right: Tensor) -> SolutionStep:
        """The step to ``after``; recomputed if ``after`` fails the checks."""
        if not after.sound:
            return anew(self, after.facts)
        if max(self.condition, after.condition) > TELESCOPE:
            return SolutionStep(after, after.total() - self.total(), None)
        return SolutionStep(after, left, right)

    def _leave(self, gone: Sequence[int]) -> "tuple[Dual, Tensor, Tensor]":
        """Solution without some facts f, and the two factors (d_v, f), (d_k, f) of ΔD."""
        at, stay = list(gone), self.facts.others(gone)
        if not at:
            return self, self.coefficients[:, :0], self.images[:, :0]
        facts, images, factor = self.facts.take(stay), self.images[:, stay], self.factor.remove(at)
        left, y = self.coefficients[:, at], self.images[:, at]  # X_f (d_v, f), Y_f (d_k, f)
        # S_ss⁻¹ S_sf (s, f); the root of the weights is a column (s, 1).
        rows = factor.solve(facts.weights.sqrt()[:, None] * (facts.keys.T @ y))
        coefficients = self.coefficients[:, stay] + left @ rows.T  # (d_v, s)
        return Dual(self.problem, facts, images, factor, coefficients), left, images @ rows - y

    def _enter(self, fresh: Facts) -> "tuple[Dual, Tensor, Tensor]":
        """Solution with further facts t, and the two factors (d_v, t), (d_k, t) of ΔD."""
        if not len(fresh):
            return self, self.coefficients[:, :0], self.images[:, :0]
        keys = self.problem.keys(fresh)
        y = self.problem.inverse(keys)  # Y_t (d_k, t)
        cross = self.images.T @ keys  # S_ot (o, t)
        factor = self.factor.append(cross, _plus_identity(keys.T @ y))
        rows = self.factor.solve(cross)  # S_oo⁻¹ S_ot (o, t)
        missing = fresh.residual - self.coefficients @ cross  # (d_v, t)
        left = factor.tail(len(fresh)).solve(missing.T).T  # X_t (d_v, t), by the Schur complement
        coefficients = torch.cat([self.coefficients - left @ rows.T, left], 1)  # (d_v, o + t)
        images = torch.cat([self.images, y], 1)  # (d_k, o + t)
        after = Dual(self.problem, self.facts.join(fresh), images, factor, coefficients)
        return after, left, y - self.images @ rows

    @property
    def sound(self) -> bool:
        """Whether the checks of the module docstring pass, so that the next step can start from here."""
        drift = max(DRIFT, EPS * self.problem.condition**0.5)  # KᵀY is symmetric only up to rounding in A⁻¹
        accurate = self.condition <= CONDITION_LIMIT and self.backward_error() <= drift
        return accurate and not self.primal_is_better()

    def backward_error(self) -> float:
        """‖(X S − R) z‖ on four fixed random z, relative to ‖X‖‖S z‖ + ‖R z‖."""
        z = _random(len(self.facts), 4, self.images)  # (n, 4)
        root, r = self.facts.weights.sqrt()[:, None], self.facts.residual  # (n, 1), (d_v, n)
        sz = z + root * (self.facts.keys.T @ (self.images @ z))  # (n, 4)
        rz = r @ z  # (d_v, 4)
        scale = self.coefficients.norm() * sz.norm() + rz.norm()
        return float((self.coefficients @ sz - rz).norm() / scale) if scale > 0 else 0.0

    def primal_is_better(self) -> bool:
        """Whether A + KKᵀ has an estimated condition number ten or more times smaller than this form."""
        few = len(self.facts) < self.problem.projector.kept
        if self.condition <= WELL_CONDITIONED or (few and self.problem.condition <= WELL_CONDITIONED):
            return False
        return not 10 * self._primal_condition() >= self.condition

    def _primal_condition(self) -> float:
        """Condition number of A + KKᵀ, by power iterations on it and on its inverse."""
        p, keys = self.problem, self.facts.scaled_keys
        big = small = p.projector.apply(_random(len(keys), 2, keys))  # (d_k, 2)
        for _ in range(POWER_STEPS):
            big, small = big / big.norm(dim=0), small / small.norm(dim=0)
            big = p.metric(big) + p.projector.apply(keys @ (keys.T @ big))
            # Woodbury: (A + KKᵀ)⁻¹ = A⁻¹ − Y S⁻¹ Yᵀ on range(P).
            small = p.inverse(small) - self.images @ self.factor.solve(self.images.T @ small)
        return float(big.norm(dim=0).max() * small.norm(dim=0).max())


def anew(before: Dual | Primal, facts: Facts) -> SolutionStep:
    """Step to other facts by solving their problem without the earlier solution.

    Raises:
        SingularProblemError: if the solution is not unique; the message says what to raise.
    """
    after = before.problem.solve(facts)
    return SolutionStep(after, after.total() - before.total(), None)


def _plus_identity(gram: Float64[Tensor, "n n"]) -> Float64[Tensor, "n n"]:
    """Symmetric part of a matrix, plus I."""
    return (gram + gram.T) / 2 + torch.eye(len(gram)).to(gram)


def _random(n: int, m: int, like: Tensor) -> Tensor:
    """Normal numbers (n, m), the same at each call."""
    seeded = torch.Generator().manual_seed(0)
    return torch.randn(n, m, dtype=torch.float64, generator=seeded).to(like)
