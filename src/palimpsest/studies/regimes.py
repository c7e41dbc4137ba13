"""The regime of a run: measured from the edits it made and the quantities they were made with."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from palimpsest.editors.base import Prepared, WeightEditor, value_notes
from palimpsest.errors import ScoreError
from palimpsest.memory.settings import TargetSettings
from palimpsest.memory.values import Targets
from palimpsest.network.model import EditableModel, read_weight
from palimpsest.results.regime import Regime

AT_CLAMP = 1e-3
"""Relative distance below its bound at which ‖δ‖ counts as clamped; rounding is far smaller."""


def regime_of(
    model: EditableModel,
    editor: WeightEditor,
    notes: Sequence[Mapping[str, Any]],
    prepared: Prepared | None = None,
) -> Regime:
    """The regime of a sequence of edits, from the notes that its edits carry.

    Args:
        model: for the shapes of its weights.
        editor: with its settings; one without values or ridge leaves these numbers unknown.
        notes: of each edit of the sequence, in order (``edit.notes``).
        prepared: second moments and projectors that the editor used; without them ridge and projector are
            unknown.

    Raises:
        ScoreError: if there is no edit.
    """
    notes = [note for note in notes if note["facts"]]  # post-processing at the end of a sequence writes none
    if not notes:
        raise ScoreError("a regime is that of edits that were made; give the notes of at least one")
    d_v, d_k = read_weight(model, editor.layers[-1]).shape
    facts = sum(int(note["facts"]) for note in notes)
    return Regime(
        load=facts / d_k,
        **_of_values(getattr(editor, "targets", None), notes, d_v),
        **_of_problem(editor, prepared or Prepared()),
    )


def planned_regime(model: EditableModel, editor: WeightEditor, values: Targets, facts: int) -> Regime:
    """The regime of a run that is to write some facts, from values optimised on the unedited model.

    Args:
        model: the unedited model.
        editor: with its settings; what it prepares of the model is computed.
        values: of some of the facts, optimised with the editor's settings.
        facts: how many facts the run writes.
    """
    return regime_of(model, editor, [{"facts": facts, **value_notes(values)}], editor.prepare(model))


def _of_values(
    targets: TargetSettings | None, notes: Sequence[Mapping[str, Any]], d_v: int
) -> dict[str, float]:
    """Numbers of the optimisation of values; none for an editor without values."""
    if targets is None or not all("delta_norm" in note for note in notes):
        return {}
    delta, state = (
        torch.tensor([x for note in notes for x in note[name]]) for name in ("delta_norm", "hidden_norm")
    )
    losses = [history[-1] for note in notes for history in note["loss_history"] if history]
    bound = targets.longest(state)  # (n,)
    return {
        "step": float(targets.lr * d_v**0.5 / state.mean()),
        "clamp": targets.clamp,
        "clamped": float((delta >= (1 - AT_CLAMP) * bound).double().mean()),
        "loss": sum(losses) / len(losses),
    }


def _of_problem(editor: WeightEditor, prepared: Prepared) -> dict[str, float]:
    """Numbers of the least-squares problem, means over the edited layers."""
    held: dict[str, float] = {}
    if hasattr(editor, "preserve_weight"):
        held["anchor"] = float(editor.preserve_weight)
    moments = [prepared.moments[layer].double() for layer in editor.layers if layer in prepared.moments]
    if hasattr(editor, "ridge") and len(moments) == len(editor.layers):
        held["ridge"] = float(editor.ridge / torch.stack([moment.trace() for moment in moments]).mean())
    if getattr(editor, "rule", None) is None:
        return held | {"free_directions": 1.0, "free_energy": 1.0}
    projectors = [prepared.projectors[layer] for layer in editor.layers if layer in prepared.projectors]
    if len(projectors) < len(editor.layers):
        return held
    kept = [projector.kept / projector.dim for projector in projectors]
    energy = [1 - projector.protected_energy for projector in projectors]
    return held | {"free_directions": sum(kept) / len(kept), "free_energy": sum(energy) / len(energy)}
