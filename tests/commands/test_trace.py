"""`trace` as a command: what it prints and writes, and what it refuses."""

import json
from pathlib import Path

import pandas as pd
import pytest

from palimpsest.evaluation.tracing import trace
from palimpsest.network.model import load
from palimpsest.types import plain
from tests.commands.rooms import make_room, run
from tests.evaluation.test_tracing import known

pytestmark = pytest.mark.usefixtures("one_thread", "unchecked")


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        folder = make_room(tmp_path_factory.mktemp("room") / "room", patch)
        rows = [
            {"id": case.id, "prompt": case.request.prompt, "subject": case.request.subject}
            | {"target": "unlike", "target_true": plain(case.target_true)}
            | {"space": plain(case.target_true) == case.target_true}
            for case in known(load("base"), tokens=1, count=2)
        ]
        (folder / "known.jsonl").write_text("\n".join(map(json.dumps, rows)))
        yield folder


def test_trace_prints_and_writes_effects_and_layers(room: Path) -> None:
    options = ("--window", 2, "--samples", 2, "--csv", "t.csv", "--json", "t.json", "--figure", "t.png")
    done = run("trace", "base", "known.jsonl", *options)
    assert done.exit_code == 0, done.output
    found = trace(load("base"), known(load("base"), tokens=1, count=2), window=2, samples=2)
    frame = pd.read_csv(room / "t.csv")
    assert (frame["effect"] - found.effects["effect"]).abs().max() < 1e-6
    content = json.loads((room / "t.json").read_text())
    assert content["suggested"] == list(found.suggested())
    assert content["published"] == {"base": [0, 1, 2]}
    assert len(content["facts"]) == 2
    assert (room / "t.png").read_bytes()[:4] == b"\x89PNG"
    assert "2 facts traced, 0 left out; 2 draws of noise" in done.stdout
    assert "suggested layers: " in done.stdout
    assert "MEMIT writes in base to 0 to 2" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--window 9", "a window of 9 layers does not fit into base, which has 4"),
        ("--samples 0", "samples is 0; it must be 1 or more"),
        ("--noise -1", "noise is -1.0; it must be finite and above 0"),
        ("--figure t.bmp", "figure t.bmp: the ending must be one of .png, .svg, .pdf"),
    ],
)
def test_trace_refuses_bad_input(room: Path, arguments: str, message: str) -> None:
    done = run("trace", "base", "known.jsonl", *arguments.split())
    assert done.exit_code == 2
    assert message in " ".join(done.stderr.split())


def test_trace_of_facts_that_the_model_does_not_know_is_an_error(room: Path) -> None:
    done = run("trace", "base", "facts.jsonl")
    assert done.exit_code == 2
    assert "none of 3 facts can be traced in base (3: the model does not answer it rightly)" in done.stderr
