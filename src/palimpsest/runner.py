"""Execute notebooks under a profile; a result is moved into place only when its run succeeded.

Files of a run in progress are collected in a temporary folder beside the results. A failed or
interrupted run leaves the earlier result as it was.
"""

import contextlib
import importlib.metadata
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import nbformat

from palimpsest import paths, records
from palimpsest.errors import NotebookError, PalimpsestError
from palimpsest.fingerprint import components, content_hash
from palimpsest.normalise import normalise, with_current_prose
from palimpsest.profiles import (
    Profile,
    check_profile,
    find_notebook,
    known_notebooks,
    load_profile,
    parameters_for,
)

NOT_RUN = "not run yet in this profile"
PACKAGES = ("torch", "transformers", "numpy", "scipy", "pandas", "pyarrow", "matplotlib")


@dataclass(frozen=True)
class Run:
    """What came of one notebook.

    Attributes:
        notebook: path of the executed copy.
        seconds: wall time.
        changed: whether any file differs from the earlier result.
    """

    notebook: Path
    seconds: float
    changed: bool


def run_notebook(
    name: str | Path,
    profile: str,
    overrides: Mapping[str, Any] | None = None,
    *,
    gpu: str | None = None,
    folder: Path | None = None,
) -> Run:
    """Execute one notebook with checked parameters.

    Args:
        name: a notebook's name, or a path ending in ``.ipynb``.
        profile: where the parameters come from.
        overrides: values that win over the profile's. Such a run is no run of the profile, so it
            goes to ``build/runs`` unless ``folder`` says otherwise.
        gpu: what CUDA_VISIBLE_DEVICES is set to; unchanged if None.
        folder: where the result goes instead of ``results/<profile>``.

    Raises:
        UnknownNameError: if there is no such notebook, profile or parameter.
        ProfileError: if a value is of another type than the notebook's default.
        NotebookError: if the notebook failed; earlier results are untouched.
    """
    source, setting = find_notebook(name), load_profile(profile)
    parameters = parameters_for(setting, source, overrides)
    default = paths.build_dir() / "runs" / profile if overrides else paths.results_dir(profile)
    target = folder or default
    target.mkdir(parents=True, exist_ok=True)
    inputs = components(source, parameters)
    started, clock = datetime.now(UTC), time.monotonic()
    with tempfile.TemporaryDirectory(dir=target, prefix=f"{source.stem}.tmp.") as staging:
        _execute(source, parameters, Path(staging), gpu, profile)
        seconds = time.monotonic() - clock
        provenance = _provenance(inputs, started, seconds, Path(staging) / f"{source.stem}.json")
        changed = _move_into_place(source.stem, Path(staging), target, provenance)
    return Run(target / f"{source.stem}.ipynb", seconds, changed)


def _execute(source: Path, parameters: dict[str, Any], staging: Path, gpu: str | None, profile: str) -> None:
    import papermill

    output = staging / source.name
    surroundings = {
        records.STAGING: str(staging),
        "TOKENIZERS_PARALLELISM": "false",
        "JUPYTER_PREFER_ENV_PATH": "1",  # the kernel of this environment, not of the home folder
    } | ({} if gpu is None else {"CUDA_VISIBLE_DEVICES": gpu})
    try:
        with _environment(surroundings):
            papermill.execute_notebook(
                source,
                output,
                _unlike_the_defaults(source, parameters),
                kernel_name="python3",
                cwd=source.parent,
                progress_bar=False,
                stdout_file=sys.stdout,
                stderr_file=sys.stderr,
            )
    except PalimpsestError:
        raise
    except Exception as error:  # papermill, nbclient and jupyter_client each have their own
        raise NotebookError(_failure(source, error, output, profile)) from error
    notebook = normalise(nbformat.read(output, as_version=4))
    records.write_atomically(output, (nbformat.writes(notebook) + "\n").encode())


def _unlike_the_defaults(source: Path, parameters: Mapping[str, Any]) -> dict[str, Any]:
    from palimpsest.parameters import read_parameters

    declared = read_parameters(source)
    return {name: value for name, value in parameters.items() if value != declared[name].default}


def _failure(source: Path, error: Exception, output: Path, profile: str) -> str:
    """The message for a failed run; its partial copy is kept for a look."""
    count = getattr(error, "exec_count", None)
    where = f" in the cell numbered [{count}]" if count else ""
    kind, text = getattr(error, "ename", type(error).__name__), getattr(error, "evalue", error)
    message = f"{source.stem} failed{where}: {kind}: {text}; earlier results are untouched"
    if output.is_file():
        kept = paths.build_dir() / "failed" / profile / source.name
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(output, kept)
        message += f", the partial copy is {kept}"
    return message


@contextlib.contextmanager
def _environment(values: Mapping[str, str]) -> Iterator[None]:
    """Set environment variables, for the kernel that inherits them, and put the old ones back."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def _files(stem: str, folder: Path) -> dict[str, Path]:
    """A notebook's result files but its provenance, by name."""
    wanted = (f"{stem}.ipynb", f"{stem}.json")
    found = [folder / name for name in wanted if (folder / name).is_file()]
    return {path.name: path for path in [*found, *sorted(folder.glob(f"{stem}.*.parquet"))]}


def _move_into_place(stem: str, staging: Path, target: Path, provenance: dict[str, Any]) -> bool:
    """Replace the earlier result; the provenance comes last, since it vouches for the others."""
    new, old = _files(stem, staging), _files(stem, target)
    changed = new.keys() != old.keys() or any(
        path.read_bytes() != old[name].read_bytes() for name, path in new.items()
    )
    for name, path in new.items():
        os.replace(path, target / name)
    for name in old.keys() - new.keys():
        old[name].unlink()
    earlier = read_provenance(stem, target)
    if changed or earlier.get("content_hash") != provenance["content_hash"]:
        content = records.as_json(provenance)
        records.write_atomically(target / f"{stem}.provenance.json", content)
    return changed


def read_provenance(stem: str, folder: Path) -> dict[str, Any]:
    """The provenance of a result; empty if there is none or it cannot be read."""
    try:
        content = json.loads((folder / f"{stem}.provenance.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _provenance(inputs: Mapping[str, str], started: datetime, seconds: float, record: Path) -> dict[str, Any]:
    unit = 1024 if sys.platform != "darwin" else 1024**2  # ru_maxrss is in KiB, on macOS in bytes
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit
    device = records.read(record)["facts"].get("device", "cpu") if record.is_file() else "cpu"
    return {
        "content_hash": content_hash(inputs),
        "inputs": dict(inputs),
        "code_revision": code_revision(),
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in PACKAGES},
        "started": started.isoformat(timespec="seconds"),
        "wall_seconds": round(seconds, 1),
        "peak_memory_mib": round(peak),
        "device": device,
    }


def code_revision() -> str:
    """The git revision, with ``+changes`` if code or data differ from it; or ``unknown``."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(paths.root()), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        revision = git("rev-parse", "--short=12", "HEAD")
        dirty = git("status", "--porcelain", "--", "src", "notebooks", "data", "config")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{revision}+changes" if dirty else revision


def stale(name: str | Path, profile: str | Profile) -> str | None:
    """Why a notebook's result no longer stands for the present sources; None if it does."""
    setting = load_profile(profile) if isinstance(profile, str) else profile
    source, folder = find_notebook(name), paths.results_dir(setting.name)
    provenance = read_provenance(source.stem, folder)
    if not provenance or not (folder / source.name).is_file():
        return NOT_RUN
    inputs = components(source, parameters_for(setting, source))
    if provenance.get("content_hash") == content_hash(inputs):
        return None
    before = provenance.get("inputs", {})
    changed = [part for part, value in inputs.items() if before.get(part) != value]
    return "changed since the run: " + (", ".join(changed) or "how the hash is made")


def refresh_prose(name: str | Path, profile: str) -> bool:
    """Bring the present text into a result whose code has not changed; says whether it differed."""
    source = find_notebook(name)
    path = paths.results_dir(profile) / source.name
    executed = nbformat.read(path, as_version=4)
    renewed = with_current_prose(executed, nbformat.read(source, as_version=4))
    if renewed is None or nbformat.writes(renewed) == nbformat.writes(executed):
        return False
    records.write_atomically(path, (nbformat.writes(renewed) + "\n").encode())
    return True


def _in_own_process(command: list[str], jobs: int) -> int:
    """Exit status of a command; an interruption, which it gets too, waits until it has tidied up."""
    threads = {} if jobs == 1 else {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
    with subprocess.Popen(command, env=threads | os.environ) as process:
        try:
            return process.wait()
        except KeyboardInterrupt:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
            process.kill()
            raise


def run_all(profile: str, *, force: bool = False, gpu: str | None = None, jobs: int = 1) -> list[str]:
    """Run every notebook that is stale, each in a process of its own; returns the names run.

    Args:
        profile: its name.
        force: run fresh ones too.
        gpu: passed on to each run.
        jobs: notebooks at once. They share the cores (``OMP_NUM_THREADS``, where it is not set) and disturb
            each other's timings, so records that hold run times are made one by one.

    Raises:
        NotebookError: after the last notebook, if any failed; another call resumes with those.
    """
    setting = load_profile(profile)
    check_profile(setting)
    print(f"profile {setting.name}: {setting.description} ({setting.machine})", flush=True)
    names, begun = known_notebooks(), time.monotonic()

    def one(name: str) -> int | None:
        """Exit status of a run; None where none was needed."""
        reason = "forced" if force else stale(name, setting)
        elapsed = time.strftime("%H:%M:%S", time.gmtime(time.monotonic() - begun))
        line = f"notebook {names.index(name) + 1} of {len(names)}, elapsed {elapsed}: {name}"
        if reason is None:
            renewed = refresh_prose(name, profile)
            print(f"{line} is up to date{' (its text was renewed)' if renewed else ''}", flush=True)
            return None
        print(f"{line} ({reason})", flush=True)
        command = [sys.executable, "-m", "palimpsest.cli", "run", name, "--profile", profile]
        command += [] if gpu is None else ["--gpu", gpu]
        return _in_own_process(command, jobs)

    if jobs == 1:
        codes = [one(name) for name in names]
    else:
        with ThreadPoolExecutor(jobs) as pool:
            codes = list(pool.map(one, names))
    ran = [name for name, code in zip(names, codes, strict=True) if code == 0]
    failed = [name for name, code in zip(names, codes, strict=True) if code]
    elapsed = time.strftime("%H:%M:%S", time.gmtime(time.monotonic() - begun))
    print(f"{len(names)} notebooks, {len(ran)} run, {len(failed)} failed, {elapsed}", flush=True)
    if failed:
        raise NotebookError(
            f"failed: {', '.join(failed)}; the messages are above; "
            "mend the cause and run the same command again"
        )
    return ran
