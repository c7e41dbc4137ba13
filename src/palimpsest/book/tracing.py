"""What a notebook's run reads and calls: an extension of IPython that the runner loads into its kernel.

Files of the repository that the run opens are noted, since they belong to what its result depends on. A file
whose change nothing would notice cannot be read at all: the run fails. Where calls are followed too, every
function of the package that ran is noted, as proof that the hash of a page covers what it runs.
"""

import ast
import json
import os
import sys
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from palimpsest import paths
from palimpsest.book.gpus import used
from palimpsest.book.page_code import COMPUTE, SHOW
from palimpsest.errors import NotebookError

TRACE = "PALIMPSEST_TRACE"
"""Environment variable: the file that gets the trace, as JSON."""

CALLS = "PALIMPSEST_TRACE_CALLS"
"""Environment variable: ``1`` to follow calls."""

SHOWING = "PALIMPSEST_TRACE_SHOWING"
"""Environment variable: a JSON file with the sources of the cells that show something."""

EXTENSION = "palimpsest.book.tracing"

BY_VALUE = ("config/models/", "config/sequences.yaml", "config/profiles/", "src/", "notebooks/")
"""Hashed by what a run takes from them, not by their bytes."""

OUTPUTS = ("build/", "results/long/", "results/arms/", ".venv/", ".git/")
"""Not sources, but for long records, which are hashed; other results may not be read."""

NOTED = ("data/", "config/")
"""Hashed by file, once they are read."""

MEASURED = "results/bench.json"
"""The record of the benchmarks; hashed too, once it is read."""

GPU = "gpu"
"""Key of the trace for what is known of the GPU that the run used."""

ASKED = "palimpsest.asked"
"""Audit event by which the package says with which key it asks for a row of settings."""


@dataclass
class Part:
    """What cells of one kind read and call.

    Attributes:
        files: of the repository.
        functions: of the package, with their file.
        asked: keys of rows.
    """

    files: set[str] = field(default_factory=set)
    functions: set[str] = field(default_factory=set)
    asked: set[str] = field(default_factory=set)

    def as_dict(self) -> dict[str, list[str]]:
        """What is written to the trace."""
        return {name: sorted(getattr(self, name)) for name in ("files", "functions", "asked")}


class Trace:
    """Collects what a run reads and calls.

    Args:
        root: of the repository.
        file: gets the trace after each cell.
        showing: sources of the cells that show something.
        records: folder of the records that are shown again, which may be read.
    """

    def __init__(self, root: Path, file: Path, showing: Collection[str] = (), records: str = "") -> None:
        self._root, self._file = f"{root}/", file
        self._own = tuple(f"{os.path.realpath(folder)}/" for folder in (file.parent, records) if folder)
        self._showing = frozenset(showing)
        self.parts = {COMPUTE: Part(), SHOW: Part()}
        self.kind = COMPUTE
        self.calls: Calls | None = None

    @property
    def now(self) -> Part:
        """What the present cell's kind has read and called."""
        return self.parts[self.kind]

    def begin(self, cell: Any) -> None:
        """Note which kind of cell begins; called by IPython before each."""
        self.kind = SHOW if cell.raw_cell in self._showing else COMPUTE
        if self.calls is not None:
            self.calls.switch(self.kind)

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Hook for `sys.addaudithook`.

        Raises:
            NotebookError: if a file of the repository is read whose change no hash would notice.
        """
        if event == ASKED:
            self.now.asked.add(arguments[0])
        elif event == "open":
            path, mode, flags = arguments
            writing = (
                any(c in "wax+" for c in mode) if mode else bool((flags or 0) & (os.O_WRONLY | os.O_RDWR))
            )
            if not writing:
                self._read(path)
        elif event in ("os.listdir", "os.scandir"):
            self._read(arguments[0], folder=True)

    def _read(self, path: Any, *, folder: bool = False) -> None:
        if not isinstance(path, str | bytes | os.PathLike):
            return
        whole = os.path.realpath(os.fsdecode(path))
        if not whole.startswith(self._root) or whole.startswith(self._own):
            return
        name = whole.removeprefix(self._root) + ("/" if folder else "")
        if name.startswith((*BY_VALUE, *OUTPUTS)) and not name.endswith(".csv"):
            return
        if name.startswith(NOTED) or name == MEASURED:
            self.now.files.add(name)
        elif not folder and "__pycache__" not in name and "/" in name:
            raise NotebookError(
                f"the run reads {name}, but no hash would notice a change of it; "
                f"keep what a notebook reads below {' or '.join(NOTED)}"
            )

    def write(self, *_: object) -> None:
        """Write the trace; the file is whole at any time."""
        if self.calls is not None:
            for kind, part in self.parts.items():
                part.functions |= self.calls.functions(kind)
        temporary = self._file.with_suffix(".tmp")
        parts = {kind: part.as_dict() for kind, part in self.parts.items()}
        gpu = used(sys.modules.get("torch"))
        temporary.write_text(json.dumps(parts | ({GPU: gpu} if gpu else {}), indent=1))
        os.replace(temporary, self._file)


class Calls:
    """Functions of a package that run, by the kind of cell that ran them.

    Args:
        folder: the package's.
    """

    def __init__(self, folder: Path) -> None:
        from coverage import Coverage

        self._folder = folder.resolve()
        self._coverage = Coverage(data_file=None, config_file=False, source=[str(self._folder)])
        self._coverage.start()
        self.switch(COMPUTE)

    def switch(self, kind: str) -> None:
        """What runs from now on belongs to a kind of cell."""
        self._coverage.switch_context(kind)

    def stop(self) -> None:
        """Follow no further calls."""
        self._coverage.stop()

    def functions(self, kind: str) -> set[str]:
        """Those that ran, as ``wing/room.py:Thing.method``."""
        data = self._coverage.get_data()
        data.set_query_context(kind)
        found = set()
        for file in data.measured_files():
            lines = set(data.lines(file) or ())
            place = Path(file).relative_to(self._folder).as_posix()
            found |= {f"{place}:{name}" for name, body in _bodies(file).items() if lines & body}
        return found


@cache
def _bodies(file: str) -> dict[str, set[int]]:
    """Function of a module -> lines that run when it is called; methods stand under their class."""
    found: dict[str, set[int]] = {}
    waiting = [("", node) for node in ast.parse(Path(file).read_text("utf-8")).body]
    while waiting:
        holder, node = waiting.pop()
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.setdefault(f"{holder}{node.name}", set()).update(
                line for part in node.body for line in range(part.lineno, (part.end_lineno or 0) + 1)
            )
        elif isinstance(node, ast.ClassDef):
            waiting += [(f"{holder}{node.name}.", inner) for inner in node.body]
        elif isinstance(node, ast.If | ast.Try | ast.With):
            waiting += [(holder, inner) for inner in ast.walk(node) if isinstance(inner, ast.FunctionDef)]
    return found


def load_ipython_extension(shell: Any) -> None:
    """Begin a trace in a kernel; called by IPython before the first cell."""
    showing, records = os.environ.get(SHOWING), os.environ.get("PALIMPSEST_RECORDS", "")
    sources = json.loads(Path(showing).read_text("utf-8")) if showing else ()
    trace = Trace(paths.checkout(), Path(os.environ[TRACE]), sources, records)
    sys.addaudithook(trace.audit)
    if os.environ.get(CALLS) == "1":
        trace.calls = Calls(paths.checkout() / "src" / __name__.partition(".")[0])
    shell.events.register("pre_run_cell", trace.begin)
    shell.events.register("post_run_cell", trace.write)
