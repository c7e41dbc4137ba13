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
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from palimpsest.cache import digest
from palimpsest.files import as_json, file_sha256, write_atomically
from tests.killing import Deed, executed, torture

ROOT = Path(__file__).parents[1]
PAGE = "03_alphaedit_plus_lemmas"
SHARES = {"edit": 30, "edit on": 20, "undo": 20, "run": 10, "fetch": 10, "book": 5, "confirm": 5}
"""Kills of each command among 100."""
SHARED = ("resources", "models", "text", "statistics")
FACTS = (
    ("france", "The capital of {} is", "France", "Rome"),
    ("darrieux", "The mother tongue of {} is", "Danielle Darrieux", "English"),
    ("space", "The {} is in", "Space Needle", "Paris"),
    ("bell", "{} was born in", "Alexander Graham Bell", "Spain"),
)


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
        code, _, said = executed(deed, place)
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
        failed, _, said = executed(deed, place)
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
