"""Every writer on a disk that is full or read-only: old or new state, and file, cause and remedy named."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from palimpsest import cache
from palimpsest.algebra.ledger import EditLedger
from palimpsest.book.provenance import write_provenance
from palimpsest.errors import ResourceError
from palimpsest.files import new_folder, replacing, write_atomically
from palimpsest.memory.moments import SecondMoment
from palimpsest.network.apply import WeightDelta
from palimpsest.results.records import STAGING, Results
from palimpsest.workbench.commands import undo
from palimpsest.workbench.edit_file import save_edit
from palimpsest.workbench.work import Work
from tests.disk import FULL, READ_ONLY, each_failure
from tests.editing import stub_texts
from tests.problems import gaussian
from tests.workbench.edits import files_of, tiny_folder, written

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")


def by_replacing(path: Path) -> None:
    with replacing(path) as temporary:
        temporary.write_text("new")


def a_folder(path: Path) -> None:
    shutil.rmtree(path, ignore_errors=True)
    with new_folder(path) as staging:
        (staging / "file").write_text("new")


def a_record(path: Path) -> None:
    results = Results("page", "smoke", {})
    results.table("rows", pd.DataFrame({"a": [1.0]}))
    results.save()


def a_ledger(path: Path) -> None:
    ledger = EditLedger(gaussian(0, 3, 4).float(), torch.eye(4), 0.5)
    ledger.insert(gaussian(1, 4, 2), gaussian(2, 3, 2), ["a", "b"])
    ledger.save(path)
    ledger.insert(gaussian(3, 4, 1), gaussian(4, 3, 1), ["c"])
    ledger.save(path)


WRITERS: dict[str, Callable[[Path], object]] = {
    "a file": by_replacing,
    "a file at once": lambda path: write_atomically(path, b"new"),
    "a new folder": a_folder,
    "cached tensors": lambda path: cache.tensors("kind", {}, lambda: {"x": torch.ones(3)}),
    "cached texts": lambda path: cache.texts("kind", {}, lambda: ["text"]),
    "a cached table": lambda path: cache.table("kind", {}, ("a",), lambda: [(1,)]),
    "a second moment": lambda path: SecondMoment(torch.eye(3).double(), 3).save(path),
    "an edit": lambda path: save_edit(path, WeightDelta({0: torch.ones(2, 2)}), [], "tiny"),
    "a ledger": a_ledger,
    "a provenance": lambda path: write_provenance("page", path.parent, {"a": 1}),
    "a record": a_record,
}
STEP = 3
"""An edited folder is written by about a hundred operations: every third is made to fail."""
REMEDY = ("free some space", "choose another folder")


def named(error: BaseException | None, cause: OSError, room: Path) -> bool:
    """Whether an error is ours and says which file, why, and what to do."""
    text = str(error)
    return (
        isinstance(error, ResourceError)
        and str(room) in text
        and cause.strerror in text
        and any(remedy in text for remedy in REMEDY)
    )


@pytest.mark.parametrize("cause", [FULL, READ_ONLY], ids=["full", "read-only"])
@pytest.mark.parametrize("name", WRITERS)
def test_small_writers(name: str, cause: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room, act = tmp_path / "room", WRITERS[name]
    room.mkdir()
    path = room / "thing.safetensors"
    monkeypatch.setenv("PALIMPSEST_CACHE", str(room))
    monkeypatch.setenv(STAGING, str(room))
    shutil.rmtree(room)
    room.mkdir()
    failures = 0
    for error in each_failure(room, cause, lambda: act(path), monkeypatch):
        if error is None:
            break
        failures += 1
        assert named(error, cause, room), error
        if cause is FULL:  # what may only be read keeps what was there
            left = {place.name for place in room.rglob("*") if place.is_file()}
            assert not [one for one in left if one.startswith(".")], left
        for folder in room.iterdir():
            shutil.rmtree(folder) if folder.is_dir() else folder.unlink()
    assert failures >= 1
    act(path)


@pytest.mark.slow
@pytest.mark.parametrize("cause", [FULL, READ_ONLY], ids=["full", "read-only"])
@pytest.mark.parametrize("what", ["edit", "edit on", "undo"])
def test_an_edited_folder(what: str, cause: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is the old one, or the new one; the same command then goes through."""
    stub_texts(monkeypatch)
    base, room = tiny_folder(tmp_path / "base"), tmp_path / "room"
    begun, out = tmp_path / "begun" / "out", room / "out"
    written(base, begun, 3)
    written(base, tmp_path / "whole", 5)  # values are cached elsewhere
    acts: dict[str, Callable[[], object]] = {
        "edit": lambda: written(base, out, 3),
        "edit on": lambda: written(base, out, 5),
        "undo": lambda: undo(out, ["1"]),
    }
    room.mkdir()
    if what != "edit":
        shutil.copytree(begun, out)
    acts[what]()
    new = files_of(out)
    failures = 0

    def start() -> None:
        shutil.rmtree(room)
        room.mkdir()
        if what != "edit":
            shutil.copytree(begun, out)

    start()
    old = files_of(out) if out.exists() else {}
    for error in each_failure(room, cause, acts[what], monkeypatch, STEP):
        if error is not None:
            failures += 1
            assert named(error, cause, room), error
            assert (files_of(Work(out).current) if Work(out).current.exists() else {}) in (old, new)
            if not out.exists() or files_of(out) != new:
                acts[what]()
        assert files_of(out) == new
        undo(out, ["0"])  # the next command removes what could not be removed
        assert [path.name for path in room.iterdir()] == ["out"]
        start()
    assert failures >= 1
