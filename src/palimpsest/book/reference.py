"""Sphinx extension for the API reference: docstrings as they are written here, and links from the glossary.

A docstring of this project is plain text with Google's sections: an indented block between paragraphs is a
formula or a table whose columns count, and a bar is an absolute value. reStructuredText would flow the first
and take the second for a substitution.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.nodes import make_refnode

from palimpsest.book.api import handed_out, source

GLOSSARY = "book/glossary"
"""Page whose names in code lead to the reference."""

_CODE = re.compile(r"(``.+?``|`[^`]+`)")


def as_written(lines: Sequence[str]) -> Iterator[str]:
    """Lines of a docstring with indented blocks marked as literal, and with bars escaped elsewhere.

    Args:
        lines: of the docstring, before Google's sections are read; their bodies follow a heading without a
            blank line and stay as they are.
    """
    before, literal = ["", ""], False  # the line before, and the last one that is not blank
    for line in lines:
        inside = line.startswith("    ")
        if line.strip() and not inside:
            literal = False
        elif inside and not literal and not before[0].strip() and before[1] and not before[1].startswith(" "):
            literal = True
            if not before[1].endswith("::"):
                yield from ("::", "")
        yield line if literal else escaped(line)
        before = [line, line if line.strip() else before[1]]


def escaped(line: str) -> str:
    """A line whose bars outside code are no markup."""
    parts = _CODE.split(line)
    return "".join(part if at % 2 else part.replace("|", "\\|") for at, part in enumerate(parts))


def place(text: str, objects: Mapping[str, Any], public: Mapping[str, str]) -> str:
    """Full name of what a text in code stands for: ``admit``, ``Projector.kept`` or ``absolute(threshold)``.

    Args:
        text: as it is written.
        objects: full name of everything that the reference describes.
        public: name under ``pl`` -> full name.

    Returns:
        The full name; that of the class where an attribute has no place of its own; empty if the text is no
        name, or could mean several.
    """
    head, _, rest = text.partition("(")[0].removeprefix("pl.").partition(".")
    found = [public[head]] if head in public else []
    if not found and head[:1].isupper():
        found = [name for name in objects if name.endswith(f".{head}")]
    if len(found) != 1 or found[0] not in objects:
        return ""
    member = f"{found[0]}.{rest}"
    return member if rest and member in objects else found[0]


class Docstrings:
    """Hooks before and after Google's sections are read, between which napoleon sees a docstring.

    napoleon takes the words before a colon for the type of a constant or a property, so theirs are put back.
    """

    def __init__(self) -> None:
        self._before: dict[str, list[str]] = {}

    def before(
        self, _: object, what: str, name: str, thing: object, options: object, lines: list[str]
    ) -> None:
        """Bring a docstring into reStructuredText, but for its sections."""
        lines[:] = list(as_written(lines))
        self._before[name] = [*lines]

    def after(
        self, _: object, what: str, name: str, thing: object, options: object, lines: list[str]
    ) -> None:
        """Put the description of a constant, an attribute or a property back."""
        kept = self._before.pop(name)
        if what in ("data", "attribute", "property"):
            lines[:] = kept


def _linked(app: Sphinx, doctree: nodes.document, page: str) -> None:
    if page != GLOSSARY:
        return
    objects, public = app.env.get_domain("py").objects, handed_out(source())  # type: ignore[attr-defined]
    for node in list(doctree.findall(nodes.literal)):
        if full := place(node.astext(), objects, public):
            entry = objects[full]
            link = make_refnode(app.builder, page, entry.docname, entry.node_id, node.deepcopy(), full)
            node.replace_self(link)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension with Sphinx."""
    app.setup_extension("sphinx.ext.autodoc")
    docstrings = Docstrings()  # napoleon stands between, at the priority of 500
    app.connect("autodoc-process-docstring", docstrings.before, priority=400)
    app.connect("autodoc-process-docstring", docstrings.after, priority=600)
    app.connect("doctree-resolved", _linked, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
