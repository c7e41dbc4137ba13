"""Single edits, asked one by one: the same as by hand, restored, resumed, never made twice."""

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import torch

from palimpsest.cache import seal_of
from palimpsest.errors import DataError, NonFiniteError, ResourceError
from palimpsest.evaluation.evaluate import evaluate
from palimpsest.evaluation.responses import Decoding
from palimpsest.evaluation.stability import Measured, compared, diagnose
from palimpsest.evaluation.uncertainty import decompose
from palimpsest.network.apply import Edit, WeightDelta, installed
from palimpsest.network.model import EditableModel, fingerprint, read_weight
from palimpsest.paths import cache_dir
from palimpsest.studies.single_edits import Arm, SingleEdits, share_with
from palimpsest.types import EditRequest, EvalCase, Probe
from tests.editing import same_bits, snapshot
from tests.embedders import letters
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")

CASES = tuple(
    EvalCase(
        name,
        EditRequest("The city of {} is", subject, "Rome", name),
        "Paris",
        (f"{subject} lives in",),
        (Probe("The capital of France is", "Paris"),),
    )
    for name, subject in (("anna", "Anna Berg"), ("marie", "Marie Curie"))
)
WORDINGS = {
    "anna": ["Anna Berg was born in", "The city of Anna Berg is"],
    "marie": ["Marie Curie was born in", "Where does Marie Curie live? In"],
}
SMALL = Decoding(samples=2, tokens=4, seed=1)


@pytest.fixture
def model() -> EditableModel:
    return tiny_model("llama", seed=2)


@pytest.fixture
def study(model: EditableModel) -> SingleEdits:
    return SingleEdits(model, CASES, WORDINGS, letters())


def adding(model: EditableModel, size: float = 0.3) -> Arm:
    """Another matrix for each fact."""

    def make(request: EditRequest) -> Edit:
        generator = torch.Generator().manual_seed(len(request.subject))
        shape = read_weight(model, 1).shape
        noise = size * torch.randn(shape, generator=generator, dtype=torch.float64)
        return WeightDelta({1: noise}, fingerprint(model))

    return Arm({"editor": "noise", "size": size}, make)


NOTHING = Arm({"editor": None}, lambda request: None)


def test_an_outcome_is_each_edit_diagnosed_alone(model: EditableModel, study: SingleEdits) -> None:
    before, arm = snapshot(model), adding(model)
    plain, found = study.outcome(NOTHING, SMALL), study.outcome(arm, SMALL)
    assert same_bits(model, before)
    table = compared(plain.said, found.said).set_index("fact")
    scores = found.scores.set_index(["case", "metric"])["value"]
    for case in CASES:
        edit = arm.make(case.request)
        assert edit is not None
        alone = diagnose(model, edit, {case.id: WORDINGS[case.id]}, letters(), SMALL)
        assert alone.after[case.id].texts == found.said[case.id].texts
        pd.testing.assert_series_equal(alone.table.set_index("fact").loc[case.id], table.loc[case.id])
        assert found.norms[case.id] == pytest.approx(edit.norm())
        with installed(model, edit):
            by_hand = {one.metric: one.value for one in evaluate(model, [case], study.metrics)}
        assert scores[case.id].to_dict() == by_hand
    assert plain.norms == {"anna": 0.0, "marie": 0.0}
    assert (table["unchanged"] < 1).all()


def test_what_is_on_disk_is_not_made_again(model: EditableModel, study: SingleEdits) -> None:
    arm = adding(model)

    def refused(request: EditRequest) -> Edit:
        raise AssertionError("made twice")

    assert study.missing(arm, SMALL) == 2
    first = replace(study, cases=CASES[:1]).outcome(arm, SMALL)
    assert study.missing(arm, SMALL) == 1
    both = study.outcome(arm, SMALL)
    again = study.outcome(Arm(arm.settings, refused), SMALL)
    assert first.said["anna"].texts == both.said["anna"].texts == again.said["anna"].texts
    pd.testing.assert_frame_equal(both.scores, again.scores)
    assert both.norms == again.norms
    for other in (
        study.missing(Arm({"editor": "another"}, refused), SMALL),
        study.missing(arm, replace(SMALL, seed=2)),
        replace(study, metrics=("efficacy",)).missing(arm, SMALL),
        replace(study, wordings={name: own[::-1] for name, own in WORDINGS.items()}).missing(arm, SMALL),
    ):
        assert other == 2
    assert study.missing(arm, replace(SMALL, batch_size=3)) == 0


def test_an_error_keeps_what_was_done_and_restores(model: EditableModel, study: SingleEdits) -> None:
    before, arm = snapshot(model), adding(model)

    def failing(request: EditRequest) -> Edit | None:
        if request.id == "marie":
            raise NonFiniteError("made up")
        return arm.make(request)

    with pytest.raises(NonFiniteError, match="made up"):
        study.outcome(Arm(arm.settings, failing), SMALL)
    assert same_bits(model, before)
    assert study.missing(arm, SMALL) == 1


def test_bad_input_and_damage(model: EditableModel, study: SingleEdits) -> None:
    with pytest.raises(DataError, match="case 'marie' has no wordings or is given twice; give each of 2"):
        replace(study, wordings={"anna": WORDINGS["anna"]})
    with pytest.raises(DataError, match="case 'anna' has no wordings or is given twice"):
        replace(study, cases=(*CASES, CASES[0]))
    study.outcome(NOTHING, SMALL)
    files: list[Path] = sorted((cache_dir() / "singles").glob("*.json"))
    assert len(files) == 2
    files[0].write_text(files[0].read_text().replace("0.0", "0.5"))
    assert study.outcome(NOTHING, SMALL).norms == dict.fromkeys(("anna", "marie"), 0.0)  # computed again
    for content in ("not json", json.dumps({"norm": 0}), json.dumps([1])):
        files[0].write_text(content)
        seal_of(files[0]).unlink(missing_ok=True)  # as an earlier version wrote it
        with pytest.raises(ResourceError, match=f"{files[0].name} is damaged .*; delete it and it will be"):
            study.outcome(NOTHING, SMALL)


def test_the_share_of_responses_that_say_something() -> None:
    texts = (("in Rome.", "in romeo"), ("ROME", "Paris, not Rome"))
    embeddings = letters()(["a", "b", "c", "d"]).unflatten(0, (2, 2))
    said = {"x": Measured(("one", "two"), texts, embeddings, decompose(embeddings))}
    assert share_with(said, {"x": "Rome"})["x"] == 0.75
    assert share_with(said, {"x": "Paris"})["x"] == 0.25
    assert share_with(said, {"x": "Paris."})["x"] == 0.0
    with pytest.raises(DataError, match="case 'x' has no text to look for"):
        share_with(said, {"x": " "})
