"""A model whose layers lie on several devices: each block computes where its weights lie.

Hidden states are handed to a block's device and come back to the model's own, that of its first weights, so
that nothing else has to know where a layer lies. `palimpsest.network.model.read_weight` and sites read by
`palimpsest.network.activations` are on the model's own device too.
"""

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import torch
from accelerate.hooks import AlignDevicesHook, add_hook_to_module, remove_hook_from_submodules
from torch import Tensor, nn

from palimpsest.errors import ModelError
from palimpsest.network.device import device as usable
from palimpsest.network.families import Family

Place = torch.device | str | dict[str, str]


def placed(device: str | torch.device | Mapping[str, str]) -> Place:
    """Where a model is to be loaded: a device, or a device map of transformers.

    Args:
        device: a device; ``auto``, which is all GPUs where there are several; or part of the network ->
            device.

    Raises:
        ModelError: if there is no such device, or the map is empty.
    """
    if isinstance(device, Mapping):
        places = {part: usable(place) for part, place in device.items()}
        if not places:
            raise ModelError(
                "the device map is empty; name a part of the network and its device, or a device"
            )
        one, *others = {*places.values()}
        return {part: str(place) for part, place in places.items()} if others else one
    if device != "auto":
        return usable(device)
    if torch.accelerator.device_count() > 1:
        return "auto"
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def one_of(device: str | torch.device) -> torch.device:
    """The device for what is not spread: the one of that name, or for ``auto`` the first that it takes.

    Raises:
        ModelError: if there is no such device.
    """
    place = placed(device)
    if isinstance(place, torch.device):
        return place
    return torch.accelerator.current_accelerator() or torch.device("cpu")


def connected(net: Any, family: Family, name: str) -> Any:
    """A network whose blocks take their inputs from, and give their outputs to, the network's own device.

    Args:
        net: the network, with its weights where they are to stay; it is changed.
        family: its row of FAMILIES.
        name: of the model, for messages.

    Raises:
        ModelError: if a block lies on more than one device, or weights are left on disk or in host memory
            until they are used, so that they cannot be edited.
    """
    own = next(net.parameters()).device
    places = {part: {tensor.device for tensor in _tensors(module)} for part, module in blocks(net, family)}
    left = sorted(part for part, found in places.items() if any(place.type == "meta" for place in found))
    if left:
        raise ModelError(
            f"{name} does not fit into the devices' memory: {len(left)} of its parts, the first of them "
            f"{left[0]}, are not loaded. Give more devices, or a narrower dtype"
        )
    split = sorted(part for part, found in places.items() if len(found) > 1)
    if split:
        raise ModelError(
            f"{split[0]} of {name} lies on {' and '.join(sorted(map(str, places[split[0]])))}; a device map "
            "must keep each layer whole"
        )
    remove_hook_from_submodules(net)
    for part, (place,) in places.items():
        if place != own:
            for module in (net.get_submodule(part), *_called_alone(net.get_submodule(part), family)):
                hook = AlignDevicesHook(place, io_same_device=True, skip_keys=[family.past])
                add_hook_to_module(module, hook)
    return net


def blocks(net: Any, family: Family) -> Iterator[tuple[str, nn.Module]]:
    """The parts of a network that are called one after the other, by name: its layers, and what is beside."""
    names = family.layers.split(".")
    around = {".".join(names[:length]) for length in range(len(names) + 1)}  # all that holds the layers
    for name, module in net.named_modules():
        if name not in around and name.rpartition(".")[0] in around and any(True for _ in _tensors(module)):
            yield name, module


def _called_alone(layer: nn.Module, family: Family) -> Iterator[nn.Module]:
    """Modules inside a layer that are called without it: the norm behind the edited map."""
    if family.norm_after is not None:
        norm = dict(layer.named_modules()).get(family.norm_after)
        if norm is not None:
            yield norm


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    return chain(module.parameters(), module.buffers())
