"""One call for several measurements gives what each of them gives, and says what it lacks."""

from functools import partial

import pandas as pd
import pytest

from palimpsest.errors import ScoreError, UnknownNameError
from palimpsest.evaluation.ability import ability
from palimpsest.evaluation.drift import Reference, drift, reference
from palimpsest.evaluation.evaluate import evaluate
from palimpsest.evaluation.representation import representation_shift, representations
from palimpsest.network.model import EditableModel, read_weight, write_weight
from palimpsest.workbench import measurements as room
from palimpsest.workbench.measurements import Measurement, measure
from tests.editing import texts
from tests.evaluation.test_ability import CHOICE
from tests.studies.test_checkpoints import FACTS
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread", "own_cache")


@pytest.fixture
def model() -> EditableModel:
    return tiny_model("llama")


@pytest.fixture
def text(model: EditableModel) -> Reference:
    return reference(model, tokens=64, window=16, texts=texts())


def test_each_entry_is_what_its_own_function_gives(model: EditableModel, text: Reference) -> None:
    found = measure(model, ["efficacy", "ability", "drift"], FACTS, text, [CHOICE])
    assert list(found) == ["efficacy", "ability", "drift"]
    assert found["efficacy"] == evaluate(model, FACTS, ["efficacy"])
    assert found["ability"].rows.equals(ability(model, [CHOICE]).rows)
    assert found["drift"].windows.equals(drift(model, text).windows)
    assert {"efficacy", "ability", "drift"} <= set(found.shown())


def test_representation_compares_with_the_states_before(
    model: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = partial(representation_shift, resamples=3, draws=3)
    monkeypatch.setattr(room, "representation_shift", few)
    requests = [case.request for case in FACTS]
    before = representations(model, requests, 1)
    kept = read_weight(model, 1).clone()
    write_weight(model, 1, 3 * kept)
    found = measure(model, ["representation"], states=before)["representation"]
    after = representations(model, requests, 1)
    pd.testing.assert_frame_equal(found, few(before, after))
    assert found.set_index("measure").loc["moved", "value"] > 0


def test_built_in_items_are_about_no_written_subject(
    model: EditableModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[set[str]] = []

    def spy(written: set[str]) -> list[object]:
        asked.append(written)
        return [CHOICE]

    monkeypatch.setattr(room, "built_in_tasks", spy)
    measure(model, ["ability"], FACTS)
    assert asked == [{case.request.subject for case in FACTS}]


def test_a_further_measurement_is_one_row(model: EditableModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(room.MEASURED, "layers", Measurement(lambda model, given: model.n_layers))
    assert measure(model, ["layers"]) == {"layers": 4}


def test_what_is_unknown_or_missing_is_named(model: EditableModel) -> None:
    with pytest.raises(UnknownNameError, match="unknown measurement 'glue'; choose one of: ability, drift"):
        measure(model, ["glue"])
    with pytest.raises(
        ScoreError, match=r"drift needs reference; pass reference=palimpsest.reference\(model\)"
    ):
        measure(model, ["drift"])
    with pytest.raises(ScoreError, match=r"representation needs states; pass states=palimpsest.repres"):
        measure(model, ["representation"])
    with pytest.raises(ScoreError, match="efficacy needs cases; pass the facts"):
        measure(model, ["efficacy"])
