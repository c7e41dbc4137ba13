"""Sequences from which every fact can be removed exactly, the only ones that an edited model is made with."""

import torch

from palimpsest.editors import EDITORS
from palimpsest.editors.base import Editor, WeightEditor
from palimpsest.editors.named_sequences import configuration
from palimpsest.editors.sequential import Sequential
from palimpsest.errors import PalimpsestError, ProfileError, ResourceError, SequenceError
from palimpsest.network.model import EditableModel
from palimpsest.workbench.folder import DESCRIPTION, Description


def sequence(editor: Sequential | str, model: str | EditableModel) -> Sequential:
    """A sequence from which every fact can be removed exactly.

    Args:
        editor: a row of ``config/sequences.yaml``, used with ``reads="unedited"`` and ``values="once"``, or a
            `Sequential`.
        model: name of the model whose settings on file a row is combined with, or a loaded model, which may
            have none.

    Raises:
        UnknownNameError, ProfileError: see `palimpsest.editors.named_sequences.configuration`.
        SequenceError: if the settings do not keep every fact, or read keys and values on the edited model, or
            the editor changes no weight.
    """
    _require_weights(editor)
    name, chosen = "these settings", editor
    if isinstance(chosen, str):
        name, chosen = chosen, _on_file(chosen, model)
    wanted = {"retain": "all", "post": None, "reads": "unedited", "values": "once"}
    odd = [
        f"{field}={getattr(chosen, field)!r}"
        for field, value in wanted.items()
        if getattr(chosen, field) != value
    ]
    if odd:
        raise SequenceError(
            f"{name}: with {', '.join(odd)} the weights are not those of a ledger of all facts, so none "
            "could be taken out; choose a sequence that keeps all facts and does not post-process, such as "
            "memit_aligned or alphaedit_aligned"
        )
    return chosen


def _require_weights(editor: object) -> None:
    """Refuse editors whose edits no folder of weights can keep.

    Raises:
        SequenceError: if it is one.
    """
    method = type(editor) if isinstance(editor, Editor) else None
    if isinstance(editor, str) and editor in EDITORS:
        method = EDITORS[editor].editor
    if method is not None and not issubclass(method, WeightEditor):
        raise SequenceError(
            f"{method.printed} changes no weight: its edits wrap the model while they are installed, and a "
            "folder of weights cannot keep them. Use palimpsest.edit and installed(model, edit), with "
            "palimpsest.workbench.wrap_file.save_wrap for memories, or choose a sequence such as "
            "memit_aligned"
        )


def _on_file(row: str, model: str | EditableModel) -> Sequential:
    """A row of the sequences with a model's settings, whatever the files hold."""
    try:
        return configuration(row, model, reads="unedited", values="once")
    except PalimpsestError:
        raise
    except (TypeError, AttributeError, LookupError, ValueError, RecursionError) as error:
        called = model if isinstance(model, str) else model.name
        raise ProfileError(
            f"the settings of {called} for {row} cannot be read ({type(error).__name__}: "
            f"{str(error)[:200]}); correct config/sequences.yaml or the model's file in config/models"
        ) from error


def dtype_of(about: Description) -> torch.dtype:
    """Dtype of the unedited model that a description names beside its name.

    Raises:
        ResourceError: if it is none.
    """
    found = getattr(torch, about.base.get("dtype", ""), None)
    if not isinstance(found, torch.dtype) or not about.base.get("name"):
        raise ResourceError(
            f"{DESCRIPTION} is damaged: the unedited model has dtype {about.base.get('dtype')!r} and name "
            f"{about.base.get('name')!r}; "
            "restore it from an intact copy"
        )
    return found
