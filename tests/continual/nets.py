"""A tiny network of layers that have null spaces, and images that leave them one."""

import torch
from torch import Tensor, nn

from tests.problems import gaussian


def deep(seed: int = 0) -> nn.Sequential:
    """Convolution, strided convolution and two linear maps, all wider than a few images have patches."""
    body = nn.Sequential(
        nn.Conv2d(4, 6, 3, padding=1, bias=False, dtype=torch.float64),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, stride=2, bias=False, dtype=torch.float64),
        nn.Tanh(),
        nn.Flatten(),
        nn.Linear(8, 12, bias=False, dtype=torch.float64),
        nn.ReLU(),
        nn.Linear(12, 5, bias=False, dtype=torch.float64),
    )
    for number, weight in enumerate(body.parameters()):
        weight.data = gaussian(1000 * seed + number, *weight.shape) / weight[0].numel() ** 0.5
    return body


def few_images(seed: int, n: int = 1) -> Tensor:
    """Images (n, 4, 4, 4) whose 16 patches leave a null space of 36 dimensions."""
    return gaussian(seed + 77, n, 4, 4, 4)
