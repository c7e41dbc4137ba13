"""Gallery of all figures of the book, each beside its page and the first sentence of its caption."""

import base64
import re
from collections.abc import Iterator
from pathlib import Path

from palimpsest.book.formats import NotebookNode, nbformat
from palimpsest.book.profiles import known_notebooks, results_of
from palimpsest.files import write_atomically
from palimpsest.results.display import MARK

FOLDER = "figures"
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
    for cell in notebook.cells:
        outputs = cell.get("outputs", []) if cell.cell_type == "code" else []
        marks = [(output, output.get("metadata", {}).get(MARK, {})) for output in outputs]
        captions = {
            mark["caption"]: output.data["text/markdown"] for output, mark in marks if "caption" in mark
        }
        for output, mark in marks:
            if "figure" in mark:
                yield (
                    mark["figure"],
                    first_sentence(captions.get(mark["figure"], "")),
                    output.data["image/png"],
                )


def first_sentence(caption: str) -> str:
    """First sentence of a caption."""
    text = " ".join(caption.split())
    found = _SENTENCE.match(text)
    sentence = (found[1] if found else text).rstrip(";.") + "."
    return "" if sentence == "." else sentence


def _entry(page: str, file: str, caption: str) -> str:
    described = _MARKUP.sub("", caption) or f"Figure of page {page[:2]}."
    return (
        f"```{{figure}} {file}\n:target: ../_pages/{page}.html\n:alt: {described}\n\n"
        f"{{doc}}`{page[:2]} <../_pages/{page}>` {caption}\n```"
    )
