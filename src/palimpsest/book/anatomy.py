"""The anatomy that all pages share, made from a notebook's cells by their tags and outputs.

Title, verdicts of the claims, question, answer and the figure that carries it come first, wherever the
notebook makes them; what sets up, records or draws is folded; figures get their captions.
"""

import re
from collections.abc import Iterable

from palimpsest.book.formats import NotebookNode, nbformat
from palimpsest.book.page_code import COMPUTE, part_of
from palimpsest.results.display import MARK

ANSWER, HEADLINE = "answer", "headline"
"""Tags of the cells whose outputs stand at the head of the page."""

FOLDED, WITHOUT_CODE = "hide-input", "remove-input"
"""Jupyter Book's tags of a cell whose code unfolds on a click, and of one whose code is not shown."""

WORDS_A_MINUTE = 200

_TITLE = re.compile(r"^# +(.+)$", re.MULTILINE)


def title_of(notebook: NotebookNode) -> str:
    """The first top-level heading of a notebook."""
    for cell in notebook.cells:
        found = _TITLE.search(cell.source) if cell.cell_type == "markdown" else None
        if found:
            return found.group(1).strip()
    return "Untitled"


def reading_minutes(page: NotebookNode) -> int:
    """Minutes that a page takes to read, its folded code and figures left aside."""
    words = 0
    for cell in page.cells:
        if cell.cell_type == "markdown":
            words += len(cell.source.split())
            continue
        texts = [output.get("data", {}).get("text/markdown", "") for output in cell.outputs]
        words += sum(len("".join(text).split()) for text in texts)
    return max(1, round(words / WORDS_A_MINUTE))


def arrange(page: NotebookNode, name: str, strip: str, banner: str) -> None:
    """Give an executed notebook the anatomy of a page, in place.

    Args:
        page: the notebook.
        name: of it.
        strip: badges of its claims, as Markdown.
        banner: what was run, as Markdown; stands under the answer.
    """
    code = [cell for cell in page.cells if cell.cell_type == "code"]
    for cell in code:
        _fold(cell)
        _with_captions(cell, name)
    first = [cell for tag in (ANSWER, HEADLINE) for cell in code if tag in cell.metadata.get("tags", [])]
    page.cells = [cell for cell in page.cells if cell not in first]
    for place, cell in enumerate(page.cells):
        found = _TITLE.search(cell.source) if cell.cell_type == "markdown" else None
        if found:
            before, after = cell.source[: found.end()], cell.source[found.end() :].strip()
            page.cells[place : place + 1] = [
                *_markdown((before, cell.id), (strip, "verdict-strip"), (after, "after-title")),
                *first,
                *_markdown((banner, "banner")),
            ]
            return
    page.cells = [*_markdown((strip + banner, "banner")), *first, *page.cells]


def _markdown(*parts: tuple[str, str]) -> Iterable[NotebookNode]:
    return (nbformat.v4.new_markdown_cell(text, id=name) for text, name in parts if text)


def _fold(cell: NotebookNode) -> None:
    """Fold the code of a cell unless it computes: imports, drawing and sentences are no method.

    At the head of the page no code is shown at all.
    """
    tags = cell.metadata.get("tags", [])
    wanted = WITHOUT_CODE if {ANSWER, HEADLINE} & set(tags) else FOLDED
    if part_of(cell) != COMPUTE and wanted not in tags:
        cell.metadata["tags"] = [*tags, wanted]


def _with_captions(cell: NotebookNode, name: str) -> None:
    """Make a figure of a picture and its caption, which are two outputs."""
    marks = [(output, output.get("metadata", {}).get(MARK, {})) for output in cell.outputs]
    figure = next((mark for _, mark in marks if "figure" in mark), None)
    caption = next((output.data["text/markdown"] for output, mark in marks if "caption" in mark), None)
    if figure is None or caption is None:
        return
    cell.outputs = [output for output, mark in marks if "caption" not in mark]
    cell.metadata["mystnb"] = {
        "figure": {"caption": caption, "name": label(name, figure["figure"])},
        "image": {"width": f"{figure['width']}px", "alt": figure["figure"].replace("_", " ")},
    }


def label(name: str, figure: str) -> str:
    """Name by which other pages refer to a figure."""
    return f"figure-{name[:2]}-{figure.replace('_', '-')}"
