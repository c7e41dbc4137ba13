"""What every notebook source has to be, so that it runs under any profile and reads without outputs."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
import yaml
from nbformat import NotebookNode

from palimpsest.book.anatomy import ANSWER, HEADLINE
from palimpsest.book.page_code import COMPUTE, PARAMETERS, SETUP, SHOW
from palimpsest.book.parameters import parameters_cell, read_parameters
from palimpsest.book.profiles import check_profile, known_profiles, load_profile

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LONGEST_CELL, WIDEST_LINE = 60, 88

# A number in prose is a result, and a result is shown from its record. Exempt is what is no result:
# formulas, code, roles and links, years, and the numbering of a paper's parts.
NO_PROSE = re.compile(
    r"```.*?```|:::.*?:::|\$\$.*?\$\$|\$[^$]*\$|\{[^}]*\}`[^`]*`|`[^`]*`|\]\([^)]*\)|https?://\S+"
    r"|(Lemma|Lemmas|Theorem|Prop\.|Proposition|Corollary|Cor\.|Eq\.|Eqs\.|Section|Sec\.|§|Table|Tables"
    r"|Fig\.|Figure|Figures|Appendix|Algorithm|Alg\.)\s*[A-Z]?\.?\d+(\.\d+)*",
    re.DOTALL,
)
RESULT = re.compile(r"(?<![\w.-])\d+(\.\d+|[,\d]*\s*(%|per cent|percent|points))(?![\w-])")


def typed_numbers(text: str) -> list[str]:
    """Decimal numbers and percentages that stand in prose as typed text."""
    return [found.group(0) for found in RESULT.finditer(NO_PROSE.sub(" ", text))]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def notebook(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_notebooks_and_each_is_in_the_book() -> None:
    contents = yaml.safe_load((ROOT / "book" / "_toc.yml").read_text())
    files = [chapter["file"] for part in contents["parts"] for chapter in part["chapters"]]
    pages = [file.removeprefix("book/_pages/") for file in files if "/_pages/" in file]
    assert pages == [path.stem for path in NOTEBOOKS]
    assert pages


def test_sources_hold_no_outputs_and_no_counts(notebook: NotebookNode) -> None:
    cells = code_cells(notebook)
    assert [cell.id for cell in cells if cell.outputs or cell.execution_count] == []


def test_parameters_are_typed_and_commented(path: Path) -> None:
    declared = read_parameters(path)
    assert [name for name, parameter in declared.items() if not parameter.comment] == []
    assert declared["profile"].default == "smoke"
    assert "import" not in parameters_cell(path)


def rebound(source: str, names: set[str]) -> list[str]:
    """Those of the names that the cell's own code gives another meaning, functions' bodies aside."""
    found, queue = [], list(ast.parse(source).body)
    while queue:
        node = queue.pop()
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.append(node.name)
        elif not isinstance(node, ast.Lambda):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                found.append(node.id)
            queue.extend(ast.iter_child_nodes(node))
    return sorted(set(found) & names)


def test_no_cell_rebinds_a_parameter(path: Path, notebook: NotebookNode) -> None:
    names, first = set(read_parameters(path)), parameters_cell(path)
    cells = {cell.id: rebound(cell.source, names) for cell in code_cells(notebook) if cell.source != first}
    assert {name: found for name, found in cells.items() if found} == {}


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("facts = 3", ["facts"]),
        ("for batch in range(2):\n    pass", ["batch"]),
        ("def facts():\n    batch = 2", ["facts"]),
        ("total = facts + batch", []),
        ("f = lambda batch: batch", []),
    ],
)
def test_what_counts_as_rebinding(source: str, found: list[str]) -> None:
    assert rebound(source, {"facts", "batch"}) == found


def test_ids_are_stable(path: Path, notebook: NotebookNode) -> None:
    ids = [cell.get("id") for cell in notebook.cells]
    assert len(set(ids)) == len(ids)
    assert [name for name in ids if not name or name in ("banner", "after-title", "provenance")] == []
    random = [name for name in ids if re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f-]{27})?", name)]
    assert random == [], "give cells readable ids, so that a changed notebook is a readable diff"
    assert path.read_text().endswith("\n")


PARTS = {PARAMETERS, SETUP, COMPUTE, SHOW}


def tagged(notebook: NotebookNode, tag: str) -> list[NotebookNode]:
    return [cell for cell in code_cells(notebook) if tag in cell.metadata.get("tags", [])]


def test_every_cell_says_once_what_it_does(notebook: NotebookNode) -> None:
    tags = {cell.id: set(cell.metadata.get("tags", [])) & PARTS for cell in code_cells(notebook)}
    assert {name: found for name, found in tags.items() if len(found) != 1} == {}


def test_a_page_has_one_answer_at_its_end_and_one_headline(notebook: NotebookNode) -> None:
    (answer,), (headline,) = tagged(notebook, ANSWER), tagged(notebook, HEADLINE)
    assert answer is notebook.cells[-1]
    assert "show_figure(" in headline.source
    for cell in (answer, headline):
        assert SHOW in cell.metadata.tags


def question_of(notebook: NotebookNode) -> str:
    """The text under the title."""
    return " ".join(re.split(r"^# .+$", notebook.cells[0].source, flags=re.MULTILINE)[1].split())


def test_the_question_stands_under_the_title_and_in_the_answer(notebook: NotebookNode) -> None:
    tree = ast.parse(tagged(notebook, ANSWER)[0].source)
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    (call,) = [node for node in calls if isinstance(node.func, ast.Name) and node.func.id == "answer"]
    question = question_of(notebook)
    assert " ".join(ast.literal_eval(call.args[1]).split()) == question
    assert question.endswith("?")
    assert not re.search(r"[{}`$*]", question), "a question is a plain sentence"


def test_a_cell_shows_at_most_one_figure_with_its_caption(notebook: NotebookNode) -> None:
    counts = {cell.id: cell.source.count("show_figure(") for cell in code_cells(notebook)}
    assert {name: count for name, count in counts.items() if count > 1} == {}
    sources = "\n".join(cell.source for cell in notebook.cells)
    for gone in ("glue", "plt.close", "plt.show", "Interval("):
        assert gone not in sources


def test_no_cell_is_long(notebook: NotebookNode) -> None:
    lengths = {
        cell.id: sum(not line.startswith(("import ", "from ")) for line in cell.source.splitlines())
        for cell in code_cells(notebook)
    }
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_CELL} == {}


def test_no_line_is_wide(notebook: NotebookNode) -> None:
    lines = [(cell.id, line) for cell in code_cells(notebook) for line in cell.source.splitlines()]
    assert [(name, line) for name, line in lines if len(line) > WIDEST_LINE] == []


def test_numbers_in_prose_come_from_records(notebook: NotebookNode) -> None:
    prose = {
        cell.id: typed_numbers(cell.source) for cell in notebook.cells if cell not in code_cells(notebook)
    }
    assert {name: numbers for name, numbers in prose.items() if numbers} == {}


def test_the_kernel_is_the_plain_one(notebook: NotebookNode) -> None:
    assert notebook.metadata.kernelspec.name == "python3"
    assert "papermill" not in notebook.metadata


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("efficacy is 97.8 here", ["97.8"]),
        ("it falls by 12 % or 3 points", ["12 %", "3 points"]),
        ("see Lemma 3.1, Eq. 4, Table 6 and § 2.3 of {cite:t}`x2025` in 2025", []),
        ("with $\\lambda = 0.5$ and `lr=0.3`, {term}`efficacy`", []),
        ("LLaMA-3, Qwen2.5-7B, 30 layers, [a link](http://x/1.5)", []),
        ("$$ x = 0.5 $$ then 0.25.", ["0.25"]),
    ],
)
def test_what_counts_as_a_typed_number(text: str, numbers: list[str]) -> None:
    assert typed_numbers(text) == numbers


@pytest.mark.parametrize("name", known_profiles())
def test_every_profile_fits_the_notebooks(name: str) -> None:
    check_profile(load_profile(name))


def test_smoke_is_the_notebooks_own_defaults() -> None:
    smoke = load_profile("smoke")
    assert (smoke.defaults, smoke.notebooks) == ({}, {})
