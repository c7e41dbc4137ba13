"""Run a sequence of batches with any weight editor: each edit is committed, and at the end all are undone."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from dataclasses import dataclass as plain_dataclass
from typing import Any

from torch import Tensor

from palimpsest import cache
from palimpsest.editors import check
from palimpsest.editors.base import Editor, Score, State, WeightEditor, step_norms
from palimpsest.network.apply import WeightDelta, commit, restored
from palimpsest.network.model import EditableModel, fingerprint, read_weight
from palimpsest.types import EditRequest, EvalCase


@plain_dataclass(frozen=True)
class Step:
    """One committed batch of a sequence; a last step without requests is post-processing.

    Attributes:
        number: of the step, from 0.
        requests: facts of the batch.
        edit: the committed edit.
        state: of the sequence after it.
    """

    number: int
    requests: tuple[EditRequest, ...]
    edit: WeightDelta
    state: State


def run_key(model: EditableModel, editor: Editor, facts: Sequence[EditRequest | EvalCase]) -> dict[str, Any]:
    """What a run of any editor depends on, whatever is asked of it: the first part of a study's cache key."""
    settings: Any = editor
    learnt = editor.learnt(model)
    return {
        **({"learnt": learnt} if learnt else {}),
        "model": fingerprint(model),
        "method": type(editor).__name__,
        "sequence": asdict(settings),
        "facts": cache.digest([asdict(fact) for fact in facts]),
    }


def steps(
    model: EditableModel,
    editor: WeightEditor,
    batches: Sequence[Sequence[EditRequest]],
    score: Score | None = None,
) -> Iterator[Step]:
    """Commit batch after batch and yield after each; at the end the unedited weights are restored.

    Args:
        model: the unedited model; it may be evaluated between the steps, but its weights must not be written.
        editor: any weight editor.
        batches: requests of each step.
        score: for editors with a ``score_rule``.

    Yields:
        One Step per batch, with its edit and all earlier ones in force, and a last one without requests if
        the editor post-processes at the end. For every editor the notes of the edit hold ``step_norm`` and
        ``total_norm``: layer -> ‖ΔW‖ of the step, and ‖W − W_0‖ (Frobenius).

    Raises:
        RequestError: if a batch is empty or has the same subject and prompt twice.
        As `palimpsest.editors.base.Editor.edit`; the weights are restored.
    """
    state = editor.begin(score=score)
    unedited = {layer: read_weight(model, layer).clone() for layer in editor.layers}
    with restored(model, editor.layers):
        for number, requests in enumerate(batches):
            check(requests)
            edit, state = editor.edit(model, requests, state)
            commit(model, edit)
            edit = with_total(model, edit, unedited)
            yield Step(number, tuple(requests), edit, state)
        final = editor.finish(model, state) if batches else None
        if final is not None:
            edit, state = final
            commit(model, edit)
            yield Step(len(batches), (), with_total(model, edit, unedited), state)


def with_total(model: EditableModel, edit: WeightDelta, unedited: Mapping[int, Tensor]) -> WeightDelta:
    """Add ``total_norm``, ‖W − W_0‖ of each layer, to the notes of a committed edit that lacks it."""
    if "total_norm" in edit.notes:
        return edit
    moved = {layer: read_weight(model, layer).double() - start for layer, start in unedited.items()}
    return replace(edit, notes={**edit.notes, "total_norm": step_norms(moved)})
