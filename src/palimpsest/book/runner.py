"""Execute notebooks under a profile; a result is moved into place only when its run succeeded.

Files of a run in progress are collected in a temporary folder beside the results. A failed or
interrupted run leaves the earlier result as it was.
"""

import os
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from palimpsest import paths
from palimpsest.book.dependencies import dependencies, short_hash
from palimpsest.book.execution import (
    Traced,
    in_own_process,
    keep_partial,
    nbval_run,
    papermill_run,
    trace_file,
)
from palimpsest.book.formats import nbformat
from palimpsest.book.gpus import check_gpu
from palimpsest.book.losses import FULL, LOST
from palimpsest.book.needs import check_needed, left_out, require
from palimpsest.book.normalise import with_current_sources
from palimpsest.book.page_code import COMPUTE, SHOW, notebook_code
from palimpsest.book.profiles import (
    check_profile,
    find_notebook,
    known_notebooks,
    load_profile,
    parameters_for,
    results_of,
)
from palimpsest.book.provenance import (
    Measured,
    clean_up,
    provenance,
    read_provenance,
    record_files,
    record_hashes,
    result_place,
    write_provenance,
)
from palimpsest.book.staleness import file_hashes, inputs, reach, shown_hash, with_files
from palimpsest.book.standing import stale
from palimpsest.errors import LostRunError, NotebookError, PalimpsestError, ResourceError
from palimpsest.files import as_json, locked, write_atomically
from palimpsest.results import records

TIMED = "timed"

LONGEST_NAME = 60
"""Characters of a folder's name that says with which parameters a run was made."""

Executor = Literal["papermill", "nbval"]
"""papermill injects the parameters of any profile; nbval runs a notebook as it stands, which is the smoke
profile."""


@dataclass(frozen=True)
class Run:
    """What came of one notebook.

    Attributes:
        notebook: path of the executed copy, or of the record where there is no copy.
        seconds: wall time.
        changed: whether any file differs from the earlier result.
    """

    notebook: Path
    seconds: float
    changed: bool


def run_notebook(
    name: str | Path,
    profile: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    gpu: str | None = None,
    folder: Path | None = None,
    executor: Executor = "papermill",
    wait: float = -1,
    check: Callable[[Path, Mapping[str, Any]], None] | None = None,
) -> Run:
    """Execute one notebook with checked parameters; a process that runs it already is waited for.

    Args:
        name: a notebook's name, or a path ending in ``.ipynb``.
        profile: where the parameters come from.
        overrides: values that win over the profile's. Such a run is no run of the profile, so it
            goes to a folder of its own in ``build/runs`` unless ``folder`` says otherwise.
        gpu: what CUDA_VISIBLE_DEVICES is set to; unchanged if None.
        folder: where the result goes instead of ``results/<profile>``.
        executor: what runs the cells.
        wait: seconds to wait for another process; without end if negative.
        check: called with the notebook's path and its parameters before anything runs; its errors pass.

    Raises:
        BusyError: if another process still runs it after that time.
        UnknownNameError: if there is no such notebook, profile or parameter.
        ProfileError: if a value is of another type than the notebook's default, the profile does not run the
            page, or the model has no settings for an editor that the page needs.
        ResourceError: if there is no such GPU, or the result cannot be written.
        NotebookError: if the notebook failed, or ran code or asked for settings that its hash does not cover;
            earlier results are untouched.
        LostRunError: if it failed for want of memory, or because the GPU or the kernel was lost; a
            FullGpuError where a GPU's memory did not suffice.
    """
    source, setting = find_notebook(name), load_profile(profile)
    parameters = parameters_for(setting, source, overrides)
    require(setting, source, overrides)
    check_gpu(gpu)
    if check is not None:
        check(source, parameters)
    target = folder or (runs_of(profile, overrides) if overrides else results_of(profile))
    with locked(result_place(source.stem, target), wait), _writing(target):
        clean_up(source.stem, target)
        with tempfile.TemporaryDirectory(dir=target, prefix=f"{source.stem}.tmp.") as place:
            staging = Path(place)

            def execute() -> None:
                if executor == "nbval":
                    nbval_run(source, staging)
                else:
                    papermill_run(source, staging, parameters, gpu)

            try:
                made, seconds = _made(source, parameters, staging, execute, strict=executor == "nbval")
            except _FailedError as error:
                raise _told(error, keep_partial(source, staging, profile)) from error
            changed = _move_into_place(source.stem, staging, target, made)
    copy = target / f"{source.stem}.ipynb"
    return Run(copy if copy.is_file() else copy.with_suffix(".json"), seconds, changed)


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    try:
        yield
    except PalimpsestError:
        raise
    except OSError as error:
        raise ResourceError(
            f"could not write the result in {target}: {error}; free some space or choose another folder, and "
            "run the page again. An earlier result stands, or counts as stale where a part of it was replaced"
        ) from error


def runs_of(profile: str, overrides: Mapping[str, Any]) -> Path:
    """Folder of a run with other parameters than a profile's, such as ``build/runs/laptop/seed=1``.

    It is named by these parameters where that is short, else by a hash of them, so that no two such runs
    write the same files.
    """
    named = ",".join(f"{name}={overrides[name]}" for name in sorted(overrides))
    if len(named) > LONGEST_NAME or not re.fullmatch(r"[\w.=,+-]+", named):
        named = short_hash(as_json({name: overrides[name] for name in sorted(overrides)}).decode())[:12]
    return paths.build_dir() / "runs" / profile / named


class _FailedError(NotebookError):
    """A cell failed."""


def _told(error: _FailedError, kept: Path | None) -> NotebookError:
    """The error of a run that failed, of the kind of its cause, with where the partial copy is."""
    partial = f", the partial copy is {kept}" if kept else ""
    kind = type(error.__cause__) if isinstance(error.__cause__, LostRunError) else NotebookError
    return kind(f"{error}; earlier results are untouched{partial}")


def _made(
    source: Path, parameters: Mapping[str, Any], staging: Path, execute: Callable[[], None], strict: bool
) -> tuple[dict[str, Any], float]:
    """Execute a notebook; the provenance of its result, and how many seconds it took.

    Strictly, code that ran and that no hash covers is an error: the page's, not the run's, so that no long
    run is lost by it.
    """
    before = inputs(source, parameters)
    started, clock = datetime.now(UTC), time.monotonic()
    try:
        execute()
    except NotebookError as error:
        raise _FailedError(str(error)) from error
    seconds = time.monotonic() - clock
    traced, shown = (Traced.read(trace_file(staging), part) for part in (COMPUTE, SHOW))
    for one, part in ((traced, COMPUTE), (shown, SHOW)):
        check_covered(source, parameters, one if strict else replace(one, functions=frozenset()), part)
    check_needed(source, parameters, traced.asked)
    device, gpu = _device(staging / f"{source.stem}.json"), Traced.gpu(trace_file(staging))
    measured = Measured(started, seconds, device, gpu)
    files = file_hashes(traced.files)
    made = provenance(with_files(before, files), files, measured)
    if traced.functions:
        made["ran"] = traced.names
    made["records"] = record_hashes(source.stem, staging)
    made["shown"] = {
        "hash": shown_hash(source, parameters, shown.files, made["records"]),
        "files": sorted(shown.files),
    }
    return made, seconds


def check_covered(source: Path, parameters: Mapping[str, Any], traced: Traced, part: str = COMPUTE) -> None:
    """Whether a page's hash covers what its run called and asked for.

    Args:
        source: the notebook.
        parameters: as used.
        traced: what cells of one kind did.
        part: which kind.

    Raises:
        NotebookError: if not, since a change of it would pass for none.
    """
    graph = dependencies(paths.checkout() / "src" / "palimpsest")
    found, _ = reach(notebook_code(source, graph.package, part), parameters)
    missed = traced.uncovered(found)
    if missed:
        raise NotebookError(
            f"{source.stem} ran {', '.join(missed)}, which its hash does not cover: call what it needs by a "
            "name that is imported, not by a text"
        )
    missed = sorted(key for key in traced.asked if not found.vocabulary.may_ask(key))
    if missed:
        raise NotebookError(
            f"{source.stem} asked for the settings of {', '.join(missed)}, which its hash does not cover: "
            "spell the name out in the notebook or in a parameter"
        )


def _device(record: Path) -> str:
    return str(records.read(record)["facts"].get("device", "cpu")) if record.is_file() else "cpu"


def _files(stem: str, folder: Path) -> dict[str, Path]:
    """A notebook's result files but its provenance, by name."""
    copy = folder / f"{stem}.ipynb"
    return {path.name: path for path in [*([copy] if copy.is_file() else []), *record_files(stem, folder)]}


def _move_into_place(stem: str, staging: Path, target: Path, made: Mapping[str, Any]) -> bool:
    """Replace the earlier result: records, the copy that shows them, the provenance that vouches for them."""
    new, old = _files(stem, staging), _files(stem, target)
    changed = new.keys() != old.keys() or any(
        path.read_bytes() != old[name].read_bytes() for name, path in new.items()
    )
    for name in sorted(new, key=lambda name: name.endswith(".ipynb")):
        os.replace(new[name], target / name)
    for name in old.keys() - new.keys():
        old[name].unlink()
    before = read_provenance(stem, target)
    if changed or any(before.get(key) != made[key] for key in ("content_hash", "shown")):
        write_provenance(stem, target, made)
    return changed


def refresh_sources(name: str | Path, profile: str) -> bool:
    """Bring the present source into a result that stands for it; says whether it differed."""
    source = find_notebook(name)
    path = results_of(profile) / source.name
    with locked(result_place(source.stem, path.parent)):
        executed = nbformat.read(path, as_version=4)
        renewed = with_current_sources(executed, nbformat.read(source, as_version=4), stands=True)
        if renewed is None or nbformat.writes(renewed) == nbformat.writes(executed):
            return False
        write_atomically(path, (nbformat.writes(renewed) + "\n").encode())
    return True


def times_something(source: Path) -> bool:
    """Whether a cell is tagged ``timed``: other work at the same time would change what it finds."""
    cells = nbformat.read(source, as_version=4).cells
    return any(TIMED in cell.metadata.get("tags", []) for cell in cells)


def run_all(
    profile: str, *, force: bool = False, gpu: str | None = None, jobs: int = 1, anyway: bool = False
) -> list[str]:
    """Run every notebook that is stale, each in a process of its own; returns the names run.

    Args:
        profile: its name.
        force: run fresh ones too.
        gpu: passed on to each run.
        jobs: notebooks at once. They share the cores (``OMP_NUM_THREADS``, where it is not set). A notebook
            that times something runs alone, after the others.
        anyway: run also what a plan says is too large for the memory of its GPU.

    Pages that the profile leaves out, or that its model lacks settings for, are named and skipped.

    Raises:
        NotebookError: after the last notebook, if any failed; another call resumes with those.
        LostRunError: if want of memory, or a lost GPU or kernel, was the cause of all of them.
    """
    setting = load_profile(profile)
    check_profile(setting)
    check_gpu(gpu)
    print(f"profile {setting.name}: {setting.description} ({setting.machine})", flush=True)
    names, begun = known_notebooks(), time.monotonic()

    def one(name: str) -> int | None:
        """Exit status of a run; None where none was needed."""
        skipped = left_out(setting, find_notebook(name))
        reason = "forced" if force else stale(name, setting)
        elapsed = time.strftime("%H:%M:%S", time.gmtime(time.monotonic() - begun))
        line = f"notebook {names.index(name) + 1} of {len(names)}, elapsed {elapsed}: {name}"
        if skipped:
            print(f"{line} is {skipped}", flush=True)
            return None
        if reason is None:
            renewed = refresh_sources(name, profile)
            print(f"{line} is up to date{' (its source was renewed)' if renewed else ''}", flush=True)
            return None
        print(f"{line} ({reason})", flush=True)
        command = [sys.executable, "-m", "palimpsest.cli", "run", name, "--profile", profile]
        command += [*(() if gpu is None else ("--gpu", gpu)), *(("--anyway",) if anyway else ())]
        return in_own_process(command, jobs)

    if jobs == 1:
        codes = [one(name) for name in names]
    else:
        alone = [name for name in names if times_something(find_notebook(name))]
        together = [name for name in names if name not in alone]
        with ThreadPoolExecutor(jobs) as pool:
            found = dict(zip(together, pool.map(one, together), strict=True))
        codes = [found[name] if name in found else one(name) for name in names]
    ran = [name for name, code in zip(names, codes, strict=True) if code == 0]
    failed = [name for name, code in zip(names, codes, strict=True) if code]
    later = all(code in (None, 0, LOST, FULL) for code in codes)
    elapsed = time.strftime("%H:%M:%S", time.gmtime(time.monotonic() - begun))
    print(f"{len(names)} notebooks, {len(ran)} run, {len(failed)} failed, {elapsed}", flush=True)
    if failed:
        kind, mend = (LostRunError, "") if later else (NotebookError, "mend the cause and ")
        raise kind(f"failed: {', '.join(failed)}; the messages are above; {mend}run the same command again")
    return ran
