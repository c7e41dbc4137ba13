"""Put an edit into a model: for the length of a block (`installed`) or for good (`commit`).

Both check first and write afterwards, so that a refused edit leaves every weight as it was.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from palimpsest.errors import ModelError, NonFiniteError, ShapeError
from palimpsest.model import EditableModel, fingerprint, read_weight, write_weight


@dataclass(frozen=True)
class WeightDelta:
    """An edit that adds a matrix to some layers' edited weight.

    Attributes:
        deltas: layer -> Δ (d_v, d_k), float64.
        base: fingerprint of the model it was made for; empty to skip the check.
        notes: how it came about: method, settings, conditions, losses; JSON-able.
    """

    deltas: Mapping[int, Float[Tensor, "d_v d_k"]]
    base: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)

    def norm(self) -> float:
        """Frobenius norm over all layers together."""
        return float(sum(d.double().square().sum() for d in self.deltas.values()) ** 0.5)


Edit = WeightDelta


@contextmanager
def installed(model: EditableModel, edit: Edit) -> Iterator[EditableModel]:
    """The model with the edit inside the block; every bit is restored on leaving, also after an error.

    Raises:
        NonFiniteError, ShapeError, ModelError: as `commit`; the weights are then untouched.
    """
    updated = _updated_weights(model, edit)
    with restored(model, updated):
        _write(model, updated)
        yield model


@contextmanager
def restored(model: EditableModel, layers: Iterable[int]) -> Iterator[None]:
    """Whatever the block writes into these layers' weights, every bit is put back on leaving it."""
    before = {layer: read_weight(model, layer).clone() for layer in layers}
    try:
        yield
    finally:
        _write(model, before)


def commit(model: EditableModel, edit: Edit) -> None:
    """Add the edit to the model's weights for good.

    Raises:
        NonFiniteError: if a delta, or the weight it leads to, holds NaN or infinity.
        ShapeError: if a delta has another shape than the weight.
        ModelError: if the edit was made for a model with other weights.
    """
    _write(model, _updated_weights(model, edit))


def _updated_weights(model: EditableModel, edit: Edit) -> dict[int, Tensor]:
    if edit.base and edit.base != fingerprint(model):
        raise ModelError(
            f"the edit was made for a model with other weights than {model.name} has now "
            f"(fingerprint {edit.base[:12]}); make the edit again on this model, or apply edits in the order "
            "they were made"
        )
    return {layer: _updated(model, layer, delta) for layer, delta in edit.deltas.items()}


def _updated(model: EditableModel, layer: int, delta: Tensor) -> Tensor:
    weight = read_weight(model, layer)
    if delta.shape != weight.shape:
        raise ShapeError(f"layer {layer}: the edit is {tuple(delta.shape)}, the weight {tuple(weight.shape)}")
    updated = (weight.double() + delta.to(weight.device).double()).to(weight.dtype)
    if not torch.isfinite(updated).all():
        raise NonFiniteError(
            f"layer {layer}: the update holds NaN or infinity; it was refused and no weight was changed. "
            "Look at the edit's conditions and losses in its notes; a larger ridge usually helps"
        )
    return updated


def _write(model: EditableModel, weights: Mapping[int, Tensor]) -> None:
    for layer, weight in weights.items():
        write_weight(model, layer, weight)
