"""Code in a form that says what it does and not where it stands.

The syntax tree as text, without positions, docstrings, annotations that nothing reads and import statements.
A name is a local one and stays as it is, or it stands for something: a definition of the package becomes a
reference, anything else its full dotted name. So the form is the same after a move, a renamed module, another
order of definitions or imports, another layout or comment, and another after a changed constant, operator,
default, decorator, base class or a name that now stands for something else.
"""

import ast
import builtins
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, groupby

from palimpsest.book.definitions import Outside, Target, imported, is_text

Function = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
Comprehension = ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp

BLIND_DECORATORS = frozenset(
    {
        *("property", "staticmethod", "classmethod", "contextlib.contextmanager", "functools.cache"),
        *("functools.cached_property", "functools.lru_cache", "functools.wraps", "torch.no_grad"),
        *("torch.inference_mode", "typing.runtime_checkable", "typing.overload", "dataclasses.dataclass"),
        *("pydantic.dataclasses.dataclass", "pydantic.field_validator", "pydantic.model_validator"),
    }
)
"""Decorators that do not read a function's annotations; below any other one annotations count as code."""


@dataclass(frozen=True)
class Use:
    """A name in canonical code that stands for a definition or module of the package.

    Attributes:
        target: what it stands for.
        row: it is asked for one entry of a table only: ``T[key]``, ``key in T``, ``T.get(key)``, or named in
            the message of an error.
        field: of that entry, if no more is asked for: ``T[key].field``; empty if nothing but the key is.
    """

    target: Target
    row: bool = False
    field: str | None = None


Form = tuple[str | Use, ...]
"""Code in canonical form."""


@dataclass
class Scope:
    """Names bound in one function, class or comprehension, with what a function imports."""

    kind: str
    names: set[str]
    imports: dict[str, str] = field(default_factory=dict)


def strings(node: ast.AST) -> Iterator[str]:
    """The texts in some code, those of docstrings and annotations of functions left out."""
    for child in _children(node):
        if isinstance(child, ast.Constant) and isinstance(child.value, str):
            yield child.value
        else:
            yield from strings(child)


def _children(node: ast.AST) -> Iterator[ast.AST]:
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns") and not isinstance(node, ast.AnnAssign):
            continue
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST) and not (isinstance(child, ast.stmt) and is_text(child)):
                yield child


class Canonical:
    """Brings code of one module into canonical form.

    Args:
        resolve: dotted name -> what it stands for and the attributes behind it.
        top: name at the module's top -> dotted name of what it stands for; None for a name that stays as it
            is (the variables of a notebook).
        package: dotted name of the package that the code stands in, for relative imports.
        assigned: of a notebook, the names that its cells assign. One that is imported as well counts as both.
    """

    def __init__(
        self,
        resolve: Callable[[str], tuple[Target, tuple[str, ...]]],
        top: Callable[[str], str | None],
        package: str,
        *,
        assigned: frozenset[str] | None = None,
    ) -> None:
        self._resolve, self._top, self._package = resolve, top, package
        self._named, self._assigned = assigned is not None, assigned or frozenset()
        self._scopes: list[Scope] = []
        self._asked: dict[int, str | None] = {}
        self._message = 0

    def statement(self, node: ast.stmt) -> Form:
        """The form of one statement."""
        return _joined(self._node(node))

    def expression(self, node: ast.expr) -> Form:
        """The form of one expression."""
        return _joined(self._node(node))

    def _node(self, node: ast.AST) -> Iterator[str | Use]:
        if isinstance(node, ast.Name | ast.Attribute):
            yield from self._name(node)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from self._function(node)
        elif isinstance(node, ast.ClassDef):
            yield from self._class(node)
        elif isinstance(node, ast.Lambda):
            yield from self._lambda(node)
        elif isinstance(node, Comprehension):
            yield from self._comprehension(node)
        elif isinstance(node, ast.AnnAssign) and not self._in_class():
            if node.value is not None:
                yield from self._node(ast.Assign(targets=[node.target], value=node.value))
        elif isinstance(node, ast.Constant):
            yield f"({type(node.value).__name__} {node.value!r})"
        elif isinstance(node, ast.Raise):
            self._message += 1
            yield from self._fields(node)
            self._message -= 1
        elif isinstance(node, ast.Subscript | ast.Compare | ast.Call):
            yield from self._lookup(node)
        elif not isinstance(node, ast.Import | ast.ImportFrom):
            yield from self._fields(node)

    def _fields(self, node: ast.AST, but: tuple[str, ...] = ()) -> Iterator[str | Use]:
        """A node's kind and all it holds; what is empty is left out, since newer Pythons know more fields."""
        yield f"({type(node).__name__}"
        for name, value in ast.iter_fields(node):
            if name in ("ctx", "kind", "type_comment", *but) or value is None or value == []:
                continue
            yield f" {name}="
            yield from self._value(value)
        yield ")"

    def _value(self, value: object) -> Iterator[str | Use]:
        if isinstance(value, list):
            yield "["
            for item in value:
                form = list(self._value(item))
                yield from (*form, ",") if form else ()  # a docstring or an import leaves nothing
            yield "]"
        elif isinstance(value, ast.stmt) and is_text(value):
            return
        elif isinstance(value, ast.AST):
            yield from self._node(value)
        else:
            yield repr(value)

    def _lookup(self, node: ast.Subscript | ast.Compare | ast.Call) -> Iterator[str | Use]:
        """An expression that may ask a table for one of its entries."""
        if isinstance(node, ast.Subscript):
            self._asked.setdefault(id(node.value), None)
        elif isinstance(node, ast.Compare) and isinstance(node.ops[-1], ast.In | ast.NotIn):
            self._asked[id(node.comparators[-1])] = ""
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            self._asked[id(node.func)] = None
        yield from self._fields(node)

    def _name(self, node: ast.Name | ast.Attribute) -> Iterator[str | Use]:
        """A name with its attributes, resolved as far as it goes without running anything."""
        chain: list[str] = []
        inner: ast.expr = node
        while isinstance(inner, ast.Attribute):
            chain.insert(0, inner.attr)
            inner = inner.value
        if not isinstance(inner, ast.Name):
            assert isinstance(node, ast.Attribute)
            if isinstance(inner, ast.Subscript):
                self._asked[id(inner.value)] = chain[0]
            yield from self._fields(node)
            return
        dotted = self._dotted(inner.id) if isinstance(inner.ctx, ast.Load) else None
        if dotted is None or inner.id in self._assigned:
            yield f"(local {inner.id})"
        if dotted is not None:
            target, rest = self._resolve(".".join((dotted, *chain)))
            chain = list(rest)
            if isinstance(target, Outside):
                yield f"(outside {target.name})"
            else:
                yield self._use(target, node)
        for attribute in chain:
            yield f".{attribute}"

    def _use(self, target: Target, node: ast.expr) -> Use:
        if self._message:
            return Use(target, row=True, field="")
        return Use(target, row=id(node) in self._asked, field=self._asked.get(id(node)))

    def _dotted(self, name: str) -> str | None:
        """What a name stands for in the scopes around it; None for a local name."""
        for depth, scope in enumerate(reversed(self._scopes)):
            if scope.kind == "class" and depth:
                continue  # what a class binds is not seen inside its methods
            if name in scope.imports:
                return scope.imports[name]
            if name in scope.names:
                return None
        found = self._top(name)
        return f"builtins.{name}" if found is None and hasattr(builtins, name) else found

    @contextmanager
    def _inside(self, scope: Scope) -> Iterator[None]:
        self._scopes.append(scope)
        try:
            yield
        finally:
            self._scopes.pop()

    def _in_class(self) -> bool:
        return bool(self._scopes) and self._scopes[-1].kind == "class"

    def _function(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[str | Use]:
        """A function; its name counts where it is an attribute or a local name, and not at a module's top."""
        yield f"({type(node).__name__}"
        yield f" {node.name}" if self._scopes or self._named else ""
        yield from self._value(node.decorator_list)
        annotated = not self._blind(node.decorator_list)
        yield from self._arguments(node.args, annotated=annotated)
        if annotated and node.returns:
            yield from self._node(node.returns)
        with self._inside(function_scope(node, self._package)):
            yield from self._value(node.body)
        yield ")"

    def _arguments(self, node: ast.arguments, *, annotated: bool) -> Iterator[str | Use]:
        yield "("
        given = (*node.posonlyargs, *node.args, node.vararg, *node.kwonlyargs, node.kwarg)
        for arg in given:
            yield f" {arg.arg if arg else None}"
            if annotated and arg and arg.annotation:
                yield from self._node(arg.annotation)
        yield f" {len(node.posonlyargs)} {len(node.args)} "
        yield from self._value(node.defaults)
        yield from self._value([default or ast.Constant(None) for default in node.kw_defaults])
        yield ")"

    def _blind(self, decorators: Iterable[ast.expr]) -> bool:
        """Whether no decorator reads annotations."""
        names = set()
        for decorator in decorators:
            plain = decorator.func if isinstance(decorator, ast.Call) else decorator
            names.add("".join(str(part) for part in self._node(plain)))
        known = {f"(outside {name})" for name in BLIND_DECORATORS}
        known |= {f"(outside builtins.{name})" for name in BLIND_DECORATORS}
        setters = {name for name in names if name.endswith(".setter")}
        return names <= known | setters

    def _lambda(self, node: ast.Lambda) -> Iterator[str | Use]:
        yield "(Lambda"
        yield from self._arguments(node.args, annotated=False)
        with self._inside(function_scope(node, self._package)):
            yield from self._node(node.body)
        yield ")"

    def _class(self, node: ast.ClassDef) -> Iterator[str | Use]:
        """A class with its name, which records and keys of caches may show; its methods in order of name."""
        yield f"(ClassDef {node.name}"
        for part in (node.decorator_list, node.bases, node.keywords):
            yield from self._value(part)
        functions = [n for n in node.body if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
        others = [n for n in node.body if n not in functions]
        with self._inside(class_scope(node, self._package)):
            yield from self._value(others)
            yield from self._value(sorted(functions, key=lambda function: function.name))
        yield ")"

    def _comprehension(self, node: Comprehension) -> Iterator[str | Use]:
        """A comprehension; its first iterable belongs to the scope around it."""
        yield f"({type(node).__name__}"
        yield from self._node(node.generators[0].iter)
        bound = {name for generator in node.generators for name in _bound(generator.target)}
        with self._inside(Scope("comprehension", bound)):
            for index, generator in enumerate(node.generators):
                yield from self._fields(generator, but=("iter",) if not index else ())
            for name in ("elt", "key", "value"):
                if hasattr(node, name):
                    yield from self._node(getattr(node, name))
        yield ")"


def _joined(parts: Iterable[str | Use]) -> Form:
    """Code with neighbouring texts in one piece, so that it is short to hash again and again."""
    runs = groupby(parts, key=lambda part: isinstance(part, str))
    pieces = (["".join(map(str, run))] if written else list(run) for written, run in runs)
    return tuple(chain.from_iterable(pieces))


def _bound(node: ast.AST) -> Iterator[str]:
    """Names that some code binds in its own scope: not those inside functions, classes and comprehensions."""
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store | ast.Del):
        yield node.id
    elif isinstance(node, ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
        yield node.name
    elif isinstance(node, ast.MatchMapping) and node.rest:
        yield node.rest
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield child.name
        elif isinstance(child, Comprehension):
            yield from (n.target.id for n in ast.walk(child) if isinstance(n, ast.NamedExpr))
        elif not isinstance(child, ast.Lambda):
            yield from _bound(child)


def _scope(kind: str, body: Iterable[ast.AST], package: str) -> Scope:
    holder = ast.Module(body=[n for n in body if isinstance(n, ast.stmt)], type_ignores=[])
    scope = Scope(kind, set(_bound(holder)))
    for node in own_nodes(holder):
        if isinstance(node, ast.Import | ast.ImportFrom):
            scope.imports |= dict(imported(node, package))
        elif isinstance(node, ast.Global | ast.Nonlocal):
            scope.names -= set(node.names)
    return scope


def own_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Nodes below one that belong to the same scope."""
    for child in ast.iter_child_nodes(node):
        yield child
        if not isinstance(child, Function | ast.ClassDef):
            yield from own_nodes(child)


def function_scope(node: Function, package: str) -> Scope:
    """Names bound in a function: parameters, assignments, definitions and imports inside it."""
    body = node.body if isinstance(node.body, list) else []
    scope = _scope("function", body, package)
    args = node.args
    given = (*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg)
    scope.names |= {arg.arg for arg in given if arg}
    return scope


def class_scope(node: ast.ClassDef, package: str) -> Scope:
    """Names bound in the body of a class."""
    return _scope("class", node.body, package)
