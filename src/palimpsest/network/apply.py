"""Application of an edit to a model: inside a block (`installed`) or permanently (`commit`).

Both check before they write, so that a refused edit leaves every weight unchanged. An edit either adds
matrices to weights (`WeightDelta`) or changes no weight: it places a text before every prompt
(`PromptContext`), or wraps the model (`palimpsest.network.wraps.Wrap`). Code that evaluates a model need not
distinguish them.
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
from palimpsest.network.wraps import Wrap, held
from palimpsest.types import Shown, span


@dataclass(frozen=True, repr=False)
class WeightDelta(Shown):
    """Edit that adds a matrix to the edited weight of some layers.

    Attributes:
        deltas: layer -> Δ (d_v, d_k), float64.
        base: fingerprint of the model it was made for; empty to skip the check.
        notes: origin of the edit: method, settings, conditions, losses; JSON-able.
    """

    deltas: Mapping[int, Float[Tensor, "d_v d_k"]]
    base: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)

    def norm(self) -> float:
        """Frobenius norm over all layers together."""
        return float(sum(d.double().square().sum() for d in self.deltas.values()) ** 0.5)

    def shown(self) -> dict[str, object]:
        """Method, facts, layers and norm; and how to use it."""
        return {
            **_origin(self.notes),
            "layers": span(self.deltas),
            "norm": f"{self.norm():.3g}",
            "use": "installed(model, edit) for a block, commit(model, edit) to keep",
        }


@dataclass(frozen=True, repr=False)
class PromptContext(Shown):
    """Edit that changes no weight: a text placed before every prompt while it is installed.

    A prompt is a text that the model is to answer or continue
    (`palimpsest.network.model.EditableModel.encode`). Text read to edit or to measure the weights is no
    prompt: that of keys, second moments and values, and held-out text.

    Attributes:
        text: text before a prompt, its last space or line end included.
        base: fingerprint of the model it was made for; empty to skip the check.
        notes: origin of the edit; JSON-able.
    """

    text: str
    base: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)

    def norm(self) -> float:
        """0, because no weight changes."""
        return 0.0

    def shown(self) -> dict[str, object]:
        """Method, facts and length of the text; and how to use it."""
        return {
            **_origin(self.notes),
            "text": f"{len(self.text)} characters before every prompt",
            "use": "installed(model, edit) for a block",
        }


def _origin(notes: Mapping[str, Any]) -> dict[str, object]:
    """Method and number of facts of an edit, as far as its notes say."""
    return {name: notes[name] for name in ("method", "facts") if name in notes}


Edit = WeightDelta | PromptContext | Wrap


@contextmanager
def installed(model: EditableModel, edit: Edit) -> Iterator[EditableModel]:
    """Apply the edit inside the block; every bit is restored at its end, also after an error.

    Raises:
        NonFiniteError, ShapeError, ModelError: as `commit`; the weights are then unchanged.
    """
    if isinstance(edit, PromptContext):
        with _asked_behind(model, edit):
            yield model
        return
    if isinstance(edit, Wrap):
        _require_base(model, edit)
        with held(model, edit):
            yield model
        return
    updated = _updated_weights(model, edit)
    with restored(model, updated):
        _write(model, updated)
        yield model


@contextmanager
def _asked_behind(model: EditableModel, edit: PromptContext) -> Iterator[None]:
    """Prompts follow the edit's text, which follows the context that is already installed."""
    _require_base(model, edit)
    before = model.context
    try:
        model.context = before + edit.text
        yield
    finally:
        model.context = before


@contextmanager
def restored(model: EditableModel, layers: Iterable[int]) -> Iterator[None]:
    """Restore every bit of these layers' weights at the end of the block, whatever it wrote to them."""
    before = {layer: read_weight(model, layer).clone() for layer in layers}
    try:
        yield
    finally:
        _write(model, before)


def commit(model: EditableModel, edit: Edit, *, made_here: bool = False) -> None:
    """Add the edit to the model's weights permanently.

    Args:
        model: model that the edit was made for.
        edit: an edit of weights.
        made_here: skip the fingerprint check, for an edit that was just made for these very weights.

    Raises:
        NonFiniteError: if a delta, or the resulting weight, holds NaN or infinity.
        ShapeError: if a delta has another shape than the weight.
        ModelError: if the edit was made for a model with other weights, or changes no weight.
    """
    if isinstance(edit, PromptContext):
        raise ModelError(
            "this edit is a text before the prompts, which no weight can keep; use it with installed(model, "
            "edit), or commit an edit of weights"
        )
    if isinstance(edit, Wrap):
        raise ModelError(
            f"this edit is {edit.what}, which no weight can keep; use it with installed(model, edit), or "
            "commit an edit of weights"
        )
    _write(model, _updated_weights(model, edit, checked=made_here))


def _require_base(model: EditableModel, edit: Edit) -> None:
    if edit.base and edit.base != fingerprint(model):
        raise ModelError(
            f"the edit was made for a model with other weights than {model.name} has now "
            f"(fingerprint {edit.base[:12]}), or for another context; make the edit again on this model, or "
            "apply edits in the order they were made"
        )


def _updated_weights(model: EditableModel, edit: WeightDelta, *, checked: bool = False) -> dict[int, Tensor]:
    if not checked:
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
