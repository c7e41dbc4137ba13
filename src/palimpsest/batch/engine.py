"""The engine, Snakemake: what it is told, how it is started, and what came of the jobs.

Snakemake is an extra and runs in a process of its own; nothing here imports it.
"""

import importlib.util
import json
import os
import subprocess
import sys
import uuid
from collections.abc import Sequence
from pathlib import Path

from palimpsest import paths
from palimpsest.batch.estimates import Estimates
from palimpsest.batch.job import noted, refusal_of
from palimpsest.batch.jobs import Batch, Job, as_plan, batch_dir, expand, marker_of
from palimpsest.batch.kubernetes import filled, storage_of, variables
from palimpsest.batch.matrix import Matrix
from palimpsest.batch.slots import gpus
from palimpsest.book.losses import FULL
from palimpsest.errors import FullGpuError, LostRunError, NotebookError, ProfileError, UnknownNameError
from palimpsest.files import as_json, locked, write_atomically

ENGINES = {"node": "", "slurm": "slurm", "kubernetes": "kubernetes"}
"""Folder in ``workflow/profiles`` -> executor plugin that it needs."""

EXTRA = "python -m pip install -e '.[batch]'"


def check_engine(engine: str) -> None:
    """Check that an engine is known and installed.

    Raises:
        UnknownNameError: if there is none of that name.
        ProfileError: if Snakemake, or the plugin for its executor, is not installed, or its profile leaves
            something of the cluster open.
    """
    if engine not in ENGINES:
        raise UnknownNameError("engine", engine, list(ENGINES))
    needed = {"snakemake": EXTRA}
    if plugin := ENGINES[engine]:
        module = f"snakemake_executor_plugin_{plugin}"
        needed[module] = f"python -m pip install {module.replace('_', '-')}"
    for module, remedy in needed.items():
        if importlib.util.find_spec(module) is None:
            raise ProfileError(f"{module} is not installed, which --profile {engine} needs; run {remedy}")
    if engine == "kubernetes":
        filled()


def run_batch(
    matrix: Matrix,
    engine: str = "node",
    *,
    dry: bool = False,
    extra: Sequence[str] = (),
    estimates: Estimates | None = None,
    anyway: bool = False,
) -> Batch:
    """Run what is due of a matrix; another call goes on with what is left.

    Args:
        matrix: which runs are wanted.
        engine: a row of ``ENGINES``.
        dry: say what is due and what Snakemake would do, and do nothing.
        extra: further arguments of Snakemake.
        estimates: plans by which jobs ask for memory and time; None for what the matrix says.
        anyway: run pages also where their plan exceeds the memory of their GPU.

    Returns:
        What was due and what stood.

    Raises:
        ProfileError: if the engine is not installed, a job needs a GPU and this node shows none, or a plan
            was made on a CPU for jobs on GPUs.
        BusyError: if another batch runs in this checkout.
        NotebookError: after the last job, if any failed in a way that comes again.
        FullGpuError: if those that failed did not fit into the memory of their GPUs.
        LostRunError: if those that failed lost their memory, GPU or node.
    """
    check_engine(engine)
    with locked(batch_dir() / "plan.json", 0):
        here = gpus() if engine == "node" else []
        batch = expand(matrix, len(here) if engine == "node" else None)
        batch = batch.unchecked() if anyway else batch
        for job in batch.due:
            print(f"{job.name}: {job.reason}")
        batch = batch if estimates is None else estimates.sized(batch, matrix)
        for name, reason in batch.left_out.items():
            print(f"{name} is {reason}")
        print(f"{len(batch.due)} jobs are due, {len(batch.standing)} results stand", flush=True)
        if not batch.due and (matrix.book is None or marker_of("book").is_file()):
            return batch
        if engine == "node":
            _check_gpus(batch, len(here))
        plan = write_plan(batch, matrix, here)
        status = subprocess.call(command(plan, engine, len(here), dry, extra), env=_environment())
        if not dry:
            _report(batch, status, plan)
    return batch


def _check_gpus(batch: Batch, here: int) -> None:
    """Check that this node has the GPUs of each job.

    Raises:
        ProfileError: if a job needs more than there are.
    """
    needing = max(batch.due, key=lambda job: job.gpu, default=None)
    if needing is not None and needing.gpu > here:
        wanted = "a GPU" if needing.gpu == 1 else f"{needing.gpu} GPUs"
        raise ProfileError(
            f"{needing.name} needs {wanted}, and this node shows {here or 'none'} (nvidia-smi, "
            "CUDA_VISIBLE_DEVICES); start it on another, or give --profile slurm"
        )


def write_plan(batch: Batch, matrix: Matrix, seen: Sequence[str]) -> Path:
    """Write what the workflow reads, and take away the markers and notes of jobs that are due.

    Args:
        batch: its jobs.
        matrix: where they come from.
        seen: GPUs that jobs on this node share.
    """
    for name in (*(job.name for job in batch.due), "book", "fetch"):
        for place in (marker_of(name), refusal_of(name)):
            place.unlink(missing_ok=True)
    (batch_dir() / "done").mkdir(parents=True, exist_ok=True)
    plan = batch_dir() / "plan.json"
    content = {
        "id": uuid.uuid4().hex,
        "folder": str(batch_dir()),
        "gpus": list(seen),
        "retries": matrix.retries,
        "fetch": sorted({job.profile for job in batch.due}) if matrix.fetch else [],
        "book": matrix.book,
        "jobs": as_plan(batch.due),
    }
    write_atomically(plan, as_json(content))
    return plan


def command(plan: Path, engine: str, count: int, dry: bool = False, extra: Sequence[str] = ()) -> list[str]:
    """How Snakemake is called.

    Args:
        plan: from `write_plan`.
        engine: a row of ``ENGINES``.
        count: of GPUs on this node, which as many jobs may use at once.
        dry: whether nothing is run.
        extra: further arguments.
    """
    folder = paths.root() / "workflow"
    return [
        *(sys.executable, "-m", "snakemake", "--snakefile", str(folder / "Snakefile")),
        *("--workflow-profile", str(folder / "profiles" / engine), "--directory", str(paths.root())),
        *("--nolock", "--config", f"plan={plan}"),
        *(("--cores", str(os.cpu_count() or 1), "--resources", f"gpu={count}") if engine == "node" else ()),
        *(storage_of(json.loads(plan.read_text("utf-8"))["id"]) if engine == "kubernetes" else ()),
        *(("--dry-run",) if dry else ()),
        *extra,
    ]


def _environment() -> dict[str, str]:
    """Of the engine: profiles of the user's home do not change what a batch does."""
    return {name: value for name, value in os.environ.items() if name != "SNAKEMAKE_PROFILE"} | variables()


def _report(batch: Batch, status: int, plan: Path) -> None:
    """Say what came of the jobs.

    Raises:
        NotebookError, FullGpuError, LostRunError: if any is not done.
    """
    left = [job for job in batch.due if not job.marker.is_file()]
    print(f"{len(batch.due) - len(left)} of {len(batch.due)} jobs are done", flush=True)
    if not left and status == 0:
        return
    logs = batch_dir() / "logs"
    ends = {
        job.name: noted(job.name, json.loads(plan.read_text("utf-8"))["id"]).get("status") for job in left
    }
    full = [job for job in left if ends[job.name] == FULL]
    failed = [job for job in left if ends[job.name] not in (None, FULL)]
    waiting = [job for job in left if {other.name for other in left} & {*job.after}]
    lost = [job for job in left if job not in (*failed, *full, *waiting)]
    said = {
        "failed": failed,
        "too large for their GPUs": full,
        "lost or not begun": lost,
        "waiting for those": waiting,
    }
    parts = [f"{what}: {_names(jobs)}" for what, jobs in said.items() if jobs]
    parts = parts or [f"Snakemake ended with status {status}"]
    kind = NotebookError if failed or not left else FullGpuError if full and not lost else LostRunError
    raise kind(
        f"{'; '.join(parts)}. Their logs are in {logs}; mend the cause, and the same command goes on with "
        "what is left"
    )


def _names(jobs: Sequence[Job]) -> str:
    return ", ".join(job.name for job in jobs)
