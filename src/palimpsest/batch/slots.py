"""GPUs of one node as slots: a job holds one while it runs, by a lock file that its end releases."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

from palimpsest.errors import BusyError
from palimpsest.files import locked

VISIBLE = "CUDA_VISIBLE_DEVICES"
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
def slot(names: Sequence[str], folder: Path, pause: float = 2.0) -> Iterator[str | None]:
    """Hold one of some GPUs inside the block; one that is free is waited for.

    Args:
        names: the GPUs; None is held where there are none, or where a scheduler hands them out.
        folder: of the lock files.
        pause: seconds between looks.
    """
    if not names or scheduled():
        yield None
        return
    while True:
        for name in names:
            with ExitStack() as held:
                try:
                    held.enter_context(locked(folder / f"{socket.gethostname()}-gpu-{name}", 0))
                except BusyError:
                    continue
                yield name
                return
        time.sleep(pause)
