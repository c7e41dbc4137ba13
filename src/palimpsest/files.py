"""Atomic writing of files and folders, file hashes, and JSON in the project's format."""

import hashlib
import json
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
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

    Raises:
        ResourceError: if the disk is full or the folder cannot be written; ``path`` is unchanged.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix)
        os.close(handle)
    except OSError as error:
        raise ResourceError(f"cannot write in {path.parent}: {error}; choose another folder") from error
    temporary = Path(name)
    try:
        yield temporary
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise ResourceError(
            f"could not write {path}: {error}; free some space or set PALIMPSEST_CACHE to another disk. "
            "What was there before is unchanged"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


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
    """Write a file under a temporary name and move it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.name}.tmp.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(name, 0o644)  # mkstemp makes files only their owner can read
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def as_json(content: Any) -> bytes:
    """JSON in the project's format: indented, in the given order, ending in a newline.

    Raises:
        ValueError: if a number is NaN or infinite.
    """
    return (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()
