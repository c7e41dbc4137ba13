"""The disk cache: nothing half-written, nothing mixed up, damage named."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from palimpsest.cache import digest, empty, file_sha256, new_folder, read, replacing, tensors
from palimpsest.errors import ResourceError

pytestmark = pytest.mark.usefixtures("own_cache")


def value() -> dict[str, Tensor]:
    return {"x": torch.arange(6.0).reshape(2, 3).T}


def never() -> dict[str, Tensor]:
    raise AssertionError("computed although it is on disk")


def only(folder: Path) -> Path:
    """The one file in a folder; temporary files would be more."""
    (path,) = (p for p in folder.rglob("*") if p.is_file())
    return path


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
    assert not own_cache.exists()
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


def test_file_sha256_of_a_known_text(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(tmp_path / "abc") == expected


def test_a_damaged_entry_is_named(own_cache: Path) -> None:
    tensors("kind", {"a": 1}, value)
    path = only(own_cache)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ResourceError, match=rf"{path.name} is damaged .*delete it and it will be computed"):
        tensors("kind", {"a": 1}, never)
    path.unlink()
    assert torch.equal(tensors("kind", {"a": 1}, value)["x"], value()["x"])


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="nothing here"):
        read(tmp_path / "nothing here")


def test_replacing_leaves_the_old_file_after_an_error(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file.txt"
    with replacing(path) as temporary:
        temporary.write_text("old")
        assert not path.exists()

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half of the new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_text() == "old"
    assert only(tmp_path) == path


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


def write_folder(folder: Path, text: str) -> None:
    with new_folder(folder) as staging:
        (staging / "file.txt").write_text(text)


def test_a_new_folder_is_whole_or_not_there(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "folder"

    def fail() -> None:
        with new_folder(folder) as staging:
            (staging / "file.txt").write_text("half")
            assert not folder.exists()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(folder.parent.iterdir()) == []
    write_folder(folder, "whole")
    assert only(tmp_path) == folder / "file.txt"
    assert (folder / "file.txt").read_text() == "whole"


def test_of_two_processes_that_make_a_folder_the_first_to_end_stays(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    with new_folder(folder) as slow:
        (slow / "file.txt").write_text("of the slow one")
        write_folder(folder, "of the fast one")
    assert only(tmp_path) == folder / "file.txt"
    assert (folder / "file.txt").read_text() == "of the fast one"


@pytest.mark.parametrize(
    "error",
    [OSError(28, "No space left on device"), SafetensorError("I/O error: No space left on device")],
    ids=["file", "tensors"],
)
def test_a_full_disk_while_a_folder_is_made(error: Exception, tmp_path: Path) -> None:
    def full() -> None:
        with new_folder(tmp_path / "folder") as staging:
            (staging / "file.txt").write_text("half")
            raise error

    with pytest.raises(ResourceError, match=r"could not write .*folder: .*No space left.*PALIMPSEST_CACHE"):
        full()
    assert list(tmp_path.iterdir()) == []


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "folder").write_text("a file")
    with pytest.raises(ResourceError, match=r"could not write .*folder: "):
        write_folder(tmp_path / "folder", "text")
    assert (tmp_path / "folder").read_text() == "a file"


def test_what_a_full_disk_raises(tmp_path: Path) -> None:
    """`save_file` reports an operating-system error as its own class; if that changes, so may `replacing`."""
    with pytest.raises(SafetensorError):
        save_file({"x": torch.ones(1)}, tmp_path / "no such folder" / "file")


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    target = tmp_path / "file" / "entry"

    def write() -> None:
        with replacing(target):
            raise AssertionError

    with pytest.raises(ResourceError, match=r"cannot write in .*file: .*choose another folder"):
        write()
    assert os.listdir(tmp_path) == ["file"]


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
