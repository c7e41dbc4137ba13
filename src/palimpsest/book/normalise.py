"""Make an executed notebook depend on nothing but its content, so that a rerun is an empty diff.

Removed: random ids, timings, versions of the kernel, progress bars, memory addresses, paths of this
machine. Figures are stored as small PNG files.
"""

import base64
import io
import itertools
import re
from typing import Any

from nbformat import NotebookNode
from PIL import Image

from palimpsest import paths

_ADVICE = re.compile(r"[^\n]*TqdmWarning: IProgress not found[^\n]*\n[^\n]*autonotebook[^\n]*\n?")
_BAR = re.compile(r"\d+%\|.*|.*\d+(it|\w+)? \[\d+:\d\d.*|.*\[\d+:\d\d<.*")
_ADDRESS = re.compile(r"\b0x[0-9a-f]{6,16}\b")
_CELL_FILE = re.compile(r"\S*ipykernel_\d+/\d+\.py")
_STYLED = re.compile(r"\bT_[0-9a-f]{5}(?![0-9a-f])")  # pandas' random name of a styled table
_STAGING = re.compile(r"[\w.-]+\.tmp\.\w+/")
COLOURS = 256
"""Size of a figure's palette; line charts and heat maps look the same with it."""


def normalise(notebook: NotebookNode) -> NotebookNode:
    """Normalise in place and return the notebook; twice is the same as once."""
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
        cell.id = "injected-parameters"
    if cell.cell_type == "code":
        cell.outputs = _outputs(cell.outputs)


def _outputs(outputs: list[NotebookNode]) -> list[NotebookNode]:
    kept: list[NotebookNode] = []
    for streams, group in itertools.groupby(outputs, lambda out: out.output_type == "stream"):
        if streams:
            kept += _joined(list(group))
            continue
        for output in group:
            for kind, content in output.get("data", {}).items():
                output.data[kind] = _content(kind, content)
            kept.append(output)
    return kept


def _joined(streams: list[NotebookNode]) -> list[NotebookNode]:
    """What was printed, then what was reported: how the two are cut and interleaved varies."""
    kept = []
    for name in ("stdout", "stderr"):
        parts = [stream for stream in streams if stream.name == name]
        text = without_bars(portable("".join(part.text for part in parts)))
        if text:
            kept.append(NotebookNode({**parts[0], "text": text}))
    return kept


def without_bars(text: str) -> str:
    """A stream's text without the lines that progress bars leave behind, and tqdm's advice about widgets."""
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
    """Text without memory addresses, names of temporary files and this checkout's path."""
    text = _STAGING.sub("", _CELL_FILE.sub("<cell>", _ADDRESS.sub("0x0", text)))
    return text.replace(f"{paths.root()}/", "")


def _content(kind: str, content: Any) -> Any:
    if kind.endswith("image/png"):
        return compact_png(content)
    if not isinstance(content, str):
        return content
    names: dict[str, str] = {}
    content = _STYLED.sub(lambda m: names.setdefault(m[0], f"T_{len(names):05x}"), content)
    return portable(content)


def compact_png(encoded: str) -> str:
    """A base64 PNG with a palette of ``COLOURS`` colours, if that is smaller; else without metadata."""
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


def with_current_prose(executed: NotebookNode, source: NotebookNode) -> NotebookNode | None:
    """The executed notebook with its source's present text around the code.

    Returns:
        A new notebook, or None if the code cells differ and the notebook has to be run.
    """
    done = {cell.id: cell for cell in executed.cells if cell.cell_type == "code"}
    cells: list[NotebookNode] = []
    for cell in source.cells:
        if cell.cell_type != "code":
            cells.append(cell)
            continue
        if cell.id not in done or done[cell.id].source != cell.source:
            return None
        cells.append(done[cell.id])
        if "parameters" in cell.metadata.get("tags", []) and "injected-parameters" in done:
            cells.append(done["injected-parameters"])
    return NotebookNode({**executed, "cells": cells})
