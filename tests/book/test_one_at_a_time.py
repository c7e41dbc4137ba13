"""One process at a time writes a result; the second waits or names the first, what the killed left goes."""

import os
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from palimpsest.book import build, execution, runner
from palimpsest.book.build import build as build_book
from palimpsest.book.confirm import confirm
from palimpsest.book.provenance import result_place
from palimpsest.book.render import render
from palimpsest.book.runner import run_notebook
from palimpsest.book.standing import stale
from palimpsest.errors import BookError, BusyError, ResourceError
from palimpsest.files import as_json, locked, write_atomically
from tests.clone import Clone, make_clone
from tests.test_locks import other_process
from tests.workbench.edits import Killed


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    return make_clone(tmp_path / "clone", monkeypatch)


@pytest.fixture
def quick(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> Clone:
    """A clone where a run takes no time."""

    def made(source: Path, staging: Path, parameters: dict[str, Any], gpu: str | None) -> None:
        record = {"schema": 1, "notebook": source.stem, "facts": {}, "values": {}, "parameters": parameters}
        write_atomically(staging / f"{source.stem}.json", as_json(record))
        write_atomically(staging / f"{source.stem}.ipynb", source.read_bytes())
        write_atomically(execution.trace_file(staging), as_json({}))

    monkeypatch.setattr(runner, "papermill_run", made)
    return clone


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_result_in_use_is_named(quick: Clone) -> None:
    run_notebook("01_tiny", "laptop")
    folder = quick.root / "results" / "laptop"
    before = {name: (folder / name).read_bytes() for name in names(folder)}
    with other_process(result_place("01_tiny", folder)) as process:
        message = rf"/results/laptop/01_tiny is in use by process {process.pid} on .* since .*; wait until"
        with pytest.raises(BusyError, match=message):
            run_notebook("01_tiny", "laptop", wait=0)
    assert {name: (folder / name).read_bytes() for name in names(folder) if "lock" not in name} == before
    run_notebook("01_tiny", "laptop", wait=0)
    assert names(folder) == sorted(before)


@pytest.mark.parametrize("act", [render, confirm])
def test_render_and_confirm_hold_the_lock(
    act: Callable[[str, str], object], quick: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_notebook("01_tiny", "laptop")
    held: list[Path] = []

    def noted(path: Path, wait: float = -1) -> Any:
        held.append(path)
        return locked(path, wait)

    monkeypatch.setattr(f"{act.__module__}.locked", noted)
    act("01_tiny", "laptop")
    assert held == [quick.root / "results" / "laptop" / "01_tiny"]


def test_a_run_killed_while_its_result_is_moved_is_made_again(
    quick: Clone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No provenance vouches for a mixture, and nothing of the killed one is left."""
    run_notebook("01_tiny", "laptop")
    folder = quick.root / "results" / "laptop"
    wanted = names(folder)
    record = (folder / "01_tiny.json").read_bytes()
    for at in range(1, 20):
        shutil.rmtree(folder)
        moves, replace = count(1), os.replace

        def dying(*arguments: Any, moves=moves, at=at, replace=replace) -> None:  # type: ignore[no-untyped-def]
            if next(moves) == at:
                raise Killed
            replace(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(os, "replace", dying)
            patched.setattr(Path, "unlink", lambda *_, **__: None)
            patched.setattr(runner.tempfile.TemporaryDirectory, "cleanup", lambda self: None)
            patched.setattr(runner.tempfile.TemporaryDirectory, "__exit__", lambda *_: None)
            try:
                run_notebook("01_tiny", "laptop")
                died = False
            except Killed:
                died = True
                assert stale("01_tiny", "laptop")
        run_notebook("01_tiny", "laptop")
        assert names(folder) == wanted
        assert (folder / "01_tiny.json").read_bytes() == record
        assert stale("01_tiny", "laptop") is None
        if not died:
            break
    assert at > 4


def test_two_books_are_built_one_after_the_other(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[Path] = []

    def noted(path: Path, wait: float = -1) -> Any:
        held.append(path)
        return locked(path, wait)

    def full(profile: str) -> None:
        raise OSError(28, "No space left on device", "book/_pages")

    monkeypatch.setattr(build, "locked", noted)
    monkeypatch.setattr(build, "assemble", full)
    with pytest.raises(
        BookError, match=r"the pages were not written: .*No space left .*book/_pages.*; free some"
    ):
        build_book("laptop")
    assert held == [clone.root / "book" / "_pages"]

    def read_only(profile: str) -> None:
        raise ResourceError("cannot write in there; choose another folder")

    monkeypatch.setattr(build, "assemble", read_only)
    with pytest.raises(ResourceError, match="choose another folder"):
        build_book("laptop")
