"""Base of all editors: interface, quantities of the unedited model, and updates distributed over layers."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from palimpsest.algebra.projector import Projector, projectors
from palimpsest.algebra.solve import Solution
from palimpsest.errors import StateError
from palimpsest.memory.behind_norms import asked_of_map
from palimpsest.memory.contexts import sample_contexts
from palimpsest.memory.keys import read_ascending
from palimpsest.memory.known_values import KnownValues
from palimpsest.memory.moments import key_statistics
from palimpsest.memory.settings import ContextSettings, TargetSettings
from palimpsest.memory.values import Targets, optimise_targets
from palimpsest.network.apply import Edit, WeightDelta, restored
from palimpsest.network.model import EditableModel, fingerprint, read_weight, write_weight
from palimpsest.types import EditRequest, Shown, span

Score = Callable[[EditableModel, Sequence[EditRequest]], float]
"""(model with a trial edit in force, requests) -> score of its answers; higher is better."""


@dataclass(frozen=True, repr=False)
class Prepared(Shown):
    """Quantities that depend on the unedited model only; many sequences of edits can share them.

    Attributes:
        contexts: prefixes sampled from the model, the empty one first.
        moments: layer -> C₀ (d_k, d_k), second moment of the model's keys.
        projectors: layer -> null-space projector of C₀, for editors that use one.
        known: values already optimised on the model; None if they are to be computed.
    """

    contexts: tuple[str, ...] = ()
    moments: Mapping[int, Float[Tensor, "d_k d_k"]] = field(default_factory=dict)
    projectors: Mapping[int, Projector] = field(default_factory=dict)
    known: KnownValues | None = None

    def shown(self) -> dict[str, object]:
        """What is there already."""
        known = {} if self.known is None else {"values of": f"{len(self.known.columns)} facts"}
        return {
            "contexts": len(self.contexts),
            "moments of layers": span(self.moments),
            "projectors of layers": span(self.projectors),
        } | known


@dataclass(frozen=True, repr=False)
class State(Shown):
    """State of a sequence of edits, passed from each edit to the next. Every method has its own subclass.

    Attributes:
        prepared: quantities of the unedited model that the method uses.
    """

    prepared: Prepared = field(default_factory=Prepared)

    def shown(self) -> dict[str, object]:
        """What the method keeps, by name: how much of it."""
        own = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "prepared"}
        return {name: _amount(value) for name, value in own.items()} | self.prepared.shown()


def _amount(value: object) -> str:
    """What a state holds, in short: tensors by layer, tuples by length, anything else as it is."""
    if isinstance(value, Mapping):
        return f"layers {span(value)}"
    if isinstance(value, tuple | list):
        return str(len(value))
    if callable(value):
        return getattr(value, "__name__", type(value).__name__)
    return str(value)


class Editor:
    """Interface of all methods: requests in, an edit and the next state out; no weight of the model changes.

    A method is a subclass whose fields are its settings and which implements `edit`, with a subclass of
    `State` that it names in ``keeps``. Weights written meanwhile are restored bit by bit.

    Attributes:
        keeps: class of the method's states.
        printed: name of the method in the notes of an edit; a class that gives none has its own name.
        score_rule: which wordings of a fact the method scores while it edits, a name from
            `palimpsest.evaluation.smoothing_score`; None for a method that needs no score.
        noted: entries of its edits' notes, layer -> number, that studies keep for each step.
    """

    keeps: ClassVar[type[State]] = State
    printed: ClassVar[str] = "Editor"
    noted: ClassVar[tuple[str, ...]] = ()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "printed" not in vars(cls):
            cls.printed = cls.__name__

    @property
    def score_rule(self) -> str | None:
        """None: no score is needed."""
        return None

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], state: State | Prepared | None = None
    ) -> tuple[Edit, State]:
        """Compute an edit that writes all requests at once.

        Args:
            model: with all earlier edits of the sequence committed.
            requests: at least one.
            state: returned by the previous edit; for the first edit of a sequence a `Prepared`, or None.

        Returns:
            The edit and the state for the next call.

        Raises:
            StateError: if the state belongs to another method.
        """
        raise NotImplementedError(f"{type(self).__name__} does not say how it edits")

    def prepare(self, model: EditableModel, prepared: Prepared | None = None) -> Prepared:
        """Compute what the method needs of the unedited model; entries already present are kept."""
        return prepared or Prepared()

    def learnt(self, model: EditableModel) -> str:
        """Hash of what the editor learnt beforehand for a model; empty for one that is not trained."""
        return ""

    def begin(self, prepared: Prepared | None = None, score: Score | None = None) -> State:
        """State of a sequence before its first edit.

        Args:
            prepared: of the unedited model; the first edit computes missing entries.
            score: for methods with a ``score_rule``; others ignore it.
        """
        return self.keeps(prepared or Prepared())

    def own(self, state: State | Prepared | None) -> Any:
        """Check that a state belongs to this method; None or a `Prepared` gives a new state.

        Raises:
            StateError: if it belongs to another method.
        """
        if state is None or isinstance(state, Prepared):
            return self.begin(state)
        if type(state) is not self.keeps:
            raise StateError(
                f"{type(self).__name__} goes on from a {self.keeps.__name__} and was given a "
                f"{type(state).__name__}: each method keeps something else of its earlier edits. Pass "
                "state.prepared to begin a new sequence with the same contexts, moments and projectors, or "
                "None to begin with nothing"
            )
        return state


class WeightEditor(Editor):
    """Base of editors that change weights; every study accepts any of them.

    Attributes:
        layers: edited layers, ascending.
    """

    layers: tuple[int, ...]

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], state: State | Prepared | None = None
    ) -> tuple[WeightDelta, State]:
        """As `Editor.edit`."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it edits")

    def finish(self, model: EditableModel, state: State) -> tuple[WeightDelta, State] | None:
        """The last edit of a sequence, such as post-processing, and the state after it, or None."""
        return None


def start(
    model: EditableModel,
    prepared: Prepared | None,
    contexts: ContextSettings,
    layers: Sequence[int],
    statistics_tokens: int,
) -> Prepared:
    """Sample missing contexts and compute missing second moments on the current model.

    Args:
        model: the unedited model.
        prepared: entries already computed; they are kept.
        contexts: settings of the prefixes.
        layers: layers whose second moment is needed.
        statistics_tokens: number of tokens from which a second moment is estimated.
    """
    prepared = prepared or Prepared()
    if not prepared.contexts:
        sampled = sample_contexts(model, contexts.count, contexts.length, contexts.seed)
        prepared = replace(prepared, contexts=sampled)
    missing = [layer for layer in layers if layer not in prepared.moments]
    if missing:
        fresh = key_statistics(model, missing, statistics_tokens)
        moments = {layer: moment.value for layer, moment in fresh.items()}
        prepared = replace(prepared, moments={**prepared.moments, **moments})
    return prepared


def with_projectors(
    prepared: Prepared, layers: Sequence[int], rule: str | None, threshold: float
) -> Prepared:
    """Add projectors for the layers that have none yet; without a rule nothing is added.

    Raises:
        StateError: if a layer has a projector that was made by another rule or threshold.
        ProfileError: if the rule protects every direction of a layer.
    """
    if rule is None:
        return prepared
    for layer in layers:
        held = prepared.projectors.get(layer)
        made = held.rule if held is not None else None
        if made is not None and (made.name, made.parameter) != (rule, threshold):
            raise StateError(
                f"layer {layer}: the projector handed on has rule {made.name!r} at {made.parameter:g}, and "
                f"this editor asks for {rule!r} at {threshold:g}; hand on a Prepared without projectors, or "
                "give both editors the same rule and threshold"
            )
    missing = {layer: prepared.moments[layer] for layer in layers if layer not in prepared.projectors}
    fresh = projectors(missing, rule, threshold)
    return replace(prepared, projectors={**prepared.projectors, **fresh})


Update = Callable[[int, Tensor, Tensor], Solution]
"""(layer, keys (d_k, n), residual (d_v, n)) -> solution with the update of that layer."""


def values_on(
    model: EditableModel,
    requests: Sequence[EditRequest],
    layer: int,
    targets: TargetSettings,
    contexts: Sequence[str],
    weights: Mapping[int, Float[Tensor, "d_v d_k"]] | None = None,
    known: KnownValues | None = None,
) -> Targets:
    """Values of the requests at a layer, optimised on the model or taken from ``known``.

    Args:
        model: restored bit by bit before returning.
        requests: n facts.
        layer: at whose output values are optimised.
        targets: settings of the optimisation.
        contexts: prefixes, the empty one first.
        weights: layer -> weight (d_v, d_k) that replaces the model's meanwhile.
        known: values already optimised with these weights.

    Raises:
        RequestError: if values are known, but not of these requests.
    """
    with restored(model, weights or {}):
        for index, weight in (weights or {}).items():
            write_weight(model, index, weight)
        if known is not None:
            return known.of(model, requests, layer, targets, contexts)
        return optimise_targets(model, requests, layer, targets, contexts)


def edit_layers(
    model: EditableModel,
    requests: Sequence[EditRequest],
    layers: Sequence[int],
    values: Targets,
    contexts: Sequence[str],
    update: Update,
) -> tuple[WeightDelta, dict[int, Tensor]]:
    """Move the last layer's output to the values, with the residual distributed over the layers.

    At each layer, in ascending order, the remaining residual is divided by the number of layers that remain;
    the update is computed on the model with the lower layers already edited.

    Args:
        model: restored bit by bit before returning, also after an error.
        requests: n facts.
        layers: edited layers, ascending.
        values: of the requests at the last layer, from `values_on`.
        contexts: prefixes, the empty one first.
        update: (layer, keys (d_k, n), residual (d_v, n)) -> solution; called with the lower layers edited.

    Returns:
        The edit and the keys (d_k, n) of each layer, float64. Keys of a layer depend on lower layers only, so
        these are also its keys in the edited model.

    Source: MEMIT Algorithm 1; AlphaEdit uses it unchanged.
    """
    base = fingerprint(model)
    deltas: dict[int, Tensor] = {}
    keys: dict[int, Tensor] = {}
    solutions: dict[int, Solution] = {}
    with restored(model, layers):
        for index, read in enumerate(read_ascending(model, requests, layers, contexts)):
            layer, keys[read.layer] = read.layer, read.keys.double()
            share = (values.values - read.hidden).double() / (len(layers) - index)
            residual = asked_of_map(model, layer, read.inside, share)
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
    """Losses and norms of the values, one entry per fact, for the notes of an edit.

    Returns:
        ``loss_history``: losses of each fact at the steps at which it was optimised; ``value_norm`` ‖z‖,
        ``delta_norm`` ‖δ‖ and ``hidden_norm`` ‖h₀‖, in units of the hidden state that is optimised.
    """
    return {
        "loss_history": [row[row.isfinite()].tolist() for row in values.losses],
        "value_norm": values.values.norm(dim=0).tolist(),
        "delta_norm": values.deltas.norm(dim=0).tolist(),
        "hidden_norm": values.initial.norm(dim=0).tolist(),
    }


def step_norms(deltas: Mapping[int, Float[Tensor, "d_v d_k"]]) -> dict[int, float]:
    """Frobenius norm ‖ΔW‖ of each layer's update."""
    return {layer: float(delta.double().norm()) for layer, delta in deltas.items()}


def joined(past: Mapping[int, Tensor], fresh: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """Append the new columns of each layer to the past ones."""
    return {layer: torch.cat([past.get(layer, new[:, :0]), new], 1) for layer, new in fresh.items()}
