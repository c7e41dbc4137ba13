"""Editing methods, one file each, and EDITORS, the table of their names.

MEMIT, AlphaEdit, AlphaEdit+, EMMET and ROME are settings of one least-squares problem
(`palimpsest.algebra.solve`).
A new method is one file with a subclass of `palimpsest.editors.base.Editor`, and one row of EDITORS.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import ValidationError

from palimpsest.editors.alphaedit import AlphaEdit
from palimpsest.editors.alphaedit_plus import AlphaEditPlus
from palimpsest.editors.alphaedit_plus import PlusState as PlusState
from palimpsest.editors.base import Editor, Prepared, State
from palimpsest.editors.derived import derived_settings, has_file
from palimpsest.editors.emmet import Emmet
from palimpsest.editors.ft import FineTune
from palimpsest.editors.grace import Grace
from palimpsest.editors.ike import Ike
from palimpsest.editors.ike import IkeState as IkeState
from palimpsest.editors.kn import KnowledgeNeurons
from palimpsest.editors.lora import Lora
from palimpsest.editors.lyaplock import LyapLock
from palimpsest.editors.melo import Melo
from palimpsest.editors.memit import Memit
from palimpsest.editors.mend import InstructEdit, Mend
from palimpsest.editors.rome import Rome
from palimpsest.editors.serac import Serac
from palimpsest.editors.settings import asked, derived_from, editor_settings
from palimpsest.editors.ultraedit import UltraEdit
from palimpsest.errors import ProfileError, RequestError, ScoreError, UnknownNameError
from palimpsest.network.apply import Edit
from palimpsest.network.model import EditableModel
from palimpsest.network.tokens import encode_target
from palimpsest.styles import OKABE_ITO, STYLES, Style
from palimpsest.types import EditRequest


@dataclass(frozen=True)
class Method:
    """One row of EDITORS.

    Attributes:
        editor: class of the method; its fields are the settings.
        style: printed name and colour.
    """

    editor: type[Editor]
    style: Style


EDITORS: dict[str, Method] = {
    "memit": Method(editor=Memit, style=Style(Memit.printed, OKABE_ITO["blue"])),
    "alphaedit": Method(editor=AlphaEdit, style=Style(AlphaEdit.printed, OKABE_ITO["vermilion"])),
    "alphaedit_plus": Method(editor=AlphaEditPlus, style=Style(AlphaEditPlus.printed, OKABE_ITO["black"])),
    "rome": Method(editor=Rome, style=Style(Rome.printed, OKABE_ITO["orange"])),
    "ft": Method(editor=FineTune, style=Style(FineTune.printed, OKABE_ITO["sky blue"])),
    "ft_l": Method(editor=FineTune, style=Style("FT-L")),
    "ft_m": Method(editor=FineTune, style=Style("FT-M")),
    "lora": Method(editor=Lora, style=Style(Lora.printed)),
    "r_rome": Method(editor=Rome, style=Style("r-ROME")),
    "emmet": Method(editor=Emmet, style=Style(Emmet.printed, OKABE_ITO["yellow"])),
    "kn": Method(editor=KnowledgeNeurons, style=Style(KnowledgeNeurons.printed)),
    "mend": Method(editor=Mend, style=Style(Mend.printed)),
    "instruct_edit": Method(editor=InstructEdit, style=Style(InstructEdit.printed)),
    "ultraedit": Method(editor=UltraEdit, style=Style(UltraEdit.printed)),
    "lyaplock": Method(editor=LyapLock, style=Style(LyapLock.printed)),
    "ike": Method(editor=Ike, style=Style(Ike.printed)),
    "grace": Method(editor=Grace, style=Style(Grace.printed)),
    "melo": Method(editor=Melo, style=Style(Melo.printed)),
    "serac": Method(editor=Serac, style=Style(Serac.printed)),
}
"""Method name, as in settings, notebooks and records -> class and style."""


def style_of(name: str) -> Style:
    """Printed name and colour of a method; an unknown method is printed under its name in code."""
    if name in EDITORS:
        return EDITORS[name].style
    return STYLES[name] if name in STYLES else Style(name)


def settings_for(model: str | EditableModel, editor: str) -> dict[str, Any]:
    """Settings of an editor for a model: those on file, or derived ones, printed with their reasons.

    Of settings on file that are derived it is printed that they are, and from which model.

    Args:
        model: short name, or a hub id listed in the model's settings file; or a loaded model, for which
            settings are derived if it has no file.
        editor: a key of EDITORS.

    Raises:
        UnknownNameError: if a name has no settings file.
        ProfileError: if the file has no section for the editor.
    """
    if isinstance(model, str) or has_file(model.name):
        name = model if isinstance(model, str) else model.name
        if source := derived_from(name):
            said = f"settings of {editor} for {name} are derived from those of {source} and were not searched"
            print(f"palimpsest: {said}; their file in config/models has the reasons", file=sys.stderr)
        return editor_settings(name, editor)
    found = derived_settings(model, editor)
    print(f"palimpsest: {found}", file=sys.stderr)
    return found.settings


def editor_for(name: str, model: str | EditableModel, **overrides: object) -> Editor:
    """Make an editor with a model's settings from ``config/models``, or derived ones.

    Args:
        name: a key of EDITORS.
        model: as `settings_for`.
        overrides: settings that replace those on file.

    Raises:
        UnknownNameError: if the editor or the model is unknown.
        ProfileError: if the editor has no such setting, or its value is out of range.
    """
    asked(name)
    if name not in EDITORS:
        raise UnknownNameError("editor", name, list(EDITORS))
    called = model if isinstance(model, str) else model.name
    return editor_with(name, settings_for(model, name) | overrides, called)


def editor_with(name: str, settings: Mapping[str, Any], called: str) -> Editor:
    """Make an editor with settings that are all given.

    Args:
        name: a key of EDITORS.
        settings: keyword arguments of the editor.
        called: name of the model that they are for, for messages.

    Raises:
        ProfileError: if the editor has no such setting, or its value is out of range.
    """
    try:
        editor: Editor = EDITORS[name].editor(**settings)
    except ValidationError as error:
        raise ProfileError(f"settings of {name} for {called}: {error}") from error
    return editor


def edit(
    editor: str | Editor,
    model: EditableModel,
    requests: Sequence[EditRequest],
    state: State | Prepared | None = None,
) -> tuple[Edit, State]:
    """Compute an edit that writes the requests into the model; the model itself is not changed.

    Args:
        editor: a name, for the settings on file for this model or derived ones, or an editor object.
        model: as returned by `palimpsest.load`.
        requests: at least one.
        state: returned by the previous edit of the sequence; for the first edit a `Prepared`, or None.

    Returns:
        The edit, to put in force with `palimpsest.network.apply.installed` or `commit`, and the state for the
        next call.

    Raises:
        RequestError: if there are no requests, or the same subject and prompt occur twice.
        StateError: if the state belongs to another method.
        UnknownNameError, ProfileError: see `editor_for`.
    """
    check(requests)
    check_room(model, requests)
    chosen = editor_for(editor, model) if isinstance(editor, str) else editor
    made, after = chosen.edit(model, requests, state)
    method = style_of(editor).name if isinstance(editor, str) else chosen.printed
    return replace(made, notes={"method": method, **made.notes}), after


def check_room(model: EditableModel, requests: Sequence[EditRequest]) -> None:
    """Check that each request with its target fits into the model's context.

    Raises:
        RequestError: otherwise.
    """
    for request in requests:
        target = encode_target(model.tokenizer, request.target, request.text)
        try:
            model.require_room(
                f"{request.text} {request.target}", len(model.encode(request.text)) + len(target)
            )
        except ScoreError as error:
            raise RequestError(f"request {request.id!r}: {error}") from error


def check_kind(requests: Any) -> None:
    """Check that requests are a list, or another sequence, of `EditRequest`.

    Raises:
        RequestError: otherwise.
    """
    if not isinstance(requests, Sequence) or isinstance(requests, str | bytes):
        raise RequestError(
            f"requests are {str(requests)[:60]!r} ({type(requests).__name__}), not a list; write "
            "[EditRequest(...), ...]"
        )
    odd = [one for one in requests if not isinstance(one, EditRequest)]
    if odd:
        raise RequestError(
            f"requests hold {str(odd[0])[:60]!r} ({type(odd[0]).__name__}); write [EditRequest(...), ...]"
        )


def check(requests: Sequence[EditRequest]) -> None:
    """Check that requests can be written in one batch.

    Raises:
        RequestError: if they are no list of requests, there are none, or the same subject and prompt occur
            twice.
    """
    check_kind(requests)
    if not requests:
        raise RequestError("no requests were given; pass at least one EditRequest")
    seen: set[str] = set()
    for request in requests:
        if request.text in seen:
            raise RequestError(f"{request.text!r} occurs twice in one batch; keep one target for it")
        seen.add(request.text)
