"""Every study takes any editor of weights, and tells apart two of them with the same settings."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from palimpsest.editors import AlphaEdit, Memit, mend
from palimpsest.editors.base import WeightEditor
from palimpsest.errors import ProfileError, ScoreError
from palimpsest.evaluation.drift import Reference
from palimpsest.network.model import EditableModel
from palimpsest.studies.abilities import ability_course
from palimpsest.studies.checkpoints import Checkpoints
from palimpsest.studies.hidden_states import StatesAsked, states_along
from palimpsest.studies.norms import norm_trace
from palimpsest.studies.stream import Stream
from palimpsest.studies.trajectory import Watch, trajectory
from tests.editing import same_bits, small, snapshot, untrained
from tests.editors.test_contract import WRITING
from tests.evaluation.test_ability import CHOICE
from tests.studies.test_trajectory import CASES

pytestmark = pytest.mark.usefixtures("one_thread", "drawn_values")
WORDINGS = {case.request.id: [f"Where {case.request.subject}"] for case in CASES}
BATCHES = [[case.request for case in CASES[i : i + 2]] for i in (0, 2, 4)]


@pytest.fixture(autouse=True)
def _networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mend, "trained_for", untrained)
    monkeypatch.setattr(mend.Mend, "learnt", lambda *_: "untrained")


@pytest.fixture
def stream(model: EditableModel, text: Reference) -> Stream:
    return Stream(model, CASES, 2, text, validation=WORDINGS)


Studies = dict[str, Callable[[WeightEditor], pd.DataFrame]]


@pytest.fixture
def studies(model: EditableModel, text: Reference, stream: Stream) -> Studies:
    return {
        "norms": lambda editor: norm_trace(model, editor, BATCHES),
        "trajectory": lambda editor: trajectory(model, editor, CASES, Watch(batch=2, every=1), text),
        "stream": stream.outcome,
    }


def weight_editor(name: str, **overrides: Any) -> WeightEditor:
    editor = small(name, **overrides)
    assert isinstance(editor, WeightEditor)
    return editor


def steps_without_a_score(name: str) -> dict[str, Any]:
    """Norms have requests and no cases, hence no score: AlphaEdit+ without its smoothing."""
    return {"smoothing": None} if small(name).score_rule else {}


@pytest.mark.parametrize("name", WRITING)
def test_norms_and_trajectory_of_any_editor(name: str, studies: Studies, model: EditableModel) -> None:
    editor, before = weight_editor(name, **steps_without_a_score(name)), snapshot(model)
    norms, run = studies["norms"](editor), studies["trajectory"](editor)
    assert same_bits(model, before)
    for table, column in ((norms, "norm"), (run, "metric")):
        assert sorted(set(table["step"])) == [1, 2, 3]
        assert (table["edits"] == 2 * table["step"]).all()
        assert "stopped" not in set(table[column])
        assert (table.loc[table[column].isin(["step_norm", "total_norm"]), "value"] > 0).all()
        assert (table[column] == "step_norm").sum() == (table[column] == "total_norm").sum() == 3
    again = run[run["metric"] != "seconds"]
    moved = again.set_index(["step", "metric"])["value"]
    for step, layer_norms in norms[norms["norm"].isin(["step_norm", "total_norm"])].groupby("step"):
        for row in layer_norms.itertuples():
            assert moved[step, row.norm] == pytest.approx(row.value)


@pytest.mark.parametrize("name", WRITING)
def test_ability_and_states_along_any_editor(name: str, model: EditableModel) -> None:
    """With wordings where the editor scores by them, and not without."""
    editor, before = weight_editor(name), snapshot(model)
    requests = [case.request for case in CASES]
    ask, asked = Checkpoints(2, (2, 6)), StatesAsked(2, (2, 6), tuple(requests[:2]))
    rows = ability_course(model, editor, CASES, ask, [CHOICE], WORDINGS)
    states = states_along(model, editor, requests, asked, WORDINGS)
    assert same_bits(model, before)
    assert rows["edits"].unique().tolist() == [0, 2, 6]
    assert [state.edits for state in states] == [2, 6]
    if editor.score_rule == "validation":
        with pytest.raises(ScoreError, match="selection by 'validation' needs wordings"):
            ability_course(model, editor, CASES, ask, [CHOICE])
        with pytest.raises(ScoreError, match="selection by 'validation' needs wordings"):
            states_along(model, editor, requests, asked)


@pytest.mark.parametrize("name", WRITING)
def test_a_stream_of_any_editor(name: str, studies: Studies, model: EditableModel) -> None:
    """With a score where the editor asks for one; lengths of values where it has values."""
    editor, before = weight_editor(name), snapshot(model)
    table = studies["stream"](editor)
    assert same_bits(model, before)
    assert not table.duplicated(["of", "key", "metric"]).any()
    found = table.set_index(["metric", "key"])["value"]
    assert found["edits"].to_dict() == {"1": 2.0, "2": 4.0, "3": 6.0}
    assert (found["step_norm"] > 0).all()
    assert found["total_norm"]["1"] == pytest.approx(found["step_norm"]["1"], rel=1e-5)
    assert (found["total_norm"]["3"] - found["total_norm"]["1"]) != 0
    valued = {case.id for case in CASES} if hasattr(editor, "targets") else set()
    assert set(table.loc[table["metric"] == "value_norm", "key"]) == valued


def test_where_no_score_can_be_made_it_is_said(studies: Studies) -> None:
    with pytest.raises(ProfileError, match="smoothing chooses a step length by a score"):
        studies["norms"](weight_editor("alphaedit_plus"))
    with pytest.raises(ScoreError, match="validation"):
        studies["trajectory"](weight_editor("alphaedit_plus"))


def test_a_trajectory_scores_for_an_editor_that_chooses(studies: Studies, model: EditableModel) -> None:
    before = snapshot(model)
    choosing = weight_editor("alphaedit_plus", smoothing={"threshold": 0.0, "select": "edit_prompts"})
    run = studies["trajectory"](choosing)
    assert same_bits(model, before)
    assert sorted(set(run["step"])) == [1, 2, 3]
    assert "stopped" not in set(run["metric"])


class Twin(Memit):
    """Another method with the very settings of MEMIT."""

    def edit(self, *given: Any) -> Any:
        return weight_editor("memit", preserve_weight=1e6).edit(*given)


@pytest.mark.parametrize("study", ["norms", "trajectory", "stream"])
def test_two_methods_with_the_same_settings_are_two_runs(study: str, studies: Studies) -> None:
    plain = weight_editor("memit")
    assert isinstance(plain, Memit)
    names = ("layers", "preserve_weight", "statistics_tokens", "targets", "contexts")
    other = Twin(**{name: getattr(plain, name) for name in names})
    tables = [studies[study](editor) for editor in (plain, other)]
    column = "norm" if study == "norms" else "metric"
    steps = [table.loc[table[column] == "step_norm", "value"].to_numpy() for table in tables]
    assert (steps[0] > 1.5 * steps[1]).all()


def test_the_editors_of_one_stream_share_what_is_prepared_alike(stream: Stream) -> None:
    """And no editor is given the projectors of another one's rule."""
    first, second = weight_editor("alphaedit"), weight_editor("alphaedit", ridge=2.0)
    other, plain = weight_editor("alphaedit", threshold=0.9), weight_editor("memit")
    assert stream._prepared(first) is stream._prepared(second)
    assert stream._prepared(first) is not stream._prepared(other)
    for editor, number in ((first, 0.5), (other, 0.9)):
        assert isinstance(editor, AlphaEdit)
        rule = stream._prepared(editor).projectors[1].rule
        assert rule is not None
        assert rule.parameter == number
    assert stream._prepared(plain).projectors == {}
