"""Folders of edited models by path, with a name to which suffixes can be added."""

import os
from pathlib import Path

from palimpsest.errors import ResourceError

LONGEST = 240
"""Bytes of a folder's name: file systems allow 255, and suffixes are added to it."""


def place(folder: str | Path) -> Path:
    """The path of a folder, resolved where it has no name, as ``.`` and ``..`` have none.

    Raises:
        ResourceError: if it has no name even so, as the root has none, or one that is too long or no name at
            all.
    """
    try:
        path = Path(folder)
        path = path if path.name not in ("", "..") else path.resolve()
        size = len(os.fsencode(path.name))
        os.stat(path.parent if str(path.parent) else ".")
    except FileNotFoundError:
        pass  # it may be made
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
