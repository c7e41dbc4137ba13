"""Claims and verdicts: the list is complete, each rule reaches each of its labels, messages say why."""

import json
import re

import pytest
import yaml

from palimpsest import paths
from palimpsest.book.audit import PREFIXES, write_audit
from palimpsest.book.verdicts import write_verdicts
from palimpsest.errors import DataError
from palimpsest.results.claims import KINDS, PUBLISHED, Claim, load_claims, profiles_with_results, verdict
from palimpsest.results.printed_audit import Audit, Rows, agreement, load_audit, prefix
from palimpsest.results.rules import (
    LABELS,
    Absent,
    Bound,
    Condition,
    Conditions,
    Counterexample,
    Effect,
    Identity,
    Misprint,
    PublishedSize,
    Readings,
)

EXPECTED = {"P": 17, "A": 13, "L": 15, "N": 5, "U": 10, "X": 4}


def entry(value, low=None, high=None):
    return {"value": value, "low": low, "high": high, "unit": "score", "over": "", "n": None}


def label(rule, **values):
    given = {name: item if isinstance(item, dict) else entry(item) for name, item in values.items()}
    return rule.judge(given).label


# The list -------------------------------------------------------------------------------------


def test_every_claim_of_the_list_is_there_once():
    ids = [claim.id for claim in load_claims().claims]
    wanted = [f"{letter}{n:02d}" for letter, count in EXPECTED.items() for n in range(1, count + 1)]
    assert sorted(ids) == sorted(wanted)


def test_every_claim_belongs_to_the_source_its_letter_names():
    letters = {
        "alphaedit_plus": "P",
        "alphaedit": "A",
        "labyrinth": "L",
        "null_space_training": "N",
        "uncertainty": "U",
        "between": "X",
    }
    assert all(claim.id[0] == letters[claim.paper] for claim in load_claims().claims)


@pytest.mark.parametrize("claim", load_claims().claims, ids=lambda claim: claim.id)
def test_the_notebook_of_every_claim_exists(claim):
    if claim.notebook is not None:
        assert (paths.notebooks_dir() / f"{claim.notebook}.ipynb").is_file()


@pytest.mark.parametrize("claim", load_claims().claims, ids=lambda claim: claim.id)
def test_every_claim_gets_a_verdict_without_any_result(claim):
    found = verdict(claim, {}, "laptop")
    assert found.reason
    if found.profile == PUBLISHED:
        assert found.label in set(LABELS) - {"not run"}
    else:
        assert found.label == "not run"


@pytest.mark.parametrize("claim", load_claims().claims, ids=lambda claim: claim.id)
def test_audit_rows_named_by_a_claim_exist(claim):
    if claim.audit is not None:
        assert claim.audit.pick(load_audit())


def test_no_verdict_is_typed_into_the_file():
    rows = yaml.safe_load((paths.root() / "data" / "claims.yaml").read_text("utf-8"))["claims"]
    assert not [row["id"] for row in rows if {"verdict", "label"} & set(row)]


# One test for each rule, every label it can give -----------------------------------------------


def test_identity():
    rule = Identity(values=("a", "b"), tolerance=1e-8)
    assert label(rule, a=1e-12, b=-1e-8) == "proved"
    assert label(rule, a=1e-12, b=-1.01e-8) == "contradicted"


def test_bound():
    rule = Bound(violations="v", tightness="t")
    assert label(rule, v=0, t=0.99) == "proved"
    assert label(rule, v=1, t=1.2) == "contradicted"
    assert "0.99" in rule.judge({"v": entry(0), "t": entry(0.99)}).reason


def test_misprint():
    rule = Misprint(printed=("p",), corrected=("c",), tolerance=1e-8, floor=1e-3)
    assert label(rule, p=0.5, c=1e-12) == "wrong as printed"
    assert label(rule, p=1e-3, c=1e-8) == "wrong as printed"
    assert label(rule, p=1e-8, c=1e-12) == "proved"
    assert label(rule, p=1e-5, c=1e-12) == "not seen here"
    assert label(rule, p=0.5, c=1e-6) == "contradicted"


def test_counterexample():
    rule = Counterexample(value="gap", floor=1e-3, corrected=("v",), tolerance=0)
    assert label(rule, gap=1e-3, v=0) == "wrong as printed"
    assert label(rule, gap=9e-4, v=0) == "not seen here"
    assert label(rule, gap=0.5, v=1) == "contradicted"


def test_absent():
    rule = Absent(what="carried over", effect="e", exact=("x",), tolerance=1e-8)
    assert label(rule, e=0, x=1e-12) == "wrong as printed"
    assert label(rule, e=0.1, x=1e-12) == "reproduced"
    assert label(rule, e=0, x=0.1) == "contradicted"
    assert rule.judge({"e": entry(0), "x": entry(0)}).reason == "carried over: 0"


@pytest.mark.parametrize(
    ("value", "low", "high", "expected"),
    [
        (10, 5, 15, "reproduced"),
        (5, 1, 9, "reproduced"),  # half the published size: the limit itself still counts
        (20, 15, 25, "reproduced"),
        (4.9, 1, 9, "direction only"),
        (20.1, 15, 25, "direction only"),
        (2, -1, 5, "not seen here"),
        (2, 0, 4, "not seen here"),  # an interval that touches no effect does not exclude it
        (-2, -4, 0, "not seen here"),
        (-10, -15, -5, "contradicted"),
    ],
)
def test_effect(value, low, high, expected):
    rule = Effect(value="d", direction="positive", published=10, factor=2)
    assert label(rule, d=entry(value, low, high)) == expected
    mirrored = Effect(value="d", direction="negative", published=-10, factor=2)
    assert label(mirrored, d=entry(-value, -high, -low)) == expected


def test_effect_without_a_published_size_is_at_most_a_direction():
    rule = Effect(value="d", direction="positive")
    assert label(rule, d=entry(3, 1, 5)) == "direction only"


def test_effect_of_a_ratio_is_judged_against_one():
    rule = Effect(value="r", direction="positive", published=3.0, factor=1.5, reference=1.0)
    assert label(rule, r=entry(2.5, 1.2, 4.0)) == "reproduced"
    assert label(rule, r=entry(2.2, 1.2, 4.0)) == "direction only"
    assert label(rule, r=entry(1.5, 0.9, 4.0)) == "not seen here"
    assert label(rule, r=entry(0.5, 0.2, 0.9)) == "contradicted"


def test_published_size():
    rule = PublishedSize(value="v", published=10, tolerance=1)
    assert label(rule, v=11) == "reproduced"
    assert label(rule, v=11.1) == "not seen here"
    assert label(rule, v=entry(12, 11, 13)) == "reproduced"
    assert label(rule, v=entry(8, 7, 8.9)) == "not seen here"


def test_readings():
    rule = Readings(measured="m", claimed="c", margin=0.1)
    assert label(rule, m=0.04, c=0.95) == "contradicted"
    assert label(rule, m=0.9, c=0.95) == "reproduced"
    assert label(rule, m=entry(0.5, 0.2, 0.9), c=entry(0.95, 0.9, 1)) == "not seen here"


def test_conditions_take_the_less_favourable_end():
    rule = Conditions(limits=(Condition(value="a", at_least=0.5), Condition(value="b", at_most=2.0)))
    assert label(rule, a=0.5, b=2) == "reproduced"
    assert label(rule, a=entry(0.6, 0.4, 0.8), b=1) == "not seen here"
    assert label(rule, a=0.5, b=entry(1.9, 1.8, 2.1)) == "not seen here"
    assert "b at most 2" in rule.judge({"a": entry(1), "b": entry(3)}).reason


def check(id_, agrees, paper="alphaedit"):
    return {"id": id_, "paper": paper, "agrees": agrees}


def test_audit():
    rows = Rows(prefixes=("AA",))
    yes, no = [check(f"AA{i}", "yes") for i in range(9)], [check("AA9", "no")]
    assert Audit(rows=rows, share=0.9).judge(yes + no).label == "reproduced"
    assert Audit(rows=rows, share=0.95).judge(yes + no).label == "direction only"
    assert Audit(rows=rows).judge(yes[:1] + no).label == "direction only"
    assert Audit(rows=rows).judge(no).label == "contradicted"
    corrected = Audit(rows=rows, corrected=Rows(prefixes=("BB",)))
    assert corrected.judge([*no, check("BB1", "yes")]).label == "wrong as printed"
    assert corrected.judge([*no, check("BB1", "no")]).label == "contradicted"


def test_audit_ignores_what_cannot_be_checked_and_keeps_to_pairs_when_asked():
    rows = [check("SH1", "yes", "a / b"), check("SH2", "no"), check("SH3", "not checkable", "a / b")]
    assert agreement(rows) == (1, 2)
    picked = Rows(prefixes=("SH",), between_papers=True).pick(rows)
    assert [row["id"] for row in picked] == ["SH1", "SH3"]


def test_together_the_rules_give_every_label_but_not_run():
    misprint = Misprint(printed=("a",), corrected=("b",))
    effect = Effect(value="a", direction="positive", published=1.0)
    given = {label(misprint, a=x, b=0.0) for x in (1.0, 1e-5, 0.0)}
    ends = [(0.5, 1.5), (0.1, 0.4), (-1.0, 1.0), (-2.0, -1.0)]
    given |= {label(effect, a=entry((low + high) / 2, low, high)) for low, high in ends}
    assert given | {"not run"} == set(LABELS)
    assert len(KINDS) == len(set(KINDS)) == 10


# What the carried file is expected to say once the values are there ---------------------------

LEMMAS = {
    "p01_residual_error": 1e-12,
    "p01_corrected_update_error": 1e-13,
    "p01_printed_update_error": 0.9,
    "p02_equality_gap": 0.3,
    "p02_bound_violations": 0,
    "p03_signed_error": 1e-12,
    "p03_unsigned_error": 0.2,
    "p04_bound_violations": 0,
    "p04_tightness": 1.0,
    "p05_update_error": 1e-14,
    "p05_admitted": 0,
    "p06_negative_gains": 0,
    "p06_smallest_gain": 1e-9,
    "p07_scan_error": 1e-14,
    "p07_curriculum_effect": 0.0,
}


def claim(name):
    return next(item for item in load_claims().claims if item.id == name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("P01", "wrong as printed"),
        ("P02", "wrong as printed"),
        ("P03", "proved"),
        ("P04", "proved"),
        ("P05", "proved"),
        ("P06", "wrong as printed"),
        ("P07", "wrong as printed"),
    ],
)
def test_the_lemmas_verdicts_follow_their_values(name, expected):
    values = {key: entry(value) for key, value in LEMMAS.items()}
    found = verdict(claim(name), {"03_alphaedit_plus_lemmas": values}, "laptop")
    assert (found.label, found.profile) == (expected, "laptop")
    assert set(found.values) >= set(claim(name).rule.names())


def test_the_score_is_wrong_as_printed_by_the_tables_alone():
    found = verdict(claim("P16"), {}, "laptop")
    assert (found.label, found.profile) == ("wrong as printed", PUBLISHED)


def test_a_single_batch_does_not_settle_a_claim_about_sequences():
    values = {"alphaedit_minus_memit_efficacy": entry(1.0, -1.0, 3.0), "efficacy_rome": entry(50.0)}
    found = verdict(claim("A04"), {"14_comparison": values}, "laptop")
    assert found.label == "not run"
    assert "sequential" in found.reason
    assert list(found.values) == ["alphaedit_minus_memit_efficacy"]


# Missing and malformed values ------------------------------------------------------------------

SMALL = Claim(
    id="P01",
    paper="alphaedit_plus",
    place="Lemma 1",
    kind="N",
    statement="A statement that is long enough.",
    notebook="03_x",
    rule=Effect(value="d", direction="positive"),
)


def test_a_missing_value_is_named_with_its_file():
    found = verdict(SMALL, {"03_x": {"other": entry(1)}}, "long")
    assert found.label == "not run"
    assert found.reason == "value d missing in results/long/03_x.json"


def test_a_missing_record_is_named():
    assert verdict(SMALL, {}, "gpu-gpt2-xl").reason == "there is no results/gpu-gpt2-xl/03_x.json"


def test_a_missing_interval_is_not_an_effect():
    found = verdict(SMALL, {"03_x": {"d": entry(3.0)}}, "laptop")
    assert found.label == "not run"
    assert "value d has no interval; record it with low and high" in found.reason


@pytest.mark.parametrize("value", ["high", True, float("nan")])
def test_a_value_that_is_no_number_is_an_error(value):
    rule = Identity(values=("d",))
    bad = SMALL.model_copy(update={"rule": rule})
    with pytest.raises(DataError, match=r"claim P01, results/laptop/03_x.json: value d is .* finite number"):
        verdict(bad, {"03_x": {"d": entry(value)}}, "laptop")


# Malformed files ------------------------------------------------------------------------------

GOOD = {
    "id": "P01",
    "paper": "one",
    "place": "Eq. 1",
    "kind": "Q",
    "statement": "A statement that is long enough.",
    "not_run": "no notebook yet",
}


@pytest.fixture
def load(tmp_path):
    def from_rows(*rows):
        path = tmp_path / "claims.yaml"
        papers = [{"id": "one", "title": "One"}]
        path.write_text(yaml.safe_dump({"papers": papers, "claims": list(rows)}), "utf-8")
        return load_claims(path)

    return from_rows


def without(*names):
    return {key: value for key, value in GOOD.items() if key not in names}


def with_rule(**rule):
    return without("not_run") | {"notebook": "03_x", "rule": rule}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (without("statement"), r"P01: statement: Field required"),
        (without("id"), r"row 2: id: Field required"),
        (without("not_run"), r"P01: give either a rule or a reason in not_run"),
        (GOOD | {"kind": "T"}, r"P01: a theorem \(kind T\) needs a note under mathematics"),
        (GOOD | {"kind": "Z"}, r"P01: kind: Input should be 'T', 'N' or 'Q'"),
        (GOOD | {"paper": "two"}, r"P01: unknown paper 'two'; choose one"),
        (GOOD | {"verdict": "proved"}, r"P01: verdict: Extra inputs are not permitted"),
        (with_rule(kind="guess"), r"P01: unknown rule kind 'guess'; choose identity, bound, misprint"),
        (with_rule(kind="identity"), r"P01: rule.identity.values: Field required"),
        (with_rule(kind="identity", values=["a"], slack=1), r"rule.identity.slack: Extra inputs"),
        (
            with_rule(kind="effect", value="a", direction="positive", published=-3.0),
            r"published -3 does not lie on the positive side of 0; correct direction",
        ),
        (
            with_rule(kind="conditions", limits=[{"value": "a"}]),
            r"condition on a: give either at_least or at_most",
        ),
        (
            with_rule(kind="identity", values=["a"]) | {"notebook": None},
            r"P01: a rule needs the notebook whose values it judges",
        ),
        ("P01", r"row 2: is not a mapping of fields"),
    ],
)
def test_malformed_rows_say_what_is_wrong(load, row, message):
    first = GOOD | {"id": "P09"}
    with pytest.raises(DataError, match=message):
        load(first, row)


def test_a_well_formed_row_is_accepted(load):
    loaded = load(GOOD, with_rule(kind="identity", values=["a"]) | {"id": "P02"})
    assert [item.id for item in loaded.of("one")] == ["P01", "P02"]


def test_duplicate_ids_are_refused(load):
    with pytest.raises(DataError, match=r"1 problems\nP01: this id is used twice"):
        load(GOOD, GOOD)


def test_every_problem_is_listed(load):
    with pytest.raises(DataError, match="2 problems") as caught:
        load(without("place"), GOOD | {"id": "P02", "paper": "two"})
    assert "P01: place" in str(caught.value)
    assert "P02: unknown paper" in str(caught.value)


def test_a_file_without_the_lists_is_refused(tmp_path):
    path = tmp_path / "claims.yaml"
    path.write_text("claims: []", "utf-8")
    with pytest.raises(DataError, match="needs the lists 'papers' and 'claims'"):
        load_claims(path)
    with pytest.raises(DataError, match="cannot be read as claims"):
        load_claims(tmp_path / "absent.yaml")


def test_audit_selections_that_find_nothing_are_refused():
    with pytest.raises(DataError, match=r"no row ZZ1; see data/published/audit\.csv"):
        Rows(ids=("ZZ1",)).pick([check("AA1", "yes")])
    with pytest.raises(DataError, match="any row of that selection"):
        Rows(prefixes=("ZZ",)).pick([check("AA1", "yes")])


# The pages ------------------------------------------------------------------------------------


def record(folder, profile, notebook, values):
    (folder / profile).mkdir(parents=True, exist_ok=True)
    content = {"schema": 1, "values": {name: entry(value) for name, value in values.items()}}
    (folder / profile / f"{notebook}.json").write_text(json.dumps(content), "utf-8")
    (folder / profile / f"{notebook}.provenance.json").write_text("{}", "utf-8")


def test_profiles_come_in_reading_order(tmp_path):
    assert profiles_with_results(tmp_path) == ["laptop"]
    record(tmp_path, "smoke", "03_x", {})
    assert profiles_with_results(tmp_path) == ["smoke"]
    for name in ("gpu-gpt2-xl", "long", "laptop"):
        record(tmp_path, name, "03_x", {})
    assert profiles_with_results(tmp_path) == ["laptop", "long", "gpu-gpt2-xl"]


def test_the_page_holds_every_claim_and_one_column_a_profile(tmp_path):
    record(tmp_path / "results", "laptop", "03_alphaedit_plus_lemmas", LEMMAS)
    broken = LEMMAS | {"p03_signed_error": 0.1}
    record(tmp_path / "results", "long", "03_alphaedit_plus_lemmas", broken)
    write_verdicts(tmp_path / "results", tmp_path / "book" / "verdicts.md")
    page = (tmp_path / "book" / "verdicts.md").read_text("utf-8")
    for item in load_claims().claims:
        assert page.count(f"(claim-{item.id})=") == 1
    row = next(line for line in page.splitlines() if line.startswith("| {ref}`P03 "))
    assert "| proved | {ref}`contradicted <disagreement-P03>` |" in row
    assert "{doc}`03 <../_pages/03_alphaedit_plus_lemmas>`" in row
    wanted = set(re.findall(r"<(disagreement-[A-Z][0-9]+)>", page))
    assert wanted == set(re.findall(r"\((disagreement-[A-Z][0-9]+)\)=", page))
    assert "disagreement-P01" in wanted


def test_the_counts_add_up(tmp_path):
    record(tmp_path / "results", "laptop", "03_alphaedit_plus_lemmas", LEMMAS)
    write_verdicts(tmp_path / "results", tmp_path / "verdicts.md")
    page = (tmp_path / "verdicts.md").read_text("utf-8")
    totals = next(line for line in page.splitlines() if line.startswith("| all |"))
    counts = [int(cell or 0) for cell in totals.split("|")[2:-1] for cell in [cell.strip()]]
    assert counts[-1] == sum(counts[:-1]) == sum(EXPECTED.values())
    summary = (tmp_path / "verdict_summary.txt").read_text("utf-8")
    assert f"| proved | {counts[0]} |" in summary
    assert counts[:2] == [3, 5]


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
