"""Kill a command at a moment, repeat it, and compare what it leaves, for `scripts/torture.py`.

Only operations of the command's own process are counted, not those of its children.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from palimpsest.files import file_sha256

VOLATILE = ("started", "wall_seconds", "peak_memory_mib", "on")
"""Members of a provenance that differ from run to run."""
REMADE = ("build/book",)
"""Folders of a checkout whose files differ from run to run."""
TEMPORARY = "tmp"
"""Folder for temporary files of a command, by which its children are known."""
JUPYTER = "tmp????????.json"
"""A kernel's connection file in the folder for temporary files, which jupyter_client leaves when killed."""
PATIENCE = 60.0
"""Seconds in which the children of a killed command must have ended."""

DRIVER = """
import os, signal, sys
at, log, roots = int(sys.argv[1]), sys.argv[2], tuple(sys.argv[3].split(os.pathsep))
done, MOVES = 0, ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link", "os.truncate", "os.chmod")
def watch(event, arguments):
    global done
    if event == "open":
        writes = isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        path = arguments[0] if writes else None
    else:
        path = arguments[0] if event in MOVES else None
    if not isinstance(path, (str, bytes, os.PathLike)) or os.fspath(path) == log:
        return
    path = os.fsdecode(path)
    if path.startswith(roots) or not os.path.isabs(path):
        done += 1
        if done == at:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(watch)
sys.argv = ["palimpsest", *sys.argv[4:]]
try:
    exec(os.environ.get("TORTURE_PRELUDE", ""))
    from palimpsest.cli import app
    app()
finally:
    with open(log, "w") as file:
        file.write(str(done))
"""
"""Runs a command, kills itself before its nth writing operation below some folders, or counts them."""


@dataclass(frozen=True)
class Deed:
    """A command to be killed.

    Attributes:
        name: of the command.
        prepare: brings an empty folder to the state before the command.
        arguments: of ``palimpsest``, in that folder.
        watched: folders in it, below which everything must be as without a kill.
        environment: further variables, in that folder.
    """

    name: str
    prepare: Callable[[Path], None]
    arguments: Callable[[Path], Sequence[str]]
    watched: tuple[str, ...]
    environment: Callable[[Path], Mapping[str, str]] = field(default=lambda place: {})


@dataclass(frozen=True)
class Kill:
    """One kill and what came of it.

    Attributes:
        deed: the command.
        moment: ``operation 17 of 60``, ``2.3 of 8.1 s`` or ``2.3 of 8.1 s, with its children``.
        reached: whether the process died of it; else it had ended before.
        fault: which child lived on, or what differed after the command was repeated; empty if all was well.
    """

    deed: str
    moment: str
    reached: bool
    fault: str


def torture(deed: Deed, kills: int, rng: random.Random, folder: Path) -> list[Kill]:
    """Kill a command some times; what came of each kill.

    Args:
        deed: the command.
        kills: how many that the process died of.
        rng: chooses the moments.
        folder: for the states before and after.

    Raises:
        RuntimeError: if the command fails without a kill.
    """
    before = folder / "before"
    before.mkdir(parents=True)
    deed.prepare(before)
    place = folder / "place"  # always the same, since some files name it
    again(before, place)
    begun = time.monotonic()
    code, operations, said = executed(deed, place)
    seconds = time.monotonic() - begun
    if code:
        raise RuntimeError(f"{deed.name} fails without a kill ({code}): {said}")
    wanted, made = snapshot(place, deed.watched), list[Kill]()
    while sum(kill.reached for kill in made) < kills and len(made) < 3 * kills:
        again(before, place)
        if len(made) % 2:
            after, whole = rng.uniform(0, seconds), len(made) % 4 == 3
            moment = f"{after:.2f} of {seconds:.2f} s{', with its children' if whole else ''}"
            code = executed(deed, place, after=after, whole=whole)[0]
        else:
            at = rng.randint(1, operations)
            moment, code = f"operation {at} of {operations}", executed(deed, place, at)[0]
        lives = survivors(place)
        repeated, _, said = executed(deed, place)
        fault = difference(wanted, snapshot(place, deed.watched))
        if lives:
            fault = f"{', '.join(lives)} lived on"
        if repeated and not (deed.name == "undo" and "no fact" in said):  # it had ended, but for the exit
            fault = f"repeated, it ends with {repeated}: {said}"
        made.append(Kill(deed.name, moment, code == -signal.SIGKILL, fault))
        print(f"{made[-1]}", flush=True)
    return made


def again(before: Path, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(before, place, symlinks=True)


def executed(
    deed: Deed, place: Path, at: int = 0, after: float | None = None, whole: bool = False
) -> tuple[int, int, str]:
    """Exit status of a command, its writing operations, and the end of what it said."""
    roots = os.pathsep.join(str(place / name) for name in (*deed.watched, TEMPORARY))
    (place / TEMPORARY).mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "operations"
        command = [sys.executable, "-c", DRIVER, str(at), str(log), roots, *deed.arguments(place)]
        environment = (
            os.environ
            | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1", "TMPDIR": str(place / TEMPORARY)}
            | dict(deed.environment(place))
        )
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        ) as process:
            try:
                said = process.communicate(timeout=after)[0]
            except subprocess.TimeoutExpired:
                process.kill()
                for child in children(place) if whole else ():
                    child.kill()
                said = process.communicate()[0]
        operations = int(log.read_text()) if log.is_file() else 0
    return process.returncode, operations, " ".join(said.split())[-300:]


def children(place: Path) -> list[psutil.Process]:
    """Processes that a command in a folder started and that run: they inherit where temporary files go."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):  # ended meanwhile, or another user's
            if process.status() != psutil.STATUS_ZOMBIE and process.environ().get("TMPDIR") == str(
                place / TEMPORARY
            ):
                found.append(process)
    return found


def survivors(place: Path, patience: float = PATIENCE) -> list[str]:
    """Names of the children of a command that ended which have not ended after some time; they are killed."""
    end = time.monotonic() + patience
    while (left := children(place)) and time.monotonic() < end:
        time.sleep(0.1)
    names = []
    for child in left:
        with suppress(psutil.Error):
            names.append(child.name())
            child.kill()
    return names


def snapshot(place: Path, watched: Sequence[str]) -> dict[str, str]:
    """Name -> hash of every file, and of every folder that holds none, below some folders and beside them."""
    found = {path.name: "" for path in place.iterdir()}
    for name in (*watched, TEMPORARY):
        for path in sorted((place / name).rglob("*")):
            if path.match(f"{TEMPORARY}/{JUPYTER}"):
                continue
            if any(path.is_relative_to(place / "checkout" / part) for part in REMADE) and path.is_file():
                found[str(path.relative_to(place))] = "made anew"
            elif path.is_dir() and not path.is_symlink():
                found[str(path.relative_to(place))] = "folder"
            elif path.suffixes[-2:] == [".provenance", ".json"]:
                content = json.loads(path.read_text("utf-8"))
                steps = [
                    {k: v for k, v in s.items() if k not in VOLATILE} for s in content.get("confirmed", [])
                ]
                kept = {k: v for k, v in content.items() if k not in VOLATILE} | {"confirmed": steps}
                found[str(path.relative_to(place))] = json.dumps(kept, sort_keys=True)
            elif path.is_file():
                own = path.is_relative_to(place / "cache")
                found[str(path.relative_to(place))] = cached(path) if own else file_sha256(path)
    return found


def cached(path: Path) -> str:
    """Hash of a file of the cache, in which safetensors writes metadata in any order."""
    if path.suffix == ".sha256":
        return "a checksum"
    if path.suffix != ".safetensors":
        return file_sha256(path)
    data = path.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    header = json.dumps(json.loads(data[8:begin]), sort_keys=True)
    return hashlib.sha256(header.encode() + data[begin:]).hexdigest()


def difference(wanted: Mapping[str, str], found: Mapping[str, str]) -> str:
    """How two snapshots differ; empty if they do not."""
    lost, new = sorted(wanted.keys() - found.keys()), sorted(found.keys() - wanted.keys())
    other = sorted(name for name in wanted.keys() & found.keys() if wanted[name] != found[name])
    parts = {"missing": lost, "left behind": new, "changed": other}
    return "; ".join(f"{part}: {', '.join(names[:5])}" for part, names in parts.items() if names)
