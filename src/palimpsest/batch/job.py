"""One job of a batch, as the engine starts it: ``python -m palimpsest.batch.job PLAN NAME [OUTPUT]``.

Exit status 0 leaves the job's marker. A status that would come again is noted, so that a retry by the engine,
which knows no difference, ends at once; a lost job is not noted, and runs again. One that a GPU did not hold
is noted, and runs once more. Where Snakemake copies files through a storage, it wants the marker in
OUTPUT too.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

from palimpsest.batch import nodes
from palimpsest.batch.jobs import batch_dir, marker_of
from palimpsest.batch.outcome import in_words, retried
from palimpsest.batch.slots import slots
from palimpsest.book.losses import FULL, LOST
from palimpsest.errors import NotebookError, PalimpsestError
from palimpsest.files import UNREADABLE, as_json, write_atomically

OFFLINE = {"HF_HUB_OFFLINE": "1"}
"""Of jobs whose models were fetched beforehand: a node without a network does not wait for the hub."""


def refusal_of(name: str) -> Path:
    """Where a job notes an end that would come again."""
    return batch_dir() / "refused" / f"{name}.json"


def run_job(plan: Path, name: str) -> int:
    """Run a job of a plan, or end at once where it was refused in the same batch; the exit status.

    Raises:
        NotebookError: if the plan cannot be read on this node, or has no such job.
    """
    content = _read(plan)
    job = next((job for job in content["jobs"] if job["name"] == name), None)
    if job is None:
        raise NotebookError(f"{plan} has no job {name!r}; start batches with 'palimpsest batch'")
    note = noted(name, content["id"])
    if note.get("final"):
        status = int(note["status"])
        print(f"{name}: {in_words(status)} in this batch already, so it is not tried again", file=sys.stderr)
        return status
    nodes.record()
    with slots(content["gpus"], batch_dir() / "slots", job["gpu"]) as seeing:
        status = _call(job["arguments"], {**seeing, **(OFFLINE if content["fetch"] else {})})
    if status == 0:
        if job["witness"] and not Path(job["witness"]).is_file():
            raise NotebookError(f"{name} ended well but left no {job['witness']}; is that folder shared?")
        if job["witness"]:
            write_atomically(marker_of(name), as_json({"witness": job["witness"]}))
        return 0
    again = retried(status, first=not note)
    if again:
        print(f"{name}: {in_words(status)}; it may be tried again", file=sys.stderr)
    if again and status != FULL:
        refusal_of(name).unlink(missing_ok=True)
        return LOST
    note = {"plan": content["id"], "status": status, "final": not again}
    write_atomically(refusal_of(name), as_json(note))
    return status


def _read(plan: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(plan.read_text("utf-8")))
    except UNREADABLE as error:
        raise NotebookError(
            f"the plan {plan} cannot be read on {os.uname().nodename} ({error}): keep the checkout on "
            "storage that all nodes share"
        ) from error


def noted(name: str, plan: str) -> dict[str, Any]:
    """What a job noted in a batch: its ``status``, and whether that is ``final``; empty if nothing."""
    try:
        note = dict(json.loads(refusal_of(name).read_text("utf-8")))
    except UNREADABLE:
        return {}
    return note if note.get("plan") == plan else {}


def _call(arguments: list[str], extra: dict[str, str]) -> int:
    """Exit status of the command; a request to end is passed on, so that nothing is left running."""

    def end(number: int, _: object) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    command = [sys.executable, "-m", "palimpsest.cli", *arguments]
    process = subprocess.Popen(command, env={**os.environ, **extra})
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait()
        signal.signal(signal.SIGTERM, before)


def _copy_marker(name: str, places: list[str]) -> None:
    for place in map(Path, places):
        if place != marker_of(name):
            write_atomically(place, marker_of(name).read_bytes())


def main() -> int:
    """Exit status of the job named on the command line; an expected error is one message and status 2."""
    try:
        status = run_job(Path(sys.argv[1]), sys.argv[2])
        if status == 0:
            _copy_marker(sys.argv[2], sys.argv[3:])
        return status
    except PalimpsestError as error:
        print(f"palimpsest: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
