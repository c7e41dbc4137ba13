"""Jupyter Lab as `make lab` starts it: notebooks of the repository are saved without outputs and counts.

What was run stays on the screen; the tracked sources change only where somebody changes them.
"""

from pathlib import Path
from typing import Any

SOURCES = Path(__file__).resolve().parents[1] / "notebooks"
METADATA = {
    "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
"""Of every notebook of the repository, whatever kernel ran it."""


def without_outputs(model: dict[str, Any], path: str, contents_manager: Any, **_: Any) -> None:
    """Empty the outputs of a notebook of the repository before it is written; other files stay."""
    folder = (Path(contents_manager.root_dir) / path).resolve().parent
    if model["type"] != "notebook" or folder != SOURCES:
        return
    for cell in model["content"]["cells"]:
        if cell["cell_type"] == "code":
            cell["outputs"], cell["execution_count"] = [], None
            cell["metadata"].pop("execution", None)
    model["content"]["metadata"] = METADATA


c = get_config()  # type: ignore[name-defined]
c.FileContentsManager.pre_save_hook = without_outputs
