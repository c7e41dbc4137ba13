"""Where the repository keeps things, found from the package and never from the current directory.

papermill starts a kernel where it was called and nbval starts it beside the notebook, so a relative
path would mean two different files.
"""

import os
from pathlib import Path

from palimpsest.errors import NotebookError


def root() -> Path:
    """The repository's root: ``PALIMPSEST_ROOT``, else the checkout that holds this package.

    Raises:
        NotebookError: if neither holds the project's ``pyproject.toml`` and ``config/profiles``.
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
    """Notebook sources, without outputs."""
    return root() / "notebooks"


def profiles_dir() -> Path:
    """One YAML file for each profile."""
    return root() / "config" / "profiles"


def results_root() -> Path:
    """Holds one folder of records for each profile that was run."""
    return root() / "results"


def results_dir(profile: str) -> Path:
    """Executed notebooks and records of one profile."""
    return results_root() / profile


def book_dir() -> Path:
    """Hand-written pages, the table of contents and what the build generates beside them."""
    return root() / "book"


def build_dir() -> Path:
    """Everything that can be thrown away: HTML, screenshots, failed runs."""
    return root() / "build"
