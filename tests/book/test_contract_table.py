"""The README's table of editors is what the record of the contract tests says."""

from pathlib import Path

import pytest

from palimpsest.book.contract import (
    BEGIN,
    END,
    PROPERTIES,
    Outcome,
    main,
    outcomes_of,
    put_in,
    record_file,
    recorded,
    table,
)
from palimpsest.editors import EDITORS, style_of
from palimpsest.errors import DataError
from palimpsest.network.model import FAMILIES

REPORT = """<testsuites><testsuite>
<testcase name="test_nests[memit-llama]"/>
<testcase name="test_nests[memit-gpt2]"><failure message="no"/></testcase>
<testcase name="test_in_a_file[ft_l-llama]"><properties/></testcase>
<testcase name="test_of_something_else[memit-llama]"/>
</testsuite></testsuites>"""
ROWS = [
    Outcome("memit", "llama", "test_nests", True),
    Outcome("memit", "gpt2", "test_nests", False),
    Outcome("ft_l", "llama", "test_in_a_file", True),
]
NAMES = {"memit": "MEMIT", "ft_l": "FT-L"}


def test_a_report_becomes_rows_of_the_table(tmp_path: Path) -> None:
    file = tmp_path / "report.xml"
    file.write_text(REPORT)
    assert outcomes_of(file) == ROWS
    made = table(ROWS, NAMES)
    assert "on tiny random models of 2 families (llama, gpt2)" in made
    assert "| MEMIT | – | – | – | 1 (not gpt2) | – | – |" in made
    assert made.endswith("| FT-L | – | – | – | – | – | 1 |")


@pytest.mark.parametrize("content", ["", "<testsuite/>", "<testsuite><testcase name='test_x'/></testsuite>"])
def test_a_report_of_something_else_is_refused(tmp_path: Path, content: str) -> None:
    file = tmp_path / "report.xml"
    file.write_text(content)
    with pytest.raises(DataError, match=r"report\.xml: .*run `make contract`"):
        outcomes_of(file)


def test_a_readme_without_marks_is_refused() -> None:
    assert put_in(f"a {BEGIN} old {END} b", "new") == f"a {BEGIN}\nnew\n{END} b"
    for readme in ("nothing", f"{BEGIN} only", f"{END} {BEGIN}"):
        with pytest.raises(DataError, match="the README lacks the marks"):
            put_in(readme, "new")


def test_record_and_readme_are_written_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "README.md").write_text(f"{BEGIN}\n{END}\n")
    (tmp_path / "report.xml").write_text(REPORT)
    monkeypatch.setattr("palimpsest.paths.checkout", lambda: tmp_path)
    main(tmp_path / "report.xml", NAMES)
    assert recorded(record_file()) == ROWS
    assert table(ROWS, NAMES) in (tmp_path / "README.md").read_text()
    (tmp_path / "results" / "contract.json").write_text("{}")
    with pytest.raises(DataError, match=r"no record of the contract .*; run `make contract`"):
        recorded(record_file())


def test_the_readme_says_what_the_record_says_of_every_editor_and_family() -> None:
    outcomes = recorded()
    readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    assert put_in(readme, table(outcomes, {name: style_of(name).name for name in EDITORS})) == readme
    assert {one.editor for one in outcomes} == {*EDITORS}
    assert {one.family for one in outcomes} == {*FAMILIES}
    assert {one.property for one in outcomes} == {*PROPERTIES}
    assert all(one.passed for one in outcomes)
