"""What a run may read, and that every call is seen."""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from palimpsest.book.tracing import EXTENSION, TRACE, Trace, load_ipython_extension
from palimpsest.errors import NotebookError
from tests.book.pages import write_files

RDONLY, CREATE = os.O_RDONLY, os.O_CREAT | os.O_WRONLY


@pytest.fixture
def trace(tmp_path: Path) -> Trace:
    files = ["pyproject.toml", "config/profiles/a.yaml", "data/facts/a.csv", "book/intro.md"]
    write_files(tmp_path, dict.fromkeys(files, "text"))
    return Trace(tmp_path, tmp_path / "build" / "staging" / "trace.json")


@pytest.mark.parametrize(
    ("name", "noted"),
    [
        ("data/facts/a.csv", True),
        ("config/other.yaml", True),
        ("config/models/a.search.csv", True),
        ("config/models/a.yaml", False),
        ("config/profiles/a.yaml", False),
        ("config/sequences.yaml", False),
        ("src/palimpsest/solve.py", False),
        ("notebooks/01_tiny.ipynb", False),
        ("results/long/01_tiny.rows.parquet", False),
        ("build/a.json", False),
        (".venv/lib/a.py", False),
        (".git/HEAD", False),
        ("pyproject.toml", False),
        ("scripts/__pycache__/a.pyc", False),
        ("../elsewhere/a.csv", False),
        ("build/staging/a.csv", False),
    ],
)
def test_data_files_that_are_read_are_noted(trace: Trace, tmp_path: Path, name: str, noted: bool) -> None:
    trace.audit("open", (str(tmp_path / name), "r", RDONLY))
    assert trace.files == ({name} if noted else set())


@pytest.mark.parametrize(
    "name",
    [
        "book/intro.md",
        "results/laptop/01_tiny.json",
        "results/smoke/01_tiny.rows.parquet",
        "scripts/tune.py",
        "tests/data/a.csv",
        "src/palimpsest/rows.csv",
        "build/rows.csv",
    ],
)
def test_a_file_that_no_hash_covers_cannot_be_read(trace: Trace, tmp_path: Path, name: str) -> None:
    with pytest.raises(NotebookError) as error:
        trace.audit("open", (str(tmp_path / name), "rb", RDONLY))
    assert str(error.value) == (
        f"the run reads {name}, but no hash would notice a change of it; "
        "keep what a notebook reads below data/ or config/"
    )


@pytest.mark.parametrize(
    ("mode", "flags"), [("w", 0), ("ab", 0), ("x", 0), ("r+b", 0), (None, CREATE), (None, os.O_RDWR)]
)
def test_what_is_written_is_not_noted(trace: Trace, tmp_path: Path, mode: str | None, flags: int) -> None:
    for name in ("data/facts/a.csv", "book/intro.md"):
        trace.audit("open", (str(tmp_path / name), mode, flags))
    assert trace.files == set()


def test_what_is_opened_by_the_system_call_is_noted(trace: Trace, tmp_path: Path) -> None:
    trace.audit("open", (os.fsencode(tmp_path / "data/facts/a.csv"), None, RDONLY))
    trace.audit("open", (tmp_path / "data/b", None, RDONLY | os.O_CLOEXEC))
    trace.audit("open", (7, "r", RDONLY))
    assert trace.files == {"data/facts/a.csv", "data/b"}


def test_a_path_is_followed_to_the_file_it_means(
    trace: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "data" / "facts")
    monkeypatch.chdir(tmp_path / "book")
    trace.audit("open", ("../link/a.csv", "r", RDONLY))
    assert trace.files == {"data/facts/a.csv"}


@pytest.mark.parametrize("event", ["os.listdir", "os.scandir"])
def test_folders_of_data_that_are_listed_are_noted(trace: Trace, tmp_path: Path, event: str) -> None:
    for folder in ("data/facts", "data", "config/models", "results/long", "book", "."):
        trace.audit(event, (str(tmp_path / folder),))
    trace.audit(event, (None,))
    assert trace.files == {"data/facts/", "data/"}


def test_other_events_are_let_pass(trace: Trace) -> None:
    trace.audit("import", ("json", None, None, None, None))
    assert trace.files == set()


def test_a_hook_in_this_process_notes_what_python_opens_and_lists(trace: Trace, tmp_path: Path) -> None:
    on = [True]
    sys.addaudithook(lambda event, arguments: trace.audit(event, arguments) if on[0] else None)
    try:
        (tmp_path / "data/facts/a.csv").read_text()
        (tmp_path / "data/facts/b.csv").write_text("b")
        list((tmp_path / "data" / "facts").iterdir())
        with pytest.raises(NotebookError, match=r"the run reads book/intro.md"):
            (tmp_path / "book/intro.md").open()
    finally:
        on[0] = False
    assert trace.files == {"data/facts/a.csv", "data/facts/"}


# Calls

CODE = """\
def plain(x):
    return [inner(y) for y in range(x)]

def inner(y):
    def deeper():
        return y
    return deeper()

def editor_settings(model, editor):
    return editor

def never():
    pass

class Thing:
    size = 3

    def method(self):
        return max((1, 2), key=lambda x: x)

class Unused:
    def method(self):
        pass
"""


@contextmanager
def following(trace: Trace) -> Iterator[None]:
    before = sys.gettrace(), threading.gettrace()
    sys.settrace(trace.call)
    threading.settrace(trace.call)
    try:
        yield
    finally:
        sys.settrace(before[0])
        threading.settrace(before[1])


@pytest.fixture
def code(tmp_path: Path) -> dict[str, Any]:
    """What a module of the checkout's package binds."""
    place = tmp_path / "src" / "palimpsest" / "wing" / "room.py"
    names: dict[str, Any] = {"__name__": "room"}
    exec(compile(CODE, str(place), "exec"), names)
    return names


def called(trace: Trace, what: Callable[[], object]) -> set[str]:
    with following(trace):
        what()
    return {name.removeprefix("wing/room.py:") for name in trace.functions}


def test_functions_of_the_package_that_ran_are_noted(trace: Trace, code: dict[str, Any]) -> None:
    found = called(trace, lambda: (code["plain"](2), json.dumps([1])))
    assert found - {"plain.<locals>.<listcomp>"} == {"plain", "inner", "inner.<locals>.deeper"}


def test_a_class_counts_by_its_methods_that_ran(trace: Trace, code: dict[str, Any]) -> None:
    assert "Thing.method" in called(trace, lambda: code["Thing"]().method())


def test_what_runs_when_a_module_is_imported_is_not_noted(trace: Trace, tmp_path: Path) -> None:
    place = tmp_path / "src" / "palimpsest" / "wing" / "room.py"
    assert called(trace, lambda: exec(compile(CODE, str(place), "exec"), {"__name__": "room"})) == set()


def test_functions_that_ran_in_threads_are_noted(trace: Trace, code: dict[str, Any]) -> None:
    def run() -> None:
        thread = threading.Thread(target=code["inner"], args=(1,))
        thread.start()
        thread.join()

    assert "inner" in called(trace, run)


def test_each_key_that_is_asked_for_is_noted(trace: Trace, code: dict[str, Any]) -> None:
    asked = code["editor_settings"]
    called(trace, lambda: [asked("model", key) for key in ("memit", "rome", "memit", 3)])
    assert trace.asked == {"memit", "rome"}


def test_the_trace_is_written_whole(trace: Trace, tmp_path: Path) -> None:
    trace.files |= {"b", "a"}
    file = tmp_path / "build" / "staging" / "trace.json"
    file.parent.mkdir(parents=True)
    trace.write()
    trace.write("anything that IPython hands over")
    assert json.loads(file.read_text()) == {"files": ["a", "b"], "functions": [], "asked": []}
    assert [path.name for path in file.parent.iterdir()] == ["trace.json"]


def test_the_extension_begins_a_trace_after_each_cell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks: list[Any] = []

    class Shell:
        """As much of IPython as the extension needs."""

        @property
        def events(self) -> "Shell":
            return self

        def register(self, event: str, function: Callable[..., None]) -> None:
            hooks.append((event, function))

    write_files(tmp_path, {"pyproject.toml": "", "config/profiles/a.yaml": ""})
    monkeypatch.setenv("PALIMPSEST_ROOT", str(tmp_path))
    monkeypatch.setenv(TRACE, str(tmp_path / "trace.json"))
    monkeypatch.delenv("PALIMPSEST_TRACE_CALLS", raising=False)
    monkeypatch.setattr(sys, "addaudithook", hooks.append)
    load_ipython_extension(Shell())
    assert [hook[0] if isinstance(hook, tuple) else "audit" for hook in hooks] == ["audit", "post_run_cell"]
    assert load_ipython_extension.__module__ == EXTENSION
