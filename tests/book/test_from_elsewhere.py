"""A result that was made in another checkout joins the book by copying its files."""

import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from palimpsest import cli
from palimpsest.book.assemble import other_profiles
from palimpsest.book.runner import run_notebook
from palimpsest.results import records
from tests.clone import Clone, enter, make_clone

COMMANDS = CliRunner()
NAMES = {"01_tiny.ipynb", "01_tiny.json", "01_tiny.provenance.json", "01_tiny.rows.parquet"}


@pytest.mark.slow
def test_a_record_from_elsewhere_is_verified_by_its_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = make_clone(tmp_path / "there" / "clone", monkeypatch)
    there.write_profile("gpu-tiny", notebooks={"01_tiny": {"seed": 2}})
    run_notebook("01_tiny", "gpu-tiny")
    here = Clone(tmp_path / "here")
    here.write_profile("gpu-tiny", notebooks={"01_tiny": {"seed": 2}})
    shutil.copytree(there.root / "results" / "gpu-tiny", here.root / "results" / "gpu-tiny")
    shutil.rmtree(there.root)
    enter(here.root, monkeypatch)

    def said() -> str:
        return COMMANDS.invoke(cli.app, ["status", "--profile", "gpu-tiny"]).stdout

    assert set(here.results("gpu-tiny")) == NAMES
    assert said() == "01_tiny: up to date\n"
    record = records.read(here.root / "results/gpu-tiny/01_tiny.json")
    assert "Also run in: gpu-tiny" in other_profiles("01_tiny", "laptop", record)
    for name in ("01_tiny.json", "01_tiny.rows.parquet"):
        path = here.root / "results/gpu-tiny" / name
        whole = path.read_bytes()
        path.write_bytes(whole[:-9] + bytes([whole[-9] ^ 1]) + whole[-8:])
        assert said().startswith(f"01_tiny: stale ({name}: not what the run wrote; take it back")
        path.write_bytes(whole)
    here.write_toy("FACTOR = 2.0", "FACTOR = 3.0")
    assert said() == "01_tiny: stale (changed since the run: code (toy.FACTOR))\n"
