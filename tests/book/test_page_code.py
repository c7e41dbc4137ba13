"""Cells that compute and cells that show: which code counts for what, and what neither may do."""

from collections.abc import Sequence
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from palimpsest.book.definitions import Package
from palimpsest.book.page_code import COMPUTE, SETUP, SHOW, names_bound, names_read, notebook_code, part_of
from palimpsest.errors import NotebookError

Cell = tuple[str, str]
"""Tags, and source."""
PAGE: tuple[Cell, ...] = (
    ("parameters", "seed = 1"),
    ("setup", "from math import sqrt\nSCALE = 2"),
    ("compute", "found = SCALE * seed"),
    ("show headline", "drawn = sqrt(SCALE)"),
    ("show", "print(drawn)"),
)


def code(folder: Path, cells: Sequence[Cell], part: str = COMPUTE) -> str:
    """Canonical form of one part of a page."""
    made = [
        new_code_cell(source, id=f"cell{n}", metadata={"tags": tags.split()})
        for n, (tags, source) in enumerate(cells)
    ]
    nbformat.write(new_notebook(cells=made), folder / "page.ipynb")
    (folder / "palimpsest").mkdir(exist_ok=True)
    (folder / "palimpsest" / "__init__.py").touch()
    return "".join(map(str, notebook_code(folder / "page.ipynb", Package(folder / "palimpsest"), part).form))


@pytest.mark.parametrize(
    ("tags", "part"),
    [
        ("", COMPUTE),
        ("compute hide-input", COMPUTE),
        ("show answer", SHOW),
        ("setup", SETUP),
        ("parameters", "parameters"),
    ],
)
def test_the_tag_says_what_a_cell_does(tags: str, part: str) -> None:
    assert part_of(new_code_cell("", metadata={"tags": tags.split()})) == part


def changed(place: int, source: str) -> list[Cell]:
    return [(tags, source if n == place else old) for n, (tags, old) in enumerate(PAGE)]


@pytest.mark.parametrize(
    ("place", "source", "computes", "shows"),
    [
        (0, "seed = 2", False, False),
        (1, "from math import sqrt\nSCALE = 3", True, True),
        (2, "found = SCALE + seed", True, False),
        (3, "drawn = sqrt(SCALE) + 1", False, True),
        (4, "print(drawn, drawn)", False, True),
    ],
)
def test_a_change_counts_where_the_cell_belongs(
    place: int, source: str, computes: bool, shows: bool, tmp_path: Path
) -> None:
    for part, counts in ((COMPUTE, computes), (SHOW, shows)):
        before, after = (code(tmp_path, page, part) for page in (PAGE, changed(place, source)))
        assert (before != after) is counts


@pytest.mark.parametrize(
    "source",
    [
        "found = drawn",
        "def f():\n    return drawn\nfound = f()",
        "found = [drawn for _ in range(3)]",
        "found = (lambda x: x + drawn)(1)",
    ],
)
def test_no_result_may_depend_on_what_is_only_shown(source: str, tmp_path: Path) -> None:
    with pytest.raises(NotebookError) as error:
        code(tmp_path, changed(2, source))
    assert str(error.value) == (
        "page.ipynb, cell cell2: drawn comes from a cell tagged show, which no result may depend on; "
        "tag that cell compute, or setup if both need it"
    )


@pytest.mark.parametrize(
    "source",
    [
        "drawn = 1\nfound = drawn",  # a name of its own
        "found = [drawn for drawn in range(3)]",
        "def f(drawn):\n    return drawn\nfound = f(1)",
    ],
)
def test_a_name_of_its_own_is_no_dependence(source: str, tmp_path: Path) -> None:
    assert "found" in code(tmp_path, changed(2, source))


def test_names_that_a_cell_binds_and_reads() -> None:
    source = "import a.b\nfrom c import d as e\ndef f(x):\n    return x + y\nfor z in w:\n    v = f(z)"
    assert names_bound(source) == {"a", "e", "f", "z", "v"}
    assert {"y", "w", "f"} <= names_read(source)
    assert "x" not in names_read(source)
