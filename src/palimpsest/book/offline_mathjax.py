"""Sphinx extension: formulas are set by a copy of MathJax inside the book, so it reads offline.

The wheel sphinx-mathjax-offline carries MathJax with its fonts, 30 MB; the one file that draws formulas
as SVG needs no fonts and is all that is copied.
"""

import importlib.util
import shutil
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.config import Config

INSIDE = "mathjax/tex-svg.js"


def source() -> Path:
    """Where the wheel has the file.

    Raises:
        FileNotFoundError: if the wheel is not installed or laid out differently.
    """
    spec = importlib.util.find_spec("sphinx-mathjax-offline")
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("package sphinx-mathjax-offline is not installed; run 'make setup'")
    path = Path(spec.submodule_search_locations[0]) / "static" / INSIDE
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing; the version in requirements.lock has it")
    return path


def _use_the_copy(_: Sphinx, config: Config) -> None:
    config.mathjax_path = INSIDE


def _copy(app: Sphinx, error: Exception | None) -> None:
    if error is None and app.builder.format == "html":
        target = Path(app.outdir) / "_static" / INSIDE
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source(), target)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.connect("config-inited", _use_the_copy, priority=900)
    app.connect("build-finished", _copy)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
