"""What a page reaches: definitions, rows of tables, and code by whatever name it is called."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.book.definitions import Package
from palimpsest.book.dependencies import TABLES, Dependencies, Vocabulary
from palimpsest.book.page_code import notebook_code
from palimpsest.book.staleness import NOTEBOOK
from palimpsest.errors import NotebookError
from tests.book.pages import Checkout, write_page

# Names and what they lead to

SMALL = {
    "__init__": "",
    "model": "X = 1\nZ = 2\n",
    "solve": "def f() -> None:\n    from palimpsest.deep.inner import Y\n    return Y\n",
    "deep/__init__": "from palimpsest.model import X as X\n",
    "deep/inner": "Y = 1\n",
    "apart": "import palimpsest.model\ndef g():\n    return palimpsest.model.X\n",
}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import json\nX = 1", set()),
        ("from palimpsest.model import X", set()),
        ("from palimpsest.model import X\nX", {"model.X"}),
        ("from palimpsest.model import X as Y\nprint(Y)", {"model.X"}),
        ("from palimpsest import solve\nsolve.f()", {"solve.f", "deep.inner.Y"}),
        ("import palimpsest\npalimpsest.apart.g()", {"apart.g", "model.X"}),
        ("import palimpsest.apart as a\na.g", {"apart.g", "model.X"}),
        ("from palimpsest.deep import X\nX", {"model.X"}),
        ("from palimpsest import model\nprint(model)", {"model.X", "model.Z"}),
        ("def h():\n    from palimpsest.model import Z\n    return Z", {"model.Z"}),
        ("f = lambda: f'{X}'\nfrom palimpsest.model import X", {"model.X"}),
    ],
)
def test_each_form_of_import_leads_to_what_is_used(source: str, found: set[str]) -> None:
    assert Checkout(SMALL, [source]).inputs().definitions.keys() == found | {NOTEBOOK}


def test_functions_that_call_each_other_settle() -> None:
    code = "def f(n):\n    return g(n - {step})\n\ndef g(n):\n    return f(n) if n else 0\n"
    pages = [
        Checkout({"a": code.format(step=step)}, ["from palimpsest.a import f", "f(3)"]) for step in (1, 2)
    ]
    assert pages[0].hash == pages[0].hash
    assert pages[0].hash != pages[1].hash


def test_each_name_of_a_shared_assignment_has_its_own_place() -> None:
    page = Checkout({"a": "X, Y = 1, 2\n"}, ["from palimpsest.a import X", "X"])
    other = page.with_module("a", "X, Y", "Y, X")
    assert page.hash != other.hash


# The notebook's own code

PAGE = Checkout(
    {"a": "def f(x):\n    return x\n"},
    ["import json\nfrom palimpsest.a import f", "y = f(1)", "json.dumps(y)"],
)


@pytest.mark.parametrize(
    "other",
    [
        replace(PAGE, cells=["import json", "from palimpsest.a import f", *PAGE.cells[1:]]),
        replace(PAGE, cells=["from palimpsest.a import f", "import json", *PAGE.cells[1:]]),
        replace(PAGE, cells=["import os\nfrom palimpsest.a import f\nimport json", *PAGE.cells[1:]]),
        replace(PAGE, cells=[PAGE.cells[0], "# twice\ny = f(1)  # and why", *PAGE.cells[2:]]),
        replace(PAGE, cells=[PAGE.cells[0], "y = (\n    f(1)\n)", *PAGE.cells[2:]]),
        replace(PAGE, cells=[*PAGE.cells, "# nothing but a comment"]),
        replace(PAGE, prose="Some words."),
        replace(PAGE, first="another"),
    ],
)
def test_how_a_notebook_is_laid_out_does_not_count(other: Checkout) -> None:
    assert other.hash == PAGE.hash


@pytest.mark.parametrize(
    "cells",
    [
        [*PAGE.cells[:2], "json.dumps(y);"],
        [*PAGE.cells[:2], "json.loads(y)"],
        [PAGE.cells[0], "y = f(2)", *PAGE.cells[2:]],
        [PAGE.cells[0], "y = f(1)\njson.dumps(y)"],
        [PAGE.cells[0], *reversed(PAGE.cells[1:])],
        [PAGE.cells[0], "y = f(1)", "f = 2", *PAGE.cells[2:]],
        ["from json import dumps as f\nimport json", *PAGE.cells[1:]],
        [*PAGE.cells, "y"],
        [*PAGE.cells, "'a text that is shown'"],
    ],
)
def test_what_a_notebook_does_counts(cells: list[str]) -> None:
    assert replace(PAGE, cells=cells).hash != PAGE.hash


def test_a_cell_that_is_no_python_is_an_error_that_names_it(tmp_path: Path) -> None:
    write_page(tmp_path / "page.ipynb", ["x = 1", "y = 2\n%matplotlib inline"])
    with pytest.raises(NotebookError, match=r"^page.ipynb, cell cell1, line 2: not Python: invalid syntax"):
        notebook_code(tmp_path / "page.ipynb", Dependencies(tmp_path).package)


# Tables

TABLE = Checkout(
    {
        "tools": "def hammer():\n    return 1\n\ndef saw():\n    return 2\n",
        "box": "from palimpsest.tools import hammer, saw\n\n"
        'TOOLS_IN_USE = 1\nEDITORS = {"claw": hammer, "rip_cut": saw}\n\n'
        "def take(name):\n    if name not in EDITORS:\n        raise KeyError(list(EDITORS))\n"
        "    return EDITORS[name]\n",
    },
    ["from palimpsest.box import take", "take('claw')"],
)
NEW_ROW = ('"rip_cut": saw', '"rip_cut": saw, "coping": hammer')
OTHER_SAW = ("return 2", "return 3")


def test_a_row_that_cannot_be_asked_for_does_not_count() -> None:
    assert TABLE.with_module("box", *NEW_ROW).hash == TABLE.hash
    assert TABLE.with_module("tools", *OTHER_SAW).hash == TABLE.hash
    assert "tools.saw" not in TABLE.inputs().definitions


@pytest.mark.parametrize(
    ("cells", "parameters", "module"),
    [
        (["take('rip_cut')"], {}, ""),
        (["take('rip-cut rip_cut')"], {}, ""),
        (["take('_'.join(('rip', 'cut')))"], {}, ""),
        (["take(f'rip_{kind}')"], {"kind": "cut"}, ""),
        (["take(tool)"], {"tool": "rip_cut"}, ""),
        (["take(tools[0])"], {"tools": [{"rip_cut": 1}]}, ""),
        (["take(DEFAULT)"], {}, 'DEFAULT = "rip_cut"\n'),
    ],
)
def test_a_row_that_can_be_asked_for_counts(
    cells: list[str], parameters: dict[str, object], module: str
) -> None:
    imports = "from palimpsest.box import take" + (", DEFAULT" if module else "")
    page = replace(
        TABLE.with_module("box", "TOOLS_IN_USE = 1\n", module), cells=[imports, *cells], parameters=parameters
    )
    assert page.with_module("box", *NEW_ROW).hash == page.hash
    assert page.with_module("tools", *OTHER_SAW).hash != page.hash
    assert page.with_module("box", 'rip_cut": saw', 'rip_cut": hammer').hash != page.hash


@pytest.mark.parametrize(
    "use", ["list(EDITORS)", "EDITORS.values()", "for one in EDITORS:\n    one()", "table = EDITORS"]
)
def test_a_table_that_is_used_whole_counts_whole(use: str) -> None:
    page = replace(TABLE, cells=["from palimpsest.box import EDITORS", use])
    assert page.with_module("box", *NEW_ROW).hash != page.hash
    assert page.with_module("tools", *OTHER_SAW).hash != page.hash


@pytest.mark.parametrize(
    "use", ["EDITORS['claw']", "EDITORS.get('claw')", "'claw' in EDITORS", "'claw' not in EDITORS"]
)
def test_a_table_that_is_asked_for_an_entry_counts_by_its_rows(use: str) -> None:
    page = replace(TABLE, cells=["from palimpsest.box import EDITORS", use])
    assert page.with_module("box", *NEW_ROW).hash == page.hash


def test_only_tables_count_by_rows() -> None:
    page = TABLE.with_module("box", "EDITORS", "OTHERS")
    assert "OTHERS" not in TABLES
    assert page.with_module("box", *NEW_ROW).hash != page.hash


words = st.from_regex(r"[a-z]{1,3}(_[a-z]{1,3}){0,2}", fullmatch=True)


@given(st.lists(words, max_size=4), st.lists(words, max_size=4), words)
def test_a_vocabulary_only_grows(one: list[str], other: list[str], key: str) -> None:
    small = Vocabulary().with_texts(one, joined=True)
    large = small.with_texts(other)
    assert large.may_ask(key) or not small.may_ask(key)
    assert all(large.may_ask(text) for text in (*one, *other))
    assert large.asked(other) == sorted(other)


def test_two_things_imported_under_one_name_are_refused(tmp_path: Path) -> None:
    cells = ["from palimpsest.start import begin", "from palimpsest.deep import begin"]
    write_page(tmp_path / "page.ipynb", cells)
    with pytest.raises(
        NotebookError, match=r"page.ipynb: begin is imported as palimpsest.start.begin and as palim"
    ):
        notebook_code(tmp_path / "page.ipynb", Package(tmp_path / "palimpsest"))
