"""Twin of `palimpsest.memory.moments`: a layer and a text window at a time, through the whole model."""

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.reference.forward import keys_at
from palimpsest.network.model import EditableModel


def total(model: EditableModel, layer: int, windows: Sequence[Sequence[int]]) -> Tensor:
    """Σ k kᵀ (d_k, d_k) of a layer over all tokens, float64."""
    found: Tensor | None = None
    for window in windows:
        keys = keys_at(model, window, layer).double()  # (t, d_k)
        found = keys.T @ keys if found is None else found + keys.T @ keys
    return found if found is not None else torch.zeros(0, 0, dtype=torch.float64)
