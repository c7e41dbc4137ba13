"""Normalisation of executed notebooks, so that a rerun with the same results gives an empty diff.

Random ids, timings, kernel versions, progress bars, memory addresses and local paths are removed. Figures are
stored as small PNG files.
"""

import base64
import io
import itertools
import re
from collections.abc import Mapping
from typing import Any

from PIL import Image

from palimpsest import paths
from palimpsest.book.formats import NotebookNode
from palimpsest.book.page_code import COMPUTE, PARAMETERS, SETUP, SHOW, part_of

_ADVICE = re.compile(r"[^\n]*TqdmWarning: IProgress not found[^\n]*\n[^\n]*autonotebook[^\n]*\n?")
_BAR = re.compile(r"\d+%\|.*|.*\d+(it|\w+)? \[\d+:\d\d.*|.*\[\d+:\d\d<.*")
_ADDRESS = re.compile(r"\b0x[0-9a-f]{6,16}\b")
_CELL_FILE = re.compile(r"\S*ipykernel_\d+/\d+\.py")
_STYLED = re.compile(r"\bT_[0-9a-f]{5}(?![0-9a-f])")  # pandas' random id of a styled table
_STAGING = re.compile(r"[\w.-]+\.tmp\.\w+/")
WIDGET = "application/vnd.jupyter.widget-view+json"
"""Kind of an output that only a running kernel can show."""

INJECTED = "injected-parameters"
"""Id of the cell that papermill adds."""

COLOURS = 256
"""Number of colours in a figure's palette; enough for line charts and heat maps to look unchanged."""


def normalise(notebook: NotebookNode) -> NotebookNode:
    """Normalise a notebook in place and return it; the operation is idempotent."""
    notebook.metadata.pop("widgets", None)
    used = notebook.metadata.pop("papermill", {}).get("parameters", {})
    notebook.metadata["papermill"] = {"parameters": used}
    notebook.metadata.get("language_info", {}).pop("version", None)
    for cell in notebook.cells:
        _normalise_cell(cell)
    return notebook


def _normalise_cell(cell: NotebookNode) -> None:
    tags = cell.metadata.get("tags", [])
    for key in ("papermill", "execution", *([] if tags else ["tags"])):
        cell.metadata.pop(key, None)
    if "injected-parameters" in tags:
        cell.id = INJECTED
    if cell.cell_type == "code":
        cell.outputs = _outputs(cell.outputs)


def _outputs(outputs: list[NotebookNode]) -> list[NotebookNode]:
    kept: list[NotebookNode] = []
    for streams, group in itertools.groupby(outputs, lambda out: out.output_type == "stream"):
        if streams:
            kept += _joined(list(group))
            continue
        for output in group:
            if WIDGET in output.get("data", {}):
                continue  # a progress bar of another library: needs a kernel
            for kind, content in output.get("data", {}).items():
                output.data[kind] = _content(kind, content)
            kept.append(output)
    return kept


def _joined(streams: list[NotebookNode]) -> list[NotebookNode]:
    """Join stdout, then stderr, because the splitting and interleaving of streams varies between runs."""
    kept = []
    for name in ("stdout", "stderr"):
        parts = [stream for stream in streams if stream.name == name]
        text = without_bars(portable("".join(part.text for part in parts)))
        if text:
            kept.append(NotebookNode({**parts[0], "text": text}))
    return kept


def without_bars(text: str) -> str:
    """Text of a stream without lines of progress bars and without tqdm's warning about widgets."""
    text = _ADVICE.sub("", text).replace("\x1b[A", "")  # nested bars move the cursor up
    lines = [line.split("\r") for line in text.split("\n")]
    kept = []
    for parts in lines:
        shown = [part for part in parts if part and not _BAR.fullmatch(part)]
        if shown or parts == [""]:
            kept.append(shown[-1] if shown else "")
    result = "\n".join(kept)
    return result if result.strip() else ""


def portable(text: str) -> str:
    """Text without memory addresses, names of temporary files and the path of this checkout."""
    text = _STAGING.sub("", _CELL_FILE.sub("<cell>", _ADDRESS.sub("0x0", text)))
    return text.replace(f"{paths.checkout()}/", "")


def _content(kind: str, content: Any) -> Any:
    if kind.endswith("image/png"):
        return compact_png(content)
    if not isinstance(content, str):
        return content
    names: dict[str, str] = {}
    content = _STYLED.sub(lambda m: names.setdefault(m[0], f"T_{len(names):05x}"), content)
    return portable(content)


def compact_png(encoded: str) -> str:
    """The smaller of two base64 PNGs without metadata: with a palette of ``COLOURS`` colours, or with RGB."""
    picture = Image.open(io.BytesIO(base64.b64decode(encoded)))
    if picture.mode == "P":
        return encoded
    flat = Image.new("RGB", picture.size, "white")
    flat.paste(picture, mask=picture.getchannel("A") if "A" in picture.getbands() else None)
    candidates = [_png(flat), _png(flat.quantize(COLOURS, dither=Image.Dither.NONE))]
    return base64.b64encode(min(candidates, key=len)).decode()


def _png(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def with_current_sources(
    executed: NotebookNode,
    source: NotebookNode,
    *,
    stands: bool,
    shown: Mapping[str, NotebookNode] | None = None,
) -> NotebookNode | None:
    """The present source with the outputs of an executed copy, cell by cell.

    Args:
        executed: the copy.
        source: the notebook as it is now.
        stands: whether the copy's result stands for the present code. Cells that compute may then differ from
            those that ran, and one that is new has no output; otherwise none may.
        shown: id -> executed cell that shows something; the copy's own by default.

    Returns:
        A new notebook, or None if cells that compute have changed and the notebook has to be run.
    """
    injected = [cell for cell in executed.cells if cell.id == INJECTED]
    done = {cell.id: cell for cell in executed.cells if cell.cell_type == "code" and cell.id != INJECTED}
    if not stands and _computing(executed) != _computing(source):
        return None
    ran = done | dict(shown or {})
    cells: list[NotebookNode] = []
    for cell in source.cells:
        if cell.cell_type != "code":
            cells.append(cell)
            continue
        made = ran.get(cell.id, {})
        outputs, count = made.get("outputs", []), made.get("execution_count")
        if part_of(cell) == SHOW:
            count = None  # it may have been drawn later than the cells around it ran
        cells.append(NotebookNode({**cell, "outputs": outputs, "execution_count": count}))
        if part_of(cell) == PARAMETERS:
            cells += injected
    return NotebookNode({**executed, "metadata": executed.metadata or source.metadata, "cells": cells})


def _computing(notebook: NotebookNode) -> list[str]:
    """Sources of the cells that make a notebook's records."""
    return [
        cell.source
        for cell in notebook.cells
        if cell.cell_type == "code" and cell.id != INJECTED and part_of(cell) in (COMPUTE, SETUP)
    ]
