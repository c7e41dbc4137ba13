"""Twin of a sequence of edits: AlphaEdit, aligned with one-time editing, scored on the way and at the end.

For each batch: the value of every request on the unedited weights; then layer by layer, in ascending order,
keys on the model with the lower layers edited, the remaining residual divided by the layers that remain, and
the released dense solve with the keys of earlier batches.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from benchmarks.reference import evaluate, keys, values
from benchmarks.reference.forward import edited_map
from benchmarks.reference.solve import released
from palimpsest.memory.settings import TargetSettings
from palimpsest.network.model import EditableModel
from palimpsest.types import EvalCase


@dataclass
class AlignedSequence:
    """A sequence of AlphaEdit edits on one model, which is restored at the end.

    Attributes:
        model: a Llama or Qwen2, whose weights are stored as (d_v, d_k).
        layers: edited layers, ascending.
        projectors: layer -> dense P (d_k, d_k), float64.
        ridge: λ.
        targets: settings of the values.
        contexts: prefixes, the empty one first.
        solving: seconds spent in dense solves by the last `run`; they do not grow with the facts.
    """

    model: EditableModel
    layers: Sequence[int]
    projectors: Mapping[int, Tensor]
    ridge: float
    targets: TargetSettings
    contexts: Sequence[str]
    solving: float = field(default=0.0)

    def run(self, batches: Sequence[Sequence[EvalCase]]) -> tuple[dict[int, Tensor], list[Tensor]]:
        """Write the batches one after the other.

        Returns:
            layer -> ΔW of all batches (d_v, d_k), float64; and the scores (metrics, cases) of each batch
            right after it was written, then of all cases at the end.
        """
        self.solving = 0.0
        start = {layer: self._weight(layer).clone() for layer in self.layers}
        past = {layer: torch.zeros_like(p) for layer, p in self.projectors.items()}  # Σ k kᵀ of earlier keys
        scores = []
        try:
            for cases in batches:
                self._write(cases, start, past)
                scores.append(evaluate.scores(self.model, cases)[0])
            scores.append(evaluate.scores(self.model, [case for cases in batches for case in cases])[0])
            moved = {layer: self._weight(layer).double() - start[layer].double() for layer in self.layers}
        finally:
            self._put(start)
        return moved, scores

    def _write(self, cases: Sequence[EvalCase], start: Mapping[int, Tensor], past: dict[int, Tensor]) -> None:
        requests, last = [case.request for case in cases], self.layers[-1]
        now = {layer: self._weight(layer).clone() for layer in self.layers}
        self._put(start)
        wanted = []
        for request in requests:
            initial, delta = values.optimise(self.model, request, last, self.targets, self.contexts)
            wanted.append(initial + delta)
        self._put(now)
        for index, layer in enumerate(self.layers):
            k = keys.keys(self.model, requests, layer, self.contexts).double()
            missing = torch.stack(wanted, 1) - keys.hidden(self.model, requests, last)
            residual = missing.double() / (len(self.layers) - index)
            began = time.perf_counter()
            gram = k @ k.T + past[layer]
            delta = released(self.projectors[layer], gram, self.ridge, k, residual)
            self.solving += time.perf_counter() - began
            past[layer] = gram
            self._put({layer: (self._weight(layer).double() + delta).float()})

    def _weight(self, layer: int) -> Tensor:
        weight = edited_map(self.model, layer).weight
        assert isinstance(weight, Tensor)
        return weight

    def _put(self, weights: Mapping[int, Tensor]) -> None:
        with torch.no_grad():
            for layer, weight in weights.items():
                self._weight(layer).copy_(weight)
