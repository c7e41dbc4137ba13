"""The papers' tasks from made-up files: prompts word by word, labels in the right place, faults named."""

import json
from pathlib import Path
from typing import Any

import pytest

from palimpsest.datasets.task_files import EXAMPLES, FORMS, load_tasks
from palimpsest.errors import DataError, UnknownNameError

PAIR = {"sentence1": "A {dog} runs.", "sentence2": "An animal runs."}
RECORDS: dict[str, dict[str, Any]] = {
    "sst": {"sentence": "a fine film ", "label": 1},
    "mrpc": PAIR | {"label": 0},
    "cola": {"sentence": "The dogs runs.", "label": 0},
    "rte": PAIR | {"label": 0},
    "nli": PAIR | {"label": "not_entailment"},
    "mmlu": {"question": "2 + 2?", "choices": ["3", "4", "5", "6"], "answer": 1, "subject": "arithmetic"},
}
PROMPTS = {
    "sst": "Review :a fine film \nSentiment :",
    "mrpc": "Are the sentences paraphrases of each other.\nSentence 1: A {dog} runs.\n"
    "Sentence 2: An animal runs.\nAnswer:",
    "cola": "Is this sentence linguistically acceptable?\nSentence: The dogs runs.\nAnswer:",
    "rte": "A {dog} runs.\nquestion: An animal runs. True or False?\nanswer:",
    "nli": "A {dog} runs. entails the An animal runs. True or False? Answer:",
    "mmlu": "Question: 2 + 2?\n(A) 3\n(B) 4\n(C) 5\n(D) 6\nAnswer:",
}
ANSWERS = {"sst": "positive", "mrpc": "No", "cola": "No", "rte": "True", "nli": "False", "mmlu": "B"}


def write(folder: Path, name: str, records: list[Any], stem: str = "") -> Path:
    path = folder / f"{stem or 'glue_' + FORMS[name].files[0]}.jsonl"
    path.write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, record in RECORDS.items():
        write(tmp_path, name, [record] * (EXAMPLES + 3))
    (tmp_path / "counterfact.jsonl").write_text("{}")
    return tmp_path


def test_prompts_are_those_of_the_released_code_and_entailment_is_true(folder: Path) -> None:
    tasks = {task.name: task for task in load_tasks(folder)}
    assert list(tasks) == list(FORMS)
    for name, task in tasks.items():
        item = task.items[0]
        assert (item.id, item.prompt, item.options[item.right]) == (
            str(EXAMPLES),
            PROMPTS[name],
            ANSWERS[name],
        )
        assert len(task.items) == 3
        assert task.chance == 1 / len(item.options)
        assert task.labels == item.options
        assert not task.total
    assert tasks["mmlu"].items[0].group == "arithmetic"


def test_the_first_records_are_examples_and_never_asked(tmp_path: Path) -> None:
    records = [{"sentence": f"film {number}", "label": number % 2} for number in range(EXAMPLES + 5)]
    write(tmp_path, "sst", records)
    (task,) = load_tasks(tmp_path, ["sst"], count=2, shots=2)
    assert [item.id for item in task.items] == ["10", "11"]
    before = "Review :film 0\nSentiment : negative\nReview :film 1\nSentiment : positive\n"
    assert task.items[0].prompt == f"{before}Review :film 10\nSentiment :"


def test_a_file_is_found_by_each_of_its_names_and_as_one_list(tmp_path: Path) -> None:
    (tmp_path / "sst2.json").write_text(json.dumps([RECORDS["sst"]] * (EXAMPLES + 1)))
    assert [task.name for task in load_tasks(tmp_path)] == ["sst"]


def test_a_folder_may_be_named_within_that_of_the_originals(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PALIMPSEST_ORIGINALS", str(folder.parent))
    assert load_tasks(folder.name) == load_tasks(folder)
    monkeypatch.delenv("PALIMPSEST_ORIGINALS")
    with pytest.raises(DataError, match="elsewhere: not found; give its whole path, or its folder in PALIM"):
        load_tasks("elsewhere")


def test_an_unknown_task_and_missing_files_are_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown task 'qqp'"):
        load_tasks(folder, ["qqp"])
    (folder / "glue_rte.jsonl").rename(folder / "rte.pkl")
    with pytest.raises(DataError, match=r"no file of rte; .*glue_rte.jsonl.*pickle"):
        load_tasks(folder, ["rte", "sst"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no file of sst, mrpc"):
        load_tasks(tmp_path / "empty")
    with pytest.raises(DataError, match="11 shots"):
        load_tasks(folder, ["sst"], shots=EXAMPLES + 1)


@pytest.mark.parametrize(
    ("name", "change", "reason"),
    [
        ("sst", {"label": 2}, r"line 2: field 'label' must be one of \[0, 1\], not 2"),
        ("sst", {"label": True}, "not True"),
        ("sst", {"sentence": " "}, "field 'sentence' must be a text"),
        ("nli", {"label": "neutral"}, "not 'neutral'"),
        ("mmlu", {"choices": ["1", "2"]}, "field 'choices' must be a list of 4"),
        ("mmlu", {"answer": None}, "field 'answer' must be one of"),
    ],
)
def test_a_malformed_record_is_named_with_line_and_field(
    tmp_path: Path, name: str, change: dict[str, Any], reason: str
) -> None:
    write(tmp_path, name, [RECORDS[name], RECORDS[name] | change])
    with pytest.raises(DataError, match=reason):
        load_tasks(tmp_path, [name])


def test_a_record_without_a_field_and_a_short_file_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "sst", [{"label": 1}])
    with pytest.raises(DataError, match="line 1: field 'sentence' is missing"):
        load_tasks(tmp_path)
    write(tmp_path, "sst", [RECORDS["sst"]] * EXAMPLES)
    with pytest.raises(DataError, match="10 records; 10 are kept for examples"):
        load_tasks(tmp_path)
