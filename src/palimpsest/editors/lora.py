"""LoRA: fine-tuning with updates of low rank (Hu et al., ICLR 2022), merged into the edited weights.

    Δ = (α/r) B A        A (r, d_k) uniform in ±1/√d_k, B (d_v, r) = 0 at first; Adam trains both

The loss, its batches and its stop are those of FT-M (`palimpsest.editors.ft`): the mean NLL of the tokens of
each new object, each after those before it. A baseline of the EasyEdit survey (Zhang et al., 2024).

Differences from EasyEdit's code: it adapts the query and value maps of all layers (the MLP in GPT-J) with
AdaLoRA, which gives rank to where it helps most; here the edited map of the named layers has factors of one
rank, as in the paper. No dropout; no end token behind the object; a batch with a small loss is not updated; A
is drawn with a seed. The result is merged, so that it is an edit of weights like any other.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from palimpsest.editors.base import Prepared, State, WeightEditor, start
from palimpsest.editors.ft import Objective, parts_of, train, trained_edit
from palimpsest.editors.settings import Layers
from palimpsest.memory.settings import ContextSettings
from palimpsest.network.apply import WeightDelta
from palimpsest.network.model import EditableModel, read_weight
from palimpsest.types import EditRequest


class LoraState(State):
    """State of LoRA; it keeps nothing of earlier edits, whose factors were merged."""


@dataclass(frozen=True, config={"extra": "forbid"})
class Lora(WeightEditor):
    """Low-rank fine-tuning; the fields are its settings.

    Attributes:
        layers: edited layers, ascending; all are trained together.
        rank: r; a rank above the smaller side of the weight is cut to it.
        alpha: α; Δ is BA times α/r.
        steps: largest number of passes over the facts.
        lr: Adam's learning rate.
        stop_below: a batch whose mean loss (nats) is below this is not updated; training ends when none is.
        batch: facts per update.
        objective: as for `palimpsest.editors.FineTune`.
        seed: of the draw of A.
        contexts: settings of the prefixes over which the loss is averaged; none as published.

    Source: LoRA (Hu et al., ICLR 2022), Eq. 3.
    """

    keeps = LoraState
    printed = "LoRA"

    layers: Layers
    rank: int = Field(default=8, ge=1)
    alpha: float = Field(default=32.0, gt=0)
    steps: int = Field(default=70, ge=1)
    lr: float = Field(default=5e-3, gt=0)
    stop_below: float = Field(default=1e-2, ge=0)
    batch: int = Field(default=64, ge=1)
    objective: Objective = "target_new"
    seed: int = Field(default=0, ge=0)
    contexts: ContextSettings = ContextSettings(count=0)

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], state: State | Prepared | None = None
    ) -> tuple[WeightDelta, LoraState]:
        """Train the factors on all requests and merge them; see `palimpsest.edit`.

        Raises:
            NonFiniteError: if a loss or an update becomes NaN or infinite; no weight is changed.
        """
        own: LoraState = self.own(state)
        at = self.prepare(model, own.prepared)
        parts = parts_of(model, requests, at.contexts, self.objective, self.batch)
        factors = self._factors(model)
        adam = torch.optim.Adam([factor for pair in factors.values() for factor in pair], lr=self.lr)

        history = train(
            model, parts, adam, lambda: self._merged(factors), self.steps, self.stop_below, lambda: None
        )
        # The product is taken once more in float64, so that its rank is r and not r but for rounding.
        exact = {layer: (a.detach().double(), b.detach().double()) for layer, (a, b) in factors.items()}
        made = trained_edit(model, self._merged(exact), history, at.contexts)
        return made, replace(own, prepared=at)

    def prepare(self, model: EditableModel, prepared: Prepared | None = None) -> Prepared:
        """Sample the prefixes; no other quantity is needed."""
        return start(model, prepared, self.contexts, (), 0)

    def _merged(self, factors: Mapping[int, tuple[Tensor, Tensor]]) -> dict[int, Tensor]:
        """Layer -> Δ (d_v, d_k) from A (r, d_k) and B (d_v, r)."""
        return {layer: self.alpha / len(a) * (b @ a) for layer, (a, b) in factors.items()}

    def _factors(self, model: EditableModel) -> dict[int, tuple[Tensor, Tensor]]:
        """Layer -> A (r, d_k) and B (d_v, r) as they begin, in float32 or wider."""
        generator, found = torch.Generator().manual_seed(self.seed), {}
        for layer in self.layers:
            weight = read_weight(model, layer)
            d_v, d_k = weight.shape
            rank = min(self.rank, d_v, d_k)
            exact = torch.promote_types(weight.dtype, torch.float32)
            a = (2 * torch.rand(rank, d_k, generator=generator, dtype=torch.float64) - 1) / d_k**0.5
            b = torch.zeros(d_v, rank, dtype=exact, device=weight.device)
            found[layer] = a.to(weight.device, exact).requires_grad_(), b.requires_grad_()
        return found
