"""EMMET: equality-constrained mass editing (Gupta, Sajnani and Anumanchipalli, EMNLP Findings 2024).

    Δ = R (Kᵀ C⁻¹ K + λ I)⁻¹ Kᵀ C⁻¹        C = μ C₀

With λ = 0 this minimises tr(Δ C Δᵀ), what the preserved keys lose, under the constraint ΔK = R: ROME's update
for many facts at once. The code adds λI, for more than one fact, because KᵀC⁻¹K is badly conditioned. The
formula then is the minimiser of ‖ΔK − R‖² + λ tr(Δ C Δᵀ): by the push-through identity it is MEMIT's with
weight λμ of C₀, so that λ > 0 gives up the constraint.

Differences from the released code: prefixes are sampled with a seed and start after a new line; the symmetric
systems are solved by Cholesky, where the code inverts C and, if it must, takes a pseudo-inverse; dependent
keys are an error where λ is 0.
"""

from collections.abc import Sequence
from dataclasses import replace

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from palimpsest.algebra.solve import LeastSquares, Solution, solve, solve_exact
from palimpsest.editors.base import Prepared, State, WeightEditor, edit_layers, start, values_on
from palimpsest.editors.settings import Layers, StateTargets
from palimpsest.memory.settings import ContextSettings, TargetSettings
from palimpsest.network.apply import WeightDelta
from palimpsest.network.model import EditableModel
from palimpsest.types import EditRequest


class EmmetState(State):
    """State of EMMET; it keeps nothing of earlier edits."""


@dataclass(frozen=True, config={"extra": "forbid"})
class Emmet(WeightEditor):
    """EMMET; the fields are its settings.

    Attributes:
        layers: edited layers, ascending; one as published.
        slack: λ, for more than one fact; 0 writes every residual exactly, as a single fact always is.
        preserve_weight: μ, multiplies C₀; without slack it cancels.
        statistics_tokens: number of tokens from which C₀ is estimated.
        targets: settings of the value optimisation.
        contexts: settings of the prefixes over which values are averaged.
    """

    keeps = EmmetState
    printed = "EMMET"

    layers: Layers
    slack: float = Field(default=0.1, ge=0)
    preserve_weight: float = Field(default=1000.0, gt=0)
    statistics_tokens: int = Field(default=100_000, ge=1)
    targets: StateTargets = TargetSettings()
    contexts: ContextSettings = ContextSettings()

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], state: State | Prepared | None = None
    ) -> tuple[WeightDelta, EmmetState]:
        """Write all requests in one batch; see `palimpsest.edit`.

        Raises:
            SingularProblemError: without slack, if keys are linearly dependent; or if C₀ is singular.
        """
        own: EmmetState = self.own(state)
        at = self.prepare(model, own.prepared)

        def update(layer: int, keys: Tensor, residual: Tensor) -> Solution:
            return self.update(keys, residual, at.moments[layer])

        values = values_on(model, requests, self.layers[-1], self.targets, at.contexts)
        edit, _ = edit_layers(model, requests, self.layers, values, at.contexts, update)
        return edit, replace(own, prepared=at)

    def update(self, keys: Tensor, residual: Tensor, moment: Tensor) -> Solution:
        """Δ of one layer from keys (d_k, n), residual (d_v, n) and C₀ (d_k, d_k)."""
        if self.slack == 0 or keys.shape[1] == 1:
            return solve_exact(LeastSquares(keys, residual, preserve=moment))
        weight = self.slack * self.preserve_weight
        # Dual: KᵀC⁻¹K/λ + I is well conditioned where λC + KKᵀ, with a small λ, is not.
        return solve(LeastSquares(keys, residual, preserve=weight * moment), path="dual")

    def prepare(self, model: EditableModel, prepared: Prepared | None = None) -> Prepared:
        """Compute contexts and second moments; entries already present are kept."""
        return start(model, prepared, self.contexts, self.layers, self.statistics_tokens)
