"""Settings of how values are optimised and how context prefixes are sampled. Every field is checked."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass


@dataclass(frozen=True, config={"extra": "forbid"})
class TargetSettings:
    """How values are optimised. Defaults are MEMIT's for GPT2-XL.

    Attributes:
        steps: forward passes; the last one only evaluates, so there are ``steps − 1`` updates.
        lr: Adam's learning rate.
        clamp: ‖δ‖ is kept within this many times the norm of the unedited state.
        decay: weight of ‖δ‖/‖h₀‖² (norm over squared norm, as released), unit of h.
        kl: weight of the KL divergence from the unedited next-token distribution.
        stop_below: a request whose loss falls below this is done.
        reference: the unedited state h₀ that clamp and decay refer to and that δ is added to: the layer's
            output ``hidden`` (MEMIT, AlphaEdit) or the edited map's output ``value`` (ROME). Both act alike
            on the layers above, because the layer adds its MLP output to the stream.
        loss_layer: read the loss from this layer's output instead of the last one's; None for the last.
    """

    steps: int = Field(default=20, ge=1)
    lr: float = Field(default=0.5, gt=0)
    clamp: float = Field(default=0.75, gt=0)
    decay: float = Field(default=0.5, ge=0)
    kl: float = Field(default=0.0625, ge=0)
    stop_below: float = Field(default=0.05, ge=0)
    reference: Literal["hidden", "value"] = "hidden"
    loss_layer: int | None = None


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class PreservingTargets(TargetSettings):
    """Values optimised with a preservation loss beside the others: L_total = L_edit + β L_kp + decay.

        L_kp = Σ over protected texts of ‖P x‖²       P: projector on one direction of the edit

    x is the activation at a text's last token. The paper takes P on the input side of the edited map, and the
    vector that its optimisation moves is on the output side; both readings are here. Settings without
    protection are `TargetSettings` and stay as they are, in results and in keys of caches.

    Attributes:
        protected: texts, for example names of entities that nothing is edited about.
        beta: β.
        direction: ``delta``, P on δ, and ``value``, P on h₀ + δ: x is the state that δ moves, and L_kp pulls
            at δ. ``key``, P on the fact's key, with x a key, as Eq. 1 has it: L_kp is then the same at every
            δ, so that it cannot pull at it and only adds to the loss that is compared with ``stop_below``.

    Source: Diagnosing Hidden Instabilities, Eq. 1 and 2.
    """

    protected: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1)
    beta: float = Field(default=0.0, ge=0)
    direction: Literal["delta", "value", "key"] = "delta"


@dataclass(frozen=True, config={"extra": "forbid"})
class ContextSettings:
    """Sampled context prefixes.

    Attributes:
        count: sampled prefixes beside the empty one.
        length: tokens of each.
        seed: of their generator.
    """

    count: int = Field(default=5, ge=0)
    length: int = Field(default=10, ge=2)
    seed: int = 0
