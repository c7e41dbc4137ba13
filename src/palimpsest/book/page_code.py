"""The code of a notebook: cells that compute, cells that show, and what either uses of the package.

A page's cells are tagged. Those that compute make the records; those that show something take it from the
records alone, so that a figure, a table or a sentence is improved without computing anything again. Each kind
has a hash of its own.
"""

import ast
import symtable
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from palimpsest.book.canonical import Canonical, Form, Use, function_scope, own_nodes, strings
from palimpsest.book.definitions import Package, imported, syntax_tree
from palimpsest.book.formats import nbformat
from palimpsest.errors import NotebookError

PARAMETERS = "parameters"
"""Tag of the cell that is not part of a notebook's code: parameters count by their values."""

COMPUTE, SHOW, SETUP = "compute", "show", "setup"
"""Tags of code cells: those that make the records, those that show them, and those that both need."""


@dataclass(frozen=True)
class NotebookCode:
    """The code of a notebook but for its parameters.

    Attributes:
        form: in canonical form, cell by cell; cells that hold nothing but imports do not show.
        texts: texts in it.
        trees: its cells, parsed.
    """

    form: Form
    texts: frozenset[str]
    trees: tuple[ast.Module, ...] = ()


def part_of(cell: nbformat.NotebookNode) -> str:
    """The tag of a code cell that says what it does; a cell without one computes."""
    tags = cell.metadata.get("tags", [])
    return next((tag for tag in (PARAMETERS, SETUP, SHOW) if tag in tags), COMPUTE)


def notebook_code(notebook: Path, package: Package, part: str = COMPUTE) -> NotebookCode:
    """Read the code of a notebook.

    Args:
        notebook: its path.
        package: what it imports from.
        part: ``compute`` for what makes the records, ``show`` for what shows them; cells that both need
            belong to either.

    Raises:
        NotebookError: if a cell is not Python, two things are imported under one name, or a cell that
            computes uses what a cell that shows something defines; the message names notebook, cell and
            line, or name.
    """
    whole = nbformat.read(notebook, as_version=4)
    cells = [cell for cell in whole.cells if cell.cell_type == "code" and part_of(cell) != PARAMETERS]
    parsed = [(cell, _parsed(cell.source, f"{notebook.name}, cell {cell.id}")) for cell in cells]
    trees = [(cell, tree) for cell, tree in parsed if part_of(cell) in (part, SETUP)]
    if part == COMPUTE:
        _check_order(notebook.name, parsed)
    body = [node for _, tree in trees for node in tree.body]
    holder = ast.FunctionDef(name="", args=_no_arguments(), body=body, decorator_list=[])
    imports = _imports(holder, notebook.name)
    assigned = frozenset(function_scope(holder, "").names)
    canonical = Canonical(package.resolve, imports.get, "", assigned=assigned)
    form: list[str | Use] = []
    for cell, tree in trees:
        parts = [part for node in tree.body for part in canonical.statement(node)]
        if parts:
            form += ["[cell", *parts, ";]" if cell.source.rstrip().endswith(";") else "]"]
    texts = frozenset(text for node in body for text in strings(node))
    return NotebookCode(tuple(form), texts, tuple(tree for _, tree in trees))


def _check_order(where: str, cells: Sequence[tuple[nbformat.NotebookNode, ast.Module]]) -> None:
    """Whether cells that compute do without names that only cells that show something define."""
    defined: dict[str, set[str]] = {COMPUTE: set(), SHOW: set(), SETUP: set()}
    for cell, _ in cells:
        defined[part_of(cell)] |= names_bound(cell.source)
    shown = defined[SHOW] - defined[COMPUTE] - defined[SETUP]
    for cell, _ in cells:
        if part_of(cell) != SHOW and (used := sorted(names_read(cell.source) & shown)):
            raise NotebookError(
                f"{where}, cell {cell.id}: {', '.join(used)} comes from a cell tagged {SHOW}, which no "
                f"result may depend on; tag that cell {COMPUTE}, or {SETUP} if both need it"
            )


def names_bound(source: str) -> set[str]:
    """Names that a cell gives a meaning for the cells after it."""
    table = symtable.symtable(source, "cell", "exec")
    return {s.get_name() for s in table.get_symbols() if s.is_assigned() or s.is_imported()}


def names_read(source: str) -> set[str]:
    """Names that a cell, or a function in it, takes from the notebook."""
    top = symtable.symtable(source, "cell", "exec")
    found = {s.get_name() for s in top.get_symbols() if s.is_referenced()}
    inner = top.get_children()
    while inner:
        table = inner.pop()
        found |= {s.get_name() for s in table.get_symbols() if s.is_global() and s.is_referenced()}
        inner += table.get_children()
    return found


def _imports(holder: ast.FunctionDef, where: str) -> dict[str, str]:
    """Name -> dotted name of what a notebook imports under it, also inside a ``with`` or an ``if``."""
    found: dict[str, str] = {}
    for node in own_nodes(holder):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for name, dotted in imported(node, ""):
                if found.setdefault(name, dotted) != dotted:
                    raise NotebookError(
                        f"{where}: {name} is imported as {found[name]} and as {dotted}, so that what depends "
                        "on it "
                        "cannot be told; give one of them another name"
                    )
    return found


def _no_arguments() -> ast.arguments:
    return ast.arguments(posonlyargs=[], args=[], kwonlyargs=[], kw_defaults=[], defaults=[])


def _parsed(source: str, where: str) -> ast.Module:
    try:
        return syntax_tree(source)
    except SyntaxError as error:
        raise NotebookError(f"{where}, line {error.lineno}: not Python: {error.msg}") from error
