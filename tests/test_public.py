"""What ``import palimpsest as pl`` hands out: by name, visible to TAB and to static tools, and quickly."""

import ast
import re
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import nbformat
import pytest

import palimpsest as pl

ROOT = Path(__file__).parents[1]
STUB = ROOT / "src" / "palimpsest" / "__init__.pyi"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PROMISED = (
    *("load", "edit", "commit", "installed", "generate", "evaluate", "diagnose", "EditRequest", "EvalCase"),
    *(
        "LeastSquares",
        "solve",
        "solve_exact",
        "Projector",
        "null_space",
        "admit",
        "EditLedger",
        "EditedModel",
    ),
    *("Sequential", "decompose", "score_by", "embedder", "demonstrations", "load_facts", "counterfact"),
    *("zsre", "alphaset"),
)
FURTHER = 5
"""Modules of the package that a notebook may import from beside the package itself."""


def handed_out() -> dict[str, str]:
    """Name -> module that the stub takes it from."""
    found = {}
    for node in ast.parse(STUB.read_text()).body:
        assert isinstance(node, ast.ImportFrom), "the stub holds imports and nothing else"
        for alias in node.names:
            assert alias.asname == alias.name, f"write 'import {alias.name} as {alias.name}'"
            found[alias.name] = f"palimpsest.{node.module or alias.name}"
    return found


@pytest.mark.parametrize(("name", "module"), handed_out().items())
def test_a_name_is_the_one_of_its_module(name: str, module: str) -> None:
    home = import_module(module)
    assert getattr(pl, name) is (home if module == f"palimpsest.{name}" else getattr(home, name))


def test_the_promised_names_are_there_and_seen() -> None:
    assert set(PROMISED) <= set(pl.__all__) == set(handed_out())
    assert set(pl.__all__) <= set(dir(pl))
    assert pl.__version__ == version("palimpsest")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nothing_like_it"):
        pl.nothing_like_it  # noqa: B018


def test_the_import_itself_loads_nothing_heavy() -> None:
    code = "import palimpsest, sys; sys.exit(bool({'torch', 'pandas', 'matplotlib'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_imports_from_the_package_and_few_modules(path: Path) -> None:
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    further = {
        node.module
        for source in cells
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("palimpsest.")
    }
    assert len(further) <= FURTHER, sorted(further)


def test_what_the_readme_uses_is_handed_out() -> None:
    used = set(re.findall(r"\bpl\.(\w+)", (ROOT / "README.md").read_text()))
    assert used <= set(pl.__all__)
