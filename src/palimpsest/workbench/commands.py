"""The commands ``palimpsest edit`` and ``palimpsest undo``: write and remove facts of a model on disk."""

from collections.abc import Sequence
from pathlib import Path

import torch

from palimpsest.cache import digest
from palimpsest.editors.sequential import Sequential
from palimpsest.errors import LedgerError, ModelError, RequestError, SequenceError
from palimpsest.locks import locked
from palimpsest.network.cores import give_back, return_freed_blocks
from palimpsest.network.model import load
from palimpsest.types import EditRequest
from palimpsest.workbench import folder as files
from palimpsest.workbench.edited_model import DEFAULT_MODEL, DEFAULT_SEQUENCE, EditedModel, sequence
from palimpsest.workbench.work import Work, place


def edit_folder(
    requests: Sequence[EditRequest],
    out: str | Path,
    model: str | None = None,
    editor: Sequential | str | None = None,
    *,
    settings: str | None = None,
    batch: int = 1,
    device: str | torch.device = "cpu",
    wait: float = -1,
) -> EditedModel:
    """Write facts into a model and save it as a folder; if ``out`` is an edited folder, they are added to it.

    After each batch the ledgers are saved in a work folder beside ``out``, ``.<out>.palimpsest``; if the
    process dies, the same call continues from there. Facts that are already in the folder are skipped. Of two
    processes that edit one folder the second waits for the first and adds to what that wrote.

    Args:
        requests: facts, each with an id.
        out: the folder; it must not exist, or must hold an edited model.
        model: name, folder or hub id of the unedited model; default that of ``out``, or smollm2-135m.
        editor: row of ``config/sequences.yaml``, or settings; default those of ``out``, or memit_aligned.
        settings: name of the model whose settings on file a row is combined with; default the model itself.
        batch: facts whose values are optimised in one batch. Above 1 is faster, but values then depend
            slightly on the other facts in the batch (rounding), which undoing a fact does not remove.
        device: where to compute, such as ``cpu`` or ``cuda``.
        wait: seconds to wait for another process that writes this folder; without end if negative.

    Returns:
        The edited model as saved.

    Raises:
        ResourceError: if ``out`` exists and holds no edited model, or cannot be written.
        BusyError: if another process still writes it after ``wait`` seconds.
        LedgerError: if an id is already in use for another fact.
        RequestError: if ``batch`` is below 1.
        ModelError, SequenceError: if ``out`` was made from another model, or with other settings; or if it
            was changed since an edit of it was interrupted.
    """
    if batch < 1:
        raise RequestError(f"batch is {batch}; optimise 1 or more facts together")
    if model == "":
        raise ModelError("the model's name is empty; leave it out for the default, or name one")
    return_freed_blocks()
    folder = place(out)
    files.refuse_others(folder)
    with locked(folder, wait):
        work = Work(folder)
        work.tidy()
        edited, start = _begun(work, model, editor, settings, device)
        _write(work, edited, start, requests, batch)
    return edited


def _write(
    work: Work, edited: EditedModel, start: Path | None, requests: Sequence[EditRequest], batch: int
) -> None:
    """Write the facts that are not held yet, and save."""
    fresh = [request for request in requests if not _held(edited, request)]

    def after_each() -> None:
        work.begin(files.EDIT)
        edited.checkpoint(work.partial)
        give_back()  # what one batch's values took, before the next

    give_back()
    files.settle(work)  # the command is valid: finish the one before, if that died between its moves
    edited.edit(fresh, batch, after_each)
    if fresh or start in (None, work.partial):
        edited.save(work.out, files.EDIT)
    files.settle(work)


def _begun(
    work: Work,
    model: str | None,
    editor: Sequential | str | None,
    settings: str | None,
    device: str | torch.device,
) -> tuple[EditedModel, Path | None]:
    """The edited model that an edit goes on with, and the folder it was read from; None for a new one.

    Nothing is written.
    """
    files.refuse_others(work.out)
    if work.unfinished:
        work.check_start()
        start = work.partial
    elif files.is_edited(work.current):
        start = work.current
    else:
        unedited = load(model or DEFAULT_MODEL, device=device)
        return EditedModel(unedited, editor or DEFAULT_SEQUENCE, settings), None
    return _continued(work, start, model, editor, settings, device), start


def undo(
    folder: str | Path,
    ids: Sequence[str] = (),
    *,
    everything: bool = False,
    device: str | torch.device = "cpu",
    wait: float = -1,
) -> EditedModel:
    """Remove facts from an edited folder, as if they had never been written.

    Args:
        folder: written by `edit_folder` or `EditedModel.save`.
        ids: of the facts to remove.
        everything: remove all facts instead; the weights are then those of the unedited model, bit by bit.
        device: where to compute, such as ``cpu`` or ``cuda``.
        wait: as for `edit_folder`.

    Returns:
        The edited model as saved.

    Raises:
        LedgerError: if an id is unknown, or not exactly one of ``ids`` and ``everything`` is given; the
            folder is unchanged.
        SequenceError: if an edit of this folder was interrupted.
        ModelError, ResourceError: as `EditedModel.open` and `EditedModel.save`.
    """
    if bool(ids) == everything:
        raise LedgerError("say which facts to forget: their ids, or all of them, and not both")
    path = place(folder)
    task = f"undo {digest(sorted(ids))}"
    work = Work(path)
    with locked(path, wait):
        work.tidy()
        files.refuse_unfinished(work)
        edited, owner = EditedModel.open(path, device), work.owner()
        done = owner is not None and work.ended and owner.task == task
        if not (done and not set(ids) & set(edited.facts)):  # else a process died after all was written
            edited.forget(list(edited.facts) if everything else list(ids))
            edited.save(path, task)
        files.settle(work)
    return edited


def _continued(
    work: Work,
    start: Path,
    model: str | None,
    editor: Sequential | str | None,
    settings: str | None,
    device: str | torch.device,
) -> EditedModel:
    """Open the edited model of a folder after checking that it was made with the given model and settings."""
    about = files.read_description(start)
    name = about.base["name"]
    if model not in (None, name):
        raise ModelError(
            f"{work.out} was made from {name}, not from {model}; leave the model out to go on, or choose "
            "another folder"
        )
    if editor is not None and sequence(editor, settings or name) != about.editor:
        raise SequenceError(
            f"{work.out} was made with another sequence or other settings than {editor}; leave the sequence "
            "out to go on, or choose another folder"
        )
    if start != work.partial:
        return EditedModel.open(work.out, device)
    edited = EditedModel(load(name, getattr(torch, about.base["dtype"]), device), about.editor)
    edited.resume(start)
    return edited


def _held(edited: EditedModel, request: EditRequest) -> bool:
    """Whether exactly this fact is already written.

    Raises:
        LedgerError: if its id is in use for another fact.
    """
    known = edited.facts.get(request.id or request.text)
    if known is None:
        return False
    if (known.text, known.target) != (request.text, request.target):
        raise LedgerError(
            f"id {known.id!r} is held by {known.text!r} -> {known.target!r}, and the new fact is "
            f"{request.text!r} -> {request.target!r}; undo the old one first, or give the new one another id"
        )
    return True
