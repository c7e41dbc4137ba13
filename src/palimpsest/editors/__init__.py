"""Editors: one file per method, all settings of one least-squares problem.

A new method is one file with a settings class that has `edit`, and one line here.
"""

from collections.abc import Sequence

from pydantic import ValidationError

from palimpsest.editors.alphaedit import AlphaEdit
from palimpsest.editors.alphaedit_plus import AlphaEditPlus
from palimpsest.editors.alphaedit_plus import PlusState as PlusState
from palimpsest.editors.base import Editor, State
from palimpsest.editors.ft import FineTune
from palimpsest.editors.ike import Ike
from palimpsest.editors.ike import IkeState as IkeState
from palimpsest.editors.memit import Memit
from palimpsest.editors.rome import Rome
from palimpsest.editors.settings import editor_settings
from palimpsest.errors import ProfileError, RequestError, UnknownNameError
from palimpsest.network.apply import Edit
from palimpsest.network.model import EditableModel
from palimpsest.types import EditRequest

EDITORS: dict[str, type] = {
    "memit": Memit,
    "alphaedit": AlphaEdit,
    "alphaedit_plus": AlphaEditPlus,
    "rome": Rome,
    "ft": FineTune,
    "ft_l": FineTune,
    "ike": Ike,
}


def editor_for(name: str, model: str, **overrides: object) -> Editor:
    """An editor with the settings on file for a model.

    Args:
        name: of the editor.
        model: short name, or a hub id listed in its settings file.
        overrides: fields to set otherwise.

    Raises:
        UnknownNameError: unknown editor or model.
        ProfileError: a setting that the editor does not have or that is out of range.
    """
    if name not in EDITORS:
        raise UnknownNameError("editor", name, list(EDITORS))
    try:
        editor: Editor = EDITORS[name](**(editor_settings(model, name) | overrides))
    except ValidationError as error:
        raise ProfileError(f"settings of {name} for {model}: {error}") from error
    return editor


def edit(
    editor: str | Editor,
    model: EditableModel,
    requests: Sequence[EditRequest],
    state: State | None = None,
) -> tuple[Edit, State]:
    """Make an edit that writes the requests into the model; the model itself is not changed.

    Args:
        editor: a name (settings on file for this model) or an editor object with its own settings.
        model: as returned by `palimpsest.load`.
        requests: at least one.
        state: what the previous edit of a sequence returned; None at the start.

    Returns:
        The edit, for `installed` or `commit`, and the state for the next call.

    Raises:
        RequestError: no requests, or the same subject and prompt twice.
        UnknownNameError, ProfileError: see `editor_for`.
    """
    check(requests)
    chosen = editor_for(editor, model.name) if isinstance(editor, str) else editor
    return chosen.edit(model, requests, state)


def check(requests: Sequence[EditRequest]) -> None:
    """Whether requests can be written in one batch.

    Raises:
        RequestError: no requests, or the same subject and prompt twice.
    """
    if not requests:
        raise RequestError("no requests were given; pass at least one EditRequest")
    seen: set[str] = set()
    for request in requests:
        if request.text in seen:
            raise RequestError(f"{request.text!r} occurs twice in one batch; keep one target for it")
        seen.add(request.text)
