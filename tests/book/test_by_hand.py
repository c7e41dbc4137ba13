"""Notebooks run by Jupyter's own tools, from another folder: nothing of the checkout changes."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.clone import Clone, make_clone

pytestmark = pytest.mark.slow
WAYS = {
    "papermill": ["-m", "papermill", "{notebook}", "out.ipynb", "-p", "seed", "3"],
    "nbval": [
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "--nbval-lax",
        "--nbval-cell-timeout=60",
        "{notebook}",
    ],
    "nbconvert": ["-m", "nbconvert", "--to", "html", "--execute", "{notebook}", "--output-dir", "."],
}
AT_WORK = {"nbval": "notebooks", "nbconvert": "notebooks"}
"""Where the kernel works: nbval and nbconvert start it beside the notebook, papermill where it is called."""


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    clone = make_clone(tmp_path / "clone", monkeypatch)
    clone.pretend_run()
    return clone


@pytest.mark.parametrize("way", WAYS)
def test_a_notebook_by_hand_leaves_the_carried_results_alone(way: str, clone: Clone, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    before = {path: path.read_bytes() for path in (clone.root / "results").rglob("*") if path.is_file()}
    command = [sys.executable, *(part.format(notebook=clone.notebook) for part in WAYS[way])]
    done = subprocess.run(command, cwd=elsewhere, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    now = {path: path.read_bytes() for path in (clone.root / "results").rglob("*") if path.is_file()}
    assert now == before
    place = clone.root / AT_WORK[way] if way in AT_WORK else elsewhere
    assert (place / "palimpsest-results" / "smoke" / "01_tiny.json").is_file()
