"""What decoder layers take besides hidden states, by type of layer: attention masks and rotary embeddings.

In some architectures all layers attend to a window of positions (Mistral, Phi-3), in others every second one
or five of six (Gemma 2 and 3), and the types may have rotary embeddings of their own (Gemma 3).
"""

from collections.abc import Iterable
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from palimpsest.network.model import EditableModel
from palimpsest.network.packed import added_mask

SLIDING = "sliding_attention"
"""The type of a layer with a window, in ``layer_types`` of a configuration."""


def type_of(model: EditableModel, layer: int) -> str:
    """Type of a layer; empty where the configuration names no types, so that all layers are alike."""
    types = getattr(model.config, "layer_types", None)
    return str(types[layer]) if types else ""


def window_of(model: EditableModel, kind: str) -> int | None:
    """Positions that layers of a type attend to, their own included; None for all."""
    window = getattr(model.config, "sliding_window", None)
    return window if kind in (SLIDING, "") else None


def windowed(mask: Float[Tensor, "b 1 q s"], window: int | None) -> Float[Tensor, "b 1 q s"]:
    """A mask added to attention, narrowed to the last ``window`` positions of those it allows.

    The keys that a position sees are the tokens of its row up to itself, in the order of the row. The number
    of keys seen from one on is therefore its distance, wherever in its line it lies.
    """
    if window is None:
        return mask
    seen = mask == 0
    distance = seen.flip(-1).cumsum(-1).flip(-1)  # 1 for the position itself
    return mask.masked_fill(seen & (distance > window), torch.finfo(mask.dtype).min)


def mask_of_body(model: EditableModel, mask: Float[Tensor, "b 1 t s"]) -> Any:
    """What the body of a network takes for a mask of lines: the mask, or one for each type of layer."""
    kinds = {type_of(model, layer) for layer in range(model.n_layers)}
    masks = {kind: windowed(mask, window_of(model, kind)) for kind in kinds}
    return masks if SLIDING in masks else next(iter(masks.values()))


def mask_of_padded(model: EditableModel, mask: Bool[Tensor, "b s"], new: int) -> Any:
    """What a network takes for the mask of padded rows, of which the last ``new`` columns are read now.

    Without windows it is 1 at real tokens. A window is counted in tokens of a row: transformers counts
    columns instead, which differ where padding lies between a shared prefix and the rest of a row.
    """
    kinds = {type_of(model, layer) for layer in range(model.n_layers)}
    if all(window_of(model, kind) is None for kind in kinds):
        return mask.long()
    before = mask.shape[1] - new
    columns = torch.arange(mask.shape[1], device=mask.device)
    at = columns[before:, None]  # (new, 1); a place of padding sees itself
    allowed = (mask[:, None] & (columns <= at)) | (columns == at)  # (b, new, s)
    return mask_of_body(model, added_mask(allowed, next(model.net.parameters()).dtype))


def taken_by(
    model: EditableModel,
    layers: Iterable[int],
    hidden: Float[Tensor, "b t d_v"],
    positions: Int[Tensor, "b t"],
    mask: Float[Tensor, "b 1 t s"],
) -> dict[int, dict[str, Any]]:
    """Arguments of each layer: attention mask and, where the family has them, rotary embeddings.

    Args:
        model: the model.
        layers: indices.
        hidden: input of the first, whose dtype and device the embeddings have.
        positions: of the tokens in their rows.
        mask: added to attention in layers without a window.
    """
    family = model.family
    kinds = {layer: type_of(model, layer) for layer in layers}
    found: dict[str, dict[str, Any]] = {}
    for kind in dict.fromkeys(kinds.values()):
        found[kind] = {"attention_mask": windowed(mask, window_of(model, kind))}
        if family.rotary is not None:
            own = (kind,) if family.rotary_by_type else ()
            rotary = model.net.get_submodule(family.rotary)
            found[kind]["position_embeddings"] = rotary(hidden, positions, *own)
    return {layer: found[kind] for layer, kind in kinds.items()}
