"""The generated pages of verdicts and of the audit: complete, the counts add up, nothing moves on its own."""

import re

import pytest

from palimpsest import paths
from palimpsest.book.audit import PREFIXES, write_audit
from palimpsest.book.verdicts import DISAGREE, write_verdicts
from palimpsest.results.claims import headline, judged, load_claims
from palimpsest.results.printed_audit import load_audit, prefix
from palimpsest.results.rules import LABELS
from tests.results.made_up import LEMMAS, record

NOTEBOOK = "03_alphaedit_plus_lemmas"


@pytest.fixture
def written(tmp_path):
    """Page of the verdicts for the given records: profile -> values of page 03."""

    def page(**profiles):
        for profile, values in profiles.items():
            record(tmp_path / "results", profile, NOTEBOOK, values)
        write_verdicts(tmp_path / "results", tmp_path / "book" / "verdicts.md")
        return (tmp_path / "book" / "verdicts.md").read_text("utf-8")

    return page


def test_the_page_holds_every_claim_and_where_a_paper_does_not_hold(written, tmp_path):
    page = written(laptop=LEMMAS | {"p03_signed_error": 0.1}, long=LEMMAS)
    for item in load_claims().claims:
        assert page.count(f"(claim-{item.id})=") == 1
    row = next(line for line in page.splitlines() if 'href="#claim-p03">' in line)
    assert 'data-label="wrong as printed"' in row
    assert f"../_pages/{NOTEBOOK}.html" in row
    found = judged(load_claims(), tmp_path / "results")
    labels = {item.id: headline(item, found[item.id]).label for item in load_claims().claims}
    listed = re.findall(r"^- \{ref\}`(\w+) <claim-\1>`", page, re.MULTILINE)
    assert listed == [name for name, label in labels.items() if label in DISAGREE]
    assert {"P01b", "P03"} <= set(listed)
    assert set(DISAGREE) < set(LABELS)


def test_the_counts_add_up(written, tmp_path):
    page = written(laptop=LEMMAS)
    totals = next(line for line in page.splitlines() if line.startswith("| all |"))
    counts = [int(cell or 0) for cell in totals.split("|")[2:-1] for cell in [cell.strip()]]
    assert counts[-1] == sum(counts[:-1]) == len(load_claims().claims)
    assert counts[:2] == [4, 6]


def test_the_page_is_the_same_when_nothing_changed(tmp_path):
    for name in ("a.md", "b.md"):
        write_verdicts(tmp_path / "results", tmp_path / name)
    assert (tmp_path / "a.md").read_bytes() == (tmp_path / "b.md").read_bytes()


def test_every_kind_of_check_is_explained_and_every_no_is_on_the_audit_page(tmp_path):
    rows = load_audit()
    assert {prefix(row) for row in rows} == set(PREFIXES)
    write_audit(tmp_path / "audit.md")
    page = (tmp_path / "audit.md").read_text("utf-8")
    for row in rows:
        assert (f"| {row['id']} |" in page) == (row["agrees"] != "yes")
    no = sum(row["agrees"] == "no" for row in rows)
    assert f"{no} do not" in page
    titles = [int(n) for n in re.findall(r"\{dropdown\} .*: (\d+) of \d+ checks", page)]
    assert sum(titles) == sum(row["agrees"] != "yes" for row in rows)
    assert "{dropdown} AlphaEdit+\n" in page


def test_carried_tables_have_the_columns_their_readme_names():
    columns = "paper,table,model,dataset,method,setting,metric,value,spread,unit,source_line"
    folder = paths.root() / "data" / "published"
    tables = [path for path in folder.glob("*.csv") if path.name != "audit.csv"]
    assert len([path for path in tables if "_table" in path.name]) == 31
    for path in tables:
        assert path.read_text("utf-8").splitlines()[0] == columns, path.name
