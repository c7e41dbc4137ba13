"""Examples in the help of commands that take long, run for real on a tiny model and few facts.

A line is run as it stands but for sizes that a model of four layers does not have, which `FITTED` names, and
for options behind it that make it short.
"""

import importlib.util
import json
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

from palimpsest import resources
from palimpsest.memory import shards
from palimpsest.network import embedded, fetching, model
from palimpsest.network.model import load
from palimpsest.types import plain
from tests.batch.test_engine import write_matrix
from tests.clone import make_clone
from tests.commands.rooms import ROW, make_room, run
from tests.commands.test_examples import PARSED, in_help
from tests.commands.test_train import record
from tests.commands.test_tune import complete
from tests.commands.test_tune import write as write_cases
from tests.editing import texts
from tests.evaluation.test_tracing import known

pytestmark = pytest.mark.usefixtures("one_thread", "unchecked")

ROOT = Path(__file__).parents[2]
FITTED = {"--layers 4-8": "--layers 0-2"}
SHORT = {
    "trace": "--window 2",
    "tune": "--settings small --facts validation.jsonl --batch 3",
    "train": "--layers 1 --rank 2 --judged 2 --every 1",
    "stats": "--tokens 600",
    "plan": "--seconds 0.1",
}
"""Command -> options that make its examples short."""


def lines(command: str) -> list[str]:
    """Examples of a command, made to fit."""
    found = in_help((command,))
    for old, new in FITTED.items():
        found = [line.replace(old, new) for line in found]
    return [f"{line} {SHORT.get(command, '')}".strip() for line in found]


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout in which the embedded model's name stands for a tiny one, as ``my-gpt2`` does."""
    folder = make_room(tmp_path / "room", monkeypatch)
    monkeypatch.setattr(model, "unpacked_model", lambda: folder / "base")
    monkeypatch.setattr(shards, "statistics_texts", texts)
    shutil.copytree(folder / "base", folder / "my-gpt2")
    return folder


def test_every_command_with_a_long_example_is_here() -> None:
    assert {line.split()[0] for line in in_help(PARSED)} == {*SHORT, "batch", "fetch"}


def test_trace(room: Path) -> None:
    rows = [
        {"id": case.id, "prompt": case.request.prompt, "subject": case.request.subject}
        | {"target": "unlike", "target_true": plain(case.target_true)}
        | {"space": plain(case.target_true) == case.target_true}
        for case in known(load("base"), tokens=1, count=2)
    ]
    (room / "facts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (line,) = lines("trace")
    done = run(*shlex.split(line))
    assert done.exit_code == 0, done.output
    assert "2 facts traced, 0 left out; 3 draws of noise" in done.stdout
    assert (room / "trace.png").read_bytes()[:4] == b"\x89PNG"


def test_tune(room: Path) -> None:
    write_cases(room / "validation.jsonl", complete(16))
    one_layer = {name: value for name, value in ROW.items() if name != "preserve_weight"} | {"layers": [1]}
    content = {"editors": {"memit": ROW, "rome": one_layer}}
    (room / "config/models/small.yaml").write_text(yaml.safe_dump(content))
    (line,) = lines("tune")
    done = run(*shlex.split(line))
    assert done.exit_code == 0, done.output
    assert "12 of 12 candidates scored" in done.stdout
    settings = yaml.safe_load((room / "config/models/my-gpt2.yaml").read_text())
    assert list(settings["editors"]) == ["memit", "rome"]


def test_train(room: Path) -> None:
    rows = [record(number, f"Anna Berg {number}") for number in range(60)]
    (room / "facts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (line,) = lines("train")
    done = run(*shlex.split(line))
    assert done.exit_code == 0, done.output
    assert "2 steps, the best after" in done.stdout


def test_stats(room: Path) -> None:
    """The second of the two shards is summed in between."""
    one, merge = lines("stats")
    for line in (one, one.replace("1/2", "2/2"), merge):
        done = run(*shlex.split(line))
        assert done.exit_code == 0, done.output
    assert [text.split(":")[0] for text in done.stdout.splitlines()] == ["layer 0", "layer 1", "layer 2"]


def test_fetch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The profile of the line is one of the project's, and its model is asked for; the hub stands in."""
    asked: list[str] = []
    monkeypatch.setenv("PALIMPSEST_ROOT", str(ROOT))
    monkeypatch.setattr(resources, "fetch_all", dict)
    monkeypatch.setattr(embedded, "unpacked_model", lambda: ROOT)
    monkeypatch.setattr(fetching, "fetch_model", lambda name, _: asked.append(name))
    (line,) = lines("fetch")
    done = run(*shlex.split(line))
    assert done.exit_code == 0, done.output
    assert asked == ["openai-community/gpt2-xl"]


@pytest.mark.slow  # all pages of a profile
@pytest.mark.parametrize("line", lines("plan"))
def test_plan(line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the project's own profiles; the device that the first names is not here."""
    monkeypatch.setenv("PALIMPSEST_ROOT", str(ROOT))
    done = run(*shlex.split(line), *(["--device", "cpu"] if "gpu" in line else []))
    assert done.exit_code == 0, done.output
    pages = [page["page"] for page in json.loads(done.stdout)["pages"]] if "--json" in line else []
    assert pages == (["06_alignment", "07_drift"] if "--json" in line else [])
    assert "memory" in done.stdout


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("snakemake") is None, reason="needs the extra batch")
def test_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The dry run with Snakemake itself; of the cluster's line, which needs Slurm, the dry run, too."""
    clone = make_clone(tmp_path / "clone", monkeypatch, whole=True)
    shutil.copytree(ROOT / "workflow", clone.root / "workflow")
    write_matrix(clone, seeds=[2, 3])
    page = {"page": "01_tiny", "seconds": 900.0, "memory_bytes": 1_600_000_000}
    plan = {"profile": "laptop", "machine": {"device": "cpu"}, "host_memory_bytes": 1, "pages": [page]}
    (tmp_path / "plan.json").write_text(json.dumps(plan))
    monkeypatch.chdir(tmp_path)
    for line in lines("batch"):
        if "slurm" in line and importlib.util.find_spec("snakemake_executor_plugin_slurm") is None:
            continue
        done = run(*shlex.split(line), *([] if "--dry-run" in line else ["--dry-run"]))
        assert done.exit_code == 0, done.output
        assert "2 jobs are due, 0 results stand" in done.stdout
    assert not (clone.root / "results/laptop/seed-3").exists()
