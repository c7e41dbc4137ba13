"""Pages of the API reference: what ``import palimpsest as pl`` hands out, and the modules behind it.

The pages name modules and their members, and Sphinx takes the docstrings from the code. Which names there are
is read from the source, so that assembling a book imports no torch; building its reference does.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path

from palimpsest.book.definitions import Definition, Package, WholeModule, is_text
from palimpsest.files import write_atomically
from palimpsest.results.prose import plain
from palimpsest.results.tables import table

WINGS = {
    "network": "Models and their weights",
    "memory": "Keys, values and second moments",
    "algebra": "The least-squares problem",
    "editors": "Methods",
    "datasets": "Facts and tasks",
    "evaluation": "What is measured",
    "workbench": "Edit and undo",
    "continual": "Training in the null space",
    "studies": "Studies of a page",
    "results": "Records, figures and intervals",
    "theory": "Theorems as functions",
    "": "Types, errors and files",
}
"""Part of the package -> what its page is called; the empty name is for modules that stand in no part."""

WHOLE = ("network", "memory", "algebra", "editors", "datasets", "evaluation", "workbench", "theory", "")
"""Parts of which every public definition is shown, and not only what the package hands out."""

ALONE = ("cache", "errors", "files", "mentions", "paths", "resources", "styles", "types")
"""Modules that stand in no part."""

_CODE = re.compile(r"``?([^`]+)``?")
PACKAGE = Path(__file__).parents[1]


@cache
def source() -> Package:
    """The package, read once in a process."""
    return Package(PACKAGE)


def page_name(wing: str) -> str:
    """Name of the page of a part, without ending."""
    return f"api_{wing or 'ground'}"


def handed_out(package: Package) -> dict[str, str]:
    """Name under ``pl`` -> full name of what it stands for, in the order of the stub."""
    found = {}
    for name, dotted in package.bindings("").imports.items():
        target, _ = package.resolve(dotted)
        assert isinstance(target, Definition | WholeModule), f"{dotted} is nowhere in the package"
        found[name] = f"{package.name}.{target if isinstance(target, Definition) else target.name}"
    return found


def write_index(out_path: Path) -> None:
    """Generate the first page of the reference: everything that is handed out, a line each."""
    package = source()
    names = handed_out(package)
    parts = [
        "(api)=\n# Reference",
        "What `import palimpsest as pl` hands out, by the part of the package it comes from. Each name leads "
        "to its place, and the pages of the parts hold their further functions and classes. Shapes are those "
        "of the {ref}`glossary <glossary>`: `d_k` is the width of a key, `d_v` of a value, `n` the number of "
        "facts.",
    ]
    for wing, title in WINGS.items():
        own = {name: full for name, full in names.items() if _wing_of(full) == wing}
        rows = [
            [f"{{py:obj}}`{name} <{full}>`", _shown(summary(package, full))] for name, full in own.items()
        ]
        parts.append(f"## {title}\n\n{{doc}}`All of it <{page_name(wing)}>`")
        parts += [table(["`pl.`", "what it is"], rows)] if rows else []
    write_atomically(out_path, ("\n\n".join(parts) + "\n").encode())


def write_wing(wing: str, out_path: Path) -> None:
    """Generate the page of one part.

    Args:
        wing: a key of WINGS.
        out_path: the Markdown file to write.
    """
    package = source()
    names = set(handed_out(package).values())
    parts = [f"({page_name(wing).replace('_', '-')})=\n# {WINGS[wing]}"]
    for module in sorted(name for name in package.modules if _wing_of(f"{package.name}.{name}") == wing):
        full = f"{package.name}.{module}"
        members = [name for name in _public(package, module) if wing in WHOLE or f"{full}.{name}" in names]
        if members or full in names:
            directive = f".. automodule:: {full}\n   :members: {', '.join(members)}"
            title = module.rpartition(".")[2]
            parts.append(f"## {title}\n\n`{full}`\n\n```{{eval-rst}}\n{directive}\n```")
    write_atomically(out_path, ("\n\n".join(parts) + "\n").encode())


def summary(package: Package, full: str) -> str:
    """First line of the docstring of what a full name stands for; empty where it has none."""
    target, _ = package.resolve(full)
    if isinstance(target, Definition):
        bound = package.bindings(target.module)
        node = bound.definitions[target.name]
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            return _first_line(ast.get_docstring(node))
        return _first_line(_behind(package, target))
    assert isinstance(target, WholeModule)
    return _first_line(ast.get_docstring(_tree(package.modules[target.name])))


def _shown(line: str) -> str:
    """A line of a docstring as Markdown: its code stays code, all else is shown as it is."""
    parts = _CODE.split(line)
    return "".join(f"`{part}`" if at % 2 else plain(part) for at, part in enumerate(parts))


def _first_line(docstring: str | None) -> str:
    return (docstring or "").strip().partition("\n")[0]


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def _behind(package: Package, constant: Definition) -> str | None:
    """The text behind the assignment of a constant, which describes it."""
    body = _tree(package.modules[constant.module]).body
    for node, after in pairwise(body):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == constant.name for target in targets):
            return (
                str(ast.literal_eval(after.value)) if is_text(after) and isinstance(after, ast.Expr) else None
            )
    return None


def _public(package: Package, module: str) -> Iterator[str]:
    """Names that a module defines for others: functions, classes, and constants that are described."""
    for name, node in package.bindings(module).definitions.items():
        constant = isinstance(node, ast.Assign | ast.AnnAssign)
        if not name.startswith("_") and (not constant or _behind(package, Definition(module, name))):
            yield name


def _wing_of(full: str) -> str:
    """The part that a full name belongs to; no key of WINGS where it is shown on no page."""
    _, _, rest = full.partition(".")
    head = rest.partition(".")[0]
    return "" if head in ALONE else head or "none"
