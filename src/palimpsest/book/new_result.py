"""The skeleton of a result: a notebook with every cell that a page needs, its place in the book, and a test.

`book/add_a_result.md` says what each part is for. What is made runs at once and shows a made-up measurement,
so that every cell can be replaced by the real one while the checks stay green.
"""

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from palimpsest import paths
from palimpsest.book.formats import nbformat, v4
from palimpsest.book.profiles import known_notebooks
from palimpsest.errors import NotebookError
from palimpsest.files import locked, write_atomically
from palimpsest.results.prose import plain

NAME = re.compile(r"(?P<number>[0-9]{2})_(?P<stem>[a-z][a-z0-9]*(?:_[a-z0-9]+)*)")
LONGEST = 60
"""Characters of a name, and of a title."""

KERNEL = {"name": "python3", "display_name": "Python 3", "language": "python"}

PARAMETERS = """\
profile: str = "smoke"  # name of the profile, only a label
problems: int = 5  # random problems
seed: int = 1  # seed of every draw on this page"""
SETUP = """\
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from palimpsest import Results, answer, frame_table, show_figure

used = {{"problems": problems, "seed": seed}}
results = Results("{name}", profile=profile, parameters=used)"""
WORK = """\
# A made-up measurement: replace it by a call of the library.
draws = np.random.default_rng(seed).uniform(0.0, 1.0, problems)"""
SAVE = """\
results.describe(model={"name": "none"}, seed=seed)
results.value("gain", draws.mean(), unit="ratio")
results.table("draws", pd.DataFrame({"case": range(problems), "value": draws}))
results.save()"""
TABLE = """\
columns = {"case": ("problem", ".0f"), "value": ("gain", ".2f")}
frame_table(results.frame("draws"), columns, "Gain of each problem.")"""
FIGURE = """\
frame = results.frame("draws")
figure, ax = plt.subplots()
ax.bar(frame["case"], frame["value"])
ax.set(xlabel="problem", ylabel="gain")
show_figure(results, "gain", figure, "Gain of each problem, {gain} in the mean.")"""
ANSWER = """\
answer(results, {question}, "The gain is {{gain}} in the mean.")"""
TEST = '''\
"""What has to hold for page {name}: replace this by a check that fails if the result is wrong."""

import numpy as np


def test_the_mean_of_a_case_worked_out_by_hand() -> None:
    """The skeleton's measurement is a mean of draws; yours is checked against its own small case."""
    assert np.mean([0.25, 0.5, 0.75, 1.0]) == 0.625
'''
ROW = """\
    notebook: {name}
    rule: {{kind: effect, value: gain, direction: positive}}
    paper_ran: MODEL, NUMBER edits in batches of NUMBER
"""


@dataclass(frozen=True)
class Made:
    """Files of a new result, and the text for the claims file.

    Attributes:
        notebook, test, contents: the files; the last is the book's table of contents, which has a row more.
        row: lines for the row of its claim, in place of ``not_run``.
    """

    notebook: Path
    test: Path
    contents: Path
    row: str

    def __str__(self) -> str:
        files = "\n".join(str(path) for path in (self.notebook, self.test, self.contents))
        return (
            f"{files}\n\nIn data/claims.yaml, in place of `not_run` in the row of the claim:\n\n{self.row}\n"
            "In config/profiles/laptop.yaml, and others that are to run it, under `notebooks`, with "
            f"its sizes there ({{}} for its defaults):\n\n  {self.notebook.stem}: {{}}\n\n"
            f"Then: palimpsest check-notebooks {self.notebook.stem} --accept"
        )


def new_result(name: str, title: str, question: str = "What is found?") -> Made:
    """Write the skeleton of a result into the checkout; what is there is never overwritten.

    Args:
        name: of the notebook, ``23_my_result``; without a number it gets the next free one.
        title: of the page, one line of text.
        question: the plain sentence under the title that the answer at the end repeats.

    Raises:
        NotebookError: if the name, title or question is not usable, or a file of the result exists, or the
            table of contents has no place for it; nothing is written.
        ResourceError: if a file cannot be written.
        BusyError: if another process makes a result.
    """
    with locked(paths.notebooks_dir() / "new result", wait=0):
        name = _numbered(name)
        label = NAME.fullmatch(name)["stem"].replace("_", "-")  # type: ignore[index]
        _check_texts(title, question)
        notebook = paths.notebooks_dir() / f"{name}.ipynb"
        test = paths.root() / "tests" / "book" / f"test_page_{name}.py"
        contents = paths.book_dir() / "_toc.yml"
        for path in (notebook, test):
            if path.exists() or path.is_symlink():
                raise NotebookError(f"{path} exists already and is left as it is; choose another name")
        _check_label(label)
        with_page = _with_page(contents, name, title)
        content = nbformat.writes(_skeleton(name, title, label, question)) + "\n"
        try:
            write_atomically(notebook, content.encode())
            write_atomically(test, TEST.format(name=name).encode())
            write_atomically(contents, with_page.encode())
        except BaseException:
            for path in (notebook, test):
                with suppress(OSError):
                    path.unlink()
            raise
    return Made(notebook, test, contents, ROW.format(name=name))


def _numbered(name: str) -> str:
    """A name with its number, the next free one if it has none."""
    known = known_notebooks()
    taken = {found[:2]: found for found in known}
    if NAME.fullmatch(f"00_{name}"):
        free = 1 + max((int(number) for number in taken if number.isdigit()), default=0)
        name = f"{free:02d}_{name}"
    if not NAME.fullmatch(name) or len(name) > LONGEST:
        raise NotebookError(
            f"{name!r} names no notebook; write two digits and words in small letters, joined by "
            f"underscores, such as 23_my_result, {LONGEST} characters at most"
        )
    if name[:2] in taken:
        raise NotebookError(
            f"the number {name[:2]} is that of {taken[name[:2]]}, which is left as it is; choose another, or "
            "leave the number out"
        )
    return name


def _check_texts(title: str, question: str) -> None:
    for what, text in (("title", title), ("question", question)):
        if not text.strip() or text != " ".join(text.split()) or not text.isprintable():
            raise NotebookError(f"the {what} {text!r} is no line of text; write words with single spaces")
        if re.search(r"\d[.,]\d|\d\s*(%|percent|per cent|points)", text):
            raise NotebookError(
                f"the {what} {text!r} holds a number that is a result; record it, and name it in the answer"
            )
    if len(title) > LONGEST:
        raise NotebookError(f"the title has {len(title)} characters, and {LONGEST} is the most")
    if not question.endswith("?") or plain(question) != question:
        raise NotebookError(
            f"the question {question!r} must be a sentence without markup that ends in a question mark"
        )


def _check_label(label: str) -> None:
    """Whether no page has the label already: a cross-reference would lead to either."""
    pages = [*paths.notebooks_dir().glob("*.ipynb"), *paths.book_dir().glob("*.md")]
    for path in sorted(pages):
        if f"({label})=" in path.read_text("utf-8", errors="replace"):
            raise NotebookError(f"{path} has the label {label!r} already; choose another name")


def _skeleton(name: str, title: str, label: str, question: str) -> nbformat.NotebookNode:
    setup, asked = SETUP.format(name=name), ANSWER.format(question=json.dumps(question, ensure_ascii=False))
    if len(asked) > 80:
        asked = asked.replace("(results, ", "(\n    results,\n    ").replace('", "', '",\n    "')
        asked = asked.removesuffix(")") + ",\n)"
    what = "## What was run\n\nSay what was run, on what, and how far that is from the paper's own run."
    cells = [
        v4.new_markdown_cell(f"({label})=\n# {plain(title)}\n\n{question}", id="question"),
        v4.new_markdown_cell(what, id="what-was-run"),
        _code("parameters", PARAMETERS, "parameters"),
        _code("setup", setup, "setup"),
        _code("work", WORK, "compute"),
        _code("save", SAVE, "compute", "hide-input"),
        _code("table", TABLE, "show"),
        _code("figure", FIGURE, "show", "headline"),
        _code("answer", asked, "show", "answer"),
    ]
    return v4.new_notebook(cells=cells, metadata={"kernelspec": KERNEL})


def _code(name: str, source: str, *tags: str) -> nbformat.NotebookNode:
    return v4.new_code_cell(source, id=name, metadata={"tags": list(tags)})


def _with_page(contents: Path, name: str, title: str) -> str:
    """The table of contents with one page more, behind the last one with a smaller name."""
    lines = contents.read_text("utf-8").splitlines(keepends=True)
    before = [(page, last) for page, last in _pages(lines) if page < name]
    if not before:
        raise NotebookError(f"{contents} names no page before {name}; add that one by hand first")
    place = max(before)[1] + 1
    heading = json.dumps(f"{name[:2]} {title}", ensure_ascii=False)
    row = [f"      - file: book/_pages/{name}\n", f"        title: {heading}\n"]
    return "".join([*lines[:place], *row, *lines[place:]])


def _pages(lines: list[str]) -> Iterator[tuple[str, int]]:
    """Name of each notebook in the table of contents, and the last line of its entry."""
    for at, line in enumerate(lines):
        found = re.fullmatch(r"\s*- file: book/_pages/(\S+)\s*", line)
        if found:
            titled = at + 1 < len(lines) and lines[at + 1].strip().startswith("title:")
            yield found[1], at + titled
