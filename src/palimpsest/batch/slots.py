"""GPUs of one node as slots: a job holds its own while it runs, by lock files that its end releases."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from palimpsest.book.gpus import VISIBLE, pinned
from palimpsest.errors import BusyError
from palimpsest.files import locked

SCHEDULED = ("SLURM_JOB_ID", "KUBERNETES_SERVICE_HOST")
"""Variables of schedulers that hand out devices themselves: there nothing is pinned."""


def gpus() -> list[str]:
    """GPUs of this node by their names in CUDA_VISIBLE_DEVICES: those it lists, else all of the driver's."""
    if VISIBLE in os.environ:
        return [name.strip() for name in os.environ[VISIBLE].split(",") if name.strip()]
    program = shutil.which("nvidia-smi")
    if program is None:
        return []
    done = subprocess.run([program, "--list-gpus"], capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if line.startswith("GPU ")]
    return [str(number) for number in range(len(lines))] if done.returncode == 0 else []


def scheduled() -> bool:
    """Whether a scheduler gave this process its devices."""
    return any(name in os.environ for name in SCHEDULED)


@contextmanager
def slots(names: Sequence[str], folder: Path, count: int = 1, pause: float = 2.0) -> Iterator[dict[str, str]]:
    """Hold some GPUs inside the block; they are waited for, and none is held meanwhile.

    Args:
        names: the GPUs of the node; nothing is held where there are none, or where a scheduler hands them
            out.
        folder: of the lock files.
        count: of those that are held together.
        pause: seconds between looks.

    Yields:
        Variables by which a process sees these alone.
    """
    if not names or not count or scheduled():
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
