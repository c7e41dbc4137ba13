"""The folder of an edited model: what transformers can load, the ledgers, and what was written into it.

    config.json, model.safetensors, tokenizer ...    by save_pretrained
    palimpsest.json                                   a `Description`, written last
    ledgers/layer-<n>.safetensors                     by `EditLedger.save`

A folder is put together under another name and then moved, so it is either the old one or the new one. Beside
``out`` there may stand, when a process died:

    out.partial     the ledgers of a run that was not finished; the same run again goes on from there
    out.new         a folder being put together; of no use to anyone
    out.replaced    the folder that was there before, between two moves; `recover` finishes them
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
from palimpsest.algebra.ledger_file import content_hash
from palimpsest.editors.sequential import Sequential
from palimpsest.errors import LedgerError, ResourceError
from palimpsest.files import replacing
from palimpsest.network.model import EditableModel
from palimpsest.types import EditRequest

DESCRIPTION = "palimpsest.json"
FORMAT = 1


def _versions() -> dict[str, str]:
    return {name: version(name) for name in ("palimpsest", "torch", "transformers")}


@dataclass(frozen=True, config={"extra": "forbid"})
class Description:
    """What a folder says about itself.

    Attributes:
        base: name, fingerprint, dtype and device of the unedited model.
        editor: settings of the sequence.
        contexts: prefixes drawn from the unedited model.
        steps: batches written so far.
        facts: all facts held, in the order they were written; each has an id.
        unedited: layer -> hash of W_0.
        fingerprint: of the edited model as saved; empty in a run that was not finished.
        versions: of the packages that wrote it.
        format: of this description.
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
    """Whether a folder says that it holds an edited model, or a run that was not finished."""
    return (folder / DESCRIPTION).is_file()


def beside(folder: Path, suffix: str) -> Path:
    """The folder of the same name and a suffix."""
    return folder.with_name(f"{folder.name}.{suffix}")


def ledger_path(folder: Path, layer: int) -> Path:
    """File of one layer's ledger."""
    return folder / "ledgers" / f"layer-{layer}.safetensors"


def write_ledgers(folder: Path, about: Description, ledgers: Mapping[int, EditLedger]) -> None:
    """Write the ledgers and then the description, each under a temporary name first.

    A process that dies in between leaves ledgers with more facts than the description names; `read_ledgers`
    drops them.

    Raises:
        ResourceError: if a file cannot be written; each file is then as it was or complete.
    """
    for layer, ledger in ledgers.items():
        ledger.save(ledger_path(folder, layer))
    content = TypeAdapter(Description).dump_json(about, indent=1)
    with replacing(folder / DESCRIPTION) as temporary:
        temporary.write_bytes(content + b"\n")


def read_description(folder: Path) -> Description:
    """What a folder says about itself.

    Raises:
        LedgerError: if it holds no edited model, or one of another format.
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
    """Layer -> ledger, each holding exactly the facts that the description names.

    Raises:
        ResourceError: if a file is missing or damaged.
        LedgerError: if it is no ledger, one of another layer or model, or one that lacks a fact.
    """
    names = {fact.id for fact in about.facts}
    found = {}
    for layer in about.editor.layers:
        path = ledger_path(folder, layer)
        ledger = EditLedger.load(path, site=f"layer {layer}", device=device)
        if content_hash(ledger.base) != about.unedited.get(layer):
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
    """Put a complete folder in the place of ``out``, or leave that as it was.

    Raises:
        ResourceError: if it cannot be written, or ``out`` exists and holds no edited model.
    """
    refuse_others(out)
    staging = beside(out, "new")
    shutil.rmtree(staging, ignore_errors=True)
    try:
        with _clear_errors(out):
            staging.mkdir(parents=True)
            model.net.save_pretrained(staging)
            model.tokenizer.save_pretrained(staging)
            write_ledgers(staging, about, ledgers)
            _swap(out, staging)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def refuse_others(out: Path) -> None:
    """Refuse to write over what is no edited model.

    Raises:
        ResourceError: if ``out`` exists and holds none.
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
    """Remove a run that was not finished, the description first, so that half of it is never read."""
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
