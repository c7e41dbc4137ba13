"""The front page's findings: figures and sentences whose numbers come from the records."""

import base64
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from palimpsest import paths
from palimpsest.book.formats import nbformat
from palimpsest.book.gallery import figures
from palimpsest.book.profiles import results_of
from palimpsest.errors import DataError, UnknownNameError
from palimpsest.files import UNREADABLE, write_atomically
from palimpsest.results import records
from palimpsest.results.prose import filled

FILE = "headlines.yaml"


class Headline(BaseModel):
    """One finding, a row of ``book/headlines.yaml``.

    Attributes:
        page: name of the notebook.
        figure: name of one of its figures; empty for a finding in words.
        title: the finding.
        text: a sentence or two; ``{name}`` stands for a value of the notebook's record.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    page: str
    figure: str = ""
    title: str = Field(min_length=5)
    text: str = Field(min_length=20)


def load_headlines(path: Path | None = None) -> list[Headline]:
    """The findings, in the order of the page.

    Raises:
        DataError: if the file cannot be read or a row is malformed.
    """
    file = path or paths.book_dir() / FILE
    try:
        return TypeAdapter(list[Headline]).validate_python(yaml.safe_load(file.read_text("utf-8")))
    except UNREADABLE as error:
        raise DataError(f"{file}: cannot be read as headlines ({error}); see those of book/{FILE}") from error


def write_headlines(profile: str, out_path: Path) -> None:
    """Generate the text that the front page includes, and its pictures in ``headlines/`` beside it.

    Findings whose page was not run in this profile are left out.

    Raises:
        DataError: if a finding names a value or a figure that its page does not have.
    """
    blocks = []
    for place, headline in enumerate(load_headlines(), 1):
        executed = results_of(profile) / f"{headline.page}.ipynb"
        if not executed.is_file():
            continue
        shown = {name: picture for name, _, picture in figures(nbformat.read(executed, as_version=4))}
        if headline.figure and headline.figure not in shown:
            names = ", ".join(shown)
            raise DataError(
                f"{FILE}: {headline.page} shows no figure {headline.figure!r}; choose one of {names}"
            )
        file = f"headlines/{place}.png" if headline.figure else ""
        if file:
            write_atomically(out_path.parent / file, base64.b64decode(shown[headline.figure]))
        values = records.read(executed.with_suffix(".json"))["values"]
        blocks.append(_block(headline, file, _text(headline, values)))
    write_atomically(out_path, ("\n\n".join(blocks) + "\n").encode())


def _text(headline: Headline, values: dict[str, Any]) -> str:
    """The text with its values, without their intervals."""
    bare = {name: {**entry, "low": None} for name, entry in values.items()}
    try:
        return " ".join(filled(headline.text, bare).split())
    except UnknownNameError as error:
        raise DataError(f"{FILE}: the record of {headline.page} has no value {error.name!r}") from error


def _block(headline: Headline, file: str, text: str) -> str:
    page = f"{{doc}}`{headline.page[:2]} <_pages/{headline.page}>`"
    said = f"**{headline.title}.** {text} Page {page}."
    if not file:
        return said
    return (
        f"{said}\n\n"
        f"```{{image}} _generated/{file}\n:alt: {headline.title}\n:target: _pages/{headline.page}.html\n"
        ":width: 100%\n```"
    )
