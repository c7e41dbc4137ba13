"""Sphinx extension with the book's own look: style sheet, script, icon, description, texts for pictures."""

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.config import Config

from palimpsest import paths

DESCRIPTION = (
    "What five papers claim about editing facts into language models, one after the other: each claim run, "
    "judged by a stated rule, and shown beside the published numbers."
)


def _with_static(_: Sphinx, config: Config) -> None:
    config.html_static_path = [*config.html_static_path, str(paths.book_dir() / "static")]
    config.html_favicon = str(paths.book_dir() / "static" / "favicon.svg")


def _described(
    _: Sphinx, page: str, template: str, context: dict[str, Any], doctree: nodes.document | None
) -> None:
    described = f'<meta name="description" content="{DESCRIPTION}">'
    context["metatags"] = context.get("metatags", "") + described


def _alternative_texts(_: Sphinx, doctree: nodes.document, page: str) -> None:
    """A figure's caption, without markup, as the text of its picture for those who cannot see it."""
    for figure in doctree.findall(nodes.figure):
        caption = next(iter(figure.findall(nodes.caption)), None)
        for picture in figure.findall(nodes.image):
            if caption is not None:
                picture["alt"] = " ".join(caption.astext().split())


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension with Sphinx."""
    app.connect("config-inited", _with_static)
    app.connect("html-page-context", _described)
    app.connect("doctree-resolved", _alternative_texts, priority=950)
    app.add_css_file("palimpsest.css")
    app.add_js_file("palimpsest.js")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
