"""Folders of edited models by path, with a name to which suffixes can be added."""

import errno
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from palimpsest.errors import ResourceError

LONGEST = 200
"""Bytes of a folder's name: file systems allow 255, and locks and temporary files add to it."""


def place(folder: str | Path) -> Path:
    """Where a folder is: its path without symbolic links, so that those stay and lead to what is written.

    Raises:
        ResourceError: if it has no name, as the root has none, or one that is too long or no name at all.
    """
    try:
        path = Path(os.path.realpath(folder))
        if path.is_symlink():  # it leads to itself
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
        size = len(os.fsencode(path.name))
        with suppress(FileNotFoundError):  # it may be made
            path.parent.stat()
    except (OSError, ValueError) as error:
        raise ResourceError(
            f"{str(folder)!r} cannot be the path of a folder: {error}; choose another"
        ) from error
    if not path.name:
        raise ResourceError(f"{folder} is the root of the file system; choose a folder in it")
    if size > LONGEST:
        raise ResourceError(
            f"the name {path.name[:20]}… has {size} bytes, and {LONGEST} is the most; choose a shorter one"
        )
    return path


def check_writable(path: Path) -> None:
    """Check that something can be made at a path, or in the nearest folder above it that exists.

    A lock is waited for where it cannot be made for a reason that may pass; in ``/proc`` none ever is.

    Raises:
        ResourceError: if nothing can be made there.
    """
    above = next(folder for folder in path.parents if folder.exists())
    try:
        with tempfile.TemporaryFile(dir=above):
            pass
    except OSError as error:
        raise ResourceError(f"cannot write in {above}: {error}; choose another folder") from error
