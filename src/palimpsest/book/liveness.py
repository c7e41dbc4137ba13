"""Which definitions and methods a page's code can come to run, method by method.

A page's hash counts classes whole. For a confirmation that is too much: a method that no code behind the page
names cannot be called by it, however the class has changed. Methods are followed by name here: one is live if
some live code has its name as an attribute, if Python calls it itself (``__init__``), or if a decorator may
hand it on. How an object is shown is left out, since no record is made of it.
"""

import ast
import re
from collections.abc import Iterable, Iterator, Mapping

from palimpsest.book.canonical import Form, Use
from palimpsest.book.definitions import Definition
from palimpsest.book.dependencies import Dependencies

HEAD = " but for its methods"
"""Behind the name of a class: its bases, fields, decorators, and which methods it has."""

SHOWN = re.compile(r"__repr__|_repr_\w+_")
"""Methods by which Jupyter and a prompt show an object."""

_DUNDER = re.compile(r"__\w+__")
_PLAIN = ("property", "cached_property", "staticmethod", "classmethod", "override", "abstractmethod")
"""Decorators that leave it to the method's name who calls it."""


class Live:
    """What a page's code can come to run.

    Args:
        graph: of the package.
        form: canonical code of the page.
        trees: the same code, parsed.
        rows: table -> its rows that can be asked for.
    """

    def __init__(
        self,
        graph: Dependencies,
        form: Form,
        trees: Iterable[ast.AST],
        rows: Mapping[Definition, Iterable[str]],
    ) -> None:
        self._graph, self._rows = graph, rows
        self._attributes: set[str] = set()
        self._pending: dict[tuple[Definition, str], Form] = {}
        self._seen: set[Definition] = set()
        self.names: set[str] = set()
        for tree in trees:
            self._attributes |= set(attributes(tree))
        self._follow(form)

    def _follow(self, form: Form) -> None:
        waiting = [part for part in form if isinstance(part, Use)]
        while True:
            while waiting:
                for definition in self._graph.meant(waiting.pop().target):
                    if definition not in self._seen:
                        self._seen.add(definition)
                        waiting += self._begin(definition)
            called = [key for key in self._pending if self._called(*key)]
            if not called:
                return
            for key in called:
                waiting += self._add(f"{key[0]}.{key[1]}", self._pending.pop(key), self._method(*key))

    def _begin(self, definition: Definition) -> list[Use]:
        """A definition that is named; of a class what is not a method, its methods wait for their names."""
        members = self._graph.members(definition)
        if not members:
            node = self._graph.node(definition)
            uses = self._graph.code(definition).uses(sorted(self._rows.get(definition, ())))
            return self._add(str(definition), tuple(uses), node)
        self._pending |= {(definition, name): form for name, form in members.items() if name}
        node = self._graph.node(definition)
        for part in ast.iter_child_nodes(node):
            self._attributes |= set() if _is_function(part) else set(attributes(part))
        return self._add(f"{definition}{HEAD}", members[""])

    def _add(self, name: str, form: Iterable[str | Use], node: ast.AST | None = None) -> list[Use]:
        self.names.add(name)
        self._attributes |= set() if node is None else set(attributes(node))
        return [part for part in form if isinstance(part, Use)]

    def _method(self, definition: Definition, name: str) -> ast.AST:
        node = self._graph.node(definition)
        return next(part for part in getattr(node, "body", ()) if _is_function(part) and part.name == name)

    def _called(self, definition: Definition, name: str) -> bool:
        if SHOWN.fullmatch(name):
            return False
        if name in self._attributes or _DUNDER.fullmatch(name):
            return True
        decorators = getattr(self._method(definition, name), "decorator_list", ())
        return any(not ast.unparse(one).rpartition(".")[2].startswith(_PLAIN) for one in decorators)

    def counts(self, changed: str) -> bool:
        """Whether a changed definition or method, as `palimpsest.book.changes` names it, can come to run."""
        return changed in self.names


def attributes(node: ast.AST) -> Iterator[str]:
    """Names of attributes in some code, those that are handed to ``getattr`` as texts included."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Attribute):
            yield inner.attr
        elif isinstance(inner, ast.Call) and isinstance(inner.func, ast.Name) and inner.func.id == "getattr":
            yield from (
                a.value for a in inner.args if isinstance(a, ast.Constant) and isinstance(a.value, str)
            )


def _is_function(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
