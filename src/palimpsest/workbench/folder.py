"""The folder of an edited model: files for transformers, ledgers, and a description of the facts.

    config.json, model*.safetensors, tokenizer ...   by save_pretrained
    palimpsest.json                                   a `Description`, written last
    ledgers/layer-<n>.safetensors                     by `EditLedger.save`

A folder is made in a work folder beside it (`palimpsest.workbench.work`) and then moved, so that it is always
either the old one or the new one. Files in it that this package did not write move along.
"""

import json
import shutil
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import torch
from pydantic import Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass
from safetensors import SafetensorError
from tqdm import tqdm

from palimpsest.algebra.ledger import EditLedger
from palimpsest.cache import digest
from palimpsest.editors.sequential import Sequential
from palimpsest.errors import LedgerError, PalimpsestError, ResourceError, SequenceError
from palimpsest.files import file_sha256, locked, reading, write_atomically
from palimpsest.network.model import EditableModel
from palimpsest.types import EditRequest
from palimpsest.workbench.work import DESCRIPTION, OWNER, Work, described, take_along

FORMAT = 2
FORMATS = (1, FORMAT)
"""Those that can be read; the first needs no checksums."""
SUM = "sha256"
"""Beside the members of a description stands the checksum of all of them."""
EDIT = "edit"
"""The task that goes on where it was left."""
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
        files: name of each file that was written beside the description -> SHA-256; empty for weights and
            ledgers, which have checksums of their own.
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
    files: dict[str, str] = Field(default_factory=dict)
    versions: dict[str, str] = Field(default_factory=_versions)
    format: int = FORMAT


def is_edited(folder: Path) -> bool:
    """Whether a folder has a description, and so holds an edited model or an unfinished run.

    Raises:
        ResourceError: if the folder cannot be read.
    """
    with reading(folder):
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
    content = TypeAdapter(Description).dump_python(about, mode="json")
    text = json.dumps(content | {SUM: digest(content)}, indent=1, ensure_ascii=False)
    write_atomically(folder / DESCRIPTION, f"{text}\n".encode())


def read_description(folder: Path) -> Description:
    """Read the description of a folder.

    Raises:
        LedgerError: if the folder holds no edited model, or one of another format.
        ResourceError: if the description cannot be read or is damaged.
    """
    path = folder / DESCRIPTION
    if not is_edited(folder):
        raise LedgerError(
            f"{folder} holds no edited model (it has no {DESCRIPTION}); give a folder that `palimpsest edit` "
            "or EditedModel.save wrote"
        )
    try:
        content = json.loads(path.read_text("utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no description")
        found, known = content.pop(SUM, None), content.get("format")
        if isinstance(known, int) and known not in FORMATS:
            raise LedgerError(
                f"{path} has format {known}, this version reads {FORMAT}; open it with the version of "
                "palimpsest that wrote it"
            )
        if (known != FORMATS[0] or found is not None) and found != digest(content):
            raise ValueError("it was changed since it was written")
        return TypeAdapter(Description).validate_json(json.dumps(content))
    except LedgerError:
        raise
    except OSError as error:
        raise ResourceError(f"{path} cannot be read: {error}; check its permissions") from error
    except (ValidationError, ValueError, RecursionError) as error:
        reason = str(error)
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            reason = f"{first['msg']} {'.'.join(map(str, first['loc']))}"
        raise ResourceError(f"{path} is damaged: {reason}; restore it from an intact copy") from error


def check_files(folder: Path, about: Description) -> None:
    """Whether the files beside a description are those that were written with it.

    Raises:
        ResourceError: for the first that is missing, was changed or cannot be read.
    """
    sums = tqdm(about.files.items(), "checking", unit="file", disable=None, delay=2, leave=False)
    for name, sum_ in sums:
        path = folder / name
        with reading(path):
            state = "" if path.is_file() else "is missing"
            if not state and sum_ and file_sha256(path) != sum_:
                state = "was changed since it was written"
        if state:
            raise ResourceError(
                f"{path} {state}; restore it from an intact copy, or make the edits again in another folder"
            )


def read_ledgers(folder: Path, about: Description, device: torch.device | str) -> dict[int, EditLedger]:
    """Read the ledgers of a folder, layer -> ledger, each with exactly the facts that the description names.

    Raises:
        ResourceError: if a file is missing or damaged.
        LedgerError: if a file is no ledger, belongs to another layer or model, or lacks a fact.
    """
    return {layer: read_ledger(folder, about, layer, device) for layer in about.editor.layers}


def read_ledger(folder: Path, about: Description, layer: int, device: torch.device | str) -> EditLedger:
    """As `read_ledgers`, of one layer."""
    names = {fact.id for fact in about.facts}
    path = ledger_path(folder, layer)
    ledger = _ledger(path, layer, device)
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
    return ledger


def _ledger(path: Path, layer: int, device: torch.device | str) -> EditLedger:
    try:
        return EditLedger.load(path, site=f"layer {layer}", device=device)
    except PalimpsestError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
        raise ResourceError(
            f"ledger file {path} is damaged ({type(error).__name__}: {str(error)[:200]}); restore it from an "
            "intact copy"
        ) from error


def write_folder(
    out: Path,
    model: EditableModel,
    about: Description,
    ledgers: Mapping[int, EditLedger],
    task: str = "save",
    expected: str | None = None,
) -> str:
    """Write a complete folder to ``out``; after an error an existing ``out`` is unchanged.

    Args:
        out: where, without symbolic links.
        model: with the facts in force.
        about: description; its checksums of files are filled in.
        ledgers: layer -> ledger.
        task: what is done; that of an unfinished edit finishes it.
        expected: SHA-256 of the description that ``out`` must have; whatever it is if None.

    Returns:
        SHA-256 of the new description.

    Raises:
        ResourceError: if the folder cannot be written, or ``out`` exists and holds no edited model.
        SequenceError: if ``out`` has another description, or an edit of it is unfinished.
    """
    refuse_others(out)
    work = Work(out)
    with locked(out):
        work.check_end()
        if task != EDIT:
            refuse_unfinished(work)
        if expected is not None and described(work.current) != expected:
            raise SequenceError(
                f"{out} was changed by another process since it was opened, which would be lost; open it "
                "again and make the change there, or save to another folder"
            )
        try:
            with _clear_errors(out):
                work.settle()
                work.begin(task)
                _fill(work, model, about, ledgers)
                done = described(work.new)
                work.finish(task)
        except BaseException:
            work.abandon()
            raise
    return done


def _fill(work: Work, model: EditableModel, about: Description, ledgers: Mapping[int, EditLedger]) -> None:
    """Write the new folder of a work."""
    staging = work.new
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    # In parts, because each is copied while it is written.
    size = sum(weight.numel() * weight.element_size() for weight in model.net.parameters())
    with tqdm(total=1, desc=f"saving {size / 1e9:.1f} GB", disable=None, leave=False):
        model.net.save_pretrained(staging, max_shard_size=max(size // SHARDS, SMALLEST_SHARD))
        model.tokenizer.save_pretrained(staging)
    mode = stat.S_IMODE((work.folder / OWNER).stat().st_mode)
    files = {}
    for path in sorted(path for path in staging.rglob("*") if path.is_file()):
        path.chmod(mode)  # weights are written for their owner only
        sealed = path.suffix == ".safetensors"
        files[path.relative_to(staging).as_posix()] = "" if sealed else file_sha256(path)
    files |= {ledger_path(Path(), layer).as_posix(): "" for layer in ledgers}
    if work.out.exists():
        known = read_description(work.out).files or files | {
            p.name: "" for p in work.out.glob("*.safetensors")
        }
        take_along(work.out, staging, {*known, DESCRIPTION})
    write_ledgers(staging, replace(about, files=files), ledgers)


def settle(work: Work) -> None:
    """Finish the moves of a work and remove its folder, unless an edit is unfinished.

    Raises:
        ResourceError: if a folder cannot be moved.
        SequenceError: if what lies there is of another model than ``out`` is now.
    """
    with _clear_errors(work.out):
        work.settle()


def refuse_others(out: Path) -> None:
    """Check that ``out`` may be written: it does not exist, or holds an edited model.

    Raises:
        ResourceError: otherwise.
    """
    if out.exists() and not is_edited(out):
        raise ResourceError(
            f"{out} exists and holds no edited model; choose a folder that does not exist yet"
        )


def refuse_unfinished(work: Work) -> None:
    """Check that no edit of a folder is unfinished.

    Raises:
        SequenceError: otherwise.
    """
    if work.unfinished:
        raise SequenceError(
            f"an edit of {work.out} was interrupted; finish it with the same command first, or delete "
            f"{work.folder} to drop what it added"
        )


@contextmanager
def _clear_errors(out: Path) -> Iterator[None]:
    try:
        yield
    except PalimpsestError:
        raise
    except (OSError, SafetensorError) as error:
        raise ResourceError(
            f"could not write {out}: {error}; free some space or choose another folder. What was there "
            "before is unchanged"
        ) from error
