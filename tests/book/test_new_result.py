"""A newcomer's result: one notebook, one row of the claims, one test, and its place in the book."""

from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from tests.copies import Copy

pytestmark = pytest.mark.slow

NAME = "96_preserved_keys"
PARAMETERS = """\
profile: str = "smoke"  # name of the profile
problems: int = 5  # random problems
seed: int = 1  # seed of every draw"""
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
SETUP = """\
import matplotlib.pyplot as plt
from palimpsest import Results, answer, show_figure

used = {"problems": problems, "seed": seed}
results = Results("96_preserved_keys", profile=profile, parameters=used)"""
SAVE = """\
results.describe(model={"name": "none"}, seed=seed)
results.value("a01_error", worst, unit="ratio")
results.save()"""
FIGURE = """\
figure, ax = plt.subplots()
ax.bar(["preserved keys"], [results.values["a01_error"]["value"]])
show_figure(results, "error", figure, "Largest relative error, {a01_error}.")"""
ANSWER = 'answer(results, "Do they stay?", "They do, with an error of {a01_error}.")'
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
    made = Copy(tmp_path / "copy")
    cells = [
        new_markdown_cell("(preserved-keys)=\n# Preserved keys\n\nDo they stay?", id="question"),
        new_code_cell(PARAMETERS, id="parameters", metadata={"tags": ["parameters"]}),
        new_code_cell(SETUP, id="setup", metadata={"tags": ["setup"]}),
        new_code_cell(WORK, id="work", metadata={"tags": ["compute"]}),
        new_code_cell(SAVE, id="save", metadata={"tags": ["compute", "hide-input"]}),
        new_code_cell(FIGURE, id="figure", metadata={"tags": ["show", "headline"]}),
        new_code_cell(ANSWER, id="answer", metadata={"tags": ["show", "answer"]}),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = new_notebook(cells=cells, metadata={"kernelspec": kernel})
    made.put(f"notebooks/{NAME}.ipynb", nbformat.writes(notebook) + "\n")
    claims = (made.root / "data/claims.yaml").read_text()
    row = claims[claims.index("- id: A01") :]
    old = row[row.index("notebook: ") : row.index("    mathematics:")]
    made.replace("data/claims.yaml", row, row.replace(old, RULE, 1))
    made.insert("config/profiles/laptop.yaml", "notebooks:\n", f"  {NAME}: {{}}\n")
    figures = "      - file: book/_generated/figures\n"
    made.replace("book/_toc.yml", figures, f"      - file: book/_pages/{NAME}\n{figures}")
    made.put("tests/theory/test_preserved_keys.py", TEST)
    return made


def test_a_result_is_a_notebook_a_row_and_a_test(copy: Copy) -> None:
    """As book/add_a_result.md says; the checks of notebooks and claims take it, and a verdict is computed."""
    added = {f"notebooks/{NAME}.ipynb", "data/claims.yaml", "book/_toc.yml", "config/profiles/laptop.yaml"}
    assert copy.changed() == added | {"tests/theory/test_preserved_keys.py"}
    passed, failed = copy.tests(
        *("tests/book/test_notebooks.py", "tests/results/test_claims.py"),
        "tests/theory/test_preserved_keys.py",
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
