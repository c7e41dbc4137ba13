"""What a notebook's run reads and calls: an extension of IPython that the runner loads into its kernel.

Files of the repository that the run opens are noted, since they belong to what its result depends on. A file
whose change nothing would notice cannot be read at all: the run fails. Where calls are followed too, every
function of the package that ran is noted, as proof that the hash of a page covers what it runs.
"""

import json
import os
import sys
import threading
from inspect import CO_OPTIMIZED
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from palimpsest import paths
from palimpsest.errors import NotebookError

TRACE = "PALIMPSEST_TRACE"
"""Environment variable: the file that gets the trace, as JSON."""

CALLS = "PALIMPSEST_TRACE_CALLS"
"""Environment variable: ``1`` to follow calls."""

EXTENSION = "palimpsest.book.tracing"

BY_VALUE = ("config/models/", "config/sequences.yaml", "config/profiles/", "src/", "notebooks/")
"""Hashed by what a run takes from them, not by their bytes."""

OUTPUTS = ("build/", "results/long/", ".venv/", ".git/")
"""Not sources, but for long records, which are hashed; other results may not be read."""

NOTED = ("data/", "config/")
"""Hashed by file, once they are read."""

ASKED = {"editor_settings": "editor", "configuration": "name", "tuned": "name", "editor_for": "name"}
"""Function -> its argument that is the key of a row: rows asked for must be rows that count."""


class Trace:
    """Collects what a run reads and calls.

    Args:
        root: of the repository.
        file: gets the trace after each cell.
    """

    def __init__(self, root: Path, file: Path) -> None:
        self._root, self._file = f"{root}/", file
        self._own = f"{os.path.realpath(file.parent)}/"
        self._package = f"{root}/src/{__package__.partition('.')[0]}/" if __package__ else ""
        self._seen: set[CodeType] = set()
        self.files: set[str] = set()
        self.functions: set[str] = set()
        self.asked: set[str] = set()

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Hook for `sys.addaudithook`.

        Raises:
            NotebookError: if a file of the repository is read whose change no hash would notice.
        """
        if event == "open":
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
        if name.startswith(NOTED):
            self.files.add(name)
        elif not folder and "__pycache__" not in name and "/" in name:
            raise NotebookError(
                f"the run reads {name}, but no hash would notice a change of it; "
                f"keep what a notebook reads below {' or '.join(NOTED)}"
            )

    def call(self, frame: FrameType, event: str, argument: object) -> None:
        """Hook for `sys.settrace`: called once for each function call, never for lines."""
        code = frame.f_code
        if code in self._seen and code.co_name not in ASKED:
            return
        if not code.co_flags & CO_OPTIMIZED:
            return  # the top of a module or a class, which runs when it is imported
        self._seen.add(code)
        if code.co_filename.startswith(self._package):
            name = code.co_qualname if hasattr(code, "co_qualname") else code.co_name
            self.functions.add(f"{code.co_filename.removeprefix(self._package)}:{name}")
            if code.co_name in ASKED:
                key = frame.f_locals.get(ASKED[code.co_name])
                self.asked.add(key) if isinstance(key, str) else None

    def write(self, *_: object) -> None:
        """Write the trace; the file is whole at any time."""
        parts = {"files": self.files, "functions": self.functions, "asked": self.asked}
        temporary = self._file.with_suffix(".tmp")
        temporary.write_text(json.dumps({name: sorted(found) for name, found in parts.items()}, indent=1))
        os.replace(temporary, self._file)


def load_ipython_extension(shell: Any) -> None:
    """Begin a trace in a kernel; called by IPython before the first cell."""
    trace = Trace(paths.root(), Path(os.environ[TRACE]))
    sys.addaudithook(trace.audit)
    if os.environ.get(CALLS) == "1":
        sys.settrace(trace.call)
        threading.settrace(trace.call)
    shell.events.register("post_run_cell", trace.write)
