"""The anatomy of a page: what comes first, what is folded, and figures with their captions."""

from typing import Any

import pytest
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from palimpsest.book.anatomy import arrange, label, reading_minutes, title_of
from palimpsest.results.display import MARK

PICTURE = new_output(
    "display_data", {"image/png": "AAAA"}, metadata={MARK: {"figure": "two_steps", "width": 640}}
)
CAPTION = new_output(
    "display_data", {"text/markdown": "What is $x$."}, metadata={MARK: {"caption": "two_steps"}}
)


def cell(name: str, tags: str, *outputs: Any) -> NotebookNode:
    made = new_code_cell("x = 1", id=name, metadata={"tags": tags.split()})
    made.outputs = list(outputs)
    return made


def page(*cells: NotebookNode, title: str = "(label)=\n# A title\n\nWhat is asked?") -> NotebookNode:
    made = new_notebook(cells=[new_markdown_cell(title, id="question"), *cells])
    arrange(made, "05_page", "strip", "banner")
    return made


def test_answer_and_headline_come_first_wherever_they_are_made() -> None:
    made = page(
        new_markdown_cell("## What was run", id="what"),
        cell("work", "compute"),
        cell("other", "show", PICTURE),
        cell("figure", "show headline", PICTURE),
        cell("answer", "show answer"),
    )
    assert [c.id for c in made.cells] == [
        "question",
        "verdict-strip",
        "after-title",
        "answer",
        "figure",
        "banner",
        "what",
        "work",
        "other",
    ]
    assert [c.source for c in made.cells[:3]] == ["(label)=\n# A title", "strip", "What is asked?"]


@pytest.mark.parametrize(
    ("tags", "folded"),
    [
        ("parameters", True),
        ("setup", True),
        ("show", True),
        ("compute", False),
        ("", False),
        ("compute hide-input", True),
    ],
)
def test_only_code_that_computes_stays_open(tags: str, folded: bool) -> None:
    (made,) = [c for c in page(cell("one", tags)).cells if c.id == "one"]
    assert ("hide-input" in made.metadata.tags) is folded
    assert made.metadata.tags.count("hide-input") == folded


@pytest.mark.parametrize("tag", ["answer", "headline"])
def test_at_the_head_of_a_page_there_is_no_code(tag: str) -> None:
    (made,) = [c for c in page(cell("one", f"show {tag}")).cells if c.id == "one"]
    assert made.metadata.tags == ["show", tag, "remove-input"]


def test_picture_and_caption_become_a_figure() -> None:
    (made,) = [c for c in page(cell("one", "show", PICTURE, CAPTION)).cells if c.id == "one"]
    assert made.outputs == [PICTURE]
    assert made.metadata.mystnb == {
        "figure": {"caption": "What is $x$.", "name": "figure-05-two-steps"},
        "image": {"width": "640px", "alt": "two steps"},
    }


def test_without_a_title_the_banner_comes_first() -> None:
    made = page(cell("one", "compute"), title="text")
    assert [c.id for c in made.cells] == ["banner", "question", "one"]
    assert made.cells[0].source == "stripbanner"


def test_names_and_titles() -> None:
    assert label("05_page", "two_steps") == "figure-05-two-steps"
    assert title_of(new_notebook(cells=[new_markdown_cell("(a)=\n# One\n\n## Two")])) == "One"
    assert title_of(new_notebook()) == "Untitled"


@pytest.mark.parametrize(("words", "minutes"), [(3, 1), (500, 2), (1000, 5)])
def test_the_time_to_read_counts_prose_and_sentences(words: int, minutes: int) -> None:
    said = new_output("execute_result", {"text/markdown": "word " * (words // 2)})
    made = new_notebook(cells=[new_markdown_cell("word " * (words - words // 2)), cell("one", "show", said)])
    assert reading_minutes(made) == minutes
