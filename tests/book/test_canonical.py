"""The hash of a page's code: what leaves it, and what changes it."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.book.canonical import Canonical
from palimpsest.book.definitions import Outside, Package
from tests.book.pages import Checkout, Draft, Layout, drafts, layouts, written

PACKAGE = Path(__file__).parents[2] / "src" / "palimpsest"

# Any definitions, written down in any way


@given(drafts(), layouts(), layouts(), st.booleans())
def test_where_and_how_definitions_are_written_does_not_count(
    made: tuple[Draft, ...], one: Layout, other: Layout, unparsed: bool
) -> None:
    assert written(made, one).hash == written(made, other, unparsed=unparsed).hash


@given(
    drafts(),
    layouts(),
    st.data(),
    st.sampled_from(("number", "operator", "default", "decorator", "uses")),
)
def test_what_a_reached_definition_does_counts(
    made: tuple[Draft, ...], layout: Layout, data: st.DataObject, what: str
) -> None:
    usable = [
        place
        for place, draft in enumerate(made)
        if (what not in ("default", "decorator") or draft.kind != "constant")
    ]
    place = data.draw(st.sampled_from(usable))
    draft = made[place]
    changed = {
        "number": replace(draft, number=50),
        "operator": replace(draft, operator="%"),
        "default": replace(draft, default=50),
        "decorator": replace(draft, decorator="functools.lru_cache"),
        "uses": replace(draft, uses=(*draft.uses, 0)),
    }[what]
    others = (*made[:place], changed, *made[place + 1 :])
    assert written(made, layout).hash != written(others, layout).hash


@given(drafts(), layouts(), st.data())
def test_exchanging_two_definitions_counts(
    made: tuple[Draft, ...], layout: Layout, data: st.DataObject
) -> None:
    first = made[0]
    kinds = {made[use].kind for use in first.uses}
    kind = data.draw(st.sampled_from(sorted(kinds)))
    same = [use for use in first.uses if made[use].kind == kind]
    one, other = data.draw(st.permutations(same))[:2] if len(same) > 1 else (same[0], same[0])
    swap = {one: other, other: one}
    swapped = replace(first, uses=tuple(swap.get(use, use) for use in first.uses))
    equal = written(made, layout).hash == written((swapped, *made[1:]), layout).hash
    assert equal == (one == other)


# One made-up package, changed in one place

FIRST = '''\
"""The page's entrance."""
import functools
import numpy as np
from unknown import register
from palimpsest.second import RATE, Base, grown, shrunk

LIMIT = 3


@functools.cache
def entry(x: float, *, scale: float = 0.5) -> float:
    """Enter."""
    y: float = shrunk(x, by=scale) + np.mean([x, RATE])  # a comment
    return y if y < LIMIT else grown(y)


class Model(Base):
    """A model."""

    size: int = 4
    """Its size."""

    def run(self, x: float) -> float:
        """Run."""
        return entry(x) * self.size

    @register
    def told(self, x: float) -> float:
        return x


def unreached(x: float) -> float:
    return x + 1
'''
SECOND = '''\
"""Helpers."""

RATE: float = 0.25


class Base:
    kind = "base"


class Other:
    kind = "other"


def shrunk(x: float, by: float) -> float:
    return x * by


def grown(x: float, by: float = 2.0) -> float:
    return x / by
'''
CELLS = (
    "import numpy as np\nfrom palimpsest.first import Model",
    "model = Model()\nmodel.run(np.float64(2.0))",
)
BASIC = Checkout({"__init__": "", "first": FIRST, "second": SECOND}, CELLS)


@pytest.fixture(scope="module")
def basic() -> str:
    return BASIC.hash


def changed(module: str, texts: dict[str, str]) -> Checkout:
    """The made-up package with some texts of a module replaced."""
    checkout = BASIC
    for old, new in texts.items():
        checkout = checkout.with_module(module, old, new)
    return checkout


@pytest.mark.parametrize(
    ("module", "texts"),
    [
        ("first", {"  # a comment": ""}),
        ("first", {'"""Enter."""': '"""Other words,\n    on two lines."""'}),
        ("first", {'    """Enter."""\n': ""}),
        ("first", {'    """Its size."""\n': ""}),
        ("first", {'    """A model."""\n': ""}),
        ("first", {'"""The page\'s entrance."""\n': ""}),
        ("second", {"class Base:\n": 'class Base:\n    """The base."""\n\n'}),
        ("second", {"0.25\n": '0.25\n"""A rate."""\n'}),
        ("first", {"x: float, *, scale: float = 0.5) -> float:": "x, *, scale=0.5):"}),
        ("first", {"y: float = shrunk": "y = shrunk"}),
        ("first", {"def run(self, x: float) -> float:": "def run(self, x: list[int]):"}),
        ("second", {"RATE: float = 0.25": "RATE = 2.5e-1"}),
        ("first", {"return x + 1": "return x + 2"}),
        ("first", {"def unreached(x: float) -> float:\n    return x + 1\n": ""}),
        ("second", {'kind = "other"': 'kind = "none"'}),
        ("first", {"import numpy as np": "from numpy import mean", "np.mean": "mean"}),
        ("first", {"import numpy as np": "import numpy", "np.mean": "numpy.mean"}),
        ("first", {"import functools": "from functools import cache", "@functools.cache": "@cache"}),
        ("first", {"RATE, Base, grown, shrunk": "shrunk, grown, Base, RATE"}),
        ("first", {"from palimpsest.second": "from .second"}),
        ("first", {"grown, shrunk": "grown\nfrom palimpsest.second import shrunk"}),
        ("first", {"grown, shrunk": "grown", "    y: float": "    from .second import shrunk\n    y: float"}),
        ("first", {"RATE, Base": "RATE as SHARE, Base", "[x, RATE]": "[x, SHARE]"}),
        ("first", {"LIMIT": "BOUND"}),
        ("first", {"entry(": "_entry("}),
        (
            "first",
            {"return y if y < LIMIT else grown(y)": "return (y if y < LIMIT\n  else grown(y))"},
        ),
    ],
)
def test_what_leaves_the_hash(basic: str, module: str, texts: dict[str, str]) -> None:
    assert changed(module, texts).hash == basic


@pytest.mark.parametrize(
    ("module", "texts"),
    [
        ("first", {"LIMIT = 3": "LIMIT = 4"}),
        ("first", {"LIMIT = 3": "LIMIT = 3.0"}),
        ("first", {"y < LIMIT": "y <= LIMIT"}),
        ("first", {"entry(x) * self": "entry(x) + self"}),
        ("first", {"scale: float = 0.5": "scale: float = 0.6"}),
        ("second", {"by: float = 2.0": "by: float = 3.0"}),
        ("first", {"x: float, *, scale": "x: float, scale"}),
        ("first", {"@functools.cache": "@functools.lru_cache"}),
        ("first", {"@functools.cache\n": ""}),
        ("first", {"Model(Base)": "Model"}),
        ("first", {"import RATE, Base": "import RATE, Other as Base"}),
        ("first", {"Model(Base)": "Model(Base, metaclass=register)"}),
        ("first", {"size: int = 4": "size: int = 5"}),
        ("first", {"size: int = 4": "size: float = 4"}),
        ("first", {"size: int = 4": "size = 4"}),
        ("first", {"size: int": "length: int"}),
        ("second", {'kind = "base"': 'kind = "bass"'}),
        ("second", {'kind = "base"': 'sort = "base"'}),
        ("first", {"by=scale": "at=scale"}),
        ("first", {"shrunk(x, by=scale)": "shrunk(x, scale)"}),
        ("first", {"grown, shrunk": "grown as shrunk, shrunk as grown"}),
        ("first", {"np.mean": "np.median"}),
        ("first", {"import numpy": "import pandas"}),
        ("first", {"told(self, x: float)": "told(self, x: int)"}),
        ("first", {"told(self, x: float) -> float": "told(self, x: float) -> int"}),
        ("first", {"    @register\n": ""}),
        ("first", {"from unknown import": "from elsewhere import"}),
        ("first", {"        return x\n": "        return None\n"}),
        ("second", {"return x / by": "return x / by / 1"}),
    ],
)
def test_what_changes_the_hash(basic: str, module: str, texts: dict[str, str]) -> None:
    assert changed(module, texts).hash != basic


def test_the_name_of_a_class_counts_since_records_may_show_it(basic: str) -> None:
    other = changed("first", {"class Model": "class Network"})
    assert replace(other, cells=[cell.replace("Model", "Network") for cell in CELLS]).hash != basic


def test_methods_may_stand_in_any_order_but_not_what_a_class_assigns(basic: str) -> None:
    run = FIRST[FIRST.index("    def run") : FIRST.index("    @register")]
    told = FIRST[FIRST.index("    @register") : FIRST.index("\n\ndef unreached")]
    assert changed("first", {run + told: told + "\n" + run}).hash == basic
    one, other = (
        changed("first", {"    size: int = 4\n": fields})
        for fields in ("    a = 1\n    b = 2\n", "    b = 2\n    a = 1\n")
    )
    assert one.hash != other.hash


def test_a_setter_stays_behind_its_property() -> None:
    getter = "    @property\n    def a(self):\n        return 1\n"
    setter = "    @a.setter\n    def a(self, value: int) -> None:\n        self.b = value\n"
    code = f"class Model:\n{getter}{setter}"
    page = Checkout({"__init__": "", "first": code}, ["from palimpsest.first import Model", "Model().a = 2"])
    assert page.with_module("first", "value: int", "value: str").hash == page.hash
    assert page.with_module("first", getter + setter, setter + getter).hash != page.hash


def test_a_renamed_module_leaves_the_hash(basic: str) -> None:
    first = FIRST.replace("palimpsest.second", "palimpsest.deep.helpers")
    modules = {"__init__": "", "deep/__init__": "", "start": first, "deep/helpers": SECOND}
    cells = [cell.replace("palimpsest.first", "palimpsest.start") for cell in CELLS]
    assert Checkout(modules, cells).hash == basic


def test_a_name_handed_on_by_another_module_leads_to_its_definition(basic: str) -> None:
    handed = {"__init__": "from palimpsest.first import Model as Model", "first": FIRST, "second": SECOND}
    for first in ("from palimpsest import Model", "import palimpsest as pl"):
        call = CELLS[1].replace("Model()", "pl.Model()") if "pl" in first.split() else CELLS[1]
        assert Checkout(handed, [f"import numpy as np\n{first}", call]).hash == basic


# Names and their scopes


def form(source: str) -> str:
    """Canonical form of a statement at the top of a module that imports numpy as np and defines nothing."""

    def top(name: str) -> str | None:
        return {"np": "numpy", "x": "elsewhere.x"}.get(name)

    canonical = Canonical(lambda dotted: (Outside(dotted), ()), top, "palimpsest")
    return "".join(map(str, canonical.statement(ast.parse(source).body[0])))


@pytest.mark.parametrize(
    ("source", "outside"),
    [
        ("def f():\n    return x", True),
        ("def f(x):\n    return x", False),
        ("def f(*x, y=1):\n    return x", False),
        ("def f(y=x):\n    return y", True),
        ("def f():\n    x = 1\n    return x", False),
        ("def f():\n    global x\n    x = 1\n    return x", True),
        ("def f():\n    return [x for x in y]", False),
        ("def f():\n    return [z for z in x]", True),
        ("def f():\n    return [x for x in x]", True),
        ("def f():\n    return lambda x: x", False),
        ("def f():\n    return [(x := 1) for y in z], x", False),
        ("def f():\n    try:\n        y()\n    except E as x:\n        return x", False),
        ("def f(y):\n    match y:\n        case [1, *x]:\n            return x", False),
        ("def f(y):\n    match y:\n        case {1: z, **x}:\n            return x", False),
        ("def f():\n    def x():\n        pass\n    return x", False),
        ("def f():\n    def g():\n        x = 1\n    return x", True),
        ("def f():\n    x = 1\n    def g():\n        return x", False),
        ("def f():\n    x = 1\n    def g():\n        nonlocal x\n        x = 2", False),
        ("class A:\n    x = 1\n    y = x", False),
        ("class A:\n    x = 1\n    def f(self):\n        return x", True),
        ("def f():\n    from other import x\n    return x", False),
        ("async def f():\n    return await x", True),
    ],
)
def test_a_name_is_resolved_in_the_scopes_around_it(source: str, outside: bool) -> None:
    assert ("(outside elsewhere.x)" in form(source)) == outside


def test_an_attribute_of_what_is_computed_is_code() -> None:
    assert form("def f(a):\n    return a().b") != form("def f(a):\n    return a().c")
    assert form("def f(a):\n    return a.b.c") != form("def f(a):\n    return a.c.b")


def test_a_declaration_without_a_value_is_no_code_in_a_function_and_a_field_in_a_class() -> None:
    assert form("def f():\n    y: int\n    return 1") == form("def f():\n    return 1")
    assert form("class A:\n    y: int\n    z: int") != form("class A:\n    z: int")


@pytest.mark.parametrize("name", sorted(Package(PACKAGE).modules))
def test_the_layout_of_the_real_package_does_not_count(name: str) -> None:
    tree = ast.parse(Package(PACKAGE).modules[name].read_text())
    for one, other in zip(tree.body, ast.parse(ast.unparse(tree)).body, strict=True):
        assert form(ast.unparse(one)) == form(ast.unparse(other))
