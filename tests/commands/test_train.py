"""`palimpsest train`: a network where its editor looks, on facts apart from the project's."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from palimpsest.datasets import load_facts
from palimpsest.editors import Prepared, edit, reader
from palimpsest.editors.hypernetwork import read
from palimpsest.editors.mend import Mend, network_file
from palimpsest.editors.serac import Serac, SeracState
from palimpsest.network.model import fingerprint, load
from palimpsest.training import readers
from tests.commands.rooms import run
from tests.editing import REQUESTS
from tests.embedders import letters
from tests.workbench.edits import tiny_folder

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")

FEW = ("--layers", "1", "--steps", "2", "--rank", "2", "--judged", "2", "--every", "1")


def record(number: int, subject: str) -> dict[str, Any]:
    rewrite = {
        "prompt": "{} lives in",
        "subject": subject,
        "target_new": {"str": "Rome"},
        "target_true": {"str": "Paris"},
    }
    return {
        "case_id": number,
        "requested_rewrite": rewrite,
        "paraphrase_prompts": [f"The city of {subject} is"],
        "neighborhood_prompts": ["The capital of France is the city of"],
    }


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    tiny_folder(tmp_path / "base")
    subjects = [*(f"Anna Berg {number}" for number in range(60)), load_facts().facts[0].subject]
    lines = [json.dumps(record(number, subject)) for number, subject in enumerate(subjects)]
    (tmp_path / "facts.jsonl").write_text("\n".join([*lines, lines[0]]))
    return tmp_path


def test_the_network_is_where_the_editor_looks(place: Path) -> None:
    done = run("train", "mend", "base", "--data", "facts.jsonl", *FEW)
    assert done.exit_code == 0, done.output
    assert "2 steps, the best after" in done.stdout
    assert "% prefer the new object to the true one" in done.stdout
    assert "looks elsewhere first" not in done.stdout
    model = load("base")
    about = read(network_file(fingerprint(model), "mend")).about
    (source,) = about["data"]
    assert (source["file"], source["left_out"], source["rejected"]) == ("facts.jsonl", 1, 1)
    assert source["training"] + source["validation"] + source["test"] == 60
    made, _ = edit(Mend((1,)), model, REQUESTS[:1], Prepared(("",)))
    assert made.notes["network"] == about


def test_without_true_objects_no_share_is_said(place: Path) -> None:
    rows = [json.loads(line) for line in (place / "facts.jsonl").read_text().splitlines()]
    bare = [
        {
            "prompt": "{} lives in",
            "subject": row["requested_rewrite"]["subject"],
            "target": "Rome",
            "neighbours": [{"prompt": "The capital of France is the city of", "target": "Paris"}],
        }
        for row in rows
    ]
    (place / "facts.jsonl").write_text("\n".join(map(json.dumps, bare)))
    done = run("train", "mend", "base", "--data", "facts.jsonl", "--out", "bare.safetensors", *FEW)
    assert done.exit_code == 0, done.output
    assert "; no validation fact names its true object, with which the new one could be" in done.stdout
    assert "%" not in done.stdout
    for row in bare:
        row["target_true"] = "Paris"
    (place / "facts.jsonl").write_text("\n".join(map(json.dumps, bare)))
    done = run("train", "mend", "base", "--data", "facts.jsonl", "--out", "own.safetensors", *FEW)
    assert "% prefer the new object to the true one in their own words\n" in done.stdout


def test_a_log_gets_a_line_now_and_then(place: Path) -> None:
    """Where nobody looks on, an hour without a word would look like a command that hangs."""
    code = (
        "import palimpsest.training.runs as h, sys; h.SILENT = float(sys.argv.pop(1)); "
        "from palimpsest.cli import app; app()"
    )
    for silent, steps in (("0", ["1", "2"]), ("60", [])):
        command = ["train", "mend", "base", "--data", "facts.jsonl", "--out", f"{silent}.safetensors", *FEW]
        whole, around = [sys.executable, "-c", code, silent, *command], os.environ | {"TQDM_DISABLE": "1"}
        done = subprocess.run(whole, env=around, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        lines = re.findall(r"^training: step (\d) of 2, edit \d+\.\d\d, local \d\.\d{3}$", done.stderr, re.M)
        assert lines == steps
        assert "step/s" not in done.stderr


def test_what_serac_learnt_is_where_the_editor_looks(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "embedder", letters)
    few = ("--steps", "2", "--judged", "2", "--every", "1")
    done = run("train", "serac", "base", "--data", "facts.jsonl", *few)
    assert done.exit_code == 0, done.output
    assert "% prefer the new object to the true one" in done.stdout
    assert "looks elsewhere first" not in done.stdout
    model = load("base")
    about = reader.read(network_file(fingerprint(model), "serac")).about
    assert (about["plan"]["rank"], about["plan"]["layers"]) == (8, [1])
    assert about["data"][0]["training"] + about["data"][0]["validation"] < 60
    made, _ = edit(Serac(), model, REQUESTS[:1], SeracState(embed=letters()))
    assert made.notes["network"] == about
    told = ("--instruction", "Complete the sentence. ")
    wrong = run("train", "serac", "base", "--data", "facts.jsonl", *told, *few)
    assert wrong.exit_code == 2
    assert "1 instructions were given for 1 files; serac needs none" in wrong.stderr


def test_instructions_belong_to_files(place: Path) -> None:
    wrong = run("train", "instruct_edit", "base", "--data", "facts.jsonl", *FEW)
    assert wrong.exit_code == 2
    assert "0 instructions were given for 1 files; instruct_edit needs one for each --data" in wrong.stderr
    told = ("--instruction", "Complete the sentence. ", "--out", "told.safetensors")
    done = run("train", "instruct_edit", "base", "--data", "facts.jsonl", *told, *FEW)
    assert done.exit_code == 0, done.output
    assert "give the editor network='told.safetensors'" in done.stdout
    assert read(place / "told.safetensors").about["data"][0]["instruction"] == "Complete the sentence. "
    assert run("train", "mend", "base", "--data", "facts.jsonl", *told, *FEW).exit_code == 2


def test_a_file_serves_several_kinds_by_its_prompts(place: Path) -> None:
    asked = [f"Where does Anna Berg {number} live?" for number in range(60)]
    rows = [record(100 + number, f"Carl {number}") for number in range(60)]
    for row, question in zip(rows, asked, strict=True):
        row["requested_rewrite"]["prompt"] = "Where does {} live?"
        row["paraphrase_prompts"] = [question]
    both = [*(place / "facts.jsonl").read_text().splitlines(), *map(json.dumps, rows)]
    (place / "facts.jsonl").write_text("\n".join(both))
    two = ("--data", "facts.jsonl", "--data", "facts.jsonl", "--only", "lives", "--only", r"^Where .*\?$")
    done = run("train", "mend", "base", *two, "--out", "kinds.safetensors", *FEW)
    assert done.exit_code == 0, done.output
    sources = read(place / "kinds.safetensors").about["data"]
    assert [source["only"] for source in sources] == ["lives", r"^Where .*\?$"]
    assert [sum(source[part] for part in ("training", "validation", "test")) for source in sources] == [
        60,
        60,
    ]


@pytest.mark.parametrize(
    ("patterns", "said"),
    [
        (("lives", "lives"), "2 patterns were given for 1 files; give one --only for each --data"),
        (("(",), "no regular expression"),
        (("dies",), "'dies': matches no prompt of the 61 facts in facts.jsonl"),
    ],
)
def test_a_pattern_that_cannot_serve_is_named(place: Path, patterns: tuple[str, ...], said: str) -> None:
    given = [word for pattern in patterns for word in ("--only", pattern)]
    done = run("train", "mend", "base", "--data", "facts.jsonl", *given, *FEW)
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())
