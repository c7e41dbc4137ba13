"""Whether a result still stands for the present sources.

Modification times mean nothing after a clone, so what a result came from is kept as hashes: the code that its
notebook reaches, definition by definition; parameters by their values; settings by the rows that the run can
ask for; data by the files that the run read. Prose, comments, docstrings, the place of a definition and code
that a page never reaches do not count: correcting a sentence or writing code for another page costs no hour
of computing.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from palimpsest import paths
from palimpsest.book.arms import ARMS
from palimpsest.book.dependencies import Reached, Vocabulary, dependencies, short_hash
from palimpsest.book.page_code import SHOW, NotebookCode, notebook_code
from palimpsest.errors import ProfileError
from palimpsest.files import UNREADABLE

SCHEME = 2
"""How hashes are made; 1 was by file."""

LONG = "long"
"""Profile whose tables a page shows beside its own."""

NOTEBOOK = "the notebook"
"""Stands among the definitions for the notebook's own code."""

ABSENT = "absent"
"""Stands for the hash of a file that is not there any more."""


@dataclass(frozen=True)
class Inputs:
    """What a result depends on.

    Attributes:
        parts: kind of input -> hash.
        definitions: definition, with its module -> hash of its own code, to name what has changed.
        settings: row of settings that the run can ask for -> hash, for the same purpose.
    """

    parts: Mapping[str, str]
    definitions: Mapping[str, str]
    settings: Mapping[str, str]

    @property
    def content_hash(self) -> str:
        """One hash for everything."""
        return content_hash(self.parts)


def content_hash(parts: Mapping[str, str]) -> str:
    """The hash of all parts."""
    text = json.dumps(sorted(parts.items()))
    return hashlib.sha256(text.encode()).hexdigest()


def _hashed(content: Any) -> str:
    return short_hash(json.dumps(content, sort_keys=True, ensure_ascii=False))


def inputs(
    notebook: Path, parameters: Mapping[str, Any], files: Iterable[str] = (), root: Path | None = None
) -> Inputs:
    """What a result depends on, as the sources are now.

    Args:
        notebook: path of the source.
        parameters: all of them, as used.
        files: data files that the run read, below the root.
        root: of the checkout, if not this one.

    Raises:
        NotebookError: if the notebook or a module cannot be read as Python; the message names file and line.
        ProfileError: if a settings file is not YAML.
    """
    root = root or paths.checkout()
    code = notebook_code(notebook, dependencies(root / "src" / "palimpsest").package)
    found, settings = reach(code, parameters, root)
    own = {str(definition): digest for definition, digest in found.definitions.items()}
    parts = {
        "code": _hashed([found.page, sorted(found.hashes)]),
        "parameters": _hashed(dict(parameters)),
        "settings": _hashed(settings),
        "data": _hashed(file_hashes(files, root)),
    }
    shown = sorted((root / "results" / ARMS / notebook.stem).glob("*/*.parquet"))
    if parameters.get("profile") != LONG:
        shown = sorted((root / "results" / LONG).glob(f"{notebook.stem}.*.parquet")) + shown
    if shown or parameters.get("profile") != LONG:
        parts["long records"] = _hashed(
            file_hashes((path.relative_to(root).as_posix() for path in shown), root)
        )
    return Inputs(parts, {NOTEBOOK: found.own_page, **own}, _by_row(settings))


def shown_hash(
    notebook: Path, parameters: Mapping[str, Any], files: Iterable[str], records: Mapping[str, str]
) -> str:
    """One hash for what a page's figures, tables and sentences come from.

    Args:
        notebook: path of the source.
        parameters: all of them, as used.
        files: data files that the cells read which show something, below the root.
        records: name of each file of the result -> its hash.

    Raises:
        NotebookError: as `inputs`.
    """
    code = notebook_code(notebook, dependencies(paths.checkout() / "src" / "palimpsest").package, SHOW)
    found, settings = reach(code, parameters)
    long = (paths.results_dir(LONG) / name for name in records)
    carried = [path.relative_to(paths.checkout()).as_posix() for path in long if path.is_file()]
    return content_hash(
        {
            "code": _hashed([found.page, sorted(found.hashes)]),
            "parameters": _hashed(dict(parameters)),
            "settings": _hashed(settings),
            "data": _hashed(file_hashes([*files, *carried])),
            "records": _hashed(dict(records)),
        }
    )


def with_files(found: Inputs, files: Mapping[str, str]) -> Inputs:
    """The same inputs with the data files that a run turned out to read, and their hashes."""
    return replace(found, parts={**found.parts, "data": _hashed(dict(files))})


def file_hashes(files: Iterable[str], root: Path | None = None) -> dict[str, str]:
    """Path below the root -> sha256 of the file's bytes, or of the names in a folder (ending in ``/``)."""
    found = {}
    for name in sorted(files):
        path = (root or paths.checkout()) / name
        if path.is_dir():
            inside = "\n".join(sorted(item.name for item in path.iterdir() if not item.name.startswith(".")))
            found[name] = hashlib.sha256(inside.encode()).hexdigest()
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ABSENT
    return found


def _by_row(settings: Mapping[str, Any]) -> dict[str, str]:
    """Hash of each row: of a sequence, and of each section of a model's file."""
    found = {f"sequences/{name}": _hashed(row) for name, row in settings["sequences"].items()}
    for model, content in settings["models"].items():
        for key, value in content.items():
            rows = value.items() if isinstance(value, dict) else [("", value)]
            found |= {f"{model}/{key}/{name}".rstrip("/"): _hashed(row) for name, row in rows}
    return found


def texts_of(value: Any) -> Iterable[str]:
    """All texts in nested lists and mappings, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from (*texts_of(key), *texts_of(item))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from texts_of(item)


def reach(
    code: NotebookCode, parameters: Mapping[str, Any], root: Path | None = None
) -> tuple[Reached, dict[str, Any]]:
    """What a page's code reaches, and the settings that it can ask for.

    Sequences name an editor as host, and a model's file says which architecture it has, so settings widen
    what code can be reached, and code widens which settings can be asked for, until neither does.
    """
    root = root or paths.checkout()
    known = {path.stem: _yaml(path) for path in sorted((root / "config" / "models").glob("*.yaml"))}
    file = root / "config" / "sequences.yaml"
    rows = _yaml(file) if file.is_file() else {}
    graph = dependencies(root / "src" / "palimpsest")
    vocabulary = Vocabulary().with_texts([*code.texts, *texts_of(parameters)], joined=True)
    while True:
        found = graph.reached(code.form, vocabulary)
        sequences, models = _asked(known, rows, found.vocabulary)
        architectures = [model.get("architecture", "") for model in models.values()]
        wider = found.vocabulary.with_texts([*texts_of(list(sequences.values())), *architectures])
        if wider == vocabulary:
            return found, {"sequences": sequences, "models": models}
        vocabulary = wider


def _asked(
    known: Mapping[str, Any], rows: Mapping[str, Any], vocabulary: Vocabulary
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rows of sequences that can be asked for, and of each model that can be meant its sections likewise.

    A section with rows is read by its name, so that it counts only where code or notebook have that text.
    """
    models = {}
    for name, content in known.items():
        if {name, *content.get("also", [])} & vocabulary.texts:
            models[name] = {
                key: {row: value[row] for row in vocabulary.asked(value)}
                if isinstance(value, dict)
                else value
                for key, value in content.items()
                if key != "also" and (not isinstance(value, dict) or key in vocabulary.texts)
            }
    return {name: rows[name] for name in vocabulary.asked(rows)}, models


def _yaml(path: Path) -> dict[str, Any]:
    try:
        content = _parsed(path.read_text("utf-8"))
    except UNREADABLE as error:
        raise ProfileError(f"{path.name} is not YAML: {error}") from error
    return content if isinstance(content, dict) else {}


@lru_cache(maxsize=64)
def _parsed(text: str) -> Any:
    """Content of a settings file, which every page asks for; to be read and not changed."""
    return yaml.safe_load(text)
