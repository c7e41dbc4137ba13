"""Ability along a sequence against a plain loop; changes by hand; how a run ends; what is refused."""

from dataclasses import replace
from typing import Any

import pandas as pd
import pytest

from palimpsest.editors.steps import steps
from palimpsest.errors import NonFiniteError, ScoreError
from palimpsest.evaluation.ability import ability
from palimpsest.network.model import EditableModel
from palimpsest.studies import abilities as room
from palimpsest.studies.abilities import STOPPED, Abilities, ability_course, width
from palimpsest.studies.checkpoints import Checkpoints
from tests.editing import same_bits, snapshot
from tests.evaluation.test_ability import CHOICE, CLOZE
from tests.studies.test_checkpoints import FACTS, make

pytestmark = pytest.mark.usefixtures("one_thread", "drawn_values")
TASKS = (CHOICE, CLOZE)
ASK = Checkpoints(batch=2, at=(2, 4))


def test_rows_are_those_of_a_plain_loop_and_the_model_is_restored(model: EditableModel) -> None:
    before, editor = snapshot(model), make()
    rows = ability_course(model, editor, FACTS, ASK, TASKS)
    assert same_bits(model, before)
    assert rows["edits"].unique().tolist() == [0, 2, 4]
    plain = {0: ability(model, TASKS).rows}
    batches = [[case.request for case in FACTS[i : i + 2]] for i in (0, 2)]
    for step in steps(model, editor, batches):
        plain[2 * (step.number + 1)] = ability(model, TASKS).rows
    for edits, expected in plain.items():
        told = rows[rows["edits"].eq(edits)].drop(columns="edits").reset_index(drop=True)
        pd.testing.assert_frame_equal(told, expected)


def test_a_second_run_is_read_from_disk(model: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    first = ability_course(model, make(), FACTS, ASK, TASKS)
    monkeypatch.setattr(room, "_rows", lambda *_: pytest.fail("computed again"))
    assert ability_course(model, make(), FACTS, ASK, TASKS).equals(first)
    for other in (
        lambda: ability_course(model, make(ridge=2.0), FACTS, ASK, TASKS),
        lambda: ability_course(model, make(), FACTS, ASK, [CHOICE]),
        lambda: ability_course(model, make(), FACTS[:2], replace(ASK, at=(2,)), TASKS),
    ):
        with pytest.raises(pytest.fail.Exception):
            other()


def test_a_run_that_cannot_go_on_says_so(model: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def breaks(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise NonFiniteError("overflow")
        return ability(*args)

    monkeypatch.setattr(room, "ability", breaks)
    before = snapshot(model)
    rows = ability_course(model, make(), FACTS, ASK, TASKS)
    assert rows.iloc[-1]["task"] == STOPPED
    assert rows.iloc[-1]["edits"] == 4
    assert set(rows.loc[rows["task"].ne(STOPPED), "edits"]) == {0, 2}
    assert same_bits(model, before)
    found = Abilities(rows.assign(run="broken", order=0)).items("broken", 4, ["choice"])
    assert len(found) == len(CHOICE.items), "it stands at its last checkpoint"


def test_other_numbers_of_facts_are_refused(model: EditableModel) -> None:
    with pytest.raises(ScoreError, match="the last checkpoint is 4, but 2 facts"):
        ability_course(model, make(), FACTS[:2], ASK, TASKS)


def course(right: dict[tuple[str, int, int], list[int]]) -> Abilities:
    """Rows of two tasks: 10 items of one, of which the given are right, and 2 of another, always right."""
    parts = []
    for (run, order, edits), items in right.items():
        for item in range(10):
            correct = int(item in items)
            parts.append((run, order, edits, "first", f"i{item}", 0, 1 - correct, 1 - correct, correct))
        parts += [(run, order, edits, "second", f"i{item}", 0, 0, -1, 1) for item in range(2)]
    columns = ["run", "order", "edits", "task", "item", "right", "chosen", "said", "correct"]
    return Abilities(pd.DataFrame(parts, columns=columns))


def test_a_change_is_the_mean_over_tasks_of_the_mean_over_items() -> None:
    made = course({("a", 0, 0): list(range(8)), ("a", 0, 4): list(range(3))})
    found, over = made.contrast([(1, "a", 4), (-1, "a", 0)], ["first"])
    assert (found.mean, over, found.n) == (pytest.approx(-50), "cases", 10)
    assert found.low < -50 < found.high <= 0
    assert made.contrast([(1, "a", 4), (-1, "a", 0)], ["first", "second"])[0].mean == pytest.approx(-25)
    assert made.contrast([(1, "a", 4)], ["second"], "said")[0].mean == 0


def test_without_any_change_the_interval_has_no_width_and_pairs_beat_independent_items() -> None:
    made = course({("a", 0, 0): [0, 1, 2], ("a", 0, 4): [0, 1, 2], ("b", 0, 4): [3, 4, 5]})
    same = made.contrast([(1, "a", 4), (-1, "a", 0)], ["first"])[0]
    assert (same.low, same.mean, same.high) == (0, 0, 0)
    other = made.contrast([(1, "b", 4), (-1, "a", 4)], ["first"])[0]
    assert other.mean == 0
    assert width(other) > 0


def test_orders_that_differ_widen_the_interval() -> None:
    every = {("a", order, 0): list(range(8)) for order in range(3)}
    alike = course(every | {("a", order, 4): [order] for order in range(3)})
    apart = course(every | {("a", order, 4): list(range(4 * order)) for order in range(3)})
    terms = [(1.0, "a", 4), (-1.0, "a", 0)]
    assert alike.contrast(terms, ["first"])[1] == "cases"
    found, over = apart.contrast(terms, ["first"])
    assert (over, found.n) == ("seeds", 3)


def test_what_was_not_asked_is_refused() -> None:
    made = course({("a", 0, 0): [1], ("b", 1, 0): [1]})
    for run, tasks, measure in (("c", ["first"], "correct"), ("a", [], "correct"), ("a", ["first"], "loud")):
        with pytest.raises(ScoreError, match=f"run {run!r} has no {measure!r}"):
            made.items(run, 4, tasks, measure)
    with pytest.raises(ScoreError, match="a, b share no order"):
        made.contrast([(1, "a", 0), (-1, "b", 0)], ["first"])
