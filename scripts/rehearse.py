"""Run every page of the GPU profiles on tiny random models and a double of the device: ``make rehearse``.

The models are those of `tests.rehearsal`. A page's tensors are on the double of `tests.device_double`, which
computes on the CPU and refuses what a GPU refuses. Each page of each profile is run in a fork of a process
that has imported everything, and each page once in a kernel by papermill alone.

What is shown is that the code of a page runs there from end to end, and nothing of its results: where a page
says of a random model's numbers that it cannot go on, the share of its cells that ran is recorded.
"""

import ast
import json
import multiprocessing
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import matplotlib as mpl
import torch
import typer
from IPython.core.interactiveshell import InteractiveShell
from matplotlib import pyplot as plt
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook

from palimpsest.book.profiles import load_profile, parameters_for
from palimpsest.book.staleness import inputs
from palimpsest.cache import digest
from palimpsest.files import as_json, file_sha256, write_atomically
from tests.device_double import double
from tests.rehearsal import REHEARSED, ROOT, environment, made_easy, room

fork = multiprocessing.get_context("fork")
LIMIT = 900
"""Seconds after which a page has failed."""
REST = "laptop"
"""Profile as of which pages are rehearsed that are in none for a GPU."""
FOUND_WANTING = ("ScoreError", "DataError")
"""Errors by which a page says that it cannot use a random model's numbers."""


@dataclass(frozen=True)
class Outcome:
    """One page of one profile.

    Attributes:
        profile: name.
        page: name.
        by: ``fork``, of a process that has imported everything, or ``papermill``, in a kernel.
        status: ``ran``, ``wanting`` or ``failed``.
        cells: share of the page's cells of code that ran.
        seconds: of the run.
        said: last line of an error.
        code: hash of all that the run is made by: `code_of`.
    """

    profile: str
    page: str
    by: str
    status: str
    cells: float
    seconds: float
    said: str = ""
    code: str = ""


class Unasserted(ast.NodeTransformer):
    """Takes out what a page asserts of a model's numbers; in a kernel PYTHONOPTIMIZE does."""

    def visit_Assert(self, node: ast.Assert) -> ast.AST:
        """Nothing in the place of an assertion."""
        return ast.copy_location(ast.Pass(), node)


def in_a_fork(profile: str, page: str, where: Path) -> None:
    """Run the cells of a page in this process, a fork of one that has imported everything; never returns.

    What became of it is left in ``<page>.json``.
    """
    os.chdir(where)
    os.environ |= environment(where) | {"PALIMPSEST_RESULTS": str(where / "results" / profile)}
    with (where / f"{page}.log").open("w") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    source = ROOT / "notebooks" / f"{page}.ipynb"
    given = parameters_for(load_profile(profile), source)
    notebook = parameterize_notebook(load_notebook_node(str(source)), given)
    shell, said, ran = InteractiveShell.instance(), "", 0
    shell.ast_transformers.append(Unasserted())
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    with double():
        for text in sources:
            found = shell.run_cell(text)
            error = found.error_before_exec or found.error_in_exec
            if error is not None:
                said = f"{type(error).__name__}: {str(error).strip() or text.strip().splitlines()[0]}"
                break
            plt.close("all")
            ran += 1
    (where / f"{page}.json").write_text(json.dumps([ran / len(sources), said]))
    os._exit(0)


def by_papermill(profile: str, page: str, where: Path) -> None:
    """The same in a kernel by papermill alone, with the parameters that `palimpsest parameters` prints."""
    folder = where / "by papermill" / page
    folder.mkdir(parents=True)
    about: Any = {"env": environment(where), "cwd": where, "text": True}
    asked = [sys.executable, "-m", "palimpsest.cli", "parameters", page, "--profile", profile]
    with (folder / "parameters.yaml").open("w") as file:
        subprocess.run(asked, stdout=file, check=True, **about)
    source, made = str(ROOT / "notebooks" / f"{page}.ipynb"), folder / "made.ipynb"
    options = ["-f", str(folder / "parameters.yaml"), "--cwd", str(folder), "--no-progress-bar"]
    command = [sys.executable, "-m", "papermill", source, str(made), *options]
    done = subprocess.run(command, capture_output=True, timeout=LIMIT - 10, **about)  # ends its kernel too
    text = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
    (folder / "log").write_text(text)
    lines = [line for line in text.splitlines() if re.match(r"\w+(Error|Exception|Interrupt)\b", line)]
    said = (lines or ["no message"])[-1] if done.returncode else ""
    cells = [cell for cell in json.loads(made.read_text("utf-8"))["cells"] if cell["cell_type"] == "code"]
    begun = sum(cell["execution_count"] is not None for cell in cells) - bool(said)
    (where / f"{page} by papermill.json").write_text(json.dumps([begun / len(cells), said]))
    os._exit(0)


@dataclass
class Run:
    """A page that is being rehearsed, in a process of its own."""

    profile: str
    page: str
    by: str
    where: Path
    begun: float = 0.0
    process: Any = None

    @property
    def named(self) -> tuple[str, str, str]:
        """What tells it from others."""
        return self.profile, self.page, self.by

    def start(self) -> None:
        """Begin."""
        work = in_a_fork if self.by == "fork" else by_papermill
        self.begun = time.monotonic()
        self.process = fork.Process(target=work, args=(self.profile, self.page, self.where))
        self.process.start()

    def outcome(self) -> Outcome | None:
        """What became of it; None while it runs."""
        seconds = round(time.monotonic() - self.begun, 1)
        if self.process.is_alive() and seconds < LIMIT:
            return None
        if self.process.is_alive():
            self.process.kill()
        self.process.join()
        file = self.where / (f"{self.page}.json" if self.by == "fork" else f"{self.page} by papermill.json")
        share, said = json.loads(file.read_text()) if file.is_file() else (0.0, f"killed after {seconds} s")
        wanting = said.startswith(FOUND_WANTING)
        status = ("wanting" if wanting else "failed") if said else "ran"
        share, code = round(share, 3), code_of(self.profile, self.page)
        return Outcome(self.profile, self.page, self.by, status, share, seconds, said[:300], code)


def runs(names: Sequence[str], pages: Sequence[str], where: Path, papermill: bool = True) -> Iterator[Run]:
    """All runs: every page of every profile, and every page on one profile by papermill too."""
    rooms = []
    for name in names:
        folder = where / name
        folder.mkdir()
        with fork.Pool(1) as pool:  # teaching a model uses autograd, which must not run before a fork
            rooms.append((*pool.apply(room, (name, folder)), folder))
    by_kernel = in_turn({profile: listed for profile, listed, _ in rooms}) if papermill else {}
    for profile, listed, folder in rooms:
        for page in listed:
            if not pages or page in pages:
                yield Run(profile, page, "fork", folder)
                if by_kernel.get(page) == profile:
                    yield Run(profile, page, "papermill", folder)


def rest(names: Sequence[str]) -> list[str]:
    """Pages that none of some profiles has, and a laptop's has."""
    had = {page for name in names for page in load_profile(name).listed}
    return [page for page in load_profile(REST).listed if page not in had]


def in_turn(listed: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Page -> the profile, of those that have the page, under which a kernel runs it; profiles take turns."""
    found = {}
    for at, page in enumerate(sorted({page for pages in listed.values() for page in pages})):
        able = [profile for profile, pages in listed.items() if page in pages]
        found[page] = able[at % len(able)]
    return found


def outcomes(waiting: Sequence[Run], jobs: int) -> Iterator[Outcome]:
    """Make runs, a few at once."""
    left, going = list(waiting), list[Run]()
    while left or going:
        while left and len(going) < jobs:
            going.append(left.pop(0))
            going[-1].start()
        time.sleep(0.2)
        for one in list(going):
            found = one.outcome()
            if found is not None:
                going.remove(one)
                cells = f"{found.cells:.0%} of the cells, {found.seconds:.0f} s"
                line = f"{found.profile} {found.page} by {found.by}: {found.status}, {cells}. {found.said}"
                print(line, flush=True)
                yield found


def today() -> str:
    """The time, for the record."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@cache
def code_of(profile: str, page: str) -> str:
    """Hash of what a rehearsal of a page runs: the code and settings that it reaches, and the rehearsal."""
    source = ROOT / "notebooks" / f"{page}.ipynb"
    parameters = parameters_for(load_profile(profile.removeprefix(REHEARSED)), source)
    own = [
        *(ROOT / "tests" / name for name in ("rehearsal.py", "device_double.py", "tiny.py")),
        Path(__file__),
    ]
    parts = inputs(source, parameters, root=ROOT).parts
    return digest(
        [{name: parts[name] for name in ("code", "parameters", "settings")}, *map(file_sha256, own)]
    )


def kept(out: Path | None) -> list[Outcome]:
    """Outcomes on file that are of the present code and did not fail."""
    content = json.loads(out.read_text("utf-8")) if out is not None and out.is_file() else {}
    found = [Outcome(**one) for one in content.get("outcomes", [])]
    return [one for one in found if one.status != "failed" and one.code == code_of(one.profile, one.page)]


def main(
    profile: Annotated[list[str] | None, typer.Option(help="Default: all that are for a GPU.")] = None,
    page: Annotated[list[str] | None, typer.Option(help="Default: all pages of a profile.")] = None,
    papermill: Annotated[bool, typer.Option(help="Run each page by papermill too.")] = True,
    jobs: Annotated[int, typer.Option(min=1)] = 2,
    out: Annotated[Path | None, typer.Option(help="File for the outcomes.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Folder for rooms and logs.")] = None,
) -> None:
    """Rehearse pages; exit status 1 if one fails. What is in OUT and of the present code is not run again."""
    mpl.use("Agg")
    torch.set_num_threads(1)
    made_easy()
    names = profile or sorted(path.stem for path in (ROOT / "config" / "profiles").glob("gpu-*.yaml"))
    found = kept(out)
    with tempfile.TemporaryDirectory() as temporary:
        where = keep or Path(temporary)
        where.mkdir(parents=True, exist_ok=True)
        done = {(one.profile, one.page, one.by) for one in found}
        asked = [*runs(names, page or [], where, papermill)]
        if not profile:
            own = [one for one in rest(names) if not page or one in page]
            asked += runs([REST], own, where, papermill) if own else []
        waiting = [run for run in asked if run.named not in done]
        for one in outcomes(waiting, jobs):
            found.append(one)
            if out is not None:
                rows = [vars(row) for row in sorted(found, key=lambda row: (row.profile, row.page, row.by))]
                write_atomically(out, as_json({"on": today(), "outcomes": rows}))
    failed = [one for one in found if one.status == "failed"]
    print(f"{len(found)} runs, {len(failed)} failed")
    raise typer.Exit(1 if failed else 0)


if __name__ == "__main__":
    typer.run(main)
