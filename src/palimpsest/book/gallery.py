"""Gallery of all figures of the book, each beside its page and the first sentence of its caption."""

import base64
import re
from collections.abc import Iterator
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from palimpsest.book.profiles import known_notebooks, results_of
from palimpsest.files import write_atomically

FOLDER = "figures"
_FIGURE = re.compile(r"```\{glue:figure\} (\w+)\n(.*?)```", re.DOTALL)
_OPTION = re.compile(r"^:\w+:.*$", re.MULTILINE)
_SENTENCE = re.compile(r"(.+?(?<!Fig)[.;])(?=\s+[A-Z{`$*]|$)", re.DOTALL)
_MARKUP = re.compile(r"[$`*]|\\(?=[a-zA-Z])|\{\w+\}")


def write_gallery(profile: str, out_path: Path) -> None:
    """Generate the page, and beside it a folder with the pictures of a profile's executed notebooks."""
    parts = ["(figures)=\n# Figures", "All figures of the results, each a link to the page that explains it."]
    for name in known_notebooks():
        executed = results_of(profile) / f"{name}.ipynb"
        if not executed.is_file():
            continue
        for figure, caption, picture in figures(nbformat.read(executed, as_version=4)):
            file = f"{FOLDER}/{name[:2]}_{figure}.png"
            write_atomically(out_path.parent / file, base64.b64decode(picture))
            parts.append(_entry(name, file, caption))
    write_atomically(out_path, ("\n\n".join(parts) + "\n").encode())


def figures(notebook: NotebookNode) -> Iterator[tuple[str, str, str]]:
    """Name, first sentence of the caption, and PNG (base64) of each figure of a page, in its order."""
    pictures = {
        output.metadata["scrapbook"]["name"]: _png(output.data)
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.get("metadata", {}).get("scrapbook", {}).get("name")
    }
    for cell in notebook.cells:
        for name, text in _FIGURE.findall(cell.source) if cell.cell_type == "markdown" else ():
            picture = pictures.get(name)
            if picture:
                yield name, first_sentence(text), picture


def _png(data: NotebookNode) -> str:
    return next((content for kind, content in data.items() if kind.endswith("image/png")), "")


def first_sentence(caption: str) -> str:
    """First sentence of a caption; empty if it holds a value, which only its own page can fill in."""
    text = " ".join(_OPTION.sub("", caption).split())
    found = _SENTENCE.match(text)
    sentence = (found[1] if found else text).rstrip(";.") + "."
    return "" if "{glue" in sentence or sentence == "." else sentence


def _entry(page: str, file: str, caption: str) -> str:
    described = _MARKUP.sub("", caption) or f"Figure of page {page[:2]}."
    return (
        f"```{{figure}} {file}\n:target: ../_pages/{page}.html\n:alt: {described}\n\n"
        f"{{doc}}`{page[:2]} <../_pages/{page}>` {caption}\n```"
    )
