"""ROME: Rank-One Model Editing (Meng et al., NeurIPS 2022), Eq. 2; facts are written one by one in one layer.

    Δ = (v − W k) (C₀⁻¹k)ᵀ / (kᵀ C₀⁻¹ k)        so that (W + Δ) k = v exactly

The released code uses the key averaged over prefixes in the numerator and the bare prompt's key in the
denominator; Rebuilding ROME (Gupta et al., 2024) traced ROME's collapses to this. The default here is one key
in both places; ``denominator="bare_prompt"`` is the released form. Facts of a batch are written one after
another, with values that are all optimised on the model at the start of the call.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from palimpsest.algebra.solve import LeastSquares, solve_exact
from palimpsest.editors.base import Prepared, State, WeightEditor, start, step_norms, value_notes, values_on
from palimpsest.errors import RequestError
from palimpsest.memory.behind_norms import asked_of_map
from palimpsest.memory.keys import subject_inside, subject_keys
from palimpsest.memory.settings import ContextSettings, TargetSettings
from palimpsest.network.apply import WeightDelta
from palimpsest.network.model import EditableModel, fingerprint, read_weight
from palimpsest.types import EditRequest


class RomeState(State):
    """State of ROME; it keeps nothing of earlier edits."""


@dataclass(frozen=True, config={"extra": "forbid"})
class Rome(WeightEditor):
    """ROME; the fields are its settings.

    Attributes:
        layers: the one edited layer.
        denominator: key in the denominator, ``same_key`` (Rebuilding ROME) or ``bare_prompt`` (as released).
        second_moment: use C₀ (as released for GPT-2 and GPT-J); False uses the identity (LLaMA-3).
        ridge: multiple of the identity added to C₀, as a share of its mean eigenvalue; 0 as released.
        statistics_tokens: number of tokens from which C₀ is estimated.
        targets: settings of the value optimisation; ``reference="value"`` as released.
        contexts: settings of the prefixes over which values are averaged.
    """

    keeps = RomeState
    printed = "ROME"

    layers: tuple[int]
    denominator: Literal["same_key", "bare_prompt"] = "same_key"
    second_moment: bool = True
    ridge: float = Field(default=0.0, ge=0)
    statistics_tokens: int = Field(default=100_000, ge=1)
    targets: TargetSettings = TargetSettings(clamp=4.0, reference="value")
    contexts: ContextSettings = ContextSettings()

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], state: State | Prepared | None = None
    ) -> tuple[WeightDelta, RomeState]:
        """Write the requests one after another; see `palimpsest.edit`.

        Raises:
            RequestError: with ``denominator="bare_prompt"``, if a bare key is orthogonal to the averaged one.
        """
        own: RomeState = self.own(state)
        at = self.prepare(model, own.prepared)
        (layer,) = self.layers
        targets = values_on(model, requests, layer, self.targets, at.contexts, known=at.known)
        keys = subject_keys(model, requests, layer, at.contexts).double()
        bare = subject_keys(model, requests, layer, at.contexts[:1]).double()
        anchor = keys if self.denominator == "same_key" else bare
        original = read_weight(model, layer).double()
        preserve = self._metric(at.moments[layer]) if self.second_moment else _identity(original)
        # δ is added to the map's output, so the target value is W₀k + δ, whatever the map's bias.
        deltas = targets.deltas.double()
        if self.targets.reference == "hidden":
            deltas = asked_of_map(model, layer, subject_inside(model, requests, layer), deltas)
        values = original @ anchor + deltas
        total = torch.zeros_like(original)
        conditions = []
        for index, request in enumerate(requests):
            key, point = keys[:, index : index + 1], anchor[:, index : index + 1]
            residual = values[:, index : index + 1] - (original + total) @ point
            solution = solve_exact(LeastSquares(key, residual, preserve))
            total += self._rescaled(solution.delta, residual, point, request)
            conditions.append(solution.condition)
        notes = {
            "contexts": list(at.contexts),
            "facts": len(requests),
            "condition": {layer: max(conditions)},
            "step_norm": step_norms({layer: total}),
            **value_notes(targets),
        }
        return WeightDelta({layer: total}, fingerprint(model), notes), replace(own, prepared=at)

    def prepare(self, model: EditableModel, prepared: Prepared | None = None) -> Prepared:
        """Compute contexts, and the second moment if it is used; entries already present are kept."""
        needed = self.layers if self.second_moment else ()
        return start(model, prepared, self.contexts, needed, self.statistics_tokens)

    def _metric(self, c0: Tensor) -> Tensor:
        return c0 + self.ridge * c0.diagonal().mean() * _identity(c0)

    def _rescaled(self, delta: Tensor, residual: Tensor, point: Tensor, request: EditRequest) -> Tensor:
        """The rank-one update rescaled so that its output at ``point`` is the residual."""
        if self.denominator == "same_key" or not residual.any():
            return delta
        reached = float((residual.T @ delta @ point) / residual.square().sum())
        if reached == 0:
            raise RequestError(
                f"the bare key of {request.text!r} is orthogonal to its averaged key; "
                "use denominator='same_key'"
            )
        return delta / reached


def _identity(like: Tensor) -> Tensor:
    """Identity (d_k, d_k) with the dtype and device of a matrix with d_k columns."""
    return torch.eye(like.shape[1], dtype=like.dtype, device=like.device)
