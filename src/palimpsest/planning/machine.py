"""A probe of the machine on which a plan is asked for: matrix products and memory, for a few seconds."""

import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from tqdm import tqdm

from palimpsest.book.provenance import processor
from palimpsest.errors import ModelError
from palimpsest.network.placement import one_of

SIDES = (256, 512, 1024, 2048, 4096, 8192)
"""Sides of the matrices whose products are timed, smallest first, as far as the time allows."""

COPIED = 2**27
"""Bytes that are copied to time the memory: more than caches hold."""

FEWEST = 3
"""Repeats of each piece of work, as far as the time allows."""


@dataclass(frozen=True)
class Machine:
    """What a machine does in a second, as measured.

    Attributes:
        name: of the GPU, or of the processor with its cores.
        device: ``cpu`` or ``cuda``.
        products: dtype -> multiply-adds in a second of a product of two square matrices.
        bandwidth: bytes in a second, read and written.
        memory: bytes of the device, of all GPUs where a model is spread over them; 0 where unknown.
        cores: that work side by side, each on its own facts; 1 on a GPU.
        unprobed: why nothing was measured, because the device is none of this machine; empty if it was.
    """

    name: str
    device: str
    products: Mapping[str, float]
    bandwidth: float
    memory: int = 0
    cores: int = 1
    unprobed: str = ""


def device_of(device: str) -> tuple[str, str]:
    """Type of a device, as a run would use it, and why it cannot be used here; empty if it can.

    Args:
        device: such as ``cpu``, ``cuda`` or ``auto``.

    Raises:
        ModelError: if no machine has a device of that name.
    """
    try:
        return one_of(device).type, ""
    except ModelError as error:
        known = re.fullmatch(r"(cuda|mps|xpu)(:\d+)?", device)
        if known is None:
            raise
        return known[1], str(error)


def probe(device: str, dtypes: tuple[torch.dtype, ...], seconds: float = 10.0) -> Machine:
    """Measure a device; one GPU stands for all that ``auto`` spreads a model over, but for their memory.

    Args:
        device: such as ``cpu``, ``cuda`` or ``auto``.
        dtypes: of the products that matter.
        seconds: that it may take; one piece of work is finished in any case.

    Raises:
        ModelError: if there is no such device.
    """
    place = one_of(device)
    share = seconds / (len(dtypes) + 1)
    with tqdm(total=1, desc=f"measuring {device}, {seconds:.0f} s", disable=None, leave=False):
        products = {str(dtype).removeprefix("torch."): _product_rate(place, dtype, share) for dtype in dtypes}
        source = torch.zeros(COPIED // 4, dtype=torch.float32, device=place)
        target = torch.empty_like(source)
        fastest = _fastest(lambda: target.copy_(source), place, share)
    if place.type == "cuda":
        name = torch.cuda.get_device_properties(place).name
        return Machine(name, place.type, products, 2 * COPIED / fastest, _gpu_memory(device, place))
    rate, cores = 2 * COPIED / fastest, torch.get_num_threads()
    return Machine(processor(), place.type, products, rate, _host_memory(), cores)


def _product_rate(place: torch.device, dtype: torch.dtype, seconds: float) -> float:
    """Multiply-adds in a second, of the largest product that a share of the time allows."""
    until, rate = time.monotonic() + seconds, 0.0
    for side in SIDES:
        left = until - time.monotonic()
        if rate and side**3 / rate > left / 2:
            break
        a = torch.randn(side, side, device=place).to(dtype)
        rate = max(rate, side**3 / _fastest(lambda a=a: a @ a, place, left / 2))  # type: ignore[misc]
    return rate


def _fastest(work: Callable[[], object], place: torch.device, seconds: float) -> float:
    """Seconds of the fastest repeat, after one that does not count."""
    times: list[float] = []
    until = time.monotonic() + seconds
    work()  # memory is handed out when it is first written
    while not times or (len(times) < FEWEST and time.monotonic() < until):
        _settle(place)
        start = time.perf_counter()
        work()
        _settle(place)
        times.append(time.perf_counter() - start)
    return min(times)


def _settle(place: torch.device) -> None:
    if place.type == "cuda":
        torch.cuda.synchronize(place)


def _gpu_memory(device: str, place: torch.device) -> int:
    """Bytes of one GPU, or of all that this process sees."""
    of = range(torch.cuda.device_count()) if device == "auto" else [place]
    return sum(torch.cuda.get_device_properties(one).total_memory for one in of)


def _host_memory() -> int:
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names:
        return 0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
