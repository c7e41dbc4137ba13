"""nbformat, imported without the grammars that jsonschema would build for it.

jsonschema checks internationalised URIs where rfc3987_syntax can be imported, and that module builds 38
parsers when it is: more than a second, half of the time until a command says anything. No field of a notebook
is of that format.
"""

import sys


def left_out(name: str) -> str:
    """Let Python say of a module that there is none, unless it is there already; its name."""
    if name not in sys.modules:
        sys.modules[name] = None  # type: ignore[assignment]
    return name


UNUSED = left_out("rfc3987_syntax")
"""What is not imported with it."""

import nbformat  # noqa: E402
from nbformat import NotebookNode, v4  # noqa: E402

__all__ = ["UNUSED", "NotebookNode", "left_out", "nbformat", "v4"]
