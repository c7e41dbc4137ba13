"""MEMIT: Mass-Editing Memory in a Transformer (Meng et al., ICLR 2023), Eq. 14 and Algorithm 1.

    Δ = R Kᵀ (λ C₀ + K Kᵀ)⁻¹        in each of several layers

Differences from the released code: prefixes are sampled with a seed and start after a new line; the symmetric
system is solved by Cholesky in float64; values of many facts are optimised in one batch (same values). As
released, a call keeps nothing of earlier edits ("naive").
"""

from collections.abc import Sequence
from dataclasses import replace

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from palimpsest.algebra.solve import LeastSquares, Solution, solve
from palimpsest.editors.base import Prepared, State, WeightEditor, edit_layers, start, values_on
from palimpsest.editors.settings import Layers, StateTargets
from palimpsest.memory.settings import ContextSettings, TargetSettings
from palimpsest.network.apply import WeightDelta
from palimpsest.network.model import EditableModel
from palimpsest.types import EditRequest


class MemitState(State):
    """State of MEMIT; it keeps nothing of earlier edits."""


@dataclass(frozen=True, config={"extra": "forbid"})
class Memit(WeightEditor):
    """MEMIT; the fields are its settings.

    Attributes:
        layers: edited layers, ascending.
        preserve_weight: λ, the number of average keys that C₀ stands for.
        statistics_tokens: number of tokens from which C₀ is estimated.
        targets: settings of the value optimisation.
        contexts: settings of the prefixes over which values are averaged.
    """

    keeps = MemitState
    printed = "MEMIT"

    layers: Layers
    preserve_weight: float = Field(default=15_000.0, ge=0)
    statistics_tokens: int = Field(default=100_000, ge=1)
    targets: StateTargets = TargetSettings()
    contexts: ContextSettings = ContextSettings()

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], state: State | Prepared | None = None
    ) -> tuple[WeightDelta, MemitState]:
        """Write all requests in one batch; see `palimpsest.edit`."""
        own: MemitState = self.own(state)
        at = self.prepare(model, own.prepared)

        def update(layer: int, keys: Tensor, residual: Tensor) -> Solution:
            return solve(LeastSquares(keys, residual, preserve=self.preserve_weight * at.moments[layer]))

        values = values_on(model, requests, self.layers[-1], self.targets, at.contexts)
        edit, _ = edit_layers(model, requests, self.layers, values, at.contexts, update)
        return edit, replace(own, prepared=at)

    def prepare(self, model: EditableModel, prepared: Prepared | None = None) -> Prepared:
        """Compute contexts and second moments; entries already present are kept."""
        return start(model, prepared, self.contexts, self.layers, self.statistics_tokens)
