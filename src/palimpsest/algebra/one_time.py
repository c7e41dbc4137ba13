"""The one-time problem behind a ledger, held so that facts enter and leave it at the cost of their number.

    minimise over D = DP:   Σ w_i ‖(W₀ + D) k_i − v_i‖² + tr(D M Dᵀ) + λ‖D‖²

With R = V − W₀K and the columns of K and R scaled by √w, A = M + λI on range(P) and Y = A⁻¹PK,

    D = X Yᵀ,   X S = R,   S = KᵀY + I.

A is factorised once; without M it is λI and no d_k × d_k matrix is formed. Facts t entering besides facts o,
or facts f leaving facts s, change the weight by a matrix of rank n, their number:

    enter:  ΔD = (R_t − X_o S_ot)(S_tt − S_to S_oo⁻¹ S_ot)⁻¹ (Y_t − Y_o S_oo⁻¹ S_ot)ᵀ
    leave:  ΔD = X_f (Y_s S_ss⁻¹ S_sf − Y_f)ᵀ

for O(N² n + d_k N n + d_v d_k n), with one growing and shrinking Cholesky factor of S.

Rounding adds up over a history, so two checks follow each step. When the relative backward error of X S = R
on fixed random probes exceeds `DRIFT`, S is factorised and X solved anew. When the condition number of A or S
exceeds `WELL_CONDITIONED` and that of the primal system A + KKᵀ is estimated to be ten times smaller (more
facts than directions with a small λ, or keys that fill what a deficient M leaves open), or when A is
singular, `palimpsest.algebra.solve` solves the problem in its primal form instead, which costs d_k³ per step.
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
"""Up to here no other form is looked for: errors are some 1e-15 times the condition number."""
TELESCOPE = 1e5
"""Beyond this a step is the difference of both totals, so that a sum of steps stays as exact as the last."""
EPS, HUGE = torch.finfo(torch.float64).eps, torch.finfo(torch.float64).max
DRIFT = 3e-15
"""Relative backward error beyond which the factor and the coefficients are computed anew."""


@dataclass(frozen=True)
class Problem:
    """All of the one-time problem but its facts.

    Args:
        preserve: M.
        ridge: λ.
        projector: P.
    """

    preserve: Float[Tensor, "d_k d_k"] | None
    ridge: float
    projector: Projector

    @cached_property
    def factor(self) -> Cholesky | None:
        """Of A = M + λI in the projector's coordinates; None where A is a multiple of I, or singular."""
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
        """√w K, and 0 for protected keys: the rounding of their PK would count as a direction."""
        keys = facts.scaled_keys
        inside, whole = self.projector.apply(keys).norm(dim=0), keys.norm(dim=0)
        return torch.where(inside <= PROTECTED_KEY * whole.clamp(max=HUGE), 0.0, keys)

    def metric(self, x: Float64[Tensor, "d_k n"]) -> Float64[Tensor, "d_k n"]:
        """P A P x."""
        x = self.projector.apply(x)
        inside = self.ridge * x
        return inside if self.preserve is None else self.projector.apply(inside + self.preserve.to(x) @ x)

    def inverse(self, x: Float64[Tensor, "d_k n"]) -> Float64[Tensor, "d_k n"]:
        """P A⁻¹ P x, for an A that is not singular."""
        if not self.projector.kept:
            return torch.zeros_like(x)
        if self.factor is None:
            return self.projector.apply(x) / self.ridge
        return self.projector.embed(self.factor.solve(self.projector.coordinates(x)))

    def solve(self, facts: Facts) -> "Dual | Primal":
        """The one-time solution over these facts, from nothing.

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
        """The dual form, or None where it has no accuracy at all."""
        if self.condition > CONDITION_LIMIT:
            return None
        keys = self.keys(facts)
        images = self.inverse(keys)
        try:
            factor = Cholesky.of(_plus_identity(keys.T @ images))
        except SingularProblemError:
            return None
        found = Dual(self, facts, images, factor, factor.solve(facts.residual.T).T)
        usable = found.condition <= CONDITION_LIMIT and bool(torch.isfinite(found.coefficients).all())
        return found if usable else None

    def _primal(self, facts: Facts) -> "Primal":
        keys = facts.scaled_keys
        inside = self.projector.apply(keys).norm(dim=0)
        protected = inside <= PROTECTED_KEY * keys.norm(dim=0).clamp(max=HUGE)
        keys = torch.where(protected, 0.0, keys)  # their rounding would pass for a direction
        found = solve(
            LeastSquares(keys, facts.residual, self.preserve, self.ridge, self.projector), path="primal"
        )
        return Primal(self, facts, found.delta, found.condition)


@dataclass(frozen=True)
class Step:
    """A solution and what it adds to the one before, left @ rightᵀ.

    Attributes:
        after: the new solution.
        left: (d_v, r).
        right: (d_k, r); None stands for the identity.
    """

    after: "Dual | Primal"
    left: Float64[Tensor, "d_v r"]
    right: Float64[Tensor, "d_k r"] | None

    def delta(self, dtype: torch.dtype) -> Float[Tensor, "d_v d_k"]:
        """ΔW, multiplied out in this precision."""
        left = self.left.to(dtype)
        return left if self.right is None else left @ self.right.to(dtype).T


@dataclass(frozen=True)
class Primal:
    """A solution held as the matrix itself; every step solves anew."""

    problem: Problem
    facts: Facts
    delta: Float64[Tensor, "d_v d_k"]
    condition: float

    def total(self) -> Float64[Tensor, "d_v d_k"]:
        """D."""
        return self.delta

    def change(self, gone: Sequence[int], fresh: Facts) -> Step:
        """Facts in some columns leave, others enter at the end."""
        return anew(self, self.facts.without(gone).join(fresh))

    def put(self, columns: Sequence[int], values: Float64[Tensor, "d_v m"]) -> Step:
        """Facts in some columns get other values."""
        return anew(self, self.facts.put(columns, values))


@dataclass(frozen=True)
class Dual:
    """A solution held as D = X Yᵀ.

    Attributes:
        problem: what the facts are fitted to.
        facts: K, V, w.
        images: Y (d_k, n), of the scaled keys.
        factor: of S.
        coefficients: X (d_v, n).
    """

    problem: Problem
    facts: Facts
    images: Float64[Tensor, "d_k n"]
    factor: Cholesky
    coefficients: Float64[Tensor, "d_v n"]

    def total(self) -> Float64[Tensor, "d_v d_k"]:
        """D."""
        return self.coefficients @ self.images.T

    @cached_property
    def condition(self) -> float:
        """The larger condition number of A and S."""
        return max(self.problem.condition, self.factor.condition)

    def change(self, gone: Sequence[int], fresh: Facts) -> Step:
        """Facts in some columns leave, others enter at the end.

        Raises:
            SingularProblemError: if the solution over what is left is not unique.
        """
        try:
            rest, *away = self._leave(gone)
            after, *added = rest._enter(fresh)
        except SingularProblemError:
            return anew(self, self.facts.without(gone).join(fresh))
        left, right = (torch.cat(pair, 1) for pair in zip(away, added, strict=True))
        return self._step(after, left, right)

    def put(self, columns: Sequence[int], values: Float64[Tensor, "d_v m"]) -> Step:
        """Facts in some columns get other values."""
        at, facts = list(columns), self.facts.put(columns, values)
        unit = self.images.new_zeros(len(facts), len(at))
        unit[at, range(len(at))] = 1.0
        rows = self.factor.solve(unit)
        change = facts.take(at).residual - self.facts.take(at).residual
        after = replace(self, facts=facts, coefficients=self.coefficients + change @ rows.T)
        return self._step(after, change, self.images @ rows)

    def _step(self, after: "Dual", left: Tensor, right: Tensor) -> Step:
        """The step to ``after``, which passes the checks or is computed anew."""
        if not after.sound:
            return anew(self, after.facts)
        if max(self.condition, after.condition) > TELESCOPE:
            return Step(after, after.total() - self.total(), None)
        return Step(after, left, right)

    def _leave(self, gone: Sequence[int]) -> "tuple[Dual, Tensor, Tensor]":
        """The solution without some facts, and the two factors of what that adds."""
        at, stay = list(gone), self.facts.others(gone)
        if not at:
            return self, self.coefficients[:, :0], self.images[:, :0]
        facts, images, factor = self.facts.take(stay), self.images[:, stay], self.factor.remove(at)
        left, y = self.coefficients[:, at], self.images[:, at]
        rows = factor.solve(facts.weights.sqrt()[:, None] * (facts.keys.T @ y))
        coefficients = self.coefficients[:, stay] + left @ rows.T
        return Dual(self.problem, facts, images, factor, coefficients), left, images @ rows - y

    def _enter(self, fresh: Facts) -> "tuple[Dual, Tensor, Tensor]":
        """The solution with some more facts, and the two factors of what that adds."""
        if not len(fresh):
            return self, self.coefficients[:, :0], self.images[:, :0]
        keys = self.problem.keys(fresh)
        y = self.problem.inverse(keys)
        cross = self.images.T @ keys
        factor = self.factor.append(cross, _plus_identity(keys.T @ y))
        rows = self.factor.solve(cross)
        missing = fresh.residual - self.coefficients @ cross
        left = factor.tail(len(fresh)).solve(missing.T).T
        coefficients = torch.cat([self.coefficients - left @ rows.T, left], 1)
        images = torch.cat([self.images, y], 1)
        after = Dual(self.problem, self.facts.join(fresh), images, factor, coefficients)
        return after, left, y - self.images @ rows

    @property
    def sound(self) -> bool:
        """Whether the checks at the head of this module pass, so that the next step can start from here."""
        drift = max(DRIFT, EPS * self.problem.condition**0.5)  # KᵀY is symmetric only up to rounding in A⁻¹
        accurate = self.condition <= CONDITION_LIMIT and self.backward_error() <= drift
        return accurate and not self.primal_is_better()

    def backward_error(self) -> float:
        """‖(X S − R) z‖ on four fixed random z, relative to ‖X‖‖S z‖ + ‖R z‖."""
        z = _random(len(self.facts), 4, self.images)
        root, r = self.facts.weights.sqrt()[:, None], self.facts.residual
        sz = z + root * (self.facts.keys.T @ (self.images @ z))
        rz = r @ z
        scale = self.coefficients.norm() * sz.norm() + rz.norm()
        return float((self.coefficients @ sz - rz).norm() / scale) if scale > 0 else 0.0

    def primal_is_better(self) -> bool:
        """Whether A + KKᵀ seems to have a condition number at least ten times smaller than this form's."""
        few = len(self.facts) < self.problem.projector.kept
        if self.condition <= WELL_CONDITIONED or (few and self.problem.condition <= WELL_CONDITIONED):
            return False
        return not 10 * self._primal_condition() >= self.condition

    def _primal_condition(self) -> float:
        """Condition number of A + KKᵀ by power iterations; its inverse is A⁻¹ − Y S⁻¹ Yᵀ."""
        p, keys = self.problem, self.facts.scaled_keys
        big = small = p.projector.apply(_random(len(keys), 2, keys))
        for _ in range(POWER_STEPS):
            big, small = big / big.norm(dim=0), small / small.norm(dim=0)
            big = p.metric(big) + p.projector.apply(keys @ (keys.T @ big))
            small = p.inverse(small) - self.images @ self.factor.solve(self.images.T @ small)
        return float(big.norm(dim=0).max() * small.norm(dim=0).max())


def anew(before: Dual | Primal, facts: Facts) -> Step:
    """The step to other facts by solving for them from nothing.

    Raises:
        SingularProblemError: if the solution is not unique; the message says what to raise.
    """
    after = before.problem.solve(facts)
    return Step(after, after.total() - before.total(), None)


def _plus_identity(gram: Float64[Tensor, "n n"]) -> Float64[Tensor, "n n"]:
    """The symmetric part of a matrix plus I."""
    return (gram + gram.T) / 2 + torch.eye(len(gram)).to(gram)


def _random(n: int, m: int, like: Tensor) -> Tensor:
    """The same normal numbers at each call."""
    seeded = torch.Generator().manual_seed(0)
    return torch.randn(n, m, dtype=torch.float64, generator=seeded).to(like)
