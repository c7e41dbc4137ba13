"""Outputs of whole layers, MLPs and attention: read in a pass, and put back into another one.

    state      output of a whole decoder layer, where an edit's value is read (d_v wide)
    mlp        what the MLP adds to it: the output of the edited weight
    attention  what attention adds to it

All three are d_v wide. A family names its layers and its edited weight; attention is found by its name.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from threading import get_ident
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from palimpsest.errors import ModelError, UnknownNameError
from palimpsest.network.activations import first_tensor
from palimpsest.network.model import EditableModel

KINDS = ("state", "mlp", "attention")
"""Outputs that can be read and put back."""

Place = tuple[str, int]
"""Kind and layer."""


def module_of(model: EditableModel, kind: str, layer: int) -> nn.Module:
    """The module whose output is meant by a kind at a layer.

    Raises:
        UnknownNameError: if the kind is none of KINDS.
        SiteError: if there is no such layer.
        ModelError: if attention cannot be told from the layer's other modules.
    """
    if kind not in KINDS:
        raise UnknownNameError("kind of state", kind, list(KINDS))
    if kind == "state":
        return model.layer(layer)
    if kind == "mlp":
        return model.projection(layer)
    inner = dict(model.layer(layer).named_children())
    found = [name for name, module in inner.items() if _is_attention(name, module)]
    if len(found) != 1:
        raise ModelError(
            f"layer {layer} of {model.name} has {len(found)} modules that may be its attention, among "
            f"{', '.join(inner)}; trace the kinds state and mlp alone"
        )
    return inner[found[0]]


def _is_attention(name: str, module: nn.Module) -> bool:
    named = f"{name} {type(module).__name__}".lower()
    return ("attn" in named or "attention" in named) and not ("norm" in named or "dropout" in named)


@contextmanager
def _shapes(model: EditableModel, layers: Iterable[int]) -> Iterator[dict[int, tuple[int, int]]]:
    """Rows and tokens (b, t) of the present pass of this thread by layer: OPT's maps see (b·t, d_v)."""
    found: dict[int, tuple[int, int]] = {}
    thread = get_ident()

    def noted(layer: int) -> Any:
        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if get_ident() == thread:
                hidden = args[0] if args else kwargs["hidden_states"]
                found[layer] = (hidden.shape[0], hidden.shape[1])

        return before

    with ExitStack() as stack:
        for layer in layers:
            handle = model.layer(layer).register_forward_pre_hook(noted(layer), with_kwargs=True)
            stack.callback(handle.remove)
        yield found


@contextmanager
def recorded(model: EditableModel, kinds: Sequence[str]) -> Iterator[dict[Place, Tensor]]:
    """Outputs (b, t, d_v) of the last pass of this thread in the block, by kind and layer."""
    found: dict[Place, Tensor] = {}
    thread = get_ident()

    def reader(place: Place) -> Any:
        def after(_: nn.Module, __: Any, output: Any) -> None:
            if get_ident() == thread:
                found[place] = first_tensor(output).detach().reshape(*shapes[place[1]], -1)

        return after

    with ExitStack() as stack:
        shapes = stack.enter_context(_shapes(model, range(model.n_layers)))
        for kind in kinds:
            for layer in range(model.n_layers):
                handle = module_of(model, kind, layer).register_forward_hook(reader((kind, layer)))
                stack.callback(handle.remove)
        yield found


@contextmanager
def put_back(
    model: EditableModel,
    kind: str,
    states: Mapping[int, Float[Tensor, "n d_v"]],
    positions: Int[Tensor, " n"],
) -> Iterator[None]:
    """In passes of this thread in the block, n positions of every row get given outputs at some layers.

    Args:
        model: the model.
        kind: one of KINDS.
        states: layer -> outputs of another pass.
        positions: where they take the place of a row's own.
    """
    thread = get_ident()

    def replacer(layer: int, own: Tensor) -> Any:
        def after(_: nn.Module, __: Any, output: Any) -> Any:
            if get_ident() != thread:
                return None
            changed = first_tensor(output).clone(memory_format=torch.contiguous_format)
            changed.view(*shapes[layer], -1)[:, positions] = own  # (b, t, d_v)
            return (changed, *output[1:]) if isinstance(output, tuple) else changed

        return after

    with ExitStack() as stack:
        shapes = stack.enter_context(_shapes(model, states))
        for layer, own in states.items():
            handle = module_of(model, kind, layer).register_forward_hook(replacer(layer, own))
            stack.callback(handle.remove)
        yield
