"""Norms recorded along a sequence of edits: values, changes of hidden states, weight updates.

Every editor writes them to the notes of its edit (`palimpsest.editors.base.value_notes`,
`palimpsest.editors.steps.steps`); here they are collected into a table. A long sequence takes an hour, so its
table is cached on disk under the hash of everything it depends on.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from palimpsest import cache
from palimpsest.editors.base import WeightEditor
from palimpsest.editors.steps import Step, steps
from palimpsest.errors import NonFiniteError, SingularProblemError
from palimpsest.network.model import EditableModel, fingerprint
from palimpsest.types import EditRequest

REVISION = 1
"""Part of the cache key; increase it when the code gives a different table for the same sequence."""

COLUMNS = ("step", "edits", "norm", "of", "value")
OF_FACTS = ("hidden_norm", "delta_norm", "value_norm")
OF_LAYERS = ("step_norm", "total_norm")
_Row = tuple[int, int, str, str, float]


def norm_trace(
    model: EditableModel, editor: WeightEditor, batches: Sequence[Sequence[EditRequest]]
) -> pd.DataFrame:
    """Norms at each step of a sequence, read from disk if the same sequence was run before.

    Args:
        model: the unedited model; restored at the end.
        editor: any weight editor, with its settings.
        batches: requests of each step.

    Returns:
        Columns ``step`` (from 1), ``edits`` (written so far), ``norm``, ``of`` and ``value``. Norms are
        ``hidden_norm`` ‖h₀‖, ``delta_norm`` ‖δ‖ and ``value_norm`` ‖z‖ of a fact, by id or text, for editors
        with values; and ``step_norm`` and ``total_norm``, ‖ΔW‖ of the step and ‖W − W_0‖ (Frobenius), by
        layer. If a step fails, a last row has norm ``stopped`` of ``model`` with value 1.

    Raises:
        ProfileError: if the editor needs a score; take `palimpsest.studies.trajectory` then.
        ResourceError: if the stored table is damaged or cannot be written.
    """
    settings: Any = editor
    key = {
        "revision": REVISION,
        "model": fingerprint(model),
        "editor": [type(editor).__name__, asdict(settings)],
        "batches": [[asdict(request) for request in batch] for batch in batches],
    }
    return cache.table("norms", key, COLUMNS, lambda: _rows(model, editor, batches))


def _rows(
    model: EditableModel, editor: WeightEditor, batches: Sequence[Sequence[EditRequest]]
) -> Iterator[_Row]:
    number, edits = 0, 0
    try:
        for step in steps(model, editor, batches):
            number, edits = step.number + 1, edits + len(step.requests)
            yield from ((number, edits, *row) for row in noted_norms(step))
    except (NonFiniteError, SingularProblemError):
        yield number + 1, edits, "stopped", "model", 1.0


def noted_norms(step: Step) -> Iterator[tuple[str, str, float]]:
    """Yield (norm, fact or layer, value) from the notes of one step's edit."""
    facts = [request.id or request.text for request in step.requests]
    for name in OF_FACTS:
        if name in step.edit.notes:
            yield from ((name, *pair) for pair in zip(facts, step.edit.notes[name], strict=True))
    for name in OF_LAYERS:
        for layer, value in step.edit.notes[name].items():
            yield name, str(layer), value
