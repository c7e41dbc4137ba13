"""Changes behind the norm that some layers have after their edited map, and the changes of the map's output.

In Gemma 2 and 3 and OLMo 2 the output of the MLP passes a norm before it is added to the residual stream, and
in OPT-350M a norm follows the sum. A vector added to the map's output then does not arrive unchanged in the
layer's output, and not every change of the layer's output can be made: a norm gives an ellipsoid of states.
Where a residual is wanted at the layer's output, the map is asked for the output whose normed state is the
nearest to it.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from palimpsest.algebra.ellipsoid import nearest_direction
from palimpsest.network.model import EditableModel


def passed(
    norm: nn.Module, inside: Float[Tensor, "n d_v"], step: Float[Tensor, "n d_v"]
) -> Float[Tensor, "n d_v"]:
    """Change of a norm's output where its input ``inside`` changes by ``step``."""
    return norm(inside + step) - norm(inside)


def asked_of_map(
    model: EditableModel,
    layer: int,
    inside: Float[Tensor, "d_v n"] | None,
    change: Float[Tensor, "d_v n"],
) -> Float[Tensor, "d_v n"]:
    """Change of the edited map's output for a wanted change of the layer's output; the same without a norm.

    With a norm N the nearest N(x′) to N(x) + change is asked for, with x′ as long as x, because N does not
    depend on length.

    Args:
        model: the model.
        layer: the edited layer.
        inside: input x of the norm at each fact; None where the layer has no norm behind the map.
        change: wanted of the layer's output, for each fact.
    """
    norm = model.norm_behind(layer)
    if norm is None or inside is None:
        return change
    x = inside.T.double()  # (n, d_v)
    centre, scale, centred = _probed(norm, x.shape[1], inside)
    own = norm(inside.T).double() - centre
    base = x - x.mean(1, keepdim=True) if centred else x
    length = base.square().mean(1, keepdim=True).sqrt()
    # ε in the norm makes short inputs a little shorter: own = c·scale ⊙ x/length with c below 1.
    image = scale * base / length
    shrunk = (own * image).sum(1, keepdim=True) / image.square().sum(1, keepdim=True)
    wanted = nearest_direction(shrunk * scale, own + change.T.double(), centred)
    return (length * wanted - base).T.to(change.dtype)


def _probed(norm: nn.Module, width: int, like: Tensor) -> tuple[Tensor, Tensor, bool]:
    """Centre b and scale a of a norm b + a ⊙ x/‖x‖·√d, and whether it subtracts the mean, by trying it."""
    signs = torch.ones(width, dtype=like.dtype, device=like.device)
    signs[1::2] = -1
    trial = torch.stack([torch.zeros_like(signs), torch.ones_like(signs), signs])
    with torch.no_grad():
        zero, ones, turned = norm(trial).double()
    scale = (turned - zero) * signs
    return zero, scale, bool((ones - zero).norm() < 0.5 * scale.norm())
