"""Lengths along a sequence of edits, as a table: of values, of what is added to states, of updates.

Every editor notes them with its edit (`palimpsest.editors.base.value_notes`,
`palimpsest.editors.steps.steps`); here they are collected, and nothing is computed for them. A long sequence
takes an hour, so its table is kept on disk under the hash of everything it depends on.
"""

import io
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from palimpsest import cache
from palimpsest.editors.steps import LayerEditor, Step, steps
from palimpsest.errors import NonFiniteError, SingularProblemError
from palimpsest.files import replacing
from palimpsest.network.model import EditableModel, fingerprint
from palimpsest.types import EditRequest

REVISION = 1
"""Part of the cache key; raise it when the same sequence gives another table than before."""

COLUMNS = ("step", "edits", "norm", "of", "value")
OF_FACTS = ("hidden_norm", "delta_norm", "value_norm")
OF_LAYERS = ("step_norm", "total_norm")
Row = tuple[int, int, str, str, float]


def norm_trace(
    model: EditableModel, editor: LayerEditor, batches: Sequence[Sequence[EditRequest]]
) -> pd.DataFrame:
    """The lengths at each step of a sequence, from disk when the same was written before.

    Args:
        model: the unedited model; restored at the end.
        editor: any editor of weights, with its settings.
        batches: requests of each step.

    Returns:
        One row per step (from 1), norm and what it is of: ``edits`` so far; ``hidden_norm`` ‖h₀‖,
        ``delta_norm`` ‖δ‖ and ``value_norm`` ‖z‖ of a fact, by id or text, where the editor has values;
        ``step_norm`` and ``total_norm``, ‖ΔW‖ of the step and ‖W − W_0‖ so far (Frobenius), by layer. A last
        row ``stopped`` = 1, of ``model``, at a step that could not be made.
    """
    settings: Any = editor
    key = {
        "revision": REVISION,
        "model": fingerprint(model),
        "editor": [type(editor).__name__, asdict(settings)],
        "batches": [[asdict(request) for request in batch] for batch in batches],
    }
    path = cache.cache_dir() / "norms" / f"{cache.digest(key)[:32]}.parquet"
    if not path.exists():
        table = pd.DataFrame(list(_rows(model, editor, batches)), columns=COLUMNS)
        with replacing(path) as temporary:
            table.to_parquet(temporary, index=False)
    return pd.read_parquet(io.BytesIO(path.read_bytes()))


def _rows(
    model: EditableModel, editor: LayerEditor, batches: Sequence[Sequence[EditRequest]]
) -> Iterator[Row]:
    number, edits = 0, 0
    try:
        for step in steps(model, editor, batches):
            number, edits = step.number + 1, edits + len(step.requests)
            yield from ((number, edits, *row) for row in noted_norms(step))
    except (NonFiniteError, SingularProblemError):
        yield number + 1, edits, "stopped", "model", 1.0


def noted_norms(step: Step) -> Iterator[tuple[str, str, float]]:
    """What the edit of one step notes about lengths: norm, what it is of, value."""
    facts = [request.id or request.text for request in step.requests]
    for name in OF_FACTS:
        if name in step.edit.notes:
            yield from ((name, *pair) for pair in zip(facts, step.edit.notes[name], strict=True))
    for name in OF_LAYERS:
        for layer, value in step.edit.notes[name].items():
            yield name, str(layer), value
