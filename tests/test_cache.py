"""The disk cache: nothing half-written, nothing mixed up, damage named."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from torch import Tensor

from palimpsest import cache
from palimpsest.cache import digest, empty, keep, missing, read, seal_of, stands, table, tensors, texts
from palimpsest.errors import ResourceError
from palimpsest.files import file_sha256, lock_file
from tests.test_locks import other_process

pytestmark = pytest.mark.usefixtures("own_cache")


def only(folder: Path) -> Path:
    """The one file in a folder; temporary files and locks would be more. Its checksum stands beside it."""
    files = {p for p in folder.rglob("*") if p.is_file()}
    (path,) = (p for p in files if p.suffix != ".sha256")
    assert files == {path, seal_of(path)}
    return path


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def value() -> dict[str, Tensor]:
    return {"x": torch.arange(6.0).reshape(2, 3).T}


def never() -> dict[str, Tensor]:
    raise AssertionError("computed although it is on disk")


def test_a_value_is_computed_once() -> None:
    first = tensors("kind", {"a": 1, "b": [2, 3]}, value)
    again = tensors("kind", {"b": [2, 3], "a": 1}, never)
    assert torch.equal(first["x"], value()["x"])
    assert torch.equal(again["x"], value()["x"])
    other = tensors("kind", {"a": 1, "b": [3, 2]}, lambda: {"x": torch.ones(1)})
    assert torch.equal(other["x"], torch.ones(1))


def test_an_error_while_computing_stores_nothing(own_cache: Path) -> None:
    with pytest.raises(AssertionError, match="computed although"):
        tensors("kind", {"a": 1}, never)
    assert files_in(own_cache) == []
    assert torch.equal(tensors("kind", {"a": 1}, value)["x"], value()["x"])


def test_digest_depends_on_values_and_not_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": {"c": 2, "d": 3}}) == digest({"b": {"d": 3, "c": 2}, "a": 1})
    different: list[Any] = [
        {"a": 1},
        {"a": 2},
        {"a": "1"},
        {"b": 1},
        {"a": [1]},
        {"a": None},
        {"a": 1, "b": 1},
    ]
    assert len({digest(v) for v in different}) == len(different)
    assert digest(("ä", 1.5)) == digest(["ä", 1.5])


def flipped(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)


KINDS: dict[str, Callable[[Callable[[], Any]], Any]] = {
    "tensors": lambda made: tensors("kind", {"a": 1}, lambda: {"x": made() or torch.arange(500.0)})[
        "x"
    ].tolist(),
    "texts": lambda made: texts("kind", {"a": 1}, lambda: [made() or "a text", "another"]),
    "table": lambda made: table("kind", {"a": 1}, COLUMNS, lambda: made() or ROWS).to_csv(),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("damage", ["first bit", "a bit inside", "last bit", "cut", "empty", "of another"])
def test_a_changed_entry_is_computed_again_with_a_line_saying_so(
    kind: str, damage: str, own_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: list[int] = []
    first = KINDS[kind](lambda: calls.append(1))
    path = only(own_cache)
    content = path.read_bytes()
    bits = {"first bit": 0, "a bit inside": 4 * len(content) + 3, "last bit": 8 * len(content) - 1}
    if damage in bits:
        flipped(path, bits[damage])
    else:
        path.write_bytes(
            {"cut": content[: len(content) // 2], "empty": b"", "of another": content.replace(b"a", b"b")}[
                damage
            ]
        )
    assert path.read_bytes() != content
    assert KINDS[kind](lambda: calls.append(1)) == first
    assert len(calls) == 2
    line = f"palimpsest: cache file {path} is not as it was written (its SHA-256 differs)"
    assert capsys.readouterr().err == f"{line}; it is computed again\n"
    assert only(own_cache).read_bytes() == content
    assert KINDS[kind](never) == first


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30)
@given(bit=st.integers(0, 8 * 2**10))
def test_every_bit_counts(bit: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.unlink(missing_ok=True)
    keep(path, lambda: bytes(range(256)) * 4, lambda content, place: place.write_bytes(content))
    assert stands(path)
    flipped(path, bit)
    assert not stands(path)


def test_a_file_is_hashed_once_as_long_as_it_is_the_same(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Large files are read once to be checked, and not at all by the process that wrote them."""
    hashed: list[Path] = []

    def counted(path: Path) -> str:
        hashed.append(path)
        return file_sha256(path)

    monkeypatch.setattr(cache, "file_sha256", counted)
    for _ in range(3):
        tensors("kind", {"a": 1}, value)
    assert len(hashed) == 1  # as it was written
    cache._KNOWN.clear()  # as in another process
    for _ in range(3):
        tensors("kind", {"a": 1}, never)
    assert hashed[1:] == [only(own_cache)]


def test_an_entry_of_an_earlier_version_gets_a_checksum(own_cache: Path) -> None:
    tensors("kind", {"a": 1}, value)
    path = only(own_cache)
    seal_of(path).unlink()
    cache._KNOWN.clear()
    assert torch.equal(tensors("kind", {"a": 1}, never)["x"], value()["x"])
    assert seal_of(path).read_text() == file_sha256(path)
    seal_of(path).unlink()
    cache._KNOWN.clear()
    path.write_bytes(path.read_bytes()[:40])  # cut short before it had one
    with pytest.raises(ResourceError, match=rf"{path.name} is damaged .*delete it and it will be computed"):
        tensors("kind", {"a": 1}, never)
    path.unlink()
    assert torch.equal(tensors("kind", {"a": 1}, value)["x"], value()["x"])


def test_only_what_is_missing_is_made_and_what_a_killed_process_left_goes(own_cache: Path) -> None:
    places = [own_cache / name for name in "abc"]
    keep(places[1], lambda: b"x", lambda content, place: place.write_bytes(content))
    for place in (f".a-{'0' * 32}", f".a-{'0' * 32}.sha256"):
        (own_cache / place).write_text("half")
    with missing(places) as made:
        assert made == [places[0], places[2]]
        assert {path.name for path in own_cache.iterdir()} == {
            *("b", "b.sha256", ".a.palimpsest-lock", ".c.palimpsest-lock")
        }
    assert {path.name for path in own_cache.iterdir()} == {"b", "b.sha256"}


COMPUTE = """
import sys, time
from palimpsest.cache import texts
def compute():
    with open(sys.argv[1], "a") as log:
        log.write("computed\\n")
    time.sleep(0.5)
    return ["text"]
print(texts("kind", {"a": 1}, compute))
"""


@pytest.mark.slow
def test_the_lock_that_a_killed_process_left_of_a_finished_entry_goes(own_cache: Path) -> None:
    """Killed between the file's last name and the release of its lock."""
    once = tensors("kind", {"a": 1}, value)
    path = only(own_cache)
    lock_file(path).write_text("process 1 on a machine that was switched off")
    again = tensors("kind", {"a": 1}, dict)
    assert torch.equal(again["x"], once["x"])
    assert only(own_cache) == path


def test_the_lock_of_a_running_process_stays(own_cache: Path) -> None:
    tensors("kind", {"a": 1}, value)
    path = only(own_cache)
    with other_process(path):
        tensors("kind", {"a": 1}, dict)
        assert lock_file(path).is_file()


def test_of_two_processes_that_need_an_entry_one_computes_it(own_cache: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-c", COMPUTE, str(tmp_path / "log")]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0] for process in both] == ["('text',)\n"] * 2
    assert (tmp_path / "log").read_text() == "computed\n"
    only(own_cache)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="nothing here"):
        read(tmp_path / "nothing here")


FULL: list[tuple[str, Exception]] = [
    ("os.replace", OSError(28, "No space left on device")),
    ("safetensors.torch.save_file", SafetensorError("I/O error: No space left on device (os error 28)")),
]


@pytest.mark.parametrize(("function", "error"), FULL, ids=["move", "write"])
def test_a_full_disk(
    function: str, error: Exception, own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The library that writes tensors has an error of its own for a full disk."""
    tensors("kind", {"a": 1}, value)
    before = only(own_cache).read_bytes()

    def full(*args: Any, **kwargs: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(function, full)
        with pytest.raises(ResourceError, match=r"could not write .*No space left.*set PALIMPSEST_CACHE"):
            tensors("kind", {"a": 2}, value)
    assert only(own_cache).read_bytes() == before


def test_the_cache_is_empty_for_a_moment(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was set before is set again, after an error too."""
    tensors("kind", {"a": 1}, value)

    def fails() -> None:
        with empty() as other:
            assert other != own_cache
            tensors("kind", {"a": 1}, never)

    with pytest.raises(AssertionError, match="computed although"):
        fails()
    assert torch.equal(tensors("kind", {"a": 1}, never)["x"], value()["x"])
    monkeypatch.delenv("PALIMPSEST_CACHE")
    with empty() as other:
        assert os.environ["PALIMPSEST_CACHE"] == str(other)
    assert "PALIMPSEST_CACHE" not in os.environ
    assert not other.exists()


# Tables.

COLUMNS = ("step", "name", "value")
ROWS: list[tuple[int, str, float]] = [(1, "größer", 0.5), (2, "nothing", float("nan")), (3, "tiny", 5e-324)]


def never_rows() -> Iterator[tuple[int, str, float]]:
    """As a run that stops on the way: its first rows are not kept."""
    yield ROWS[0]
    raise AssertionError("computed although it is on disk")


def test_a_table_is_computed_once_and_read_again(own_cache: Path) -> None:
    """With the columns in their order, as it was given, under a file of its kind."""
    first = table("runs", {"a": 1, "b": [2, 3]}, COLUMNS, lambda: iter(ROWS))
    again = table("runs", {"b": [2, 3], "a": 1}, COLUMNS, never_rows)
    pd.testing.assert_frame_equal(first, again)
    pd.testing.assert_frame_equal(first, pd.DataFrame(ROWS, columns=list(COLUMNS)), check_exact=True)
    assert only(own_cache).parent == own_cache / "runs"
    assert only(own_cache).suffix == ".parquet"


def test_tables_of_other_keys_and_kinds_are_other_tables(own_cache: Path) -> None:
    table("runs", {"a": 1}, COLUMNS, lambda: ROWS)
    for kind, key in (("runs", {"a": 2}), ("others", {"a": 1})):
        assert len(table(kind, key, COLUMNS, lambda: ROWS[:1])) == 1
    assert len(table("runs", {"a": 1}, COLUMNS, never_rows)) == 3


def test_a_table_without_rows_keeps_its_columns() -> None:
    for rows in (list, never_rows):
        found = table("runs", {"a": 1}, COLUMNS, rows)
        assert (list(found), len(found)) == (list(COLUMNS), 0)


def test_rows_that_do_not_fit_their_columns_are_not_kept(own_cache: Path) -> None:
    with pytest.raises(ValueError, match="2 columns passed, passed data had 3 columns"):
        table("runs", {"a": 1}, COLUMNS[:2], lambda: ROWS)
    assert files_in(own_cache) == []


def test_an_error_while_rows_are_computed_stores_no_table(own_cache: Path) -> None:
    with pytest.raises(AssertionError, match="computed although"):
        table("runs", {"a": 1}, COLUMNS, never_rows)
    assert files_in(own_cache) == []
    assert len(table("runs", {"a": 1}, COLUMNS, lambda: ROWS)) == 3


@pytest.mark.parametrize("function", ["os.replace", "pandas.DataFrame.to_parquet"], ids=["move", "write"])
def test_a_table_on_a_full_disk(function: str, own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows of an hour are lost, and the message says how not to lose them again."""
    table("runs", {"a": 1}, COLUMNS, lambda: ROWS)
    before = only(own_cache).read_bytes()

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(function, full)
        with pytest.raises(ResourceError, match=r"could not write .*No space left.*set PALIMPSEST_CACHE"):
            table("runs", {"a": 2}, COLUMNS, lambda: ROWS)
    assert only(own_cache).read_bytes() == before


def test_a_table_that_cannot_be_read_is_named(own_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table("runs", {"a": 1}, COLUMNS, lambda: ROWS)

    def unreadable(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", unreadable)
    with pytest.raises(ResourceError, match=r"\.parquet is damaged .*Permission denied.*delete it"):
        table("runs", {"a": 1}, COLUMNS, never_rows)


def test_texts_are_computed_once_and_read_again(own_cache: Path) -> None:
    first = texts("contexts", {"a": 1}, lambda: ["Ω and\nmore", ""])
    assert texts("contexts", {"a": 1}, never_rows) == first == ("Ω and\nmore", "")
    path = only(own_cache)
    seal_of(path).unlink()
    path.write_text('["cut')
    with pytest.raises(ResourceError, match=r"cache file .*\.json is damaged .*delete it"):
        texts("contexts", {"a": 1}, never_rows)
    path.unlink()
    path.mkdir()
    with pytest.raises(ResourceError, match=r"could not write .*\.json: .*directory"):
        texts("contexts", {"a": 1}, lambda: ["text"])
