"""Pages drawn again from their records: what is drawn, when, and what is left alone if it cannot be."""

import json
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from palimpsest.book.profiles import load_profile
from palimpsest.book.render import is_drawn, render, render_all
from palimpsest.book.runner import run_notebook
from palimpsest.book.standing import standing
from palimpsest.errors import NotebookError
from tests.clone import DATA, PARAMETERS, Clone, make_clone

NAME = "01_tiny"
SETUP = """\
import pandas as pd
from palimpsest.paths import root
from palimpsest.results.records import Results
from palimpsest.toy import doubled, thorough
results = Results("01_tiny", profile=profile, parameters={"seed": seed})"""
WORK = """\
results.value("doubled", doubled(seed), unit="count")
results.table("rows", pd.DataFrame({"case": ["a"], "value": [float(seed)]}))
results.save()"""
SHOW = 'results.say("Twice {seed} is {doubled}, in {n} rows.", n=len(results.frame("rows")))'


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    made = make_clone(tmp_path / "clone", monkeypatch)
    write(made)
    return made


def write(clone: Clone, show: str = SHOW, work: str = WORK) -> None:
    cells = [new_markdown_cell("# A tiny result", id="title")]
    for name, tag, source in (
        ("parameters", "parameters", PARAMETERS),
        ("setup", "setup", SETUP),
        ("work", "compute", work),
        ("show", "show", show),
    ):
        cells.append(new_code_cell(source, id=name, metadata={"tags": [tag]}))
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(new_notebook(cells=cells, metadata={"kernelspec": kernel}), clone.notebook)


def shown(clone: Clone, folder: Path | None = None) -> str:
    """What the last cell of the page shows."""
    page = nbformat.read((folder or clone.root / "results/laptop") / f"{NAME}.ipynb", as_version=4)
    data = page.cells[-1].outputs[-1].data
    return str(data.get("text/markdown", data.get("text/plain")))


@pytest.mark.slow
def test_a_sentence_is_improved_without_computing(clone: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    run_notebook(NAME, "laptop")
    assert shown(clone) == "Twice 2 is 4, in 1 rows."
    assert is_drawn(NAME, load_profile("laptop"))
    assert not render(NAME, "laptop")
    before = clone.results()

    write(clone, show=SHOW.replace("Twice", "Two times"))
    assert standing(NAME, "laptop").kind == "fresh"
    assert not is_drawn(NAME, load_profile("laptop"))
    assert list(render_all(None, "laptop")) == ["01_tiny: drawn again"]
    assert shown(clone) == "Two times 2 is 4, in 1 rows."
    assert list(render_all([NAME], "laptop")) == ["01_tiny: as its code draws it"]

    after = clone.results()
    kept = {name for name in before if before[name] == after[name]}
    assert kept == {"01_tiny.json", "01_tiny.rows.parquet"}
    old, new = (json.loads(files["01_tiny.provenance.json"]) for files in (before, after))
    assert {key for key in new if old.get(key) != new[key]} == {"shown"}


@pytest.mark.slow
def test_data_that_only_a_figure_reads_counts_for_the_figure_alone(clone: Clone) -> None:
    write(clone, show='(root() / "data" / "facts" / "triples.csv").read_text()')
    run_notebook(NAME, "laptop")
    (clone.root / DATA).write_text("d,e,f\n")
    assert standing(NAME, "laptop").kind == "fresh"
    assert not is_drawn(NAME, load_profile("laptop"))
    assert render(NAME, "laptop")
    assert "d,e,f" in shown(clone)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("show", "message"),
    [
        ("undefined", "NameError: name 'undefined' is not defined; the cell is printed above"),
        (
            'results.value("more", 1.0)',
            "DataError: value 'more' is recorded while 01_tiny is only shown again",
        ),
        ('results.frame("gone")', "UnknownNameError: unknown table of 01_tiny 'gone'"),
        ("results.save()", "the record is recorded while"),
    ],
)
def test_a_cell_that_needs_more_than_the_records_leaves_the_page(
    show: str, message: str, clone: Clone, capsys: pytest.CaptureFixture[str]
) -> None:
    run_notebook(NAME, "laptop")
    before = clone.results()
    write(clone, show=show)
    with pytest.raises(NotebookError, match="01_tiny cannot be drawn again: ") as error:
        render(NAME, "laptop")
    assert message in str(error.value)
    assert show.splitlines()[0] in capsys.readouterr().err
    assert clone.results() == before


@pytest.mark.slow
def test_what_computes_has_changed(clone: Clone, tmp_path: Path) -> None:
    run_notebook(NAME, "laptop")
    before = clone.results()
    write(clone, show="results.say('new')", work=WORK.replace("doubled(seed)", "doubled(seed) + 1"))
    with pytest.raises(NotebookError, match="cells that compute have changed since the run"):
        render(NAME, "laptop")
    with pytest.raises(NotebookError, match="1 pages could not be drawn again"):
        list(render_all([NAME], "laptop"))
    assert "cells that compute have changed" in next(render_all(None, "laptop"))
    assert render(NAME, "laptop", tmp_path)
    assert shown(clone, tmp_path) == "new"
    assert clone.results() == before


def test_without_a_result_there_is_nothing_to_show(clone: Clone) -> None:
    with pytest.raises(NotebookError, match="01_tiny was not run under the profile laptop"):
        render(NAME, "laptop")
    assert list(render_all(None, "laptop")) == []
    with pytest.raises(NotebookError, match="1 pages could not be drawn again; the reasons are above"):
        list(render_all([NAME], "laptop"))


def test_records_that_are_not_those_of_the_run_are_not_shown(clone: Clone) -> None:
    clone.pretend_run(records={"01_tiny.json": "0"})
    with pytest.raises(NotebookError, match=r"01_tiny: 01_tiny.json: not what the run wrote"):
        render(NAME, "laptop")
