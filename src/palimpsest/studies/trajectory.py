"""Effects of a long sequence of edits on a model, measured along the way, as a table.

One run writes batch after batch and, every few steps, scores some of the facts, measures the drift on
held-out text and records norms. A run takes minutes to an hour, so its table is cached on disk under the hash
of everything it depends on: an interrupted study continues with the next run, a repeated one costs nothing.
"""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import chain
from typing import Any

import pandas as pd

from palimpsest import cache
from palimpsest.editors.base import WeightEditor
from palimpsest.editors.steps import Step, run_key, steps
from palimpsest.errors import NonFiniteError, ScoreError, SingularProblemError
from palimpsest.evaluation.drift import Drift, Reference, drift
from palimpsest.evaluation.evaluate import evaluate
from palimpsest.evaluation.smoothing_score import score_by
from palimpsest.memory.keys import subject_hidden
from palimpsest.network.model import EditableModel
from palimpsest.studies.instruments import TEXT, Instruments, regime_readings
from palimpsest.types import EvalCase

REVISION = 1
"""Part of the cache key; increase it when the code gives a different table for the same run."""

COLUMNS = ("step", "edits", "group", "metric", "value", "n")
COLLAPSED = 1e4
"""A run stops once its perplexity exceeds this multiple of the unedited model's: the model has collapsed."""


@dataclass(frozen=True)
class Watch:
    """What is measured along the way, and how often.

    Attributes:
        batch: facts per step.
        every: number of steps between measurements; the first and the last step are always measured.
        sample: number of facts of group ``all``: evenly spaced among those written so far.
        metrics: scored for every group.
        final: further metrics, scored for group ``all`` after the last step.

    Raises:
        ScoreError: if batch, every or sample is below 1.
    """

    batch: int = 50
    every: int = 2
    sample: int = 50
    metrics: tuple[str, ...] = ("efficacy",)
    final: tuple[str, ...] = ("generalisation", "specificity")

    def __post_init__(self) -> None:
        sizes = self.batch, self.every, self.sample
        if min(sizes) < 1:
            raise ScoreError("batch, every and sample must be 1 or more, got {}, {} and {}".format(*sizes))


def trajectory(
    model: EditableModel,
    editor: WeightEditor,
    cases: Sequence[EvalCase],
    watch: Watch,
    reference: Reference,
    also: Instruments | None = None,
) -> pd.DataFrame:
    """Table of one run, read from disk if the same run was made before.

    Args:
        model: the unedited model; restored at the end.
        editor: any weight editor.
        cases: facts in the order in which they are written; their number is a multiple of the batch size.
        watch: batch size, and what is measured.
        reference: held-out text with the unedited model's predictions.
        also: further readings of the model, and the regime of the run so far.

    Returns:
        One row per measured step, group and metric: ``step`` (from 1), ``edits`` (facts written so far),
        ``group`` (``first`` batch, ``latest`` batch, ``all`` so far, or ``model`` for metrics of the model),
        ``metric``, ``value`` and ``n``, the number of items averaged (no row if no case has prompts). Metrics
        of the model: perplexity, perplexity_before, agreement, kl (nats), step_norm and total_norm
        (Frobenius, all layers together), hidden_norm (mean norm of the last edited layer's output at the
        first batch's subjects), seconds, and ``stopped`` = 1 if the run ended early (a value, an update or
        the perplexity out of range). With ``also`` there are further metrics of the model, those of
        `palimpsest.studies.instruments`, from step 0, the unedited model, on; and a column ``text`` with what
        it wrote.

    Raises:
        ScoreError: if the cases do not fill whole batches, or the editor scores validation wordings, which
            these cases do not have.
        ResourceError: if the stored table is damaged or cannot be written.
    """
    if not cases or len(cases) % watch.batch:
        raise ScoreError(f"{len(cases)} cases do not fill batches of {watch.batch}; leave out or add some")
    key = run_key(model, editor, cases) | {
        "revision": REVISION,
        "watch": asdict(watch),
        "text": cache.digest(reference.ids.tolist()),
    }
    columns: tuple[str, ...] = COLUMNS
    if also is not None:
        key, columns = key | {"also": also.key()}, (*COLUMNS, TEXT)
    rows = partial(_rows, model, editor, cases, watch, reference, also)
    return cache.table("trajectories", key, columns, lambda: (row[: len(columns)] for row in rows()))


_Row = tuple[int, int, str, str, float, int, str]


def _rows(
    model: EditableModel,
    editor: WeightEditor,
    cases: Sequence[EvalCase],
    watch: Watch,
    reference: Reference,
    also: Instruments | None,
) -> Iterator[_Row]:
    batches = [cases[i : i + watch.batch] for i in range(0, len(cases), watch.batch)]
    began, at, number, written = time.perf_counter(), 1, 0, 0
    requests = [[case.request for case in batch] for batch in batches]
    score = score_by(editor.score_rule, cases) if editor.score_rule else None
    notes: list[Mapping[str, Any]] = []
    limit = COLLAPSED if also is None else also.stop_above
    if also is not None:
        for reading in also.read(model, drift(model, reference)):
            yield 0, 0, "model", *reading
    try:
        for step in steps(model, editor, requests, score):
            at = number = step.number + 1
            written = min(number * watch.batch, len(cases))
            notes.append(step.edit.notes)
            last = number >= len(batches)
            if number == 1 or number % watch.every == 0 or last:
                moved = drift(model, reference)
                for row in _measure(model, editor, step, cases[:written], watch, moved, last):
                    yield number, written, *row, ""
                if also is not None:
                    told = chain(
                        also.read(model, moved), regime_readings(model, editor, notes, step.state.prepared)
                    )
                    for reading in told:
                        yield number, written, "model", *reading
                if moved.perplexity > limit * moved.perplexity_before:
                    yield number, written, "model", "stopped", 1.0, 1, ""
                    break
            at = number + 1  # an error from here on belongs to the next batch
    except (NonFiniteError, SingularProblemError):
        yield at, written, "model", "stopped", 1.0, 1, ""
    yield number, written, "model", "seconds", time.perf_counter() - began, 1, ""


def _measure(
    model: EditableModel,
    editor: WeightEditor,
    step: Step,
    written: Sequence[EvalCase],
    watch: Watch,
    moved: Drift,
    last: bool,
) -> Iterator[tuple[str, str, float, int]]:
    groups = {
        "first": written[: watch.batch],
        "latest": written[-watch.batch :],
        "all": evenly(written, watch.sample),
    }
    asked = {case.id: case for group in groups.values() for case in group}
    for metric in watch.metrics:
        value = {record.case: record.value for record in evaluate(model, list(asked.values()), [metric])}
        for group, members in groups.items():
            yield from _mean(group, metric, [value[case.id] for case in members if case.id in value])
    if last:
        for metric in watch.final:
            records = evaluate(model, groups["all"], [metric])
            yield from _mean("all", metric, [record.value for record in records])
    for name in ("perplexity", "perplexity_before", "agreement", "kl"):
        yield "model", name, float(getattr(moved, name)), moved.tokens
    for name in ("step_norm", "total_norm"):
        norms = step.edit.notes.get(name, {})
        yield "model", name, sum(value**2 for value in norms.values()) ** 0.5, len(norms)
    hidden = subject_hidden(model, [case.request for case in groups["first"]], editor.layers[-1])
    yield "model", "hidden_norm", float(hidden.double().norm(dim=0).mean()), watch.batch


def _mean(group: str, metric: str, values: Sequence[float]) -> Iterator[tuple[str, str, float, int]]:
    """Yield one row, or none if no case has prompts for the metric."""
    if values:
        yield group, metric, sum(values) / len(values), len(values)


def evenly(cases: Sequence[EvalCase], count: int) -> list[EvalCase]:
    """At most ``count`` cases, evenly spaced over the whole sequence, including the first and the last."""
    if len(cases) <= count:
        return list(cases)
    return [cases[round(i * (len(cases) - 1) / max(count - 1, 1))] for i in range(count)]
