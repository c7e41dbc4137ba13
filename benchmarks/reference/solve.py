"""Twin of the solvers: the dense unsymmetric d_k × d_k system of the released codes."""

import torch
from torch import Tensor


def released(p: Tensor | None, gram: Tensor, ridge: float, keys: Tensor, residual: Tensor) -> Tensor:
    """Δ (d_v, d_k) with (P G + λI) Δᵀ = P K Rᵀ, in the dtype of its arguments.

    Args:
        p: dense P (d_k, d_k); None for the identity.
        gram: G (d_k, d_k), all that the update must respect: K Kᵀ, past keys, λ₀C₀.
        ridge: λ.
        keys: K (d_k, n).
        residual: R (d_v, n).

    Source: AlphaEdit Eq. 14 (with past keys in G), and MEMIT Eq. 14 without P and λ.
    """
    right = keys @ residual.T  # (d_k, d_v)
    left = gram.clone() if p is None else p @ gram
    left.diagonal().add_(ridge)
    return torch.linalg.solve(left, right if p is None else p @ right).T
