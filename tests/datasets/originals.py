"""Where tests find the original data files, which the project neither ships nor needs."""

import os
from pathlib import Path

import pytest

FOLDER = Path(os.environ.get("PALIMPSEST_ORIGINALS") or Path(__file__).parents[3] / "shared/data")


def original(name: str) -> Path:
    """Path of an original data file; the test is skipped where it is absent."""
    path = FOLDER / name
    if not path.is_file():
        pytest.skip(f"no {name} in {FOLDER}; set PALIMPSEST_ORIGINALS to a folder that has it")
    return path
