"""What an edited model computes with ledgers: batches on their own, and solutions without a history."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from palimpsest.algebra.ledger import EditLedger
from palimpsest.editors.base import Prepared
from palimpsest.editors.sequential import SequenceState, Sequential
from palimpsest.errors import NonFiniteError
from palimpsest.network.apply import restored
from palimpsest.network.model import EditableModel, write_weight
from palimpsest.types import EditRequest


def lean(state: SequenceState) -> SequenceState:
    """A state without second moments and second copies: the ledgers hold what they need of them."""
    for ledger in state.ledgers.values():
        ledger.spill()
    unedited = {layer: ledger.base for layer, ledger in state.ledgers.items()}
    return replace(state, prepared=Prepared(state.prepared.contexts), unedited=unedited)


def state_of(ledgers: dict[int, EditLedger], contexts: tuple[str, ...], steps: int) -> SequenceState:
    """The state of a sequence whose ledgers were read from files."""
    for ledger in ledgers.values():
        ledger.spill()
    unedited = {layer: ledger.base for layer, ledger in ledgers.items()}
    weights = {layer: ledger.weight for layer, ledger in ledgers.items()}
    return SequenceState(
        Prepared(contexts), ledgers=ledgers, unedited=unedited, weights=weights, steps=max(steps, 1)
    )


def solutions(
    ledgers: Mapping[int, EditLedger],
) -> tuple[dict[int, EditLedger], dict[int, Float[Tensor, "d_v d_k"]]]:
    """Layer -> its ledger solved without a history, and the weight of that in the model's dtype.

    Raises:
        NonFiniteError: if a weight does not fit into that dtype.
    """
    solved = {layer: anew(ledger) for layer, ledger in ledgers.items()}
    rounded = {layer: rounded_weight(ledger) for layer, ledger in solved.items()}
    for layer, weight in rounded.items():
        if not torch.isfinite(weight).all():
            raise NonFiniteError(
                f"layer {layer}: a weight does not fit into {weight.dtype}; nothing was changed. A larger "
                "ridge or preserve_weight makes smaller updates"
            )
    return solved, rounded


def computed_alone(
    model: EditableModel, facts: Sequence[EditRequest], editor: Sequential, state: SequenceState
) -> tuple[dict[int, EditLedger], dict[str, float]]:
    """Keys and values of one batch, without a trace of the facts that are held beside it.

    A sequence passes a ledger the residual that its weight leaves, and the rounding of that depends on all
    other facts. Here the ledgers hold nothing else, so that a fact has the same bits whatever came before it.

    Args:
        model: with any facts in force; its weights are as before afterwards.
        facts: the batch, each with an id.
        editor: settings of the values, which read the unedited model.
        state: of the sequence, whose unedited weights and prefixes count.

    Returns:
        Layer -> ledger of these facts alone, of which only ids, keys and values count; and id -> loss at the
        end of the optimisation of the fact's value.

    Raises:
        As `Sequential.edit`.
    """
    empty = {i: EditLedger(weight, ridge=1.0, site=f"layer {i}") for i, weight in state.unedited.items()}
    weights = {layer: weight.double() for layer, weight in state.unedited.items()}
    with restored(model, state.unedited):
        for layer, weight in state.unedited.items():
            write_weight(model, layer, weight)
        edit, after = editor.edit(model, facts, replace(state, ledgers=empty, weights=weights))
    ends = [losses[-1] for losses in edit.notes["loss_history"]]
    return dict(after.ledgers), dict(zip([fact.id for fact in facts], ends, strict=True))


def joined(
    state: SequenceState, alone: dict[int, EditLedger]
) -> tuple[dict[int, EditLedger], dict[int, Float64[Tensor, "d_v d_k"]]]:
    """Ledgers with the facts of `computed_alone` added, and their weights."""
    ledgers, weights = {}, {}
    for layer, found in alone.items():
        ledgers[layer] = state.ledgers[layer].copy()
        weights[layer] = state.weights[layer] + ledgers[layer].insert(found.keys, found.values, found.ids)
    return ledgers, weights


def anew(ledger: EditLedger) -> EditLedger:
    """A ledger of the same facts in the order of their ids, recomputed, so that its history has no effect."""
    order = sorted(range(len(ledger)), key=ledger.ids.__getitem__)
    fresh = ledger.copy()
    fresh.forget(ledger.ids)
    ids = [ledger.ids[i] for i in order]
    fresh.insert(ledger.keys[:, order], ledger.values[:, order], ids, ledger.weights[order])
    return fresh


def rounded_weight(ledger: EditLedger) -> Tensor:
    """Weight (d_v, d_k) of a ledger in the dtype of W_0; without facts W_0 itself, bit by bit."""
    return ledger.weight.to(ledger.base.dtype) if len(ledger) else ledger.base
