"""Folders of the repository, found from the package and never from the current directory.

papermill starts a kernel in the directory of the call and nbval starts it beside the notebook, so a relative
path would mean two different files.
"""

import os
from pathlib import Path

from palimpsest.errors import NotebookError


def root() -> Path:
    """Root of the repository: ``PALIMPSEST_ROOT``, else the checkout that holds this package.

    Raises:
        NotebookError: if the folder does not hold the project's ``pyproject.toml`` and ``config/profiles``.
    """
    given = os.environ.get("PALIMPSEST_ROOT")
    folder = Path(given).expanduser() if given else Path(__file__).parents[2]
    if (folder / "pyproject.toml").is_file() and (folder / "config" / "profiles").is_dir():
        return folder.resolve()
    raise NotebookError(
        f"{folder} is not a checkout of Palimpsest (no pyproject.toml beside config/profiles); "
        "install the package with 'pip install -e .' in a clone, "
        "or set PALIMPSEST_ROOT to the clone's folder"
    )


def notebooks_dir() -> Path:
    """Folder of the notebook sources, without outputs."""
    return root() / "notebooks"


def profiles_dir() -> Path:
    """Folder with one YAML file per profile."""
    return root() / "config" / "profiles"


def results_root() -> Path:
    """Folder with one folder of records for each profile that was run."""
    return root() / "results"


def results_dir(profile: str) -> Path:
    """Folder with the executed notebooks and records of one profile."""
    return results_root() / profile


def book_dir() -> Path:
    """Folder with hand-written pages, the table of contents and generated pages beside them."""
    return root() / "book"


def build_dir() -> Path:
    """Folder of everything that can be deleted: HTML, screenshots, failed runs."""
    return root() / "build"


def cache_dir() -> Path:
    """Root of the cache; created when first written to."""
    return Path(os.environ.get("PALIMPSEST_CACHE", Path.home() / ".cache" / "palimpsest"))
