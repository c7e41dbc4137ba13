"""Files and folders on disk: nothing half-written."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from palimpsest.errors import ResourceError
from palimpsest.files import file_sha256, leftovers, new_folder, replacing, scratch, sweep, write_atomically


def only(folder: Path) -> Path:
    """The one file in a folder; temporary files would be more."""
    (path,) = (p for p in folder.rglob("*") if p.is_file())
    return path


def test_file_sha256_of_a_known_text(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(tmp_path / "abc") == expected


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


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077])
def test_files_have_the_permissions_of_any_new_file(tmp_path: Path, umask: int) -> None:
    """Not those of a temporary file, and not those that safetensors gives."""
    before = os.umask(umask)
    try:
        with replacing(tmp_path / "a.safetensors") as temporary:
            save_file({"x": torch.ones(1)}, temporary)
        write_atomically(tmp_path / "b.json", b"{}")
        (tmp_path / "plain").touch()
    finally:
        os.umask(before)
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~umask}


def test_a_link_to_a_file_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "deep" / "file")
    for text in (b"first", b"second"):
        write_atomically(tmp_path / "link", text)
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "deep" / "file").read_bytes() == b"second"
    assert only(tmp_path / "deep").name == "file"


def test_what_a_killed_process_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    random = "0123456789abcdef" * 2
    ours = [f".file-{random}.txt", f".file.txt-{random}"]
    others = [
        "file.txt",
        f".file-{random}.json",
        f".other-{random}.txt",
        ".file-abc.txt",
        f"file-{random}.txt",
    ]
    for name in (ours[0], *others):
        (tmp_path / name).write_text("x")
    (tmp_path / ours[1] / "deep").mkdir(parents=True)
    assert {path.name for path in leftovers(tmp_path / "file.txt")} == set(ours)
    sweep(tmp_path / "file.txt")
    assert {path.name for path in tmp_path.iterdir()} == set(others)
    assert leftovers(tmp_path / "no such folder" / "file.txt") == []


WAITS = """
import sys, time
from palimpsest.files import scratch
with scratch("test") as folder:
    (folder / "large").write_text("x")
    print(folder, flush=True)
    time.sleep(600)
"""


def test_a_scratch_folder_of_a_killed_process_goes_and_that_of_a_running_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    others = [tmp_path / ".palimpsest-test", tmp_path / f".palimpsest-other-{'0' * 32}"]
    for folder in others:
        folder.mkdir()
    command, around = [sys.executable, "-c", WAITS], os.environ | {"TMPDIR": str(tmp_path)}
    running, killed = (
        subprocess.Popen(command, stdout=subprocess.PIPE, env=around, text=True) for _ in range(2)
    )
    try:
        kept, left = (Path(process.stdout.readline().strip()) for process in (running, killed))  # type: ignore[union-attr]
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert (left / "large").exists()
        with scratch("test") as own:
            assert own.is_dir()
            assert not left.exists()
            assert (kept / "large").exists()
        assert not own.exists()
    finally:
        for process in (running, killed):
            process.kill()
            process.communicate()
    with scratch("test"):
        pass
    assert sorted(tmp_path.iterdir()) == sorted(others)


def test_a_place_for_scratch_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    with pytest.raises(ResourceError, match=r"cannot write in .*file"), scratch("test"):
        pass


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    target = tmp_path / "file" / "entry"

    def write() -> None:
        with replacing(target):
            raise AssertionError

    with pytest.raises(ResourceError, match=r"cannot write in .*file: .*choose another folder"):
        write()
    assert os.listdir(tmp_path) == ["file"]


def test_what_a_full_disk_raises(tmp_path: Path) -> None:
    """`save_file` reports an operating-system error as its own class; if that changes, so may `replacing`."""
    with pytest.raises(SafetensorError):
        save_file({"x": torch.ones(1)}, tmp_path / "no such folder" / "file")


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
