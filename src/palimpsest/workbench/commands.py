"""The commands ``edit``, ``undo`` and ``replace``: write, remove and change facts of a model on disk."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from palimpsest.cache import digest
from palimpsest.datasets import load_facts
from palimpsest.editors.derived import has_file
from palimpsest.editors.sequential import Sequential
from palimpsest.errors import LedgerError, ModelError, SequenceError
from palimpsest.files import locked
from palimpsest.network.cores import give_back, return_freed_blocks
from palimpsest.network.model import EditableModel, load
from palimpsest.types import EditRequest, EvalCase
from palimpsest.workbench import folder as files
from palimpsest.workbench.edited_model import DEFAULT_MODEL, DEFAULT_SEQUENCE, EditedModel
from palimpsest.workbench.effort import CONTROLS, Effort, control_prompts
from palimpsest.workbench.effort import until_said as raise_effort
from palimpsest.workbench.exact import dtype_of, sequence
from palimpsest.workbench.held import check_held, renewed
from palimpsest.workbench.limits import check_batch
from palimpsest.workbench.places import check_writable, place
from palimpsest.workbench.report import EditReport
from palimpsest.workbench.work import Work


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
    finish: Callable[[EditedModel], object] | None = None,
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
        finish: called with the edited model before it is saved; may change its facts, and returns whether it
            did.

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
    check_batch(batch)
    if model == "":
        raise ModelError("the model's name is empty; leave it out for the default, or name one")
    return_freed_blocks()
    folder = place(out)
    files.refuse_others(folder)
    check_writable(folder)
    with locked(folder, wait):
        work = Work(folder)
        work.tidy()
        edited, start = _begun(work, model, editor, settings, device)
        _write(work, edited, start, requests, batch, finish)
    return edited


def _write(
    work: Work,
    edited: EditedModel,
    start: Path | None,
    requests: Sequence[EditRequest],
    batch: int,
    finish: Callable[[EditedModel], object] | None,
) -> None:
    """Write the facts that are not held yet, and save."""
    fresh = [request for request in requests if not _held(edited, request)]

    def after_each() -> None:
        work.begin(files.EDIT)
        edited.checkpoint(work.partial)
        give_back()  # what one batch's values took, before the next

    give_back()
    files.settle(work)  # the command is valid: finish the one before, if that died between its moves
    edited.edit(fresh, batch, after_each, report=False)
    changed = finish is not None and bool(finish(edited))
    if fresh or changed or start in (None, work.partial):
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
        unedited = load(DEFAULT_MODEL if model is None else model, device=device)
        return EditedModel(unedited, editor or DEFAULT_SEQUENCE, settings), None
    return _continued(work, start, model, editor, settings, device), start


def edit_and_report(
    cases: Sequence[EvalCase],
    out: str | Path,
    model: str | None = None,
    editor: Sequential | str | None = None,
    *,
    settings: str | None = None,
    batch: int = 1,
    device: str | torch.device = "cpu",
    wait: float = -1,
    until_said: bool = False,
) -> tuple[EditedModel, EditReport]:
    """As `edit_folder`; then the edited model is asked about every fact of the command.

    Args:
        cases: facts, each with an id; the cost of effort is measured on their neighbours, if they have some.
        out: as `edit_folder`, and so are all others but the last.
        model: name, folder or hub id of the unedited model.
        editor: row of ``config/sequences.yaml``, or settings.
        settings: name of the model whose settings on file a row is combined with.
        batch: facts whose values are optimised in one batch.
        device: where to compute.
        wait: seconds to wait for another process.
        until_said: raise the effort for facts that the model does not say, by `palimpsest.workbench.effort`.

    Returns:
        The edited model as saved, and its report.

    Raises:
        As `edit_folder`.
    """
    requests = [case.request for case in cases]
    ids = [request.id or request.text for request in requests]
    done = Effort({}, {})

    def finish(edited: EditedModel) -> Effort:
        nonlocal done
        neighbours = [probe.prompt for case in cases for probe in case.neighbours]
        prompts = {
            "neighbours": list(dict.fromkeys(neighbours))[:CONTROLS],
            "control prompts": control_prompts(load_facts(), requests),
        }
        done = raise_effort(edited, ids, prompts, batch)
        return done

    last = finish if until_said else None
    options: dict[str, Any] = {"settings": settings, "batch": batch, "device": device, "wait": wait}
    edited = edit_folder(requests, out, model, editor, **options, finish=last)
    return edited, edited.report(ids).with_effort(done.tried, done.cost)


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
    task = f"undo {digest(sorted(map(ascii, ids)))}"
    with _changing(folder, device, wait) as (edited, work):
        owner = work.owner()
        done = owner is not None and work.ended and owner.task == task
        if not (done and not set(ids) & set(edited.facts)):  # else a process died after all was written
            edited.forget(list(edited.facts) if everything else list(ids))
            edited.save(work.out, task)
    return edited


def replace_fact(
    folder: str | Path,
    name: str,
    new: str | EditRequest,
    *,
    device: str | torch.device = "cpu",
    wait: float = -1,
) -> tuple[EditedModel, EditReport]:
    """Give a fact of an edited folder a new object, or another request; then ask the model about it.

    After a death the same call does what is missing: a fact that is already as wanted stays as it is.

    Args:
        folder: written by `edit_folder` or `EditedModel.save`.
        name: id of the fact.
        new: the new object, or a whole request, which gets this id.
        device: where to compute, such as ``cpu`` or ``cuda``.
        wait: as for `edit_folder`.

    Returns:
        The edited model as saved, and its report on this fact.

    Raises:
        LedgerError, RequestError: as `EditedModel.replace`; the folder is unchanged.
        SequenceError: if an edit of this folder was interrupted.
        ModelError, ResourceError: as `EditedModel.open` and `EditedModel.save`.
    """
    with _changing(folder, device, wait) as (edited, work):
        check_held(edited.facts, [name], "nothing was replaced")
        fresh = renewed(edited.facts[name], new)
        if fresh != edited.facts[name]:
            edited.replace(name, fresh)
            edited.save(work.out, f"replace {digest([ascii(name), ascii(fresh.text), ascii(fresh.target)])}")
    return edited, edited.report([name])


@contextmanager
def _changing(
    folder: str | Path, device: str | torch.device, wait: float
) -> Iterator[tuple[EditedModel, Work]]:
    """The edited model of a folder that is locked, with what is left to move there; moved at the end.

    Raises:
        As `undo`.
    """
    path = place(folder)
    work = Work(path)
    if not (path.exists() or work.folder.exists()):
        files.read_description(path)  # says so, before a lock makes its parent
    with locked(path, wait):
        work.tidy()
        files.refuse_unfinished(work)
        yield EditedModel.open(path, device), work
        files.settle(work)


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
    dtype, name = dtype_of(about), about.base["name"]
    if model is not None and not _same_model(model, name):
        raise ModelError(
            f"{work.out} was made from {name}, not from {model}; leave the model out to go on, or choose "
            "another folder"
        )
    if editor is not None and sequence(editor, settings or _settled(name, dtype, device)) != about.editor:
        raise SequenceError(
            f"{work.out} was made with another sequence or other settings than {editor}; leave the sequence "
            "out to go on, or choose another folder"
        )
    if start != work.partial:
        return EditedModel.open(work.out, device)
    edited = EditedModel(load(model or name, dtype, device), about.editor)
    edited.resume(start)
    return edited


def _settled(name: str, dtype: torch.dtype, device: str | torch.device) -> str | EditableModel:
    """The name of a model with settings on file, and the model itself where they have to be derived."""
    return name if has_file(name) else load(name, dtype, device)


def _same_model(given: str, name: str) -> bool:
    """Whether two names are one, or two paths of one folder."""
    folders = [Path(one) for one in (given, name)]
    return given == name or (all(map(os.path.isdir, folders)) and os.path.samefile(*folders))


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
