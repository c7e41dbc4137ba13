"""Rules about formulas and printed numbers: one test for each, with every label that it can give."""

import pytest

from palimpsest.errors import DataError
from palimpsest.results.claims import KINDS
from palimpsest.results.printed_audit import Audit, Rows, agreement
from palimpsest.results.rules import (
    LABELS,
    UNTESTED,
    Absent,
    Bias,
    Bound,
    Counterexample,
    Identity,
    Misprint,
    Readings,
)
from tests.results.made_up import entry, label


def test_identity():
    rule = Identity(values=("a", "b"), tolerance=1e-8)
    assert label(rule, a=1e-12, b=-1e-8) == "verified numerically"
    assert label(rule, a=1e-12, b=-1.01e-8) == "wrong as printed"


def test_bound():
    rule = Bound(violations="v", tightness="t")
    assert label(rule, v=0, t=0.99) == "verified numerically"
    assert label(rule, v=1, t=1.2) == "wrong as printed"
    assert "0.99" in rule.judge({"v": entry(0), "t": entry(0.99)}).reason


@pytest.mark.parametrize(("kind", "wrong"), [(Misprint, "wrong as printed"), (Bias, "biased")])
def test_misprint_and_bias(kind, wrong):
    rule = kind(printed=("p",), corrected=("c",), tolerance=1e-8, floor=1e-3)
    assert label(rule, p=0.5, c=1e-12) == wrong
    assert label(rule, p=-1e-3, c=1e-8) == wrong
    assert label(rule, p=1e-8, c=1e-12) == "verified numerically"
    assert label(rule, p=1e-5, c=1e-12) == "undecided"
    assert label(rule, p=0.5, c=1e-6) == "undecided"
    assert "the check is in doubt" in rule.judge({"p": entry(0.5), "c": entry(1e-6)}).reason


def test_counterexample():
    rule = Counterexample(value="gap", floor=1e-3, corrected=("v",), tolerance=0)
    assert label(rule, gap=1e-3, v=0) == "wrong as printed"
    assert label(rule, gap=9e-4, v=0) == "undecided"
    assert label(rule, gap=0.5, v=1) == "undecided"
    assert "the corrected form fails too" in rule.judge({"gap": entry(0.5), "v": entry(1)}).reason


def test_absent():
    rule = Absent(what="carried over", effect="e", exact=("x",), tolerance=1e-8)
    assert label(rule, e=0, x=1e-12) == "wrong as printed"
    assert label(rule, e=0.1, x=1e-12) == "reproduced"
    assert label(rule, e=0, x=0.1) == "undecided"
    assert rule.judge({"e": entry(0), "x": entry(0)}).reason == "carried over: 0"


def test_readings():
    rule = Readings(measured="m", claimed="c", margin=0.1)
    assert label(rule, m=0.04, c=0.95) == "opposite here"
    assert label(rule, m=0.9, c=0.95) == "reproduced"
    assert label(rule, m=entry(0.5, 0.2, 0.9), c=entry(0.95, 0.9, 1)) == "undecided"


def check(id_, agrees, paper="alphaedit"):
    return {"id": id_, "paper": paper, "agrees": agrees}


def test_audit():
    rows = Rows(prefixes=("AA",))
    yes, no = [check(f"AA{i}", "yes") for i in range(9)], [check("AA9", "no")]
    assert Audit(rows=rows, share=0.9).judge(yes + no).label == "reproduced"
    assert Audit(rows=rows, share=0.95).judge(yes + no).label == "direction only"
    assert Audit(rows=rows).judge(yes[:1] + no).label == "direction only"
    assert Audit(rows=rows).judge(no).label == "opposite here"
    corrected = Audit(rows=rows, corrected=Rows(prefixes=("BB",)))
    assert corrected.judge([*no, check("BB1", "yes")]).label == "wrong as printed"
    assert corrected.judge([*no, check("BB1", "no")]).label == "opposite here"


def test_audit_ignores_what_cannot_be_checked_and_keeps_to_pairs_when_asked():
    rows = [check("SH1", "yes", "a / b"), check("SH2", "no"), check("SH3", "not checkable", "a / b")]
    assert agreement(rows) == (1, 2)
    picked = Rows(prefixes=("SH",), between_papers=True).pick(rows)
    assert [row["id"] for row in picked] == ["SH1", "SH3"]


def test_audit_selections_that_find_nothing_are_refused():
    with pytest.raises(DataError, match=r"no row ZZ1; see data/published/audit\.csv"):
        Rows(ids=("ZZ1",)).pick([check("AA1", "yes")])
    with pytest.raises(DataError, match="any row of that selection"):
        Rows(prefixes=("ZZ",)).pick([check("AA1", "yes")])


def test_every_label_has_a_meaning_and_every_kind_its_name():
    assert all(LABELS.values())
    assert UNTESTED in LABELS
    assert len(KINDS) == len(set(KINDS)) == 12
