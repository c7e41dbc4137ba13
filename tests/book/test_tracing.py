"""What a run may read, and that every call is seen."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from palimpsest.book.tracing import ASKED, EXTENSION, TRACE, Trace, load_ipython_extension
from palimpsest.editors import editor_for
from palimpsest.editors.named_sequences import configuration, tuned
from palimpsest.editors.settings import editor_settings
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
        ("results/bench.json", True),
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
    assert trace.now.files == ({name} if noted else set())


@pytest.mark.parametrize(
    "name",
    [
        "book/intro.md",
        "results/laptop/01_tiny.json",
        "results/bench.json.tmp",
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
    assert trace.now.files == set()


def test_what_is_opened_by_the_system_call_is_noted(trace: Trace, tmp_path: Path) -> None:
    trace.audit("open", (os.fsencode(tmp_path / "data/facts/a.csv"), None, RDONLY))
    trace.audit("open", (tmp_path / "data/b", None, RDONLY | os.O_CLOEXEC))
    trace.audit("open", (7, "r", RDONLY))
    assert trace.now.files == {"data/facts/a.csv", "data/b"}


def test_a_path_is_followed_to_the_file_it_means(
    trace: Trace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "data" / "facts")
    monkeypatch.chdir(tmp_path / "book")
    trace.audit("open", ("../link/a.csv", "r", RDONLY))
    assert trace.now.files == {"data/facts/a.csv"}


@pytest.mark.parametrize("event", ["os.listdir", "os.scandir"])
def test_folders_of_data_that_are_listed_are_noted(trace: Trace, tmp_path: Path, event: str) -> None:
    for folder in ("data/facts", "data", "config/models", "results/long", "book", "."):
        trace.audit(event, (str(tmp_path / folder),))
    trace.audit(event, (None,))
    assert trace.now.files == {"data/facts/", "data/"}


def test_other_events_are_let_pass(trace: Trace) -> None:
    trace.audit("import", ("json", None, None, None, None))
    assert trace.now.files == set()


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
    assert trace.now.files == {"data/facts/a.csv", "data/facts/"}


# Calls

CODE = """\
def plain(x):
    return [inner(y) for y in range(x)]

def inner(y):
    def deeper():
        return y
    return deeper()

def never(x=plain(1)):
    pass

class Thing:
    size = 3

    def method(self):
        return max((1, 2), key=lambda x: x)

class Unused:
    def method(self):
        pass

if True:
    def late():
        return 1
"""
RUN = """\
import sys, threading
from pathlib import Path
from palimpsest.book.tracing import Calls
folder = Path(sys.argv[1])
sys.path.insert(0, str(folder))
calls = Calls(folder / "package")
from package.wing import room
calls.switch("compute")
{computed}
calls.switch("show")
{shown}
calls.stop()
for kind in ("compute", "show"):
    print(" ".join(sorted(name.partition(":")[2] for name in calls.functions(kind))))
"""


@pytest.fixture(scope="module")
def called(tmp_path_factory: pytest.TempPathFactory) -> tuple[set[str], set[str]]:
    """Functions that ran in cells that compute and in cells that show.

    In a process of its own, because the tests themselves may be followed.
    """
    folder = tmp_path_factory.mktemp("followed")
    write_files(
        folder,
        {"package/__init__.py": "", "package/wing/__init__.py": "", "package/wing/room.py": CODE},
    )
    thread = "thread = threading.Thread(target=room.late)\nthread.start()\nthread.join()"
    code = RUN.format(computed=f"room.Thing().method()\n{thread}", shown="room.inner(1)")
    command = [sys.executable, "-c", code, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    compute, show = done.stdout.split("\n")[:2]
    return set(compute.split()), set(show.split())


def test_functions_that_ran_are_noted_by_the_kind_of_cell(called: tuple[set[str], set[str]]) -> None:
    compute, show = called
    assert compute == {"plain", "inner", "late", "Thing.method"}  # the first two for a default
    assert show == {"inner"}  # noted again, though it had run before


@pytest.mark.parametrize(
    ("ask", "keys"),
    [
        (lambda: editor_settings("smollm2-135m", "memit"), {"memit"}),
        (lambda: configuration("memit_naive", "smollm2-135m"), {"memit_naive", "memit"}),
        (lambda: tuned("rome", "smollm2-135m"), {"rome"}),
        (lambda: editor_for("ft", "smollm2-135m"), {"ft"}),
    ],
)
def test_each_key_that_is_asked_for_is_noted(trace: Trace, ask: Callable[[], object], keys: set[str]) -> None:
    on = [True]
    sys.addaudithook(lambda event, args: trace.audit(event, args) if on[0] and event == ASKED else None)
    ask()
    on[0] = False
    assert trace.now.asked == keys


def test_what_a_cell_does_counts_for_its_kind(trace: Trace, tmp_path: Path) -> None:
    shown = Trace(tmp_path, tmp_path / "build" / "trace.json", ["draw()"])
    for source, file in (("work()", "data/a"), ("draw()", "data/b"), ("work()", "data/c")):
        shown.begin(SimpleNamespace(raw_cell=source))
        shown.audit("open", (str(tmp_path / file), "r", RDONLY))
    assert {kind: part.files for kind, part in shown.parts.items()} == {
        "compute": {"data/a", "data/c"},
        "show": {"data/b"},
    }


def test_the_trace_is_written_whole(trace: Trace, tmp_path: Path) -> None:
    trace.now.files |= {"b", "a"}
    file = tmp_path / "build" / "staging" / "trace.json"
    file.parent.mkdir(parents=True)
    trace.write()
    trace.write("anything that IPython hands over")
    empty = {"files": [], "functions": [], "asked": []}
    assert json.loads(file.read_text()) == {"compute": {**empty, "files": ["a", "b"]}, "show": empty}
    assert [path.name for path in file.parent.iterdir()] == ["trace.json"]


def test_records_that_are_shown_again_may_be_read(tmp_path: Path, trace: Trace) -> None:
    place = tmp_path / "results" / "laptop"
    shown = Trace(tmp_path, tmp_path / "build" / "trace.json", (), str(place))
    shown.audit("open", (str(place / "01_tiny.json"), "r", RDONLY))
    assert shown.now.files == set()


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
    assert [hook[0] if isinstance(hook, tuple) else "audit" for hook in hooks] == [
        "audit",
        "pre_run_cell",
        "post_run_cell",
    ]
    assert load_ipython_extension.__module__ == EXTENSION
