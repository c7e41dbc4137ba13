"""Devices by name, checked before anything is loaded to them."""

import torch

from palimpsest.errors import ModelError


def device(name: str | torch.device) -> torch.device:
    """The device of a name, such as ``cpu``, ``cuda`` or ``cuda:1``.

    Raises:
        ModelError: if there is no such device here, or it holds no data.
    """
    try:
        found = torch.device(name)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, ValueError, NotImplementedError, ImportError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(f"device {str(name)!r} cannot be used here: {reason}. {_choices()}") from error
    if found.type == "meta":
        raise ModelError(f"device 'meta' holds no numbers, so nothing can be computed on it. {_choices()}")
    return found


def _choices() -> str:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    names = ["cpu", *(f"cuda:{number}" for number in range(count))]
    return f"Choose one of: {', '.join(names)}"
