"""A small stand-in for a checkout, with one quick notebook, for tests of the runner and the book."""

from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

PARAMETERS = """\
profile: str = "smoke"  # name of the profile
seed: int = 1  # seed of every draw
rate: float = 0.5  # step size
careful: bool = True  # whether to check twice"""
WORK = """\
import sys
import pandas as pd
from palimpsest.records import Results
print(sys.executable, file=sys.stderr)
print(object())
if seed < 0:
    raise ValueError("a negative seed")"""
SAVE = """\
results = Results("01_tiny", profile=profile, parameters=dict(seed=seed, rate=rate))
results.describe(model={"name": "tiny", "sha256": "0123456789abcdef" * 4}, seed=seed)
results.value("doubled", 2.0 * seed, unit="count")
results.table("rows", pd.DataFrame({"case": ["a"], "value": [float(seed)]}))
results.save()"""
PROFILE = {"model": "tiny", "description": "a test of the machinery", "machine": "any"}


class Clone:
    """The folder and what a test wants to change in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.notebook = root / "notebooks" / "01_tiny.ipynb"
        for folder in ("notebooks", "config/profiles", "src/palimpsest", "data/facts", "book"):
            (root / folder).mkdir(parents=True)
        (root / "pyproject.toml").touch()
        (root / "src/palimpsest/solve.py").write_text('"""Solve."""\nX = 1\n')
        (root / "src/palimpsest/records.py").write_text("from palimpsest.solve import X\n")
        (root / "src/palimpsest/unused.py").write_text("X = 1\n")
        (root / "data/facts/triples.csv").write_text("a,b,c\n")
        self.write_notebook()
        for name in ("smoke", "laptop"):
            self.write_profile(name)
        self.write_profile("laptop", notebooks={"01_tiny": {"seed": 2}})

    def write_notebook(self, prose: str = "Twice is {glue:text}`doubled_text`.") -> None:
        """The notebook, with another text if wanted."""
        cells = [
            new_markdown_cell(f"(tiny)=\n# A tiny result\n\n{prose}", id="title"),
            new_code_cell(PARAMETERS, id="parameters", metadata={"tags": ["parameters"]}),
            new_code_cell(WORK, id="work"),
            new_code_cell(SAVE, id="save"),
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


def make_clone(root: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    """A clone that the package takes for its own checkout, kernels included."""
    monkeypatch.setenv("PALIMPSEST_ROOT", str(root))
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1] / "src"))
    monkeypatch.delenv("PALIMPSEST_RESULTS", raising=False)
    return Clone(root)
