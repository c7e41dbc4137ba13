"""One execution of a notebook: by papermill with parameters, or by nbval as it stands; traced either way."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from palimpsest import paths
from palimpsest.book.dependencies import Reached
from palimpsest.book.formats import UNUSED, nbformat
from palimpsest.book.gpus import pinned
from palimpsest.book.losses import is_full, is_loss
from palimpsest.book.normalise import normalise
from palimpsest.book.page_code import COMPUTE, SHOW, part_of
from palimpsest.book.parameters import read_parameters
from palimpsest.book.tracing import CALLS, EXTENSION, GPU, SHOWING, TRACE
from palimpsest.errors import FullGpuError, LostRunError, NotebookError, PalimpsestError
from palimpsest.files import write_atomically
from palimpsest.results import records

T = TypeVar("T")

CELL_TIMEOUT = 1200
"""Seconds after which nbval gives up on a cell."""

NBVAL = f"""
import os, sys, threading
sys.modules[{UNUSED!r}] = None
above = os.dup(0)
threading.Thread(target=lambda: (os.read(above, 1), os._exit(1)), daemon=True).start()
import pytest
sys.exit(pytest.main(sys.argv[1:]))
"""
"""A process that runs pytest, in whatever revision, and starts as fast as `palimpsest.book.formats` does.

It ends with the one that started it, whose end of its input is closed then, however that ended.
"""

UNHASHED = ("", "book")
"""Modules, or wings, that hand out names and run notebooks; what a result is made by lies elsewhere."""


@dataclass(frozen=True)
class Traced:
    """What a run read and called.

    Attributes:
        files: data files, below the root.
        functions: definitions of the package that ran, with their module: ``solve.solve``.
        asked: keys of rows that were asked for.
        methods: functions of classes that ran: ``network.model.EditableModel.encode``.
    """

    files: tuple[str, ...]
    functions: frozenset[str]
    asked: frozenset[str]
    methods: frozenset[str] = frozenset()

    @classmethod
    def read(cls, file: Path, part: str = COMPUTE) -> "Traced":
        """Read what cells of one kind did from a trace; empty if none ran."""
        content = json.loads(file.read_text("utf-8")).get(part, {}) if file.is_file() else {}
        functions, methods = set(), set()
        for place in content.get("functions", []):
            module, _, name = place.partition(":")
            parts = module.removesuffix(".py").removesuffix("__init__").strip("/").split("/")
            if parts[0] not in UNHASHED and not name.startswith("<"):
                functions.add(".".join((*parts, name.partition(".")[0])))
                methods |= {".".join((*parts, name))} if "." in name else set()
        asked = frozenset(content.get("asked", ()))
        return cls(tuple(content.get("files", ())), frozenset(functions), asked, frozenset(methods))

    @staticmethod
    def gpu(file: Path) -> dict[str, Any]:
        """What a trace says of the GPU that was used; empty if none was."""
        return dict(json.loads(file.read_text("utf-8")).get(GPU, {})) if file.is_file() else {}

    @property
    def names(self) -> list[str]:
        """Functions and methods that ran, sorted."""
        return sorted(self.functions | self.methods)

    def uncovered(self, found: Reached) -> list[str]:
        """Functions that ran and do not count in a page's hash."""
        return sorted(self.functions - {str(definition) for definition in found.definitions})


def papermill_run(source: Path, staging: Path, parameters: Mapping[str, Any], gpu: str | None) -> None:
    """Execute a notebook with parameters; leaves the normalised copy, its records and its trace.

    Args:
        source: the notebook.
        staging: folder for everything that the run writes.
        parameters: as used; those that differ from the notebook's defaults are injected.
        gpu: what CUDA_VISIBLE_DEVICES is set to; unchanged if None.

    Raises:
        NotebookError: if a cell failed; a partial copy lies in the staging folder.
        LostRunError: if that was for want of memory, or the GPU or the kernel was lost; a FullGpuError where
            it was the memory of a GPU.
    """
    import papermill

    output, declared = staging / source.name, read_parameters(source)
    unlike = {name: value for name, value in parameters.items() if value != declared[name].default}
    try:
        with surroundings(source, staging, gpu) as values, environment({**values, CALLS: "1"}):
            papermill.execute_notebook(
                source,
                output,
                unlike,
                kernel_name="python3",
                cwd=source.parent,
                progress_bar=False,
                stdout_file=sys.stdout,
                stderr_file=sys.stderr,
            )
    except PalimpsestError:
        raise
    except Exception as error:  # papermill, nbclient and jupyter_client each have their own
        kind = FullGpuError if is_full(error) else LostRunError if is_loss(error) else NotebookError
        raise kind(_failure(source, error)) from error
    notebook = normalise(nbformat.read(output, as_version=4))
    write_atomically(output, (nbformat.writes(notebook) + "\n").encode())


def _failure(source: Path, error: Exception) -> str:
    count = getattr(error, "exec_count", None)
    where = f" in the cell numbered [{count}]" if count else ""
    kind, text = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", error)
    return f"{source.stem} failed{where}: {kind}: {text}"


def nbval_run(source: Path, staging: Path, extra: Mapping[str, str] | None = None) -> None:
    """Execute a notebook as it stands, by nbval; leaves its records and its trace, and no executed copy.

    Args:
        source: the notebook, in the checkout that is to run it.
        staging: folder for everything that the run writes.
        extra: more environment variables.

    Raises:
        NotebookError: if a cell failed, with the end of what nbval printed.
    """
    options = ["--nbval-lax", "--nbval-current-env", f"--nbval-cell-timeout={CELL_TIMEOUT}"]
    command = [sys.executable, "-c", NBVAL, "-q", "-p", "no:cacheprovider", *options, str(source)]
    with surroundings(source, staging) as values:
        whole = {**os.environ, **values, CALLS: "1", **(extra or {})}
        with subprocess.Popen(
            command,
            cwd=source.parents[1],
            env=whole,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as process:
            assert process.stdout is not None
            said = process.stdout.read()
    if process.returncode:
        raise NotebookError(f"{source.stem} failed under nbval:\n{_end(said)}")


def _end(text: str, lines: int = 60) -> str:
    return "\n".join(text.splitlines()[-lines:])


@contextlib.contextmanager
def surroundings(source: Path, staging: Path, gpu: str | None = None) -> Iterator[dict[str, str]]:
    """Environment variables of a kernel that collects its files in one folder and traces itself.

    IPython gets a folder of its own, so that no setting of the user's home changes a result. It lies in the
    staging folder, which the next run removes where this one is killed.
    """
    cells = nbformat.read(source, as_version=4).cells
    showing = [cell.source for cell in cells if cell.cell_type == "code" and part_of(cell) == SHOW]
    with tempfile.TemporaryDirectory(dir=staging, prefix="ipython.") as folder:
        profile = Path(folder) / "profile_default"
        profile.mkdir()
        (profile / "ipython_kernel_config.py").write_text(f'c.IPKernelApp.extensions = ["{EXTENSION}"]\n')
        (Path(folder) / "showing.json").write_text(json.dumps(showing))
        yield {
            SHOWING: str(Path(folder) / "showing.json"),
            records.STAGING: str(staging),
            TRACE: str(trace_file(staging)),
            "IPYTHONDIR": folder,
            "TOKENIZERS_PARALLELISM": "false",
            "JUPYTER_PREFER_ENV_PATH": "1",  # the kernel of this environment, not of the home folder
        } | ({} if gpu is None else pinned(gpu))


def trace_file(staging: Path) -> Path:
    """Where a run in a staging folder leaves its trace."""
    return staging / "trace.json"


@contextlib.contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, for the kernel that inherits them, and put the old ones back."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def keep_partial(source: Path, staging: Path, profile: str) -> Path | None:
    """Keep the partial copy of a failed run for a look; None if there is none."""
    output = staging / source.name
    if not output.is_file():
        return None
    kept = paths.build_dir() / "failed" / profile / source.name
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(output, kept)
    return kept


def with_bar(found: Iterable[T], total: int, what: str) -> Iterator[T]:
    """What was found of each page, with a bar for somebody who looks on, which is out of the way of it.

    Args:
        found: one for each page.
        total: number of pages.
        what: is done.
    """
    from tqdm import tqdm  # reads its variables when it is imported, which a command sets before

    with tqdm(total=total, desc=what, unit="page", disable=None, leave=False) as bar:
        for one in found:
            bar.clear()
            yield one
            bar.update()


def in_own_process(command: Sequence[str], jobs: int) -> int:
    """Exit status of a command; an interruption, which it gets too, waits until it has tidied up.

    Args:
        command: a program with its arguments.
        jobs: processes at once; they share the cores (``OMP_NUM_THREADS``, where it is not set).
    """
    threads = {} if jobs == 1 else {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    with subprocess.Popen(list(command), env=threads | os.environ) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
            process.kill()
            raise
