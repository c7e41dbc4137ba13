"""Small runs of a page under a revision, for comparing two revisions.

A run is made in a checkout of its revision, on one thread, with nothing computed before but the second
moments of keys: these take longest and depend on the model alone, so that pages share them while the code
that computes them is the same. Records and traces are kept in ``build/confirm`` by the hash of a page's code.
"""

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from palimpsest import paths
from palimpsest.book.canonical import Use
from palimpsest.book.dependencies import Dependencies, Vocabulary, dependencies, short_hash
from palimpsest.book.execution import Traced, nbval_run, trace_file
from palimpsest.book.formats import nbformat
from palimpsest.book.parameters import parameters_cell, read_parameters
from palimpsest.book.profiles import find_notebook
from palimpsest.book.provenance import git
from palimpsest.errors import NotebookError
from palimpsest.files import beside, leftovers, locked, sweep
from palimpsest.results import records

RESOURCES = ("models", "resources", "text")
"""Folders of the cache whose content is fetched and pinned; whatever else is there was computed."""

STATISTICS = "statistics"
"""Folder of the cache that pages share, as long as the code that fills it is the same."""

COMPUTES = "key_statistics"
"""What fills it; that code counts as executed in a page if the small run of any page ran it."""


def small_run(page: str, revision: str, code: str) -> tuple[dict[str, Any], Traced]:
    """Record and trace of a page's smoke run under a revision.

    Whatever the revision, the sizes are those of the present notebook.

    Args:
        page: name of the notebook.
        revision: to check out, unless a run of the same code is kept.
        code: hash of the page's code in that revision.

    Raises:
        NotebookError: if it fails, or the revision's notebook has other parameters.
    """
    sizes = parameters_cell(find_notebook(page))
    kept = paths.build_dir() / "confirm" / f"{page}-{code[:12]}-{short_hash(sizes)[:8]}"
    record = kept / f"{page}.json"
    if not record.is_file():
        with workplace(page) as place, worktree(revision, place) as root:
            staging, cache = place / page, _little_computed(place / "cache", _shared(root))
            staging.mkdir()
            settings = {"PALIMPSEST_ROOT": str(root), "PYTHONPATH": str(root / "src")}
            settings |= {"PALIMPSEST_CACHE": str(cache), "OMP_NUM_THREADS": "1"}
            source = root / "notebooks" / f"{page}.ipynb"
            _resize(source, sizes)
            nbval_run(source, staging, settings)
            shutil.rmtree(kept, ignore_errors=True)
            staging.rename(kept)
    return records.read(record), Traced.read(trace_file(kept))


def _shared(root: Path) -> Path:
    """Folder of second moments that belong to the code of a checkout."""
    graph = Dependencies(root / "src" / "palimpsest")
    uses = tuple(Use(definition) for definition in graph.named(COMPUTES))
    code = short_hash(" ".join(sorted(graph.reached(uses, Vocabulary()).hashes)))
    folder = paths.build_dir() / "confirm" / f"{STATISTICS}-{code[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def with_shared(traced: Traced) -> Traced:
    """The trace of a page, with the code that computed what the pages share, if any small run did."""
    graph = dependencies(paths.checkout() / "src" / "palimpsest")
    uses = tuple(Use(definition) for definition in graph.named(COMPUTES))
    behind = {str(d) for d in graph.reached(uses, Vocabulary()).definitions}
    kept = paths.build_dir() / "confirm"
    traces = [Traced.read(file) for file in kept.glob("*/trace.json")]
    functions = behind & {name for trace in traces for name in trace.functions}
    methods = {name for trace in traces for name in trace.methods if name.rpartition(".")[0] in behind}
    return replace(traced, functions=traced.functions | functions, methods=traced.methods | methods)


def _resize(source: Path, sizes: str) -> None:
    """Give a revision's notebook the parameters cell of the present one."""
    names = set(read_parameters(source))
    notebook = nbformat.read(source, as_version=4)
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            cell.source = sizes
    nbformat.write(notebook, source)
    if names != set(read_parameters(source)):
        raise NotebookError(
            f"{source.stem}: its parameters have other names than at that revision, so that small runs "
            "cannot be "
            "compared; run it"
        )


@contextmanager
def workplace(page: str) -> Iterator[Path]:
    """Folder for what a page's confirmation makes on the way, in ``build/confirm``; one process has it.

    What a process that was killed left of it, and git's note of its checkout, are removed first. Blocks of
    one page do not stand in one another.
    """
    place = paths.build_dir() / "confirm" / page
    with locked(place):
        for left in leftovers(place):
            _forget(left)
        sweep(place)
        with beside(place) as folder:
            yield folder


def _forget(folder: Path) -> None:
    """Remove git's notes of checkouts in a folder; it keeps one itself if it was killed while it made it."""
    with suppress(OSError, subprocess.CalledProcessError):  # without git there is nothing to forget
        notes = Path(git("rev-parse", "--path-format=absolute", "--git-common-dir")) / "worktrees"
        for note in notes.glob("*/gitdir"):
            if Path(note.read_text("utf-8").strip()).is_relative_to(folder.resolve()):
                shutil.rmtree(note.parent)


@contextmanager
def worktree(revision: str, place: Path) -> Iterator[Path]:
    """A checkout of a revision in a folder, removed at the end of the block.

    Raises:
        NotebookError: if git cannot make it.
    """
    root = place / "checkout"
    try:
        git("worktree", "add", "--detach", str(root), revision)
    except subprocess.CalledProcessError as error:
        raise NotebookError(f"revision {revision} cannot be checked out: {error.stderr.strip()}") from error
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)
        git("worktree", "prune")


def _little_computed(folder: Path, statistics: Path) -> Path:
    """A cache with what was fetched and second moments, so that a run computes everything else."""
    folder.mkdir()
    for name in RESOURCES:
        if (paths.cache_dir() / name).is_dir():
            (folder / name).symlink_to(paths.cache_dir() / name, target_is_directory=True)
    (folder / STATISTICS).symlink_to(statistics, target_is_directory=True)
    return folder
