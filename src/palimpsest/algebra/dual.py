"""Dual form of a ledger's solution, for fewer facts than free directions.

With Y = A⁻¹PK,

    D = X Yᵀ,   X S = R,   S = KᵀY + I.

A is factorised once; without M it is λI and no d_k × d_k matrix is formed. When facts t enter beside facts o,
or facts f leave and facts s stay, the weight changes by a matrix of rank n, the number of these facts:

    enter:  ΔD = (R_t − X_o S_ot)(S_tt − S_to S_oo⁻¹ S_ot)⁻¹ (Y_t − Y_o S_oo⁻¹ S_ot)ᵀ
    leave:  ΔD = X_f (Y_s S_ss⁻¹ S_sf − Y_f)ᵀ

The cost is O(N² n + d_k N n + d_v d_k n), with one Cholesky factor of S that grows and shrinks.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from jaxtyping import Float64
from torch import Tensor

from palimpsest.algebra.cholesky import WIDTH, Cholesky, Extremes, random_columns, times
from palimpsest.algebra.ledger_facts import Facts
from palimpsest.algebra.problem import (
    DRIFT,
    EPS,
    PROBES,
    WELL_CONDITIONED,
    Problem,
    SolutionStep,
    random_mix,
)
from palimpsest.algebra.solve import CONDITION_LIMIT
from palimpsest.errors import SingularProblemError

TELESCOPE = 1e5
"""Condition number above which ΔW is the difference of both totals: steps then add up to the last total."""


@dataclass(frozen=True)
class Dual:
    """Solution stored as D = X Yᵀ.

    Attributes:
        problem: M, λ and P.
        facts: K, V, w.
        images: Y (d_k, n), of the scaled keys.
        factor: Cholesky factor of S (n, n).
        coefficients: X (d_v, n).
        extremes: of S.
        hint: extremes of A + KKᵀ before the last step, in d_k coordinates; None if unknown.
        known: D (d_v, d_k), if it was multiplied out in the last step.
    """

    problem: Problem
    facts: Facts
    images: Float64[Tensor, "d_k n"]
    factor: Cholesky
    coefficients: Float64[Tensor, "d_v n"]
    extremes: Extremes
    hint: Extremes | None = None
    known: Float64[Tensor, "d_v d_k"] | None = None

    @classmethod
    def of(cls, problem: Problem, facts: Facts) -> "Dual | None":
        """Solution over some facts; None where it would have no accurate digit."""
        if problem.condition > CONDITION_LIMIT:
            return None
        keys = problem.keys(facts)
        images = problem.inverse(keys)  # Y (d_k, n)
        try:
            factor = Cholesky.of(_plus_identity(keys.T @ images))  # S (n, n)
        except SingularProblemError:
            return None
        # X = R S⁻¹ (d_v, n), as (S⁻¹ Rᵀ)ᵀ because S is symmetric.
        coefficients = factor.solve(facts.residual.T).T.contiguous()
        found = cls(problem, facts, images, factor, coefficients, factor.extremes)
        usable = found.condition <= CONDITION_LIMIT and bool(torch.isfinite(coefficients).all())
        return found if usable else None

    def total(self) -> Float64[Tensor, "d_v d_k"]:
        """Total update D."""
        return self.coefficients @ self.images.T if self.known is None else self.known

    def times(self, keys: Float64[Tensor, "d_k n"]) -> Float64[Tensor, "d_v n"]:
        """D times columns, without D."""
        return times(self.coefficients, times(self.images.T, keys))

    @cached_property
    def condition(self) -> float:
        """The larger condition number of A and S."""
        return max(self.problem.condition, self.extremes.condition)

    def change(self, gone: Sequence[int], fresh: Facts) -> "SolutionStep[Dual] | None":
        """Facts in some columns leave, others enter at the end; None if the problem must be solved anew."""
        try:
            rest, *away = self._leave(gone)
            after, *added = rest._enter(fresh)
        except SingularProblemError:
            return None
        # (d_v, f + t) and (d_k, f + t)
        left, right = (torch.cat(pair, 1) for pair in zip(away, added, strict=True))
        return self._step(after, left, right)

    def put(self, columns: Sequence[int], values: Float64[Tensor, "d_v m"]) -> "SolutionStep[Dual] | None":
        """Facts in some columns get other values; None if the problem must be solved anew."""
        at, facts = list(columns), self.facts.put(columns, values)
        unit = self.images.new_zeros(len(facts), len(at))  # (n, m), the changed columns of I
        unit[at, range(len(at))] = 1.0
        rows = self.factor.solve(unit)  # (n, m), those of S⁻¹
        change = facts.take(at).residual - self.facts.take(at).residual  # (d_v, m)
        coefficients = self.coefficients + change @ rows.T
        after = replace(self, facts=facts, coefficients=coefficients, known=None)
        return self._step(after, change, times(self.images, rows))

    def _step(self, after: "Dual", left: Tensor, right: Tensor) -> "SolutionStep[Dual] | None":
        """The step to ``after``; None if ``after`` fails the checks."""
        after = replace(after, hint=self._primal_extremes())
        if not after.sound:
            return None
        if max(self.condition, after.condition) > TELESCOPE:
            after = replace(after, known=after.total())
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
        rows = factor.solve(facts.weights.sqrt()[:, None] * times(facts.keys.T, y))
        coefficients = self.coefficients[:, stay] + left @ rows.T  # (d_v, s)
        was = self.extremes
        small = torch.cat([was.small[stay], random_mix(rows)], 1)
        extremes = was.after(factor.product, factor.solve, was.big[stay], small, len(at))
        return (
            Dual(self.problem, facts, images, factor, coefficients, extremes),
            left,
            times(images, rows) - y,
        )

    def _enter(self, fresh: Facts) -> "tuple[Dual, Tensor, Tensor]":
        """Solution with further facts t, and the two factors (d_v, t), (d_k, t) of ΔD."""
        if not len(fresh):
            return self, self.coefficients[:, :0], self.images[:, :0]
        keys = self.problem.keys(fresh)
        y = self.problem.inverse(keys)  # Y_t (d_k, t)
        cross, corner = times(self.images.T, keys), _plus_identity(keys.T @ y)  # S_ot (o, t), S_tt (t, t)
        factor = self.factor.append(cross, corner)
        rows = self.factor.solve(cross)  # S_oo⁻¹ S_ot (o, t)
        missing = fresh.residual - times(self.coefficients, cross)  # (d_v, t)
        left = factor.tail(len(fresh)).solve(missing.T).T  # X_t (d_v, t), by the Schur complement
        coefficients = torch.cat([self.coefficients - left @ rows.T, left], 1)  # (d_v, o + t)
        images = torch.cat([self.images, y], 1)  # (d_k, o + t)
        extremes = self._wider(
            factor, torch.cat([cross, corner]), torch.cat([-rows, torch.eye(len(fresh)).to(y)])
        )
        after = Dual(self.problem, self.facts.join(fresh), images, factor, coefficients, extremes)
        return after, left, y - times(self.images, rows)

    def _wider(self, factor: Cholesky, big: Tensor, small: Tensor) -> Extremes:
        """Extremes of S after facts have entered, from the new columns of S and of S⁻¹, (o + t, t) each."""
        was, t = self.extremes, big.shape[1]
        if len(self.facts) <= max(t, WIDTH):
            return factor.extremes
        nothing = big.new_zeros(t, WIDTH)
        old_big, old_small = (torch.cat([had, nothing[:, : had.shape[1]]]) for had in (was.big, was.small))
        return was.after(
            factor.product,
            factor.solve,
            torch.cat([old_big, random_mix(big)], 1),
            torch.cat([old_small, random_mix(small)], 1),
            t,
        )

    @property
    def sound(self) -> bool:
        """Whether the checks of `palimpsest.algebra.one_time` pass, so that a step can start from here."""
        drift = max(DRIFT, EPS * self.problem.condition**0.5)  # KᵀY is symmetric only up to rounding in A⁻¹
        accurate = self.condition <= CONDITION_LIMIT and self.backward_error() <= drift
        return accurate and not self.primal_is_better()

    def backward_error(self) -> float:
        """‖(X S − R) z‖ on fixed random z, relative to ‖X‖‖S z‖ + ‖R z‖."""
        z = random_columns(len(self.facts), PROBES, self.images)  # (n, 4)
        root, facts = self.facts.weights.sqrt()[:, None], self.facts  # (n, 1)
        sz = z + root * times(facts.keys.T, times(self.images, z))  # (n, 4)
        rz = times(facts.values - facts.outputs, root * z)  # (d_v, 4)
        scale = self.coefficients.norm() * sz.norm() + rz.norm()
        return float((times(self.coefficients, sz) - rz).norm() / scale) if scale > 0 else 0.0

    def primal_is_better(self) -> bool:
        """Whether A + KKᵀ has an estimated condition number ten or more times smaller than this form."""
        found = self._primal_extremes()
        return found is not None and not 10 * found.condition >= self.condition

    def _primal_extremes(self) -> Extremes | None:
        """Extremes of A + KKᵀ; None where its condition cannot matter."""
        few = len(self.facts) < self.problem.projector.kept
        if self.condition <= WELL_CONDITIONED or (few and self.problem.condition <= WELL_CONDITIONED):
            return None
        return self.primal_extremes

    @cached_property
    def primal_extremes(self) -> Extremes:
        """Extremes of A + KKᵀ on range(P), estimated from those before the last step, if they are known."""
        p, keys = self.problem, self.facts.scaled_keys

        def apply(x: Tensor) -> Tensor:
            return p.metric(x) + p.projector.apply(times(keys, times(keys.T, p.projector.apply(x))))

        def inverse(x: Tensor) -> Tensor:
            # Woodbury: (A + KKᵀ)⁻¹ = A⁻¹ − Y S⁻¹ Yᵀ on range(P).
            return p.inverse(x) - times(self.images, self.factor.solve(times(self.images.T, x)))

        if self.hint is None:
            return Extremes.of(apply, inverse, p.projector.apply(random_columns(len(keys), WIDTH, keys)))
        new = random_mix(p.projector.apply(keys[:, -1:]))
        big, small = (torch.cat([side, new], 1) for side in (self.hint.big, self.hint.small))
        return self.hint.after(apply, inverse, big, small)


def _plus_identity(gram: Float64[Tensor, "n n"]) -> Float64[Tensor, "n n"]:
    """Symmetric part of a matrix, plus I."""
    return (gram + gram.T) / 2 + torch.eye(len(gram)).to(gram)
