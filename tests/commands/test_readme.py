"""What the README shows of the commands is what they print."""

import json
import re
from pathlib import Path

import pytest

from palimpsest.evaluation.said import Said
from palimpsest.workbench.report import EditReport, FactReport
from tests.commands.rooms import run

HERE = Path(__file__).parent
README = (HERE.parents[1] / "README.md").read_text("utf-8")


def carried() -> EditReport:
    """The report of the run that the README shows, as `--json` wrote it."""
    content = json.loads((HERE / "readme_report.json").read_text("utf-8"))
    rows = []
    for fact in content["facts"]:
        derived = {name: fact.pop(name) for name in ("said", "converged")}
        moments = {name: Said(**fact.pop(name)) for name in ("before", "after")}
        row = FactReport(**(fact | moments | {"effort": tuple(fact["effort"])}))
        assert derived == {"said": row.said, "converged": row.converged}
        rows.append(row)
    return EditReport(content["model"], tuple(rows))


def test_the_table_of_the_readme_is_that_of_its_run() -> None:
    assert f"{carried()}\n" in README


def test_the_readme_names_every_option_of_edit() -> None:
    text = run("edit", "--help").stdout
    for option in ("--require", "--until-said", "--json"):
        assert option in text
        assert option in README


def test_every_command_that_the_readme_names_exists() -> None:
    known = set(re.findall(r"^│ ([a-z-]+) ", run("--help").stdout, re.MULTILINE))
    used = set(re.findall(r"(?:\.venv/bin/|\$ )palimpsest ([a-z][a-z-]+)", README))
    assert {"edit", "undo", "evaluate", "compare", "doctor"} <= used
    assert used <= known


@pytest.mark.model
@pytest.mark.slow
def test_the_run_of_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same facts are said, with the same answers, as the README shows."""
    monkeypatch.chdir(tmp_path)
    done = run("edit", HERE / "readme_facts.jsonl", "--out", "edited", "--json", "report.json", "--require")
    assert done.exit_code == 3
    found = json.loads((tmp_path / "report.json").read_text())["facts"]
    for fact, wanted in zip(found, carried().facts, strict=True):
        assert fact["said"] == wanted.said
        assert fact["before"]["answer"] == wanted.before.answer
        assert fact["after"]["probability"] == pytest.approx(wanted.after.probability, rel=0.1)
