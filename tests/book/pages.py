"""Made-up packages and pages as texts, for tests of what a page's hash covers; never run."""

import ast
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from textwrap import indent
from typing import Any

import nbformat
import pytest
from hypothesis import strategies as st
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from palimpsest.book.dependencies import dependencies
from palimpsest.book.staleness import Inputs, inputs

NAMES = ("one", "two", "three", "four", "five", "six")
CHECKOUT = {"pyproject.toml": "", "config/profiles/smoke.yaml": ""}
MODULES = ("start", "middle", "deep.end", "deep.inner")


def write_files(root: Path, files: Mapping[str, str]) -> None:
    """Write texts to paths below a folder."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def write_page(path: Path, cells: Sequence[str], *, prose: str = "", first: str = "cell") -> None:
    """A notebook with these code cells, and markdown before each if wanted."""
    made = []
    for number, cell in enumerate(cells):
        made += [new_markdown_cell(prose, id=f"prose{number}")] if prose else []
        made.append(new_code_cell(cell, id=f"{first}{number}"))
    nbformat.write(new_notebook(cells=made), path)


@dataclass(frozen=True)
class Checkout:
    """A package named palimpsest and one page, as texts.

    Attributes:
        modules: name below the package, with slashes -> source.
        cells: code of the page.
        parameters: of the page.
        files: other files, by their path below the root.
        read: those of them that the page's run read.
        prose: text between cells.
        first: beginning of the cells' ids.
    """

    modules: Mapping[str, str]
    cells: Sequence[str]
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"profile": "smoke"})
    files: Mapping[str, str] = field(default_factory=dict)
    read: Sequence[str] = ()
    prose: str = ""
    first: str = "cell"

    def inputs(self) -> Inputs:
        """What a result of the page depends on."""
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
            root = Path(folder)
            package = {f"src/palimpsest/{name}.py": source for name, source in self.modules.items()}
            write_files(
                root, {"pyproject.toml": "", "config/profiles/smoke.yaml": "", **package, **self.files}
            )
            write_page(root / "page.ipynb", self.cells, prose=self.prose, first=self.first)
            patch.setenv("PALIMPSEST_ROOT", folder)
            try:
                return inputs(root / "page.ipynb", self.parameters, self.read)
            finally:
                dependencies.cache_clear()

    @property
    def hash(self) -> str:
        """The content hash of the page's result."""
        return self.inputs().content_hash

    def with_module(self, name: str, old: str, new: str) -> "Checkout":
        """The same with one text in one module replaced."""
        assert old in self.modules[name]
        return replace(self, modules={**self.modules, name: self.modules[name].replace(old, new)})


@dataclass(frozen=True)
class Draft:
    """What a definition does, to be written down in many ways.

    Attributes:
        kind: ``function``, ``class`` or ``constant``.
        number: a constant in it.
        operator: between two of its terms.
        default: of a function's parameter, or value of a class attribute.
        uses: numbers of the drafts that it names.
        decorator: above a function, or above a method.
    """

    kind: str
    number: int
    operator: str
    default: int
    uses: tuple[int, ...]
    decorator: str


@dataclass(frozen=True)
class Layout:
    """How drafts are written down.

    Attributes:
        homes: module of each draft.
        names: of each draft; those of classes count and stay.
        order: of the drafts, in every module.
        imports: ``from``, ``module``, ``relative`` or ``inside``, in the function that needs it.
        prose: docstrings and comments, if any.
        annotation: of parameters and local variables, if any.
        backwards: methods in the other order.
        spare: whether there is code that the page does not reach.
    """

    homes: tuple[str, ...]
    names: tuple[str, ...]
    order: tuple[int, ...]
    imports: str = "from"
    prose: str = ""
    annotation: str = ""
    backwards: bool = False
    spare: bool = False


@st.composite
def drafts(draw: st.DrawFn) -> tuple[Draft, ...]:
    """A few drafts with numbers of their own; the first is what the page uses, and uses all others."""
    kinds = draw(st.lists(st.sampled_from(("function", "class", "constant")), min_size=2, max_size=5))
    every = range(1, len(kinds) + 1)
    made = [Draft("function", 100, "+", 200, tuple(every), "")]
    for place, kind in zip(every, kinds, strict=True):
        uses = draw(st.lists(st.sampled_from([0, *every]), max_size=2, unique=True))
        operator = draw(st.sampled_from("+-*/"))
        decorator = draw(st.sampled_from(("", "functools.cache", "torch.no_grad()")))
        made.append(Draft(kind, 100 + place, operator, 200 + place, tuple(uses), decorator))
    return tuple(made)


@st.composite
def layouts(draw: st.DrawFn, count: int = len(NAMES)) -> Layout:
    """A way of writing drafts down."""
    homes = draw(st.lists(st.sampled_from(MODULES), min_size=count, max_size=count))
    return Layout(
        tuple(homes),
        tuple(draw(st.permutations(NAMES))),
        tuple(draw(st.permutations(range(count)))),
        draw(st.sampled_from(("from", "module", "relative", "inside"))),
        draw(st.sampled_from(("", "What it is for.", "Other words."))),
        draw(st.sampled_from(("", "float", "list[int] | None"))),
        draw(st.booleans()),
        draw(st.booleans()),
    )


def written(made: Sequence[Draft], layout: Layout, *, unparsed: bool = False) -> Checkout:
    """Drafts as a package, with a page that calls the first."""
    writer = _Writer(made, layout)
    homes = {layout.homes[place] for place in range(len(made))}
    modules = {home.replace(".", "/"): writer.module(home) for home in homes}
    if unparsed:
        modules = {name: ast.unparse(ast.parse(text)) for name, text in modules.items()}
    cells = [f"from palimpsest.{layout.homes[0]} import {layout.names[0]}", f"print({layout.names[0]}(3))"]
    return Checkout({"__init__": "", "deep/__init__": "", **modules}, cells, prose=layout.prose)


@dataclass(frozen=True)
class _Writer:
    """Writes drafts down as a layout says."""

    made: Sequence[Draft]
    layout: Layout

    def module(self, home: str) -> str:
        """Source of a module."""
        own = [p for p in self.layout.order if p < len(self.made) and self.layout.homes[p] == home]
        lines = [f'"""{self.layout.prose}"""'] if self.layout.prose else []
        lines += (
            ["import functools, torch"] if self.layout.backwards else ["import torch", "import functools"]
        )
        late = self.layout.imports == "inside"
        users = [p for p in own if not (late and self.made[p].kind == "function")]
        lines += [self.imported(use, home) for use in sorted({u for p in users for u in self.made[p].uses})]
        lines += [self.definition(place, home) for place in own]
        lines += ["def spare(x):\n    return x + 1"] if self.layout.spare else []
        return "\n".join(line for line in lines if line) + "\n"

    def name(self, place: int) -> str:
        return f"Kind{place}" if self.made[place].kind == "class" else self.layout.names[place]

    def alias(self, module: str) -> str:
        return f"{module.replace('.', '_')}_module"

    def imported(self, use: int, home: str) -> str:
        """The import of a draft; nothing where it stands in the same module."""
        module = self.layout.homes[use]
        if module == home:
            return ""
        if self.layout.imports == "module":
            return f"import palimpsest.{module} as {self.alias(module)}"
        start = "." * (home.count(".") + 1) if self.layout.imports == "relative" else "palimpsest."
        return f"from {start}{module} import {self.name(use)}"

    def term(self, use: int, home: str) -> str:
        """An expression that names a draft."""
        name, module = self.name(use), self.layout.homes[use]
        if self.layout.imports == "module" and module != home:
            name = f"{self.alias(module)}.{name}"
        return {"function": f"{name}(3)", "class": f"{name}().first()", "constant": name}[self.made[use].kind]

    def definition(self, place: int, home: str) -> str:
        draft, prose = self.made[place], self.layout.prose
        terms = [str(draft.number), *(self.term(use, home) for use in draft.uses)]
        value, name = f" {draft.operator} ".join([*terms, "7"]), self.name(place)
        if draft.kind == "constant":
            return f"{name} = {value}" + (f'\n"""{prose}"""' if prose else "")
        if draft.kind == "function":
            late = [self.imported(use, home) for use in draft.uses] if self.layout.imports == "inside" else []
            return self.function(name, value, draft, late)
        methods = [
            self.function("first", value, draft, [], "self"),
            self.function("second", "self.size", draft, [], "self"),
        ]
        parts = [f'"""{prose}"""'] if prose else []
        parts += [f"size: int = {draft.default}", *([f'"""{prose}"""'] if prose else [])]
        parts += reversed(methods) if self.layout.backwards else methods
        return f"class {name}:\n" + indent("\n".join(parts), "    ")

    def function(self, name: str, value: str, draft: Draft, late: Sequence[str], first: str = "x") -> str:
        kind, prose = self.layout.annotation, self.layout.prose
        typed = f": {kind}" if kind else ""
        given = f"{first}{typed}, scale{typed}={draft.default}"
        body = [f'"""{prose}"""', f"# {prose}"] if prose else []
        body += [line for line in late if line]
        body += [f"total{typed} = {value}", "return total * scale"]
        above = f"@{draft.decorator}\n" if draft.decorator else ""
        back = f" -> {kind}" if kind else ""
        return f"{above}def {name}({given}){back}:\n" + indent("\n".join(body), "    ")
