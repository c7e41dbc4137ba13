"""File of a ledger: a safetensors file with tensors, a description and a checksum of each tensor, then steps.

A ledger that is saved again to the file it was last saved to appends what has changed: a block with a mark,
its length, its SHA-256, and a safetensors file of the facts that entered or changed and the ids of those that
left. A last block that was cut short, by a crash for instance, is left out by `read`, as if it had not been
appended. The whole file is written again, atomically, when something else wrote to it, when more would be
appended than kept, or when the order of the facts cannot be told by a block.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as tensors_of
from safetensors.torch import save as bytes_of
from safetensors.torch import save_file
from torch import Tensor

from palimpsest.algebra.ledger_facts import Facts
from palimpsest.cache import tensor_sha256
from palimpsest.errors import LedgerError, ResourceError
from palimpsest.files import replacing

SCHEMA = 1
MARK = b"\x00ledger step\x00\r\n\x1a"
"""Begins a block."""
LENGTH, DIGEST = 8, 32
"""Bytes of a block's length, little endian, and of its checksum; both stand after the mark."""
FACTS = ("keys", "values", "weights")
SPARE = 100
"""Outdated facts in a file that are always allowed."""


@dataclass(frozen=True)
class Saved:
    """What of a ledger stands in a file.

    Attributes:
        path: the file.
        stamp: its device, inode, size and time of change when it was written.
        ids: names of the facts that it holds, in their order.
        facts: number of facts in it, with outdated ones.
        changed: names that entered the ledger since, or whose facts changed.
    """

    path: Path
    stamp: tuple[int, ...]
    ids: tuple[str, ...]
    facts: int
    changed: frozenset[str] = frozenset()

    def step(self, path: Path, ids: Sequence[str]) -> tuple[list[str], list[int]] | None:
        """Names that left, and columns that entered or changed; None if the file must be written as a whole.

        Args:
            path: file that the ledger is to be saved to.
            ids: names of the ledger's facts.
        """
        if path.absolute() != self.path or _stamp(path) != self.stamp:
            return None
        held, columns = set(ids), [i for i, name in enumerate(ids) if name in self.changed]
        if len(columns) > len(ids) // 2 or self.facts + len(columns) > 2 * len(ids) + SPARE:
            return None
        for moved in (frozenset[str](), self.changed):  # changed facts stand where they stood, or at the end
            stay = [name for name in self.ids if name in held and name not in moved]
            there = set(stay)
            if [*stay, *(ids[i] for i in columns if ids[i] not in there)] == list(ids):
                return [name for name in self.ids if name not in there], columns
        return None


def write(path: Path, tensors: Mapping[str, Tensor | None], about: Mapping[str, Any]) -> Saved:
    """Write the tensors that are not None and a JSON-able description, atomically.

    Args:
        path: file to write; one that holds a ledger must hold one of the same weight and site.
        tensors: by name, with those of `FACTS` and ``base``.
        about: the description, with ``site`` and ``ids``.

    Raises:
        LedgerError: if there is a ledger of another model or site.
        ResourceError: if the file cannot be written; an earlier one is unchanged.
    """
    present = {name: t.detach().cpu().contiguous() for name, t in tensors.items() if t is not None}
    sums = {name: tensor_sha256(t) for name, t in present.items()}
    _refuse_others(path, sums["base"], about["site"])
    described = json.dumps({"schema": SCHEMA, "sha256": sums} | dict(about))
    with replacing(path) as temporary:
        save_file(present, temporary, metadata={"ledger": described})
    return Saved(path.absolute(), _stamp(path), tuple(about["ids"]), len(about["ids"]))


def append(saved: Saved, gone: Sequence[str], facts: Facts, ids: Sequence[str]) -> Saved:
    """Append a step to the file of `write`.

    Args:
        saved: what stands in the file.
        gone: names of facts that left.
        facts: those that entered, or changed.
        ids: all names afterwards.

    Raises:
        ResourceError: if the file cannot be written; what it held before is unchanged.
    """
    if not gone and not len(facts):
        return replace(saved, changed=frozenset())
    tensors = {name: getattr(facts, name).detach().cpu().contiguous() for name in FACTS}
    step = json.dumps({"ids": facts.ids, "gone": list(gone)})
    content = bytes_of(tensors, metadata={"step": step})
    head = MARK + len(content).to_bytes(LENGTH, "little") + hashlib.sha256(content).digest()
    size = saved.path.stat().st_size
    try:
        with saved.path.open("r+b", buffering=0) as file:  # a buffer would be written after the cut, too
            try:
                file.seek(size)
                rest = memoryview(head + content)
                while rest:
                    rest = rest[file.write(rest) or 0 :]
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise
    except OSError as error:
        raise ResourceError(
            f"could not write {saved.path}: {error}; free some space or save to another disk. What was there "
            "before is unchanged"
        ) from error
    return Saved(saved.path, _stamp(saved.path), tuple(ids), saved.facts + len(facts))


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any], Saved | None]:
    """Tensors and description from `write`, after all steps of `append`.

    The description also has ``sha256``, the checksum of each tensor as written. The last result is None if
    the last step was cut short: nothing may be appended after it.

    Raises:
        ResourceError: if the file is missing or damaged.
        LedgerError: if it holds no ledger, or one of another format.
    """
    try:
        stamp, data = _stamp(path), path.read_bytes()
        size, metadata = _head(data)
        tensors = tensors_of(data[:size])
    except (SafetensorError, OSError, ValueError, LookupError) as error:
        raise ResourceError(
            f"ledger file {path} is missing or damaged ({error}); give the path of an intact copy"
        ) from error
    if "ledger" not in metadata:
        raise LedgerError(f"{path} holds no ledger; give a file written by EditLedger.save")
    about = json.loads(metadata["ledger"])
    if about["schema"] != SCHEMA:
        raise LedgerError(
            f"{path} has format {about['schema']}, this version reads {SCHEMA}; open it with the version "
            "that wrote it"
        )
    changed = [name for name, digest in about["sha256"].items() if tensor_sha256(tensors[name]) != digest]
    if changed:
        raise ResourceError(
            f"ledger file {path} is damaged: {', '.join(changed)} changed since it was written; give the "
            "path of an intact copy"
        )
    blocks = list(_blocks(path, data, size))
    whole = all(step is not None for step in blocks)
    facts = _replay(tensors, about, [step for step in blocks if step is not None])
    saved = Saved(path.absolute(), stamp, tuple(about["ids"]), facts)
    return tensors, about, saved if whole else None


def _blocks(path: Path, data: bytes, start: int) -> Iterator[tuple[dict[str, Tensor], dict[str, Any]] | None]:
    """Facts and names of each appended block; None for a last one that was cut short.

    Raises:
        ResourceError: if a block is damaged that another one follows.
    """
    while start < len(data):
        body = start + len(MARK) + LENGTH + DIGEST
        length = int.from_bytes(data[body - LENGTH - DIGEST : body - DIGEST], "little")
        content, digest = data[body : body + length], data[body - DIGEST : body]
        begun = data[start : start + len(MARK)] == MARK
        if not begun or len(content) < length or hashlib.sha256(content).digest() != digest:
            if data.find(MARK, start + 1) >= 0:
                raise ResourceError(
                    f"ledger file {path} is damaged: the step at byte {start} changed since it was written; "
                    "give the path of an intact copy"
                )
            yield None
            return
        yield tensors_of(content), json.loads(_head(content)[1]["step"])
        start = body + length


def _replay(
    tensors: dict[str, Tensor],
    about: dict[str, Any],
    steps: Sequence[tuple[dict[str, Tensor], dict[str, Any]]],
) -> int:
    """Bring facts and ids to the state after some steps, in place; the number of facts read."""
    places = {name: i for i, name in enumerate(about["ids"])}  # name -> column of all facts read
    read = len(places)
    for _, step in steps:
        for name in step["gone"]:
            places.pop(name, None)
        places.update({name: read + i for i, name in enumerate(step["ids"])})
        read += len(step["ids"])
    if steps:
        columns, about["ids"] = list(places.values()), list(places)
        for name in FACTS:
            tensors[name] = torch.cat([tensors[name], *(found[name] for found, _ in steps)], -1)[..., columns]
    return read


def _head(data: bytes) -> tuple[int, dict[str, str]]:
    """Size of the safetensors file that some bytes begin with, and its metadata.

    Raises:
        ValueError, LookupError: if they begin with none, or with one that was cut short.
    """
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:begin])
    metadata = header.pop("__metadata__", {})
    size = begin + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size > len(data):
        raise ValueError(f"{len(data)} bytes of {size}")
    return size, metadata


def _refuse_others(path: Path, base: str, site: str) -> None:
    """Check that a file, if it holds a ledger, holds one of this unedited weight and site.

    Raises:
        LedgerError: otherwise.
    """
    try:
        with path.open("rb") as file:
            length = min(int.from_bytes(file.read(8), "little"), path.stat().st_size)
            header = json.loads(file.read(length))
        found = json.loads(header["__metadata__"]["ledger"])
        other = (found["sha256"]["base"], found["site"]) != (base, site)
    except (OSError, ValueError, LookupError, TypeError):
        return  # there is no ledger
    if other:
        raise LedgerError(
            f"{path} holds a ledger of another model or site ({found['site']!r}), which would be lost; save "
            "to another path, or delete that file first"
        )


def _stamp(path: Path) -> tuple[int, ...]:
    """Device, inode, size and time of change of a file; empty if there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns
