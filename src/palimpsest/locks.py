"""Locks on files and folders, so that two processes never write the same one at once.

The lock of ``out`` is the file ``.out.palimpsest-lock`` beside it, held by the operating system: it is free
as soon as its process is gone, however that ended. It names its holder, and is removed with the last hold.
"""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path

from filelock import FileLock, Timeout, lock_descriptor

from palimpsest.errors import BusyError, ResourceError

SUFFIX = ".palimpsest-lock"


@contextmanager
def locked(path: Path, wait: float = -1) -> Iterator[None]:
    """Hold the lock of a file or folder inside the block; a thread may hold one several times over.

    One line on standard error says so where there is another process to wait for.

    Args:
        path: what is to be written; it need not exist.
        wait: seconds to wait for another process; without end if negative.

    Raises:
        BusyError: if another process still holds it after that time; the message says which, and since when.
        ResourceError: if no lock can be made there.
    """
    file = lock_file(path)

    def used() -> str:
        return f"{path} is in use by {_holder(file)}"

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file, is_singleton=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            if wait != 0:
                print(f"palimpsest: {used()}; waiting until that ends", file=sys.stderr, flush=True)
            lock.acquire(timeout=wait)
    except Timeout:
        raise BusyError(
            f"{used()}; wait until that ends, or end it, and give the same command again"
        ) from None
    except OSError as error:
        raise ResourceError(
            f"cannot write in {path.parent}: {error}; choose another folder, or make that one writable "
            "(PALIMPSEST_CACHE is the cache's)"
        ) from error
    try:
        if lock.lock_counter == 1:
            now = datetime.now().astimezone().isoformat(" ", "seconds")
            with suppress(OSError):  # a full disk: the lock holds, unsigned
                file.write_text(f"process {os.getpid()} on {socket.gethostname()} since {now}", "utf-8")
        yield
    finally:
        if lock.lock_counter == 1:  # before the release, after which it may be another one's
            with suppress(OSError):
                file.unlink()
        lock.release()


def lock_file(path: Path) -> Path:
    """File that is the lock of a path."""
    return path.with_name(f".{path.name}{SUFFIX}")


def holders(folder: Path, deep: bool = False) -> dict[Path, str]:
    """What is in use in a folder, and by whom, without taking a lock for longer than a look at it.

    Args:
        folder: where to look; it need not exist.
        deep: in all folders below it, too.

    Returns:
        Path -> its holder, in words. Locks of processes that were killed are held by nobody.
    """
    found = {}
    for file in (folder.rglob if deep else folder.glob)(f".*{SUFFIX}"):
        with suppress(OSError):  # released meanwhile, or not ours to look at
            if _is_held(file):
                found[file.with_name(file.name.removeprefix(".").removesuffix(SUFFIX))] = _holder(file)
    return found


def _is_held(file: Path) -> bool:
    handle = os.open(file, os.O_RDWR)
    try:
        return not lock_descriptor(handle, blocking=False)
    finally:
        os.close(handle)  # and so the lock, if it was free


def _holder(file: Path) -> str:
    """What a lock says of its holder."""
    try:
        text = file.read_text("utf-8", errors="replace")
    except OSError:
        text = ""
    return text or "a process that has just begun or ended"
