"""File of a ledger: one safetensors file with tensors, a description, and a checksum of each tensor."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from palimpsest.errors import LedgerError, ResourceError
from palimpsest.files import replacing

SCHEMA = 1


def write(path: Path, tensors: Mapping[str, Tensor | None], about: Mapping[str, Any]) -> None:
    """Write the tensors that are not None and a JSON-able description, atomically.

    Raises:
        ResourceError: if the file cannot be written; an earlier one is unchanged.
    """
    present = {name: t.detach().cpu().contiguous() for name, t in tensors.items() if t is not None}
    sums = {name: tensor_sha256(t) for name, t in present.items()}
    described = json.dumps({"schema": SCHEMA, "sha256": sums} | dict(about))
    with replacing(path) as temporary:
        save_file(present, temporary, metadata={"ledger": described})


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and description from `write`; the description also has ``sha256``, the checksum of each tensor.

    Raises:
        ResourceError: if the file is missing or damaged.
        LedgerError: if it holds no ledger, or one of another format.
    """
    try:
        with safe_open(path, framework="pt") as handle:
            text = (handle.metadata() or {}).get("ledger")
            # Copies, so that nothing depends on the file once it is read.
            tensors = {name: handle.get_tensor(name).clone() for name in handle.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ResourceError(
            f"ledger file {path} is missing or damaged ({error}); give the path of an intact copy"
        ) from error
    if text is None:
        raise LedgerError(f"{path} holds no ledger; give a file written by EditLedger.save")
    about = json.loads(text)
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
    return tensors, about


def tensor_sha256(tensor: Tensor) -> str:
    """Sha256 of a tensor's dtype, shape and bits, independent of its device."""
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    total = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    total.update(flat.view(torch.uint8).numpy().data)
    return total.hexdigest()
