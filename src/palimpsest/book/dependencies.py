"""What a page's code reaches in the package: definitions, one hash for each, and rows of tables.

From the names that a notebook uses, the definitions behind them are followed, and theirs in turn. A hash is
made of a definition's canonical code with every reference replaced by the hash of what it stands for, in a
few rounds, so that definitions which call each other settle too. All hashes together stand for the package as
the page sees it.

A table (TABLES) counts by the rows that a run can ask for: a row is left out only where no text in the
notebook, its parameters or the code reached could be its key, and where the table is used row by row.
"""

import ast
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from hashlib import sha256
from pathlib import Path

from palimpsest.book.canonical import Canonical, Form, Use, strings
from palimpsest.book.definitions import Definition, Node, Package, Target, WholeModule

TABLES = ("EDITORS", "FAMILIES", "PINS")
"""Constants that are tables: dictionaries with a text as key of each row."""

ROUNDS = 4
"""How often references are replaced by hashes. Every hash counts for itself, so that more would add nothing
but a distinction between definitions whose code differs only in what is further away than this."""


def short_hash(text: str) -> str:
    """The first 24 hex digits of a text's sha256."""
    return sha256(text.encode()).hexdigest()[:24]


@dataclass(frozen=True)
class Vocabulary:
    """Texts that a run can ask a table with.

    Attributes:
        texts: whole texts, and the words in them.
        parts: words that a notebook or its parameters may join with an underscore: ``memit``, ``naive``.
    """

    texts: frozenset[str] = frozenset()
    parts: frozenset[str] = frozenset()

    def may_ask(self, key: str) -> bool:
        """Whether a key can be one of the texts, or be joined from the parts."""
        return key in self.texts or set(key.split("_")) <= self.parts

    def asked(self, keys: Iterable[str]) -> list[str]:
        """The keys that can be asked for, sorted."""
        return sorted(key for key in keys if self.may_ask(key))

    def with_texts(self, texts: Iterable[str], *, joined: bool = False) -> "Vocabulary":
        """The vocabulary with more texts; ``joined`` if they may be parts of a key."""
        new = {part for text in texts for part in (text, *re.findall(r"\w+", text))}
        parts = {piece for text in new for piece in text.split("_")} if joined else set()
        return Vocabulary(self.texts | new, self.parts | parts)


@dataclass(frozen=True)
class Code:
    """One definition, ready to be hashed.

    Attributes:
        form: its canonical code; of a table, the code around its rows.
        rows: of a table, ``key.field`` -> canonical code, for rows that are calls with named arguments;
            ``key.*`` for other rows; and ``key.`` for the key alone.
        texts: texts in it.
    """

    form: Form
    rows: Mapping[str, Form] = field(default_factory=dict)
    texts: frozenset[str] = frozenset()

    def uses(self, keys: Collection[str]) -> Iterator[Use]:
        """References in the code and in some of its rows."""
        for form in (self.form, *(self.rows[key] for key in keys)):
            yield from (part for part in form if isinstance(part, Use))


@dataclass(frozen=True)
class Reached:
    """What a page reaches.

    Attributes:
        definitions: each with a hash of its own code, in which references are names.
        rows: table -> its rows that can be asked for.
        vocabulary: texts that can be asked with.
        hashes: of all definitions, references replaced by hashes.
        page: hash of the notebook's code, references replaced likewise.
        own_page: hash of the notebook's code in which references are names.
    """

    definitions: Mapping[Definition, str]
    rows: Mapping[Definition, tuple[str, ...]]
    vocabulary: Vocabulary
    hashes: frozenset[str]
    page: str
    own_page: str


class Dependencies:
    """Definitions of a package and what they reach.

    Args:
        folder: the package's; its name is the package's name in import statements.
    """

    def __init__(self, folder: Path) -> None:
        self.package = Package(folder)
        self._codes: dict[Definition, Code] = {}

    def code(self, definition: Definition) -> Code:
        """A definition in canonical form."""
        if definition not in self._codes:
            self._codes[definition] = self._canonical(definition)
        return self._codes[definition]

    def _form(self, definition: Definition) -> Canonical:
        """What brings code of a definition's module into canonical form."""
        bound = self.package.bindings(definition.module)
        holder = f"{self.package.name}.{definition.module}"

        def top(name: str) -> str | None:
            if name in bound.definitions:
                return f"{holder}.{name}".replace("..", ".")
            return bound.imports.get(name)

        return Canonical(self.package.resolve, top, holder.rpartition(".")[0])

    def node(self, definition: Definition) -> Node:
        """The statement of a definition."""
        return self.package.bindings(definition.module).definitions[definition.name]

    def members(self, definition: Definition) -> dict[str, Form]:
        """Functions of a class in canonical form, and under the empty name what is left of it without them.

        Empty for what is no class.
        """
        node = self.node(definition)
        if not isinstance(node, ast.ClassDef):
            return {}
        functions = [part for part in node.body if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)]
        rest = [part for part in node.body if part not in functions] or [ast.Pass()]
        head = ast.ClassDef(node.name, node.bases, node.keywords, rest, node.decorator_list)
        form = self._form(definition)
        return {"": form.statement(head)} | {part.name: form.statement(part) for part in functions}

    def _canonical(self, definition: Definition) -> Code:
        node = self.node(definition)
        form = self._form(definition)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            return Code(form.statement(node), texts=frozenset(strings(node)))
        assert isinstance(node, ast.Assign | ast.AnnAssign)
        value = node.value or ast.Constant(None)
        if definition.name in TABLES and isinstance(value, ast.Dict):
            rows = {ast.literal_eval(k): v for k, v in zip(value.keys, value.values, strict=True) if k}
            fields = {f"{key}.{field}": node for key, row in rows.items() for field, node in _row_fields(row)}
            parts = {name: form.expression(node) for name, node in fields.items()}
            return Code(("(table)",), {f"{key}.": () for key in rows} | parts)
        place = next((n for n, name in enumerate(_places(node)) if name == definition.name), 0)
        return Code((f"(constant {place})", *form.expression(value)), texts=frozenset(strings(node)))

    @cached_property
    def _everything(self) -> dict[str, list[Definition]]:
        """Module -> its definitions."""
        return {
            module: [Definition(module, name) for name in self.package.bindings(module).definitions]
            for module in self.package.modules
        }

    def meant(self, target: Target) -> list[Definition]:
        """Definitions that a reference may stand for."""
        if isinstance(target, WholeModule):
            return self._everything[target.name]
        return [target] if isinstance(target, Definition) else []

    def reached(self, page: Form, vocabulary: Vocabulary) -> Reached:
        """Follow a page's code.

        Args:
            page: canonical code of a notebook.
            vocabulary: texts in the notebook and its parameters, and those that data or settings add.
        """
        definitions, rows = self._closure(page, vocabulary)
        while True:  # code that is reached may ask with texts of its own
            texts = {text for definition in definitions for text in self.code(definition).texts}
            wider = vocabulary.with_texts(texts)
            if wider == vocabulary:
                break
            vocabulary = wider
            definitions, rows = self._closure(page, vocabulary)
        hashes = dict.fromkeys(definitions, "")
        for _ in range(ROUNDS):
            hashes = {definition: self._hash(definition, rows, hashes) for definition in definitions}
        own = {definition: self._hash(definition, rows, {}) for definition in sorted(definitions, key=str)}
        pages = (short_hash(self._text(page, known)) for known in (hashes, {}))
        return Reached(own, rows, vocabulary, frozenset(hashes.values()), *pages)

    def named(self, name: str) -> list[Definition]:
        """Definitions of a name, wherever they stand."""
        modules = self.package.modules
        return [Definition(m, name) for m in modules if name in self.package.bindings(m).definitions]

    def within(self, page: Form, vocabulary: Vocabulary) -> set[Definition]:
        """Definitions that a page's code reaches if rows are asked for with these texts alone."""
        return self._closure(page, vocabulary)[0]

    def _closure(
        self, page: Form, vocabulary: Vocabulary
    ) -> tuple[set[Definition], dict[Definition, tuple[str, ...]]]:
        """Definitions that a page reaches, and rows of the tables among them."""
        rows: dict[Definition, set[str]] = {}
        waiting = [part for part in page if isinstance(part, Use)]
        while waiting:
            use = waiting.pop()
            for definition in self.meant(use.target):
                code = self.code(definition)
                asked = set(_rows_asked(code.rows, use, vocabulary))
                if definition not in rows or asked - rows[definition]:
                    waiting.extend(code.uses(sorted(asked - rows.get(definition, set()))))
                    rows[definition] = rows.get(definition, set()) | asked
        tables = {definition: tuple(sorted(asked)) for definition, asked in rows.items() if asked}
        return set(rows), tables

    def _hash(
        self,
        definition: Definition,
        rows: Mapping[Definition, tuple[str, ...]],
        hashes: Mapping[Definition, str],
    ) -> str:
        code = self.code(definition)
        parts = [self._text(code.form, hashes)]
        parts += [f"{key}: {self._text(code.rows[key], hashes)}" for key in sorted(rows.get(definition, ()))]
        return short_hash("\n".join(parts))

    def _text(self, form: Form, hashes: Mapping[Definition, str]) -> str:
        """Code with references replaced by hashes, or by names where there is no hash."""
        return "".join(part if isinstance(part, str) else self._shown(part.target, hashes) for part in form)

    def _shown(self, target: Target, hashes: Mapping[Definition, str]) -> str:
        if isinstance(target, WholeModule):
            shown = sorted(hashes.get(d, d.name) for d in self._everything[target.name])
            return f"<{' '.join(shown)}>"
        return f"<{hashes.get(target, target.name)}>" if isinstance(target, Definition) else target.name


def _row_fields(row: ast.expr) -> list[tuple[str, ast.expr]]:
    """Named arguments of a call that is a row; the row itself under ``*`` where it is anything else."""
    if isinstance(row, ast.Call) and row.keywords and not row.args and all(k.arg for k in row.keywords):
        return [*((str(k.arg), k.value) for k in row.keywords), ("()", row.func)]
    return [("*", row)]


def _rows_asked(rows: Iterable[str], use: Use, vocabulary: Vocabulary) -> Iterator[str]:
    """Rows of a table that a reference may ask for; all of them if it means the whole table."""
    for name in rows:
        key, _, field = name.rpartition(".")
        wanted = use.field is None or field in ("", use.field) or (use.field and field in ("*", "()"))
        if not use.row or (vocabulary.may_ask(key) and wanted):
            yield name


def _places(node: ast.Assign | ast.AnnAssign) -> Iterator[str]:
    for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
        for item in target.elts if isinstance(target, ast.Tuple) else [target]:
            yield item.id if isinstance(item, ast.Name) else ""


@cache
def dependencies(folder: Path) -> Dependencies:
    """The definitions of a package, read once in a process."""
    return Dependencies(folder)
