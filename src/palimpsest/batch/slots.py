"""GPUs of one node as slots: a job holds its own while it runs, by lock files that its end releases."""

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import takewhile
from pathlib import Path

from palimpsest.book.gpus import VISIBLE, pinned
from palimpsest.errors import BusyError
from palimpsest.files import locked

NAME = re.compile(r"\d+|(GPU|MIG)-.+")
"""What CUDA takes for a GPU in CUDA_VISIBLE_DEVICES: its number, or the name that the driver gives it."""


def gpus() -> list[str]:
    """GPUs of this node by their names in CUDA_VISIBLE_DEVICES: those it lists, else all of the driver's.

    In a job of a scheduler these are the GPUs of its allocation, by number or by name. As for CUDA, the list
    ends before what is no GPU: Slurm writes ``NoDevFiles`` for a job that has none.
    """
    if VISIBLE in os.environ:
        listed = (name.strip() for name in os.environ[VISIBLE].split(","))
        return list(takewhile(NAME.fullmatch, listed))
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    done = subprocess.run([program, "--list-gpus"], capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("GPU ")]
    return [str(number) for number in range(len(lines))] if done.returncode == 0 else []


@contextmanager
def slots(names: Sequence[str], folder: Path, count: int = 1, pause: float = 2.0) -> Iterator[dict[str, str]]:
    """Hold some GPUs inside the block; they are waited for, and none is held meanwhile.

    Args:
        names: the GPUs that the jobs share; nothing is held where there are none, as where a scheduler gives
            each job its own.
        folder: of the lock files.
        count: of those that are held together.
        pause: seconds between looks.

    Yields:
        Variables by which a process sees these alone.
    """
    if not names or not count:
        yield {}
        return
    while True:
        with ExitStack() as held:
            taken: list[str] = []
            for name in names:
                with suppress(BusyError):
                    held.enter_context(locked(folder / f"{socket.gethostname()}-gpu-{name}", 0))
                    taken.append(name)
                if len(taken) == count:
                    yield _seeing(taken)
                    return
        time.sleep(pause)


def _seeing(names: Sequence[str]) -> dict[str, str]:
    """As `pinned`; numbers that CUDA_VISIBLE_DEVICES lists keep the order in which it was set."""
    listed = ",".join(names)
    return {VISIBLE: listed} if VISIBLE in os.environ else pinned(listed)
