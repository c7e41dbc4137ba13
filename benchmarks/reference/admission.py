"""Twin of `palimpsest.algebra.admission`: one dense solve and one objective for every direction tried."""

import torch
from torch import Tensor

from benchmarks.reference.solve import released


def objectives(p: Tensor, directions: Tensor, keys: Tensor, residual: Tensor, ridge: float) -> Tensor:
    """J = ‖ΔK − R‖² + λ‖Δ‖² after each direction u (a column) was added to P, P + uuᵀ, float64.

    Source: AlphaEdit+ Eq. 15 and Algorithm 1.
    """
    path, gram = [], keys @ keys.T
    for u in directions.T:
        p = p + torch.outer(u, u)
        delta = released(p, gram, ridge, keys, residual)
        path.append((delta @ keys - residual).square().sum() + ridge * delta.square().sum())
    return torch.stack(path)
