"""A newcomer's result: `palimpsest new-result`, one row of the claims, and a test; and what it refuses."""

import json
import shutil
from pathlib import Path

import nbformat
import pytest
import yaml
from typer.testing import CliRunner

from palimpsest import cli
from palimpsest.book.parameters import read_parameters
from tests.copies import Copy

NAME = "96_preserved_keys"
TITLE = "Preserved keys"
QUESTION = "Do they stay?"
WORK = """\
import torch
from palimpsest import null_space

generator = torch.Generator().manual_seed(seed)
worst = 0.0
for _ in range(problems):
    k0 = torch.randn(8, 3, dtype=torch.float64, generator=generator)
    update = torch.randn(4, 8, dtype=torch.float64, generator=generator)
    moved = null_space(k0 @ k0.T).apply(update.T).T @ k0
    worst = max(worst, float(moved.norm() / (update @ k0).norm()))"""
SAVE = """\
results.describe(model={"name": "none"}, seed=seed)
results.value("a01_error", worst, unit="ratio")
results.save()"""
FIGURE = """\
figure, ax = plt.subplots()
ax.bar(["preserved keys"], [results.values["a01_error"]["value"]])
show_figure(results, "error", figure, "Largest relative error, {a01_error}.")"""
ANSWER = 'answer(results, "Do they stay?", "They do, with an error of {a01_error}.")'
MINE = {"work": WORK, "save": SAVE, "figure": FIGURE, "answer": ANSWER}
RULE = "notebook: 96_preserved_keys\n    rule: {kind: identity, values: [a01_error], tolerance: 1.0e-8}\n"
TEST = '''\
"""Outputs at preserved keys stay as they are."""

import torch

from palimpsest.algebra.projector import null_space


def test_a_projected_update_leaves_preserved_keys_alone() -> None:
    k0 = torch.tensor([[1.0], [1.0]]).double()
    update = null_space(k0 @ k0.T).apply(torch.eye(2).double())
    torch.testing.assert_close(update, torch.tensor([[0.5, -0.5], [-0.5, 0.5]]).double())
'''
VERDICT = """
from palimpsest import paths
from palimpsest.book.profiles import known_notebooks
from palimpsest.results.claims import load_claims, load_records, verdict
print(*(name for name in known_notebooks() if name.startswith("96")))
claim = next(claim for claim in load_claims().claims if claim.id == "A01")
print(claim.notebook, verdict(claim, load_records(paths.build_dir(), "smoke"), "smoke").label)
"""


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    """A skeleton, as it is made."""
    made = Copy(tmp_path / "copy")
    done = made.run("-m", "palimpsest.cli", "new-result", NAME, TITLE, "--question", QUESTION)
    assert done.returncode == 0, done.stderr
    assert f"notebook: {NAME}" in done.stdout
    assert f"\n  {NAME}: {{}}\n" in done.stdout
    return made


@pytest.mark.slow
def test_a_skeleton_passes_the_checks_of_notebooks_and_runs(copy: Copy) -> None:
    added = {f"notebooks/{NAME}.ipynb", f"tests/book/test_page_{NAME}.py", "book/_toc.yml"}
    assert copy.changed() == added
    selected = ("-k", f"{NAME} or profile or in_the_book or by_hand")
    passed, failed = copy.tests("tests/book/test_notebooks.py", f"tests/book/test_page_{NAME}.py", *selected)
    assert failed == set()
    assert f"test_a_page_has_one_answer_at_its_end_and_one_headline[{NAME}]" in passed
    assert "test_there_are_notebooks_and_each_is_in_the_book" in passed
    assert "test_the_mean_of_a_case_worked_out_by_hand" in passed
    done = copy.run("-m", "palimpsest.cli", "run", NAME, "--profile", "smoke")
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_a_result_is_a_notebook_a_row_and_a_test(copy: Copy) -> None:
    """As book/add_a_result.md says; the checks of notebooks and claims take it, and a verdict is computed."""
    path = copy.root / f"notebooks/{NAME}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if cell.id not in ("what-was-run", "table")]
    for cell in notebook.cells:
        cell.source = MINE.get(cell.id, cell.source)
    path.write_text(nbformat.writes(notebook) + "\n")
    claims = (copy.root / "data/claims.yaml").read_text()
    row = claims[claims.index("- id: A01") :]
    old = row[row.index("notebook: ") : row.index("    mathematics:")]
    copy.replace("data/claims.yaml", row, row.replace(old, RULE, 1))
    (copy.root / f"tests/book/test_page_{NAME}.py").write_text(TEST)
    passed, failed = copy.tests(
        *("tests/book/test_notebooks.py", "tests/results/test_claims.py"),
        f"tests/book/test_page_{NAME}.py",
        *("-k", f"{NAME} or A01 or profile or in_the_book or every_claim or preserved_keys"),
    )
    assert failed == set()
    assert f"test_parameters_are_typed_and_commented[{NAME}]" in passed
    assert "test_there_are_notebooks_and_each_is_in_the_book" in passed
    assert "test_the_notebook_of_every_claim_exists[A01]" in passed
    assert "test_a_projected_update_leaves_preserved_keys_alone" in passed
    assert copy.says(VERDICT).splitlines() == [NAME, f"{NAME} not run"]
    done = copy.run("-m", "palimpsest.cli", "run", NAME, "--profile", "smoke")
    assert done.returncode == 0, done.stderr[-3000:]
    assert copy.says(VERDICT).splitlines() == [NAME, f"{NAME} verified numerically"]


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout with two pages."""
    source, root = Path(__file__).parents[2], tmp_path / "checkout"
    for folder in ("notebooks", "config/profiles", "book", "tests/book"):
        (root / folder).mkdir(parents=True)
    (root / "pyproject.toml").touch()
    for name in ("02_null_space", "22_alphaedit_theorems"):
        shutil.copyfile(source / f"notebooks/{name}.ipynb", root / f"notebooks/{name}.ipynb")
    shutil.copyfile(source / "book/_toc.yml", root / "book/_toc.yml")
    monkeypatch.setenv("PALIMPSEST_ROOT", str(root))
    return root


def made(*arguments: str) -> tuple[int, str]:
    """Exit status, and what was printed."""
    done = CliRunner().invoke(cli.app, ["new-result", *arguments])
    return done.exit_code, done.stdout if done.exit_code == 0 else done.stderr


def files(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_page_takes_its_place_among_the_others(checkout: Path) -> None:
    assert made("05_between", "Between")[0] == 0
    assert made("my_result", 'A "title": {ref}`x` *y*')[0] == 0
    contents = yaml.safe_load((checkout / "book/_toc.yml").read_text())
    chapters = {c["file"]: c.get("title") for part in contents["parts"] for c in part["chapters"]}
    pages = [file.removeprefix("book/_pages/") for file in chapters if "/_pages/" in file]
    assert pages == sorted(pages)
    assert chapters["book/_pages/23_my_result"] == '23 A "title": {ref}`x` *y*'
    notebook = nbformat.read(checkout / "notebooks/23_my_result.ipynb", as_version=4)
    assert notebook.cells[0].source.splitlines()[:2] == [
        "(my-result)=",
        '# A "title": \\{ref\\}\\`x\\` \\*y\\*',
    ]
    assert set(read_parameters(checkout / "notebooks/23_my_result.ipynb")) == {"profile", "problems", "seed"}
    compile((checkout / "tests/book/test_page_23_my_result.py").read_text(), "test", "exec")


REFUSED = [
    ("22_alphaedit_theorems", "T", "the number 22 is that of 22_alphaedit_theorems, which is left as it is"),
    ("22_other", "T", "the number 22 is that of 22_alphaedit_theorems"),
    ("alphaedit_theorems", "T", "has the label 'alphaedit-theorems' already; choose another name"),
    ("", "T", "names no notebook"),
    ("5_short", "T", "names no notebook"),
    ("23_Capital", "T", "names no notebook"),
    ("23_with space", "T", "names no notebook"),
    ("23-dash", "T", "names no notebook"),
    ("23_", "T", "names no notebook"),
    ("23__x", "T", "names no notebook"),
    ("23_é", "T", "names no notebook"),
    ("../23_x", "T", "names no notebook"),
    ("23_x/y", "T", "names no notebook"),
    ("23_x.ipynb", "T", "names no notebook"),
    ("23_" + "x" * 80, "T", "60 characters at most"),
    ("23_x", "", "the title '' is no line of text"),
    ("23_x", "two\nlines", "is no line of text"),
    ("23_x", "bell \a", "is no line of text"),
    ("23_x", "t" * 61, "the title has 61 characters, and 60 is the most"),
    ("23_x", "97.8 points", "holds a number that is a result"),
]


@pytest.mark.parametrize(("name", "title", "message"), REFUSED, ids=range(len(REFUSED)))
def test_what_is_refused_leaves_everything_as_it_was(
    checkout: Path, name: str, title: str, message: str
) -> None:
    before = files(checkout)
    status, said = made(name, title)
    assert (status, message in said) == (2, True), said
    assert files(checkout) == before


@pytest.mark.parametrize("question", ["No mark", "A *b*?", "{x}?", "a\nb?", "", "Is it 3.1?"])
def test_a_question_is_a_plain_sentence(checkout: Path, question: str) -> None:
    before = files(checkout)
    status, said = made("23_x", "T", "--question", question)
    assert (status, "the question" in said) == (2, True), said
    assert files(checkout) == before


def test_files_that_are_there_stay(checkout: Path) -> None:
    for path in (checkout / "notebooks/30_x.ipynb", checkout / "tests/book/test_page_31_y.py"):
        path.write_text(json.dumps({}))
    (checkout / "tests/book/test_page_32_z.py").symlink_to("nowhere")
    before = files(checkout)
    for name in ("30_x", "31_y", "32_z"):
        status, said = made(name, "T")
        assert (status, "left as it is" in said) == (2, True), said
    assert files(checkout) == before


def test_a_contents_page_without_notebooks_is_refused(checkout: Path) -> None:
    (checkout / "book/_toc.yml").write_text("parts: []\n")
    before = files(checkout)
    status, said = made("23_x", "T")
    assert (status, "names no page before 23_x; add that one by hand first" in said) == (2, True)
    assert files(checkout) == before
