"""Check of input tensors, shared by all solvers: shape, and no NaN or infinity."""

import torch
from torch import Tensor

from palimpsest.errors import NonFiniteError, ShapeError


def expect(name: str, tensor: Tensor, shape: tuple[int | str, ...], outcome: str) -> None:
    """Check a tensor's shape and that it is finite.

    Args:
        name: name of the tensor, for the message.
        tensor: tensor to check.
        shape: expected size of each axis; a string stands for any size and names the axis in the message.
        outcome: consequence of a failure, for the message, for example ``nothing was solved``.

    Raises:
        ShapeError: if the shape differs.
        NonFiniteError: if the tensor holds NaN or infinity.
    """
    fits = tensor.ndim == len(shape) and all(
        isinstance(want, str) or have == want for have, want in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        wanted = ", ".join(map(str, shape)) + ("," if len(shape) == 1 else "")
        raise ShapeError(f"{name} must have shape ({wanted}), got {tuple(tensor.shape)}; {outcome}")
    if not torch.isfinite(tensor).all():
        raise NonFiniteError(f"{name} holds NaN or infinity; {outcome}")
