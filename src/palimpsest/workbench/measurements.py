"""One call for several measurements of a model: scores of facts, ability, hidden states, drift on text.

A measurement is one row of ``MEASURED``; the metrics of `palimpsest.evaluation.metrics` are known as well.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from palimpsest.datasets.tasks import built_in_tasks
from palimpsest.errors import ScoreError, UnknownNameError
from palimpsest.evaluation.drift import Reference, drift
from palimpsest.evaluation.evaluate import Evaluation, evaluate
from palimpsest.evaluation.harness import By, scored_by
from palimpsest.evaluation.metrics import METRICS
from palimpsest.evaluation.representation import Representations, representation_shift, representations
from palimpsest.network.model import EditableModel
from palimpsest.types import EvalCase, Shown, Task


@dataclass(frozen=True)
class Given:
    """What a call of `measure` was given beside the model.

    Attributes:
        cases: facts that were written.
        reference: held-out text with the unedited model's predictions.
        states: hidden states of prompts in the unedited model.
        tasks: of general ability; those that the package brings with it where there are none.
        by: what scores them.
        batch_size: sequences per forward pass.
    """

    cases: Sequence[EvalCase]
    reference: Reference | None
    states: Representations | None
    tasks: Sequence[Task]
    by: By
    batch_size: int


class Measurement(NamedTuple):
    """How something is measured, and what the call must be given for it."""

    run: Callable[[EditableModel, Given], Any]
    needs: str = ""
    remedy: str = ""


def _drift(model: EditableModel, given: Given) -> Any:
    assert given.reference is not None
    return drift(model, given.reference)


def _ability(model: EditableModel, given: Given) -> Any:
    tasks = given.tasks or built_in_tasks({case.request.subject for case in given.cases})
    return scored_by(given.by, model, tasks, given.batch_size)


def _representation(model: EditableModel, given: Given) -> Any:
    before = given.states
    assert before is not None
    return representation_shift(before, representations(model, before.requests, before.layer))


MEASURED: dict[str, Measurement] = {
    "ability": Measurement(_ability),
    "drift": Measurement(
        _drift, "reference", "pass reference=palimpsest.reference(model), made before the edit"
    ),
    "representation": Measurement(
        _representation,
        "states",
        "pass states=palimpsest.representations(model, requests, layer), made before the edit",
    ),
}
"""Name -> measurement, beside the metrics of facts."""


class Measured(Shown, dict[str, Any]):
    """Name -> what was measured: an evaluation for a metric of facts, else the measurement's own result."""

    def shown(self) -> dict[str, object]:
        """Each measurement in its own words."""
        told: dict[str, object] = {}
        for name, found in self.items():
            told |= found.shown() if isinstance(found, Evaluation) else {name: found}
        return told


def known(what: Sequence[str]) -> list[str]:
    """Names of measurements beside the metrics of facts, each once.

    Raises:
        UnknownNameError: if one is no row of ``MEASURED``.
    """
    for name in what:
        if name not in MEASURED:
            raise UnknownNameError("measurement", name, list(MEASURED))
    return list(dict.fromkeys(what))


def measure(
    model: EditableModel,
    what: Sequence[str] = ("efficacy", "ability"),
    cases: Sequence[EvalCase] = (),
    reference: Reference | None = None,
    tasks: Sequence[Task] = (),
    by: By = "palimpsest",
    batch_size: int = 64,
    states: Representations | None = None,
) -> Measured:
    """Measure a model, edited or not, in several ways at once.

    Args:
        model: the model as it is now.
        what: metrics of facts (`palimpsest.evaluation.metrics.METRICS`) and rows of ``MEASURED``, such as
            ``["efficacy", "ability", "drift"]``.
        cases: facts for the metrics; built-in items of ability are about none of their subjects.
        reference: for drift, of the unedited model.
        tasks: for ability; by default the built-in ones.
        by: who scores ability: this package, lm-eval, or ``any`` for lm-eval where it is installed.
        batch_size: sequences per forward pass.
        states: for representation, of the unedited model; its prompts are read again.

    Returns:
        One entry per name, in their order: for metrics what `palimpsest.evaluation.evaluate` returns, for
        the others what `ability`, `drift` and `representation_shift` (at the subjects) do.

    Raises:
        UnknownNameError: if a name is neither a metric nor a row of ``MEASURED``.
        ScoreError: if something that a measurement needs was not given.
        As the measurements.
    """
    names = list(dict.fromkeys(what))
    given = Given(cases, reference, states, tasks, by, batch_size)
    for name in names:
        if name not in METRICS and name not in MEASURED:
            raise UnknownNameError("measurement", name, [*METRICS, *MEASURED])
        needs, remedy = MEASURED[name][1:] if name in MEASURED else ("cases", "pass the facts to score")
        if needs and (not cases if needs == "cases" else getattr(given, needs) is None):
            raise ScoreError(f"{name} needs {needs}; {remedy}")
    return Measured(
        {
            name: MEASURED[name].run(model, given)
            if name in MEASURED
            else evaluate(model, cases, [name], batch_size)
            for name in names
        }
    )
