"""Whether a page fits into the memory of its GPU, compared before its first cell."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from palimpsest.errors import FullGpuError, ResourceError
from palimpsest.planning.counts import Method
from palimpsest.planning.memory import memory
from palimpsest.planning.pages import PAGES
from palimpsest.planning.plan import method_of
from palimpsest.planning.weights import weights_of

GIB = 2**30


def held_by(source: Path, parameters: Mapping[str, Any]) -> dict[str, int]:
    """Bytes of GPU memory that a page holds at its fullest, by part, from the shape of its model.

    Args:
        source: path of the notebook.
        parameters: all of them, as used.

    Returns:
        As `palimpsest.planning.memory.memory`; empty where its work is not counted, it uses no model, or
        nothing tells the size of the model.

    Raises:
        ModelError: if the model's folder is none.
    """
    work = PAGES[source.stem](parameters) if source.stem in PAGES else None
    if work is None or not work.uses_model:
        return {}
    try:
        weights = weights_of(str(parameters["model"]), "cuda")
    except ResourceError:
        return {}
    return memory(weights.shape, work, Method.of(method_of(source, parameters)), weights.dtype)


def check_fits(source: Path, parameters: Mapping[str, Any], room: int) -> None:
    """Refuse a page that needs more GPU memory than there is.

    Args:
        source: path of the notebook.
        parameters: all of them, as used.
        room: bytes of its GPU, or of all GPUs that its model is spread over; 0 where they are not known, and
            nothing is compared.

    Raises:
        FullGpuError: if the plan says more; the message names both, and what to change.
        ModelError: if the model's folder is none.
    """
    held = held_by(source, parameters) if room else {}
    needed = sum(held.values())
    if needed <= room:
        return
    parts = ", ".join(f"{part} {count / GIB:.1f}" for part, count in held.items() if count >= GIB / 20)
    device = parameters["device"]
    there = "all GPUs that it sees have" if device == "auto" else f"device {device} has"
    raise FullGpuError(
        f"{source.stem} needs {needed / GIB:.1f} GiB of GPU memory by its plan ({parts}), and {there} "
        f"{room / GIB:.1f} GiB. Choose a GPU with more, spread the model over several (device: auto), give "
        "smaller sizes with -p or in the profile, or a model whose weights are stored in a narrower dtype; "
        "--anyway runs it all the same"
    )
