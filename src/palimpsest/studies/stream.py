"""Per-case results of a stream of edits, so that two methods can be compared pairwise.

`palimpsest.studies.trajectory` records means along one long run; here every fact and every window of text has
its own row, so that two runs can be paired. All runs of a `Stream` write the same facts and share what
depends on the unedited model only. A run's rows are cached on disk under the hash of everything they depend
on: an interrupted study continues with the next run.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from palimpsest import cache
from palimpsest.algebra.postprocess import largest_singular_value
from palimpsest.editors.base import Prepared, State, WeightEditor
from palimpsest.editors.sequential import Sequential
from palimpsest.editors.steps import run_key, with_total
from palimpsest.errors import NonFiniteError, ScoreError, SingularProblemError
from palimpsest.evaluation.drift import Reference, drift
from palimpsest.evaluation.evaluate import evaluate
from palimpsest.evaluation.metrics import SCORES
from palimpsest.evaluation.smoothing_score import score_by
from palimpsest.memory.keys import subject_hidden
from palimpsest.memory.known_values import KnownValues, known_values
from palimpsest.network.apply import WeightDelta, commit, restored
from palimpsest.network.model import EditableModel, read_weight
from palimpsest.studies.trajectory import evenly
from palimpsest.types import EvalCase

REVISION = 1
"""Part of the cache key; increase it when the code gives different rows for the same run."""

COLUMNS = ("of", "key", "metric", "value")
_Row = tuple[str, str, str, float]


@dataclass(frozen=True)
class Stream:
    """Facts in the order in which they are written, and how the edited model is evaluated.

    Attributes:
        model: the unedited model; every run restores it.
        cases: all facts; their number is a multiple of the batch size.
        batch: facts per step.
        reference: held-out text with the unedited model's predictions.
        sample: number of facts scored at the end, evenly spaced.
        metrics: scored for each of them.
        written: metrics scored also for every fact right after its own batch, as ``<metric>_written``.
        validation: id of a request -> wordings on which AlphaEdit+ scores smoothing candidates if it selects
            by ``validation``.
        known: values on the unedited model, for methods that compute them once; facts of several streams then
            have the same values in each.
        shared: hash of settings -> contexts, moments and projectors of the unedited model; filled by runs.

    Raises:
        ScoreError: if the cases do not fill whole batches.
    """

    model: EditableModel
    cases: Sequence[EvalCase]
    batch: int
    reference: Reference
    sample: int = 200
    metrics: tuple[str, ...] = SCORES
    written: tuple[str, ...] = ()
    validation: Mapping[str, Sequence[str]] = field(default_factory=dict)
    known: KnownValues | None = None
    shared: dict[str, Prepared] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.cases or self.batch < 1 or len(self.cases) % self.batch:
            raise ScoreError(
                f"{len(self.cases)} cases do not fill batches of {self.batch}; leave out or add some"
            )

    def outcome(self, editor: WeightEditor, once: bool = False) -> pd.DataFrame:
        """Rows of one run, read from disk if the same run was made before.

        Args:
            editor: any weight editor.
            once: write all facts in one batch, with the values they would have in batches.

        Returns:
            One row per measurement, with columns ``of``, ``key``, ``metric`` and ``value``:
            ``fact``, case id: the metrics, in [0, 1], of the scored facts; for every fact the norm of the
            last edited layer's output at its subject, ``hidden_before`` any edit, ``hidden_written`` right
            after its own batch, ``hidden_end``; and ``value_norm``, the norm of its value, for editors with
            values.
            ``window``, its number: nll, nll_before (nats per token), agreement and kl as
            `palimpsest.evaluation.drift.Drift`.
            ``step``, its number from 1: ``edits`` so far; step_norm and total_norm as shares of ‖W_0‖ (all
            layers together, Frobenius); ``spectrum``, the largest σ_max(Δ)/σ_max(W) of a layer, W before
            the step; and ``stopped`` = 1 at a step that failed, in which case all else is measured after the
            step before.
            ``layer``, ``<step>/<layer>``: the entries of the edit's notes that the editor names in ``noted``.

        Raises:
            NonFiniteError: if the edited model gives NaN or infinity when it is scored.
            ScoreError: if ``once`` is used with an editor that is not a `Sequential`.
            ResourceError: if a stored table is damaged or cannot be written.
        """
        if once:
            if not isinstance(editor, Sequential):
                raise ScoreError("once=True needs a Sequential; this editor has no one-time edit in parts")
            editor = replace(editor, values="once")  # in a single batch the same as "each_step"
        size = len(self.cases) if once else self.batch
        return cache.table("outcomes", self._key(editor, once), COLUMNS, lambda: self._rows(editor, size))

    def unedited(self) -> pd.DataFrame:
        """Rows of the scored facts before any edit."""
        return pd.DataFrame(self._scores(), columns=COLUMNS)

    def _key(self, editor: WeightEditor, once: bool) -> dict[str, object]:
        extra: dict[str, object] = {
            "written": self.written,
            "noted": editor.noted,
            "validation": {k: list(v) for k, v in self.validation.items()},
        }
        if self.known is not None:
            _, layer, targets, contexts = self.known.made
            given = self.known.of(self.model, [c.request for c in self.cases], layer, targets, contexts)
            extra["known"] = cache.digest([layer, targets, given.values.double().tolist()])
        return {
            **run_key(self.model, editor, self.cases),
            **{name: given for name, given in extra.items() if given},
            "revision": REVISION,
            "batch": self.batch,
            "once": once,
            "asked": [self.sample, *self.metrics],
            "text": cache.digest(self.reference.ids.tolist()),
        }

    def _rows(self, editor: WeightEditor, size: int) -> Iterator[_Row]:
        yield from self._hidden(editor, "hidden_before", self.cases)
        with restored(self.model, editor.layers):
            state: State | None = None
            unedited = {layer: read_weight(self.model, layer).clone() for layer in editor.layers}
            norms = [float(weight.double().norm()) for weight in unedited.values()]
            for number, first in enumerate(range(0, len(self.cases), size), 1):
                batch = self.cases[first : first + size]
                try:
                    state = state or self._begun(editor, size)
                    edit, after = editor.edit(self.model, [case.request for case in batch], state)
                    spectrum = self._spectrum(edit)
                    commit(self.model, edit, made_here=True)
                    edit = with_total(self.model, edit, unedited)
                except (NonFiniteError, SingularProblemError):
                    yield "step", str(number), "stopped", 1.0
                    break
                state = after
                yield "step", str(number), "edits", float(first + len(batch))
                yield "step", str(number), "spectrum", spectrum
                yield from _noted(edit, batch, number, math.hypot(*norms), editor.noted)
                yield from self._hidden(editor, "hidden_written", batch)
                for record in evaluate(self.model, batch, self.written) if self.written else ():
                    yield "fact", record.case, f"{record.metric}_written", record.value
            try:
                final = None if state is None else editor.finish(self.model, state)
                if final is not None:
                    commit(self.model, final[0], made_here=True)
            except (NonFiniteError, SingularProblemError):
                yield "step", str(number + 1), "stopped", 1.0
            yield from self._hidden(editor, "hidden_end", self.cases)
            yield from self._scores()
            yield from self._drift()

    def _begun(self, editor: WeightEditor, size: int) -> State:
        """State before the first edit, with the score that the editor needs."""
        score = score_by(editor.score_rule, self.cases, self.validation) if editor.score_rule else None
        prepared = self._prepared(editor)
        if size != self.batch and prepared.known is None:
            prepared = replace(prepared, known=self._in_batches(editor, prepared))
        return editor.begin(prepared, score)

    def _prepared(self, editor: WeightEditor) -> Prepared:
        """Contexts, moments and projectors, computed once for all editors with the same settings of these."""
        names = ("layers", "rule", "threshold", "statistics_tokens", "contexts")
        key = cache.digest({name: getattr(editor, name, None) for name in names})
        if key not in self.shared:
            self.shared[key] = editor.prepare(self.model, Prepared(known=self.known))
        return self.shared[key]

    def _in_batches(self, editor: Any, prepared: Prepared) -> KnownValues:
        """Values on the unedited model, optimised batch by batch, as in a sequence of batches."""
        known = None
        for first in range(0, len(self.cases), self.batch):
            requests = [case.request for case in self.cases[first : first + self.batch]]
            how = (editor.layers[-1], editor.targets, prepared.contexts)
            known = known_values(self.model, requests, *how, beside=known)
        assert known is not None
        return known

    def _spectrum(self, edit: WeightDelta) -> float:
        shares = [
            largest_singular_value(delta) / largest_singular_value(read_weight(self.model, layer).double())
            for layer, delta in edit.deltas.items()
        ]
        return float(max(shares))

    def _hidden(self, editor: WeightEditor, name: str, cases: Sequence[EvalCase]) -> Iterator[_Row]:
        hidden = subject_hidden(self.model, [case.request for case in cases], editor.layers[-1])
        for case, length in zip(cases, hidden.double().norm(dim=0).tolist(), strict=True):
            yield "fact", case.id, name, length

    def _scores(self) -> Iterator[_Row]:
        for record in evaluate(self.model, evenly(self.cases, self.sample), self.metrics):
            yield "fact", record.case, record.metric, record.value

    def _drift(self) -> Iterator[_Row]:
        windows = drift(self.model, self.reference).windows
        for row in windows.to_dict("records"):
            for name in ("nll", "nll_before", "agreement", "kl"):
                yield "window", str(row["window"]), name, float(row[name])


def score_columns(rows: pd.DataFrame, metrics: Sequence[str] = SCORES) -> pd.DataFrame:
    """Metrics of each scored fact in columns, in percent, from the rows of a run.

    Args:
        rows: from `Stream.outcome` or `Stream.unedited`.
        metrics: to select.

    Returns:
        One column per metric and ``score``, their arithmetic mean (NaN if one is missing); index ``case``.
    """
    found = rows[rows["of"].eq("fact") & rows["metric"].isin(metrics)].rename(columns={"key": "case"})
    wide = 100 * found.pivot(index="case", columns="metric", values="value")[list(metrics)]
    return wide.assign(score=wide.mean(axis=1, skipna=False))


def _noted(
    edit: WeightDelta, batch: Sequence[EvalCase], number: int, whole: float, names: Sequence[str]
) -> Iterator[_Row]:
    """Rows from the edit's notes: norms of updates as shares of ``whole``, norms of values, and ``names``."""
    for name in ("step_norm", "total_norm"):
        yield "step", str(number), name, math.hypot(*edit.notes[name].values()) / whole
    if "value_norm" in edit.notes:
        for case, norm in zip(batch, edit.notes["value_norm"], strict=True):
            yield "fact", case.id, "value_norm", norm
    for name in names:
        for layer, noted in edit.notes.get(name, {}).items():
            yield "layer", f"{number}/{layer}", name, float(noted)
