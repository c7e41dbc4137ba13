"""One execution of a notebook, by papermill or nbval: what it leaves, what it proves, how it fails."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from palimpsest.book import execution
from palimpsest.book.execution import (
    Traced,
    environment,
    in_own_process,
    keep_partial,
    nbval_run,
    papermill_run,
    surroundings,
    trace_file,
)
from palimpsest.book.profiles import load_profile, parameters_for
from palimpsest.book.provenance import code_revision, read_provenance, versions
from palimpsest.book.runner import check_covered, run_notebook
from palimpsest.book.staleness import NOTEBOOK, SCHEME, inputs
from palimpsest.book.standing import standing
from palimpsest.errors import NotebookError
from palimpsest.results import records
from tests.clone import DATA, PACKAGE, SAVE, WORK, Clone, make_clone

BY_TEXT = 'from importlib import import_module\ngetattr(import_module("palimpsest.toy"), "unreached")(1.0)\n'


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    return make_clone(tmp_path / "clone", monkeypatch)


@pytest.fixture
def staging(clone: Clone) -> Path:
    folder = clone.root / "build" / "staging"
    folder.mkdir(parents=True)
    return folder


def covers(clone: Clone, *functions: str, asked: tuple[str, ...] = ()) -> None:
    parameters = parameters_for(load_profile("smoke"), clone.notebook)
    check_covered(clone.notebook, parameters, Traced((), frozenset(functions), frozenset(asked)))


# What a trace proves


def test_a_trace_names_definitions_by_module(tmp_path: Path) -> None:
    places = [
        "toy.py:doubled",
        "editors/memit.py:Memit.edit",
        "editors/__init__.py:edit",
        "deep/inner.py:f.<locals>.g",
        "deep/inner.py:<lambda>",
        "__init__.py:__getattr__",
        "book/tracing.py:Trace.call",
    ]
    (tmp_path / "trace.json").write_text(
        json.dumps({"compute": {"functions": places, "files": ["a"], "asked": ["b"]}})
    )
    found = Traced.read(tmp_path / "trace.json")
    assert found.functions == {"toy.doubled", "editors.memit.Memit", "editors.edit", "deep.inner.f"}
    assert (found.files, found.asked) == (("a",), {"b"})


def test_a_run_without_a_cell_leaves_an_empty_trace(tmp_path: Path) -> None:
    assert Traced.read(tmp_path / "trace.json") == Traced((), frozenset(), frozenset())


def test_what_ran_must_be_reached(clone: Clone) -> None:
    covers(clone, "toy.doubled", "toy.thorough")
    with pytest.raises(NotebookError) as error:
        covers(clone, "toy.doubled", "toy.unreached", "solve.gone")
    assert str(error.value) == (
        "01_tiny ran solve.gone, toy.unreached, which its hash does not cover: call what it needs by a name "
        "that is imported, not by a text"
    )


def test_what_was_asked_for_must_be_spelt_out(clone: Clone) -> None:
    clone.write_notebook(work=f"{WORK}\nkind = 'memit'")
    covers(clone, asked=("memit", "tiny"))
    with pytest.raises(NotebookError) as error:
        covers(clone, asked=("memit", "rome_aligned", "ike_aligned"))
    assert str(error.value) == (
        "01_tiny asked for the settings of ike_aligned, rome_aligned, which its hash does not cover: spell "
        "the name out in the notebook or in a parameter"
    )


# Runs


@pytest.mark.slow
def test_papermill_leaves_copy_record_and_trace(clone: Clone, staging: Path) -> None:
    parameters = parameters_for(load_profile("laptop"), clone.notebook)
    papermill_run(clone.notebook, staging, parameters, gpu="")
    assert {path.name for path in staging.iterdir()} == {
        "01_tiny.ipynb",
        "01_tiny.json",
        "01_tiny.rows.parquet",
        "trace.json",
    }
    assert records.read(staging / "01_tiny.json")["values"]["doubled"]["value"] == 4.0
    assert Traced.read(trace_file(staging)).files == (DATA,)


@pytest.mark.slow
def test_nbval_leaves_record_and_a_trace_of_calls(clone: Clone, staging: Path) -> None:
    nbval_run(clone.notebook, staging)
    assert records.read(staging / "01_tiny.json")["values"]["doubled"]["value"] == 2.0
    traced = Traced.read(trace_file(staging))
    assert traced.files == (DATA,)
    assert {"toy.doubled", "paths.root"} <= traced.functions
    assert not {"toy.thorough", "toy.unreached"} & traced.functions
    covers(clone, *traced.functions)


@pytest.mark.slow
def test_nbval_and_its_kernel_end_with_the_process_that_started_them(clone: Clone, staging: Path) -> None:
    """Which is killed here while a cell sleeps."""
    pid = clone.root / "pid"
    sleeps = f"import os, time\nopen({str(pid)!r}, 'w').write(f'{{os.getpid()}} {{os.getppid()}}')"
    clone.write_notebook(work=f"{sleeps}\ntime.sleep(600)")
    code = (
        "from pathlib import Path; from palimpsest.book.execution import nbval_run; "
        f"nbval_run(Path({str(clone.notebook)!r}), Path({str(staging)!r}))"
    )
    whole = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    with subprocess.Popen([sys.executable, "-c", code], env=whole) as process:
        while not (pid.is_file() and pid.read_text()):
            assert process.poll() is None
            time.sleep(0.1)
        process.kill()
    children, end = pid.read_text().split(), time.monotonic() + 60
    while (alive := [one for one in children if is_alive(one)]) and time.monotonic() < end:
        time.sleep(0.1)
    assert alive == []


def is_alive(pid: str) -> bool:
    """Whether a process runs; one that ended and that nobody waited for does not."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", pid], capture_output=True, text=True, check=False)
    return found.stdout.strip()[:1] not in ("", "Z")


@pytest.mark.slow
@pytest.mark.parametrize("executor", ["papermill", "nbval"])
def test_a_run_leaves_what_it_read_and_reached_in_its_provenance(clone: Clone, executor: str) -> None:
    folder = clone.root / "build" / "smoke"
    run = run_notebook("01_tiny", "smoke", folder=folder, executor=executor)
    made = read_provenance("01_tiny", folder)
    parameters = parameters_for(load_profile("smoke"), clone.notebook)
    now = inputs(clone.notebook, parameters, [DATA])
    assert (made["scheme"], made["files"]) == (SCHEME, [DATA])
    assert (made["content_hash"], made["definitions"]) == (now.content_hash, now.definitions)
    assert {NOTEBOOK, "toy.doubled", "toy.FACTOR"} <= made["definitions"].keys()
    assert (made["code_revision"], made["device"]) == (code_revision(), "cpu")
    assert versions().items() <= made["versions"].items()
    assert run.notebook.name == {"papermill": "01_tiny.ipynb", "nbval": "01_tiny.json"}[executor]
    assert run.notebook.is_file()
    assert run.changed
    assert standing("01_tiny", "smoke", folder).kind == "fresh"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("work", "message"),
    [
        (
            f"{WORK}\n{BY_TEXT}",
            r"01_tiny ran toy.unreached, which its hash does not cover: call what it needs",
        ),
        (
            f"{WORK}\n(root() / 'book/secret.txt').read_text()",
            r"(?s)01_tiny failed under nbval:.*the run reads book/secret.txt, but no hash would notice",
        ),
        (
            f"{WORK}\nraise OSError('no such thing')",
            r"(?s)01_tiny failed under nbval:.*no such thing.*; earlier results are untouched$",
        ),
    ],
    ids=["called by a text", "a file that no hash covers", "a failing cell"],
)
def test_a_run_whose_hash_would_say_too_little_fails(clone: Clone, work: str, message: str) -> None:
    (clone.root / "book" / "secret.txt").write_text("text")
    clone.write_notebook(work=work)
    folder = clone.root / "build" / "smoke"
    with pytest.raises(NotebookError, match=message):
        run_notebook("01_tiny", "smoke", folder=folder, executor="nbval")
    assert list(folder.iterdir()) == []


@pytest.mark.slow
def test_under_papermill_too_a_file_that_no_hash_covers_fails_the_run(clone: Clone, staging: Path) -> None:
    (clone.root / "book" / "secret.txt").write_text("text")
    clone.write_notebook(save=f"{SAVE}\nopen(root() / 'book/secret.txt')")
    parameters = parameters_for(load_profile("smoke"), clone.notebook)
    with pytest.raises(
        NotebookError,
        match=r"01_tiny failed in the cell numbered \[3\]: NotebookError: the run reads book/sec",
    ):
        papermill_run(clone.notebook, staging, parameters, None)
    kept = keep_partial(clone.notebook, staging, "smoke")
    assert kept == clone.root / "build/failed/smoke/01_tiny.ipynb"
    assert "the run reads book/secret.txt" in kept.read_text()


def test_without_a_partial_copy_none_is_kept(clone: Clone, staging: Path) -> None:
    assert keep_partial(clone.notebook, staging, "smoke") is None


def test_a_failure_of_the_program_itself_is_named(
    clone: Clone, staging: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no kernel")

    monkeypatch.setattr("papermill.execute_notebook", fail)
    parameters = parameters_for(load_profile("smoke"), clone.notebook)
    with pytest.raises(NotebookError, match=r"^01_tiny failed: OSError: no kernel$"):
        papermill_run(clone.notebook, staging, parameters, None)


# Surroundings


def test_environment_variables_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PALIMPSEST_ONE", "1")
    monkeypatch.delenv("PALIMPSEST_TWO", raising=False)
    with environment({"PALIMPSEST_ONE": "2", "PALIMPSEST_TWO": "2"}):
        assert (os.environ["PALIMPSEST_ONE"], os.environ["PALIMPSEST_TWO"]) == ("2", "2")
    assert os.environ["PALIMPSEST_ONE"] == "1"
    assert "PALIMPSEST_TWO" not in os.environ


def test_a_kernel_gets_a_folder_of_its_own_that_loads_the_trace(clone: Clone, tmp_path: Path) -> None:
    with surroundings(clone.notebook, tmp_path, gpu="1") as values:
        folder = Path(values["IPYTHONDIR"])
        assert folder.parent == tmp_path  # so that the next run sweeps it
        assert "palimpsest.book.tracing" in next(folder.rglob("ipython_kernel_config.py")).read_text()
        assert values["CUDA_VISIBLE_DEVICES"] == "1"
        assert values[records.STAGING] == str(tmp_path)
    assert not folder.exists()
    with surroundings(clone.notebook, tmp_path) as values:
        assert "CUDA_VISIBLE_DEVICES" not in values


@pytest.mark.parametrize(("jobs", "threads"), [(1, ""), (2, "2")])
def test_a_process_of_its_own_shares_the_cores(
    monkeypatch: pytest.MonkeyPatch, jobs: int, threads: str
) -> None:
    monkeypatch.setattr(execution.os, "cpu_count", lambda: 4)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    code = f"import os, sys; sys.exit(7 * (os.environ.get('OMP_NUM_THREADS', '') == {threads!r}))"
    assert in_own_process([sys.executable, "-c", code], jobs) == 7
