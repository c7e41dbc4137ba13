"""Uncentred covariance of the features that enter each linear layer, as Adam-NSCL accumulates it over tasks.

A linear layer's features are its inputs, a convolution's the patches that its kernel meets. Both are columns
here, as keys are: W (out, d) maps features (d, n) to outputs, and the uncentred covariance is their second
moment. So a layer of a network and an edited weight of a language model have the same C, and the same
projectors (`palimpsest.algebra.projector`).
"""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from palimpsest.continual.network import linear_layers
from palimpsest.memory.moments import SecondMoment


def feature_columns(layer: nn.Module, inputs: Tensor) -> Float[Tensor, "d n"]:
    """Features of a layer as columns: inputs of a linear map, unfolded patches of a convolution.

    Args:
        layer: a linear or convolutional layer from `linear_layers`.
        inputs: what the layer receives, (n, d) or (n, channels, h, w).
    """
    if not isinstance(layer, nn.Conv2d):
        return inputs.reshape(-1, inputs.shape[-1]).T
    patches = functional.unfold(
        inputs,
        layer.kernel_size,
        dilation=layer.dilation,
        padding=layer.padding,  # type: ignore[arg-type]
        stride=layer.stride,
    )  # (n, d, positions)
    return patches.transpose(0, 1).flatten(1)


@torch.no_grad()
def feature_moments(
    body: nn.Module, batches: Sequence[Tensor], batch_means: bool = False
) -> dict[str, SecondMoment]:
    """Second moment of the features of every linear layer, over batches of inputs.

    Args:
        body: the network without its heads.
        batches: inputs, one tensor for each forward pass.
        batch_means: use the mean of each batch as its only input to a layer, as the released code does; the
            covariance then protects these means alone. The paper takes every input (Eq. 5).

    Returns:
        Name of the layer -> sum and count; the moments of a further task are merged into it.

    Raises:
        ModelError: as `linear_layers`.
        NonFiniteError: if a feature is not finite.

    Source: Adam-NSCL, Eq. 5 and Algorithm 2.
    """
    layers = linear_layers(body)
    moments: dict[str, SecondMoment] = {}

    def add(layer: nn.Module, inputs: tuple[Tensor, ...], name: str) -> None:
        given = inputs[0].mean(0, keepdim=True) if batch_means else inputs[0]
        columns = feature_columns(layer, given)
        moments.setdefault(name, SecondMoment.empty(len(columns))).add_keys(columns)

    hooks = [layer.register_forward_pre_hook(partial(add, name=name)) for name, layer in layers.items()]
    try:
        for batch in batches:
            body(batch)
    finally:
        for hook in hooks:
            hook.remove()
    return moments


def merged(
    before: Mapping[str, SecondMoment], further: Mapping[str, SecondMoment]
) -> dict[str, SecondMoment]:
    """Moments over the features of both, layer by layer; the first may be empty."""
    return {
        name: before[name].merge(moment) if name in before else moment for name, moment in further.items()
    }
