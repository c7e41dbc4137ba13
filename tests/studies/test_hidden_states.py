"""States along a run against a plain loop, the control's size, how a run ends, and means over orders."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from palimpsest.errors import NonFiniteError, ScoreError
from palimpsest.evaluation.representation import representations
from palimpsest.evaluation.shift import Shift, over_prompts
from palimpsest.network.apply import WeightDelta, installed
from palimpsest.network.model import EditableModel, read_weight
from palimpsest.results.few_values import student_mean
from palimpsest.studies import hidden_states as room
from palimpsest.studies.hidden_states import ModelState, StatesAsked, mean_measure, states_along
from palimpsest.studies.null_edits import random_direction
from tests.editing import same_bits, snapshot
from tests.sequences import FACTS, OTHERS, make, run

pytestmark = pytest.mark.usefixtures("one_thread", "drawn_values")
LAYERS = (0, 1)
ASKED = StatesAsked(batch=2, at=(2, 4), requests=tuple(OTHERS[4:]), controls=(4,), seed=5)


def editor(**options: Any) -> Any:
    return make("plain", layers=LAYERS, **options)


def test_states_are_those_of_a_plain_loop(model: EditableModel) -> None:
    before = snapshot(model)
    found = states_along(model, editor(), FACTS[:4], ASKED)
    assert same_bits(model, before)
    assert list(found) == [ModelState(2, "edited"), ModelState(4, "edited"), ModelState(4, "random")]
    unedited = {layer: read_weight(model, layer).clone() for layer in LAYERS}
    _, weights = run(editor(), [FACTS[:2], FACTS[2:4]], model)
    for edits, now in zip((2, 4), weights, strict=True):
        total = WeightDelta({i: now[i].double() - unedited[i].double() for i in LAYERS})
        with installed(model, total):
            wanted = representations(model, ASKED.requests, LAYERS[-1])
        np.testing.assert_allclose(found[ModelState(edits, "edited")].subject, wanted.subject, atol=1e-4)
        np.testing.assert_allclose(found[ModelState(edits, "edited")].prompt, wanted.prompt, atol=1e-3)
    null = random_direction(total, 5)
    assert null.norm() == pytest.approx(total.norm())
    with installed(model, null):
        wanted = representations(model, ASKED.requests, LAYERS[-1])
    np.testing.assert_allclose(found[ModelState(4, "random")].subject, wanted.subject, atol=1e-3)
    assert found[ModelState(2, "edited")].layer == 1


def test_a_second_run_is_read_from_disk(model: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    first = states_along(model, editor(), FACTS[:4], ASKED)
    monkeypatch.setattr(room, "_along", lambda *_: pytest.fail("computed again"))
    again = states_along(model, editor(), FACTS[:4], ASKED)
    assert list(again) == list(first)
    for moment, states in first.items():
        assert np.array_equal(states.subject, again[moment].subject)
        assert np.array_equal(states.prompt, again[moment].prompt)
    for other in (replace(ASKED, seed=6), replace(ASKED, controls=())):
        with pytest.raises(pytest.fail.Exception, match="computed again"):
            states_along(model, editor(), FACTS[:4], other)


def test_a_run_that_cannot_go_on_has_no_later_moments(
    model: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, times = room.representations, []

    def breaks(*args: Any) -> Any:
        times.append(1)
        if len(times) == 2:
            raise NonFiniteError("overflow")
        return read(*args)

    monkeypatch.setattr(room, "representations", breaks)
    before = snapshot(model)
    found = states_along(model, editor(), FACTS[:4], replace(ASKED, controls=(2, 4)))
    assert [*found][:2] == [ModelState(2, "edited"), ModelState(2, "random")]
    assert same_bits(model, before)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"at": ()}, r"after \[\] facts, which must be ascending multiples of the batch of 2"),
        ({"at": (4, 2)}, "ascending multiples"),
        ({"at": (3,), "controls": ()}, "ascending multiples"),
        ({"batch": 0}, "batch of 0"),
        ({"controls": (3,)}, r"controls after \[3\] facts need a reading there"),
    ],
)
def test_readings_that_fit_no_batches_are_refused(wrong: dict[str, Any], said: str) -> None:
    with pytest.raises(ScoreError, match=said):
        replace(ASKED, **wrong)


def test_other_facts_are_refused(model: EditableModel) -> None:
    with pytest.raises(ScoreError, match="last reading is after 4 facts, but 2 are written"):
        states_along(model, editor(), FACTS[:2], ASKED)


def shifts(seed: int, size: float, orders: int) -> list[Shift]:
    draw = np.random.default_rng(seed)
    before = draw.standard_normal((20, 4))
    return [Shift.between(before, before + size * draw.standard_normal((20, 4))) for _ in range(orders)]


def test_several_orders_are_averaged_by_student_and_one_over_prompts() -> None:
    names = ("d1", "d2")
    first, second = shifts(0, 0.3, 3), shifts(0, 1.0, 3)
    values = [
        np.mean([a.measure(name) - b.measure(name) for name in names])
        for a, b in zip(first, second, strict=True)
    ]
    found, over = mean_measure(names, first, second)
    assert over == "seeds"
    wanted = student_mean(values)
    assert (found.mean, found.low) == pytest.approx((wanted.mean, wanted.low))
    alone, over = mean_measure(("moved",), first[:1], second[:1], seed=4, resamples=50)
    told = over_prompts(lambda of: first[0].measure("moved", of) - second[0].measure("moved", of), 20, 4, 50)
    assert (alone, over) == (told, "cases")
    level, _ = mean_measure(("moved",), first)
    assert level.mean == pytest.approx(np.mean([one.measure("moved") for one in first]))


def test_a_method_does_not_differ_from_itself() -> None:
    one = shifts(1, 0.5, 1)
    found, _ = mean_measure(("mmd",), one, one, resamples=20)
    assert (found.mean, found.low, found.high) == (0, 0, 0)


def test_runs_that_do_not_fit_together_are_refused() -> None:
    for arguments in (((), shifts(0, 1, 1)), (("h",), shifts(0, 1, 2), shifts(0, 1, 1)), (("h",), [])):
        with pytest.raises(ScoreError, match="cannot be averaged; give both methods in the same orders"):
            mean_measure(*arguments)
