"""The front page's findings are filled from records, and say what is missing."""

from pathlib import Path

import pytest

from palimpsest.book.headlines import Headline, filled, load_headlines, write_headlines
from palimpsest.errors import DataError

ROW = {
    "page": "01_one_edit",
    "figure": "one_edit_figure",
    "title": "A title",
    "text": "At least {n} facts are held.",
}
VALUES = {"n": {"value": 1200, "low": 1, "high": 2, "unit": "count"}}


def test_the_findings_of_the_book_are_filled(tmp_path: Path) -> None:
    write_headlines("laptop", tmp_path / "headlines.txt")
    text = (tmp_path / "headlines.txt").read_text("utf-8")
    assert len(load_headlines()) == text.count(":target: _pages/") == 3
    assert [path.name for path in sorted((tmp_path / "headlines").iterdir())] == ["1.png", "2.png", "3.png"]
    assert "{n" not in text
    assert "0 of" in text  # weights that differ after undoing


def test_a_profile_without_results_has_no_findings(tmp_path: Path) -> None:
    write_headlines("gpu-gpt2-xl", tmp_path / "headlines.txt")
    assert (tmp_path / "headlines.txt").read_text("utf-8").strip() == ""


def test_a_value_stands_without_its_interval() -> None:
    assert filled(Headline(**ROW), VALUES) == "At least 1,200 facts are held."


def test_a_value_that_is_not_recorded_is_named() -> None:
    with pytest.raises(DataError, match="the record of 01_one_edit has no value 'n'"):
        filled(Headline(**ROW), {})


def test_a_figure_that_is_not_shown_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [Headline(**ROW | {"figure": "none"})]
    monkeypatch.setattr("palimpsest.book.headlines.load_headlines", lambda: rows)
    with pytest.raises(DataError, match="01_one_edit shows no figure 'none'; choose one of one_edit_figure"):
        write_headlines("laptop", tmp_path / "headlines.txt")


@pytest.mark.parametrize("content", ["- {page: a}", "{", "text"])
def test_a_malformed_file_is_named(content: str, tmp_path: Path) -> None:
    (tmp_path / "rows.yaml").write_text(content)
    with pytest.raises(DataError, match=r"rows.yaml: cannot be read as headlines"):
        load_headlines(tmp_path / "rows.yaml")
