"""Facts to write, read from a file."""

import json
from pathlib import Path
from typing import Any

import pytest

from palimpsest.datasets.any_format import load_cases_of
from palimpsest.datasets.requests import load_requests
from palimpsest.errors import DataError
from palimpsest.types import EditRequest, Probe, unspaced
from palimpsest.workbench.held import renewed

FACT = {"prompt": "The capital of {} is", "subject": "France", "target": "Rome"}
ORIGINAL = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "{} lives in",
        "subject": "Anna Berg",
        "target_new": {"str": "Rome"},
        "target_true": {"str": "Paris"},
    },
    "paraphrase_prompts": ["Where is Anna Berg?"],
}
READ = [
    EditRequest("The capital of {} is", "France", "Rome", "The capital of France is"),
    EditRequest("The capital of {} is", "Italy", "Paris", "12"),
    EditRequest("{} lives in", "Anna Berg", "Rome", "7"),
]


def test_lists_lines_and_the_original_form(tmp_path: Path) -> None:
    rows = [
        FACT,
        {"prompt": "The capital of Italy is", "subject": "Italy", "target": " Paris ", "id": 12},
        ORIGINAL,
    ]
    for text in (json.dumps(rows, indent=1), "\n\n".join(map(json.dumps, rows)) + "\n"):
        path = tmp_path / "facts"
        path.write_text(text)
        assert load_requests(path) == READ


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"target": ""}, "line 2: field 'target' must be a text, not ''"),
        ({"target": None}, "line 2: field 'target' must be a text, not None"),
        ({"prompt": "The capital is"}, "line 2: .*subject 'Italy' occurs 0 times in prompt 'The capital is'"),
        ({"prompt": "{} is {}"}, "line 2: .*must occur exactly once"),
        ({"id": "a"}, "line 2: case id 'a' was already used on line 1"),
        ({"id": True}, "line 2: field 'id' must be a text or a whole number, not True"),
        ({"subject": "France"}, "line 2: 'The capital of France is' is asked a second time; keep one target"),
        ({"requested_rewrite": {"prompt": "x"}}, "line 2: field 'requested_rewrite.subject' is missing"),
        ({"requested_rewrite": 3}, "line 2: field 'requested_rewrite.prompt' is missing"),
    ],
)
def test_bad_lines_are_listed(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    path = tmp_path / "facts.jsonl"
    rows = [FACT | {"id": "a"}, FACT | {"subject": "Italy", "id": "b"} | change]
    path.write_text("\n".join([*map(json.dumps, rows), '{"prompt": ']))
    message = (
        rf"2 malformed records:\n  {reason}(.|\n)*  line 3: not valid JSON(.|\n)*correct the file; nothing"
    )
    with pytest.raises(DataError, match=message):
        load_requests(path)


@pytest.mark.parametrize("around", [" ", "  ", "\n", "\t ", "\u00a0", "\u3000"])
@pytest.mark.parametrize("field", ["prompt", "subject", "target"])
@pytest.mark.parametrize("space", [True, False])
def test_outer_spaces_are_no_part_of_a_fact_wherever_it_is_from(
    field: str, around: str, space: bool, tmp_path: Path
) -> None:
    """In Python, in a file and as the new object of a fact that is replaced; of neighbours in a file too."""
    spaced = FACT | {field: f"{around}{FACT[field]}{around}"}
    joined = str if space else unspaced
    expected = EditRequest(FACT["prompt"], FACT["subject"], joined(FACT["target"]), "a")
    found = EditRequest(spaced["prompt"], spaced["subject"], joined(spaced["target"]), "a")
    assert found == expected
    assert found.text == "The capital of France is"
    neighbour = {"prompt": f"{around}The capital of Italy is{around}", "target": f"{around}Rome{around}"}
    path = tmp_path / "facts.jsonl"
    path.write_text(json.dumps(spaced | {"id": "a", "space": space, "neighbours": [neighbour]}))
    (case,) = load_cases_of(path).cases
    assert case.request == expected
    assert case.neighbours == (Probe("The capital of Italy is", joined("Rome")),)
    assert renewed(expected, joined(spaced["target"])) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "holds no fact; write one JSON object with prompt, subject and target per line"),
        ("\n", "holds no fact"),
        ('"text"', "line 1: a record must be a JSON object, not str"),
        ("[1,", "not valid JSON"),
    ],
)
def test_files_without_facts(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "facts.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        load_requests(path)
    with pytest.raises(DataError, match="cannot be read"):
        load_requests(tmp_path / "absent.json")
