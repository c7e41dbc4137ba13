"""A change of any constant, operator or name that a page reaches is noticed, of any other is not."""

import ast
import random
from collections.abc import Iterator
from copy import deepcopy
from functools import cache
from pathlib import Path

import pytest

from palimpsest.book.definitions import Bindings, Definition
from palimpsest.book.dependencies import TABLES, Code, Dependencies, Vocabulary
from palimpsest.book.page_code import NotebookCode, notebook_code
from palimpsest.book.profiles import find_notebook, load_profile, parameters_for
from palimpsest.book.staleness import reach

PACKAGE = Path(__file__).parents[1] / "src" / "palimpsest"
PAGES = ("12_alphaset_tables", "04_one_time_equals_sequential", "07_drift", "10_uncertainty")
OPERATORS: dict[type, ast.AST] = {
    ast.Add: ast.Sub(),
    ast.Sub: ast.Add(),
    ast.Mult: ast.Div(),
    ast.Div: ast.Mult(),
    ast.MatMult: ast.Mult(),
    ast.Lt: ast.LtE(),
    ast.Gt: ast.GtE(),
    ast.Eq: ast.NotEq(),
    ast.In: ast.NotIn(),
    ast.Is: ast.IsNot(),
    ast.And: ast.Or(),
    ast.Or: ast.And(),
    ast.Not: ast.UAdd(),
    ast.USub: ast.UAdd(),
}


class Mutant(Dependencies):
    """The package with one statement replaced; all other definitions are read but once."""

    def __init__(self, base: Dependencies, definition: Definition, node: ast.AST) -> None:
        super().__init__(base.package.folder)
        self._base, self._module = base, definition.module
        bound = base.package.bindings(definition.module)
        old = bound.definitions[definition.name]
        renewed = {name: node if kept is old else kept for name, kept in bound.definitions.items()}
        package = self.package
        own = Bindings(renewed, bound.imports)  # type: ignore[arg-type]
        package.bindings = lambda module: (  # type: ignore[method-assign]
            own if module == definition.module else base.package.bindings(module)
        )

    def code(self, definition: Definition) -> Code:
        return (super() if definition.module == self._module else self._base).code(definition)


def places(node: ast.AST) -> Iterator[ast.AST]:
    """Constants, operators and names below a node that say what it does.

    Not chosen, since they do not count by design: docstrings and texts behind assignments, annotations and
    declarations without a value. A name is chosen where it is read.
    """
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns"):
            continue
        for child in value if isinstance(value, list) else [value]:
            text = isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)
            if (
                not isinstance(child, ast.AST)
                or text
                or (isinstance(child, ast.AnnAssign) and not child.value)
            ):
                continue
            read = isinstance(child, ast.Name) and isinstance(child.ctx, ast.Load)
            if isinstance(child, ast.Constant) or type(child) in OPERATORS or read:
                yield child
            yield from places(child)


def mutate(node: ast.AST, draw: random.Random) -> ast.AST | None:
    """A copy with one constant, operator or name changed; None where there is none."""
    copied = deepcopy(node)
    found = list(places(copied))
    if not found:
        return None
    kinds = [[p for p in found if isinstance(p, kind)] for kind in (ast.Constant, ast.Name, *OPERATORS)]
    place = draw.choice(draw.choice([kind for kind in kinds if kind]))
    if isinstance(place, ast.Constant):
        old = place.value
        number = isinstance(old, int | float) and not isinstance(old, bool)
        place.value = old + 1 if number else f"{old}x"
    elif isinstance(place, ast.Name):
        place.id = f"{place.id}_of_another_kind"
    else:
        for holder in ast.walk(copied):
            for name, value in ast.iter_fields(holder):
                if value is place:
                    setattr(holder, name, OPERATORS[type(place)])
                elif isinstance(value, list) and place in value:
                    value[value.index(place)] = OPERATORS[type(place)]
    return copied


@cache
def real() -> Dependencies:
    return Dependencies(PACKAGE)


@cache
def page_code(page: str) -> tuple[NotebookCode, Vocabulary, frozenset[Definition], frozenset[str]]:
    """Code of a page, what it can ask for, what it reaches, and the hashes of that."""
    code = notebook_code(find_notebook(page), real().package)
    found, _ = reach(code, parameters_for(load_profile("laptop"), find_notebook(page)))
    again = real().reached(code.form, found.vocabulary)
    return code, found.vocabulary, frozenset(again.definitions), again.hashes


def changes(page: str, definition: Definition, node: ast.AST) -> bool:
    """Whether the page's hash changes with one statement of the package."""
    code, vocabulary, _, hashes = page_code(page)
    return Mutant(real(), definition, node).reached(code.form, vocabulary).hashes != hashes


def mutants(seed: int, count: int, *, reached: bool) -> Iterator[tuple[str, Definition, ast.AST]]:
    """Seeded choices: a page, a definition that it reaches or does not, not a table, and its mutant."""
    draw, made = random.Random(seed), 0
    every = [
        Definition(module, name)
        for module in real().package.modules
        for name in real().package.bindings(module).definitions
        if name not in TABLES
    ]
    while made < count:
        page = PAGES[0] if made % 2 else draw.choice(PAGES)
        definition = draw.choice([d for d in every if (d in page_code(page)[2]) == reached])
        node = mutate(real().package.bindings(definition.module).definitions[definition.name], draw)
        if node is not None:
            made += 1
            yield page, definition, node


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_a_changed_constant_operator_or_name_of_a_reached_definition_changes_the_hash(seed: int) -> None:
    missed = [
        (page, str(definition), ast.unparse(node))
        for page, definition, node in mutants(seed, 50, reached=True)
        if not changes(page, definition, node)
    ]
    assert missed == []


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_changed_definition_that_is_not_reached_leaves_the_hash(seed: int) -> None:
    noticed = [
        (page, str(definition))
        for page, definition, node in mutants(seed, 50, reached=False)
        if changes(page, definition, node)
    ]
    assert noticed == []
