"""General ability of a model, edited or not: how many items of some tasks it gets right.

An item has several options, of which the model should find one more probable than each of the others, or one
answer, which it should give word by word. Both are read from one teacher-forced pass over all items
(`palimpsest.evaluation.answers`): the option that is the most probable (``chosen``), and the one that greedy
decoding would write (``said``; none where a more probable token stands in each of them). The first reading
has the level of chance as its floor, however broken a model is; the second falls to zero, as the scores do
that papers plot.

Rows are cached on disk for each state of the model.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy import stats

from palimpsest import cache
from palimpsest.errors import ScoreError, UnknownNameError
from palimpsest.evaluation.answers import Answers, ask
from palimpsest.network.model import EditableModel, fingerprint
from palimpsest.network.tokens import encode_target
from palimpsest.results.intervals import Interval, bootstrap_mean, bootstrap_rows
from palimpsest.types import Item, Shown, Task

REVISION = 1
"""Part of the cache key; raise it when the same items give other rows than before."""

COLUMNS = ("task", "item", "group", "right", "chosen", "said", "correct")
NONE = -1
"""Place of an option where there is none: a tie, or an answer that greedy decoding does not give."""
LEVEL = 0.95

Reading = Literal["chosen", "said"]
"""The most probable option, or the one that greedy decoding writes."""


@dataclass(frozen=True, repr=False)
class Ability(Shown):
    """Answers of a model to the items of some tasks.

    Attributes:
        tasks: as asked.
        rows: one per item: ``task``, ``item``, ``group``; the places of the options that are ``right``,
            ``chosen`` and ``said``, −1 for none; and ``correct``: 1 if the right one was chosen or, where
            there is one answer, said, else 0.
        by: what scored them, ``palimpsest`` or ``lm-eval``; with the reason where another was preferred.
        seed: of the bootstraps.
    """

    tasks: tuple[Task, ...]
    rows: pd.DataFrame
    by: str = "palimpsest"
    seed: int = 0

    def shown(self) -> dict[str, object]:
        """Task -> accuracy with its interval, beside the level of chance."""
        told = {"scored by": self.by}
        for task in self.tasks:
            found = self.accuracy(task.name)
            note = "" if self.above_chance(task.name) else "; not above chance: a fall could not be seen"
            told[task.name] = (
                f"{found.mean:.3f} [{found.low:.3f}, {found.high:.3f}] over {found.n} items, "
                f"chance {task.chance:.3f}{note}"
            )
        return dict(told)

    def of(self, name: str) -> pd.DataFrame:
        """Rows of one task.

        Raises:
            UnknownNameError: if it was not asked.
        """
        return self.rows[self.rows["task"].eq(self._task(name).name)]

    def accuracy(self, name: str) -> Interval:
        """Share of a task's items that are correct, in [0, 1], with a 95 % interval over items.

        Raises:
            UnknownNameError: if the task was not asked.
            ScoreError: if it has a single item.
        """
        return bootstrap_mean(self.of(name)["correct"].to_numpy(), self.seed, LEVEL)

    def f1(self, name: str, reading: Reading = "chosen", resamples: int = 1000) -> Interval:
        """F1 score of a task with classes, weighted by class, in [0, 1], with a 95 % interval over items.

        Of balanced classes an answer that is always the same has 1/3 where there are two, 1/10 where there
        are four; no answer at all has 0.

        Args:
            name: of the task.
            reading: ``chosen`` or ``said``; papers plot scores of the second kind.
            resamples: of the bootstrap.

        Raises:
            UnknownNameError: if the task was not asked, or the reading does not exist.
            ScoreError: if its items have different options, so that there are no classes, or it has a single
                item.
        """
        if reading not in ("chosen", "said"):
            raise UnknownNameError("reading", reading, ["chosen", "said"])
        if not self._task(name).labels:
            raise ScoreError(f"task {name!r} has no classes, so no F1 score; ask for its accuracy")

        def score(columns: Mapping[str, ArrayLike]) -> float:
            return weighted_f1(columns["right"], columns[reading])

        rows = self.of(name)[["item", "right", reading]]
        return bootstrap_rows(rows, score, "item", self.seed, LEVEL, resamples)

    def above_chance(self, name: str) -> bool:
        """Whether a model that knows nothing would hardly ever do so well (binomial test at the 2.5 % level).

        Where this does not hold for the unedited model, a fall of this task after an edit could not be seen.

        Raises:
            UnknownNameError: if the task was not asked.
        """
        task, correct = self._task(name), self.of(name)["correct"]
        found = stats.binomtest(int(correct.sum()), len(correct), task.chance, alternative="greater")
        return bool(found.pvalue <= (1 - LEVEL) / 2)

    def seen(self) -> tuple[str, ...]:
        """Names of the tasks on which the model is above chance, in their order."""
        return tuple(task.name for task in self.tasks if self.above_chance(task.name))

    def table(self) -> pd.DataFrame:
        """One row per task: accuracy with its interval beside chance, and F1 of both readings, if any."""
        return pd.DataFrame([self._summary(task) for task in self.tasks])

    def _summary(self, task: Task) -> dict[str, Any]:
        found = self.accuracy(task.name)
        mine = self.of(task.name)
        f1 = {
            f"f1_{reading}": weighted_f1(mine["right"], mine[reading]) if task.labels else np.nan
            for reading in ("chosen", "said")
        }
        return {
            "task": task.name,
            "n": found.n,
            "chance": task.chance,
            "accuracy": found.mean,
            "low": found.low,
            "high": found.high,
            "above_chance": self.above_chance(task.name),
            **f1,
        }

    def _task(self, name: str) -> Task:
        known = {task.name: task for task in self.tasks}
        if name not in known:
            raise UnknownNameError("task", name, list(known))
        return known[name]


def ability(model: EditableModel, tasks: Sequence[Task], batch_size: int = 64, seed: int = 0) -> Ability:
    """Ask a model the items of tasks; read from disk if this model was asked them before.

    Args:
        model: the model, edited or not.
        tasks: for example those of `palimpsest.datasets.tasks.built_in_tasks`.
        batch_size: sequences per forward pass; answers do not depend on it beyond rounding.
        seed: of the bootstraps.

    Raises:
        ScoreError: if there is no task, two share a name, an item is longer than the model's context, or the
            batch size is less than 1.
        NonFiniteError: if the model gives NaN or infinity.
        ResourceError: if a stored file is damaged or cannot be written.
    """
    names = [task.name for task in tasks]
    if not names or len({*names}) != len(names):
        raise ScoreError(f"tasks {names} cannot be asked together; give one or more, each with its own name")
    _require_room(model, tasks)
    key = {"revision": REVISION, "model": fingerprint(model), "tasks": [_key(task) for task in tasks]}
    rows = cache.table("ability", key, COLUMNS, lambda: _rows(model, tasks, batch_size))
    return Ability(tuple(tasks), rows, seed=seed)


def _key(task: Task) -> list[Any]:
    items = [[i.id, i.prompt, list(i.options), i.right, i.group] for i in task.items]
    return [task.name, task.total, cache.digest(items)]


def _rows(model: EditableModel, tasks: Sequence[Task], batch_size: int) -> Iterator[tuple[Any, ...]]:
    pairs = [(item.prompt, option) for task in tasks for item in task.items for option in item.options]
    answers, first = ask(model, pairs, batch_size), 0
    for task in tasks:
        for item in task.items:
            mine = slice(first, first + len(item.options))
            first = mine.stop
            yield task.name, item.id, item.group, item.right, *_answer(task, item, answers, mine)


def _answer(task: Task, item: Item, answers: Answers, mine: slice) -> tuple[int, int, int]:
    """Place of the option that is chosen, place of the one that is said, and whether the item is correct."""
    token_nll, mask, hits = answers.token_nll[mine], answers.mask[mine], answers.hits[mine]
    nll = token_nll.sum(1) if task.total else token_nll.sum(1) / mask.sum(1)  # (options,)
    least = (nll == nll.min()).nonzero()[:, 0].tolist()
    whole = (hits | ~mask).all(1).nonzero()[:, 0].tolist()
    chosen = least[0] if len(least) == 1 else NONE
    said = whole[0] if whole else NONE
    return chosen, said, int((said if task.completes else chosen) == item.right)


def _require_room(model: EditableModel, tasks: Sequence[Task]) -> None:
    """Refuse items that do not fit into the context together with their longest option."""
    room = int(model.config.max_position_embeddings)
    for task in tasks:
        for item in task.items:
            options = max(len(encode_target(model.tokenizer, option)) for option in item.options)
            length = len(model.encode(item.prompt)) + options
            if length > room:
                raise ScoreError(
                    f"item {item.id!r} of task {task.name!r} has {length} tokens, but the context of "
                    f"{model.name} holds {room}; give fewer examples before it, or leave it out"
                )


def weighted_f1(right: ArrayLike, given: ArrayLike) -> float:
    """Mean over classes of 2·TP/(2·TP + FP + FN), weighted by the share of items of each class; in [0, 1].

    Source: the evaluation code of AlphaEdit and the Labyrinth, which call scikit-learn's ``f1_score`` with
    ``average="weighted"`` where the papers say F1. An item without an answer (−1) counts as a false negative.

    Args:
        right: class of each item (n,), n ≥ 1.
        given: class that was answered (n,); −1 for none.
    """
    truth, answer = np.asarray(right), np.asarray(given)
    total = 0.0
    for label in np.unique(truth):
        positive, said = truth == label, answer == label
        hits = float((positive & said).sum())
        total += float(positive.mean()) * 2 * hits / float(positive.sum() + said.sum())
    return total
