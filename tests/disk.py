"""A disk that is full, or may only be read, from a chosen operation on; or that changes a bit."""

import errno
import os
import resource
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

FULL = OSError(errno.ENOSPC, "No space left on device")
TOO_LARGE = OSError(errno.EFBIG, "File too large")
"""What `filling` raises in place of `FULL`."""
READ_ONLY = OSError(errno.EROFS, "Read-only file system")
MOST = 300
"""Operations of anything that is tested."""
GROWS = ("os.mkdir", "os.link", "os.symlink")
"""Operations, beside opening a file to write it, for which a full disk has no room."""
CHANGES = ("os.rename", "os.remove", "os.rmdir", "os.truncate", "os.chmod")
"""Further operations that a disk refuses which may only be read."""


class Disk:
    """What fails below a folder.

    Args:
        root: the folder.

    Attributes:
        error: raised by operations from number ``first`` on; None if the disk is well.
        done: operations since it was last set up.
    """

    def __init__(self, root: Path) -> None:
        self.root, self.error, self.first, self.done = str(root), None, 0, 0

    def watch(self, event: str, arguments: tuple[Any, ...]) -> None:
        """An audit hook: what it raises is raised by the operation."""
        if self.error is None:
            return
        if event == "open":
            writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
            path = arguments[0] if writes else None
        else:
            refused = GROWS if self.error is FULL else (*GROWS, *CHANGES)
            path = arguments[0] if event in refused else None
        if isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(self.root):
            self.count(os.fsdecode(path))

    def count(self, path: str) -> None:
        """One more operation on a path below the folder.

        Raises:
            OSError: if it is to fail.
        """
        if "palimpsest-lock" in path and self.error is FULL:
            return  # an empty file takes no room
        self.done += 1
        if self.error is not None and self.done >= self.first:
            raise OSError(self.error.errno, self.error.strerror, path)


_CURRENT: list[Disk] = []


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _CURRENT:  # an audit hook stays for the life of the process
        _CURRENT[-1].watch(event, arguments)


sys.addaudithook(_hook)


@contextmanager
def failing(root: Path, error: OSError, first: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    """Inside the block, operations that write below a folder fail from the given number on."""
    import safetensors.torch as library

    disk, serialize = Disk(root), library.serialize_file

    def counted(tensors: Any, path: Any, *rest: Any, **options: Any) -> None:
        disk.count(str(path))  # written by native code, which no hook sees
        serialize(tensors, path, *rest, **options)

    with monkeypatch.context() as patch:
        patch.setattr(library, "serialize_file", counted)
        disk.error, disk.first = error, first
        _CURRENT.append(disk)
        try:
            yield disk
        finally:
            _CURRENT.remove(disk)


@contextmanager
def filling(size: int) -> Iterator[None]:
    """Inside the block no file grows beyond a size: what is written up to there stands, and then it fails.

    So writes that began are cut short, by native code too, as on a disk that becomes full meanwhile.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def each_failure(
    root: Path, error: OSError, act: Callable[[], object], monkeypatch: pytest.MonkeyPatch, step: int = 1
) -> Iterator[BaseException | None]:
    """Do something again and again, with the disk failing one operation later each time, or ``step`` later.

    Yields what each attempt raised, and None after the first that went through.
    """
    for first in range(1, MOST, step):
        raised: BaseException | None = None
        with failing(root, error, first, monkeypatch) as disk:
            try:
                act()
            except Exception as found:
                raised = found
        if disk.done < first:
            assert raised is None
            yield None
            return
        yield raised
    raise AssertionError(f"{MOST} operations were not enough")


def flip(path: Path, at: int = -1) -> None:
    """Change the lowest bit of one byte of a file; of tensors the last bytes are numbers."""
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))
