"""A small convolutional network with one head for each task, and its layers that the null space covers."""

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor, nn

from palimpsest.errors import ModelError


class ConvNet(nn.Module):
    """Two convolutions and a linear map without biases, shared by all tasks, and a linear head for each task.

    As in Adam-NSCL every shared layer is linear in its features, and each task has its own classifier, which
    later tasks do not train. That network is a ResNet-18; its biases are those of batch normalisation, which
    the null space does not cover. Here there are none.

    Args:
        tasks: number of heads.
        classes: outputs of each head.
        channels: channels of the two convolutions, of 3 × 3 pixels each.
        width: outputs of the linear map.
        seed: of the initial weights, uniform with variance 2/inputs (He et al., 2015).
        dtype: of the weights.
        side: pixels of an image's side, a multiple of four.

    Attributes:
        body: the shared layers.
        heads: one classifier for each task.
    """

    def __init__(
        self,
        tasks: int,
        classes: int,
        channels: tuple[int, int] = (16, 32),
        width: int = 64,
        seed: int = 0,
        dtype: torch.dtype = torch.float64,
        side: int = 8,
    ) -> None:
        super().__init__()
        first, second = channels
        self.body = nn.Sequential(
            nn.Conv2d(1, first, 3, padding=1, bias=False, dtype=dtype),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Conv2d(first, second, 3, padding=1, bias=False, dtype=dtype),
            nn.ReLU(),
            nn.MaxPool2d(2),
            nn.Flatten(),
            nn.Linear(second * (side // 4) ** 2, width, bias=False, dtype=dtype),
            nn.ReLU(),
        )
        self.heads = nn.ModuleList(nn.Linear(width, classes, dtype=dtype) for _ in range(tasks))
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            if parameter.ndim == 1:
                nn.init.zeros_(parameter)
            else:
                nn.init.kaiming_uniform_(parameter, nonlinearity="relu", generator=generator)

    def forward(self, images: Float[Tensor, "n 1 h w"]) -> Float[Tensor, "n tasks classes"]:
        """Logits of every head."""
        features = self.body(images)  # (n, width)
        return torch.stack([head(features) for head in self.heads], 1)


def linear_layers(body: nn.Module) -> Mapping[str, nn.Linear | nn.Conv2d]:
    """Layers of a network that are linear in their features, by name: convolutions and linear maps.

    Raises:
        ModelError: if there is none, or one has a bias, groups, padding other than zeros, or a padding that
            is not given in numbers, which an update in the null space of its features would not cover.
    """
    found = {name: layer for name, layer in body.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)}
    if not found:
        raise ModelError("the network has no linear or convolutional layer to project; give one that has")
    for name, layer in found.items():
        convolution = isinstance(layer, nn.Conv2d)
        if layer.bias is not None:
            raise ModelError(f"layer {name!r} has a bias, which its features do not cover; build it without")
        if convolution and (layer.groups != 1 or layer.padding_mode != "zeros"):
            raise ModelError(
                f"layer {name!r} has {layer.groups} groups and padding {layer.padding_mode!r}; patches are "
                "unfolded for one group and zero padding"
            )
        if convolution and isinstance(layer.padding, str):
            raise ModelError(
                f"layer {name!r} has padding {layer.padding!r}, and patches are unfolded with a width in "
                "numbers; build it with the same padding as numbers, (k - 1) / 2 for a kernel of k"
            )
    return found
