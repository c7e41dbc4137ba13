"""Every writer on a disk that is full or read-only: old or new state, and file, cause and remedy named."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch

from palimpsest import cache
from palimpsest.algebra.ledger import EditLedger
from palimpsest.book.new_result import new_result
from palimpsest.book.provenance import write_provenance
from palimpsest.editors.hypernetwork import Hypernetwork
from palimpsest.editors.sequential import SequenceState
from palimpsest.errors import ResourceError
from palimpsest.files import new_folder, replacing, write_atomically
from palimpsest.memory import shards
from palimpsest.memory.moments import SecondMoment
from palimpsest.memory.shard_files import Keys, Shard
from palimpsest.memory.shards import sum_shard
from palimpsest.network.apply import WeightDelta
from palimpsest.network.codebook import Codebook
from palimpsest.network.wraps import LayerWrap, Replaced
from palimpsest.results.records import STAGING, Results
from palimpsest.studies.sequence_file import save_state
from palimpsest.training import runs
from palimpsest.workbench.commands import replace_fact, undo
from palimpsest.workbench.edit_file import save_edit
from palimpsest.workbench.work import Work
from palimpsest.workbench.wrap_file import save_wrap
from tests.disk import FULL, READ_ONLY, TOO_LARGE, each_failure, filling
from tests.editing import stub_texts, texts
from tests.problems import gaussian
from tests.tiny import tiny_model
from tests.workbench.edits import files_of, tiny_folder, written

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")


MEMORY = LayerWrap(1, Codebook(torch.ones(1, 3), torch.ones(1), ("a",)), Replaced(torch.ones(1, 3)), base="b")


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


def a_network(path: Path) -> None:
    Hypernetwork((0, 1), (3, 4), 2).save(path, "base")


def a_checkpoint(path: Path) -> None:
    network = Hypernetwork((0, 1), (3, 4), 2)
    run = runs.Run(network, torch.optim.Adam(network.parameters()), best=network.state_dict())
    runs.keep(run, path, "mark")


def a_shard(path: Path) -> None:
    model = tiny_model("gpt2")
    keys = Keys.of(model, (0,), 32, texts(), window=16, batch_size=2)
    sum_shard(model, keys, Shard(1, 1), texts(), path.parent)


def sums_of_a_shard(path: Path) -> None:
    keys = Keys("model", "float32", (0,), 32, 16, 2, "texts", "float64")
    shards._save(path, keys, range(2), {0: SecondMoment(torch.eye(3).double(), 3)}, 1)


def a_state(path: Path) -> None:
    ledger = EditLedger(gaussian(0, 3, 4).float(), torch.eye(4), 0.5)
    ledger.insert(gaussian(1, 4, 2), gaussian(2, 3, 2), ["a", "b"])
    weights = {0: gaussian(3, 3, 4)}
    save_state(SequenceState(ledgers={0: ledger}, weights=weights, steps=1), path.parent / "state")


def a_result(path: Path) -> None:
    """In a checkout that holds nothing but a table of contents."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALIMPSEST_ROOT", str(path.parent))
        new_result("01_mine", "Mine")


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
    "an edit without weights": lambda path: save_wrap(path, MEMORY, "tiny"),
    "a trained network": a_network,
    "a checkpoint of a training": a_checkpoint,
    "a shard": a_shard,
    "sums of an interrupted shard": sums_of_a_shard,
    "a state of a sequence": a_state,
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


@pytest.mark.parametrize("name", [name for name in WRITERS if name != "a shard"])  # it writes to a terminal
def test_a_write_that_is_cut_short(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its first byte, its last, and in between: what was there before stays, and nothing else."""
    room, act = tmp_path / "room", WRITERS[name]
    path = room / "thing.safetensors"
    monkeypatch.setenv("PALIMPSEST_CACHE", str(room))
    monkeypatch.setenv(STAGING, str(room))
    room.mkdir()
    act(path)
    size = max(place.stat().st_size for place in room.rglob("*") if place.is_file())
    for most in sorted({0, 1, size // 2, size - 1}):
        shutil.rmtree(room)
        room.mkdir()
        cache._KNOWN.clear()
        with filling(most), pytest.raises(ResourceError) as raised:
            act(path)
        assert named(raised.value, TOO_LARGE, room), raised.value
        left = {place.name for place in room.rglob("*") if place.is_file()}
        assert not [one for one in left if one.startswith(".")], left
        act(path)


def test_a_step_that_is_cut_short_leaves_the_ledger_as_it_was(tmp_path: Path) -> None:
    """Not a byte of it remains."""
    path = tmp_path / "ledger.safetensors"

    def saved() -> EditLedger:
        path.unlink(missing_ok=True)
        ledger = EditLedger(gaussian(0, 3, 4).float(), torch.eye(4), 0.5)
        ledger.insert(gaussian(1, 4, 2), gaussian(2, 3, 2), ["a", "b"])
        ledger.save(path)
        ledger.insert(gaussian(3, 4, 1), gaussian(4, 3, 1), ["c"])
        return ledger

    ledger, before = saved(), path.read_bytes()
    ledger.save(path)
    whole = path.read_bytes()
    assert whole.startswith(before)
    for most in (len(before), len(before) + 1, (len(before) + len(whole)) // 2, len(whole) - 1):
        ledger = saved()
        with filling(most), pytest.raises(ResourceError) as raised:
            ledger.save(path)
        assert named(raised.value, TOO_LARGE, tmp_path), raised.value
        assert path.read_bytes() == before
        ledger.save(path)
        assert EditLedger.load(path).ids == ("a", "b", "c")


def test_a_new_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All its files or none, so that the same command goes through."""
    contents = tmp_path / "book" / "_toc.yml"
    for name in ("notebooks", "book", "tests/book", "config/profiles"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "pyproject.toml").touch()
    shutil.copy(Path(__file__).parents[1] / "book" / "_toc.yml", contents)
    before = contents.read_bytes()
    failures = 0
    for error in each_failure(tmp_path, FULL, lambda: a_result(tmp_path / "x"), monkeypatch):
        files = {place.name for place in tmp_path.rglob("*") if place.is_file()} - {"pyproject.toml"}
        if error is None:
            break
        failures += 1
        assert named(error, FULL, tmp_path), error
        assert files == {"_toc.yml"}
        assert contents.read_bytes() == before
    assert failures >= 3
    assert files == {"_toc.yml", "01_mine.ipynb", "test_page_01_mine.py"}


@pytest.mark.slow
@pytest.mark.parametrize("cause", [FULL, READ_ONLY], ids=["full", "read-only"])
@pytest.mark.parametrize("what", ["edit", "edit on", "undo", "replace"])
@pytest.mark.parametrize("step", [STEP, pytest.param(1, marks=pytest.mark.nightly)])
def test_an_edited_folder(
    what: str, cause: OSError, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
        "replace": lambda: replace_fact(out, "1", "other"),
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
    for error in each_failure(room, cause, acts[what], monkeypatch, step):
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
