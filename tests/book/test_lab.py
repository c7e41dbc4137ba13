"""Jupyter Lab, as `make lab` starts it, leaves the sources of notebooks as they are."""

import shutil
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_server.services.contents.filemanager import FileContentsManager
from nbformat.v4 import new_output
from traitlets.config import Config, PyFileConfigLoader

from palimpsest.book.profiles import known_notebooks
from palimpsest.paths import root


def manager(checkout: Path) -> FileContentsManager:
    """Lab's access to files, with the configuration of a checkout."""
    loaded = PyFileConfigLoader("jupyter_lab_config.py", str(checkout / "config")).load_config()
    return FileContentsManager(root_dir=str(checkout / "notebooks"), config=Config(loaded))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for folder in ("notebooks", "config"):
        (tmp_path / folder).mkdir()
    shutil.copy(root() / "config/jupyter_lab_config.py", tmp_path / "config")
    for source in (root() / "notebooks").glob("*.ipynb"):
        shutil.copy(source, tmp_path / "notebooks")
    return tmp_path


def ran(content: Any) -> Any:
    """The notebook as Lab holds it after a run by another kernel."""
    for count, cell in enumerate(content["cells"], 1):
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [new_output("stream", text="done")], count
            cell["metadata"]["execution"] = {"iopub.execute_input": "now"}
    content["metadata"]["kernelspec"]["display_name"] = "Python 3 (Palimpsest)"
    content["metadata"]["language_info"]["version"] = "3.13"
    return content


@pytest.mark.parametrize("name", known_notebooks())
def test_a_run_and_a_save_leave_a_source_as_it_was(name: str, checkout: Path) -> None:
    lab, file = manager(checkout), checkout / "notebooks" / f"{name}.ipynb"
    before = file.read_bytes()
    model = lab.get(file.name)
    lab.save({**model, "content": ran(model["content"])}, file.name)
    assert file.read_bytes() == before


def test_what_was_written_is_saved(checkout: Path) -> None:
    lab, name = manager(checkout), "01_one_edit.ipynb"
    model = lab.get(name)
    model["content"]["cells"][0]["source"] += "\nAnother line."
    lab.save(model, name)
    assert "Another line." in (checkout / "notebooks" / name).read_text("utf-8")


def test_other_notebooks_keep_their_outputs(checkout: Path) -> None:
    (checkout / "notebooks" / "mine").mkdir()
    lab, path = manager(checkout), "mine/copy.ipynb"
    shutil.copy(checkout / "notebooks/01_one_edit.ipynb", checkout / "notebooks" / path)
    model = lab.get(path)
    lab.save({**model, "content": ran(model["content"])}, path)
    saved = nbformat.read(checkout / "notebooks" / path, as_version=4)
    assert any(cell.outputs for cell in saved.cells if cell.cell_type == "code")
