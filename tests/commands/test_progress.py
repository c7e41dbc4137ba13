"""Bars show that a long command is alive, to somebody who looks on, and nothing in a log."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from palimpsest.book import build, confirm, render, status
from palimpsest.book.standing import Standing
from palimpsest.commands import doctor
from palimpsest.commands.shared import OneMessage
from palimpsest.planning.machine import probe
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


def saved() -> None:
    edited = EditedModel(tiny_model("llama"), EDITOR)
    edited.edit(facts(1))
    edited.save("out")


def confirmed() -> None:
    assert list(confirm.confirm_all(["01_a", "02_b"], "smoke")) == [
        "01_a: stands already",
        "02_b: stands already",
    ]


def drawn() -> None:
    lines = list(render.render_all(["01_a", "02_b"], "smoke"))
    assert lines == ["01_a: as its code draws it", "02_b: as its code draws it"]


def entry(name: str, profile: str, seed: int | None) -> status.Entry:
    return status.Entry(name, profile, seed, Standing("fresh"), Path(name))


def asked() -> None:
    assert [one.notebook for one in status.entries("smoke")] == ["01_a", "02_b"]


def looked() -> None:
    with pytest.raises(doctor.typer.Exit):
        doctor.doctor(None)


DEEDS: dict[str, tuple[Callable[[], object], str]] = {
    "edit": (saved, "saving 0.0 GB"),
    "confirm": (confirmed, "confirming"),
    "render": (drawn, "drawing"),
    "status": (asked, "looking"),
    "plan": (lambda: probe("cpu", (torch.float32,), 0.1), "measuring cpu, 0 s"),
    "doctor": (looked, "looking"),
    "book": (lambda: build._built("smoke"), "building the book, about a minute"),
}
"""Command -> what takes it more than two seconds, and what its bar says."""


@pytest.mark.parametrize("looks_on", [True, False])
@pytest.mark.parametrize("command", DEEDS)
def test_whoever_looks_on_sees_that_a_command_is_alive(
    command: str,
    looks_on: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    stub_texts(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: looks_on, raising=False)
    monkeypatch.setattr(confirm, "confirm", lambda *_: None)
    monkeypatch.setattr(render, "render", lambda *_: False)
    monkeypatch.setattr(status, "known_notebooks", lambda: ["01_a", "02_b"])
    monkeypatch.setattr(status, "entry", entry)
    monkeypatch.setattr(doctor, "findings", lambda: iter([doctor.Finding("all", "well")]))
    monkeypatch.setattr(build, "assemble", lambda _: None)
    monkeypatch.setattr(build, "html_dir", lambda _: tmp_path / "a" / "b")
    built = SimpleNamespace(run=lambda *_, **__: SimpleNamespace(returncode=0))
    monkeypatch.setattr(build, "subprocess", built)
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "index.html").touch()
    deed, says = DEEDS[command]
    deed()
    assert (says in capsys.readouterr().err) == looks_on


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
