"""A device that computes on the CPU and refuses what a GPU refuses, to test device handling without one.

Inside ``double()`` tensors made with ``device=DEVICE`` or copied there are wrapped: operations on them run on
the CPU, so that its numbers are those of a run on the CPU bit by bit. Refused are

    operations over tensors of both devices, but for CPU scalars; CPU data indexed by tensors of the device,
    a generator of the CPU for a tensor of the device,
    NumPy's view of a tensor of the device.

Other threads know nothing of it, so that transformers is told to read weights in this one.

It is written against PyTorch's hooks for Python backends, which are private and may change.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn
from unittest.mock import patch

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "standin"
_setup_privateuseone_for_python_backend(NAME)
DEVICE = torch.device(f"{NAME}:0")

_ATEN = torch.ops.aten
_COPIES = (_ATEN._to_copy.default, _ATEN.to.device)
_TAKES_CPU_INDICES = (
    _ATEN.index.Tensor,
    _ATEN.index_put_.default,
    _ATEN.index_put.default,
    _ATEN._unsafe_index.Tensor,
)


class MixedDevicesError(RuntimeError):
    """Two devices in one operation."""


class OnDevice(Tensor):
    """A tensor of the device.

    Attributes:
        held: the CPU tensor that holds its numbers.
    """

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "OnDevice":
        made: OnDevice = Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=DEVICE,
        )
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, function: Any, types: Iterable[type], args: Any = (), kwargs: Any = None
    ) -> Any:
        return _run(function, args, dict(kwargs or {}))

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"OnDevice({self.held})"

    def numpy(self, **_: Any) -> NoReturn:
        raise TypeError("a tensor of the device has no view for NumPy; copy it to the CPU first")

    def __array__(self, *_: Any, **__: Any) -> NoReturn:
        self.numpy()

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    def tolist(self) -> Any:
        return self.held.detach().tolist()


class Double(TorchDispatchMode):
    """Inside, what is made on the device or copied to it is a tensor of the double."""

    def __torch_dispatch__(
        self, function: Any, types: Sequence[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(function, args, dict(kwargs or {}))


class _Python(TorchFunctionMode):
    """What PyTorch does before any operation is dispatched."""

    def __torch_function__(
        self, function: Any, types: Sequence[type], args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor) and given.get("device") is not None:
            place = given.pop("device")
            return function(*args, **given).to(place)
        if function in (Tensor.__getitem__, Tensor.__setitem__):
            data, index, *rest = args
            if not isinstance(data, OnDevice) and any(isinstance(i, OnDevice) for i in _leaves(index)):
                raise MixedDevicesError("data on the CPU, indices on the device")
            args = (data, _listed(index) if isinstance(data, OnDevice) else index, *rest)
        return function(*args, **given)


@contextmanager
def double() -> Iterator[torch.device]:
    """The device, with modules whose parameters are replaced when they move, as wrapped ones must be."""
    before = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with patch.dict(os.environ, HF_DEACTIVATE_ASYNC_LOAD="1"), Double(), _Python():
            yield DEVICE
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(before)


def _listed(index: Any) -> Any:
    """An index with tensors for lists, of which PyTorch would make tensors of the device itself."""
    if isinstance(index, tuple):
        return tuple(map(_listed, index))
    if not isinstance(index, list):
        return index
    return torch.tensor(index, dtype=torch.bool if index and isinstance(index[0], bool) else torch.long)


def _leaves(item: Any) -> Iterator[Any]:
    """What lies in nested lists, tuples and mappings; PyTorch's own walk costs more than most operations."""
    if isinstance(item, list | tuple | dict):
        for part in item.values() if isinstance(item, dict) else item:
            yield from _leaves(part)
    else:
        yield item


def _each(function: Callable[[Any], Any], item: Any) -> Any:
    """The same nested lists, tuples and mappings with a function of what lies in them."""
    if isinstance(item, dict):
        return {name: _each(function, part) for name, part in item.items()}
    if isinstance(item, list | tuple):
        parts = [_each(function, part) for part in item]
        return parts if isinstance(item, list) else tuple(parts)
    return function(item)


def _held(item: Any) -> Any:
    return item.held if isinstance(item, OnDevice) else item


def _wrapped(item: Any) -> Any:
    plain = isinstance(item, Tensor) and not isinstance(item, OnDevice)
    return OnDevice(item) if plain else item


def _run(function: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """One operation: checked, computed on the CPU, its result wrapped where it belongs to the device."""
    leaves = [*_leaves(args), *_leaves(kwargs)]
    on = [item for item in leaves if isinstance(item, OnDevice)]
    off = [item for item in leaves if isinstance(item, Tensor) and not isinstance(item, OnDevice)]
    asked = kwargs.get("device")
    wanted = torch.device(asked).type if asked is not None else None
    if function in _COPIES:
        return _copied(function, args, kwargs, wanted)
    if function is _ATEN.copy_.default:
        _held(args[0]).copy_(_held(args[1]))
        return args[0]
    _check(function, args, leaves, on, off, wanted)
    if wanted == NAME:
        kwargs["device"] = torch.device("cpu")
    made = function(*_each(_held, args), **_each(_held, kwargs))
    if wanted == "cpu" or not (on or wanted == NAME):
        return made
    if function._schema.name.endswith("_") and args and isinstance(args[0], OnDevice):  # type: ignore[attr-defined]
        return args[0]
    return _each(_wrapped, made)


def _copied(function: Any, args: Sequence[Any], kwargs: dict[str, Any], wanted: str | None) -> Tensor:
    source, *others = args
    rest = {name: value for name, value in kwargs.items() if name not in ("device", "pin_memory")}
    made: Tensor = function(_held(source), *map(_held, others), **rest)
    if wanted == NAME or (wanted is None and isinstance(source, OnDevice)):
        return OnDevice(made)
    return made.detach().clone() if isinstance(source, OnDevice) else made


def _check(
    function: Any,
    args: Sequence[Any],
    leaves: Sequence[Any],
    on: Sequence[OnDevice],
    off: Sequence[Tensor],
    wanted: str | None,
) -> None:
    """Whether a GPU would do it.

    Raises:
        MixedDevicesError: if tensors of both devices meet.
        RuntimeError: if a generator of the CPU is given for a tensor of the device.
    """
    generators = [item for item in leaves if isinstance(item, torch.Generator)]
    if any(one.device.type == "cpu" for one in generators) and (on or wanted == NAME):
        raise RuntimeError(f"{function}: a generator of the device is needed, got one of the CPU")
    if not (on and off):
        return
    if function in _TAKES_CPU_INDICES:
        if not isinstance(args[0], OnDevice):
            raise MixedDevicesError(f"{function}: data on the CPU, indices on the device")
    elif any(item.ndim for item in off):
        shapes = [[tuple(item.shape) for item in some] for some in (on, off)]
        raise MixedDevicesError(f"{function}: {shapes[0]} on the device, {shapes[1]} on the CPU")
