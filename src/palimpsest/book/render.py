"""Draw a page again: figures, tables and sentences from its carried records, without computing anything.

The cells tagged ``show``, with those that both kinds need, run in a kernel where `Results` holds the values
and tables of an earlier run. That takes seconds and no model.
"""

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from palimpsest.book.execution import Traced, surroundings, trace_file, with_bar
from palimpsest.book.formats import NotebookNode, nbformat
from palimpsest.book.normalise import INJECTED, normalise, with_current_sources
from palimpsest.book.page_code import PARAMETERS, SETUP, SHOW, part_of
from palimpsest.book.profiles import (
    Profile,
    find_notebook,
    known_notebooks,
    load_profile,
    parameters_for,
    results_of,
)
from palimpsest.book.provenance import (
    clean_up,
    not_vouched,
    read_provenance,
    record_hashes,
    result_place,
    write_provenance,
)
from palimpsest.book.staleness import shown_hash
from palimpsest.book.standing import standing
from palimpsest.errors import NotebookError
from palimpsest.files import locked, scratch, write_atomically
from palimpsest.results import records

CELL_TIMEOUT = 300
"""Seconds after which a cell that shows something is given up."""


class OutdatedError(NotebookError):
    """Cells that compute have changed since a run, so that its page can only be shown as it was."""


def render(name: str, profile: str, out: Path | None = None) -> bool:
    """Draw the page of a carried result again if it is older than its code; says whether it was.

    Args:
        name: of the notebook.
        profile: whose result.
        out: folder for a copy of the page to look at, drawn whatever its cells that compute have become; the
            result itself is then left alone.

    Raises:
        NotebookError: if there is no result, its files are not those that the run wrote, or a cell fails; the
            page is left as it was.
    """
    source, setting, folder = find_notebook(name), load_profile(profile), results_of(profile)
    if out is not None:
        return _rendered(source, setting, folder, out)
    with locked(result_place(source.stem, folder)):
        clean_up(source.stem, folder)
        return _rendered(source, setting, folder)


def _rendered(source: Path, setting: Profile, folder: Path, out: Path | None = None) -> bool:
    """As `render`, for a result whose lock is held unless only a copy is made."""
    name, profile = source.stem, setting.name
    made = read_provenance(source.stem, folder)
    if not made or not (folder / f"{source.stem}.json").is_file():
        raise NotebookError(
            f"{source.stem} was not run under the profile {profile}, so that there is nothing to show; run "
            f"`palimpsest run {source.stem} --profile {profile}`"
        )
    if other := not_vouched(source.stem, folder, made):
        raise NotebookError(
            f"{source.stem}: {', '.join(other)}: not what the run wrote; take it back from the history, or "
            "run the page"
        )
    if out is None and is_drawn(name, setting):
        return False
    copy, present = folder / source.name, nbformat.read(source, as_version=4)
    executed = nbformat.read(copy, as_version=4) if copy.is_file() else nbformat.v4.new_notebook()
    stands = out is not None or standing(name, setting).kind in ("fresh", "confirmed")
    if with_current_sources(executed, present, stands=stands) is None:
        raise OutdatedError(
            f"{source.stem}: cells that compute have changed since the run, so that what they showed cannot "
            "be kept; run the page, or confirm its result"
        )
    shown, files = _drawn(source, setting, folder, staged=out is None)
    page = with_current_sources(executed, present, stands=stands, shown=shown)
    assert page is not None
    place = copy if out is None else out / source.name
    write_atomically(place, (nbformat.writes(normalise(page)) + "\n").encode())
    if out is not None:
        return True
    parameters = parameters_for(setting, source)
    digest = shown_hash(source, parameters, files, record_hashes(source.stem, folder))
    write_provenance(source.stem, folder, {**made, "shown": {"hash": digest, "files": sorted(files)}})
    return True


def is_drawn(name: str, setting: Profile) -> bool:
    """Whether what a page shows comes from its present code and records."""
    source, folder = find_notebook(name), results_of(setting.name)
    shown = read_provenance(source.stem, folder).get("shown")
    if not shown or not (folder / source.name).is_file():
        return False
    parameters = parameters_for(setting, source)
    now = shown_hash(source, parameters, shown["files"], record_hashes(source.stem, folder))
    return bool(shown["hash"] == now)


def render_all(
    pages: Sequence[str] | None, profile: str, jobs: int = 1, out: Path | None = None
) -> Iterator[str]:
    """Draw pages again whose code changed; yields a line for each.

    Args:
        pages: names of notebooks; all that were run by default.
        profile: whose results.
        jobs: pages at once.
        out: folder for copies to look at, as for `render`.

    Raises:
        NotebookError: after the last page, if any failed. Where no pages are named, one whose cells that
            compute have changed is left as it was run.
    """
    folder, failed = results_of(profile), 0
    names = list(pages or (name for name in known_notebooks() if (folder / f"{name}.json").is_file()))

    def one(name: str) -> tuple[bool, str]:
        try:
            return True, f"{name}: {'drawn again' if render(name, profile, out) else 'as its code draws it'}"
        except OutdatedError as error:
            return not pages, str(error)  # the book shows it as it was run, with a warning
        except NotebookError as error:
            return False, str(error)

    with ThreadPoolExecutor(jobs) as pool:
        for well, line in with_bar(pool.map(one, names), len(names), "drawing"):
            failed += not well
            yield line
    if failed:
        raise NotebookError(f"{failed} pages could not be drawn again; the reasons are above")


def _drawn(
    source: Path, setting: Profile, folder: Path, staged: bool
) -> tuple[dict[str, NotebookNode], tuple[str, ...]]:
    """Cells that show something, executed, by their id; and the data files that they read.

    With the result's lock held they are executed in a folder beside it, which `clean_up` finds after a kill.
    """
    import nbclient

    notebook = nbformat.read(source, as_version=4)
    parts = {cell.id: part_of(cell) for cell in notebook.cells if cell.cell_type == "code"}
    notebook.cells = [c for c in notebook.cells if parts.get(c.id) in (PARAMETERS, SETUP, SHOW)]
    given = "\n".join(f"{name} = {value!r}" for name, value in parameters_for(setting, source).items())
    first = next((n for n, cell in enumerate(notebook.cells) if parts[cell.id] == PARAMETERS), -1)
    notebook.cells.insert(first + 1, nbformat.v4.new_code_cell(given, id=INJECTED))
    beside = tempfile.TemporaryDirectory(dir=folder, prefix=f"{source.stem}.tmp.") if staged else None
    with beside or scratch("drawing") as place, surroundings(source, Path(place)) as values:
        own = {records.RECORDS: str(folder), "MPLBACKEND": "module://matplotlib_inline.backend_inline"}
        client = nbclient.NotebookClient(
            notebook,
            timeout=CELL_TIMEOUT,
            kernel_name="python3",
            resources={"metadata": {"path": str(source.parent)}},
        )
        try:
            client.execute(env={**os.environ, **values, **own})
        except nbclient.exceptions.CellExecutionError as error:
            raise NotebookError(f"{source.stem} cannot be drawn again: {_last(error)}") from error
        traced = Traced.read(trace_file(Path(place)), SHOW)
    return {cell.id: cell for cell in notebook.cells if parts.get(cell.id) == SHOW}, traced.files


def _last(error: Exception) -> str:
    """Name and text of the error in a cell, and the cell's first line."""
    kind, text = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", str(error))
    print(error, file=sys.stderr)
    return (
        f"{kind}: {text}; the cell is printed above, and may use the records alone, not what other cells made"
    )
