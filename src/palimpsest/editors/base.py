"""What editors share: the contract, the state of a sequence, and the spread of one residual over layers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from palimpsest.algebra.projector import Projector
from palimpsest.algebra.solve import Solution
from palimpsest.memory.contexts import sample_contexts
from palimpsest.memory.keys import subject_hidden, subject_keys
from palimpsest.memory.known_values import KnownValues
from palimpsest.memory.moments import key_statistics
from palimpsest.memory.settings import ContextSettings, TargetSettings
from palimpsest.memory.values import Targets, optimise_targets
from palimpsest.network.apply import Edit, WeightDelta, restored
from palimpsest.network.model import EditableModel, fingerprint, read_weight, write_weight
from palimpsest.types import EditRequest


@dataclass(frozen=True)
class State:
    """What a sequence of edits carries from one call to the next.

    Attributes:
        contexts: prefixes drawn from the unedited model, the empty one first.
        moments: layer -> C₀ (d_k, d_k), second moment of the unedited model's keys.
        projectors: layer -> null-space projector of C₀, where an editor needs one.
        past: layer -> keys (d_k, N) of all facts edited so far.
        known: values that need not be computed, where they are to be those of the unedited model.
    """

    contexts: tuple[str, ...] = ()
    moments: Mapping[int, Float[Tensor, "d_k d_k"]] = field(default_factory=dict)
    projectors: Mapping[int, Projector] = field(default_factory=dict)
    past: Mapping[int, Float[Tensor, "d_k n"]] = field(default_factory=dict)
    known: KnownValues | None = None


@runtime_checkable
class Editor(Protocol):
    """The contract: requests in, an edit and the next state out; the model is left as it was, bit by bit."""

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], state: State | None = None
    ) -> tuple[Edit, State]:
        """Make an edit that writes all requests at once."""
        ...


def start(
    model: EditableModel,
    state: State | None,
    contexts: ContextSettings,
    layers: Sequence[int],
    statistics_tokens: int,
) -> State:
    """The given state; what it lacks of contexts and second moments is taken from the model as it is."""
    state = state or State()
    if not state.contexts:
        sampled = sample_contexts(model, contexts.count, contexts.length, contexts.seed)
        state = replace(state, contexts=sampled)
    missing = [layer for layer in layers if layer not in state.moments]
    if missing:
        fresh = key_statistics(model, missing, statistics_tokens)
        moments = {layer: moment.value for layer, moment in fresh.items()}
        state = replace(state, moments={**state.moments, **moments})
    return state


Update = Callable[[int, Tensor, Tensor], Solution]
"""Layer, keys (d_k, n) and residual (d_v, n) -> the update of that layer."""


def values_on(
    model: EditableModel,
    requests: Sequence[EditRequest],
    layer: int,
    targets: TargetSettings,
    contexts: Sequence[str],
    weights: Mapping[int, Float[Tensor, "d_v d_k"]],
    known: KnownValues | None = None,
) -> Targets:
    """Values of the requests on the model with other weights in some layers, which are then put back.

    Raises:
        RequestError: if values are known, but not of these requests.
    """
    with restored(model, weights):
        for index, weight in weights.items():
            write_weight(model, index, weight)
        if known is not None:
            return known.of(model, requests, layer, targets, contexts)
        return optimise_targets(model, requests, layer, targets, contexts)


def edit_layers(
    model: EditableModel,
    requests: Sequence[EditRequest],
    layers: Sequence[int],
    targets: TargetSettings,
    contexts: Sequence[str],
    update: Update,
    values_at: Mapping[int, Float[Tensor, "d_v d_k"]] | None = None,
    known: KnownValues | None = None,
) -> tuple[WeightDelta, dict[int, Tensor]]:
    """Move the last layer's output to its values, a share of what is missing in each layer.

    In layer i of L (in order) the residual that is left is divided by the number of layers left, and the
    update is made on the model with the lower layers already edited.

    Args:
        model: restored bit by bit before returning, also after an error.
        requests: n facts.
        layers: edited layers, ascending; values are optimised at the last one.
        targets: settings of the values.
        contexts: prefixes, the empty one first.
        update: layer, keys (d_k, n), residual (d_v, n) -> solution; called on the model that it edits.
        values_at: weights on which the values are optimised; those of the model as it is by default.
        known: values to take instead of optimising them.

    Returns:
        The edit and the keys (d_k, n) of each layer. Keys of a layer depend on lower layers only, so these
        are also its keys in the edited model.

    Source: MEMIT Algorithm 1; AlphaEdit uses it unchanged.
    """
    values = values_on(model, requests, layers[-1], targets, contexts, values_at or {}, known)
    base = fingerprint(model)
    deltas: dict[int, Tensor] = {}
    keys: dict[int, Tensor] = {}
    solutions: dict[int, Solution] = {}
    with restored(model, layers):
        for index, layer in enumerate(layers):
            keys[layer] = subject_keys(model, requests, layer, contexts).double()
            missing = values.values - subject_hidden(model, requests, layers[-1])
            residual = missing.double() / (len(layers) - index)
            solutions[layer] = update(layer, keys[layer], residual)
            deltas[layer] = solutions[layer].delta
            write_weight(model, layer, (read_weight(model, layer).double() + deltas[layer]))
    notes = {
        "contexts": list(contexts),
        "facts": len(requests),
        "condition": {layer: s.condition for layer, s in solutions.items()},
        "fit": {layer: s.fit for layer, s in solutions.items()},
        "step_norm": step_norms(deltas),
        **value_notes(values),
    }
    return WeightDelta(deltas, base, notes), keys


def value_notes(values: Targets) -> dict[str, Any]:
    """What values leave for the record of any edit, one entry per fact.

    Returns:
        ``loss_history``: losses of each fact, as long as it was optimised; ``value_norm`` ‖z‖, ``delta_norm``
        ‖δ‖ and ``hidden_norm`` ‖h₀‖, in units of the state that is moved.
    """
    return {
        "loss_history": [row[row.isfinite()].tolist() for row in values.losses],
        "value_norm": values.values.norm(dim=0).tolist(),
        "delta_norm": values.deltas.norm(dim=0).tolist(),
        "hidden_norm": values.initial.norm(dim=0).tolist(),
    }


def step_norms(deltas: Mapping[int, Float[Tensor, "d_v d_k"]]) -> dict[int, float]:
    """‖ΔW‖ of each layer (Frobenius)."""
    return {layer: float(delta.double().norm()) for layer, delta in deltas.items()}


def joined(past: Mapping[int, Tensor], fresh: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Columns of each layer, the new ones behind the earlier."""
    return {layer: torch.cat([past.get(layer, new[:, :0]), new], 1) for layer, new in fresh.items()}
