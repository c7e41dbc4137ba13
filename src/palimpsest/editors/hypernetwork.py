"""A network that turns the gradient of a fact into an update of a weight (Mitchell et al., ICLR 2022).

The gradient of a fact's loss in a weight (d_v, d_k) is Σ δ uᵀ over tokens: u what the map receives, δ the
gradient in what it returns. The two, joined and normalised to z (d_k + d_v,), go through two residual layers

    h = z + max(0, s₁ ∘ (U₁ V₁ z + b₁) + o₁)        (ũ, δ̃) = h + s₂ ∘ (U₂ V₂ h + b₂) + o₂

and the update is Δ = −η Σ δ̃ ũᵀ. U and V are shared by all edited layers; s, o and η are a layer's own. With
U, b and o zero, as they begin, Δ is a gradient step on normalised factors.

Sources: MEND, Eq. 2 and 3; as in the released code the second layer is linear, and tokens with no gradient
are left out.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from palimpsest import cache
from palimpsest.editors.trained_files import REMAKE, opened, write
from palimpsest.editors.ultraedit import SMALLEST, Running
from palimpsest.errors import ModelError, ResourceError

FORMAT, WHAT = "palimpsest hypernetwork 1", "hypernetwork"


class Hypernetwork(nn.Module):
    """The transforms of the gradients of all edited layers.

    Args:
        layers: edited layers, ascending.
        width: (d_v, d_k) of their weights, which have one shape.
        rank: of U V; cut to d_k + d_v.
        rate: η at first, of all layers.
        seed: of V, whose entries are normal with variance 1/(d_k + d_v).

    Attributes:
        about: where it comes from; JSON-able.
    """

    def __init__(
        self, layers: Sequence[int], width: tuple[int, int], rank: int, rate: float = 1e-4, seed: int = 0
    ) -> None:
        super().__init__()
        self.layers, self.width = tuple(layers), width
        self.about: dict[str, Any] = {}
        size = sum(width)
        rank, generator = min(rank, size), torch.Generator().manual_seed(seed)
        self.left = nn.Parameter(torch.zeros(2, size, rank))
        self.right = nn.Parameter(torch.randn(2, rank, size, generator=generator) / size**0.5)
        self.bias = nn.Parameter(torch.zeros(2, size))
        self.scale = nn.Parameter(torch.ones(2, len(layers), size))
        self.shift = nn.Parameter(torch.zeros(2, len(layers), size))
        self.log_rate = nn.Parameter(torch.full((len(layers),), rate).log())
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("deviation", torch.ones(size))

    @property
    def rank(self) -> int:
        """Rank of U V."""
        return self.left.shape[2]

    def normalise_by(self, seen: Running) -> None:
        """Take the mean and deviation of u and δ together, over tokens of all layers."""
        if seen.mean is None or seen.spread is None:
            return
        self.mean = seen.mean.to(self.left)
        self.deviation = ((seen.spread / max(seen.count - 1, 1)).sqrt() + SMALLEST).to(self.left)

    def update(
        self, layer: int, inputs: Float[Tensor, "n d_k"], gradients: Float[Tensor, "n d_v"]
    ) -> Float[Tensor, "d_v d_k"]:
        """Δ of one layer from u and δ at n tokens, in the parameters' dtype; differentiable in them."""
        at = self.layers.index(layer)
        keep = (gradients != 0).any(1) & (inputs != 0).any(1)
        z = (torch.cat([inputs, gradients], 1)[keep].to(self.left) - self.mean) / self.deviation
        h = z + self._residual(0, at, z).clamp(min=0)  # its slope at 0 is 1, so that U is trained from there
        turned = h + self._residual(1, at, h)
        keys, slopes = turned.split([inputs.shape[1], gradients.shape[1]], 1)
        return -self.log_rate[at].exp() * slopes.T @ keys

    def _residual(self, step: int, at: int, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        inner = rows @ self.right[step].T @ self.left[step].T + self.bias[step]
        return self.scale[step, at] * inner + self.shift[step, at]

    def save(self, path: Path, base: str) -> None:
        """Write the parameters and ``about`` to a safetensors file.

        Args:
            path: replaced at once, by a whole file or not at all.
            base: fingerprint of the model whose gradients it was trained on.

        Raises:
            ResourceError: if the file cannot be written.
        """
        head = {
            "format": FORMAT,
            "base": base,
            "layers": json.dumps(self.layers),
            "width": json.dumps(self.width),
            "about": json.dumps(self.about, sort_keys=True),
        }
        write(path, self.state_dict(), head)


def base_of(path: Path) -> str:
    """Fingerprint of the model for which a file's hypernetwork was trained.

    Raises:
        ResourceError: if the file is no hypernetwork or cannot be read.
    """
    return opened(path, FORMAT, WHAT)[0]["base"]


def read(path: Path) -> Hypernetwork:
    """The hypernetwork of a file.

    Raises:
        ResourceError: if the file is no hypernetwork, is damaged or cannot be read.
    """
    head, tensors = opened(path, FORMAT, WHAT)
    try:
        layers, width = json.loads(head["layers"]), json.loads(head["width"])
        net = Hypernetwork(layers, (width[0], width[1]), tensors["left"].shape[2])
        net.load_state_dict(tensors)
        net.about = json.loads(head["about"])
    except cache.UNREADABLE as error:
        raise ResourceError(f"{path}: a damaged hypernetwork ({error}); {REMAKE}") from error
    return net


def require_shape(net: Hypernetwork, layers: Sequence[int], width: tuple[int, int]) -> None:
    """Check that a hypernetwork is for these layers and weights.

    Raises:
        ModelError: otherwise.
    """
    if net.layers != tuple(layers) or net.width != width:
        raise ModelError(
            f"the hypernetwork was trained for layers {list(net.layers)} with weights {net.width}, and the "
            f"editor has layers {list(layers)} with weights {width}; give the editor those layers, or train "
            "one for these with `palimpsest train`"
        )
