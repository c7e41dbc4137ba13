"""GPUs by what the driver and a loaded PyTorch say of them; PyTorch itself is not loaded here."""

import csv
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from palimpsest.errors import ResourceError

QUERY = ("index", "name", "uuid", "memory.total", "driver_version")

VISIBLE, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"

BY_BUS = "PCI_BUS_ID"
"""Order in which ``nvidia-smi`` numbers GPUs; CUDA's own begins with the fastest."""


@dataclass(frozen=True)
class Gpu:
    """One GPU as ``nvidia-smi`` lists it.

    Attributes:
        index: its number, as CUDA_VISIBLE_DEVICES counts with CUDA_DEVICE_ORDER=PCI_BUS_ID.
        name: of the product.
        uuid: the other name that CUDA_VISIBLE_DEVICES takes.
        memory: in MiB.
        driver: its version.
    """

    index: int
    name: str
    uuid: str
    memory: int
    driver: str

    def __str__(self) -> str:
        return f"{self.index} ({self.name}, {self.memory / 1024:.0f} GiB)"


def gpus() -> list[Gpu]:
    """GPUs of this machine that its driver lists; none where there is no driver."""
    command = ["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return []
    found = []
    for row in csv.reader(done.stdout.splitlines(), skipinitialspace=True):
        if len(row) == len(QUERY) and row[0].isdigit():
            memory = int(row[3]) if row[3].isdigit() else 0
            found.append(Gpu(int(row[0]), row[1], row[2], memory, row[4]))
    return found


def pinned(names: str) -> dict[str, str]:
    """Variables by which a process sees some GPUs alone, by the numbers of ``nvidia-smi``."""
    return {VISIBLE: names, ORDER: BY_BUS}


def check_gpu(wanted: str | None) -> None:
    """Check what CUDA_VISIBLE_DEVICES is to be set to; None and the empty text ask for nothing.

    Raises:
        ResourceError: if it names a GPU that is not there, or is no list of GPUs; the message names those
            that are there.
    """
    if not wanted:
        return
    here = gpus()
    for name in (part.strip() for part in wanted.split(",")):
        if name.startswith("MIG-") or any(name.startswith("GPU-") and g.uuid.startswith(name) for g in here):
            continue
        if not name.isdigit() or int(name) not in [gpu.index for gpu in here]:
            shown = ", ".join(map(str, here))
            there = (
                f"here are: {shown}; choose among these"
                if here
                else "the driver lists none (`nvidia-smi`); install it, or leave out --gpu and take a "
                "profile for the CPU, or -p device=cpu"
            )
            raise ResourceError(f"--gpu {wanted}: there is no GPU {name!r}; {there}")


def room_of(device: str, visible: str | None = None) -> int:
    """Bytes of GPU memory that a run has on its device; 0 where there is none, or the driver tells nothing.

    Args:
        device: ``cuda``, one such as ``cuda:1``, or ``auto``, which is all that the run sees.
        visible: what CUDA_VISIBLE_DEVICES is set to for the run; as it is set here if None.
    """
    kind, _, number = device.partition(":")
    here = gpus() if kind in ("cuda", "auto") else []
    if not here:
        return 0
    named = os.environ.get(VISIBLE) if visible is None else visible
    names = [str(gpu.index) for gpu in here] if named is None else [part.strip() for part in named.split(",")]
    by_bus = visible is not None or os.environ.get(ORDER) == BY_BUS
    sizes = [_memory(name, here, by_bus) for name in names if name]
    if kind == "auto":
        return sum(sizes) * 2**20 if all(sizes) else 0
    at = int(number or 0)
    return sizes[at] * 2**20 if at < len(sizes) else 0


def _memory(name: str, here: Sequence[Gpu], by_bus: bool) -> int:
    """MiB of a GPU as CUDA_VISIBLE_DEVICES names it; the largest there is where CUDA numbers them its way."""
    if not name.isdigit():
        return next((gpu.memory for gpu in here if gpu.uuid.startswith(name)), 0)
    numbered = [gpu.memory for gpu in here if gpu.index == int(name)] if by_bus else [g.memory for g in here]
    return max(numbered, default=0)


def used(torch: Any) -> dict[str, Any]:
    """What is known of the GPU that this process has used, for the provenance of its result.

    Args:
        torch: the module as it is loaded, or None.

    Returns:
        Empty if no GPU was used. Else ``name``, ``count`` of visible ones, ``driver``, ``cuda``, ``cudnn``,
        ``torch`` (the build), ``peak_memory_mib`` of tensors on the fullest device, ``deterministic`` (only
        such algorithms), ``tf32_matmul``, ``tf32_cudnn``, and ``visible`` (CUDA_VISIBLE_DEVICES) where set.
    """
    cuda = getattr(torch, "cuda", None)  # half loaded in the middle of an import
    if cuda is None or not getattr(cuda, "is_initialized", bool)():
        return {}
    count = cuda.device_count()
    peaks = [cuda.max_memory_allocated(number) for number in range(count)]
    number = max(range(count), key=peaks.__getitem__)
    visible = os.environ.get(VISIBLE)
    return {
        "name": cuda.get_device_name(number),
        "count": count,
        "driver": _driver(),
        "cuda": torch.version.cuda or "none",
        "cudnn": _dotted(torch.backends.cudnn.version()),
        "torch": torch.__version__,
        "peak_memory_mib": round(peaks[number] / 2**20),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "tf32_matmul": torch.backends.cuda.matmul.allow_tf32,
        "tf32_cudnn": torch.backends.cudnn.allow_tf32,
        **({} if visible is None else {"visible": visible}),
    }


@cache
def _driver() -> str:
    return " ".join(sorted({gpu.driver for gpu in gpus()})) or "unknown"


def _dotted(version: int | None) -> str:
    """The number of cuDNN as it is printed elsewhere: 90100 is 9.1.0."""
    if version is None:
        return "none"
    major, rest = divmod(version, 10_000 if version >= 90_000 else 1000)
    return f"{major}.{rest // 100}.{rest % 100}"
