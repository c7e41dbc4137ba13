"""Kill commands at random moments, repeat them, and compare: ``make torture`` writes results/torture.json.

Every command is run once without disturbance; what it leaves on disk is what it must leave. Then it is killed
(SIGKILL) again and again, half the times before a random operation on the disk, half the times after a random
time, and repeated after each kill: the same files must be there, and nothing else, also in its folder for
temporary files and among git's notes of checkouts. Half the kills after a time take all processes of the
command, the others its own alone; then kernels and other children must end by themselves. Only operations of
the command's own process are counted, not those of its children.

Compared are the contents of all files, but for checksum files of the cache, times and memory in a provenance,
the order in which safetensors writes metadata, and the HTML of the book, which is never made twice alike; of
these it is compared that they are there. The number of kills that were made is recorded, not the one that was
asked for. The record is written after each command; with the same code what is in it is not done again.
"""

import argparse
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
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from palimpsest.cache import digest
from palimpsest.files import as_json, file_sha256, write_atomically

ROOT = Path(__file__).parents[1]
PAGE = "03_alphaedit_plus_lemmas"
SHARES = {"edit": 30, "edit on": 20, "undo": 20, "run": 10, "fetch": 10, "book": 5, "confirm": 5}
"""Kills of each command among 100."""
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
SHARED = ("resources", "models", "text", "statistics")
FACTS = (
    ("france", "The capital of {} is", "France", "Rome"),
    ("darrieux", "The mother tongue of {} is", "Danielle Darrieux", "English"),
    ("space", "The {} is in", "Space Needle", "Paris"),
    ("bell", "{} was born in", "Alexander Graham Bell", "Spain"),
)

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
    _again(before, place)
    begun = time.monotonic()
    code, operations, said = _run(deed, place)
    seconds = time.monotonic() - begun
    if code:
        raise RuntimeError(f"{deed.name} fails without a kill ({code}): {said}")
    wanted, made = snapshot(place, deed.watched), list[Kill]()
    while sum(kill.reached for kill in made) < kills and len(made) < 3 * kills:
        _again(before, place)
        if len(made) % 2:
            after, whole = rng.uniform(0, seconds), len(made) % 4 == 3
            moment = f"{after:.2f} of {seconds:.2f} s{', with its children' if whole else ''}"
            code = _run(deed, place, after=after, whole=whole)[0]
        else:
            at = rng.randint(1, operations)
            moment, code = f"operation {at} of {operations}", _run(deed, place, at)[0]
        lives = survivors(place)
        repeated, _, said = _run(deed, place)
        fault = difference(wanted, snapshot(place, deed.watched))
        if lives:
            fault = f"{', '.join(lives)} lived on"
        if repeated and not (deed.name == "undo" and "no fact" in said):  # it had ended, but for the exit
            fault = f"repeated, it ends with {repeated}: {said}"
        made.append(Kill(deed.name, moment, code == -signal.SIGKILL, fault))
        print(f"{made[-1]}", flush=True)
    return made


def _again(before: Path, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(before, place, symlinks=True)


def _run(
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
                for child in _children(place) if whole else ():
                    child.kill()
                said = process.communicate()[0]
        operations = int(log.read_text()) if log.is_file() else 0
    return process.returncode, operations, " ".join(said.split())[-300:]


def _children(place: Path) -> list[psutil.Process]:
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
    while (left := _children(place)) and time.monotonic() < end:
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
                found[str(path.relative_to(place))] = _cached(path) if own else file_sha256(path)
    return found


def _cached(path: Path) -> str:
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


def edits(model: str, environment: Mapping[str, str], options: Sequence[str] = ()) -> list[Deed]:
    """Edit into nothing, edit a folder that is there, and undo, of a model.

    Args:
        model: its name or folder.
        environment: further variables for all commands.
        options: more of ``palimpsest edit``.
    """

    def around(place: Path) -> dict[str, str]:
        return {"PALIMPSEST_CACHE": str(place / "cache"), **environment}

    def arguments(place: Path, number: int) -> list[str]:
        rows = [
            dict(zip(("id", "prompt", "subject", "target"), fact, strict=True)) for fact in FACTS[:number]
        ]
        file = place / f"facts{number}.jsonl"
        file.write_text("\n".join(map(json.dumps, rows)))
        return ["edit", str(file), "--out", str(place / "out" / "m"), "--model", model, *options]

    def nothing(place: Path) -> None:
        (place / "out").mkdir()
        (place / "cache").mkdir()
        shared = Path(os.environ.get("PALIMPSEST_CACHE", Path.home() / ".cache" / "palimpsest"))
        for name in SHARED:
            if (shared / name).is_dir():
                (place / "cache" / name).symlink_to(shared / name)

    def two(place: Path) -> None:
        nothing(place)
        deed = Deed("two facts", nothing, lambda place: arguments(place, 2), ("out",), around)
        code, _, said = _run(deed, place)
        if code:
            raise RuntimeError(f"two facts were not written: {said}")

    return [
        Deed("edit", nothing, lambda place: arguments(place, 3), ("out", "cache"), around),
        Deed("edit on", two, lambda place: arguments(place, 4), ("out", "cache"), around),
        Deed("undo", two, lambda place: ["undo", str(place / "out" / "m"), "france"], ("out",), around),
    ]


def pages(source: Path = ROOT, page: str = PAGE, code: str = "algebra/solve.py") -> list[Deed]:
    """Commands on a checkout: run a page, build the book, confirm a result; and fetch, but for downloads.

    Args:
        source: the repository, which is cloned.
        page: to run and to confirm.
        code: a module that the page runs, whose last function a statement can be added to.
    """

    def in_checkout(place: Path) -> dict[str, str]:
        root = place / "checkout"
        return {"PALIMPSEST_ROOT": str(root), "PYTHONPATH": str(root / "src")}

    def checkout(place: Path) -> None:
        command = ["git", "clone", "--quiet", "--shared", str(source), str(place / "checkout")]
        subprocess.run(command, check=True)

    def changed(place: Path) -> None:
        """A result, and code that changed since without changing a value."""
        checkout(place)
        root = place / "checkout"
        deed = Deed("run", checkout, run, around, in_checkout)
        failed, _, said = _run(deed, place)
        if failed:
            raise RuntimeError(f"the page was not run: {said}")
        file = root / "src" / "palimpsest" / code
        file.write_text(
            file.read_text("utf-8") + "    pass\n", "utf-8"
        )  # the last function gets another tree
        who = ("-c", "user.name=torture", "-c", "user.email=torture@localhost")
        command = ["git", "-C", str(root), *who, "commit", "--quiet", "--all", "--message", "Another tree"]
        subprocess.run(command, check=True)

    def run(place: Path) -> list[str]:
        return ["run", page, "--profile", "smoke"]

    def resources(place: Path) -> None:
        shared = Path(os.environ.get("PALIMPSEST_CACHE", Path.home() / ".cache" / "palimpsest"))
        (place / "cache").mkdir()
        (place / "cache" / "resources").symlink_to(shared / "resources")

    def own_cache(place: Path) -> dict[str, str]:
        return {"PALIMPSEST_CACHE": str(place / "cache")}

    around = ("checkout/results", "checkout/build", "checkout/.git/worktrees")
    written = ("checkout/book/_pages", "checkout/book/_generated", *around[1:])
    confirm = ["confirm", page, "--profile", "smoke"]
    return [
        Deed("run", checkout, run, around, in_checkout),
        Deed("fetch", resources, lambda place: ["fetch"], ("cache",), own_cache),
        Deed("book", checkout, lambda place: ["book"], written, in_checkout),
        Deed("confirm", changed, lambda place: confirm, around, in_checkout),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--only", nargs="*", default=list(SHARES), choices=list(SHARES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "torture.json")
    given = parser.parse_args()
    whole, code = sum(SHARES[name] for name in given.only), code_hash()
    about = {"model": given.model, "seed": given.seed, "kills asked for": given.kills, "code": code}
    record = _kept(given.out, about)
    for deed in [*edits(given.model, {}), *pages()]:
        if deed.name not in given.only or deed.name in record["kills made"]:
            continue
        number, begun = max(1, round(given.kills * SHARES[deed.name] / whole)), time.monotonic()
        rng = random.Random(f"{given.seed} {deed.name}")
        with tempfile.TemporaryDirectory() as folder:
            made = torture(deed, number, rng, Path(folder))
        record["kills made"][deed.name] = sum(kill.reached for kill in made)
        record["faults"] += [vars(kill) for kill in made if kill.fault]
        record["seconds"] += round(time.monotonic() - begun)
        record["on"] = datetime.now(UTC).isoformat(timespec="seconds")
        write_atomically(given.out, as_json(record))
    print(f"{sum(record['kills made'].values())} kills, {len(record['faults'])} faults: {given.out}")
    sys.exit(bool(record["faults"]))


def code_hash() -> str:
    """Of the package that is tortured."""
    files = sorted((ROOT / "src" / "palimpsest").rglob("*.py"))
    return digest({str(path.relative_to(ROOT)): file_sha256(path) for path in files})


def _kept(out: Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """The record to go on with: what is on file, if it is of the same code and was asked for alike."""
    found = json.loads(out.read_text("utf-8")) if out.is_file() else {}
    if {name: found.get(name) for name in about} == about:
        return dict(found)
    return {**about, "kills made": {}, "faults": [], "seconds": 0}


if __name__ == "__main__":
    main()
