"""UltraEdit: lifelong editing in one step from hidden states and gradients (Gu et al., 2025).

    Δ = V Hᵀ (H Hᵀ + I)⁻¹        V_:j = −η ‖h̃_j‖² g̃_j

Column j is one token of a fact, prompt and new object: h_j (d_k,) is what the edited map receives there, g_j
(d_v,) the gradient of the fact's loss in what it returns, and h̃_j, g̃_j are the two less their mean and over
their standard deviation. Mean and deviation are those of all tokens of all facts so far, these included
("lifelong normalisation"); they are all that a sequence keeps. Nothing is trained, no subject is looked for,
and the columns enter the problem of `palimpsest.algebra.solve` with ridge 1.

Differences from the released code: a fact's loss is its own mean over its tokens, so that what is seen of it
does not depend on the other facts (there the mean over the tokens of a mini-batch); the running variance is
exact (there every mini-batch of n tokens counts n times its variance over n − 1); the last token of the
object, which predicts nothing, is left out; the edited map of the named layers is changed in every family, as
in the released settings of GPT-J (in those of LLaMA and Qwen the gate and the map beside it). As there,
statistics are shared by all edited layers, whose maps have one shape.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass as plain_dataclass
from dataclasses import field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from palimpsest.algebra.solve import LeastSquares, Solution, solve
from palimpsest.editors.base import Prepared, State, WeightEditor, start, step_norms
from palimpsest.editors.ft import parts_of
from palimpsest.editors.settings import Layers
from palimpsest.memory.settings import ContextSettings
from palimpsest.network.apply import WeightDelta
from palimpsest.network.model import EditableModel, fingerprint
from palimpsest.types import EditRequest, Shown

SMALLEST = torch.finfo(torch.float32).eps
"""Added to a deviation that features are divided by, as released; a feature that never varies gives 0."""


@plain_dataclass(frozen=True, repr=False)
class Running(Shown):
    """Mean and spread of features that come in batches.

    Attributes:
        count: number of rows seen.
        mean: of each feature (d,), float64; None before the first row.
        spread: sum of squared distances from the mean (d,), float64.
    """

    count: int = 0
    mean: Float[Tensor, " d"] | None = None
    spread: Float[Tensor, " d"] | None = None

    def shown(self) -> dict[str, object]:
        """How many rows were seen."""
        return {"tokens": self.count}

    def after(self, rows: Float[Tensor, "n d"]) -> "Running":
        """The statistics with n more rows, which are those of all rows together.

        Source: Chan, Golub and LeVeque, Algorithms for computing the sample variance (1983).
        """
        rows = rows.double()
        if not len(rows):
            return self
        mean = rows.mean(0)
        spread = (rows - mean).square().sum(0)
        if self.mean is None or self.spread is None:
            return Running(len(rows), mean, spread)
        count, gap = self.count + len(rows), mean - self.mean
        weight = len(rows) / count
        return Running(
            count, self.mean + weight * gap, self.spread + spread + self.count * weight * gap.square()
        )

    def normalised(self, rows: Float[Tensor, "n d"]) -> Float[Tensor, "n d"]:
        """Rows less the mean, over the standard deviation (n − 1 in the denominator), float64."""
        if self.mean is None or self.spread is None:
            return torch.zeros_like(rows, dtype=torch.float64)
        deviation = (self.spread / max(self.count - 1, 1)).sqrt()
        return (rows.double() - self.mean) / (deviation + SMALLEST)


@plain_dataclass(frozen=True, repr=False)
class UltraEditState(State):
    """State of a sequence of UltraEdit edits.

    Attributes:
        seen: statistics of h and g together (d_k + d_v features), over all tokens so far and all layers.
    """

    seen: Running = field(default_factory=Running)


@dataclass(frozen=True, config={"extra": "forbid"})
class UltraEdit(WeightEditor):
    """UltraEdit; the fields are its settings.

    Attributes:
        layers: edited layers, ascending.
        lr: η.
        batch: facts in one pass; affects only speed and memory.
        contexts: settings of the prefixes over which the loss is averaged; none as published.
    """

    keeps = UltraEditState
    printed = "UltraEdit"

    layers: Layers
    lr: float = Field(default=1e-6, gt=0)
    batch: int = Field(default=10, ge=1)
    contexts: ContextSettings = ContextSettings(count=0)

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], state: State | Prepared | None = None
    ) -> tuple[WeightDelta, UltraEditState]:
        """Write all requests in one batch; see `palimpsest.edit`.

        Raises:
            NonFiniteError: if a loss, a hidden state or a gradient is NaN or infinite.
        """
        own: UltraEditState = self.own(state)
        at = self.prepare(model, own.prepared)
        read, losses = features(model, requests, self.layers, at.contexts, self.batch)
        seen = own.seen
        for hidden, gradients in read.values():
            seen = seen.after(torch.cat([hidden, gradients], 1))
        found = {layer: shift(*both, seen, self.lr) for layer, both in read.items()}
        deltas = {layer: solution.delta for layer, solution in found.items()}
        notes = {
            "contexts": list(at.contexts),
            "facts": len(requests),
            "tokens": len(next(iter(read.values()))[0]),
            "loss_history": [[loss] for loss in losses],
            "condition": {layer: solution.condition for layer, solution in found.items()},
            "fit": {layer: solution.fit for layer, solution in found.items()},
            "step_norm": step_norms(deltas),
        }
        return WeightDelta(deltas, fingerprint(model), notes), replace(own, prepared=at, seen=seen)

    def prepare(self, model: EditableModel, prepared: Prepared | None = None) -> Prepared:
        """Sample the prefixes; no other quantity is needed."""
        return start(model, prepared, self.contexts, (), 0)


def shift(
    hidden: Float[Tensor, "n d_k"], gradients: Float[Tensor, "n d_v"], seen: Running, lr: float
) -> Solution:
    """The update of one layer in closed form.

    Args:
        hidden: h, inputs of the edited map at n tokens.
        gradients: g, gradients of the losses in its outputs.
        seen: statistics of both together, these tokens included.
        lr: η.
    """
    both = seen.normalised(torch.cat([hidden, gradients], 1))
    keys, slopes = both.split([hidden.shape[1], gradients.shape[1]], 1)
    wanted = -lr * keys.square().sum(1, keepdim=True) * slopes  # (n, d_v)
    return solve(LeastSquares(hidden.double().T, wanted.T, ridge=1.0))


Features = tuple[Float[Tensor, "n d_k"], Float[Tensor, "n d_v"]]
"""Inputs of an edited map at n tokens, and gradients in its outputs there."""


def features(
    model: EditableModel,
    requests: Sequence[EditRequest],
    layers: Sequence[int],
    contexts: Sequence[str],
    batch: int,
) -> tuple[dict[int, Features], list[float]]:
    """What each edited map receives at all tokens of the facts, and the gradients of their losses there.

    Args:
        model: the model as it is now; no weight changes.
        requests: the facts; the loss of each is the mean NLL of its object's tokens, over the contexts.
        layers: edited layers.
        contexts: prefixes, the empty one first.
        batch: facts in one pass.

    Returns:
        Layer -> features, and the loss of each fact in nats.

    Raises:
        NonFiniteError: if a loss is NaN or infinite.
    """
    found: dict[int, list[Features]] = {layer: [] for layer in layers}
    losses: list[float] = []
    for part in parts_of(model, requests, contexts, "target_new", batch):
        with _watched(model, layers, part.batch.mask) as watched:
            loss = part.losses(model)
        part.require_finite(loss.detach(), 0)
        slopes = torch.autograd.grad(loss.sum(), [one.added for one in watched.values()])
        for (layer, one), slope in zip(watched.items(), slopes, strict=True):
            found[layer].append((one.real(one.inputs), one.real(slope)))
        losses += loss.detach().tolist()
    joined = {
        layer: (torch.cat([h for h, _ in parts]), torch.cat([g for _, g in parts]))
        for layer, parts in found.items()
    }
    return joined, losses


class _Watch:
    """What one edited map receives in a pass, and a zero added to what it returns, for the gradient there."""

    def __init__(self, mask: Bool[Tensor, "b t"]) -> None:
        self.mask, self.inputs, self.added = mask, torch.empty(0), torch.empty(0)

    def __call__(self, _: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        self.inputs = inputs[0].detach()
        self.added = torch.zeros_like(output, requires_grad=True)
        return output + self.added

    def real(self, states: Tensor) -> Float[Tensor, "n d"]:
        """States at real tokens, from (b, t, d) or (b·t, d)."""
        return states.reshape(*self.mask.shape, -1)[self.mask]


@contextmanager
def _watched(
    model: EditableModel, layers: Sequence[int], mask: Bool[Tensor, "b t"]
) -> Iterator[Mapping[int, _Watch]]:
    """Inside the block a pass leaves what the edited maps receive and return."""
    watched = {layer: _Watch(mask) for layer in layers}
    with ExitStack() as stack:
        for layer, watch in watched.items():
            stack.callback(model.projection(layer).register_forward_hook(watch).remove)
        yield watched
