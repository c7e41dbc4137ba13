"""General ability along a sequence of edits: the same items asked again when so many facts are written.

Every item has its own row at each checkpoint, so that a run is compared with the unedited model and with
other runs item by item. Rows are cached on disk under the hash of everything they depend on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from palimpsest import cache
from palimpsest.editors.base import WeightEditor
from palimpsest.editors.steps import run_key, steps
from palimpsest.errors import NonFiniteError, ScoreError, SingularProblemError
from palimpsest.evaluation.ability import COLUMNS as ANSWERED
from palimpsest.evaluation.ability import REVISION, ability
from palimpsest.evaluation.smoothing_score import score_by
from palimpsest.network.model import EditableModel
from palimpsest.results.few_values import student_mean
from palimpsest.results.intervals import Interval, bootstrap_rows
from palimpsest.studies.checkpoints import Checkpoints
from palimpsest.types import EvalCase, Task

COLUMNS = ("edits", *ANSWERED)
STOPPED = "stopped"
"""Task of the row that says that a run could not go on."""
MEASURES = ("correct", "said")
"""Whether the right option is the most probable (or, of a single one, said), and whether it is said."""

Term = tuple[float, str, int]
"""Weight, run and number of facts; 0 facts for the unedited model."""


def ability_course(
    model: EditableModel,
    editor: WeightEditor,
    cases: Sequence[EvalCase],
    ask: Checkpoints,
    tasks: Sequence[Task],
    validation: Mapping[str, Sequence[str]] | None = None,
) -> pd.DataFrame:
    """Rows of one run, read from disk if the same run was made before.

    Args:
        model: the unedited model; restored at the end.
        editor: any weight editor; one with a score rule scores by it.
        cases: facts in the order in which they are written; the last checkpoint is their number.
        ask: facts of a step, and numbers of facts at which the items are asked; nothing else of it is used.
        tasks: no item may be about a written fact, which `palimpsest.datasets.tasks.built_in_tasks` sees to.
        validation: id of a fact -> wordings that no case asks, for editors that score by them.

    Returns:
        One row per checkpoint and item: ``edits``, 0 for the unedited model, and the columns of
        `palimpsest.evaluation.ability.Ability.rows`. A run that cannot go on ends with a row of the task
        ``stopped``, and has none for later checkpoints.

    Raises:
        ScoreError: if the last checkpoint is not the number of cases, the editor scores by validation
            wordings and there are none, and as `palimpsest.evaluation.ability.ability`.
        ResourceError: if a stored table is damaged or cannot be written.
    """
    if ask.at[-1] != len(cases):
        raise ScoreError(f"the last checkpoint is {ask.at[-1]}, but {len(cases)} facts are written")
    key = run_key(model, editor, cases) | {
        "revision": REVISION,
        "at": [ask.batch, *ask.at],
        "tasks": cache.digest([asdict(task) for task in tasks]),
        "validation": {name: list(texts) for name, texts in (validation or {}).items()},
    }
    rows = partial(_rows, model, editor, cases, ask, tasks, validation)
    return cache.table("ability_courses", key, COLUMNS, rows)


def _rows(
    model: EditableModel,
    editor: WeightEditor,
    cases: Sequence[EvalCase],
    ask: Checkpoints,
    tasks: Sequence[Task],
    validation: Mapping[str, Sequence[str]] | None,
) -> Iterator[tuple[Any, ...]]:
    batches = [[case.request for case in cases[i : i + ask.batch]] for i in range(0, len(cases), ask.batch)]
    score = score_by(editor.score_rule, cases, validation) if editor.score_rule else None
    yield from _asked(model, tasks, 0)
    edits = 0
    try:
        for step in steps(model, editor, batches, score):
            edits += len(step.requests)
            if edits in ask.at and step.requests:
                yield from _asked(model, tasks, edits)
    except (NonFiniteError, SingularProblemError):
        yield edits, STOPPED, "", "", 0, 0, 0, 0


def _asked(model: EditableModel, tasks: Sequence[Task], edits: int) -> Iterator[tuple[Any, ...]]:
    rows = ability(model, tasks).rows
    yield from ((edits, *row) for row in rows.itertuples(index=False, name=None))


@dataclass(frozen=True)
class Abilities:
    """Runs along their checkpoints, to be compared item by item.

    Attributes:
        rows: columns ``run`` and ``order``, and those of `ability_course`.
        seed: of the bootstrap.
    """

    rows: pd.DataFrame
    seed: int = 0

    def items(self, run: str, edits: int, tasks: Sequence[str], measure: str = "correct") -> pd.Series:
        """1 or 0 of each item of some tasks, by order, task and item, when so many facts were written.

        A run that could not go on stands at its last checkpoint.

        Args:
            run: a value of the column ``run``.
            edits: number of facts; each order counts at its last checkpoint up to it.
            tasks: names.
            measure: one of ``MEASURES``.

        Raises:
            ScoreError: if there is no such row or measure.
        """
        mine = self.rows[self.rows["run"].eq(run) & self.rows["task"].isin(list(tasks))]
        now = mine[mine["edits"].le(edits)]
        now = now[now["edits"].eq(now.groupby("order")["edits"].transform("max"))]
        if now.empty or measure not in MEASURES:
            raise ScoreError(
                f"run {run!r} has no {measure!r} of {', '.join(tasks) or 'no task'} after {edits} facts; ask "
                f"its items, and choose of {', '.join(MEASURES)}"
            )
        value = now["correct"] if measure == "correct" else now["said"].eq(now["right"])
        return pd.Series(
            value.to_numpy(float), pd.MultiIndex.from_frame(now[["order", "task", "item"]]), name=measure
        )

    def contrast(
        self, terms: Sequence[Term], tasks: Sequence[str], measure: str = "correct"
    ) -> tuple[Interval, str]:
        """A weighted sum of shares, item by item, as the mean over tasks of the mean over their items.

        ``[(1, "memit_naive", 60), (-1, "memit_naive", 0)]`` is the change that sixty facts made.

        Args:
            terms: weight, run and number of facts; only orders that all have count.
            tasks: names; each has the same weight.
            measure: one of ``MEASURES``.

        Returns:
            Mean and interval in points of percent, and what the interval is over: ``cases`` for items,
            resampled as means over orders, or ``seeds`` where Student's interval over orders is wider.

        Raises:
            ScoreError: if the terms have no order or item in common, and as `items`.
        """
        columns = [weight * self.items(run, edits, tasks, measure) for weight, run, edits in terms]
        total = 100 * pd.concat(columns, axis=1, join="inner").sum(axis=1)
        if total.empty:
            raise ScoreError(
                f"{', '.join(run for _, run, _ in terms)} share no order; use one of their orders"
            )
        frame = total.groupby(level=["task", "item"]).mean().rename("value").reset_index()
        frame["key"] = frame["task"] + " " + frame["item"]
        over_items = bootstrap_rows(frame[["key", "task", "value"]], _mean_of_tasks, "key", self.seed)
        means = total.groupby(level=["order", "task"]).mean().groupby(level="order").mean()
        over_orders = student_mean(means) if len(means) > 1 else None
        if over_orders is None or width(over_orders) <= width(over_items):
            return over_items, "cases"
        return over_orders, "seeds"


def width(found: Interval) -> float:
    """Length of an interval."""
    return found.high - found.low


def _mean_of_tasks(columns: Any) -> float:
    names = np.unique(columns["task"])
    return float(np.mean([columns["value"][columns["task"] == name].mean() for name in names]))
