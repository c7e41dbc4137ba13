"""Wordings of facts: from a file, or the six levels of the sentence the fact was written with."""

import json
from pathlib import Path

import pytest

from palimpsest.datasets import counterfact_style, load_facts, zsre_style
from palimpsest.datasets.facts import FactSet
from palimpsest.datasets.levels import level_wordings
from palimpsest.datasets.wordings import load_wordings, wordings_of
from palimpsest.errors import DataError
from palimpsest.types import EditRequest

FACT = {"id": "a", "prompt": "{} is in", "subject": "Rome", "target": "Spain"}


@pytest.fixture(scope="module")
def facts() -> FactSet:
    return load_facts()


def test_facts_written_with_a_sentence_of_the_set_have_its_six_levels(facts: FactSet) -> None:
    for cases in (counterfact_style(facts, 8), zsre_style(facts, 8)):
        assert wordings_of([case.request for case in cases], facts) == level_wordings(cases)


def test_a_file_comes_first_and_gives_its_subject(facts: FactSet, tmp_path: Path) -> None:
    case = counterfact_style(facts, 1)[0]
    path = tmp_path / "facts.jsonl"
    path.write_text(json.dumps(FACT | {"wordings": ["Where is {}? In", "It lies in"]}))
    given = load_wordings(path)
    assert given == {"a": ("Where is Rome? In", "It lies in")}
    found = wordings_of([EditRequest("{} is in", "Rome", "Spain", "a"), case.request], facts, given)
    assert found == given | level_wordings([case])


def test_what_has_no_wordings(facts: FactSet, tmp_path: Path) -> None:
    known = counterfact_style(facts, 1)[0].request
    message = r"1 of 2 facts have no wordings, first 'Rome is in': its prompt '{} is in' is no sentence of"
    with pytest.raises(DataError, match=message):
        wordings_of([known, EditRequest("{} is in", "Rome", "Spain")], facts)
    path = tmp_path / "facts.jsonl"
    lines = [FACT, FACT | {"id": "b", "wordings": ["{} is"]}, FACT | {"id": "c", "wordings": ["x", "x"]}]
    path.write_text("\n".join(map(json.dumps, lines)))
    with pytest.raises(DataError) as refused:
        load_wordings(path)
    assert "line 1: field 'wordings' is missing" in str(refused.value)
    for line, own in ((2, ["{} is"]), (3, ["x", "x"])):
        wanted = f"line {line}: field 'wordings' must hold two or more different texts, not {own!r}"
        assert wanted in str(refused.value)
    assert str(refused.value).endswith("correct the file; nothing was asked")
