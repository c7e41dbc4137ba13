"""ROME: Rank-One Model Editing (Meng et al., NeurIPS 2022), Eq. 2, one fact after another in one layer.

    Δ = (v − W k) (C₀⁻¹k)ᵀ / (kᵀ C₀⁻¹ k)        so that (W + Δ) k = v exactly

The released code takes k as the mean over contexts on the left and the bare prompt's key in the
denominator; Rebuilding ROME (Gupta et al., 2024) traced ROME's collapses to that. Default here: one key in
both places; ``denominator="bare_prompt"`` is the released form. A batch is written fact by fact, all
facts of it, with values optimised on the model at the start of the call.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from palimpsest.algebra.solve import LeastSquares, solve_exact
from palimpsest.editors.base import State, start, step_norms, value_notes, values_on
from palimpsest.errors import RequestError
from palimpsest.memory.keys import subject_keys
from palimpsest.memory.settings import ContextSettings, TargetSettings
from palimpsest.network.apply import WeightDelta
from palimpsest.network.model import EditableModel, fingerprint, read_weight
from palimpsest.types import EditRequest


@dataclass(frozen=True, config={"extra": "forbid"})
class Rome:
    """ROME with its settings.

    Attributes:
        layers: the one edited layer.
        denominator: ``same_key`` (Rebuilding ROME) or ``bare_prompt`` (as released).
        second_moment: use C₀ (released: on for GPT-2 and GPT-J) or the identity (off, LLaMA-3).
        ridge: added to C₀, as a share of its mean eigenvalue; 0 as released.
        statistics_tokens: tokens of text behind C₀.
        targets: how values are optimised; ``reference="value"`` as released.
        contexts: prefixes they are averaged over.
    """

    layers: tuple[int]
    denominator: Literal["same_key", "bare_prompt"] = "same_key"
    second_moment: bool = True
    ridge: float = Field(default=0.0, ge=0)
    statistics_tokens: int = Field(default=100_000, ge=1)
    targets: TargetSettings = TargetSettings(clamp=4.0, reference="value")
    contexts: ContextSettings = ContextSettings()

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], state: State | None = None
    ) -> tuple[WeightDelta, State]:
        """Write the requests one after another; see `palimpsest.edit`."""
        needed = self.layers if self.second_moment else ()
        state = start(model, state, self.contexts, needed, self.statistics_tokens)
        (layer,) = self.layers
        targets = values_on(model, requests, layer, self.targets, state.contexts, {}, state.known)
        keys = subject_keys(model, requests, layer, state.contexts).double()
        bare = subject_keys(model, requests, layer, state.contexts[:1]).double()
        anchor = keys if self.denominator == "same_key" else bare
        original = read_weight(model, layer).double()
        preserve = self._metric(state.moments[layer]) if self.second_moment else _identity(original)
        # δ moves the map's output, so the value to reach is W₀k + δ whatever bias the map has.
        values = original @ anchor + targets.deltas.double()
        total = torch.zeros_like(original)
        conditions = []
        for index, request in enumerate(requests):
            key, point = keys[:, index : index + 1], anchor[:, index : index + 1]
            residual = values[:, index : index + 1] - (original + total) @ point
            solution = solve_exact(LeastSquares(key, residual, preserve))
            total += self._rescaled(solution.delta, residual, point, request)
            conditions.append(solution.condition)
        notes = {
            "contexts": list(state.contexts),
            "facts": len(requests),
            "condition": {layer: max(conditions)},
            "step_norm": step_norms({layer: total}),
            **value_notes(targets),
        }
        return WeightDelta({layer: total}, fingerprint(model), notes), state

    def _metric(self, c0: Tensor) -> Tensor:
        return c0 + self.ridge * c0.diagonal().mean() * _identity(c0)

    def _rescaled(self, delta: Tensor, residual: Tensor, point: Tensor, request: EditRequest) -> Tensor:
        """The same rank-one direction, scaled to reach the residual at ``point``."""
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
    """The identity of width d_k, with the dtype and device of a matrix that has d_k columns."""
    return torch.eye(like.shape[1], dtype=like.dtype, device=like.device)
