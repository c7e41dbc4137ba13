"""The states that a norm can give, an ellipsoid, and the nearest of them to one that is wanted."""

import torch
from jaxtyping import Float64
from torch import Tensor

HALVINGS = 100
"""Halvings of the interval of μ; float64 is exhausted before."""


def nearest_direction(
    scale: Float64[Tensor, "n d"], goal: Float64[Tensor, "n d"], centred: bool
) -> Float64[Tensor, "n d"]:
    """Vectors s of mean square 1 whose images scale ⊙ s are nearest to the goals.

        min ‖a ⊙ s − t‖²  over  ‖s‖² = d  and, if centred, Σ s = 0:     s = (a ⊙ t − ν) / (a² + μ)

    ν makes the sum zero, and μ > −min a² the length right: ‖s‖ falls as μ rises, so that μ is found by
    halving an interval. A goal whose only nearest vectors lie at the end of the interval, such as one without
    any part along the smallest a, gives the direction found there.

    Args:
        scale: a, of each row.
        goal: t.
        centred: whether the norm subtracts the mean (LayerNorm) or not (RMSNorm).
    """
    square, pull, length = scale.square(), scale * goal, goal.shape[1] ** 0.5

    def at(shift: Tensor) -> Tensor:
        weight = 1 / (square + shift)
        found = pull * weight
        return found - weight * (found.sum(1, True) / weight.sum(1, True)) if centred else found

    least = square.amin(1, keepdim=True)
    tiny = torch.finfo(goal.dtype).eps * square.amax(1, keepdim=True)
    low = tiny - least  # (n, 1); there ‖s‖ is largest
    high = low + pull.norm(dim=1, keepdim=True) / length + tiny  # there ‖s‖² is at most d
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        long = at(middle).norm(dim=1, keepdim=True) > length
        low, high = torch.where(long, middle, low), torch.where(long, high, middle)
    found = at(high)
    return found * (length / found.norm(dim=1, keepdim=True).clamp(min=torch.finfo(goal.dtype).tiny))
