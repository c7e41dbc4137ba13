"""A small stand-in for a checkout, with one quick notebook, for tests of the runner and the book.

Its package is a copy of the modules that a kernel with that notebook imports, or of all, with a toy module
beside it, so that a kernel started in it runs code whose calls and files are those of the checkout.
"""

import ast
import json
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from palimpsest.book.dependencies import dependencies
from palimpsest.book.profiles import load_profile, parameters_for
from palimpsest.book.provenance import hashes_of
from palimpsest.book.staleness import file_hashes, inputs
from palimpsest.files import as_json, write_atomically
from palimpsest.results import records

PACKAGE = Path(__file__).parents[1] / "src" / "palimpsest"
PARAMETERS = """\
profile: str = "smoke"  # name of the profile
seed: int = 1  # seed of every draw
rate: float = 0.5  # step size
careful: bool = True  # whether to check twice"""
WORK = """\
import sys
import pandas as pd
from palimpsest.paths import root
from palimpsest.results.records import Results
from palimpsest.toy import doubled, thorough
print(sys.executable, file=sys.stderr)
print(object())
facts = (root() / "data" / "facts" / "triples.csv").read_text()
if seed < 0:
    raise ValueError("a negative seed")
if seed > 1:
    thorough(seed)"""
SAVE = """\
results = Results("01_tiny", profile=profile, parameters=dict(seed=seed, rate=rate))
results.describe(model={"name": "tiny", "sha256": "0123456789abcdef" * 4}, seed=seed)
results.value("doubled", doubled(seed), unit="count")
results.table("rows", pd.DataFrame({"case": ["a"], "value": [float(seed)]}))
results.save()"""
TOY = '''\
"""Arithmetic of the toy notebook, which asks for `thorough` only above seed 1."""

FACTOR = 2.0


def doubled(x: float) -> float:
    """Twice a number."""
    return FACTOR * x


def thorough(x: float) -> float:
    return x - 1


def unreached(x: float) -> float:
    return x + 1
'''
IMPORTED = ("palimpsest.book.tracing", "palimpsest.results.records")
"""What a kernel with the toy notebook imports of the package."""

DATA = "data/facts/triples.csv"
PROFILE = {"model": "tiny", "description": "a test of the machinery", "machine": "any"}
TOLERANCES = {"default": {"reason": "rounding", "relative": 1e-6}}


class Clone:
    """The folder and what a test wants to change in it.

    Args:
        root: where it is made.
        whole: whether commands are to run in it, which need all of the package.
    """

    def __init__(self, root: Path, *, whole: bool = False) -> None:
        self.root = root
        self.notebook = root / "notebooks" / "01_tiny.ipynb"
        self.toy = root / "src" / "palimpsest" / "toy.py"
        for folder in ("notebooks", "config/profiles", "data/facts", "book", "results/smoke"):
            (root / folder).mkdir(parents=True)
        (root / "pyproject.toml").touch()
        if whole:
            shutil.copytree(PACKAGE, self.toy.parent, ignore=shutil.ignore_patterns("__pycache__"))
        for path in () if whole else (*needed(), PACKAGE / "__init__.pyi"):
            place = self.toy.parent / path.relative_to(PACKAGE)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
        (root / DATA).write_text("a,b,c\n")
        (root / "data/claims.yaml").write_text("papers: []\nclaims: []\n")
        (root / "book/headlines.yaml").write_text("[]\n")
        (root / "results/smoke/tolerances.yaml").write_text(yaml.safe_dump(TOLERANCES))
        self.write_toy()
        self.write_notebook()
        for name in ("smoke", "laptop"):
            self.write_profile(name)
        self.write_profile("laptop", notebooks={"01_tiny": {"seed": 2}})

    def write_toy(self, old: str = "", new: str = "") -> None:
        """The toy module, with one text in it replaced."""
        assert old in TOY
        self.toy.write_text(TOY.replace(old, new) if old else TOY)
        dependencies.cache_clear()

    def write_notebook(
        self, prose: str = "What is twice a number?", work: str = WORK, save: str = SAVE
    ) -> None:
        """The notebook, with another text or other code if wanted."""
        cells = [
            new_markdown_cell(f"(tiny)=\n# A tiny result\n\n{prose}", id="title"),
            new_code_cell(PARAMETERS, id="parameters", metadata={"tags": ["parameters"]}),
            new_code_cell(work, id="work"),
            new_code_cell(save, id="save"),
        ]
        kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), self.notebook)

    def write_profile(self, name: str, **content: object) -> None:
        """A profile with the given keys besides the required ones."""
        path = self.root / "config" / "profiles" / f"{name}.yaml"
        path.write_text(yaml.safe_dump(PROFILE | content))

    def results(self, profile: str = "laptop") -> dict[str, bytes]:
        """Name and content of every file of a profile's results."""
        folder = self.root / "results" / profile
        return {path.name: path.read_bytes() for path in sorted(folder.glob("*"))}

    def pretend_run(self, profile: str = "laptop", doubled: float = 4.0, **provenance: Any) -> None:
        """Files of a finished run, without running anything."""
        folder = self.root / "results" / profile
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(self.notebook, folder / "01_tiny.ipynb")
        results = records.Results("01_tiny", profile, {"seed": 2, "odd_name": "a|b"})
        results.describe(model={"name": "tiny", "sha256": "0123456789abcdef" * 4}, seed=2, dtype="float32")
        results.value("doubled", doubled, doubled - 1, doubled + 1, unit="count", over="seeds", n=3)
        write_atomically(folder / "01_tiny.json", as_json(results.as_dict()))
        parameters = parameters_for(load_profile("laptop"), self.notebook)
        made = hashes_of(inputs(self.notebook, parameters, [DATA]), file_hashes([DATA]))
        made |= {"code_revision": "abc", "peak_memory_mib": 2048, "device": "cpu", "wall_seconds": 1234.5}
        self.write_provenance({**made, **provenance}, profile)

    def pretend_run_again(self, **provenance: Any) -> None:
        """The same result with other entries in its provenance."""
        self.write_provenance({**self.provenance(), **provenance})

    def provenance(self, profile: str = "laptop") -> dict[str, Any]:
        """What the provenance of a result says."""
        content: dict[str, Any] = json.loads(self.results(profile)["01_tiny.provenance.json"])
        return content

    def write_provenance(self, content: object, profile: str = "laptop") -> None:
        """Another provenance."""
        path = self.root / "results" / profile / "01_tiny.provenance.json"
        write_atomically(path, as_json(content))

    def git(self, *arguments: str) -> str:
        """What git prints in this checkout."""
        who = ("-c", "user.name=tests", "-c", "user.email=tests@example.org")
        command = ["git", "-C", str(self.root), *who, *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    def commit(self, message: str = "a step") -> str:
        """Commit everything; the revision as a provenance names it."""
        if not (self.root / ".git").is_dir():
            self.git("init", "--quiet", "--initial-branch=main")
            (self.root / ".gitignore").write_text("build/\n/results/\n__pycache__/\n")
        self.git("add", "--all")
        self.git("commit", "--quiet", "--allow-empty", f"--message={message}")
        return self.git("rev-parse", "--short=12", "HEAD")


def make_clone(root: Path, monkeypatch: pytest.MonkeyPatch, *, whole: bool = False) -> Clone:
    """A clone that the package takes for its own checkout, kernels included."""
    enter(root, monkeypatch)
    monkeypatch.delenv("PALIMPSEST_RESULTS", raising=False)
    return Clone(root, whole=whole)


def enter(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the package, and kernels, work in a clone that is there already."""
    monkeypatch.setenv("PALIMPSEST_ROOT", str(root))
    monkeypatch.setenv("PYTHONPATH", str(root / "src"))
    dependencies.cache_clear()


@cache
def needed() -> frozenset[Path]:
    """Files of the package's modules that `IMPORTED` import, at their top or later."""
    waiting, found = set(IMPORTED), set()
    while waiting:
        name = waiting.pop()
        place = PACKAGE.parent.joinpath(*name.split("."))
        for path in (place / "__init__.py", place.with_suffix(".py")):
            if path.is_file() and path not in found:
                found.add(path)
                waiting |= {name.rpartition(".")[0], *_imports(path)} - {""}
    return frozenset(found)


def _imports(path: Path) -> Iterator[str]:
    """Dotted names that a module imports, whatever they stand for."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
