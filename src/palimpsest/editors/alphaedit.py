"""AlphaEdit: null-space constrained knowledge editing (Fang et al., ICLR 2025), Eq. 14.

    Δ = R Kᵀ P (K_p K_pᵀ P + K Kᵀ P + λ I)⁻¹        P: null space of C₀, K_p: keys of earlier edits

Departures from the released code: earlier keys enter as columns with no residual, so the system is
facts × facts and symmetric (Cholesky, float64) where the released one is d_k × d_k, unsymmetric and float32;
P is kept as a basis or its complement; keys of the edited model are not computed twice. C₀ is that of the
model at the first edit of a sequence.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from palimpsest.algebra.projector import Projector, null_space
from palimpsest.algebra.solve import LeastSquares, Solution, solve, with_past
from palimpsest.algebra.spectrum import PUBLISHED_THRESHOLD, RULES
from palimpsest.editors.base import State, edit_layers, joined, start
from palimpsest.editors.settings import Layers
from palimpsest.errors import ProfileError
from palimpsest.memory.settings import ContextSettings, TargetSettings
from palimpsest.network.apply import WeightDelta
from palimpsest.network.model import EditableModel
from palimpsest.types import EditRequest


@dataclass(frozen=True, config={"extra": "forbid"})
class AlphaEdit:
    """AlphaEdit with its settings.

    Attributes:
        layers: edited layers, ascending.
        ridge: λ, called L2 in the released code.
        rule: how the null space is cut, with `threshold` as its number.
        threshold: 2e-2 on the mean second moment, as published.
        keep_past: add the keys of earlier edits (released: yes).
        statistics_tokens: tokens of text behind C₀.
        targets: how values are optimised.
        contexts: prefixes they are averaged over.
    """

    layers: Layers
    ridge: float = Field(default=10.0, gt=0)
    rule: Literal["absolute", "relative", "energy"] = "absolute"
    threshold: float = Field(default=PUBLISHED_THRESHOLD, ge=0)
    keep_past: bool = True
    statistics_tokens: int = Field(default=100_000, ge=1)
    targets: TargetSettings = TargetSettings()
    contexts: ContextSettings = ContextSettings()

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], state: State | None = None
    ) -> tuple[WeightDelta, State]:
        """Write all requests in one batch; see `palimpsest.edit`."""
        state = start(model, state, self.contexts, self.layers, self.statistics_tokens)
        projectors = self._projectors(state)

        def update(layer: int, keys: Tensor, residual: Tensor) -> Solution:
            alone = LeastSquares(keys, residual, ridge=self.ridge, projector=projectors[layer])
            return solve(with_past(alone, state.past.get(layer, keys[:, :0])))

        edit, keys = edit_layers(model, requests, self.layers, self.targets, state.contexts, update)
        past = joined(state.past, keys) if self.keep_past else {}
        return edit, replace(state, projectors=projectors, past=past)

    def _projectors(self, state: State) -> dict[int, Projector]:
        """Those of the state, and new ones for layers that it has none for."""
        rule = RULES[self.rule](self.threshold)
        missing = [layer for layer in self.layers if layer not in state.projectors]
        fresh = {layer: null_space(state.moments[layer], rule) for layer in missing}
        for layer, projector in fresh.items():
            if projector.kept == 0:
                raise ProfileError(
                    f"layer {layer}: rule {self.rule!r} at {self.threshold} protects every direction, so "
                    "no fact could be written; choose a threshold between the eigenvalues of C0"
                )
        return {**state.projectors, **fresh}
