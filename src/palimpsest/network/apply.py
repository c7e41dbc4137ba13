"""Put an edit into a model: for the length of a block (`installed`) or for good (`commit`).

Both check first and write afterwards, so that a refused edit leaves every weight as it was. An edit adds to
weights (`WeightDelta`), or leaves them alone and puts a text before whatever the model is asked
(`PromptContext`); who evaluates a model need not know which.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from palimpsest.errors import ModelError, NonFiniteError, ShapeError
from palimpsest.network.model import EditableModel, fingerprint, read_weight, write_weight


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


@dataclass(frozen=True)
class PromptContext:
    """An edit that changes no weight: a text before every prompt the model is asked while it is installed.

    Prompts are what is asked and continued (`palimpsest.network.model.EditableModel.encode`). What is read to
    edit
    or to measure the weights is no prompt: keys, second moments, values, held-out text.

    Attributes:
        text: what stands before a prompt, its last space or line end included.
        base: fingerprint of the model it was made for; empty to skip the check.
        notes: how it came about; JSON-able.
    """

    text: str
    base: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)

    def norm(self) -> float:
        """0: no weight changes."""
        return 0.0


Edit = WeightDelta | PromptContext


@contextmanager
def installed(model: EditableModel, edit: Edit) -> Iterator[EditableModel]:
    """The model with the edit inside the block; every bit is restored on leaving, also after an error.

    Raises:
        NonFiniteError, ShapeError, ModelError: as `commit`; the weights are then untouched.
    """
    if isinstance(edit, PromptContext):
        with _asked_behind(model, edit):
            yield model
        return
    updated = _updated_weights(model, edit)
    with restored(model, updated):
        _write(model, updated)
        yield model


@contextmanager
def _asked_behind(model: EditableModel, edit: PromptContext) -> Iterator[None]:
    """Prompts stand behind the edit's text, which stands behind one that is installed already."""
    _require_base(model, edit)
    before = model.context
    try:
        model.context = before + edit.text
        yield
    finally:
        model.context = before


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
        ModelError: if the edit was made for a model with other weights, or is a context.
    """
    if isinstance(edit, PromptContext):
        raise ModelError(
            "this edit is a text before the prompts, which no weight can keep; use it with installed(model, "
            "edit), or commit an edit of weights"
        )
    _write(model, _updated_weights(model, edit))


def _require_base(model: EditableModel, edit: Edit) -> None:
    if edit.base and edit.base != fingerprint(model):
        raise ModelError(
            f"the edit was made for a model with other weights than {model.name} has now "
            f"(fingerprint {edit.base[:12]}), or for another context; make the edit again on this model, or "
            "apply edits in the order they were made"
        )


def _updated_weights(model: EditableModel, edit: WeightDelta) -> dict[int, Tensor]:
    _require_base(model, edit)
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
