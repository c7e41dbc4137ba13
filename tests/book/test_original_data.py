"""Pages run on original data by one parameter: here a CounterFact file made from the project's own facts."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from palimpsest.datasets import counterfact_style, load_facts
from palimpsest.datasets.counterfact import to_counterfact
from palimpsest.files import file_sha256

pytestmark = [pytest.mark.slow, pytest.mark.model]
ROOT = Path(__file__).parents[2]
FACTS = 40


@pytest.mark.parametrize("page", ["11_building_alphaset", "15_long_run"])
def test_a_page_runs_on_a_counterfact_file(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cases = counterfact_style(load_facts(), seed=3, split="test")[:FACTS]
    file = tmp_path / "facts.json"
    file.write_text(json.dumps([to_counterfact(case) for case in cases]))
    monkeypatch.chdir(tmp_path)
    source = ROOT / "notebooks" / f"{page}.ipynb"
    command = ["-m", "papermill", str(source), "out.ipynb", "-p", "data", file.name]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "palimpsest-results" / "smoke" / f"{page}.json").read_text())
    assert record["parameters"]["data"] == file.name
    assert record["facts"]["data"][file.name] == file_sha256(file)
