"""lm-eval around a loaded network: the same answers as here, nothing fetched; and what is said without it."""

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from palimpsest.errors import DataError, ModelError, ResourceError, ScoreError, UnknownNameError
from palimpsest.evaluation import harness as room
from palimpsest.evaluation.ability import ability
from palimpsest.evaluation.harness import harness, harness_folder, has_harness, scored_by
from palimpsest.types import Task
from tests.evaluation.test_ability import CHOICE, CLOZE, SENTENCES
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread", "module_cache")
needs_harness = pytest.mark.skipif(
    not has_harness(), reason="lm-eval is not installed; install the extra 'ability' to run this"
)
TOTALS: tuple[Task, ...] = (replace(CHOICE, total=True), SENTENCES, CLOZE)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every connection fails the test."""

    def refuse(*address: Any) -> None:
        pytest.fail(f"a connection was tried: {address[1:]}")

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse)


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "has_harness", lambda: False)


def local_task(folder: Path, name: str = "mine") -> Path:
    """A task of lm-eval over a local file, as a user would write it."""
    data = folder / "mine.jsonl"
    lines = [{"q": item.prompt, "right": item.options[item.right]} for item in CHOICE.items]
    data.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    described = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": list(CHOICE.labels),
        "doc_to_target": "right",
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(described))
    return path


@needs_harness
@pytest.mark.slow
@pytest.mark.usefixtures("no_network")
@pytest.mark.parametrize(("kind", "bos"), [("llama", True), ("gpt2", False)])
def test_the_harness_gives_the_answers_that_are_given_here(kind: str, bos: bool) -> None:
    model = tiny_model(kind, seed=3, bos=bos)
    theirs, ours = harness(model, TOTALS), ability(model, TOTALS)
    assert theirs.by == "lm-eval"
    assert theirs.rows["correct"].tolist() == ours.rows["correct"].tolist()
    assert theirs.of("choice")["chosen"].tolist() == ours.of("choice")["chosen"].tolist()
    assert theirs.accuracy("sentences") == ours.accuracy("sentences")


@needs_harness
@pytest.mark.slow
@pytest.mark.usefixtures("no_network")
def test_a_folder_of_local_tasks_is_run_offline(tmp_path: Path) -> None:
    model = tiny_model("llama", seed=3)
    local_task(tmp_path)
    found = harness_folder(model, tmp_path)
    expected = ability(model, [replace(CHOICE, total=True)]).accuracy("choice").mean
    assert found["mine"]["acc,none"] == pytest.approx(expected)
    with pytest.raises(UnknownNameError, match="unknown task of the folder 'glue'; choose one of: mine"):
        harness_folder(model, tmp_path, ["glue"])


@needs_harness
@pytest.mark.slow
@pytest.mark.usefixtures("no_network")
def test_a_task_that_must_be_fetched_is_refused(tmp_path: Path) -> None:
    path = local_task(tmp_path, "remote")
    content = yaml.safe_load(path.read_text()) | {"dataset_path": "somebody/something"}
    content.pop("dataset_kwargs")
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(ResourceError, match=r"not on this machine.*give its data as local files"):
        harness_folder(tiny_model("llama"), tmp_path)


@needs_harness
def test_a_model_with_a_text_before_its_prompts_is_refused() -> None:
    model = tiny_model("llama")
    model.context = "Anna Berg lives in Rome. "
    with pytest.raises(ModelError, match="25 characters before every prompt"):
        harness(model, [CHOICE])


@needs_harness
def test_a_folder_without_tasks_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no YAML file that names a task"):
        harness_folder(tiny_model("llama"), tmp_path)


@pytest.mark.usefixtures("without")
def test_without_lm_eval_the_error_says_how_to_get_it_and_any_names_what_was_used(tmp_path: Path) -> None:
    model = tiny_model("llama", seed=3)
    for call in (
        lambda: harness(model, [CHOICE]),
        lambda: scored_by("lm-eval", model, [CHOICE]),
        lambda: harness_folder(model, tmp_path),
    ):
        with pytest.raises(
            ResourceError, match=r"lm-eval is not installed; install the extra 'ability' with"
        ):
            call()
    found = scored_by("any", model, [CHOICE])
    assert found.by.startswith("palimpsest (lm-eval is not installed: install the extra 'ability'")
    assert found.by in str(found)
    assert found.rows.equals(ability(model, [CHOICE]).rows)
    assert scored_by("palimpsest", model, [CHOICE]).by == "palimpsest"


@pytest.mark.usefixtures("unchecked")
def test_an_unknown_scorer_and_no_task_are_refused() -> None:
    model = tiny_model("llama")
    with pytest.raises(
        UnknownNameError, match="unknown scorer 'glue'; choose one of: any, lm-eval, palimpsest"
    ):
        scored_by("glue", model, [CHOICE])  # type: ignore[arg-type]
    with pytest.raises(ScoreError, match="the harness needs a task"):
        harness(model, [])
