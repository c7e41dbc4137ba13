"""Sequential editing: one least-squares objective, and which facts it keeps from one batch to the next.

Each edited layer has an exact ledger of facts (`palimpsest.algebra.ledger`); the settings decide what is
inserted and forgotten. They are independent of each other, and every published variant is one combination
(``config/sequences.yaml``):

    retain     none     a new problem at the current weights: the naive sequence
               latest   forget the last batch, then insert this one: memorize-the-latest, exactly
               all      insert this batch in addition to all earlier ones: aligned with one-time editing
    preserve   weight of C₀ in the objective; 0 leaves it out
    projector  updates stay in the null space of C₀, given by ``rule`` and ``threshold``
    post       post-processing of a step's update (RECT, PRUNE)
    feedback   the next step compensates for what ``post`` removed (Labyrinth Algorithm 1)
    values     optimised once, on the unedited model, or at each step on the current model (as published)
    reads      keys and residuals are read on the edited model (as published) or on the unedited one

Exact: with ``post`` none or ``feedback`` on, each layer's weight (before the last post-processing) is W_0
plus the one-time solution over the keys and values in its ledger, however they were split into batches.
Not exact: with ``reads="edited"`` these keys and values depend on earlier edits, in lower layers and earlier
steps, so another order of the facts, or one edit of all of them, gives other keys and values. With
``reads="unedited"`` and values computed once they depend on the fact alone, and the whole model is exact.

Source: The Labyrinth and the Thread, Prop. 3.2, Algorithm 1, Eq. 3, 4 and 31.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import field, replace
from typing import Annotated, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from palimpsest.algebra.ledger import EditLedger
from palimpsest.algebra.postprocess import Post
from palimpsest.algebra.projector import Projector
from palimpsest.algebra.spectrum import PUBLISHED_THRESHOLD, eigendirections
from palimpsest.editors.base import (
    Prepared,
    State,
    WeightEditor,
    start,
    value_notes,
    values_on,
    with_projectors,
)
from palimpsest.editors.settings import Layers, StateTargets
from palimpsest.errors import SequenceError
from palimpsest.memory.behind_norms import asked_of_map
from palimpsest.memory.keys import Reads, read_ascending, read_unedited
from palimpsest.memory.settings import ContextSettings, TargetSettings
from palimpsest.memory.values import Targets
from palimpsest.network.apply import WeightDelta, restored
from palimpsest.network.model import EditableModel, fingerprint, read_weight, write_weight
from palimpsest.types import EditRequest

PRESERVED = "preserved "
"""Prefix of the ids of preserved directions, used when C₀ enters a step as facts."""


@plain_dataclass(frozen=True, repr=False)
class SequenceState(State):
    """State of a sequence.

    Attributes:
        ledgers: layer -> exact ledger after the last step.
        unedited: layer -> W_0 (d_v, d_k), in the model's precision.
        weights: layer -> weight after the last step (d_v, d_k), float64.
        steps: batches written so far.
    """

    ledgers: Mapping[int, EditLedger] = field(default_factory=dict)
    unedited: Mapping[int, Float[Tensor, "d_v d_k"]] = field(default_factory=dict)
    weights: Mapping[int, Float[Tensor, "d_v d_k"]] = field(default_factory=dict)
    steps: int = 0


@dataclass(frozen=True, config={"extra": "forbid"})
class Sequential(WeightEditor):
    """Editor for sequences of batches; the settings are described in the module's docstring.

    Attributes:
        layers: edited layers, ascending.
        retain, post, feedback, values, reads: see the module.
        preserve_weight: λ₀ of C₀, in average keys; 0 leaves C₀ out.
        anchor: with ``retain="none"``, which outputs on preserved keys a step keeps: those of the current
            weights (``step``, naive MEMIT) or of the unedited ones (``start``, the full normal equation,
            Labyrinth Eq. 4, and the released MEMIT_forgetting).
        ridge: λ of ‖Δ‖² with ``retain="none"``, of ‖W − W_0‖² otherwise.
        rule, threshold: which eigenvalues of C₀ count as protected; without a rule there is no projector.
        statistics_tokens: number of tokens from which C₀ is estimated.
        targets, contexts: settings of the value optimisation and of its prefixes.
    """

    keeps = SequenceState

    layers: Layers
    retain: Literal["none", "latest", "all"] = "all"
    preserve_weight: float = Field(default=0.0, ge=0)
    anchor: Literal["step", "start"] = "step"
    ridge: float = Field(default=0.0, ge=0)
    rule: Literal["absolute", "relative", "energy"] | None = None
    threshold: float = Field(default=PUBLISHED_THRESHOLD, ge=0)
    post: Annotated[Post, Field(discriminator="kind")] | None = None
    feedback: bool = False
    values: Literal["once", "each_step"] = "once"
    reads: Literal["edited", "unedited"] = "edited"
    statistics_tokens: int = Field(default=100_000, ge=1)
    targets: StateTargets = TargetSettings()
    contexts: ContextSettings = ContextSettings()

    def __post_init__(self) -> None:
        if self.feedback and self.retain == "none":
            raise ValueError("feedback needs a problem that goes on; set retain to 'all' or 'latest'")
        if self.reads == "unedited" and self.values == "each_step":
            raise ValueError("values of the edited model do not fit reads='unedited'; set values='once'")
        if self.anchor == "start" and (self.retain != "none" or self.preserve_weight == 0):
            raise ValueError("anchor='start' needs retain='none' and a preserve_weight above 0")

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], state: State | Prepared | None = None
    ) -> tuple[WeightDelta, SequenceState]:
        """Write one batch; commit it before the next call. See `palimpsest.edit`.

        Raises:
            SequenceError: if the state belongs to other layers, or its weights differ from the model's.
            ProfileError: if the rule protects every direction.
        """
        at = self.set_up(model, self.own(state))
        contexts = at.prepared.contexts
        ids = [request.id or request.text for request in requests]
        base = fingerprint(model)
        ledgers, weights, notes = dict(at.ledgers), dict(at.weights), _Notes()
        with restored(model, self.layers):
            values = self._values(model, requests, at)
            for index, read in enumerate(self._reads(model, requests, at)):
                layer, keys = read.layer, read.keys.double()
                edited = self.reads == "edited"
                share = (values.values - read.hidden).double() / (len(self.layers) - index * edited)
                share = asked_of_map(model, layer, read.inside, share)
                wanted = (weights[layer] if edited else at.unedited[layer].double()) @ keys + share
                ledgers[layer], asked = self._step(at, layer, keys, wanted, ids)
                delta = self._processed(asked, at, layer)
                weights[layer] = at.weights[layer] + delta
                notes.layer(layer, ledgers[layer], delta, weights[layer] - at.unedited[layer].double())
                write_weight(model, layer, weights[layer])
        deltas = {layer: weights[layer] - read_weight(model, layer).double() for layer in self.layers}
        edit = WeightDelta(deltas, base, notes.of(values, contexts))
        return edit, replace(at, ledgers=ledgers, weights=weights, steps=at.steps + 1)

    def finish(self, model: EditableModel, state: State) -> tuple[WeightDelta, SequenceState] | None:
        """The edit made by post-processing at the end of a sequence; None without it, or before any step."""
        at: SequenceState = self.own(state)
        if self.post is None or not self.post.at_end or not at.steps:
            return None
        at = self.set_up(model, at)
        weights, notes = {}, _Notes()
        for layer in self.layers:
            nothing = torch.zeros_like(at.weights[layer])
            delta = self.post(nothing, at.weights[layer], at.unedited[layer].double())
            weights[layer] = at.weights[layer] + delta
            notes.norms(layer, delta, weights[layer] - at.unedited[layer].double())
        deltas = {i: weights[i] - read_weight(model, i).double() for i in self.layers}
        edit = WeightDelta(deltas, fingerprint(model), {"facts": 0, **notes.kept})
        return edit, replace(at, weights=weights)

    def prepare(self, model: EditableModel, prepared: Prepared | None = None) -> Prepared:
        """Compute contexts, second moments and, if there is a rule, projectors; existing entries are kept.

        Raises:
            ProfileError: if the rule protects every direction of a layer.
        """
        at = start(model, prepared, self.contexts, self.layers, self.statistics_tokens)
        return with_projectors(at, self.layers, self.rule, self.threshold)

    def set_up(self, model: EditableModel, state: SequenceState = SequenceState()) -> SequenceState:
        """The state before the first step: ledgers without facts. One that has them is checked and returned.

        Raises:
            SequenceError: if the state belongs to other layers, or its weights differ from the model's.
            ProfileError: if the rule protects every direction.
        """
        if state.weights:
            _same_layers(self.layers, state.weights)
            _same_weights(model, state.weights)
            return state
        unedited = {layer: read_weight(model, layer).clone() for layer in self.layers}
        weights = {layer: weight.double() for layer, weight in unedited.items()}
        prepared = self.prepare(model, state.prepared)
        fresh = replace(state, prepared=prepared, unedited=unedited, weights=weights)
        return replace(fresh, ledgers={i: self._ledger(fresh, i, unedited[i]) for i in self.layers})

    def _ledger(self, state: SequenceState, layer: int, weight: Tensor) -> EditLedger:
        """A ledger without facts, anchored at a weight."""
        preserve = self.preserve_weight * state.prepared.moments[layer] if self.preserve_weight else None
        if self.anchor == "start":
            preserve = None  # C₀ enters each step as facts instead
        return EditLedger(weight, preserve, self.ridge, self._projector(state, layer), site=f"layer {layer}")

    def _projector(self, state: SequenceState, layer: int) -> Projector | None:
        return state.prepared.projectors[layer] if self.rule is not None else None

    def _values(self, model: EditableModel, requests: Sequence[EditRequest], state: SequenceState) -> Targets:
        """Values of the requests, optimised on the unedited weights unless ``values="each_step"``."""
        settings = (self.layers[-1], self.targets, state.prepared.contexts)
        if self.values == "each_step":
            return values_on(model, requests, *settings)
        return values_on(model, requests, *settings, state.unedited, state.prepared.known)

    def _reads(
        self, model: EditableModel, requests: Sequence[EditRequest], state: SequenceState
    ) -> Iterable[Reads]:
        """What each layer's update is computed from: read with the lower layers edited, or all unedited."""
        asked = (requests, self.layers, state.prepared.contexts)
        if self.reads == "edited":
            return read_ascending(model, *asked)
        with restored(model, self.layers):
            _write(model, state.unedited)
            return read_unedited(model, *asked)

    def _step(
        self, state: SequenceState, layer: int, keys: Tensor, wanted: Tensor, ids: Sequence[str]
    ) -> tuple[EditLedger, Tensor]:
        """The ledger after this batch, and its update before post-processing."""
        weight = state.weights[layer]
        if self.retain == "none":
            fresh = self._ledger(state, layer, weight)
            if self.anchor == "start":
                held, names = preserved_keys(self.preserve_weight * state.prepared.moments[layer])
                keys, ids = torch.cat([held, keys], 1), [*names, *ids]
                wanted = torch.cat([state.unedited[layer].double() @ held, wanted], 1)
            return fresh, fresh.insert(keys, wanted, ids)
        ledger = state.ledgers[layer].copy()
        if not self.feedback:
            # Pass the residual alone: the values are shifted as if the ledger's weight were the model's.
            wanted = wanted + ledger.outputs(keys) - weight @ keys
        forgotten = ledger.forget(ledger.ids) if self.retain == "latest" and ledger.ids else 0.0
        step = forgotten + ledger.insert(keys, wanted, ids, resolve="new")
        return ledger, ledger.weight - weight if self.feedback else step

    def _processed(self, asked: Tensor, state: SequenceState, layer: int) -> Tensor:
        if self.post is None or self.post.at_end:
            return asked
        return self.post(asked, state.weights[layer], state.unedited[layer].double())


class _Notes:
    """Notes of one step for the record: norms and condition numbers by layer, losses of the values."""

    def __init__(self) -> None:
        self.kept: dict[str, dict[int, float]] = {"condition": {}, "step_norm": {}, "total_norm": {}}

    def layer(self, layer: int, ledger: EditLedger, delta: Tensor, total: Tensor) -> None:
        self.kept["condition"][layer] = ledger.condition
        self.norms(layer, delta, total)

    def norms(self, layer: int, delta: Tensor, total: Tensor) -> None:
        self.kept["step_norm"][layer] = float(delta.norm())
        self.kept["total_norm"][layer] = float(total.norm())

    def of(self, values: Targets, contexts: Sequence[str]) -> dict[str, object]:
        facts = values.values.shape[1]
        return {"contexts": list(contexts), "facts": facts, **value_notes(values), **self.kept}


def preserved_keys(moment: Float[Tensor, "d_k d_k"]) -> tuple[Float[Tensor, "d_k r"], list[str]]:
    """Columns K0 with K0K0ᵀ equal to a moment, one for each nonzero eigenvalue, and an id for each."""
    spectrum, vectors = eigendirections(moment)
    held = spectrum > torch.finfo(torch.float64).eps * spectrum[0]
    columns = vectors[:, held] * spectrum[held].sqrt()
    return columns, [f"{PRESERVED}{i}" for i in range(columns.shape[1])]


def _write(model: EditableModel, weights: Mapping[int, Tensor]) -> None:
    for layer, weight in weights.items():
        write_weight(model, layer, weight)


def _same_layers(layers: Sequence[int], weights: Mapping[int, Tensor]) -> None:
    if list(layers) != sorted(weights):
        raise SequenceError(
            f"the state is of a sequence in layers {sorted(weights)}, this one edits {list(layers)}; go on "
            "in the same layers, or start again without a state"
        )


def _same_weights(model: EditableModel, weights: Mapping[int, Tensor]) -> None:
    for layer, weight in weights.items():
        now = read_weight(model, layer)
        gap = float((now.double() - weight).norm() / weight.norm())
        if not gap <= 8 * torch.finfo(now.dtype).eps:
            raise SequenceError(
                f"layer {layer}: the model's weight differs from the one this sequence left by a share of "
                f"{gap:.1e}; commit each edit before the next one, or start again without a state"
            )
