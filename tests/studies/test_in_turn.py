"""Any editor in turn: rows against a plain loop, and a model that is as it was."""

import shutil
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from palimpsest.editors.base import Editor, WeightEditor
from palimpsest.editors.hypernetwork import Hypernetwork
from palimpsest.editors.mend import Mend
from palimpsest.errors import ScoreError
from palimpsest.evaluation.ability import ability
from palimpsest.evaluation.drift import Reference, drift
from palimpsest.evaluation.evaluate import evaluate
from palimpsest.evaluation.fluency import fluency
from palimpsest.evaluation.metrics import SCORES
from palimpsest.network.apply import commit, installed, restored
from palimpsest.network.model import EditableModel, fingerprint, generate, read_weight
from palimpsest.paths import cache_dir
from palimpsest.studies import in_turn as room
from palimpsest.studies.in_turn import InTurn, all_written, one_by_one, values_anew
from palimpsest.types import Item, Task
from tests.editing import same_bits, small, snapshot
from tests.studies.test_trajectory import CASES

pytestmark = pytest.mark.usefixtures("one_thread", "drawn_values")


@pytest.fixture
def asked(model: EditableModel, text: Reference) -> InTurn:
    return InTurn(model, CASES[:4], 2, (2, 4), text)


def scores(rows: pd.DataFrame, edits: int) -> "Scores":
    found = rows[rows["of"].eq("fact") & rows["edits"].eq(edits)]
    return dict(zip(zip(found["key"], found["metric"], strict=True), found["value"], strict=True))


def by_hand(
    model: EditableModel, editor: Editor, text: Reference
) -> tuple[dict[tuple[str, str], float], float]:
    """Scores and agreement after two batches of two facts."""
    state, batches = editor.begin(), ([c.request for c in CASES[:2]], [c.request for c in CASES[2:4]])
    with restored(model, getattr(editor, "layers", ())):
        for batch in batches:
            edit, state = editor.edit(model, batch, state)
            if isinstance(editor, WeightEditor):
                commit(model, edit)
        with installed(model, edit) if not isinstance(editor, WeightEditor) else restored(model, ()):
            found = {(r.case, r.metric): r.value for r in evaluate(model, CASES[:4], SCORES)}
            return found, drift(model, text).agreement


@pytest.mark.parametrize("name", ["rome", "ft", "grace", "melo"])
def test_rows_are_what_a_plain_loop_finds(
    asked: InTurn, model: EditableModel, text: Reference, name: str
) -> None:
    editor, before = small(name), snapshot(model)
    rows = asked.outcome(editor)
    found, agreement = by_hand(model, editor, text)
    assert scores(rows, 4) == pytest.approx(found)
    assert set(scores(rows, 2)) == {key for key in found if key[0] in {case.id for case in CASES[:2]}}
    windows = rows[rows["of"].eq("window") & rows["edits"].eq(4) & rows["metric"].eq("agreement")]
    assert windows["value"].mean() == pytest.approx(agreement)
    costs = rows[rows["of"].eq("cost")].pivot(index="edits", columns="metric", values="value")
    assert (costs[["seconds", "asking"]] > 0).all().all()
    assert costs["seconds"].is_monotonic_increasing
    memory = not isinstance(editor, WeightEditor)
    assert costs["bytes"].gt(0).all() if memory else costs["bytes"].eq(0).all()
    assert rows.loc[rows["metric"].eq("same"), "value"].tolist() == [1]
    assert same_bits(model, before)


@pytest.mark.parametrize("name", ["rome", "grace"])
def test_all_edits_are_in_force_in_the_block_and_none_behind_it(
    model: EditableModel, text: Reference, name: str
) -> None:
    editor, before = small(name), snapshot(model)
    batches = [[c.request for c in CASES[:2]], [c.request for c in CASES[2:4]]]
    with all_written(model, editor, batches):
        found = {(r.case, r.metric): r.value for r in evaluate(model, CASES[:4], SCORES)}
        assert not same_bits(model, before) or model.wraps
    assert found == pytest.approx(by_hand(model, editor, text)[0])
    with pytest.raises(ZeroDivisionError), all_written(model, editor, batches):
        _ = 1 / 0
    assert same_bits(model, before)
    assert model.wraps == ()


@pytest.mark.parametrize("name", ["rome", "grace"])
def test_facts_written_alone_are_scored_as_by_a_plain_loop(model: EditableModel, name: str) -> None:
    editor, before = small(name), snapshot(model)
    rows = one_by_one(model, editor, CASES[:3])
    wanted = []
    for case in CASES[:3]:
        with installed(model, editor.edit(model, [case.request], editor.begin())[0]):
            wanted += [(r.case, r.metric, r.value) for r in evaluate(model, [case], SCORES)]
    assert [*rows.itertuples(index=False, name=None)] == wanted
    assert same_bits(model, before)
    assert model.wraps == ()


def test_a_network_trained_anew_is_another_run(asked: InTurn, model: EditableModel, tmp_path: Path) -> None:
    file, found = tmp_path / "x.safetensors", []
    editor, width = Mend((0, 2), network=str(file)), (*read_weight(model, 0).shape,)
    for seed in (0, 1):
        Hypernetwork((0, 2), width, 2, rate=0.1, seed=seed).save(tmp_path / str(seed), fingerprint(model))
    for seed in (0, 1, 0):
        shutil.copy(tmp_path / str(seed), file)
        found.append((one_by_one(model, editor, CASES[:2]), asked.outcome(editor)))
    places = {name: len(list((cache_dir() / name).glob("*.parquet"))) for name in ("one_by_one", "in_turn")}
    assert places == {"one_by_one": 2, "in_turn": 2}
    for first, again in zip(found[0], found[2], strict=True):
        pd.testing.assert_frame_equal(first, again)


def test_a_run_is_read_back_and_other_facts_are_another_run(
    asked: InTurn, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = small("grace")
    once = asked.outcome(editor)
    monkeypatch.setattr(InTurn, "_rows", lambda *_: pytest.fail("it ran"))
    pd.testing.assert_frame_equal(asked.outcome(editor), once)
    with pytest.raises(pytest.fail.Exception):
        InTurn(asked.model, CASES[2:6], 2, (2, 4), asked.reference).outcome(editor)


def test_the_unedited_model_is_asked_all_facts(asked: InTurn) -> None:
    found = {(r.case, r.metric): r.value for r in evaluate(asked.model, CASES[:4], SCORES)}
    assert scores(asked.unedited(), 0) == pytest.approx(found)


@pytest.mark.parametrize("at", [(), (3,), (4, 2), (2, 2), (6,), (0, 2)])
def test_numbers_that_end_no_batch_are_refused(
    model: EditableModel, text: Reference, at: tuple[int, ...]
) -> None:
    with pytest.raises(ScoreError, match="which must be ascending ends of batches of 2 among 4 facts"):
        InTurn(model, CASES[:4], 2, at, text)


def test_an_editor_that_breaks_off_leaves_the_model_and_no_rows(
    asked: InTurn, monkeypatch: pytest.MonkeyPatch, own_cache: Path
) -> None:
    before = snapshot(asked.model)
    monkeypatch.setattr(room, "drift", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    for name in ("rome", "grace"):
        with pytest.raises(KeyboardInterrupt):
            asked.outcome(small(name))
    assert same_bits(asked.model, before)
    assert asked.model.wraps == ()
    assert not list((own_cache / "in_turn").glob("*.parquet"))


def test_tasks_and_texts_are_asked_with_the_facts(model: EditableModel, text: Reference) -> None:
    task = Task("colours", tuple(Item(f"c{i}", "The sea is", ("blue", "red"), 0) for i in range(2)), 0.5)
    plain = InTurn(model, CASES[:4], 2, (4,), text)
    run = replace(plain, tasks=(task,), continued=2, length=6)
    rows = run.outcome(small("ft"))
    with all_written(model, small("ft"), [[c.request for c in CASES[:2]], [c.request for c in CASES[2:4]]]):
        wanted = ability(model, (task,)).accuracy("colours").mean
        prompts = [case.request.text for case in CASES[:2]]
        said = [fluency(generate(model, prompt, 6).removeprefix(prompt)) for prompt in prompts]
    assert rows.loc[rows["of"].eq("task"), "value"].tolist() == [wanted]
    assert rows.loc[rows["of"].eq("text"), ["key", "value"]].to_numpy().tolist() == [
        [case.id, value] for case, value in zip(CASES[:2], said, strict=True)
    ]
    before = run.unedited()
    assert before[before["of"].ne("fact")]["metric"].tolist() == ["accuracy", "fluency", "fluency"]
    assert set(plain.outcome(small("ft"))["of"]) == {"fact", "window", "cost", "undone"}


def test_values_are_computed_anew_and_all_else_is_read_and_kept(own_cache: Path) -> None:
    for name in ("targets", "statistics"):
        (own_cache / name).mkdir(parents=True)
        (own_cache / name / "file").touch()
    with values_anew():
        assert cache_dir() != own_cache
        assert not (cache_dir() / "targets").exists()
        assert (cache_dir() / "statistics" / "file").is_file()
        (cache_dir() / "targets").mkdir()
        for name in ("targets", "statistics"):
            (cache_dir() / name / "new").touch()
    assert cache_dir() == own_cache
    assert [path.name for path in sorted(own_cache.glob("*/new"))] == ["new"]
    assert (own_cache / "statistics" / "new").is_file()


def test_the_time_of_an_edit_has_its_values(
    asked: InTurn, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor, places = small("grace"), []
    begin = type(editor).begin
    monkeypatch.setattr(type(editor), "begin", lambda self: places.append(cache_dir()) or begin(self))
    asked.outcome(editor)
    assert places
    assert own_cache not in places
