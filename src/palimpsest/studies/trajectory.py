"""What a long sequence of edits does to a model, step by step, as a table.

One run writes batch after batch, asks some of the facts again every few steps, measures the drift on
held-out text and keeps the norms. A run takes minutes to an hour, so its table is kept on disk under the hash
of everything it depends on: an interrupted study goes on where it stopped, a repeated one costs nothing.
"""

import io
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pandas as pd

from palimpsest import cache
from palimpsest.editors.sequential import Sequential
from palimpsest.editors.steps import Step, steps
from palimpsest.errors import NonFiniteError, ResourceError, ScoreError, SingularProblemError
from palimpsest.evaluation.drift import Reference, drift
from palimpsest.evaluation.evaluate import evaluate
from palimpsest.files import replacing
from palimpsest.memory.keys import subject_hidden
from palimpsest.network.model import EditableModel, fingerprint
from palimpsest.types import EvalCase

REVISION = 1
"""Part of the cache key; raise it when the same run gives another table than before."""

COLUMNS = ("step", "edits", "group", "metric", "value", "n")
COLLAPSED = 1e4
"""A run ends early once perplexity is this many times the unedited model's: nothing is left to measure."""


@dataclass(frozen=True)
class Watch:
    """What is measured along the way.

    Attributes:
        batch: facts per step.
        every: measure after every so many steps, and always after the first and the last.
        sample: how many of the facts written so far are asked again, evenly spaced (group ``all``).
        metrics: asked of every group.
        final: further metrics, asked of group ``all`` after the last step.
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
    model: EditableModel, sequence: Sequential, cases: Sequence[EvalCase], watch: Watch, reference: Reference
) -> pd.DataFrame:
    """The table of one run, from disk when the same run was made before.

    Args:
        model: the unedited model; restored at the end.
        sequence: settings of the stream.
        cases: facts in the order in which they are written, a multiple of the batch.
        watch: sizes and what is asked.
        reference: held-out text with the unedited model's predictions.

    Returns:
        One row per measured step, group and metric: ``step`` (from 1), ``edits`` (facts written so far),
        ``group`` (``first`` batch, ``latest`` batch, ``all`` so far, or ``model`` for what concerns no fact),
        ``metric``, ``value`` and ``n``, how many the mean is over (no row where no case has prompts). Metrics
        of the model: perplexity, perplexity_before, agreement, kl (nats), step_norm and total_norm
        (Frobenius, all layers together),
        hidden_norm (mean length of the last edited layer's output at the first batch's subjects), seconds,
        and ``stopped`` = 1 where the run ended early (a value, an update or perplexity out of range).

    Raises:
        ScoreError: if the cases do not fill whole batches.
        ResourceError: if the stored table is damaged or cannot be written.
    """
    if not cases or len(cases) % watch.batch:
        raise ScoreError(f"{len(cases)} cases do not fill batches of {watch.batch}; leave out or add some")
    key = {
        "revision": REVISION,
        "model": fingerprint(model),
        "sequence": asdict(sequence),
        "watch": asdict(watch),
        "cases": cache.digest([asdict(case) for case in cases]),
        "text": cache.digest(reference.ids.tolist()),
    }
    path = cache.cache_dir() / "trajectories" / f"{cache.digest(key)[:32]}.parquet"
    if not path.exists():
        rows = list(_rows(model, sequence, cases, watch, reference))
        table = pd.DataFrame(rows, columns=COLUMNS)
        with replacing(path) as temporary:
            table.to_parquet(temporary, index=False)
    return _read(path)


def _read(path: Path) -> pd.DataFrame:
    try:
        return pd.read_parquet(io.BytesIO(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise ResourceError(
            f"cache file {path} is damaged ({error}); delete it and it will be computed again"
        ) from error


Row = tuple[int, int, str, str, float, int]


def _rows(
    model: EditableModel, sequence: Sequential, cases: Sequence[EvalCase], watch: Watch, reference: Reference
) -> Iterator[Row]:
    batches = [cases[i : i + watch.batch] for i in range(0, len(cases), watch.batch)]
    began, at, number, written = time.perf_counter(), 1, 0, 0
    try:
        for step in steps(model, sequence, [[case.request for case in batch] for batch in batches]):
            at = number = step.number + 1
            written = min(number * watch.batch, len(cases))
            last = number >= len(batches)
            if number == 1 or number % watch.every == 0 or last:
                found = list(_measure(model, sequence, step, cases[:written], watch, reference, last))
                yield from ((number, written, *row) for row in found)
                values = {metric: value for group, metric, value, _ in found if group == "model"}
                if values["perplexity"] > COLLAPSED * values["perplexity_before"]:
                    yield number, written, "model", "stopped", 1.0, 1
                    break
            at = number + 1  # what fails from here on is the next batch
    except (NonFiniteError, SingularProblemError):
        yield at, written, "model", "stopped", 1.0, 1
    yield number, written, "model", "seconds", time.perf_counter() - began, 1


def _measure(
    model: EditableModel,
    sequence: Sequential,
    step: Step,
    written: Sequence[EvalCase],
    watch: Watch,
    reference: Reference,
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
    moved = drift(model, reference)
    for name in ("perplexity", "perplexity_before", "agreement", "kl"):
        yield "model", name, float(getattr(moved, name)), moved.tokens
    for name in ("step_norm", "total_norm"):
        norms = step.edit.notes.get(name, {})
        yield "model", name, sum(value**2 for value in norms.values()) ** 0.5, len(norms)
    hidden = subject_hidden(model, [case.request for case in groups["first"]], sequence.layers[-1])
    yield "model", "hidden_norm", float(hidden.double().norm(dim=0).mean()), watch.batch


def _mean(group: str, metric: str, values: Sequence[float]) -> Iterator[tuple[str, str, float, int]]:
    """One row, or none where no case has prompts for the metric."""
    if values:
        yield group, metric, sum(values) / len(values), len(values)


def evenly(cases: Sequence[EvalCase], count: int) -> list[EvalCase]:
    """At most ``count`` cases, evenly spaced over the whole sequence, the first and the last among them."""
    if len(cases) <= count:
        return list(cases)
    return [cases[round(i * (len(cases) - 1) / max(count - 1, 1))] for i in range(count)]
