"""Sphinx extension that makes the book readable from disk, without a network.

Formulas are set by a copy of MathJax inside the book. The wheel sphinx-mathjax-offline contains MathJax with
its fonts, 30 MB; only the one file that draws formulas as SVG, which needs no fonts, is copied.

jupyter-book always loads sphinx-thebe, which runs cells on a remote server and declares its script twice, an
error on every page; its additions are removed.
"""

import importlib.util
import shutil
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config

INSIDE = "mathjax/tex-svg.js"


def source() -> Path:
    """Path of the MathJax file in the wheel.

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


def _without_thebe(
    _: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    for kind in ("script_files", "css_files"):
        context[kind] = [
            file
            for file in context.get(kind, [])
            if "thebe" not in f"{file} {getattr(file, 'attributes', '')}".lower()
        ]


def _without_thebe_settings(_: Sphinx, doctree: nodes.document, page: str) -> None:
    for node in list(doctree.findall(nodes.raw)):
        if "x-thebe-config" in node.astext():
            node.parent.remove(node)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension with Sphinx."""
    app.connect("config-inited", _use_the_copy, priority=900)
    app.connect("doctree-resolved", _without_thebe_settings, priority=900)
    app.connect("html-page-context", _without_thebe, priority=900)
    app.connect("build-finished", _copy)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
