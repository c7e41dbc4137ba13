"""Which definitions changed between two checkouts, as far as a page can run them."""

from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from palimpsest.book.changes import Side, changed_code
from tests.book.pages import write_files, write_page

SOURCE = {
    "start": (
        "from palimpsest.deep import helper\n\nSIZE = 3\n\n\ndef begin(x):\n    return helper(x) + SIZE\n"
    ),
    "deep": "def helper(x):\n    return x * 2\n",
    "__init__": "",
}
CELLS = ("from palimpsest.start import begin", "begin(1)")
TABLE = """\
class Method:
    def edit(self):
        return 1


class Other:
    def edit(self):
        return 2


EDITORS = {"one": Method, "two": Other}


def editor_for(name):
    return EDITORS[name]()
"""


def side(
    root: Path, modules: Mapping[str, str], cells: Iterable[str] = CELLS, ran: Iterable[str] | None = None
) -> Side:
    files = {f"src/palimpsest/{name}.py": source for name, source in modules.items()}
    write_files(root, {"config/models/none.yaml": "{}\n", **files})
    (root / "notebooks").mkdir()
    write_page(root / "notebooks" / "page.ipynb", list(cells))
    return Side(root, "page", {}, ran)


@pytest.mark.parametrize(
    ("module", "old", "new", "changed"),
    [
        ("start", "SIZE = 3", "SIZE = 4", ("start.SIZE",)),
        ("deep", "x * 2", "x * 3", ("deep.helper",)),
        ("start", "helper(x) + SIZE", "helper(x) - SIZE", ("start.begin",)),
        ("start", "def begin(x):", 'def begin(x):\n    """Words."""', ()),
    ],
)
def test_only_the_definition_whose_own_code_differs_is_changed(
    tmp_path: Path, module: str, old: str, new: str, changed: tuple[str, ...]
) -> None:
    before = side(tmp_path / "old", SOURCE)
    after = side(tmp_path / "new", {**SOURCE, module: SOURCE[module].replace(old, new)})
    assert changed_code(before, after) == changed


def test_what_moved_or_was_renamed_is_not_changed_nor_is_what_names_it(tmp_path: Path) -> None:
    moved = {
        "start": SOURCE["start"].replace("palimpsest.deep", "palimpsest.far").replace("helper", "twice"),
        "far": SOURCE["deep"].replace("helper", "twice"),
        "__init__": "",
    }
    assert changed_code(side(tmp_path / "old", SOURCE), side(tmp_path / "new", moved)) == ()


def test_a_renamed_class_is_the_same_class(tmp_path: Path) -> None:
    source = {"__init__": "", "start": "class Rule:\n    size = 1\n\n\ndef begin(x):\n    return Rule()\n"}
    renamed = {name: text.replace("Rule", "Cut") for name, text in source.items()}
    assert changed_code(side(tmp_path / "old", source), side(tmp_path / "new", renamed)) == ()


CLASS = """\
class Rule:
    size = 1

    def one(self):
        return self.size

    def two(self):
        return 2


def begin(x):
    return Rule().one() + Rule().two()
"""


@pytest.mark.parametrize(
    ("old", "new", "changed"),
    [
        ("return self.size", "return 1 + self.size", ("start.Rule.one",)),
        ("return 2", "return 3", ("start.Rule.two",)),
        ("size = 1", "size = 2", ("start.Rule but for its methods",)),
        ("class Rule:", "class Rule(dict):", ("start.Rule but for its methods",)),
        (
            "    def two(self):\n        return 2\n",
            "    def three(self):\n        return 3\n",
            ("start.Rule but for its methods",),  # nothing names the new one
        ),
        ("    def two(self):\n        return 2\n", "", ("start.Rule but for its methods",)),
        (
            "    def two(self):",
            "    def __repr__(self):\n        return ''\n\n    def two(self):",
            (),  # how an object is shown enters no record
        ),
    ],
)
def test_of_a_class_the_methods_that_changed_are_named(
    tmp_path: Path, old: str, new: str, changed: tuple[str, ...]
) -> None:
    before = side(tmp_path / "old", {"__init__": "", "start": CLASS})
    after = side(tmp_path / "new", {"__init__": "", "start": CLASS.replace(old, new)})
    assert changed_code(before, after) == changed


@pytest.mark.parametrize(
    ("ran", "changed"),
    [(("start.Method",), ()), (("start.Other",), ("start.Other.edit",)), (None, ("start.Other.edit",))],
)
def test_a_method_that_did_not_run_does_not_count(
    tmp_path: Path, ran: tuple[str, ...] | None, changed: tuple[str, ...]
) -> None:
    cells = ("from palimpsest.start import editor_for", "editor_for('one').edit()", "title = 'one and two'")
    before = side(tmp_path / "old", {"__init__": "", "start": TABLE}, cells, ran)
    after = side(
        tmp_path / "new", {"__init__": "", "start": TABLE.replace("return 2", "return 3")}, cells, ran
    )
    assert changed_code(before, after) == changed


def test_code_that_is_reached_for_the_first_time_is_not_changed_by_that(tmp_path: Path) -> None:
    source = {**SOURCE, "deep": SOURCE["deep"] + "\n\ndef other(x):\n    return x\n"}
    uses = source["start"].replace("import helper", "import helper, other").replace("+ SIZE", "+ other(SIZE)")
    before, after = side(tmp_path / "old", source), side(tmp_path / "new", {**source, "start": uses})
    assert changed_code(before, after) == ("start.begin",)


def test_of_two_helpers_of_one_name_each_is_matched_with_itself(tmp_path: Path) -> None:
    helpers = {name: f"def _rows(x):\n    return x + {n}\n" for n, name in enumerate(("deep", "start"))}
    uses = "\n\ndef begin(x):\n    return _rows(x)\n"
    source = {
        "__init__": "",
        "deep": helpers["deep"] + uses.replace("begin", "helper"),
        "start": helpers["start"] + uses,
    }
    cells = ("from palimpsest.start import begin", "from palimpsest.deep import helper", "begin(helper(1))")
    before, after = side(tmp_path / "old", source, cells), side(tmp_path / "new", source, cells)
    assert changed_code(before, after) == ()
