"""Whole-model forward passes with a hook that reads one module, as the other twins use them."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from palimpsest.network.model import EditableModel


def first(output: Any) -> Tensor:
    """The states in a module's output, which is a tensor or a tuple that begins with it."""
    return output[0] if isinstance(output, tuple) else output


def layer_of(model: EditableModel, index: int) -> nn.Module:
    """Decoder layer by index."""
    return model.net.get_submodule(f"{model.family.layers}.{index}")


def edited_map(model: EditableModel, index: int) -> nn.Module:
    """Module whose weight is edited in a layer; its input is the key."""
    return layer_of(model, index).get_submodule(model.family.value_projection)


def keys_at(model: EditableModel, ids: Sequence[int], layer: int) -> Tensor:
    """Keys of a layer at every position of one text (t, d_k), from one forward pass of the whole model."""
    return _read(
        model, ids, lambda read: edited_map(model, layer).register_forward_pre_hook(lambda _, x: read(x[0]))
    )


def hidden_at(model: EditableModel, ids: Sequence[int], layer: int) -> Tensor:
    """Output of a layer at every position of one text (t, d_v), from one forward pass of the whole model."""
    return _read(
        model,
        ids,
        lambda read: layer_of(model, layer).register_forward_hook(lambda _, __, out: read(first(out))),
    )


def _read(
    model: EditableModel, ids: Sequence[int], attach: Callable[[Callable[[Tensor], None]], Any]
) -> Tensor:
    seen: list[Tensor] = []
    handle = attach(seen.append)
    try:
        with torch.no_grad():
            model.net(input_ids=torch.tensor([list(ids)]))
    finally:
        handle.remove()
    return seen[0][0]
