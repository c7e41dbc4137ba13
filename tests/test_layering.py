"""The walls between wings, read from the import statements."""

import ast
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "palimpsest"
GROUND: tuple[tuple[str, ...], ...] = (
    ("errors", "mentions"),
    ("types", "paths", "files", "styles"),
    ("cache",),
    ("resources",),
)
"""From the lowest up; every wing may import all of it, and each only what stands before its own group."""
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "algebra": (),
    "theory": ("algebra",),
    "datasets": (),
    "results": (),
    "network": (),
    "memory": ("network", "algebra"),
    "continual": ("algebra", "memory.moments"),
    "editors": ("memory", "network", "algebra"),  # neither datasets nor evaluation: no editor sees a test
    "evaluation": ("network", "results.intervals"),
    "training": ("network", "memory", "datasets", "editors"),
    "studies": ("algebra", "network", "memory", "datasets", "editors", "evaluation", "results", "training"),
    "workbench": ("algebra", "network", "datasets", "editors", "evaluation"),
    "book": ("results",),
    "planning": ("book", "studies.cost", "algebra.projector", "editors", "memory.settings", "network"),
    "batch": ("book",),
    "commands": (
        *("network", "memory", "datasets", "evaluation", "results", "workbench", "book", "batch", "planning"),
        *("editors.settings", "editors.mend", "training", "studies.settings_search"),
    ),
}
"""Wing -> wings, or single modules of them, that it may import beside itself and the ground."""
OPEN = ("cli", "")
"""May import everything and is imported by nobody; "" is the package itself, which hands out names."""
TORCH_FREE = ("results", "book", "batch")
MOST_FILES, LONGEST_FILE, LONGEST_FUNCTION = 10, 350, 60
LONG_FUNCTIONS = {"algebra.admission.admit": 62}
"""Functions that are longer than they should be: the lines that they may have."""

Graph = Mapping[str, set[str]]


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
    """What a source imports, anywhere in it: modules of the package by short name, others by their head."""
    names: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            modules = {name for name in inner.values() if name.removeprefix("palimpsest.") in known}
            names |= modules if len(modules) == len(inner) else modules | {node.module}
    inside = {name for name in names if f"{name}.".startswith("palimpsest.")}
    short = {name.removeprefix("palimpsest").removeprefix(".") for name in inside}
    return (short & known) | {name.split(".")[0] for name in names - inside}


def graph_of(trees: Mapping[str, ast.Module]) -> Graph:
    return {name: imported(tree, set(trees)) for name, tree in trees.items()}


@cache
def package_graph() -> Graph:
    """Module -> what it imports."""
    return graph_of(modules())


def behind(wall: str, names: set[str]) -> set[str]:
    return {name for name in names if name == wall or name.startswith(f"{wall}.")}


def reached(start: str, graph: Graph) -> set[str]:
    """Everything imported by a module, or a wing's modules, or by those it imports."""
    waiting = sorted(behind(start, set(graph)))
    seen: set[str] = set()
    while waiting:
        for name in graph.get(waiting.pop(), set()) - seen:
            seen.add(name)
            waiting.append(name)
    return seen


def wing(module: str) -> str:
    return module.split(".")[0]


def level(module: str) -> int:
    return next(i for i, group in enumerate(GROUND) if module in group)


def faults(graph: Graph) -> Iterator[str]:
    """Every import that breaks the table, with the two modules and the rule."""
    ground = {name for group in GROUND for name in group}
    for name, imports in sorted(graph.items()):
        if name in OPEN:
            continue
        if wing(name) not in MAY_IMPORT and name not in ground:
            yield f"{name} stands in no wing: MAY_IMPORT and GROUND do not list it"
            continue
        for other in sorted(imports & set(graph)):
            if other in OPEN:
                yield f"{name} imports palimpsest.{other}: nobody imports {other or 'the package itself'}"
            elif name in ground:
                if other not in ground or level(other) >= level(name):
                    yield f"{name} imports {other}: the ground imports only leftwards in GROUND"
            elif other not in ground and wing(other) != wing(name):
                allowed = MAY_IMPORT[wing(name)]
                if not any(behind(place, {other}) for place in allowed):
                    rule = ", ".join(allowed) or "the ground alone"
                    yield f"{name} imports {other}: {wing(name)} may import {rule}"


def circles(graph: Graph) -> Iterator[str]:
    """Modules that import each other, also where a function or a type checker hides it."""
    for name in sorted(graph):
        for other in sorted(graph[name] & set(graph)):
            if name == other or name in reached_from(other, graph):
                yield f"{name} imports {other}, which leads back to {name}: no circles"


def reached_from(module: str, graph: Graph) -> set[str]:
    """As `reached`, from this module alone."""
    seen, waiting = {module}, [module]
    while waiting:
        for name in graph.get(waiting.pop(), set()) - seen:
            seen.add(name)
            waiting.append(name)
    return seen


def heavy(graph: Graph) -> Iterator[str]:
    """Modules that lead to torch and should not. The ground loads it in functions only, see below."""
    ground = {name for group in GROUND for name in group}
    light = {name: imports for name, imports in graph.items() if name not in ground}
    for name in sorted(light):
        found = reached_from(name, light) & {"torch", "transformers"}
        if wing(name) in TORCH_FREE and found:
            yield f"{name} leads to {' and '.join(sorted(found))}: {wing(name)} never reaches torch"


def by_string(trees: Mapping[str, ast.Module]) -> Iterator[str]:
    """Imports that no statement shows; only the package itself hands out names so."""
    for name, tree in sorted(trees.items()):
        for node in ast.walk(tree):
            called = ast.unparse(node.func).split(".")[-1] if isinstance(node, ast.Call) else ""
            if name != "" and called in ("import_module", "__import__"):
                yield f"{name} calls {ast.unparse(node)}: only the package itself imports by a string"


def test_wings_import_what_the_table_allows() -> None:
    assert list(faults(package_graph())) == []


def test_there_are_no_circles() -> None:
    assert list(circles(package_graph())) == []


def test_results_and_book_never_reach_torch() -> None:
    assert list(heavy(package_graph())) == []


def test_nothing_is_imported_by_a_string() -> None:
    assert list(by_string(modules())) == []


@pytest.mark.parametrize(
    ("name", "source", "fault"),
    [
        (
            "editors.memit",
            "from palimpsest.datasets import load",
            "editors.memit imports datasets: editors may",
        ),
        (
            "editors.memit",
            "def f():\n    import palimpsest.datasets.facts",
            "editors.memit imports datasets.facts",
        ),
        (
            "evaluation.drift",
            "from palimpsest.results import records",
            "evaluation.drift imports results.records",
        ),
        ("evaluation.drift", "from palimpsest.results import intervals", ""),
        (
            "files",
            "from palimpsest.cache import digest",
            "files imports cache: the ground imports only leftwards",
        ),
        (
            "book.runner",
            "from palimpsest import cli",
            "book.runner imports palimpsest.cli: nobody imports cli",
        ),
        ("results.records", "import torch.nn", "results.records leads to torch: results never"),
        (
            "datasets.facts",
            "if TYPE_CHECKING:\n    from palimpsest import datasets",
            "datasets.facts imports datasets",
        ),
        (
            "results.rules",
            "m = importlib.import_module('palimpsest.cli')",
            "results.rules calls importlib.import_module(",
        ),
        ("loose", "", "loose stands in no wing"),
    ],
)
def test_the_walls_can_be_seen_through_a_window(name: str, source: str, fault: str) -> None:
    sources = {
        "datasets": "from palimpsest.datasets.facts import load",
        "datasets.facts": "def load(): ...",
        "results.intervals": "import numpy",
        "results.records": "",
        "cache": "from palimpsest import files",
        "files": "",
        "cli": "",
        name: source,
    }
    trees = {module: ast.parse(text) for module, text in sources.items()}
    graph = graph_of(trees)
    found = [*faults(graph), *heavy(graph), *by_string(trees), *circles(graph)]
    assert any(line.startswith(fault) for line in found) if fault else found == []


@pytest.mark.slow
def test_light_modules_do_not_load_torch() -> None:
    ground = [name for group in GROUND for name in group]
    light = [name for name in modules() if wing(name) in TORCH_FREE] + [*ground, "cli"]
    imports = "; ".join(f"import palimpsest.{name}" for name in light)
    code = f"{imports}; import sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_the_top_holds_few_files() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= MOST_FILES, (
        "src/palimpsest has too many files: they belong in wings"
    )


def test_no_file_is_long() -> None:
    lengths = {
        str(path.relative_to(PACKAGE)): len(path.read_text().splitlines()) for path in PACKAGE.rglob("*.py")
    }
    assert {name: length for name, length in lengths.items() if length > LONGEST_FILE} == {}


def test_no_function_is_long() -> None:
    long = {}
    for module, tree in modules().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                name, length = f"{module}.{node.name}", (node.end_lineno or 0) - node.lineno + 1
                if length > LONG_FUNCTIONS.get(name, LONGEST_FUNCTION):
                    long[name] = length
    assert long == {}
