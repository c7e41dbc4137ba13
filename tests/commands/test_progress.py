"""Bars show that a long command is alive, to somebody who looks on, and nothing in a log."""

import subprocess
import sys

import pytest

from palimpsest.commands.shared import OneMessage
from palimpsest.workbench.edited_model import EditedModel
from tests.editing import stub_texts
from tests.tiny import tiny_model
from tests.workbench.edits import EDITOR, facts

pytestmark = pytest.mark.usefixtures("one_thread", "own_cache")


@pytest.mark.parametrize("looks_on", [True, False])
def test_a_bar_counts_the_facts_that_are_written(
    looks_on: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stub_texts(monkeypatch)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: looks_on, raising=False)
    EditedModel(tiny_model("llama"), EDITOR).edit(facts(2))
    assert ("writing facts" in capsys.readouterr().err) == looks_on


def test_all_bars_can_be_turned_off_when_a_command_begins() -> None:
    """tqdm reads its variables when it is imported, and the command line imports it after that."""
    code = "import palimpsest.cli, sys; sys.exit('tqdm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("looks_on", [True, False])
def test_a_log_gets_no_bars(looks_on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    import typer

    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    monkeypatch.delitem(sys.modules, "tqdm", raising=False)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: looks_on, raising=False)
    group = OneMessage(name="palimpsest")
    group.parse_args(typer.Context(group), ["--debug", "x"])
    assert os.environ.pop("TQDM_DISABLE", "0") == ("0" if looks_on else "1")
