"""The folder of an edited model: files for transformers, ledgers, and a description of the facts.

    config.json, model*.safetensors, tokenizer ...   by save_pretrained
    palimpsest.json                                   a `Description`, written last
    ledgers/layer-<n>.safetensors                     by `EditLedger.save`

A folder is written under a temporary name and then moved, so that it is always either the old one or the new
one. After a crash these may exist beside ``out``:

    out.partial     the ledgers of an unfinished run; the same command continues from there
    out.new         an incomplete folder; not used again
    out.replaced    the previous folder, between the two moves; `recover` finishes them
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError

from palimpsest.algebra.ledger import EditLedger
from palimpsest.editors.sequential import Sequential
from palimpsest.errors import LedgerError, ResourceError
from palimpsest.files import replacing
from palimpsest.network.model import EditableModel
from palimpsest.types import EditRequest

DESCRIPTION = "palimpsest.json"
FORMAT = 1
SHARDS = 8
"""Files that the weights of a model are written in, one after the other."""
SMALLEST_SHARD = 2**26
"""Bytes of weights that one file may hold, however small the model is."""


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("palimpsest", "torch", "transformers")}


@dataclass(frozen=True, config={"extra": "forbid"})
class Description:
    """Contents of ``palimpsest.json``.

    Attributes:
        base: name, fingerprint, dtype and device of the unedited model.
        editor: settings of the sequence.
        contexts: prefixes sampled from the unedited model.
        steps: batches written so far.
        facts: current facts, in the order in which they were written; each has an id.
        unedited: layer -> SHA-256 of W_0.
        fingerprint: of the edited model as saved; empty in an unfinished run.
        versions: of the packages that wrote the folder.
        format: number of the format of this description.
    """

    base: dict[str, str]
    editor: Sequential
    contexts: tuple[str, ...]
    steps: int
    facts: tuple[EditRequest, ...]
    unedited: dict[int, str]
    fingerprint: str = ""
    versions: dict[str, str] = Field(default_factory=_versions)
    format: int = FORMAT


def is_edited(folder: Path) -> bool:
    """Whether a folder has a description, and so holds an edited model or an unfinished run."""
    return (folder / DESCRIPTION).is_file()


def beside(folder: Path, suffix: str) -> Path:
    """Path next to a folder, with a suffix added to its name: ``<folder>.<suffix>``."""
    return folder.with_name(f"{folder.name}.{suffix}")


def ledger_path(folder: Path, layer: int) -> Path:
    """File of one layer's ledger."""
    return folder / "ledgers" / f"layer-{layer}.safetensors"


def write_ledgers(folder: Path, about: Description, ledgers: Mapping[int, EditLedger]) -> None:
    """Write the ledgers and then the description, each atomically; ledgers append to files that they wrote.

    If the process dies in between, ledgers hold more facts than the description names; `read_ledgers` drops
    these. A file whose last step was cut short is one that does not hold it.

    Raises:
        ResourceError: if a file cannot be written; each file is then unchanged or complete.
    """
    for layer, ledger in ledgers.items():
        ledger.save(ledger_path(folder, layer))
    content = TypeAdapter(Description).dump_json(about, indent=1)
    with replacing(folder / DESCRIPTION) as temporary:
        temporary.write_bytes(content + b"\n")


def read_description(folder: Path) -> Description:
    """Read the description of a folder.

    Raises:
        LedgerError: if the folder holds no edited model, or one of another format.
        ResourceError: if the description cannot be read or is damaged.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        raise LedgerError(
            f"{folder} holds no edited model (it has no {DESCRIPTION}); give a folder that `palimpsest edit` "
            "or EditedModel.save wrote"
        )
    try:
        about = TypeAdapter(Description).validate_json(path.read_bytes())
    except OSError as error:
        raise ResourceError(f"{path} cannot be read: {error}; check its permissions") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ResourceError(
            f"{path} is damaged: {first['msg']} {where}; restore it from an intact copy"
        ) from error
    if about.format != FORMAT:
        raise LedgerError(
            f"{path} has format {about.format}, this version reads {FORMAT}; open it with palimpsest "
            f"{about.versions.get('palimpsest', 'of that format')}"
        )
    return about


def read_ledgers(folder: Path, about: Description, device: torch.device | str) -> dict[int, EditLedger]:
    """Read the ledgers of a folder, layer -> ledger, each with exactly the facts that the description names.

    Raises:
        ResourceError: if a file is missing or damaged.
        LedgerError: if a file is no ledger, belongs to another layer or model, or lacks a fact.
    """
    names = {fact.id for fact in about.facts}
    found = {}
    for layer in about.editor.layers:
        path = ledger_path(folder, layer)
        ledger = EditLedger.load(path, site=f"layer {layer}", device=device)
        if ledger.base_sha256 != about.unedited.get(layer):
            raise LedgerError(
                f"{path} is a ledger of another model than {about.base.get('name')}: its unedited weight "
                "differs from the one this folder was made from; restore the folder from an intact copy"
            )
        missing = sorted(names - set(ledger.ids))
        if missing:
            raise LedgerError(
                f"{path} lacks {len(missing)} of the facts that {DESCRIPTION} names, {missing[0]!r} first; "
                "restore the folder from an intact copy"
            )
        ledger.forget([name for name in ledger.ids if name not in names])
        found[layer] = ledger
    return found


def write_folder(
    out: Path, model: EditableModel, about: Description, ledgers: Mapping[int, EditLedger]
) -> None:
    """Write a complete folder to ``out``; after an error an existing ``out`` is unchanged.

    Raises:
        ResourceError: if the folder cannot be written, or ``out`` exists and holds no edited model.
    """
    refuse_others(out)
    staging = beside(out, "new")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with _clear_errors(out):
            staging.mkdir(parents=True)
            # In parts, because each is copied while it is written.
            size = sum(weight.numel() * weight.element_size() for weight in model.net.parameters())
            model.net.save_pretrained(staging, max_shard_size=max(size // SHARDS, SMALLEST_SHARD))
            model.tokenizer.save_pretrained(staging)
            write_ledgers(staging, about, ledgers)
            _swap(out, staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def refuse_others(out: Path) -> None:
    """Check that ``out`` may be written: it does not exist, or holds an edited model.

    Raises:
        ResourceError: otherwise.
    """
    if out.exists() and not is_edited(out):
        raise ResourceError(
            f"{out} exists and holds no edited model; choose a folder that does not exist yet"
        )


def recover(out: Path) -> None:
    """Finish the two moves of `write_folder` if a process died between them.

    Raises:
        ResourceError: if a folder cannot be moved.
    """
    replaced, staging = beside(out, "replaced"), beside(out, "new")
    if not replaced.exists():
        return
    with _clear_errors(out):
        if not out.exists():
            (staging if is_edited(staging) else replaced).rename(out)
    shutil.rmtree(replaced, ignore_errors=True)


def discard(folder: Path) -> None:
    """Remove an unfinished run, the description first, so that a partly removed one is never read."""
    (folder / DESCRIPTION).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def _swap(out: Path, staging: Path) -> None:
    replaced = beside(out, "replaced")
    if out.exists():
        out.rename(replaced)
    try:
        staging.rename(out)
    except OSError:
        if replaced.exists():
            replaced.rename(out)
        raise
    shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def _clear_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except ResourceError:
        raise
    except (OSError, SafetensorError) as error:
        raise ResourceError(
            f"could not write {out}: {error}; free some space or choose another folder. What was there "
            "before is unchanged"
        ) from error
