"""Pages on a disk that is full or read-only: the old result or the new one, and no mixture passes for one."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from palimpsest.book import runner
from palimpsest.book.crate import write_crate
from palimpsest.book.provenance import record_hashes
from palimpsest.book.standing import standing
from palimpsest.errors import ResourceError
from palimpsest.files import LOCK_SUFFIX, as_json, write_atomically
from palimpsest.results.records import Results
from tests.clone import Clone, make_clone
from tests.disk import FULL, READ_ONLY, each_failure

ROOT = Path(__file__).parents[2]
CAUSES = pytest.mark.parametrize("cause", [FULL, READ_ONLY], ids=["full", "read-only"])


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    """With a result that stands."""
    made = make_clone(tmp_path / "clone", monkeypatch)
    for name in ("CITATION.cff", "LICENSE"):
        shutil.copyfile(ROOT / name, made.root / name)
    made.pretend_run()
    made.pretend_run(records=record_hashes("01_tiny", made.root / "results" / "laptop"))
    assert standing("01_tiny", "laptop").stands
    return made


def other_values(source: Path, staging: Path, *_: Any) -> None:
    """In place of an execution: a copy and a record with another value."""
    (staging / source.name).write_text(source.read_text("utf-8").replace("tiny result", "tiny new result"))
    results = Results("01_tiny", "laptop", {"seed": 2})
    results.value("doubled", 5.0, unit="count")
    write_atomically(staging / "01_tiny.json", as_json(results.as_dict()))


@CAUSES
def test_a_run(cause: OSError, clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run itself goes well; only what it leaves cannot be kept."""
    monkeypatch.setattr(runner, "papermill_run", other_values)
    folder, before, failures = clone.root / "results" / "laptop", clone.results(), 0
    for error in each_failure(folder, cause, lambda: runner.run_notebook("01_tiny", "laptop"), monkeypatch):
        if error is None:
            break
        failures += 1
        assert isinstance(error, ResourceError), error
        assert str(folder) in str(error)
        assert cause.strerror in str(error)
        left = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        left = {name: content for name, content in left.items() if not name.endswith(LOCK_SUFFIX)}
        new = b"5.0" in left["01_tiny.json"] and b"tiny new result" in left["01_tiny.ipynb"]
        assert left == before or new or not standing("01_tiny", "laptop").stands
        shutil.rmtree(folder)
        folder.mkdir()
        for name, content in before.items():
            (folder / name).write_bytes(content)
    assert failures >= 3
    assert standing("01_tiny", "laptop").stands
    assert b"5.0" in clone.results()["01_tiny.json"]
    assert {name for name in clone.results() if not name.endswith(LOCK_SUFFIX)} == before.keys()


@CAUSES
@pytest.mark.parametrize("name", ["results.zip", "results"])
def test_a_crate(
    name: str, cause: OSError, clone: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room, failures = tmp_path / "room", 0
    room.mkdir()
    for error in each_failure(room, cause, lambda: write_crate("laptop", room / name), monkeypatch):
        if error is None:
            break
        failures += 1
        assert isinstance(error, ResourceError), error
        assert cause.strerror in str(error)
        assert not (room / name).exists()
        if cause is FULL:
            assert list(room.iterdir()) == []
        shutil.rmtree(room)
        room.mkdir()
    assert failures >= 1
    assert (room / name).exists()
