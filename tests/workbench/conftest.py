"""What tests of edited folders share: no texts are read, a tiny model on disk, and facts written into it."""

from pathlib import Path

import pytest

from tests.editing import stub_texts
from tests.workbench.edits import tiny_folder, written


@pytest.fixture
def no_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Second moments come from a few sentences."""
    stub_texts(monkeypatch)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """The tiny model as a folder."""
    return tiny_folder(tmp_path / "base")


@pytest.fixture
def out(base: Path, tmp_path: Path) -> Path:
    """A folder with facts 0 to 2."""
    written(base, tmp_path / "out", 3)
    return tmp_path / "out"
