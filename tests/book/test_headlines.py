"""The front page's findings are filled from records, and say what is missing."""

from pathlib import Path

import pytest

from palimpsest.book.headlines import Headline, load_headlines, write_headlines
from palimpsest.errors import DataError

ROW = {
    "page": "01_one_edit",
    "figure": "one_edit_figure",
    "title": "A title",
    "text": "At least {n} facts are held.",
}


def test_the_findings_of_the_book_are_filled(tmp_path: Path) -> None:
    write_headlines("laptop", tmp_path / "headlines.txt")
    text = (tmp_path / "headlines.txt").read_text("utf-8")
    pictures = [f"{place}.png" for place, row in enumerate(load_headlines(), 1) if row.figure]
    assert len(pictures) == text.count(":target: _pages/") == 3
    assert [path.name for path in sorted((tmp_path / "headlines").iterdir())] == pictures
    assert text.count("**") == 2 * len(load_headlines())
    assert "{n" not in text
    assert "0 of" in text  # weights that differ after undoing


def test_a_profile_without_results_has_no_findings(tmp_path: Path) -> None:
    write_headlines("gpu-gpt2-xl", tmp_path / "headlines.txt")
    assert (tmp_path / "headlines.txt").read_text("utf-8").strip() == ""


def headlines(monkeypatch: pytest.MonkeyPatch, folder: Path, **changes: str) -> str:
    """The text that the front page includes, with one finding."""
    rows = [Headline(**ROW | changes)]
    monkeypatch.setattr("palimpsest.book.headlines.load_headlines", lambda: rows)
    write_headlines("laptop", folder / "headlines.txt")
    return (folder / "headlines.txt").read_text("utf-8")


def test_a_value_stands_without_its_interval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"values": {"n": {"value": 1200, "low": 1, "high": 2, "unit": "count"}}}
    monkeypatch.setattr("palimpsest.results.records.read", lambda _: found)
    assert "At least 1,200 facts are held." in headlines(monkeypatch, tmp_path)


def test_a_value_that_is_not_recorded_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="the record of 01_one_edit has no value 'nothing'"):
        headlines(monkeypatch, tmp_path, text="At least {nothing} facts are held.")


def test_a_figure_that_is_not_shown_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="01_one_edit shows no figure 'none'; choose one of one_edit_figure"):
        headlines(monkeypatch, tmp_path, figure="none")


@pytest.mark.parametrize("content", ["- {page: a}", "{", "text"])
def test_a_malformed_file_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "rows.yaml").write_text(content)
    with pytest.raises(DataError, match=r"rows.yaml: cannot be read as headlines"):
        load_headlines(tmp_path / "rows.yaml")
