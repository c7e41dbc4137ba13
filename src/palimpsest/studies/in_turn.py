"""Facts written batch after batch by any editor: one that changes weights, wraps a layer or keeps a memory.

`palimpsest.studies.stream` and `palimpsest.studies.trajectory` look closely at editors of weights; here every
editor is asked the same, and what its edits cost is measured beside. An editor that changes no weight must
hold all facts of its sequence in each edit, as those of `palimpsest.editors.remembered` do.
"""

import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pandas as pd
from tqdm import tqdm

from palimpsest import cache
from palimpsest.editors import check
from palimpsest.editors.base import Editor, WeightEditor
from palimpsest.editors.steps import run_key, steps
from palimpsest.errors import ScoreError
from palimpsest.evaluation.ability import ability
from palimpsest.evaluation.drift import Reference, drift
from palimpsest.evaluation.evaluate import evaluate
from palimpsest.evaluation.fluency import fluency
from palimpsest.evaluation.metrics import SCORES
from palimpsest.network.apply import Edit, installed
from palimpsest.network.model import EditableModel, fingerprint, generate
from palimpsest.paths import cache_dir
from palimpsest.types import EditRequest, EvalCase, Task

VALUES = "targets"
"""Folder of the cache with the values of facts, which take most of the time of an edit."""

REVISION = 2
"""Part of the cache key; raise it when the code gives other rows for the same run."""

COLUMNS = ("edits", "of", "key", "metric", "value")
_Row = tuple[int, str, str, str, float]


def in_force(
    model: EditableModel, editor: Editor, batches: Sequence[Sequence[EditRequest]]
) -> Generator[Edit]:
    """The edit of each batch, with it and all earlier ones in force; at the end the model is as before.

    Args:
        model: the unedited model; it may be asked between the edits.
        editor: any editor; one that changes no weight holds all facts of its sequence in each edit.
        batches: requests of each edit.

    Raises:
        RequestError: if a batch is empty or has the same subject and prompt twice.
        As `palimpsest.editors.base.Editor.edit`; the model is restored.
    """
    if isinstance(editor, WeightEditor):
        for step in steps(model, editor, batches):
            if step.requests:
                yield step.edit
        return
    state = editor.begin()
    for requests in batches:
        check(requests)
        edit, state = editor.edit(model, requests, state)
        with installed(model, edit):
            yield edit


@contextmanager
def all_written(
    model: EditableModel, editor: Editor, batches: Sequence[Sequence[EditRequest]]
) -> Iterator[EditableModel]:
    """Inside the block the edits of all batches are in force, made one after the other; as `in_force`."""
    edits = in_force(model, editor, batches)
    try:
        for _ in batches:
            next(edits)
        yield model
    finally:
        edits.close()


@contextmanager
def values_anew() -> Iterator[None]:
    """Inside the block no value of a fact is taken from the cache, so that the time of an edit has all of it.

    Everything else is read from the cache and kept there.
    """
    known = cache_dir().resolve()
    known.mkdir(parents=True, exist_ok=True)
    with cache.empty() as folder:
        for part in known.iterdir():
            if part.name != VALUES:
                (folder / part.name).symlink_to(part)
        yield


def one_by_one(
    model: EditableModel, editor: Editor, cases: Sequence[EvalCase], metrics: tuple[str, ...] = SCORES
) -> pd.DataFrame:
    """Scores of facts each of which is written alone, into the unedited model; read from disk if known.

    Args:
        model: the unedited model; every edit is undone.
        editor: any editor.
        cases: with unique ids.
        metrics: names in `palimpsest.evaluation.metrics.METRICS`.

    Returns:
        One row per metric and case, with columns ``case``, ``metric`` and ``value`` (in [0, 1]).

    Raises:
        As `palimpsest.editors.base.Editor.edit` and `palimpsest.evaluation.evaluate.evaluate`.
    """

    def rows() -> Iterator[tuple[str, str, float]]:
        begin = editor.begin(editor.prepare(model))
        for case in tqdm(cases, desc=editor.printed, unit="fact"):
            edit, _ = editor.edit(model, [case.request], begin)
            with installed(model, edit):
                found = evaluate(model, [case], metrics)
            yield from ((record.case, record.metric, record.value) for record in found)

    key = {**run_key(model, editor, cases), "revision": REVISION, "asked": [*metrics]}
    return cache.table("one_by_one", key, ("case", "metric", "value"), rows)


@dataclass(frozen=True)
class InTurn:
    """Facts in the order in which they are written, and when the edited model is asked.

    Attributes:
        model: the unedited model; every run restores it.
        cases: all facts; their number is a multiple of the batch size.
        batch: facts of one edit.
        at: numbers of facts written at which the model is asked, ascending; each ends a batch.
        reference: held-out text with the unedited model's predictions.
        metrics: scored for every fact that is written by then.
        tasks: of general ability, about no subject that is written; asked with the facts.
        continued: number of the first facts whose prompts are continued, for the fluency of the texts.
        length: tokens of each of these texts.

    Raises:
        ScoreError: if a number of ``at`` ends no batch.
    """

    model: EditableModel
    cases: Sequence[EvalCase]
    batch: int
    at: Sequence[int]
    reference: Reference
    metrics: tuple[str, ...] = SCORES
    tasks: Sequence[Task] = ()
    continued: int = 0
    length: int = 40

    def __post_init__(self) -> None:
        ends = range(self.batch, len(self.cases) + 1, self.batch)
        if not self.at or [*self.at] != sorted({*self.at}) or not {*self.at} <= {*ends}:
            raise ScoreError(
                f"the model is to be asked after {[*self.at]} facts, which must be ascending ends of batches "
                f"of {self.batch} among {len(self.cases)} facts"
            )

    def outcome(self, editor: Editor) -> pd.DataFrame:
        """Rows of one run, read from disk if the same run was made before.

        Args:
            editor: any editor; one that changes no weight holds all facts of its sequence in each edit.

        Returns:
            One row per measurement, with columns ``edits`` (facts written by then), ``of``, ``key``,
            ``metric`` and ``value``:
            ``fact``, case id: the metrics, in [0, 1], of all facts written by then.
            ``window``, its number: nll and nll_before (nats per token) and agreement of held-out text.
            ``task``, its name: accuracy, in [0, 1]. ``text``, case id: fluency in bits.
            ``cost``, empty: ``seconds`` of all edits so far, values computed anew; ``bytes`` of a memory
            beside the weights, 0 without one; ``asking``, seconds of the evaluation of all facts written by
            then.
            ``undone``, empty: ``same``, whether the model is bit by bit as before, after the last edit.

        Raises:
            As `palimpsest.editors.base.Editor.edit` and `palimpsest.evaluation.drift.drift`.
        """
        key = {
            **run_key(self.model, editor, self.cases),
            "revision": REVISION,
            "batch": self.batch,
            "asked": [*self.at, *self.metrics],
            "text": cache.digest(self.reference.ids.tolist()),
        }
        if self.tasks:
            key["tasks"] = [[task.name, *(item.id for item in task.items)] for task in self.tasks]
        if self.continued:
            key["texts"] = [self.continued, self.length]
        return cache.table("in_turn", key, COLUMNS, lambda: self._rows(editor))

    def unedited(self) -> pd.DataFrame:
        """Rows of all facts, tasks and texts before any edit."""
        found = evaluate(self.model, self.cases, self.metrics)
        rows = [(0, "fact", record.case, record.metric, record.value) for record in found]
        rows += [(0, *row) for row in (*self._tasks(), *self._texts())]
        return pd.DataFrame(rows, columns=COLUMNS)

    def _rows(self, editor: Editor) -> Iterator[_Row]:
        before = fingerprint(self.model)
        seconds, started = 0.0, time.perf_counter()
        with values_anew():
            for number, edit in enumerate(in_force(self.model, editor, self._batches()), 1):
                seconds += time.perf_counter() - started
                if (edits := number * self.batch) in self.at:
                    for row in self._asked(edits, edit, seconds):
                        yield (edits, *row)
                started = time.perf_counter()
        yield len(self.cases), "undone", "", "same", float(fingerprint(self.model, anew=True) == before)

    def _asked(self, edits: int, edit: Edit, seconds: float) -> Iterator[tuple[str, str, str, float]]:
        """Rows after some edits, the last of which is given, as is the time of all."""
        taken, rows = self._timed(self.cases[:edits])
        yield from rows
        costs = {"seconds": seconds, "bytes": float(edit.notes.get("bytes", 0)), "asking": taken}
        yield from (("cost", "", name, value) for name, value in costs.items())
        for part in (self._text(), self._tasks(), self._texts()):
            yield from part

    def _batches(self) -> list[list[EditRequest]]:
        asked = [case.request for case in self.cases[: self.at[-1]]]
        return [asked[first : first + self.batch] for first in range(0, len(asked), self.batch)]

    def _timed(self, cases: Sequence[EvalCase]) -> tuple[float, list[tuple[str, str, str, float]]]:
        """Seconds of an evaluation, and its rows."""
        start = time.perf_counter()
        found = evaluate(self.model, cases, self.metrics)
        taken = time.perf_counter() - start
        return taken, [("fact", record.case, record.metric, record.value) for record in found]

    def _text(self) -> Iterator[tuple[str, str, str, float]]:
        for row in drift(self.model, self.reference).windows.to_dict("records"):
            for name in ("nll", "nll_before", "agreement"):
                yield "window", str(row["window"]), name, float(row[name])

    def _tasks(self) -> Iterator[tuple[str, str, str, float]]:
        if self.tasks:
            found = ability(self.model, self.tasks)
            for task in self.tasks:
                yield "task", task.name, "accuracy", found.accuracy(task.name).mean

    def _texts(self) -> Iterator[tuple[str, str, str, float]]:
        for case in self.cases[: self.continued]:
            prompt = case.request.text
            text = generate(self.model, prompt, self.length).removeprefix(prompt)
            yield "text", case.id, "fluency", fluency(text)
