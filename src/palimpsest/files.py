"""Atomic writing of files and folders, file hashes, and JSON in the project's format."""

import hashlib
import json
import os
import re
import shutil
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from palimpsest.errors import ResourceError


def file_sha256(path: Path) -> str:
    """Sha256 of a file's bytes."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


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
    """What processes that were killed left of `replacing` or `new_folder` at a path; some may still run.

    The names end in 32 random digits, so that nothing else is taken for one.
    """
    parts = [(path.stem, path.suffix), (path.name, "")]
    ours = re.compile("|".join(rf"\.{re.escape(a)}-[0-9a-f]{{32}}{re.escape(b)}" for a, b in parts))
    try:
        return [place for place in path.parent.iterdir() if ours.fullmatch(place.name)]
    except FileNotFoundError:
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
