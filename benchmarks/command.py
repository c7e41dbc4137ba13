"""The command ``palimpsest edit`` as a stage runs it, also in a process of its own that weighs itself.

    python -m benchmarks.command JOB      carry out the `Job` of a JSON file, and print the peak of memory

Such a process loads what the command loads and nothing of the stages.
"""

import subprocess
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

from pydantic import TypeAdapter

from benchmarks.inputs import MODEL, without_results
from benchmarks.machine import process_peak
from palimpsest.editors.sequential import Sequential
from palimpsest.types import EditRequest
from palimpsest.workbench.commands import edit_folder
from palimpsest.workbench.edited_model import EditedModel


@dataclass(frozen=True)
class Job:
    """What `edited_folder` is to write.

    Attributes:
        requests: the facts.
        model: name or folder of the unedited model.
        editor: row of ``config/sequences.yaml``, or settings.
        texts: of the second moments; None for the embedded ones.
    """

    requests: Sequence[EditRequest]
    model: str
    editor: Sequential | str
    texts: Sequence[str] | None

    def first(self, count: int) -> "Job":
        """The same job for fewer facts."""
        return replace(self, requests=self.requests[:count])


def edited_folder(job: Job) -> EditedModel:
    """Do what the command ``palimpsest edit`` does at batch 1, into a folder that is then removed."""
    with ExitStack() as stack:
        stack.enter_context(without_results())
        out = Path(stack.enter_context(TemporaryDirectory())) / "edited"
        if job.texts is not None:
            texts = list(job.texts)
            stack.enter_context(patch("palimpsest.memory.moments.statistics_texts", lambda: texts))
        return edit_folder(job.requests, out, job.model, job.editor, settings=MODEL, batch=1)


def peak_of(job: Job) -> float:
    """Peak memory of a fresh process that carries out a job, in 10⁶ bytes."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "job.json"
        path.write_bytes(TypeAdapter(Job).dump_json(job))
        command = [sys.executable, "-m", "benchmarks.command", str(path)]
        here = Path(__file__).parents[1]
        done = subprocess.run(command, check=True, cwd=here, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    edited_folder(TypeAdapter(Job).validate_json(Path(sys.argv[1]).read_bytes()))
    print(process_peak())
