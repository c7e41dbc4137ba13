"""Primal form of a ledger's solution, whose size does not depend on the number of facts.

With H = A + KKᵀ and C = RKᵀ on range(P),

    D = C H⁻¹.

Both accumulators are held through the solution: H as its Cholesky factor, C as D H. When facts t enter and
facts f leave, H changes by K_t K_tᵀ − K_f K_fᵀ, and

    ΔD = [R_t − D K_t,  −(R_f − D K_f)] (H_new⁻¹ [K_t, K_f])ᵀ,

a matrix of rank n, the number of these facts. The factor takes them up in groups: up to `PENDING` of them
wait as signed columns U beside an older factor, H = H₀ + U Σ Uᵀ, and are applied by the Woodbury identity,

    H⁻¹ = H₀⁻¹ − Y (Σ + UᵀY)⁻¹ Yᵀ,   Y = H₀⁻¹U.

A step then costs O(d_k² n + d_v d_k n), without a factorisation and without the other facts' keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float64
from torch import Tensor

from palimpsest.algebra.cholesky import WIDTH, Cholesky, Extremes, random_columns, times
from palimpsest.algebra.fact_file import FactFile
from palimpsest.algebra.ledger_facts import Facts
from palimpsest.algebra.problem import DRIFT, PROBES, WELL_CONDITIONED, Problem, SolutionStep, random_mix
from palimpsest.algebra.solve import CONDITION_LIMIT
from palimpsest.errors import SingularProblemError

PENDING = 64
"""Changed facts that wait beside the factor before it takes them up; affects only speed and rounding."""
TRUSTED = 1e10
"""Condition number above which every step solves the problem anew."""


@dataclass(frozen=True)
class Metric:
    """H = A + KKᵀ in the projector's coordinates, factorised, with the products of C and H on fixed probes.

    Attributes:
        problem: M, λ and P.
        factor: Cholesky factor of H₀ (c, c), padded in protected directions.
        columns: U (c, m), waiting keys.
        signs: Σ (m,): 1 for a fact that entered, −1 for one that left.
        solved: Y = H₀⁻¹U (c, m).
        extremes: of H on range(P).
        images: H z on fixed random z in range(P), (c, 4); each change is added, so they share no rounding
            with the factor.
    """

    problem: Problem
    factor: Cholesky
    columns: Float64[Tensor, "c m"]
    signs: Float64[Tensor, " m"]
    solved: Float64[Tensor, "c m"]
    extremes: Extremes
    images: Float64[Tensor, "c 4"]

    @classmethod
    def of(cls, problem: Problem, matrix: Float64[Tensor, "c c"]) -> "Metric":
        """Metric of a matrix H that is zero in protected directions.

        Raises:
            SingularProblemError: if H is not positive definite on range(P).
        """
        if problem.projector.kept and not matrix.any():  # what is padded would hide it behind rounding
            raise SingularProblemError("the matrix is zero on range(P)")
        factor = Cholesky.of(problem.projector.pad(matrix))
        z, none = probes(problem, matrix), matrix.new_zeros(len(matrix), 0)
        start = problem.inside(random_columns(len(matrix), WIDTH, matrix))
        found = cls(problem, factor, none, none[0], none, Extremes(start, start, 1.0, 1.0), matrix @ z)
        return replace(found, extremes=Extremes.of(found.product, found.solve, start))

    def product(self, x: Float64[Tensor, "c n"]) -> Float64[Tensor, "c n"]:
        """H times columns, on range(P)."""
        x = self.problem.inside(x)
        late = times(self.columns, self.signs[:, None] * times(self.columns.T, x))
        return self.problem.inside(self.factor.product(x)) + late

    def solve(self, x: Float64[Tensor, "c n"]) -> Float64[Tensor, "c n"]:
        """H⁻¹ times columns, on range(P)."""
        return self._corrected(self.factor.solve(self.problem.inside(x)))

    def solve_changed(self, columns: Float64[Tensor, "c n"]) -> Float64[Tensor, "c n"]:
        """H⁻¹ times the columns of the last change; what was solved for them then is used again."""
        before = len(self.signs) - columns.shape[1]
        if before < 0:  # the factor has taken them up
            return self.solve(columns)
        return self._corrected(self.solved[:, before:])

    def _corrected(self, found: Float64[Tensor, "c n"]) -> Float64[Tensor, "c n"]:
        """H⁻¹ times columns from H₀⁻¹ times them, on range(P)."""
        if len(self.signs):
            found = found - times(
                self.solved, torch.linalg.solve(self.corner(), times(self.columns.T, found))
            )
        return self.problem.inside(found)

    def corner(self) -> Float64[Tensor, "m m"]:
        """Σ + UᵀY."""
        gram = self.columns.T @ self.solved
        return self.signs.diag() + (gram + gram.T) / 2

    def change(self, columns: Float64[Tensor, "c n"], signs: Float64[Tensor, " n"]) -> "Metric | None":
        """H + U Σ Uᵀ for further columns; None where it is not positive definite, or nearly so."""
        z = probes(self.problem, columns)
        images = self.images + columns @ (signs[:, None] * (columns.T @ z))
        try:
            after = replace(self._joined(columns, signs), images=images)
        except SingularProblemError:
            return None
        if not after._is_definite():
            return None
        try:
            fresh = random_mix(columns), random_mix(after.solve_changed(columns))
        except torch.linalg.LinAlgError:  # Σ + UᵀY has no inverse, and so H has none
            return None
        big, small = (
            torch.cat(p, 1) for p in zip((self.extremes.big, self.extremes.small), fresh, strict=True)
        )
        return replace(
            after, extremes=self.extremes.after(after.product, after.solve, big, small, len(signs))
        )

    def _joined(self, columns: Tensor, signs: Tensor) -> "Metric":
        """The waiting columns and these together; the factor takes them up if they are too many.

        Raises:
            SingularProblemError: if H is then not positive definite.
        """
        u, s = torch.cat([self.columns, columns], 1), torch.cat([self.signs, signs])
        if len(s) > PENDING:
            factor = self.factor.plus(u[:, s > 0]).minus(u[:, s < 0])
            none = u.new_zeros(len(u), 0)  # not a part of u, which would stay in memory
            return replace(self, factor=factor, columns=none, signs=none[0], solved=none)
        solved = torch.cat([self.solved, self.factor.solve(columns)], 1)
        return replace(self, columns=u, signs=s, solved=solved)

    def _is_definite(self) -> bool:
        """Whether H₀ + U Σ Uᵀ is positive definite: as many negative pivots in Σ + UᵀY as negative signs."""
        if not (self.signs < 0).any():
            return True
        corner = self.corner()
        if not torch.isfinite(corner).all():
            return False
        return int((torch.linalg.eigvalsh(corner) < 0).sum()) == int((self.signs < 0).sum())


@dataclass(frozen=True)
class Primal:
    """Solution stored as the matrix D.

    Attributes:
        problem: M, λ and P.
        facts: K, V, w; in memory, or in a file.
        delta: D (d_v, d_k).
        metric: H; None if there is no fact, or no free direction.
        wanted: C z on the probes of the metric, (d_v, 4).
    """

    problem: Problem
    facts: Facts | FactFile
    delta: Float64[Tensor, "d_v d_k"]
    metric: Metric | None
    wanted: Float64[Tensor, "d_v 4"]

    @classmethod
    def of(cls, problem: Problem, facts: Facts | FactFile) -> "Primal":
        """Solution over some facts, read in blocks.

        Raises:
            SingularProblemError: if it is not unique; the message says what to raise.
        """
        matrix, d_v = problem.matrix(), facts.take([]).values.shape[0]
        moment = matrix.new_zeros(d_v, len(matrix))  # C (d_v, c)
        if not len(facts) or not problem.projector.kept:
            nothing = moment.new_zeros(d_v, problem.projector.dim)
            return cls(problem, facts, nothing, None, moment.new_zeros(d_v, PROBES))
        for block in facts.blocks():
            keys = problem.projector.coordinates(problem.keys(block))  # (c, b)
            matrix.addmm_(keys, keys.T)
            moment.addmm_(block.residual, keys.T)
        try:
            metric = Metric.of(problem, matrix)
        except SingularProblemError as error:
            raise problem.refusal(len(facts), "A + KKᵀ is not positive definite") from error
        if not metric.extremes.condition <= CONDITION_LIMIT:
            raise problem.refusal(len(facts), f"condition number {metric.extremes.condition:.1e}")
        # Mapping back from coordinates comes last, so that rounding errors lie in range(P) too.
        delta = problem.projector.embed(metric.factor.solve(moment.T.contiguous())).T.contiguous()
        if not torch.isfinite(delta).all():
            raise problem.refusal(len(facts), "the update is not finite")
        return cls(problem, facts, delta, metric, moment @ probes(problem, matrix))

    @property
    def condition(self) -> float:
        """Estimated condition number of A + KKᵀ on range(P)."""
        return 1.0 if self.metric is None else self.metric.extremes.condition

    def total(self) -> Float64[Tensor, "d_v d_k"]:
        """Total update D."""
        return self.delta

    def times(self, keys: Float64[Tensor, "d_k n"]) -> Float64[Tensor, "d_v n"]:
        """D times columns."""
        return times(self.delta, keys)

    def change(self, gone: Sequence[int], fresh: Facts) -> "SolutionStep[Primal] | None":
        """Facts in some columns leave, others enter at the end; None if the problem must be solved anew."""
        if self.metric is None or not len(self.facts) - len(gone) + len(fresh):
            return None
        old = self.facts.take(gone)
        entering, leaving = self.problem.keys(fresh), self.problem.keys(old)
        keys = self.problem.projector.coordinates(torch.cat([entering, leaving], 1))  # (c, t + f)
        signs = torch.cat([entering.new_ones(len(fresh)), -leaving.new_ones(len(old))])
        if 4 * len(signs) > len(keys) + len(self.facts) + len(fresh) - len(old):
            return None  # so many that a new solution costs less
        metric = self.metric.change(keys, signs)
        if metric is None or not metric.extremes.condition <= TRUSTED:
            return None
        residual = torch.cat([fresh.residual, old.residual], 1)  # (d_v, t + f)
        missing = signs * (residual - times(self.delta, torch.cat([entering, leaving], 1)))
        moved = missing @ self.problem.projector.embed(metric.solve_changed(keys)).T  # ΔD (d_v, d_k)
        change = (signs * residual) @ (keys.T @ probes(self.problem, keys))  # ΔC z (d_v, 4)
        facts = self.facts.without(gone).join(fresh)
        return self._step(
            Primal(self.problem, facts, self.delta + moved, metric, self.wanted + change), moved
        )

    def put(self, columns: Sequence[int], values: Float64[Tensor, "d_v m"]) -> "SolutionStep[Primal] | None":
        """Facts in some columns get other values; None if the problem must be solved anew."""
        if self.metric is None or not self.condition <= TRUSTED:
            return None
        old = self.facts.take(columns)
        facts, keys = (
            self.facts.put(columns, values),
            self.problem.projector.coordinates(self.problem.keys(old)),
        )
        residual = old.put(range(len(old)), values).residual - old.residual  # (d_v, m)
        moved = residual @ self.problem.projector.embed(self.metric.solve(keys)).T
        wanted = self.wanted + residual @ (keys.T @ probes(self.problem, keys))
        return self._step(replace(self, facts=facts, delta=self.delta + moved, wanted=wanted), moved)

    def _step(self, after: "Primal", moved: Float64[Tensor, "d_v d_k"]) -> "SolutionStep[Primal] | None":
        """The step to ``after``; None if it fails the checks, or if the dual form may be better there."""
        if after.backward_error() <= DRIFT and not after.dual_may_be_better():
            return SolutionStep(after, moved, None)
        return None

    def backward_error(self) -> float:
        """‖(D H − C) z‖ on the probes, relative to ‖D‖‖H z‖ + ‖C z‖."""
        if self.metric is None:
            return 0.0
        images = self.metric.images
        scale = self.delta.norm() * images.norm() + self.wanted.norm()
        missed = times(self.delta, self.problem.projector.embed(images)) - self.wanted
        return float(missed.norm() / scale) if scale > 0 else 0.0

    def dual_may_be_better(self) -> bool:
        """Whether few facts are left in a file, or A alone has a condition number ten times smaller."""
        kept = self.problem.projector.kept
        if isinstance(self.facts, FactFile) and len(self.facts) <= kept // 2:
            return True
        bad = self.condition > WELL_CONDITIONED and len(self.facts) <= kept
        return bad and 10 * self.problem.condition <= self.condition


def probes(problem: Problem, like: Float64[Tensor, "c n"]) -> Float64[Tensor, "c 4"]:
    """Fixed random columns z in range(P), in the projector's coordinates."""
    return problem.inside(random_columns(len(like), PROBES, like))
