"""How a result was made: hashes of what it came from, revision, versions, time and machine.

A provenance is written after the files that it vouches for.
"""

import importlib.metadata
import json
import os
import platform
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from palimpsest import paths
from palimpsest.book.staleness import SCHEME, Inputs
from palimpsest.files import UNREADABLE, as_json, file_sha256, sweep, write_atomically

PACKAGES = ("torch", "transformers", "numpy", "scipy", "pandas", "pyarrow", "matplotlib")
DECISIVE = ("torch", "transformers", "numpy")
"""Packages whose version is named where it differs from that of a result: numbers may change with them."""

UNKNOWN = "unknown"
DIRTY = "+changes"


@dataclass(frozen=True)
class Measured:
    """What a run took.

    Attributes:
        started: in UTC.
        seconds: wall time.
        device: of the model.
        gpu: as `palimpsest.book.gpus.used`; empty on a CPU.
    """

    started: datetime
    seconds: float
    device: str = "cpu"
    gpu: Mapping[str, Any] = field(default_factory=dict)


def path_of(stem: str, folder: Path) -> Path:
    """File of a notebook's provenance."""
    return folder / f"{stem}.provenance.json"


def read_provenance(stem: str, folder: Path) -> dict[str, Any]:
    """The provenance of a result; empty if there is none or it cannot be read."""
    try:
        content = json.loads(path_of(stem, folder).read_text("utf-8"))
    except UNREADABLE:
        return {}
    return content if isinstance(content, dict) else {}


def write_provenance(stem: str, folder: Path, content: Mapping[str, Any]) -> None:
    """Write the provenance of a result in one go."""
    write_atomically(path_of(stem, folder), as_json(dict(content)))


def result_place(stem: str, folder: Path) -> Path:
    """What is locked while a notebook's result is written; no file of that name is made."""
    return folder / stem


def clean_up(stem: str, folder: Path) -> None:
    """Remove what killed processes left of a result whose lock is held."""
    for place in folder.glob(f"{stem}.tmp.*"):
        shutil.rmtree(place, ignore_errors=True)
    for path in (path_of(stem, folder), folder / f"{stem}.ipynb", *record_files(stem, folder)):
        sweep(path)


def record_files(stem: str, folder: Path) -> list[Path]:
    """A result's record and tables, which its provenance vouches for."""
    return [
        path
        for path in (folder / f"{stem}.json", *sorted(folder.glob(f"{stem}.*.parquet")))
        if path.is_file()
    ]


def record_hashes(stem: str, folder: Path) -> dict[str, str]:
    """Name of each of a result's files -> sha256."""
    return {path.name: file_sha256(path) for path in record_files(stem, folder)}


def not_vouched(stem: str, folder: Path, made: Mapping[str, Any]) -> list[str]:
    """Files of a result that are not those its provenance vouches for: changed, added or missing."""
    vouched = made.get("records")
    if vouched is None:  # older than these hashes
        return []
    now = record_hashes(stem, folder)
    return sorted(name for name in vouched.keys() | now.keys() if vouched.get(name) != now.get(name))


def hashes_of(found: Inputs, files: Mapping[str, str]) -> dict[str, Any]:
    """What a provenance says of a result's inputs."""
    return {
        "scheme": SCHEME,
        "content_hash": found.content_hash,
        "inputs": dict(found.parts),
        "files": sorted(files),
        "definitions": dict(found.definitions),
        "settings": dict(found.settings),
    }


def provenance(found: Inputs, files: Mapping[str, str], measured: Measured) -> dict[str, Any]:
    """The provenance of a run that has just ended.

    Args:
        found: what it came from.
        files: data files that it read.
        measured: when it began and what it took.
    """
    unit = 1024 if sys.platform != "darwin" else 1024**2  # ru_maxrss is in KiB, on macOS in bytes
    return {
        **hashes_of(found, files),
        "code_revision": code_revision(),
        "versions": {"python": platform.python_version()} | versions(),
        "started": measured.started.astimezone(UTC).isoformat(timespec="seconds"),
        "wall_seconds": round(measured.seconds, 1),
        "peak_memory_mib": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / unit),
        "device": measured.device,
        "processor": processor(),
        **({"gpu": dict(measured.gpu)} if measured.gpu else {}),
    }


def processor() -> str:
    """Name of the processor and number of its cores, by which runs of one machine are told."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        found = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text("utf-8"))
        name = found[1].strip() if found else name
    return f"{name}, {os.cpu_count()} cores"


def machine_of(made: Mapping[str, Any]) -> str:
    """What did the work of a run: its GPU, else its processor; empty where the provenance does not say."""
    return str(made.get("gpu", {}).get("name", "") or made.get("processor", ""))


def gpu_lines(made: Mapping[str, Any]) -> dict[str, str]:
    """What a provenance says of a GPU, in words; empty for a run without one."""
    gpu = made.get("gpu", {})
    names = {
        "cuda": "CUDA",
        "cudnn": "cuDNN",
        "tf32_matmul": "TF32 in products",
        "tf32_cudnn": "TF32 in cuDNN",
    }
    words = {"True": "yes", "False": "no"}
    return {
        f"GPU: {names.get(key, key.replace('_', ' '))}": words.get(str(value), str(value))
        for key, value in gpu.items()
    }


def versions() -> dict[str, str]:
    """Versions of the packages that numbers and figures depend on."""
    return {package: importlib.metadata.version(package) for package in PACKAGES}


def other_versions(content: Mapping[str, Any]) -> str:
    """Which decisive packages differ from those a result was made with; empty if none does."""
    made = content.get("versions", {})
    differing = [
        f"{package} {made[package]}, here {now}"
        for package in DECISIVE
        if package in made and made[package] != (now := importlib.metadata.version(package))
    ]
    return ", ".join(differing)


def git(*arguments: str) -> str:
    """What git prints, run in the repository.

    Raises:
        OSError, subprocess.CalledProcessError: if there is no git, no repository, or it refuses.
    """
    command = ["git", "-C", str(paths.checkout()), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def code_revision() -> str:
    """The git revision, with ``+changes`` if code or data differ from it; or ``unknown``."""
    try:
        revision = git("rev-parse", "--short=12", "HEAD")
        dirty = git("status", "--porcelain", "--", "src", "notebooks", "data", "config")
    except (OSError, subprocess.CalledProcessError):
        return UNKNOWN
    return f"{revision}{DIRTY}" if dirty else revision


def in_history(revision: str) -> bool | None:
    """Whether a revision belongs to the history of the present one; None where git cannot tell."""
    try:
        git("rev-parse", "HEAD")
    except (OSError, subprocess.CalledProcessError):
        return None
    try:
        git("merge-base", "--is-ancestor", revision.removesuffix(DIRTY), "HEAD")
    except subprocess.CalledProcessError:
        return False
    return True
