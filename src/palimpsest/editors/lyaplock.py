"""LyapLock: sequential editing under a bound on what is lost, by a queue (Wang et al., EMNLP 2025).

Over a sequence of batches the mean editing loss is to be small while the mean preservation loss

    PL = tr((W − W₀) C₀ (W − W₀)ᵀ)

stays below a bound αD, D being PL after the first batch. A virtual queue counts what exceeds it; each batch
minimises, over all weights W of a layer,

    ‖WK − V‖² + ‖WK_p − V_p‖² + q λ PL        q ← max(1, q + PL/(αD) − 1)

with K_p and V_p the keys of earlier batches and what the map gave for them when they were written. While the
bound is kept, q is 1 and this is MEMIT anchored at the unedited weight; where it is not, C₀ weighs more.

Differences from the released code: q is its queue in units of its smallest value, with which V drops out (as
released V = 1, a = 1/√(αD), b = 0, Z_max = √(αD), which make q what stands above); earlier facts are kept as
columns and not as sums; prefixes are sampled with a seed; the symmetric system is solved by Cholesky.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import field, replace

import torch
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from palimpsest.algebra.solve import LeastSquares, Solution, solve
from palimpsest.editors.base import Prepared, State, WeightEditor, edit_layers, start, values_on
from palimpsest.editors.settings import Layers, StateTargets
from palimpsest.memory.settings import ContextSettings, TargetSettings
from palimpsest.network.apply import WeightDelta
from palimpsest.network.model import EditableModel, read_weight
from palimpsest.types import EditRequest


@plain_dataclass(frozen=True)
class Kept:
    """What a sequence keeps of one layer.

    Attributes:
        unedited: W₀ (d_v, d_k), float64.
        keys: K_p (d_k, N) of all facts so far, float64.
        shifts: (W − W₀) K_p (d_v, N), each column with the W that its batch left, float64.
        queue: q of the next batch.
        bound: αD; 0 before the first batch.
    """

    unedited: Float[Tensor, "d_v d_k"]
    keys: Float[Tensor, "d_k n"]
    shifts: Float[Tensor, "d_v n"]
    queue: float = 1.0
    bound: float = 0.0


@plain_dataclass(frozen=True, repr=False)
class LyapLockState(State):
    """State of a sequence of LyapLock edits.

    Attributes:
        kept: layer -> what is kept of it.
    """

    kept: Mapping[int, Kept] = field(default_factory=dict)


@dataclass(frozen=True, config={"extra": "forbid"})
class LyapLock(WeightEditor):
    """LyapLock; the fields are its settings.

    Attributes:
        layers: edited layers, ascending.
        preserve_weight: λ, multiplies C₀ while the bound is kept.
        allowance: α, how many times the loss of the first batch the mean loss may be.
        statistics_tokens: number of tokens from which C₀ is estimated.
        targets: settings of the value optimisation, on the current model.
        contexts: settings of the prefixes over which values are averaged.

    Source: Wang et al., EMNLP 2025, Sec. 4.
    """

    keeps = LyapLockState
    printed = "LyapLock"
    noted = ("queue", "preservation")

    layers: Layers
    preserve_weight: float = Field(default=1000.0, gt=0)
    allowance: float = Field(default=60.0, gt=0)
    statistics_tokens: int = Field(default=100_000, ge=1)
    targets: StateTargets = TargetSettings()
    contexts: ContextSettings = ContextSettings()

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], state: State | Prepared | None = None
    ) -> tuple[WeightDelta, LyapLockState]:
        """Write all requests in one batch; commit it before the next call. See `palimpsest.edit`."""
        own: LyapLockState = self.own(state)
        at = self.prepare(model, own.prepared)
        kept = {layer: own.kept.get(layer) or _nothing(model, layer) for layer in self.layers}
        after: dict[int, Kept] = {}
        losses: dict[int, float] = {}

        def update(layer: int, keys: Tensor, residual: Tensor) -> Solution:
            drift = read_weight(model, layer).double() - kept[layer].unedited
            solution = self.solved(kept[layer], keys, residual, drift, at.moments[layer])
            after[layer], losses[layer] = self.next(
                kept[layer], keys, drift + solution.delta, at.moments[layer]
            )
            return solution

        values = values_on(model, requests, self.layers[-1], self.targets, at.contexts)
        edit, _ = edit_layers(model, requests, self.layers, values, at.contexts, update)
        queues = {layer: one.queue for layer, one in kept.items()}
        notes = {**edit.notes, "queue": queues, "preservation": losses}
        return replace(edit, notes=notes), replace(own, prepared=at, kept=after)

    def solved(
        self,
        kept: Kept,
        keys: Float[Tensor, "d_k n"],
        residual: Float[Tensor, "d_v n"],
        drift: Float[Tensor, "d_v d_k"],
        moment: Float[Tensor, "d_k d_k"],
    ) -> Solution:
        """The update of one layer, from its weight's distance to the unedited one (d_v, d_k)."""
        columns = torch.cat([keys, kept.keys], 1)
        wanted = torch.cat([residual + drift @ keys, kept.shifts], 1)
        weight = kept.queue * self.preserve_weight
        whole = solve(LeastSquares(columns, wanted, preserve=weight * moment.double()))
        return replace(whole, delta=whole.delta - drift)

    def next(
        self, kept: Kept, keys: Tensor, shift: Float[Tensor, "d_v d_k"], moment: Tensor
    ) -> tuple[Kept, float]:
        """What is kept after a batch that leaves a layer at a distance ``shift`` from W₀, and its PL."""
        loss = float(((shift @ moment.double()) * shift).sum())
        bound = kept.bound or self.allowance * loss
        queue = max(1.0, kept.queue + loss / bound - 1) if bound else 1.0
        columns = torch.cat([kept.keys, keys], 1), torch.cat([kept.shifts, shift @ keys], 1)
        return Kept(kept.unedited, *columns, queue, bound), loss

    def prepare(self, model: EditableModel, prepared: Prepared | None = None) -> Prepared:
        """Compute contexts and second moments; entries already present are kept."""
        return start(model, prepared, self.contexts, self.layers, self.statistics_tokens)


def _nothing(model: EditableModel, layer: int) -> Kept:
    """Of a layer before its first batch."""
    weight = read_weight(model, layer).double().clone()
    return Kept(weight, weight.new_zeros(weight.shape[1], 0), weight.new_zeros(weight.shape[0], 0))
