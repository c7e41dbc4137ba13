"""AlphaEdit: null-space constrained knowledge editing (Fang et al., ICLR 2025), Eq. 14.

    Δ = R Kᵀ P (K_p K_pᵀ P + K Kᵀ P + λ I)⁻¹        P: null space of C₀, K_p: keys of earlier edits

Differences from the released code: earlier keys enter as columns with zero residual, so the system is
facts × facts and symmetric (Cholesky, float64), where the released one is d_k × d_k, unsymmetric and float32;
P is stored as a basis of its range or of the complement; keys of the edited model are not computed twice. C₀
is taken from the model at the first edit of a sequence.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import field, replace
from typing import Literal

from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from palimpsest.algebra.solve import LeastSquares, Solution, solve, with_past
from palimpsest.algebra.spectrum import PUBLISHED_THRESHOLD
from palimpsest.editors.base import (
    Prepared,
    State,
    WeightEditor,
    edit_layers,
    joined,
    start,
    values_on,
    with_projectors,
)
from palimpsest.editors.settings import Layers, StateTargets
from palimpsest.memory.settings import ContextSettings, TargetSettings
from palimpsest.network.apply import WeightDelta
from palimpsest.network.model import EditableModel
from palimpsest.types import EditRequest


@plain_dataclass(frozen=True, repr=False)
class AlphaEditState(State):
    """State of a sequence of AlphaEdit edits.

    Attributes:
        past: layer -> keys (d_k, N) of all facts edited so far.
    """

    past: Mapping[int, Float[Tensor, "d_k n"]] = field(default_factory=dict)


@dataclass(frozen=True, config={"extra": "forbid"})
class AlphaEdit(WeightEditor):
    """AlphaEdit; the fields are its settings.

    Attributes:
        layers: edited layers, ascending.
        ridge: λ, called L2 in the released code.
        rule: which eigenvalues of C₀ count as protected; `threshold` is its parameter.
        threshold: default as published: 2e-2 on the eigenvalues of the mean second moment.
        keep_past: add the keys of earlier edits (released: yes).
        statistics_tokens: number of tokens from which C₀ is estimated.
        targets: settings of the value optimisation.
        contexts: settings of the prefixes over which values are averaged.
    """

    keeps = AlphaEditState
    printed = "AlphaEdit"

    layers: Layers
    ridge: float = Field(default=10.0, gt=0)
    rule: Literal["absolute", "relative", "energy"] = "absolute"
    threshold: float = Field(default=PUBLISHED_THRESHOLD, ge=0)
    keep_past: bool = True
    statistics_tokens: int = Field(default=100_000, ge=1)
    targets: StateTargets = TargetSettings()
    contexts: ContextSettings = ContextSettings()

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], state: State | Prepared | None = None
    ) -> tuple[WeightDelta, AlphaEditState]:
        """Write all requests in one batch; see `palimpsest.edit`."""
        own: AlphaEditState = self.own(state)
        at = self.prepare(model, own.prepared)

        def update(layer: int, keys: Tensor, residual: Tensor) -> Solution:
            alone = LeastSquares(keys, residual, ridge=self.ridge, projector=at.projectors[layer])
            return solve(with_past(alone, own.past.get(layer, keys[:, :0])))

        values = values_on(model, requests, self.layers[-1], self.targets, at.contexts)
        edit, keys = edit_layers(model, requests, self.layers, values, at.contexts, update)
        past = joined(own.past, keys) if self.keep_past else {}
        return edit, replace(own, prepared=at, past=past)

    def prepare(self, model: EditableModel, prepared: Prepared | None = None) -> Prepared:
        """Compute contexts, second moments and projectors; entries already present are kept.

        Raises:
            ProfileError: if the rule protects every direction of a layer.
        """
        at = start(model, prepared, self.contexts, self.layers, self.statistics_tokens)
        return with_projectors(at, self.layers, self.rule, self.threshold)
