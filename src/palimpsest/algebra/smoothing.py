"""Smoothed targets of AlphaEdit+: a smaller step for facts whose values lie far from the present output Wk.

A fact is hard if ‖r‖ > τ. With v₀ = Wk (the paper does not define v₀), Eq. 16 multiplies the residual of each
hard fact by c = (T + t)/(2T) and keeps the others unchanged. The update is linear in the residual and nothing
is carried from one t to the next, so that one factorisation gives every candidate:

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
        condition: condition number of the one factorised system.
    """

    easy: Float[Tensor, "d_v d_k"]
    hard: Float[Tensor, "d_v d_k"]
    condition: float

    def at(self, scale: float) -> Float[Tensor, "d_v d_k"]:
        """Update Δ(c) (d_v, d_k) with c = ``scale``, the share of a hard residual that is aimed at."""
        return self.easy + scale * self.hard


def hard_part(residual: Float[Tensor, "d_v n"], threshold: float) -> Float[Tensor, "d_v n"]:
    """Residual (d_v, n) of the hard facts, ‖r‖ > τ; the other columns are 0."""
    return residual * (residual.norm(dim=0) > threshold)


def scan(problem: LeastSquares, hard: Float[Tensor, "d_v n"]) -> Scan:
    """Updates for all smoothed targets, from one factorisation. Eq. 16 and 18.

    Args:
        problem: problem with the whole residual.
        hard: part of that residual to scale, from `hard_part`.

    Raises:
        SingularProblemError: as `palimpsest.algebra.solve.solve`.
    """
    # One factorisation for both parts of R, stacked as rows: (2 d_v, n) -> Δ (2 d_v, d_k).
    solution = solve(replace(problem, residual=torch.cat([problem.residual - hard, hard])))
    easy, difficult = solution.delta.chunk(2)  # (d_v, d_k) each
    return Scan(easy, difficult, solution.condition)


def scale_at(step: int, steps: int) -> float:
    """Factor c = 1 − β(t) = (T + t)/(2T) on a hard fact's residual. Eq. 16.

    Args:
        step: t.
        steps: T.

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
    """All scales that Algorithm 1 tries: T + 1 values from ½ to 1, or only 1 if no fact is hard."""
    return [scale_at(step, steps) for step in range(steps + 1)] if hard.any() else [1.0]


def smoothed_targets(
    values: Float[Tensor, "d_v n"],
    present: Float[Tensor, "d_v n"],
    threshold: float,
    step: int,
    steps: int,
) -> Float[Tensor, "d_v n"]:
    """Targets v + β(t)(v₀ − v) where ‖v − v₀‖ > τ, else v. Eq. 16, with v₀ = Wk.

    Args:
        values: v (d_v, n).
        present: v₀ (d_v, n).
        threshold: τ.
        step: t.
        steps: T.

    Raises:
        ShapeError: as `scale_at`.
    """
    hard = (values - present).norm(dim=0) > threshold
    return torch.where(hard, values + (1 - scale_at(step, steps)) * (present - values), values)
