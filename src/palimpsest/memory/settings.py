"""Settings of the value optimisation and of the sampled context prefixes. Every field is checked."""

from typing import Annotated, Literal

from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor


@dataclass(frozen=True, config={"extra": "forbid"})
class TargetSettings:
    """Settings of the value optimisation. Defaults are MEMIT's for GPT2-XL.

    Attributes:
        steps: forward passes; the last one only evaluates, so there are ``steps − 1`` updates.
        lr: Adam's learning rate.
        clamp: largest norm of δ, in units of the norm of the unedited state h₀.
        decay: weight of ‖δ‖/‖h₀‖² (norm over squared norm, as released), in the unit of h.
        kl: weight of the KL divergence between the edited next-token distribution p and the unedited p₀.
        kl_over: distribution that the divergence is averaged over: ``edited``, KL(p‖p₀), as released (ROME
            Eq. 4), or ``unedited``, KL(p₀‖p).
        stop_below: a request is finished once its loss falls below this.
        reference: the unedited state h₀ that clamp and decay refer to and that δ is added to: the layer's
            output ``hidden`` (MEMIT, AlphaEdit) or the edited map's output ``value`` (ROME). Both have the
            same effect on the layers above, because the layer adds its MLP output to the residual stream.
        loss_layer: read the loss from this layer's output instead of the last one's; None for the last.
    """

    steps: int = Field(default=20, ge=1)
    lr: float = Field(default=0.5, gt=0)
    clamp: float = Field(default=0.75, gt=0)
    decay: float = Field(default=0.5, ge=0)
    kl: float = Field(default=0.0625, ge=0)
    kl_over: Literal["edited", "unedited"] = "edited"
    stop_below: float = Field(default=0.05, ge=0)
    reference: Literal["hidden", "value"] = "hidden"
    loss_layer: int | None = None

    def longest(self, states: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """Largest ‖δ‖ of each request, from the length of its unedited state ‖h₀‖."""
        return self.clamp * states


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class CappedTargets(TargetSettings):
    """Settings under which ‖δ‖ may not grow with the state: one bound for all requests and all moments.

    A control for norm inflation: with a clamp in units of ‖h₀‖ a state that edits have made longer gives a
    longer δ, which makes states longer; here it does not. Without a cap settings are `TargetSettings`: their
    results and cache keys do not change.

    Attributes:
        cap: largest ‖δ‖, in the unit of h; it replaces ``clamp``. For example the clamp times the mean length
            of the unedited model's states.
    """

    cap: float = Field(gt=0)

    def longest(self, states: Float[Tensor, "*n"]) -> Float[Tensor, "*n"]:
        """The cap, whatever the state."""
        return self.cap + 0 * states


@dataclass(frozen=True, kw_only=True, config={"extra": "forbid"})
class PreservingTargets(TargetSettings):
    """Settings with a preservation loss in addition to the others: L_total = L_edit + β L_kp + decay.

        L_kp = Σ over protected texts of ‖P x‖²       P: projector on one direction of the edit

    x is the activation at a text's last token. The paper puts P on the input side of the edited map, but the
    vector that its optimisation changes is on the output side; both readings are available. Settings without
    protection are `TargetSettings`: their results and cache keys do not change.

    Attributes:
        protected: texts, for example names of entities that no edit is about.
        beta: β.
        direction: ``delta``, P on δ, and ``value``, P on h₀ + δ: x is the state that δ changes, and L_kp has
            a gradient in δ. ``key``, P on the fact's key, with x a key, as in Eq. 1: L_kp is then the same
            at every δ; it has no gradient and only adds to the loss that is compared with ``stop_below``.

    Source: Diagnosing Hidden Instabilities, Eq. 1 and 2.
    """

    protected: tuple[Annotated[str, Field(min_length=1)], ...] = Field(min_length=1)
    beta: float = Field(default=0.0, ge=0)
    direction: Literal["delta", "value", "key"] = "delta"


@dataclass(frozen=True, config={"extra": "forbid"})
class ContextSettings:
    """Settings of the sampled context prefixes.

    Attributes:
        count: number of sampled prefixes, in addition to the empty one.
        length: tokens of each.
        seed: seed of their generator.
    """

    count: int = Field(default=5, ge=0)
    length: int = Field(default=10, ge=2)
    seed: int = 0
