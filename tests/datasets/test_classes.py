"""Classes of relations: complete, disjoint, and refused where a case has none."""

from dataclasses import replace
from pathlib import Path

import pytest

from palimpsest.datasets.cases import counterfact_style
from palimpsest.datasets.classes import load_classes
from palimpsest.datasets.facts import load_facts
from palimpsest.errors import DataError

HEAD = "relation,name,class,reason\n"


def test_every_relation_has_one_class_under_its_own_name() -> None:
    classes, own = load_classes(), load_facts()
    assert set(own.relations) <= set(classes.of)
    assert {name: classes.names[name] for name in own.relations} == {
        name: relation.name for name, relation in own.relations.items()
    }
    assert all(classes.reasons.values())


def test_grouping_loses_no_case_and_moves_none() -> None:
    classes, cases = load_classes(), counterfact_style(load_facts(), split="test")
    groups = classes.grouped(cases)
    assert sorted(case.id for some in groups.values() for case in some) == sorted(case.id for case in cases)
    assert list(groups) == [name for name in classes.all() if name in groups]
    for name, some in groups.items():
        assert {classes.of[case.relation] for case in some} == {name}
        assert some == [case for case in cases if case in some]


def test_what_has_no_fact_here_is_told() -> None:
    """CounterFact has 34 relations; those that the provenance of the facts says were left out are missing."""
    classes = load_classes()
    assert len(classes.of) == 34
    assert classes.missing(list(load_facts().relations)) == {
        "city": ("twin city",),
        "organisation": ("record label", "member of"),
        "namesake": ("named after",),
    }
    assert classes.missing(list(classes.of)) == {}


def test_a_case_without_a_class_is_named() -> None:
    case = replace(counterfact_style(load_facts(), 1)[0], relation="P9")
    with pytest.raises(DataError, match=r"1 of 1 cases have no class.*P9"):
        load_classes().grouped([case])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("relation,class\nP1,city\n", "columns must be"),
        (f"{HEAD}P1,birth,city\n", "four texts"),
        (f"{HEAD}P1,birth, ,why\n", "four texts"),
        (f"{HEAD}P1,birth,city,why\nP1,birth,sport,why\n", "'P1' has two rows"),
    ],
)
def test_a_malformed_file_is_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "classes.csv"
    file.write_text(content)
    with pytest.raises(DataError, match=message):
        load_classes(file)
