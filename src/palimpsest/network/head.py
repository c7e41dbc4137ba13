"""From last hidden states to logits, in every family: final norm, map before the head, head, cap."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from palimpsest.network.model import EditableModel


def final_states(model: EditableModel, hidden: Float[Tensor, "*n d_v"]) -> Float[Tensor, "*n d"]:
    """What the head reads: outputs of the last layer behind the final norm and the map before the head.

    A network gives the same as its ``last_hidden_state``.
    """
    for name in (model.family.norm, model.family.out):
        part = _held(model.net, name)
        hidden = hidden if part is None else part(hidden)
    return hidden


def logits_of(model: EditableModel, states: Float[Tensor, "*n d"]) -> Float[Tensor, "*n vocabulary"]:
    """Logits of final states, capped where the architecture caps them.

    Args:
        model: the model.
        states: as `final_states`, or the ``last_hidden_state`` of the network's body.
    """
    found = model.net.get_submodule(model.family.head)(states)
    cap = getattr(model.config, model.family.cap) if model.family.cap else None
    return found if cap is None else cap * torch.tanh(found / cap)


def _held(net: Any, name: str | None) -> Any:
    """A module by name; None where the network has None in its place."""
    holder, _, last = (name or "").rpartition(".")
    return getattr(net.get_submodule(holder), last, None) if name else None
