"""Work in pieces: side by side on all cores, and smaller ones where memory does not suffice.

One thread for each of several pieces is faster than many threads in one small product. The results do not
depend on the number of cores, bit by bit, because a piece is computed by one thread and the pieces are cut by
the caller, not by the machine.
"""

import ctypes
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

import torch
from tqdm import tqdm

from palimpsest.errors import OutOfMemoryError

LARGE = 2**22
"""Bytes from which a block of memory is given back when it is freed."""

M_MMAP_THRESHOLD = -3
"""Number of that setting in glibc's ``malloc.h``."""

Item = TypeVar("Item")
Result = TypeVar("Result")


def side_by_side(work: Callable[[Item], Result], items: Iterable[Item], device: torch.device) -> list[Result]:
    """Results of ``work`` for each item, in their order.

    On the CPU as many items run at once as PyTorch has threads, with one thread each. On other devices, whose
    products fill them alone, they run one after the other. After an error no further item is begun.

    Args:
        work: changes nothing that another call reads.
        items: in the order of the results.
        device: where ``work`` computes.
    """
    if device.type != "cpu":
        return [work(item) for item in items]
    threads = torch.get_num_threads()
    try:
        if threads == 1:
            return [work(item) for item in items]
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            running = [pool.submit(work, item) for item in items]
            try:
                return [one.result() for one in running]
            finally:
                pool.shutdown(cancel_futures=True)
    finally:
        torch.set_num_threads(threads)


def in_halves(work: Callable[[Sequence[Item]], Result], items: Sequence[Item], what: str) -> list[Result]:
    """Results of ``work`` for all items at once or, where memory does not suffice, for each half of them.

    Args:
        work: called with consecutive items; changes nothing before it returns.
        items: one or more.
        what: name of the items, in the plural, for the line that says how it goes on.

    Raises:
        OutOfMemoryError: if a single item does not fit.
    """
    try:
        return [work(items)]
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        reason = str(error).partition("\n")[0]
    if len(items) == 1:
        raise OutOfMemoryError(
            f"one of the {what} alone does not fit into memory: {reason} Free some memory, shorten its "
            "texts, or load the model in a narrower dtype. Nothing was changed"
        )
    half = len(items) // 2
    tqdm.write(f"{len(items)} {what} at once do not fit into memory; going on with {half}")
    return in_halves(work, items[:half], what) + in_halves(work, items[half:], what)


def return_freed_blocks() -> None:
    """Have the C library give blocks of LARGE bytes back to the system when they are freed.

    glibc keeps such blocks once it has seen them freed, and they fall to pieces: an edit then holds a tenth
    more memory than it uses. Other C libraries are left as they are.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, LARGE)


def give_back() -> None:
    """Have the C library give all freed memory back to the system, blocks smaller than LARGE too.

    It costs milliseconds, and what is needed again is cleared again, so it is meant for the end of a long
    piece of work. C libraries other than glibc are left as they are.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def _is_out_of_memory(error: BaseException) -> bool:
    # Allocators of the CPU raise a plain RuntimeError; its words are the only sign.
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
