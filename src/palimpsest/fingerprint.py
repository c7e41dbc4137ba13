"""What a result depends on, as one hash.

Modification times mean nothing after a clone, so a result is stale when the content it came from has
changed: the notebook's code, the modules of the package that it reaches by imports, the settings, the
parameters, the data, the pinned resources and the long records shown beside. Prose, comments and docstrings
do not count, nor do modules that a notebook never reaches: correcting a sentence, or writing a module for
another page, costs no hour of computing. (An editor is registered in `palimpsest.editors`, and so reached by
every page that edits.)
"""

import ast
import hashlib
import importlib
import io
import json
import tokenize
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import nbformat

from palimpsest import paths
from palimpsest.imports import reached

WITHOUT_EFFECT = {
    "book": "turns records into pages",
    "claims.py": "judges records that are already written",
    "cli.py": "passes on parameters, which are hashed by value",
    "fingerprint.py": "computes this hash",
    "normalise.py": "tidies what a run has written",
    "parameters.py": "checks parameters, which are hashed by value",
    "printed.py": "judges printed numbers",
    "profiles.py": "reads parameters, which are hashed by value",
    "rules.py": "judges records that are already written",
    "runner.py": "starts the notebook",
}
"""Parts of the package that cannot change a result, with the reason."""

DATA = ("data/facts", "data/published", "config/models", "config/sequences.yaml")

LONG = "long"
"""Profile whose tables a page shows beside its own."""


def _digest(parts: Iterable[bytes]) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(hashlib.sha256(part).digest())
    return total.hexdigest()


def code_of_notebook(notebook: Path) -> list[tuple[str, str]]:
    """Id and source of each code cell, in order."""
    cells = nbformat.read(notebook, as_version=4).cells
    return [(cell.id, str(cell.source)) for cell in cells if cell.cell_type == "code"]


def _docstring_lines(source: str) -> set[int]:
    """Numbers of the lines that hold nothing but a text standing as a statement."""
    lines, found = source.splitlines(), set[int]()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Constant):
            continue
        before = lines[node.lineno - 1].encode()[: node.col_offset]
        if isinstance(node.value.value, str) and not before.strip():
            found |= set(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return found


def bare_code(source: str) -> str:
    """Python source without comments, docstrings, blank lines and trailing spaces."""
    lines = source.splitlines()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column]
    prose = _docstring_lines(source)
    kept = (line.rstrip() for number, line in enumerate(lines, 1) if number not in prose)
    return "\n".join(line for line in kept if line)


def _files(folder: Path) -> list[Path]:
    """The files below a folder, or the file itself."""
    if folder.is_file():
        return [folder]
    hidden = ("__pycache__", ".ipynb_checkpoints")
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part in hidden for part in path.parts)
    )


def _tree(folder: Path) -> Iterable[bytes]:
    """Names and contents below a folder."""
    for path in _files(folder):
        yield path.relative_to(folder).as_posix().encode()
        yield path.read_bytes()


def _sources(package: Path, code: str) -> Iterable[bytes]:
    """Names and contents of the modules that some code reaches, without their prose."""
    for path in sorted(reached(package, code, frozenset(WITHOUT_EFFECT))):
        yield path.relative_to(package).as_posix().encode()
        yield bare_code(path.read_text(encoding="utf-8")).encode()


def _pins() -> dict[str, str]:
    pins = importlib.import_module("palimpsest.resources").PINS
    return {name: pin.sha256 for name, pin in pins.items()}


def components(notebook: Path, parameters: Mapping[str, Any]) -> dict[str, str]:
    """One hash for each thing a result depends on, so that a change can be named.

    Args:
        notebook: path of the source.
        parameters: all of them, as used.
    """
    root, cells = paths.root(), code_of_notebook(notebook)
    as_text = {
        "notebook code": cells,
        "parameters": dict(parameters),
        "pinned resources": _pins(),
    }
    parts = {
        name: _digest([json.dumps(content, sort_keys=True).encode()]) for name, content in as_text.items()
    }
    code = "\n".join(source for _, source in cells)
    parts["package code"] = _digest(_sources(root / "src" / "palimpsest", code))
    parts["data and model settings"] = _digest(part for folder in DATA for part in _tree(root / folder))
    if parameters.get("profile") != LONG:
        shown = sorted((root / "results" / LONG).glob(f"{notebook.stem}.*.parquet"))
        parts["long records"] = _digest(path.read_bytes() for path in shown)
    return dict(sorted(parts.items()))


def content_hash(parts: Mapping[str, str]) -> str:
    """The hash of all components."""
    return _digest(f"{name}={value}".encode() for name, value in sorted(parts.items()))
