"""The prepared check of a GPU machine, rehearsed on the CPU at tiny shapes."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import gpu_check, gpu_edits
from palimpsest.editors.settings import editor_settings
from palimpsest.errors import ModelError, UnknownNameError
from tests.clone import make_clone

SCRIPT = Path(__file__).parents[1] / "scripts" / "gpu_check.sh"


def check(tmp_path: Path, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Exit status of a rehearsal, and its record."""
    out = tmp_path / "gpu_check.json"
    command = [str(SCRIPT), "--rehearse", "--out", str(out), *arguments]
    done = subprocess.run(
        command, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True
    )
    assert out.is_file(), done.stdout + done.stderr
    return done.returncode, json.loads(out.read_text())


def test_the_edits_are_rehearsed() -> None:
    torch.manual_seed(0)
    found = gpu_edits.measure(gpu_edits.TINY, torch.device("cpu"))
    assert found["finite"]
    assert found["edits_s"] > 0
    assert found["sizes"]["facts"] == 3
    assert found["null_space_of_a_layer_s"] > 0


def test_the_full_shapes_are_those_of_the_settings_on_file() -> None:
    settings = editor_settings(gpu_edits.MODEL, "alphaedit")
    assert tuple(settings["layers"]) == gpu_edits.FULL.layers
    assert settings["targets"]["steps"] == gpu_edits.FULL.steps
    assert (gpu_edits.FULL.facts, gpu_edits.GOAL_S) == (100, 20.0)
    assert gpu_edits.FULL.config.keys() == gpu_edits.TINY.config.keys()


def test_the_steps_end_within_eight_minutes() -> None:
    assert gpu_check.LIMITS.keys() == gpu_check.STEPS.keys()
    assert sum(gpu_check.LIMITS.values()) < 475 < 8 * 60
    assert "475" in SCRIPT.read_text()


@pytest.mark.slow
def test_a_rehearsal_leaves_a_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status, found = check(tmp_path, "--only", "tests", "--only", "edits")
    assert status == 0, found
    assert found["rehearsal"] is True
    assert "passed" in found["steps"]["tests"]["output"]
    assert found["steps"]["edits"]["record"]["rehearsal"] is True
    make_clone(tmp_path / "clone", monkeypatch, whole=True)
    status, found = check(tmp_path, "--only", "page", "--page", "01_tiny")
    assert (status, found["steps"]["page"]["status"]) == (0, 0), found


def test_a_step_that_fails_or_does_not_end_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = gpu_check.run(["-c", "import sys; print('so far'); sys.exit('a reason')"], 60)
    assert (found["status"], found["output"], found["trouble"]) == (1, "so far\n", "a reason\n")
    late = gpu_check.run(["-c", "import time; time.sleep(30)"], 0.5)
    assert late["status"] is None
    assert late["trouble"] == "given up after 0 s"
    monkeypatch.setattr(gpu_check, "run", lambda command, limit: {"status": 3, "seconds": 0.1})
    assert gpu_check.check(True, ["edits"], "01_one_edit", tmp_path / "out.json") == ["edits"]
    assert json.loads((tmp_path / "out.json").read_text())["steps"]["edits"]["status"] == 3


def test_an_unknown_step_and_a_machine_without_a_gpu(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match="unknown check 'all'; choose one of: edits, page, tests"):
        gpu_check.check(True, ["all"], "01_one_edit", tmp_path / "out.json")
    if not torch.cuda.is_available():
        with pytest.raises(ModelError, match="device 'cuda' cannot be used here"):
            gpu_check.check(False, ["edits"], "01_one_edit", tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()
