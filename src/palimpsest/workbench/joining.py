"""Facts written apart, in shards on several machines, joined into one edited model.

Keys and values are read on the unedited model, so that those of a fact do not depend on the others. Each
shard is a folder of `palimpsest.workbench.commands.edit_folder`; their ledgers are joined layer by layer
(`palimpsest.algebra.ledger_join`), and the weights are the solution over all facts in the order of their ids:
bit by bit those of one edit with all facts, if values were optimised alone (``batch=1``) with the same bits.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import torch
from tqdm import tqdm

from palimpsest.algebra.ledger import EditLedger
from palimpsest.algebra.ledger_join import join_ledgers
from palimpsest.errors import LedgerError, ModelError, RequestError, ResourceError, SequenceError
from palimpsest.files import locked
from palimpsest.network.cores import return_freed_blocks
from palimpsest.types import EditRequest
from palimpsest.workbench import folder as files
from palimpsest.workbench.edited_model import EditedModel
from palimpsest.workbench.folder import Description
from palimpsest.workbench.places import check_writable, place
from palimpsest.workbench.work import Work

T = TypeVar("T")
NAMED = 3
"""Facts that a message names, at most."""


def part_of(facts: list[T], number: int, of: int) -> list[T]:
    """The facts of one of several shards: neighbours in the file, as many as in the others but for one.

    Args:
        facts: all facts.
        number: of the shard, from 1.
        of: number of shards.

    Raises:
        RequestError: if there are fewer facts than shards.
    """
    if len(facts) < of:
        raise RequestError(f"{len(facts)} facts cannot fill {of} shards; give at most {len(facts)}")
    return facts[len(facts) * (number - 1) // of : len(facts) * number // of]


def join_folders(
    requests: Sequence[EditRequest],
    shards: Sequence[str | Path],
    out: str | Path,
    *,
    device: str | torch.device = "cpu",
    wait: float = -1,
) -> EditedModel:
    """Join edited folders that hold parts of some facts, and save the model with all of them as a folder.

    Args:
        requests: all facts, each with an id; every one must be in exactly one shard.
        shards: folders of `palimpsest.workbench.commands.edit_folder`; they are only read.
        out: the new folder, which must not exist.
        device: where to compute, such as ``cpu`` or ``cuda``.
        wait: seconds to wait for another process that writes ``out``; without end if negative.

    Returns:
        The edited model as saved.

    Raises:
        LedgerError: if a fact is in no shard, in two, or in one and not among ``requests``; if a folder holds
            no edited model, or its ledgers have another second moment or projector than the first one's.
        ModelError, SequenceError: if a shard was made from another model, with other settings or other
            prefixes than the first one, or an edit of it was interrupted.
        ResourceError: if a shard is damaged, or ``out`` exists or cannot be written.
        BusyError: if another process still writes ``out`` after ``wait`` seconds.
    """
    return_freed_blocks()
    folder, places = place(out), [place(shard) for shard in shards]
    _refuse_existing(folder)
    check_writable(folder)
    with locked(folder, wait):
        _refuse_existing(folder)
        found = {path: _described(path) for path in places}
        if len(found) < len(places):
            twice = next(str(path) for path in places if places.count(path) > 1)
            raise LedgerError(f"the shard {twice} is given twice; give each once")
        _check_alike(found)
        _check_divided(requests, found)
        edited = EditedModel.open(places[0], device)
        ledgers = {layer: _joined(layer, found, device) for layer in edited.editor.layers}
        known = {fact.id: fact for about in found.values() for fact in about.facts}
        facts = tuple(known[request.id or request.text] for request in requests)
        steps = sum(about.steps for about in found.values())
        edited._adopt(replace(found[places[0]], facts=facts, steps=steps), ledgers)
        edited._write(ledgers)
        edited.save(folder, "join")
    return edited


def _refuse_existing(out: Path) -> None:
    if out.exists():
        raise ResourceError(
            f"{out} exists; choose a folder that does not exist yet, and join all shards there"
        )


def _described(shard: Path) -> Description:
    """Description of a shard that is finished.

    Raises:
        LedgerError: if it is no edited folder.
        SequenceError: if an edit of it is unfinished.
    """
    work = Work(shard)
    files.refuse_unfinished(work)
    return files.read_description(work.current)


def _check_alike(found: Mapping[Path, Description]) -> None:
    """Check that shards were made from one model, with the same settings and prefixes.

    Raises:
        ModelError, SequenceError: otherwise; the message names two shards that differ.
    """
    (first, like), *others = found.items()
    for path, about in others:
        if (about.base["fingerprint"], about.unedited) != (like.base["fingerprint"], like.unedited):
            raise ModelError(
                f"{path} was made from {about.base['name']} in {about.base['dtype']}, and {first} from "
                f"{like.base['name']} in {like.base['dtype']}, whose weights differ; make all shards from "
                "one model"
            )
        if about.editor != like.editor:
            raise SequenceError(
                f"{path} was made with other settings than {first}; make all shards with one sequence and "
                "the same settings"
            )
        if about.contexts != like.contexts:
            raise SequenceError(
                f"{path} was made with other prefixes than {first}, as another machine may sample them; make "
                "all shards with one cache (PALIMPSEST_CACHE), or with a copy of it"
            )


def _check_divided(requests: Sequence[EditRequest], found: Mapping[Path, Description]) -> None:
    """Check that every fact is in exactly one shard.

    Raises:
        LedgerError: otherwise.
    """
    where: dict[str, tuple[Path, EditRequest]] = {}
    for path, about in found.items():
        twice = [fact.id for fact in about.facts if fact.id in where]
        if twice:
            raise LedgerError(
                f"{path} has {_some(twice)} that {where[twice[0]][0]} has too; give each fact to one shard, "
                "or undo it in the other"
            )
        where |= {fact.id: (path, fact) for fact in about.facts}
    wanted = {request.id or request.text: request for request in requests}
    missing = [name for name in wanted if name not in where]
    if missing:
        raise LedgerError(
            f"{_some(missing)} in none of the {len(found)} shards; name the shard that has them, or write "
            "them with 'palimpsest edit' first"
        )
    for name, (path, fact) in where.items():
        request = wanted.get(name)
        if request is None or (request.text, request.target) != (fact.text, fact.target):
            state = "is not among the facts" if request is None else "is another one there"
            raise LedgerError(
                f"fact {name!r} of {path}, {fact.text!r} -> {fact.target!r}, {state} that the shards are to "
                "hold together; give the file that was divided, or undo the fact in the shard"
            )


def _some(names: Sequence[str]) -> str:
    """A number of facts, with the first of them."""
    shown = ", ".join(map(repr, names[:NAMED]))
    return f"{len(names)} facts ({shown}{', ...' if len(names) > NAMED else ''})"


def _joined(layer: int, found: Mapping[Path, Description], device: torch.device | str) -> EditLedger:
    """A layer's ledger with the facts of all shards, which are read one after the other."""
    (first, about), *others = found.items()
    whole = files.read_ledger(Work(first).current, about, layer, device)

    def rest() -> Iterator[EditLedger]:
        bar = tqdm(others, f"joining layer {layer}", unit="shard", disable=None, delay=2, leave=False)
        for path, one in bar:
            yield files.read_ledger(Work(path).current, one, layer, device)

    try:
        join_ledgers(whole, rest())
    except LedgerError as error:
        listed = ", ".join(f"{number} is {path}" for number, (path, _) in enumerate(others, 1))
        raise LedgerError(f"layer {layer}: {error} (beside {first}, shard {listed})") from error
    return whole
