"""Thousands of edits in one sequence, measured along the way, that can be interrupted at any time.

The ledger of each layer adds a batch to the accumulators KKᵀ and RKᵀ (`palimpsest.algebra.primal`), so that a
step costs the same however many facts are held. Values are optimised beforehand, on the unedited model, in
chunks that are kept on disk; the sequence itself is kept at every measurement. So an interrupted run goes on
at the last chunk of values or the last measurement, and two sequences share all values.

Source: The Labyrinth and the Thread, Sec. C.7 (10,000 edits) and Prop. 3.2.
"""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, is_dataclass, replace
from functools import partial
from itertools import pairwise
from time import perf_counter
from typing import Any

import pandas as pd
from torch import Tensor

from palimpsest import cache
from palimpsest.algebra.ledger import EditLedger
from palimpsest.cache import tensor_sha256
from palimpsest.editors import check
from palimpsest.editors.base import Prepared
from palimpsest.editors.sequential import SequenceState, Sequential
from palimpsest.editors.steps import run_key
from palimpsest.errors import NonFiniteError, ScoreError, SingularProblemError
from palimpsest.evaluation.answers import target_nll
from palimpsest.evaluation.drift import Reference, drift
from palimpsest.evaluation.evaluate import evaluate
from palimpsest.evaluation.metrics import SCORES
from palimpsest.memory.known_values import KnownValues, known_values
from palimpsest.network.apply import WeightDelta, commit, restored
from palimpsest.network.model import EditableModel, write_weight
from palimpsest.paths import cache_dir
from palimpsest.studies.checkpoints import Checkpoints
from palimpsest.studies.instruments import Choice
from palimpsest.studies.sequence_file import load_state, save_state
from palimpsest.studies.trajectory import evenly
from palimpsest.types import EditRequest, EvalCase

REVISION = 1
"""Part of the cache key; increase it when the code gives different rows for the same run."""

COLUMNS = ("edits", "of", "key", "metric", "value")
_Row = tuple[int, str, str, str, float]


def without_conflicts(cases: Sequence[EvalCase], count: int | None = None) -> list[EvalCase]:
    """The first case about each prompt and subject: what is written later would contradict it.

    Args:
        cases: in the order in which they are to be written.
        count: number of cases to return, the first ones; all by default.

    Raises:
        ScoreError: if there are fewer.
    """
    first: dict[tuple[str, str], EvalCase] = {}
    for case in cases:
        first.setdefault((case.request.prompt, case.request.subject), case)
    kept = list(first.values())
    if count is not None and len(kept) < count:
        raise ScoreError(
            f"{count} facts were asked for, and there are {len(kept)} that do not contradict each other; ask "
            "for fewer, or give a file with more"
        )
    return kept[:count]


def values_in_advance(
    model: EditableModel, editor: Sequential, requests: Sequence[EditRequest], prepared: Prepared
) -> KnownValues:
    """Values of all requests on the unedited model, read from disk where they were made before.

    Args:
        model: the unedited model.
        editor: whose settings of values and last layer are used.
        requests: at least one, in the order in which they are written.
        prepared: with the contexts.

    Raises:
        ScoreError: if there is no request.
        NonFiniteError, SiteError: as `palimpsest.memory.values.optimise_targets`.
    """
    if not requests:
        raise ScoreError("values of no facts; give at least one request")
    return known_values(model, requests, editor.layers[-1], editor.targets, prepared.contexts)


def long_horizon(
    model: EditableModel,
    editor: Sequential,
    cases: Sequence[EvalCase],
    ask: Checkpoints,
    reference: Reference,
    known: KnownValues,
) -> pd.DataFrame:
    """Rows of one run; parts that were made before are read from disk.

    Args:
        model: the unedited model; restored at the end.
        editor: a sequence whose values are computed once.
        cases: facts in the order in which they are written; the last checkpoint is their number.
        ask: batch, checkpoints, number of sampled facts, and choices. It asks for no texts.
        reference: held-out text with the unedited model's predictions.
        known: values of all cases, from `values_in_advance`.

    Returns:
        One row per measurement, with columns ``edits`` (facts written), ``of``, ``key``, ``metric`` and
        ``value``, at each checkpoint:
        ``fact``, ``first`` and ``latest``, case id: the three scores, in [0, 1], of facts evenly spaced over
        those written so far, of the first batch, and of the latest one.
        ``window``, its number: nll, nll_before (nats per token), agreement and kl as
        `palimpsest.evaluation.drift.Drift`.
        ``choice``, its number: ``right``, 1 or 0; the unedited model's have edits 0.
        And of each step, ``step``, its number from 1: ``seconds`` from known values to the edited model,
        ``held_bytes`` of the ledgers (tensors in memory), ``condition`` (largest of the layers) and
        ``total_norm`` (Frobenius, all layers). A run that cannot go on ends with ``step``, ``stopped`` = 1.

    Raises:
        ScoreError: if the last checkpoint is not the number of cases, texts are asked for, values are
            computed at each step, or the sequence is post-processed only at its end.
        RequestError: if a value is missing, or a batch has a prompt and subject twice.
        ResourceError: if a stored table or state is damaged or cannot be written.
    """
    _check(editor, cases, ask)
    run = _Run(model, editor, cases, ask, reference, known)
    key = run.key()
    parts: list[pd.DataFrame] = []
    with restored(model, editor.layers):
        for start, stop in pairwise((0, *ask.at)):
            part = key | {"from": start, "to": stop}
            made = cache.table("horizons", part, COLUMNS, partial(run.rows, start, stop))
            parts.append(made)
            if made["metric"].eq("stopped").any():
                break
            run.forget_before(stop)
    return pd.concat(parts, ignore_index=True)


class _Run:
    """A run that is at some number of edits, with the model's weights there."""

    def __init__(
        self,
        model: EditableModel,
        editor: Sequential,
        cases: Sequence[EvalCase],
        ask: Checkpoints,
        text: Reference,
        known: KnownValues,
    ) -> None:
        self.model, self.editor, self.cases, self.ask, self.text = model, editor, cases, ask, text
        self.known = known
        self.edits = 0
        self.state: SequenceState | None = None
        self.folder = cache_dir() / "horizons" / cache.digest(self.key())[:32]

    def key(self) -> dict[str, Any]:
        """All that the rows depend on."""
        _, layer, targets, contexts = self.known.made
        given = self.known.of(self.model, [case.request for case in self.cases], layer, targets, contexts)
        return run_key(self.model, self.editor, self.cases) | {
            "revision": REVISION,
            "ask": asdict(self.ask),
            "text": cache.digest(self.text.ids.tolist()),
            "known": [layer, asdict(targets), list(contexts), tensor_sha256(given.values)],
        }

    def rows(self, start: int, stop: int) -> Iterator[_Row]:
        """Rows of the steps from one checkpoint to the next, and of the measurement there."""
        if not start:
            yield from self._choices(0)
        try:
            self._go_to(start)
            while self.edits < stop:
                yield from self._step()
        except (NonFiniteError, SingularProblemError):
            yield self.edits, "step", str(self.edits // self.ask.batch + 1), "stopped", 1.0
            return
        yield from self._facts()
        for row in drift(self.model, self.text).windows.to_dict("records"):
            for name in ("nll", "nll_before", "agreement", "kl"):
                yield self.edits, "window", str(row["window"]), name, float(row[name])
        yield from self._choices(self.edits)
        if stop < len(self.cases):
            assert self.state is not None
            save_state(self.state, self.folder / str(stop))

    def forget_before(self, edits: int) -> None:
        """Delete the files of earlier moments; those of this one stay until the next is there."""
        for made in self.folder.glob("*"):
            if made.name.isdigit() and (int(made.name) < edits or edits == len(self.cases)):
                shutil.rmtree(made)

    def _go_to(self, edits: int) -> None:
        """Bring model and state to a number of edits, from the last state on disk that is not beyond it."""
        if self.state is not None:
            if self.edits == edits:
                return
            self._write(self.state.unedited)
        prepared = replace(self.editor.prepare(self.model), known=self.known)
        kept = [int(made.name) for made in self.folder.glob("*") if made.name.isdigit()]
        self.edits = max((n for n in kept if n <= edits), default=0)
        if self.edits:
            self.state = load_state(self.folder / str(self.edits), self.editor, self.model, prepared)
            self._write(self.state.weights)
        else:
            self.state = self.editor.set_up(self.model, SequenceState(prepared))
        while self.edits < edits:
            for _ in self._step():
                pass

    def _write(self, weights: Mapping[int, Tensor]) -> None:
        for layer, weight in weights.items():
            write_weight(self.model, layer, weight)

    def _step(self) -> Iterator[_Row]:
        """Write the next batch."""
        batch = self.cases[self.edits : self.edits + self.ask.batch]
        requests = [case.request for case in batch]
        check(requests)
        began = perf_counter()
        edit, self.state = self.editor.edit(self.model, requests, self.state)
        commit(self.model, edit, made_here=True)
        seconds = perf_counter() - began
        self.edits += len(batch)
        number = str(self.edits // self.ask.batch)
        for name, value in (("seconds", seconds), *_noted(edit), ("held_bytes", held_bytes(self.state))):
            yield self.edits, "step", number, name, float(value)

    def _facts(self) -> Iterator[_Row]:
        written = self.cases[: self.edits]
        groups = {
            "fact": evenly(written, self.ask.sample),
            "first": written[: self.ask.batch],
            "latest": written[-self.ask.batch :],
        }
        asked = {case.id: case for members in groups.values() for case in members}
        found: dict[str, list[tuple[str, float]]] = {name: [] for name in asked}
        for record in evaluate(self.model, list(asked.values()), SCORES):
            found[record.case].append((record.metric, record.value))
        for group, members in groups.items():
            for case in members:
                for metric, value in found[case.id]:
                    yield self.edits, group, case.id, metric, value

    def _choices(self, edits: int) -> Iterator[_Row]:
        for number, right in enumerate(_right(self.model, self.ask.choices)):
            yield edits, "choice", str(number), "right", right


def _check(editor: Sequential, cases: Sequence[EvalCase], ask: Checkpoints) -> None:
    if ask.at[-1] != len(cases):
        raise ScoreError(f"the last checkpoint is {ask.at[-1]}, but {len(cases)} facts are written")
    if ask.prompts:
        raise ScoreError(
            f"{len(ask.prompts)} prompts to go on with: this study writes no texts; leave them out"
        )
    if editor.values != "once":
        raise ScoreError(
            f"values are computed {editor.values!r}, and a long horizon needs them before it begins; set "
            "values='once'"
        )
    if editor.post is not None and editor.post.at_end:
        raise ScoreError("post-processing at the end changes no checkpoint before it; use `Stream`")


def _right(model: EditableModel, choices: Sequence[Choice]) -> list[float]:
    """1 for each choice in which the right object is the more probable one, else 0."""
    if not choices:
        return []
    pairs = [(one.prompt, text) for one in choices for text in (one.right, one.wrong)]
    right, wrong = target_nll(model, pairs).reshape(-1, 2).unbind(1)
    return [float(better) for better in (right < wrong).tolist()]


def _noted(edit: WeightDelta) -> Iterator[tuple[str, float]]:
    yield "condition", max(edit.notes["condition"].values())
    yield "total_norm", sum(norm**2 for norm in edit.notes["total_norm"].values()) ** 0.5


def held_bytes(state: SequenceState) -> int:
    """Memory of the tensors that a sequence holds between steps, each counted once.

    What the unedited model has anyway, its second moments and projectors, is not counted; nor are facts in
    temporary files.
    """
    shared = {tensor.untyped_storage().data_ptr() for tensor in _tensors(state.prepared)}
    found = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in (*_tensors(state.ledgers), *_tensors(state.weights))
    }
    return sum(size for place, size in found.items() if place not in shared)


def _tensors(held: Any) -> Iterator[Tensor]:
    """Tensors in memory that a ledger, a dataclass, a mapping or a sequence holds, at any depth."""
    if isinstance(held, Tensor):
        yield held
    elif isinstance(held, EditLedger) or (is_dataclass(held) and not isinstance(held, type)):
        yield from _tensors(vars(held))  # with what was computed once and kept
    elif isinstance(held, dict):
        for value in held.values():
            yield from _tensors(value)
    elif isinstance(held, (list, tuple)):
        for value in held:
            yield from _tensors(value)
