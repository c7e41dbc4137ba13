"""What a page asks of a model's settings, compared with what is on file before anything runs.

A page asks with texts: names of editors, and of sequences, whose host is an editor. They stand in its
parameters and in the code of its cells. What a page needs is therefore every such name that occurs there, and
every run is checked against it: one that asked for more is no result.
"""

import ast
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from palimpsest import paths
from palimpsest.book.canonical import strings
from palimpsest.book.dependencies import Vocabulary
from palimpsest.book.formats import nbformat
from palimpsest.book.model_files import file_of, model_files
from palimpsest.book.page_code import COMPUTE, SETUP, part_of
from palimpsest.book.profiles import Profile, has_page, parameters_for
from palimpsest.book.staleness import texts_of
from palimpsest.errors import NotebookError, ProfileError
from palimpsest.files import UNREADABLE

LABELS: dict[str, frozenset[str]] = {
    "10_uncertainty": frozenset({"ft", "ft_l", "kn", "mend", "ike"}),
    "16_general_ability": frozenset({"alphaedit_plus"}),
    "24_other_editors": frozenset({"instruct_edit", "mend", "serac"}),
    "25_harder_questions": frozenset({"serac"}),
}
"""Notebook -> editors that its code names only to tell them apart; it asks where a parameter names them."""

FILES = ("data", "counterfact_file")
"""Parameters that name a file of facts in place of the project's own."""

COUNTS = ("facts", "at", "base")
"""Parameters that are a number of facts, or several."""

REGIME = ("regime", "regimes")
"""Parameters that name rows of ``regimes`` in the model's settings."""


@dataclass(frozen=True)
class Needs:
    """What a page needs of a model's settings file.

    Attributes:
        editors: sections of ``editors``.
        regimes: rows of ``regimes``.
        a_regime: whether it reads such a row whatever its parameters say.
    """

    editors: frozenset[str] = frozenset()
    regimes: frozenset[str] = frozenset()
    a_regime: bool = False

    def lacking(self, model: str) -> str:
        """What a model's settings lack of it, and the remedy; empty if they have all.

        Raises:
            ProfileError: if a settings file is not YAML.
        """
        if not (self.editors or self.regimes or self.a_regime):
            return ""
        known = file_of(model)
        if known is None:
            return (
                f"no file in config/models holds for {model}; add one, or name in the profile, under "
                "'settings', the one that does"
            )
        file, content = known
        editors = sorted(self.editors - set(content.get("editors", {})))
        if editors:
            return f"{file} has no settings for {', '.join(editors)}; add them there under 'editors'"
        regimes = sorted(self.regimes - set(content.get("regimes", {})))
        if regimes:
            return f"{file} has no regime {', '.join(regimes)}; add it there under 'regimes'"
        if self.a_regime and not self.regimes:
            return "it reads a regime, and its parameter 'regime' names none; name one of the settings file"
        return ""


def needs(notebook: Path, parameters: Mapping[str, Any]) -> Needs:
    """What a notebook needs of a model's settings.

    Args:
        notebook: path of the source.
        parameters: all of them, as used.

    Raises:
        NotebookError: if a cell is not Python.
        ProfileError: if a settings file or ``config/sequences.yaml`` is not YAML.
    """
    code, a_regime = _of_code(notebook, notebook.stat().st_mtime_ns)
    given = Vocabulary().with_texts(texts_of(parameters)).texts
    editors = {name for content in model_files().values() for name in content.get("editors", {})}
    found = editors & (given | (code - LABELS.get(notebook.stem, frozenset())))
    for name, row in _sequences().items():
        if name in given | code:
            found |= {row.get("host", "")} | (editors & Vocabulary().with_texts(texts_of(row)).texts)
    named = [value for name in REGIME for value in texts_of(parameters.get(name, ""))]
    return Needs(frozenset(found), frozenset(name for name in named if name), a_regime)


def _sequences() -> dict[str, dict[str, Any]]:
    path = paths.root() / "config" / "sequences.yaml"
    if not path.is_file():
        return {}
    try:
        return dict(yaml.safe_load(path.read_text("utf-8")) or {})
    except UNREADABLE as error:
        raise ProfileError(f"{path.name} is not YAML, or holds no mapping: {error}") from error


@lru_cache(maxsize=64)
def _of_code(notebook: Path, changed: int) -> tuple[frozenset[str], bool]:
    """Texts in the cells that compute, and whether one of them looks a regime up by a parameter."""
    texts: set[str] = set()
    a_regime = False
    for cell in nbformat.read(notebook, as_version=4).cells:
        if cell.cell_type != "code" or part_of(cell) not in (COMPUTE, SETUP):
            continue
        try:
            tree = ast.parse(cell.source)
        except SyntaxError as error:
            raise NotebookError(f"{notebook.name}, cell {cell.id}: not Python: {error.msg}") from error
        texts |= set(strings(tree))
        a_regime |= any(_looks_up_a_regime(node) for node in ast.walk(tree))
    return Vocabulary().with_texts(texts).texts, a_regime


def _looks_up_a_regime(node: ast.AST) -> bool:
    """Whether it is ``regimes(...)[regime]``."""
    return (
        isinstance(node, ast.Subscript)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func).split(".")[-1] == "regimes"
    )


def left_out(profile: Profile, notebook: Path, overrides: Mapping[str, Any] | None = None) -> str:
    """Why a profile does not run a page; empty if it does.

    Args:
        profile: that would run it.
        notebook: path of the source.
        overrides: parameters that win over the profile's.

    Raises:
        UnknownNameError, ProfileError: as `palimpsest.book.profiles.parameters_for`.
    """
    if not has_page(profile, notebook.stem):
        return "not in this profile, which gives no sizes for it"
    parameters = parameters_for(profile, notebook, overrides)
    lack = needs(notebook, parameters).lacking(str(parameters.get("model", profile.model)))
    return f"not for this model: {lack}" if lack else _short_of_facts(parameters)


def _short_of_facts(parameters: Mapping[str, Any]) -> str:
    """Whether a page asks for more facts than the project has, without a file of more; empty if not."""
    if any(parameters.get(name) for name in FILES):
        return ""
    asked = {name: parameters[name] for name in COUNTS if name in parameters}
    most = {name: max(value) if isinstance(value, list) else value for name, value in asked.items() if value}
    table = paths.root() / "data" / "facts" / "triples.csv"
    known = len(table.read_text("utf-8").splitlines()) - 1 if table.is_file() else 0
    for name, value in most.items():
        if known and isinstance(value, int) and value > known:
            files = [file for file in FILES if file in parameters]
            remedy = f", or a file of more with {files[0]}" if files else ""
            return (
                f"short of facts: {name} asks for {value:,}, and the project has {known:,}, seven in ten "
                f"of them for tests; give fewer{remedy}"
            )
    return ""


def require(profile: Profile, notebook: Path, overrides: Mapping[str, Any] | None = None) -> None:
    """Refuse a page that a profile does not run.

    Raises:
        ProfileError: if it does not; the message says why, and what to do.
    """
    reason = left_out(profile, notebook, overrides)
    if not reason:
        return
    remedy = ""
    if not has_page(profile, notebook.stem):
        here = ", ".join(name for name in profile.listed if name != notebook.stem)
        remedy = (
            f"; write them into config/profiles/{profile.name}.yaml, under 'notebooks' (and 'pages' where it "
            f"has that), or choose another page or profile. It has: {here or 'none'}"
        )
    raise ProfileError(f"{notebook.stem} under {profile.name} ({profile.model}) is {reason}{remedy}")


def check_needed(notebook: Path, parameters: Mapping[str, Any], asked: Collection[str]) -> None:
    """Whether a run asked for no editor but those that its page needs.

    Args:
        notebook: path of the source.
        parameters: as used.
        asked: keys of the settings that the run asked for.

    Raises:
        NotebookError: otherwise, since the page would pass for one that another model can run.
    """
    editors = {name for content in model_files().values() for name in content.get("editors", {})}
    missed = sorted((editors & set(asked)) - needs(notebook, parameters).editors)
    if missed:
        raise NotebookError(
            f"{notebook.stem} asked for the settings of {', '.join(missed)}, which does not count among what "
            "it needs: spell the name out in the notebook or in a parameter, and leave it out of LABELS in "
            "book/needs.py"
        )
