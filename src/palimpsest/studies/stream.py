"""What a whole stream of edits leaves, case by case, for comparing ways to write the same facts.

`palimpsest.studies.trajectory` follows the means of one long run; here every fact and every window of text
keeps its own row, so that two runs can be paired. All runs of a `Stream` write the same facts and share what
depends on the unedited model alone. A run's rows are kept on disk under the hash of everything they depend
on: an interrupted study goes on where it stopped.
"""

import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace

import pandas as pd
import torch
from pydantic import Field
from pydantic.dataclasses import dataclass as settings

from palimpsest import cache
from palimpsest.algebra.postprocess import largest_singular_value
from palimpsest.algebra.projector import null_space
from palimpsest.algebra.spectrum import RULES
from palimpsest.editors import AlphaEditPlus, PlusState, State
from palimpsest.editors.base import start
from palimpsest.editors.sequential import SequenceState, Sequential
from palimpsest.errors import NonFiniteError, ScoreError, SingularProblemError
from palimpsest.evaluation.drift import Reference, drift
from palimpsest.evaluation.evaluate import evaluate
from palimpsest.evaluation.smoothing_score import score_by
from palimpsest.files import replacing
from palimpsest.memory.keys import subject_hidden
from palimpsest.memory.known_values import KnownValues
from palimpsest.memory.values import Targets
from palimpsest.network.apply import WeightDelta, commit, restored
from palimpsest.network.model import EditableModel, fingerprint, read_weight
from palimpsest.studies.trajectory import evenly
from palimpsest.types import EditRequest, EvalCase

REVISION = 1
"""Part of the cache key; raise it when the same run gives other rows than before."""

COLUMNS = ("of", "key", "metric", "value")
SCORES = ("efficacy", "generalisation", "specificity")
PARTS = ("admitted", "largest_eigenvalue", "weights_norm", "hard", "scale")
"""What an edit may note of each layer, and is kept as it is."""
Row = tuple[str, str, str, float]
Method = Sequential | AlphaEditPlus


@settings(frozen=True, config={"extra": "forbid"})
class InParts(Sequential):
    """A sequence whose batches have their values computed a part at a time.

    One edit of all facts then writes the very values that a sequence in batches of ``part`` writes, and finds
    them in the cache.
    """

    part: int = Field(default=1, ge=1)

    def _values(self, model: EditableModel, requests: Sequence[EditRequest], state: SequenceState) -> Targets:
        parts = [requests[i : i + self.part] for i in range(0, len(requests), self.part)]
        found = [super(InParts, self)._values(model, part, state) for part in parts]
        values = torch.cat([one.values for one in found], 1)
        deltas = torch.cat([one.deltas for one in found], 1)
        return Targets(values, deltas, torch.cat([one.losses for one in found]))


@dataclass(frozen=True)
class Stream:
    """Facts in the order in which they are written, and what is asked at the end.

    Attributes:
        model: the unedited model; every run restores it.
        cases: all facts, a multiple of the batch.
        batch: facts per step.
        reference: held-out text with the unedited model's predictions.
        sample: how many of the facts are asked at the end, evenly spaced.
        metrics: asked of each of them.
        written: metrics asked of every fact right after its own batch too, as ``<metric>_written``.
        validation: id of a request -> wordings by which AlphaEdit+ chooses, where it selects by validation.
        known: values on the unedited model, for methods that compute them once; facts written in many streams
            then have the same in each.
        shared: contexts, moments and projectors of the unedited model by what they depend on; filled here.
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
    shared: dict[str, State] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if not self.cases or self.batch < 1 or len(self.cases) % self.batch:
            raise ScoreError(
                f"{len(self.cases)} cases do not fill batches of {self.batch}; leave out or add some"
            )

    def outcome(self, sequence: Method, once: bool = False) -> pd.DataFrame:
        """The rows of one run, from disk when the same run was made before.

        Args:
            sequence: settings of the run.
            once: write all facts in one batch, with the values they have in the batches.

        Returns:
            One row per thing measured, with columns ``of``, ``key``, ``metric`` and ``value``:
            ``fact``, case id: the metrics, in [0, 1], of the asked facts; and of every fact the length of
            the last edited layer's output at its subject, ``hidden_before`` any edit, ``hidden_written``
            right after its own, ``hidden_end``; and ``value_norm``, that of the value it was given.
            ``window``, its number: nll, nll_before (nats per token), agreement and kl as
            `palimpsest.evaluation.drift.Drift`.
            ``step``, its number from 1: ``edits`` so far; step_norm and total_norm as shares of ‖W_0‖ (all
            layers together, Frobenius); ``spectrum``, the largest σ_max(Δ)/σ_max(W) of a layer, W before
            the step; and ``stopped`` = 1 at a step that could not be made: all else is as the step before
            left it.
            ``layer``, ``<step>/<layer>``: what the edit noted of it, of ``PARTS``.

        Raises:
            NonFiniteError: if the model that is left cannot be asked.
            ScoreError: if ``once`` is asked of another editor than a `Sequential`.
        """
        if once:
            if not isinstance(sequence, Sequential):
                raise ScoreError("once=True needs a Sequential; this editor has no one-time edit in parts")
            given = {member.name: getattr(sequence, member.name) for member in fields(sequence)}
            sequence = InParts(**given, part=self.batch)
        path = cache.cache_dir() / "outcomes" / f"{cache.digest(self._key(sequence, once))[:32]}.parquet"
        if not path.exists():
            rows = list(self._rows(sequence, len(self.cases) if once else self.batch))
            table = pd.DataFrame(rows, columns=COLUMNS)
            with replacing(path) as temporary:
                table.to_parquet(temporary, index=False)
        return pd.read_parquet(io.BytesIO(path.read_bytes()))

    def unedited(self) -> pd.DataFrame:
        """The rows of the asked facts before any edit."""
        return pd.DataFrame(self._scores(), columns=COLUMNS)

    def _key(self, sequence: Method, once: bool) -> dict[str, object]:
        extra: dict[str, object] = {
            "written": self.written,
            "validation": {k: list(v) for k, v in self.validation.items()},
        }
        if self.known is not None:
            _, layer, targets, contexts = self.known.made
            given = self.known.of(self.model, [c.request for c in self.cases], layer, targets, contexts)
            extra["known"] = cache.digest([layer, targets, given.values.double().tolist()])
        return {
            **{name: given for name, given in extra.items() if given},
            "revision": REVISION,
            "model": fingerprint(self.model),
            "sequence": asdict(sequence),
            "cases": cache.digest([asdict(case) for case in self.cases]),
            "batch": self.batch,
            "once": once,
            "asked": [self.sample, *self.metrics],
            "text": cache.digest(self.reference.ids.tolist()),
        }

    def _rows(self, sequence: Method, size: int) -> Iterator[Row]:
        yield from self._hidden(sequence, "hidden_before", self.cases)
        with restored(self.model, sequence.layers):
            state = self._scored(sequence, self._start(sequence))
            norms = [float(read_weight(self.model, layer).double().norm()) for layer in sequence.layers]
            for number, first in enumerate(range(0, len(self.cases), size), 1):
                batch = self.cases[first : first + size]
                try:
                    edit, after = sequence.edit(self.model, [case.request for case in batch], state)
                    spectrum = self._spectrum(edit)
                    commit(self.model, replace(edit, base=""))  # made for this model a moment ago
                except (NonFiniteError, SingularProblemError):
                    yield "step", str(number), "stopped", 1.0
                    break
                state = after
                yield "step", str(number), "edits", float(first + len(batch))
                yield "step", str(number), "spectrum", spectrum
                yield from _noted(edit, batch, number, math.hypot(*norms))
                yield from self._hidden(sequence, "hidden_written", batch)
                for record in evaluate(self.model, batch, self.written) if self.written else ():
                    yield "fact", record.case, f"{record.metric}_written", record.value
            final = sequence.finish(self.model, state)
            if final is not None:
                commit(self.model, final[0])
            yield from self._hidden(sequence, "hidden_end", self.cases)
            yield from self._scores()
            yield from self._drift()

    def _start(self, sequence: Method) -> State:
        """Contexts, moments and projectors, computed once for all sequences that agree in them."""
        names = ("layers", "rule", "threshold", "statistics_tokens", "contexts")
        key = cache.digest({name: getattr(sequence, name) for name in names})
        if key not in self.shared:
            state = start(self.model, None, sequence.contexts, sequence.layers, sequence.statistics_tokens)
            projectors = {}
            if sequence.rule is not None:
                cut = RULES[sequence.rule](sequence.threshold)
                projectors = {layer: null_space(state.moments[layer], cut) for layer in sequence.layers}
            self.shared[key] = State(state.contexts, state.moments, projectors, known=self.known)
        return self.shared[key]

    def _scored(self, sequence: Method, state: State) -> State:
        """The state with the score by which smoothing chooses, where there is smoothing."""
        if sequence.smoothing is None:
            return state
        score = score_by(sequence.smoothing.select, self.cases, self.validation)
        return PlusState(state.contexts, state.moments, state.projectors, known=state.known, score=score)

    def _spectrum(self, edit: WeightDelta) -> float:
        shares = [
            largest_singular_value(delta) / largest_singular_value(read_weight(self.model, layer).double())
            for layer, delta in edit.deltas.items()
        ]
        return float(max(shares))

    def _hidden(self, sequence: Method, name: str, cases: Sequence[EvalCase]) -> Iterator[Row]:
        hidden = subject_hidden(self.model, [case.request for case in cases], sequence.layers[-1])
        for case, length in zip(cases, hidden.double().norm(dim=0).tolist(), strict=True):
            yield "fact", case.id, name, length

    def _scores(self) -> Iterator[Row]:
        for record in evaluate(self.model, evenly(self.cases, self.sample), self.metrics):
            yield "fact", record.case, record.metric, record.value

    def _drift(self) -> Iterator[Row]:
        windows = drift(self.model, self.reference).windows
        for row in windows.to_dict("records"):
            for name in ("nll", "nll_before", "agreement", "kl"):
                yield "window", str(row["window"]), name, float(row[name])


def score_columns(rows: pd.DataFrame, metrics: Sequence[str] = SCORES) -> pd.DataFrame:
    """Metrics of each asked fact side by side, in percent, from the rows of a run.

    Args:
        rows: as `Stream.outcome` or `Stream.unedited` gives them.
        metrics: to take.

    Returns:
        A column per metric and ``score``, their arithmetic mean, NaN where one was not asked; index ``case``.
    """
    found = rows[rows["of"].eq("fact") & rows["metric"].isin(metrics)].rename(columns={"key": "case"})
    wide = 100 * found.pivot(index="case", columns="metric", values="value")[list(metrics)]
    return wide.assign(score=wide.mean(axis=1, skipna=False))


def _noted(edit: WeightDelta, batch: Sequence[EvalCase], number: int, whole: float) -> Iterator[Row]:
    """What the edit itself notes: lengths of updates as shares of the unedited weights', and of values."""
    for name in ("step_norm", "total_norm"):
        yield "step", str(number), name, math.hypot(*edit.notes[name].values()) / whole
    for case, norm in zip(batch, edit.notes["value_norm"], strict=True):
        yield "fact", case.id, "value_norm", norm
    for name in PARTS:
        for layer, noted in edit.notes.get(name, {}).items():
            yield "layer", f"{number}/{layer}", name, float(noted)
