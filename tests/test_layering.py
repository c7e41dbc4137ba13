"""The walls between rooms, read from the import statements."""

import ast
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "palimpsest"
TORCH_FREE = ("report", "claims", "records", "runner", "book", "profiles", "cli")
BLIND = ("editors", "sequential", "ledger", "deltas", "configurations")
"""No method sees the test: what edits a model reaches neither the data nor the scores."""
PURE = (
    "solve",
    "projector",
    "cholesky",
    "onetime",
    "ledger",
    "deltas",
    "equivalence",
    "conflict",
    "gains",
    "smoothing",
    "preservation",
    "uncertainty",
)
"""Tensors in, tensors out, no model."""
LONGEST = 400


@cache
def modules() -> dict[str, ast.Module]:
    """Module name without the package's -> parsed source."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(path.read_text())
    return found


def imported(tree: ast.AST, known: set[str]) -> set[str]:
    """What a source imports, anywhere in it: modules of the package by their short name."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    short = {name.removeprefix("palimpsest.") for name in names if name.startswith("palimpsest.")}
    return (short & known) | {name.split(".")[0] for name in names} - {"palimpsest"}


@cache
def package_graph() -> dict[str, set[str]]:
    """Module -> what it imports."""
    return graph_of(modules())


def graph_of(trees: dict[str, ast.Module]) -> dict[str, set[str]]:
    return {name: imported(tree, set(trees)) for name, tree in trees.items()}


def reached(start: str, graph: dict[str, set[str]]) -> set[str]:
    """Everything imported by a module or by those it imports."""
    waiting = [name for name in graph if name == start or name.startswith(f"{start}.")]
    seen: set[str] = set()
    while waiting:
        for name in graph.get(waiting.pop(), set()) - seen:
            seen.add(name)
            waiting.append(name)
    return seen


def behind(wall: str, names: set[str]) -> set[str]:
    return {name for name in names if name == wall or name.startswith(f"{wall}.")}


@pytest.mark.parametrize(
    ("room", "walls"),
    [
        ("evaluate", ("editors",)),
        ("metrics", ("editors", "sequential")),
        ("drift", ("editors", "sequential")),
        ("stability", ("editors", "sequential", "datasets")),
        *((room, ("datasets", "metrics", "evaluate", "answers")) for room in BLIND),
        *((room, ("model", "activations", "tokens", "transformers")) for room in PURE),
        *((room, ("torch", "transformers")) for room in TORCH_FREE if room not in ("runner", "cli")),
    ],
)
def test_walls(room: str, walls: tuple[str, ...]) -> None:
    graph = package_graph()
    assert any(name == room or name.startswith(f"{room}.") for name in graph), f"no module {room}"
    through = {wall: behind(wall, reached(room, graph)) for wall in walls}
    assert through == {wall: set() for wall in walls}


def test_the_walls_can_be_seen_through_a_window() -> None:
    sources = {
        "editors.memit": "from palimpsest import helper",
        "helper": "def f():\n    import palimpsest.datasets.facts",
        "datasets.facts": "import torch.nn",
    }
    trees = {name: ast.parse(source) for name, source in sources.items()}
    assert reached("editors", graph_of(trees)) == {"helper", "datasets.facts", "torch"}


def test_light_modules_do_not_load_torch() -> None:
    names = [name for name in TORCH_FREE if name != "book"] + ["book.assemble", "book.build"]
    imports = "; ".join(f"import palimpsest.{name}" for name in names)
    code = f"{imports}; import sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_no_file_is_long() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")}
    assert {name: length for name, length in lengths.items() if length > LONGEST} == {}
