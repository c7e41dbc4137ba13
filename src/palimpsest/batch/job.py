"""One job of a batch, as the engine starts it: ``python -m palimpsest.batch.job PLAN NAME``.

Exit status 0 leaves the job's marker. A status that would come again is noted, so that a retry by the engine,
which knows no difference, ends at once; a lost job is not noted, and runs again.
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
from palimpsest.batch.slots import VISIBLE, slot
from palimpsest.book.losses import LOST
from palimpsest.errors import NotebookError, PalimpsestError
from palimpsest.files import UNREADABLE, as_json, write_atomically


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
    note = _noted(name)
    if note.get("plan") == content["id"]:
        status = int(note["status"])
        print(f"{name}: {in_words(status)} in this batch already, so it is not tried again", file=sys.stderr)
        return status
    nodes.record()
    with slot(content["gpus"] if job["gpu"] else [], batch_dir() / "slots") as gpu:
        status = _call(job["arguments"], {} if gpu is None else {VISIBLE: gpu})
    if status == 0:
        if job["witness"] and not Path(job["witness"]).is_file():
            raise NotebookError(f"{name} ended well but left no {job['witness']}; is that folder shared?")
        if job["witness"]:
            write_atomically(marker_of(name), as_json({"witness": job["witness"]}))
        return 0
    if retried(status):
        print(f"{name}: {in_words(status)}; it may be tried again", file=sys.stderr)
        return LOST
    write_atomically(refusal_of(name), as_json({"plan": content["id"], "status": status}))
    return status


def _read(plan: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(plan.read_text("utf-8")))
    except UNREADABLE as error:
        raise NotebookError(
            f"the plan {plan} cannot be read on {os.uname().nodename} ({error}): keep the checkout on "
            "storage that all nodes share"
        ) from error


def _noted(name: str) -> dict[str, Any]:
    try:
        return dict(json.loads(refusal_of(name).read_text("utf-8")))
    except UNREADABLE:
        return {}


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


def main() -> int:
    """Exit status of the job named on the command line; an expected error is one message and status 2."""
    try:
        return run_job(Path(sys.argv[1]), sys.argv[2])
    except PalimpsestError as error:
        print(f"palimpsest: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
