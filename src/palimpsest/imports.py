"""Which modules of the package some code reaches, read from its import statements.

Nothing is run. A name that the package itself hands out (``from palimpsest import load``) leads to the module
that defines it; statements inside functions count as those at the top do.
"""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import palimpsest


def reached(package: Path, source: str, skip: frozenset[str] = frozenset()) -> set[Path]:
    """Files of the package that are imported by a source, or by one of those files.

    Args:
        package: its folder; its name is the package's name in import statements.
        source: Python code.
        skip: first parts of module paths below the package that are left out, with what only they reach.

    Raises:
        SyntaxError: if the source or a module is not Python.
    """
    found: set[Path] = set()
    waiting = [source]
    while waiting:
        for dotted in _named(waiting.pop(), package.name):
            for path in _files(package, dotted):
                name = path.relative_to(package).parts[0]
                if path not in found and name not in skip:
                    found.add(path)
                    waiting.append(path.read_text(encoding="utf-8"))
    return found


@cache
def _named(source: str, package: str) -> frozenset[str]:
    """Dotted names below the package that a source mentions, modules or not: ``editors.memit.Memit``.

    Kept, because the notebooks of a book reach much the same modules.
    """
    return frozenset(_mentioned(ast.parse(source), package))


def _mentioned(tree: ast.Module, package: str) -> Iterator[str]:
    aliases = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name == package:
                    aliases.add(alias.asname or package)
                elif alias.name.startswith(f"{package}."):
                    yield alias.name.removeprefix(f"{package}.")
        elif isinstance(node, ast.ImportFrom) and node.module and f"{node.module}.".startswith(f"{package}."):
            inner = node.module.removeprefix(package).removeprefix(".")
            for alias in node.names:
                yield f"{inner}.{alias.name}" if inner else alias.name
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            yield node.attr


def _files(package: Path, dotted: str) -> Iterator[Path]:
    """Files that an import of a dotted name runs: those of the packages above it, and its module."""
    first, *rest = dotted.split(".")
    place = package
    for part in (palimpsest.HOME_OF.get(first, first), *rest):
        place = place / part
        if (place / "__init__.py").is_file():
            yield place / "__init__.py"
        else:
            if place.with_suffix(".py").is_file():
                yield place.with_suffix(".py")
            return
