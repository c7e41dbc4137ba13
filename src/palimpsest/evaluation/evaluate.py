"""Evaluation of a model, edited or not, on many cases at once: one record per case and metric.

The questions of all cases become one list of distinct prompts and targets, which
`palimpsest.evaluation.answers` runs in batches; each metric's formula is then applied to all its questions.
Nothing here depends on how a model was edited.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, NamedTuple

import pandas as pd
from jaxtyping import Float
from torch import Tensor

from palimpsest.errors import ScoreError, UnknownNameError
from palimpsest.evaluation import metrics as formulas
from palimpsest.evaluation.answers import Answers, Pair, ask, target_nll
from palimpsest.evaluation.metrics import COUNTERFACT_METRICS, METRICS, Metric
from palimpsest.network.model import EditableModel
from palimpsest.types import EvalCase, Record, Shown


class Question(NamedTuple):
    """A prompt, the target that should be more probable after it, and the one that should be less."""

    prompt: str
    wanted: str
    other: str


class Evaluation(Shown, list[Record]):
    """Records of an evaluation; a prompt shows the mean of each metric."""

    def shown(self) -> dict[str, object]:
        """Metric -> mean over cases, and how many they are."""
        values: dict[str, list[float]] = {}
        for record in self:
            values.setdefault(record.metric, []).append(record.value)
        return {name: f"{sum(v) / len(v):.3f} over {len(v)} cases" for name, v in values.items()}


def evaluate(
    model: EditableModel,
    cases: Sequence[EvalCase],
    metrics: Sequence[str] = COUNTERFACT_METRICS,
    batch_size: int = 64,
) -> Evaluation:
    """Score the current model on cases.

    Args:
        model: the model, edited or not.
        cases: with unique ids.
        metrics: names in `palimpsest.evaluation.metrics.METRICS`.
        batch_size: sequences per forward pass; scores do not depend on it beyond rounding.

    Returns:
        One record per metric and case, in the order of the metrics, then of the cases. Its value, in [0, 1],
        is the mean over the case's prompts. A case without prompts for a metric (no paraphrases, no
        neighbours) has no record of it.

    Raises:
        UnknownNameError: if a metric does not exist.
        ScoreError: if ids repeat, a success metric is applied to a case without a true object, or a prompt
            gives no token.
        NonFiniteError: if the model gives NaN or infinity.
    """
    names = list(dict.fromkeys(metrics))
    _check(cases, names)
    asked = {name: {case.id: _questions(case, METRICS[name]) for case in cases} for name in names}
    index = _index(asked)
    answers = ask(model, list(index), batch_size)
    return Evaluation(record for name in names for record in _records(name, asked[name], answers, index))


def knows(
    model: EditableModel,
    cases: Sequence[EvalCase],
    how: Literal["prefers", "argmax"] = "prefers",
    batch_size: int = 64,
) -> list[bool]:
    """Whether the unedited model knows each case's true object.

    Args:
        model: the unedited model.
        cases: with a true object.
        how: ``prefers``: after the request's prompt the true object has a lower mean NLL than the new one;
            ``argmax``: each of its tokens is the most probable one.
        batch_size: sequences per forward pass.

    Returns:
        One truth value per case, in their order.

    Raises:
        UnknownNameError: if ``how`` is neither.
        ScoreError: if a case has no true object.
    """
    if how not in ("prefers", "argmax"):
        raise UnknownNameError("way of knowing", how, ["prefers", "argmax"])
    for case in cases:
        _require_true(case, f"knows(how={how!r})")
    true = [(case.request.text, case.target_true) for case in cases]
    if how == "argmax":
        answers = ask(model, true, batch_size)
        return formulas.accuracy(answers.hits, answers.mask).bool().tolist()
    new = [(case.request.text, case.request.target) for case in cases]
    nll = target_nll(model, true + new, batch_size)
    return formulas.success(nll[: len(true)], nll[len(true) :]).bool().tolist()


def first_known(model: EditableModel, cases: Sequence[EvalCase], count: int) -> list[EvalCase]:
    """The first ``count`` cases whose true object the model prefers; cases are scored in parts until enough.

    Raises:
        ScoreError: if the model knows fewer, or a case has no true object.
    """
    found: list[EvalCase] = []
    step = max(2 * count, 16)
    for start in range(0, len(cases), step):
        some = cases[start : start + step]
        found += [case for case, known in zip(some, knows(model, some), strict=True) if known]
        if len(found) >= count:
            return found[:count]
    raise ScoreError(
        f"{model.name} knows {len(found)} of {len(cases)} facts, {count} were asked for; ask for fewer"
    )


def _check(cases: Sequence[EvalCase], names: Sequence[str]) -> None:
    for name in names:
        if name not in METRICS:
            raise UnknownNameError("metric", name, list(METRICS))
    twice = [case for case, count in Counter(case.id for case in cases).items() if count > 1]
    if twice:
        raise ScoreError(f"{len(twice)} case ids repeat, for example {twice[0]!r}; give each case its own id")
    for name in names:
        if METRICS[name].form == "success" and METRICS[name].prompts != "neighbours":
            for case in cases:
                _require_true(case, name)


def _require_true(case: EvalCase, what: str) -> None:
    if not case.target_true:
        raise ScoreError(
            f"case {case.id!r} has no true object, which {what} compares with; "
            "use accuracy or token metrics (ZSRE_METRICS), or cases with target_true"
        )


def _questions(case: EvalCase, metric: Metric) -> list[Question]:
    new, true = case.request.target, case.target_true
    if metric.prompts == "neighbours":
        return [Question(probe.prompt, wanted=probe.target, other=new) for probe in case.neighbours]
    prompts = case.paraphrases if metric.prompts == "paraphrases" else (case.request.text,)
    return [Question(prompt, wanted=new, other=true) for prompt in prompts]


def _index(asked: dict[str, dict[str, list[Question]]]) -> dict[Pair, int]:
    """Distinct (prompt, target) pairs that any metric needs -> their number."""
    pairs: dict[Pair, int] = {}
    for name, by_case in asked.items():
        for question in (question for questions in by_case.values() for question in questions):
            pairs.setdefault((question.prompt, question.wanted), len(pairs))
            if METRICS[name].form == "success":
                pairs.setdefault((question.prompt, question.other), len(pairs))
    return pairs


def _records(
    name: str, by_case: dict[str, list[Question]], answers: Answers, index: dict[Pair, int]
) -> list[Record]:
    counts = {case: len(questions) for case, questions in by_case.items() if questions}
    flat = [question for questions in by_case.values() for question in questions]
    if not flat:
        return []
    parts = _values(name, flat, answers, index).split(list(counts.values()))
    return [
        Record(case, name, float(part.mean()), count)
        for (case, count), part in zip(counts.items(), parts, strict=True)
    ]


def _values(
    name: str, questions: Sequence[Question], answers: Answers, index: dict[Pair, int]
) -> Float[Tensor, " n"]:
    """Value of a metric's formula for every question (n,)."""
    wanted = [index[question.prompt, question.wanted] for question in questions]
    form = METRICS[name].form
    if form == "success":
        other = [index[question.prompt, question.other] for question in questions]
        return formulas.success(answers.nll[wanted], answers.nll[other])
    formula = formulas.accuracy if form == "accuracy" else formulas.token_accuracy
    return formula(answers.hits[wanted], answers.mask[wanted])


def records_frame(records: Sequence[Record], **columns: Any) -> pd.DataFrame:
    """Records as a tidy table: the given constant columns, then case, metric, value, prompts.

    Args:
        records: from `evaluate`.
        columns: constant columns, for example ``method="memit", seed=0, moment="end"``.

    Raises:
        ScoreError: if a column has the name of a field of a record.
    """
    names = [member.name for member in fields(Record)]
    clash = sorted(set(columns) & set(names))
    if clash:
        raise ScoreError(f"columns {clash} are fields of every record; choose other names")
    frame = pd.DataFrame([asdict(record) for record in records], columns=names)
    for position, (name, value) in enumerate(columns.items()):
        frame.insert(position, name, value)
    return frame


@dataclass
class Scorer:
    """Scores of a sequence of batches at two moments: each batch right after it was written, all at the end.

    Call `after_batch` once per batch while its edit is in force, and `at_end` after the last one; `frame`
    then has one row per moment, case and metric, with the number of the batch in which the case was written.

    Attributes:
        metrics: names in `palimpsest.evaluation.metrics.METRICS`.
        batch_size: sequences per forward pass.
        batches: cases of each batch so far.
        tables: one table of scores per call so far.
    """

    metrics: Sequence[str] = COUNTERFACT_METRICS
    batch_size: int = 64
    batches: list[Sequence[EvalCase]] = field(default_factory=list)
    tables: list[pd.DataFrame] = field(default_factory=list)

    def after_batch(self, model: EditableModel, cases: Sequence[EvalCase]) -> None:
        """Score the cases of the batch that was just written; moment ``after_batch``."""
        self.batches.append(cases)
        self._score(model, cases, "after_batch")

    def at_end(self, model: EditableModel) -> None:
        """Score the cases of all batches; moment ``end``."""
        self._score(model, [case for batch in self.batches for case in batch], "end")

    def frame(self, **columns: Any) -> pd.DataFrame:
        """All scores with columns moment and batch (from 0), after the given constant columns.

        Raises:
            ScoreError: if nothing has been scored yet.
        """
        if not self.tables:
            raise ScoreError("nothing was scored yet; call after_batch first")
        table = pd.concat(self.tables, ignore_index=True)
        for position, (name, value) in enumerate(columns.items()):
            table.insert(position, name, value)
        return table

    def _score(self, model: EditableModel, cases: Sequence[EvalCase], moment: str) -> None:
        table = records_frame(evaluate(model, cases, self.metrics, self.batch_size), moment=moment)
        batch = {case.id: number for number, cases in enumerate(self.batches) for case in cases}
        table.insert(1, "batch", table["case"].map(batch))
        self.tables.append(table)
