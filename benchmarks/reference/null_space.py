"""Twin of `palimpsest.algebra.projector`: a full singular value decomposition and a dense projector."""

import torch
from torch import Tensor


def projector(moment: Tensor, threshold: float) -> Tensor:
    """P = U Uᵀ (d_k, d_k) over the singular vectors of C₀ whose singular value is below the threshold.

    Source: AlphaEdit Eq. 7 to 10.
    """
    u, values, _ = torch.linalg.svd(moment)
    free = u[:, values < threshold]
    return free @ free.T
