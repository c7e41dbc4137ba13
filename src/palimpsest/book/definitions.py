"""Modules of a package as what they bind, read from their source: nothing is imported or run.

A module holds imports, plain assignments, functions and classes; anything else at its top (an item assigned,
a dictionary extended, a call) could change what another definition means without being part of it, and is an
error.
"""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from threading import Lock

from palimpsest.errors import NotebookError

Node = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign


_PARSING = Lock()


def syntax_tree(source: str) -> ast.Module:
    """Syntax tree of a source, one thread at a time.

    Python up to 3.11.4 counts the depth of trees for all threads together, so that two of them at once can
    end in a SystemError (CPython issue 106905).

    Raises:
        SyntaxError: if it is not Python.
    """
    with _PARSING:
        return ast.parse(source)


@dataclass(frozen=True)
class Definition:
    """A function, class or constant of the package; its module is named without the package's name."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}" if self.module else self.name


@dataclass(frozen=True)
class Outside:
    """Something that is not the package's, by its full name: ``torch.linalg.norm``."""

    name: str


@dataclass(frozen=True)
class WholeModule:
    """A module of the package that is used as an object, so that any of its definitions may be meant."""

    name: str


Target = Definition | Outside | WholeModule


@dataclass(frozen=True)
class Bindings:
    """What the top of a module binds.

    Attributes:
        definitions: name -> its statement.
        imports: name -> dotted name of what it was imported as.
    """

    definitions: dict[str, Node]
    imports: dict[str, str]


def imported(node: ast.Import | ast.ImportFrom, module: str) -> Iterator[tuple[str, str]]:
    """Name that a statement binds and the dotted name of what it stands for.

    Args:
        node: an import statement.
        module: dotted name of the package it stands in, for relative imports.
    """
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield (alias.asname, alias.name) if alias.asname else (alias.name.partition(".")[0],) * 2
        return
    above = module.split(".")
    base = ".".join(above[: len(above) - node.level + 1]) if node.level else ""
    source = ".".join(part for part in (base, node.module) if part)
    for alias in node.names:
        yield alias.asname or alias.name, f"{source}.{alias.name}"


def is_text(node: ast.stmt) -> bool:
    """Whether a statement is nothing but a text: a docstring, or one behind an assignment."""
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _tested(node: ast.stmt) -> str:
    """The condition of a top-level ``if`` without ``else``."""
    return ast.unparse(node.test) if isinstance(node, ast.If) and not node.orelse else ""


def bindings(tree: ast.Module, module: str, where: str) -> Bindings:
    """What the top of a module binds.

    Args:
        tree: its source.
        module: dotted name of the package that it stands in.
        where: named in messages.

    Raises:
        NotebookError: at a statement that is neither definition, plain assignment nor import, or at a name
            bound twice; the message names file and line.
    """
    found = Bindings({}, {})
    for node in _statements(tree):
        names: list[str] = []
        if isinstance(node, ast.Import | ast.ImportFrom):
            new = dict(imported(node, module))
            found.imports.update(new)
            names = [name for name in new if name in found.definitions]
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names = [node.name]
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            names = list(_assigned(node))
        if isinstance(node, ast.Import | ast.ImportFrom) and not names:
            continue
        if not names or any(name in found.definitions or name in found.imports for name in names):
            raise NotebookError(
                f"{where}, line {node.lineno}: {ast.unparse(node).splitlines()[0]!r} at the top of a module "
                "is neither an import nor the only assignment of a name, so that what depends on it cannot "
                "be "
                "told; put it into the definition that it changes, or into a function"
            )
        assert isinstance(node, Node)
        found.definitions.update(dict.fromkeys(names, node))
    return found


def _statements(tree: ast.Module) -> Iterator[ast.stmt]:
    for node in tree.body:
        if _tested(node) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            assert isinstance(node, ast.If)
            yield from node.body
        elif not is_text(node) and _tested(node) != "__name__ == '__main__'":
            yield node


def _assigned(node: ast.Assign | ast.AnnAssign) -> Iterator[str]:
    """Names that a plain assignment binds; none where it sets an item or an attribute."""
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    flat = [t for target in targets for t in (target.elts if isinstance(target, ast.Tuple) else [target])]
    if all(isinstance(target, ast.Name) for target in flat):
        yield from (target.id for target in flat if isinstance(target, ast.Name))


class Package:
    """The modules below a folder, parsed when first asked for.

    Args:
        folder: the package's; its name is the package's name in import statements.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.name = folder, folder.name
        self._read: dict[str, Bindings] = {}

    @cached_property
    def modules(self) -> dict[str, Path]:
        """Module name, without the package's, -> its file; the package itself is the empty name."""
        found = {}
        for path in sorted(self.folder.rglob("*.py")):
            parts = path.relative_to(self.folder).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
        stub = self.folder / "__init__.pyi"  # what the package hands out when it is first asked for
        return found | ({"": stub} if stub.is_file() else {})

    def bindings(self, module: str) -> Bindings:
        """What a module binds.

        Raises:
            NotebookError: if it cannot be parsed, or see `bindings`; the message names file and line.
        """
        if module not in self._read:
            path = self.modules[module]
            where = path.relative_to(self.folder.parent).as_posix()
            try:
                tree = syntax_tree(path.read_text(encoding="utf-8"))
            except SyntaxError as error:
                raise NotebookError(f"{where}, line {error.lineno}: not Python: {error.msg}") from error
            holder = module if path.stem == "__init__" else module.rpartition(".")[0]
            self._read[module] = bindings(tree, f"{self.name}.{holder}".rstrip("."), where)
        return self._read[module]

    def resolve(self, dotted: str) -> tuple[Target, tuple[str, ...]]:
        """What a dotted name stands for, and the attributes behind it.

        A name that a module imports leads to where it is defined, so that it does not matter through which
        module a definition is reached.
        """
        first, *parts = dotted.split(".")
        if first != self.name:
            return Outside(dotted), ()
        depth = next(n for n in range(len(parts), -1, -1) if ".".join(parts[:n]) in self.modules)
        module, rest = ".".join(parts[:depth]), tuple(parts[depth:])
        if not rest:
            return WholeModule(module), ()
        bound = self.bindings(module)
        if rest[0] in bound.definitions:
            return Definition(module, rest[0]), rest[1:]
        if rest[0] in bound.imports and bound.imports[rest[0]] != dotted:
            return self.resolve(".".join((bound.imports[rest[0]], *rest[1:])))
        return Outside(dotted), ()
