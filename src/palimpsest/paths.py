"""Folders of the project, found from the package and never from the current directory.

papermill starts a kernel in the directory of the call and nbval starts it beside the notebook, so a relative
path would mean two different files.
"""

import os
from pathlib import Path

from palimpsest.errors import NotebookError

INSTALLED = "_carried"
"""Folder of an installed package with the ``config`` and ``data`` of the checkout that it was built from."""


def package_root() -> Path:
    """Folder with the ``config`` and ``data`` that came with this package, whatever PALIMPSEST_ROOT says.

    In a checkout its root, in an installed wheel a folder inside the package.
    """
    package = Path(__file__).resolve().parent
    inside = package / INSTALLED
    return inside if inside.is_dir() else package.parents[1]


def root() -> Path:
    """Folder with the ``config`` and ``data`` in use: ``PALIMPSEST_ROOT``, else those of this package.

    Raises:
        NotebookError: if the folder does not hold the project's ``pyproject.toml`` and ``config/profiles``.
    """
    given = os.environ.get("PALIMPSEST_ROOT")
    folder = (Path(given).expanduser() if given else package_root()).resolve()
    marked = (folder / "pyproject.toml").is_file() or is_installed(folder)
    if marked and (folder / "config" / "profiles").is_dir():
        return folder
    raise NotebookError(
        f"{folder} is not a checkout of Palimpsest (no pyproject.toml beside config/profiles); "
        "install the package with 'pip install -e .' in a clone, "
        "or set PALIMPSEST_ROOT to the clone's folder"
    )


def checkout() -> Path:
    """Root of the checkout in use, for notebooks, results and the book, which an installed wheel lacks.

    Raises:
        NotebookError: if the package is installed outside a checkout, or as `root`.
    """
    folder = root()
    if is_installed(folder):
        raise NotebookError(
            f"this needs a checkout of Palimpsest, and the package is installed in {folder.parent} without "
            "one: notebooks, results and the book are not part of it; clone the project and run "
            "'pip install -e .' in the clone, or set PALIMPSEST_ROOT to the clone's folder"
        )
    return folder


def is_installed(folder: Path) -> bool:
    """Whether a folder is that of the ``config`` and ``data`` inside an installed package."""
    return folder.name == INSTALLED and folder == package_root()


def notebooks_dir() -> Path:
    """Folder of the notebook sources, without outputs."""
    return checkout() / "notebooks"


def profiles_dir() -> Path:
    """Folder with one YAML file per profile."""
    return root() / "config" / "profiles"


def results_root() -> Path:
    """Folder with one folder of records for each profile that was run."""
    return checkout() / "results"


def results_dir(profile: str) -> Path:
    """Folder with the executed notebooks and records of one profile."""
    return results_root() / profile


def book_dir() -> Path:
    """Folder with hand-written pages, the table of contents and generated pages beside them."""
    return checkout() / "book"


def build_dir() -> Path:
    """Folder of everything that can be deleted: HTML, screenshots, failed runs."""
    return checkout() / "build"


def cache_dir() -> Path:
    """Root of the cache; created when first written to."""
    return Path(os.environ.get("PALIMPSEST_CACHE", Path.home() / ".cache" / "palimpsest"))
