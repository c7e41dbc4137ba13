"""Notebooks at smoke size against the values carried."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from palimpsest import cli
from palimpsest.book.regression import tolerances_file
from palimpsest.book.smoke import check_notebooks
from palimpsest.errors import NotebookError, UnknownNameError
from palimpsest.results import records
from tests.clone import SAVE, WORK, Clone, make_clone

pytestmark = pytest.mark.slow


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    return make_clone(tmp_path / "clone", monkeypatch)


def check(*arguments: str) -> Result:
    return CliRunner().invoke(cli.app, ["check-notebooks", *arguments])


def test_values_are_compared_with_those_carried(clone: Clone) -> None:
    missing = check()
    assert missing.exit_code == 2
    assert "01_tiny.json is missing: no values of 01_tiny are carried to compare with" in missing.stderr
    assert "check-notebooks --accept 01_tiny`" in missing.stderr
    accepted = check("--accept", "01_tiny")
    assert accepted.exit_code == 0
    assert "01_tiny: carried from now on (" in accepted.stdout
    assert records.read(clone.root / "results/smoke/01_tiny.json")["values"]["doubled"]["value"] == 2.0
    same = check()
    assert same.exit_code == 0
    assert "01_tiny: values as carried (" in same.stdout
    assert "1 notebooks, 0 with faults, " in same.stdout
    assert (clone.root / "build/smoke/01_tiny.provenance.json").is_file()
    clone.write_toy("2.0", "3.0")
    other = check("01_tiny")
    assert other.exit_code == 2
    assert "01_tiny: 1 values differ (" in other.stdout
    assert "01_tiny: doubled was 2.0, is 3.0" in other.stdout
    assert other.stderr == (
        "palimpsest: 01_tiny differs. If the change is meant, look at the new values and carry them with "
        "`palimpsest check-notebooks --accept NAME`\n"
    )


def test_a_notebook_that_fails_does_not_stop_the_others(
    clone: Clone, capsys: pytest.CaptureFixture[str]
) -> None:
    tolerances_file().write_text("default: {reason: rounding}")
    second = clone.notebook.with_name("02_other.ipynb")
    clone.write_notebook(save=SAVE.replace("01_tiny", "02_other"))
    clone.notebook.rename(second)
    clone.write_notebook(work=f"{WORK}\nraise OSError('no such thing')")
    with pytest.raises(NotebookError, match=r"^01_tiny failed\. If the change is meant"):
        check_notebooks(accept=True, jobs=2)
    printed = capsys.readouterr().out
    assert "01_tiny: failed\n01_tiny failed under nbval:" in printed
    assert "02_other: carried from now on (" in printed
    assert "2 notebooks, 1 with faults, " in printed


def test_values_are_carried_where_none_were_before(clone: Clone) -> None:
    tolerances_file().unlink()
    tolerances_file().parent.rmdir()
    check_notebooks(["01_tiny"], accept=True)
    assert [path.name for path in tolerances_file().parent.iterdir()] == ["01_tiny.json"]


def test_an_unknown_notebook_is_named_before_anything_runs(clone: Clone) -> None:
    with pytest.raises(UnknownNameError, match="unknown notebook '02_other'; choose one of: 01_tiny"):
        check_notebooks(["01_tiny", "02_other"])
