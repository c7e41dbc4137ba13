"""The checks of a GPU machine, each in a process of its own and with a limit; see ``scripts/gpu_check.sh``.

Nothing is downloaded: `palimpsest fetch` comes before. What was found is written after every step, so that a
step that does not end leaves what the others found.
"""

import importlib.util
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from palimpsest import paths
from palimpsest.book.parameters import read_parameters
from palimpsest.book.profiles import find_notebook
from palimpsest.errors import PalimpsestError, UnknownNameError
from palimpsest.files import as_json, write_atomically

ROOT = Path(__file__).parents[1]
LIMITS = {"tests": 110, "page": 130, "edits": 210}
"""Step -> seconds after which it is given up: seven and a half minutes together."""

LAST = 4000
"""Characters of a step's output that are kept."""


def tests(device: str, page: str, rehearse: bool) -> list[str]:
    """The contract of editors, moments and shards on the device."""
    chosen = ["-k", "moments"] if rehearse else []
    quiet = ["-q", "-p", "no:cacheprovider", "--no-header"]
    return ["-m", "pytest", str(ROOT / "tests" / "test_on_device.py"), "--device", device, *quiet, *chosen]


def page_run(device: str, page: str, rehearse: bool) -> list[str]:
    """One page at smoke size."""
    declared = read_parameters(find_notebook(page))
    where = ["-p", f"device={device}"] if "device" in declared else []
    return ["-m", "palimpsest.cli", "run", page, "--profile", "smoke", *where]


def edits(device: str, page: str, rehearse: bool) -> list[str]:
    """A hundred AlphaEdit edits at LLaMA-3-8B's shapes."""
    return ["-m", "benchmarks.gpu_edits", "--device", device, *(["--rehearse"] if rehearse else [])]


STEPS: dict[str, Callable[[str, str, bool], list[str]]] = {"tests": tests, "page": page_run, "edits": edits}


def run(command: list[str], limit: float) -> dict[str, Any]:
    """Status, seconds and the end of the output of a Python command; the status is None past the limit."""
    began = time.monotonic()
    places = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(places)}
    options: dict[str, Any] = {"cwd": ROOT, "env": environment, "text": True, "timeout": limit}
    try:
        done = subprocess.run([sys.executable, *command], capture_output=True, **options)
        status, output = done.returncode, done.stdout
        trouble = done.stderr if done.returncode else ""
    except subprocess.TimeoutExpired as error:
        status, output, trouble = None, str(error.stdout or ""), f"given up after {limit:.0f} s"
    found: dict[str, Any] = {"status": status, "seconds": round(time.monotonic() - began, 1)}
    last = output.strip().splitlines()[-1:] or [""]
    try:
        found["record"] = json.loads(last[0])
    except ValueError:
        found["output"] = output[-LAST:]
    return {**found, **({"trouble": trouble[-LAST:]} if trouble else {})}


def about(device: str) -> dict[str, Any]:
    """The machine and its versions; the GPU as its driver names it."""
    import torch

    gpu = None
    if device.startswith("cuda") and torch.cuda.is_available():
        found = torch.cuda.get_device_properties(0)
        gpu = {"name": found.name, "memory_gib": round(found.total_memory / 2**30, 1)}
    versions = {
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda,
    }
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "device": device,
        "gpu": gpu,
        "versions": versions,
    }


def main(
    rehearse: Annotated[bool, typer.Option("--rehearse", help="On the CPU, at tiny shapes.")] = False,
    only: Annotated[
        list[str] | None, typer.Option(help="tests, page or edits; default all.", show_default=False)
    ] = None,
    page: Annotated[str, typer.Option(help="The page that is run.")] = "01_one_edit",
    out: Annotated[
        Path | None, typer.Option(help="Default results/gpu_check.json.", show_default=False)
    ] = None,
) -> None:
    """Run the checks; exit status 1 if one failed."""
    try:
        failed = check(rehearse, only or list(STEPS), page, out)
    except PalimpsestError as error:
        typer.echo(f"gpu_check: {error}", err=True)
        raise typer.Exit(2) from None
    typer.echo("failed: " + ", ".join(failed) if failed else "all checks passed")
    raise typer.Exit(1 if failed else 0)


def check(rehearse: bool, names: list[str], page: str, out: Path | None) -> list[str]:
    """Run steps and write what they found; names of those that failed.

    Raises:
        UnknownNameError: if there is no step or page of a name.
        ModelError: if there is no GPU here.
    """
    for name in names:
        if name not in STEPS:
            raise UnknownNameError("check", name, list(STEPS))
    device = "cpu" if rehearse else _gpu()
    place = out or paths.results_root() / "gpu_check.json"
    commands = {name: STEPS[name](device, page, rehearse) for name in names}
    found: dict[str, Any] = {"about": about(device), "rehearsal": rehearse, "steps": {}}
    for name, command in commands.items():
        typer.echo(f"{name} ...")
        found["steps"][name] = run(command, LIMITS[name])
        typer.echo(f"  status {found['steps'][name]['status']}, {found['steps'][name]['seconds']} s")
        write_atomically(place, as_json(found))
    typer.echo(f"written: {place}")
    return [name for name, step in found["steps"].items() if step["status"] != 0]


def _gpu() -> str:
    from palimpsest.network.device import device

    return str(device("cuda"))


if __name__ == "__main__":
    if importlib.util.find_spec("pytest") is None:
        sys.exit("gpu_check: pytest is missing; install the extra dev")
    typer.run(main)
