"""Smoothed targets of AlphaEdit+: a step length for facts whose values lie far from what the weight gives.

With v₀ = Wk, which the paper leaves undefined, Eq. 16 multiplies the residual of a hard fact, one with
‖r‖ > τ, by c = (T + t)/(2T) and leaves the others. The update is linear in the residual, and nothing is
carried from one t to the next, so every candidate comes from one factorisation:

    Δ(c) = Δ_easy + c Δ_hard,     c = ½ … 1;     c = 1 is the edit without smoothing
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from palimpsest.algebra.solve import LeastSquares, solve
from palimpsest.errors import ShapeError


@dataclass(frozen=True)
class Scan:
    """All smoothed updates of one problem.

    Attributes:
        easy, hard: Δ_easy and Δ_hard (d_v, d_k), float64.
        condition: of the one system that was factorised.
    """

    easy: Float[Tensor, "d_v d_k"]
    hard: Float[Tensor, "d_v d_k"]
    condition: float

    def at(self, scale: float) -> Float[Tensor, "d_v d_k"]:
        """The update whose hard columns aim at this share of their residual."""
        return self.easy + scale * self.hard


def hard_part(residual: Float[Tensor, "d_v n"], threshold: float) -> Float[Tensor, "d_v n"]:
    """The columns with ‖r‖ > τ; the others are 0."""
    return residual * (residual.norm(dim=0) > threshold)


def scan(problem: LeastSquares, hard: Float[Tensor, "d_v n"]) -> Scan:
    """Solve once for every smoothed target. Eq. 16 and 18.

    Args:
        problem: with the whole residual.
        hard: what of that residual is scaled, as `hard_part` has it.

    Raises:
        SingularProblemError: as `palimpsest.algebra.solve.solve`.
    """
    solution = solve(replace(problem, residual=torch.cat([problem.residual - hard, hard])))
    easy, difficult = solution.delta.chunk(2)
    return Scan(easy, difficult, solution.condition)


def scale_at(step: int, steps: int) -> float:
    """Share of a hard column's residual that is aimed at, c = 1 − β(t) = (T + t)/(2T). Eq. 16.

    Raises:
        ShapeError: if T is below 1 (the formula divides by it) or t is outside 0 to T.
    """
    if steps < 1 or not 0 <= step <= steps:
        raise ShapeError(
            f"smoothing needs T ≥ 1 steps and t from 0 to T, got t = {step}, T = {steps}; "
            "for no smoothing leave it out"
        )
    return (steps + step) / (2 * steps)


def scales(hard: Float[Tensor, "d_v n"], steps: int) -> list[float]:
    """Every scale Algorithm 1 tries: ½ to 1 in T + 1 steps, or only 1 if no fact is hard."""
    return [scale_at(step, steps) for step in range(steps + 1)] if hard.any() else [1.0]


def smoothed_targets(
    values: Float[Tensor, "d_v n"],
    present: Float[Tensor, "d_v n"],
    threshold: float,
    step: int,
    steps: int,
) -> Float[Tensor, "d_v n"]:
    """Targets v + β(t)(v₀ − v) where ‖v − v₀‖ > τ, else v. Eq. 16; v₀ = Wk, which it leaves undefined."""
    hard = (values - present).norm(dim=0) > threshold
    return torch.where(hard, values + (1 - scale_at(step, steps)) * (present - values), values)
