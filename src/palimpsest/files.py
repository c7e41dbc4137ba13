"""Files and folders: atomic writing, locks, hashes, and JSON in the project's format.

The lock of ``out`` is the file ``.out.palimpsest-lock`` beside it, held by the operating system: it is free
as soon as its process is gone, however that ended. It names its holder, and is removed with the last hold.
"""

import hashlib
import json
import os
import re
import shutil
import socket
import stat
import sys
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout, lock_descriptor
from safetensors import SafetensorError

from palimpsest.errors import BusyError, PalimpsestError, ResourceError

UNREADABLE = (
    *(OSError, ValueError, LookupError, AttributeError, TypeError, RecursionError),
    yaml.YAMLError,
)
"""What reading JSON, YAML or a table raises where a file is missing, damaged or something else; YAML's tags
raise nearly anything."""
LOCK_SUFFIX = ".palimpsest-lock"


def file_sha256(path: Path) -> str:
    """Sha256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Say which file it is that cannot be read, if the block cannot.

    Raises:
        ResourceError: in place of any error of the operating system.
    """
    try:
        yield
    except PalimpsestError:
        raise
    except OSError as error:
        raise ResourceError(f"{path} cannot be read ({error}); check its permissions") from error


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Temporary path beside ``path`` that replaces it if the block ends without an error.

    The file gets the permissions that any new file gets, whatever the block made of the temporary one. Where
    ``path`` is a symbolic link, the file that it points to is replaced.

    Raises:
        ResourceError: if the disk is full or the folder cannot be written; ``path`` is unchanged.
    """
    path = Path(os.path.realpath(path))
    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)  # less what umask says
        mode = stat.S_IMODE(os.fstat(handle).st_mode)
        os.close(handle)
    except OSError as error:
        raise ResourceError(f"cannot write in {path.parent}: {error}; choose another folder") from error
    try:
        yield temporary
        temporary.chmod(mode)  # some libraries make files that only their owner can read
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise ResourceError(
            f"could not write {path}: {error}; free some space or set PALIMPSEST_CACHE to another disk. "
            "What was there before is unchanged"
        ) from error
    finally:
        with suppress(OSError):
            temporary.unlink()


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """Temporary folder beside ``folder`` that is renamed to it if the block ends without an error.

    If another process has created ``folder`` meanwhile, that one stays and the temporary one is removed.

    Raises:
        ResourceError: if the disk is full or the place cannot be written; no partial folder remains.
    """
    staging = folder.with_name(f".{folder.name}-{uuid.uuid4().hex}")
    try:
        staging.mkdir(parents=True)
        yield staging
        _move(staging, folder)
    except (OSError, SafetensorError) as error:
        raise ResourceError(
            f"could not write {folder}: {error}; free some space or set PALIMPSEST_CACHE to another disk"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Temporary folder beside ``path``, removed at the end of the block; `sweep` removes a killed process's.

    Raises:
        ResourceError: if the place cannot be written.
    """
    folder = path.with_name(f".{path.name}-{uuid.uuid4().hex}")
    try:
        folder.mkdir(parents=True)
    except OSError as error:
        raise ResourceError(f"cannot write in {path.parent}: {error}; choose another folder") from error
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _move(staging: Path, folder: Path) -> None:
    try:
        staging.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file under a temporary name and move it into place.

    Raises:
        ResourceError: as `replacing`.
    """
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def leftovers(path: Path) -> list[Path]:
    """What killed processes left of `replacing`, `new_folder` or `beside` at a path; some may still run.

    The names end in 32 random digits, so that nothing else is taken for one.
    """
    parts = [(path.stem, path.suffix), (path.name, "")]
    ours = re.compile("|".join(rf"\.{re.escape(a)}-[0-9a-f]{{32}}{re.escape(b)}" for a, b in parts))
    try:
        return [place for place in path.parent.iterdir() if ours.fullmatch(place.name)]
    except (FileNotFoundError, NotADirectoryError):
        return []


def sweep(path: Path) -> None:
    """Remove the `leftovers` at a path whose lock is held."""
    for place in leftovers(path):
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)


def as_json(content: Any) -> bytes:
    """JSON in the project's format: indented, in the given order, ending in a newline.

    Raises:
        ValueError: if a number is NaN or infinite.
    """
    return (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


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


@contextmanager
def scratch(name: str) -> Iterator[Path]:
    """Folder among the system's temporary files, removed at the end of the block.

    Those of the same name that killed processes of this user left are removed first: a running one holds the
    lock of its folder.

    Args:
        name: what is done in it, a part of the folder's name.

    Raises:
        ResourceError: if no folder can be made there.
    """
    place = Path(tempfile.gettempdir()) / f"palimpsest-{name}"
    for left in leftovers(place):
        with suppress(OSError):
            if left.stat().st_uid == os.getuid() and not _in_use(left):
                shutil.rmtree(left)
                lock_file(left).unlink(missing_ok=True)
    folder = place.with_name(f".{place.name}-{uuid.uuid4().hex}")
    with locked(folder, 0):
        try:
            folder.mkdir()
        except OSError as error:
            raise ResourceError(
                f"cannot write in {folder.parent}: {error}; set TMPDIR to another folder"
            ) from error
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def _in_use(path: Path) -> bool:
    file = lock_file(path)
    return file.exists() and _is_held(file)


def lock_file(path: Path) -> Path:
    """File that is the lock of a path."""
    return path.with_name(f".{path.name}{LOCK_SUFFIX}")


def holders(folder: Path, deep: bool = False) -> dict[Path, str]:
    """What is in use in a folder, and by whom, without taking a lock for longer than a look at it.

    Args:
        folder: where to look; it need not exist.
        deep: in all folders below it, too.

    Returns:
        Path -> its holder, in words. Locks of processes that were killed are held by nobody.
    """
    found = {}
    for file in (folder.rglob if deep else folder.glob)(f".*{LOCK_SUFFIX}"):
        with suppress(OSError):  # released meanwhile, or not ours to look at
            if _is_held(file):
                found[file.with_name(file.name.removeprefix(".").removesuffix(LOCK_SUFFIX))] = _holder(file)
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


def special(path: str | Path) -> str:
    """What a path is that is neither file nor folder: to read one may never end, to replace one breaks it.

    Returns:
        ``a device``, ``a pipe`` or ``a socket``; empty for anything else, and for nothing.
    """
    try:
        mode = os.stat(path).st_mode
    except (OSError, ValueError):
        return ""
    if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        return "a device"
    return "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else ""
