"""MEMIT: Mass-Editing Memory in a Transformer (Meng et al., ICLR 2023), Eq. 14 and Algorithm 1.

    Δ = R Kᵀ (λ C₀ + K Kᵀ)⁻¹        in each of several layers

Departures from the released code: contexts are seeded and start after a new line; the symmetric system is
solved by Cholesky in float64; values of many facts are optimised together (same values). As released, a
call keeps nothing of earlier edits ("naive").
"""

from collections.abc import Sequence

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from palimpsest.algebra.solve import LeastSquares, Solution, solve
from palimpsest.editors.base import State, edit_layers, start
from palimpsest.editors.settings import Layers
from palimpsest.memory.settings import ContextSettings, TargetSettings
from palimpsest.network.apply import WeightDelta
from palimpsest.network.model import EditableModel
from palimpsest.types import EditRequest


@dataclass(frozen=True, config={"extra": "forbid"})
class Memit:
    """MEMIT with its settings.

    Attributes:
        layers: edited layers, ascending.
        preserve_weight: λ, the number of average keys that C₀ stands for.
        statistics_tokens: tokens of text behind C₀.
        targets: how values are optimised.
        contexts: prefixes they are averaged over.
    """

    layers: Layers
    preserve_weight: float = Field(default=15_000.0, ge=0)
    statistics_tokens: int = Field(default=100_000, ge=1)
    targets: TargetSettings = TargetSettings()
    contexts: ContextSettings = ContextSettings()

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], state: State | None = None
    ) -> tuple[WeightDelta, State]:
        """Write all requests in one batch; see `palimpsest.edit`."""
        state = start(model, state, self.contexts, self.layers, self.statistics_tokens)

        def update(layer: int, keys: Tensor, residual: Tensor) -> Solution:
            return solve(LeastSquares(keys, residual, preserve=self.preserve_weight * state.moments[layer]))

        edit, _ = edit_layers(model, requests, self.layers, self.targets, state.contexts, update)
        return edit, state
