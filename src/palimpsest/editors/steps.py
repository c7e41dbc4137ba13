"""Batch after batch of edits, for any editor of weights; each is committed, at the end all are undone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from typing import Protocol, runtime_checkable

from torch import Tensor

from palimpsest.editors import State, check
from palimpsest.editors.base import step_norms
from palimpsest.editors.sequential import SequenceState, Sequential
from palimpsest.network.apply import WeightDelta, commit, restored
from palimpsest.network.model import EditableModel, read_weight
from palimpsest.types import EditRequest


@runtime_checkable
class LayerEditor(Protocol):
    """An editor that says which layers it writes to."""

    @property
    def layers(self) -> tuple[int, ...]:
        """Edited layers."""
        ...

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], state: State | None = None
    ) -> tuple[WeightDelta, State]:
        """As `palimpsest.editors.base.Editor`."""
        ...


@plain_dataclass(frozen=True)
class Step:
    """One committed batch of a sequence; the last one may be post-processing alone, without requests."""

    number: int
    requests: tuple[EditRequest, ...]
    edit: WeightDelta
    state: State


def steps(
    model: EditableModel, editor: LayerEditor, batches: Sequence[Sequence[EditRequest]]
) -> Iterator[Step]:
    """Write batch after batch for good, and hand over after each; at the end every weight is put back.

    Args:
        model: may be asked and scored between the steps; its weights must not be written.
        editor: `Sequential` or any editor of weights.
        batches: requests of each step.

    Yields:
        One Step a batch, while its edit and all earlier ones are in force, and a last one without requests
        if the editor post-processes at the end. Its edit notes ``step_norm`` and ``total_norm``, ‖ΔW‖ of the
        step and of all steps so far by layer, whatever the editor.
    """
    state: State | None = None
    unedited = {layer: read_weight(model, layer).clone() for layer in editor.layers}
    with restored(model, editor.layers):
        for number, requests in enumerate(batches):
            check(requests)
            edit, state = editor.edit(model, requests, state)
            commit(model, edit)
            edit = _with_total(model, edit, unedited)
            yield Step(number, tuple(requests), edit, state)
        if isinstance(editor, Sequential) and isinstance(state, SequenceState):
            final = editor.finish(model, state)
            if final is not None:
                commit(model, final[0])
                yield Step(len(batches), (), *final)


def _with_total(model: EditableModel, edit: WeightDelta, unedited: Mapping[int, Tensor]) -> WeightDelta:
    """The edit with ‖W − W_0‖ of each layer in its notes, where its editor does not note that itself."""
    if "total_norm" in edit.notes:
        return edit
    moved = {layer: read_weight(model, layer).double() - start for layer, start in unedited.items()}
    return replace(edit, notes={**edit.notes, "total_norm": step_norms(moved)})
