"""Memory and disk that a page takes, from the shape of a model.

What a page holds all the time adds up; of what it holds for a while, the largest counts.
"""

from collections.abc import Mapping
from typing import Any

import torch

from palimpsest.algebra.projector import LARGE
from palimpsest.planning.counts import PROMPT, WINDOW, Method, chunks_of, mean_fact, rows_of
from palimpsest.planning.work import TOGETHER, Run, Work
from palimpsest.studies.cost import FLOAT64, Shape, ledger_bytes

LIBRARIES = 500 * 2**20
"""Bytes of a notebook's process with its libraries and no model: 509 MiB in the record of page 22."""

KEPT = {3: (16, 4), 2: (20, 6)}
"""Maps of an MLP -> tensors of a layer, as wide as a state and as an inner state, that are kept for the
gradient: as measured where the MLP is gated, else as many as the library allows for when it cuts chunks."""

HEAD_ROWS, SCORES = 128, 4
"""States whose losses are read together, as in `palimpsest.memory.readout`, and tensors over the vocabulary
that are alive then: logits, log-probabilities, their gradient and one between."""

LOGITS, COMPARED = 2**23, 6
"""Logits that a comparison of texts makes at once, and such tensors that live at once, as said in
`palimpsest.evaluation.drift`."""

ROWS, SAMPLED_ROWS = 64, 32
"""Prompts that are scored, and texts that are sampled, in one forward pass."""

WINDOWS = 4
"""Windows of text in one forward pass."""

ANCHORED = 11
"""Matrices d_k × d_k that a step holds which takes the directions of a second moment for facts, beside the
ledger that it leaves: as measured with d_k = 1,536 and d_v = 576."""

FREED = 0.1
"""Share of what an edit uses that the C library keeps beside it in a notebook, as said in
`palimpsest.network.cores.return_freed_blocks`."""

RESULT = 2**20
"""Bytes of a page's notebook, record and tables: 0.35 MiB on average in ``results/laptop``."""


def _passing(shape: Shape, positions: int, item: int) -> int:
    """Bytes of a forward pass without a gradient: in one layer, some six states and three inner states."""
    return positions * (6 * shape.d_v + 3 * shape.d_k) * item


def _values(shape: Shape, work: Work, method: Method, item: int, cores: int) -> int:
    """Bytes of an optimisation of values: activations kept for the gradient, and scores of the vocabulary."""
    facts = min(max(work.optimised, default=0), TOGETHER)
    at, last = mean_fact(method), method.layers[-1]
    of_v, of_k = KEPT[shape.maps]
    each = (of_v * shape.d_v + of_k * shape.d_k) * item * max(shape.layers - 1 - last, 1)
    chunks = chunks_of(shape, method, facts, item)
    share = facts * min(chunks, cores) / chunks  # of the facts, in chunks that are computed side by side
    read = min(share * at.moving.heads, cores * HEAD_ROWS)
    before = share  # a row of log-probabilities of the unedited model each
    return int(share * at.moving.run * each + (SCORES * read + before) * shape.vocabulary * 4)


def passing(shape: Shape, work: Work, method: Method, item: int, cores: int) -> dict[str, int]:
    """Bytes of each kind of work while it is done.

    Args:
        shape: of the model.
        work: of the page.
        method: settings that its edits have.
        item: bytes of a weight of the model.
        cores: that work side by side.
    """
    method = method.changed(work)
    layers = len(method.layers) if work.layers is None else work.layers
    square = shape.d_k * shape.d_k * FLOAT64
    text = cores * _passing(shape, WINDOWS * WINDOW, item)
    asked = work.asked or work.by_layer
    scored = _passing(shape, ROWS * PROMPT, item) + 3 * ROWS * shape.vocabulary * 4
    past = SAMPLED_ROWS * 4 * PROMPT * 2 * shape.layers * shape.groups * shape.d_head * item
    compared = min(LOGITS, work.read * shape.vocabulary) * COMPARED * 4
    keys = cores * WINDOWS * WINDOW * layers * shape.d_k * (item + FLOAT64)
    return {
        "values": _values(shape, work, method, item, cores) if work.values else 0,
        "preserved": ANCHORED * square if any(row.get("anchor") for row in rows_of(work).values()) else 0,
        "factors": (1 if shape.d_k >= LARGE else 3) * square if layers else 0,
        "statistics": text + keys if layers else 0,
        "texts": max(text, cores * compared) if work.read else 0,
        "prompts": cores * scored if asked else 0,
        "samples": past + 3 * SAMPLED_ROWS * shape.vocabulary * 4 if work.drawn else 0,
    }


def memory(shape: Shape, work: Work, method: Method, dtype: torch.dtype, cores: int = 1) -> dict[str, int]:
    """Bytes that a page holds on its device at its fullest, by part.

    Args:
        shape: of the model.
        work: of the page.
        method: settings that its edits have.
        dtype: of the model's weights, which are read from a file that is mapped into memory: they count once.
        cores: that work side by side; 1 on a GPU.

    Returns:
        ``weights``, ``moments`` of the layers that the page looks at, ``projectors`` at most, ``ledgers`` of
        the run with the largest, with the float64 copies of the edited weights, and ``work``: the most that
        is held for a while, of what `passing` names.
    """
    layers = len(method.layers) if work.layers is None else work.layers
    square = shape.d_k * shape.d_k * FLOAT64
    edited, rows = len(method.layers) if work.runs else 0, rows_of(work)
    ledgers = (_ledger(shape, run, rows[run.sequence], dtype) for run in {*work.runs})
    return {
        "weights": shape.weights * dtype.itemsize,
        "moments": layers * square,
        "projectors": layers * square // 2 if work.projected else 0,
        "ledgers": edited * max(ledgers, default=0),
        "work": max(passing(shape, work, method, dtype.itemsize, cores).values()),
    }


def freed(parts: Mapping[str, int]) -> dict[str, int]:
    """The same parts, in the host's memory, with ``freed``: blocks that were freed and not given back."""
    return {**parts, "freed": round(FREED * (sum(parts.values()) - parts["weights"]))}


def _ledger(shape: Shape, run: Run, row: Mapping[str, Any], dtype: torch.dtype) -> int:
    """Bytes of one layer's ledger at the end of a run, and of the edited weight and its change in float64.

    A naive sequence has a new ledger at each step, beside that of the step before; an editor alone has none.
    """
    copies = 2 * shape.d_v * shape.d_k * FLOAT64
    if not row["retain"]:
        return copies
    anchored, naive = row.get("anchor") == "start", row["retain"] == "none"
    held = shape.d_k + run.batch if anchored else min(run.batch, run.facts) if naive else run.facts
    preserved = (row["host"] == "memit" or "preserve_weight" in row) and not anchored
    matrices = 2 * shape.d_k * shape.d_k * FLOAT64 if preserved else 0  # the moment and its factor
    one = ledger_bytes(shape, held, dtype) + matrices
    return (2 if naive else 1) * one + copies


def disk(shape: Shape, work: Work, method: Method, page: str) -> Mapping[tuple[str, str], int]:
    """Bytes on disk, by part and name; what has the same part and name on two pages is there once.

    Args:
        shape: of the model.
        work: of the page.
        method: settings that its edits have.
        page: its name.

    Returns:
        ``moments`` and ``projectors`` of layers, ``values`` and ``results`` of the page, all in the cache or
        the folder of results, and ``ledgers``: facts of a run that has more of them than keys are wide, which
        stand in a temporary file while it lasts, or that are written so that the run can go on.
    """
    square = shape.d_k * shape.d_k * FLOAT64
    wanted = len(method.layers) if work.layers is None else work.layers
    names = [*method.layers, *range(shape.layers, shape.layers + wanted)][:wanted]
    tokens = method.tokens if work.tokens is None else work.tokens
    found = {("moments", f"{layer} of {tokens}"): square for layer in names}
    if work.projected:
        found |= {("projectors", f"{layer} of {tokens}"): square // 2 for layer in names}
    kept = work.values - (work.found.values if work.found else 0)
    steps = method.steps if work.steps is None else work.steps
    if kept:  # h₀, δ and the losses, in float32
        found["values", page] = kept * (2 * shape.d_v + steps) * 4
    layers = len(method.layers)
    filed = [run.facts for run in work.runs if run.facts > shape.d_k]
    row = FLOAT64 * (shape.d_k + 2 * shape.d_v + 1)
    saved = work.saved * FLOAT64 * (shape.d_k + shape.d_v + 1) + (square if work.saved else 0)
    if filed or saved:
        found["ledgers", page] = layers * (max(filed, default=0) * row + saved)
    return found | {("results", page): RESULT}
