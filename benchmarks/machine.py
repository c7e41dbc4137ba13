"""What a run measures of the machine: product rate, peak of resident memory, threads and versions."""

import gc
import os
import platform
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from palimpsest.network.cores import give_back

PRODUCT_SIZE = 1536
"""Side of the square matrices whose product gives the rate: large enough for the full rate of the cores."""

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def product_rate(dtype: torch.dtype, size: int = PRODUCT_SIZE, repeats: int = 7) -> float:
    """Multiply-adds per second of a product of two square matrices, the best of a few, with all threads.

    Args:
        dtype: of both matrices.
        size: their side.
        repeats: products timed after one that is not counted.
    """
    a = torch.randn(size, size, generator=torch.Generator().manual_seed(0), dtype=dtype)
    times = [seconds(lambda: a @ a)[1] for _ in range(repeats + 1)][1:]
    return size**3 / min(times)


def seconds(work: Callable[[], Any]) -> tuple[Any, float]:
    """What a call returns, and its seconds."""
    began = time.perf_counter()
    result = work()
    return result, time.perf_counter() - began


@dataclass
class Peak:
    """Memory that a block added to what was resident before it.

    Attributes:
        megabytes: in units of 10⁶ bytes; 0 until the block has ended.
    """

    megabytes: float = 0.0


@contextmanager
def peak_memory() -> Iterator[Peak]:
    """Measure the peak of resident memory in the block, above what was resident at its start.

    Linux resets the peak on request. Where that is refused, the peak of the whole process is used, which is
    never lower than the block's own.
    """
    gc.collect()
    give_back()
    before = _resident("VmRSS")
    _reset_peak()
    found = Peak()
    try:
        yield found
    finally:
        found.megabytes = max(_resident("VmHWM") - before, 0) / 1e6


def process_peak() -> float:
    """Peak of resident memory of this process since its start, in 10⁶ bytes.

    Linux keeps it with the address space (VmHWM). Its ``ru_maxrss`` survives the start of a program and so
    counts the parent's memory too; it is used elsewhere.
    """
    return _resident("VmHWM") / 1e6


def _resident(name: str) -> float:
    """A line of the process's status in bytes; ``ru_maxrss`` where there is no such file."""
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        unit = 1 if platform.system() == "Darwin" else 1024  # macOS counts bytes, others kibibytes
        return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
    return float(next(line for line in lines if line.startswith(f"{name}:")).split()[1]) * 1024


def _reset_peak() -> None:
    try:
        _CLEAR.write_text("5")
    except OSError:
        return


def about() -> dict[str, Any]:
    """Machine, versions and date of a run, JSON-able; rates in 10⁹ multiply-adds per second."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "product_rate": {
            name: round(product_rate(getattr(torch, name)) / 1e9, 1) for name in ("float32", "float64")
        },
        "versions": {
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "transformers": version("transformers"),
            "palimpsest": version("palimpsest"),
        },
    }


def _processor() -> str:
    """The processor's name where the system tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())
