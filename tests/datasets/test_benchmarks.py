"""Readers of the field's benchmarks with harder questions: what is read, how it is told, what is refused."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from palimpsest.datasets import (
    conflicts,
    load_any_set,
    load_cases_of,
    load_knowedit,
    load_labels,
    load_leme,
    load_mquake,
    load_multi_counterfact,
    load_ripple_edits,
)
from palimpsest.datasets.any_set import READERS
from palimpsest.datasets.harder_cases import (
    Hop,
    LongFormCase,
    MultiHopCase,
    Passage,
    Query,
    RippleCase,
    RippleTest,
)
from palimpsest.datasets.mquake import to_mquake
from palimpsest.datasets.ripple_edits import to_ripple_edits
from palimpsest.datasets.set_formats import TOLD, set_format
from palimpsest.errors import DataError
from palimpsest.types import EditRequest, Probe
from tests.datasets.benchmark_records import (
    KNOWEDIT,
    LEME,
    MQUAKE,
    MULTI_COUNTERFACT,
    RIPPLE,
    WIKIBIO,
    Raw,
)
from tests.datasets.test_any_format import COUNTERFACT, EASYEDIT, OWN, ZSRE

Reader = Callable[..., Any]
READ: dict[str, tuple[Reader, list[Raw]]] = {
    "mquake": (load_mquake, MQUAKE),
    "ripple": (load_ripple_edits, RIPPLE),
    "knowedit": (load_knowedit, KNOWEDIT),
    "wikibio": (load_knowedit, WIKIBIO),
    "leme": (load_leme, LEME),
    "multi-counterfact": (load_multi_counterfact, MULTI_COUNTERFACT),
}


def written(folder: Path, records: object) -> Path:
    path = folder / "set.json"
    path.write_text(json.dumps(records))
    return path


@pytest.mark.parametrize(("read", "records"), READ.values(), ids=READ)
def test_three_records_are_three_cases_in_a_list_and_in_lines(
    read: Reader, records: list[Raw], tmp_path: Path
) -> None:
    loaded = read(written(tmp_path, records))
    assert len(loaded.cases) == 3
    assert not loaded.rejected
    lines = tmp_path / "set.jsonl"
    lines.write_text("\n".join(map(json.dumps, records)))
    assert list(read(lines).cases) == list(loaded.cases)
    assert len({case.id for case in loaded.cases}) == 3


def broken(record: Raw, path: str, value: object = ...) -> Raw:
    """A copy whose field has another value, or is gone."""
    changed: Any = copy.deepcopy(record)
    *way, last = [int(step) if step.isdigit() else step for step in path.split(".")]
    inner = changed
    for step in way:
        inner = inner[step]
    if value is ...:
        del inner[last]
    else:
        inner[last] = value
    return changed


# What is read


def test_mquake(tmp_path: Path) -> None:
    first, second, third = load_mquake(written(tmp_path, MQUAKE)).cases
    assert first.edits[0].request == EditRequest("{} lives in", "Anna Berg", "Sudland", "1/0")
    assert (first.edits[0].target_true, first.edits[0].relation) == ("Norland", "P551")
    assert first.before[2] == Query(MQUAKE[0]["questions"][2], (("Altstadt", "Old Town"),))
    assert [query.answers for query in first.after] == [(("Neustadt",),)] * 3
    assert first.hops[1] == Hop(
        "What is the capital of Norland?", "The capital of Norland is", "Altstadt", ("Old Town",)
    )
    assert first.new_triples == (("Anna Berg", "residence", "Sudland"), ("Sudland", "capital", "Neustadt"))
    assert [edit.request.subject for edit in second.edits] == ["Ben Hall", "Sudland"]
    assert (second.triples, second.id) == ((), "2")
    assert third.before[0].answers == (("Dan Ek", "Eva Falk"),)
    assert (third.id, third.edits[0].query) == ("t-3", Query("The mayor of Altstadt is", (("Cleo Dahl",),)))


def test_conflicts_are_edits_in_the_way_of_other_cases(tmp_path: Path) -> None:
    cases = load_mquake(written(tmp_path, MQUAKE)).cases
    assert conflicts(cases) == [("2", "1", "The capital of Sudland is")]
    assert conflicts(cases[1:]) == []
    other = copy.deepcopy(MQUAKE[0])
    other["case_id"], other["requested_rewrite"][0]["target_new"] = 9, {"str": "Westland"}
    pair = load_mquake(written(tmp_path, [MQUAKE[0], other])).cases
    assert ("9", "1", "Anna Berg lives in") in conflicts(pair)


def test_ripple_edits(tmp_path: Path) -> None:
    first, second, third = load_ripple_edits(written(tmp_path, RIPPLE)).cases
    prompt = "The name of the country of citizenship of {} is"
    assert first.request == EditRequest(prompt, "Anna Berg", "Sudland", "0")
    assert (first.target_true, first.kind, first.relation) == (
        "Norland",
        "popular",
        "COUNTRY_OF_CITIZENSHIP",
    )
    father = Query("The name of the father of Anna Berg is", (("Carl Berg", "C. Berg"),))
    assert first.tests["relation_specificity"] == (RippleTest((father,), (father,)),)
    assert set(first.tests) == {"relation_specificity", "compositionality_1"}
    assert second.request.subject == "Ben Hall"
    assert second.request.target == "the Order of Lamps"
    (siblings,) = second.tests["logical_generalisation"]  # the test without an answer is left out
    assert siblings.every
    assert siblings.queries[0].answers == (("Eli",), ("Fay", "F. Hall"))
    assert siblings.queries[1].answers == (("3",),)
    assert (second.target_true, third.target_true) == ("", "Who Was There")
    assert (third.request.text, third.request.target) == ("Low Tide is followed by", "Who Is There")
    assert set(third.tests) == {"preservation"}


def test_names_are_taken_from_labels(tmp_path: Path) -> None:
    record = copy.deepcopy(RIPPLE[0])
    record["edit"]["prompt"] = "The Duke of Norland Is is born in Is Place."
    del record["edit"]["original_fact"]
    path = written(tmp_path, [record])
    with pytest.raises(DataError, match="names no subject that can be told from the rest"):
        load_ripple_edits(path)
    file = tmp_path / "labels.json"
    file.write_text(json.dumps({"The Duke of Norland Is": "Q3", "Is Place": "Q1"}))
    (case,) = load_ripple_edits(path, labels=load_labels(file)).cases
    assert (case.request.subject, case.request.target) == ("The Duke of Norland Is", "Is Place")
    file.write_text('{"x": 3}')
    with pytest.raises(DataError, match="field 'x' must be an identifier, not 3"):
        load_labels(file)


def test_the_readmes_spelling_is_read(tmp_path: Path) -> None:
    other = dict(RIPPLE[0])
    other["Relation_Specifity"] = other.pop("Relation_Specificity")
    assert (
        load_ripple_edits(written(tmp_path, [other])).cases
        == load_ripple_edits(written(tmp_path, RIPPLE[:1])).cases
    )


def test_knowedit(tmp_path: Path) -> None:
    recent, counterfact, zsre = load_knowedit(written(tmp_path, KNOWEDIT)).cases
    assert [case.kind for case in (recent, counterfact, zsre)] == ["wiki_recent", "wiki_counterfact", "ZsRE"]
    assert recent.request.text == KNOWEDIT[0]["prompt"]
    assert recent.tests["logical_generalisation"][0].queries[0].answers == (("no", "she is dead"),)
    assert recent.tests["reasoning"][0].queries[0].answers == (("Sudland", "South Land"),)
    assert len(recent.tests["relation_specificity"]) == 2
    assert (recent.target_true, counterfact.target_true, zsre.target_true) == (
        "",
        "mayor of Altstadt",
        "Sudfolia",
    )
    assert set(counterfact.tests) == {"subject_aliasing", "preservation"}
    assert zsre.paraphrases == ("What family is Falkia alba?",)
    biography = load_knowedit(written(tmp_path, WIKIBIO)).cases[0]
    assert (biography.kind, biography.request.subject) == ("WikiBio", "cleo dahl")
    assert biography.request.target == WIKIBIO[0]["labels"]


def test_leme(tmp_path: Path) -> None:
    first, second, third = load_leme(written(tmp_path, LEME)).cases
    assert first.passage == Passage(
        "Anna Berg",
        "Write about Anna Berg.",
        {"native language": ("Norish",), "No. of children": ("two",)},
    )
    assert first.related == (Passage("Carl Berg", "Write about Carl Berg.", {"parent": ("Anna Berg",)}),)
    assert (first.id, first.relation, first.neighbours) == (
        "0",
        "P103",
        (Probe("Gil Hart was raised in", "Norish"),),
    )
    assert second.request.text == "What is the mother tongue of Ben Hall?"
    assert (second.id, second.request.target, second.target_true) == ("1", "Norish", "Sudish")
    assert third.related[0].entity == "Dan Ek"


def test_claims_of_a_long_text() -> None:
    request = EditRequest("{} lives in", "Anna", "Rome")
    passage = Passage("Anna", "?", {"home": ("Paris",), "job": ("judge",), "born in": ("Paris", "Bonn")})
    child, fellow = Passage("Ben", "?", {"mother": ("Anna",)}), Passage("Cleo", "?", {"home": ("Paris",)})
    case = LongFormCase("a", request, "Paris", passage, (child, fellow), edited="home")
    assert [(claim.passage, claim.text, claim.supported) for claim in case.claims] == [
        ("Anna", "Anna lives in Rome", True),
        ("Anna", "Anna lives in Paris", False),
        ("Ben", "Anna lives in Rome", True),
        ("Ben", "Anna lives in Paris", False),
        ("Cleo", "Anna lives in Paris", False),
        ("Anna", "Anna, job: judge", True),
        ("Anna", "Anna, born in: Bonn", True),
        ("Ben", "Ben, mother: Anna", True),
        ("Cleo", "Cleo, home: Paris", True),
    ]
    unknown = LongFormCase("a", request, "", child, ())
    assert all(claim.supported for claim in unknown.claims)


def test_multi_counterfact_has_no_fact_with_two_new_objects(tmp_path: Path) -> None:
    other = copy.deepcopy(MULTI_COUNTERFACT[0])
    other["case_id"], other["requested_rewrite"]["target_new"]["str"] = 7, "Westish"
    path = written(tmp_path, [*MULTI_COUNTERFACT, other])
    with pytest.raises(DataError, match=r"line 4: .*'Westish', but to 'Sudish' in record 1 \(case_id '0'\)"):
        load_multi_counterfact(path)
    loaded = load_multi_counterfact(path, strict=False)
    assert [case.id for case in loaded.cases] == ["0", "1", "2"]
    assert [fault.line for fault in loaded.rejected] == [4]
    same = [*MULTI_COUNTERFACT, MULTI_COUNTERFACT[0] | {"case_id": 7}]
    assert len(load_multi_counterfact(written(tmp_path, same)).cases) == 4


# How formats are told


def test_every_format_is_told_and_has_a_reader() -> None:
    assert list(READERS) == list(TOLD)
    by_format = {"MQuAKE": MQUAKE, "RippleEdits": RIPPLE, "LEME": LEME, "KnowEdit": [*KNOWEDIT, *WIKIBIO]}
    for name, records in by_format.items():
        assert [set_format(record) for record in records] == [name] * len(records)
    plain = (OWN, EASYEDIT, COUNTERFACT, ZSRE, *MULTI_COUNTERFACT)
    assert {set_format(record) for record in plain} == {""}


@pytest.mark.parametrize(
    ("records", "name", "kind"),
    [
        (MQUAKE, "MQuAKE", MultiHopCase),
        (RIPPLE, "RippleEdits", RippleCase),
        (KNOWEDIT, "KnowEdit", RippleCase),
        (WIKIBIO, "KnowEdit", RippleCase),
        (LEME, "LEME", LongFormCase),
    ],
)
def test_a_file_is_read_by_its_content(records: list[Raw], name: str, kind: type, tmp_path: Path) -> None:
    loaded = load_any_set(written(tmp_path, records))
    assert loaded.format == name
    assert {type(case) for case in loaded.cases} == {kind}


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([COUNTERFACT], r"holds plain facts \(CounterFact\); read it with palimpsest.datasets.load_cases_of"),
        ([{"a": 1, "b": 2}], "a record of no known format: it has 'a', 'b'; known are MQuAKE, RippleEdits"),
        ([{}], "it has no fields"),
        ([3], "a record must be a JSON object, not int"),
        ([], "holds no record"),
    ],
)
def test_a_file_of_no_benchmark(records: list[Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        load_any_set(written(tmp_path, records))


@pytest.mark.parametrize(
    ("record", "name"), [(MQUAKE[0], "MQuAKE"), (RIPPLE[0], "RippleEdits"), (WIKIBIO[0], "KnowEdit")]
)
def test_readers_of_plain_facts_name_them(record: Raw, name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"a record of {name}, which is more than one plain fact; read the"):
        load_cases_of(written(tmp_path, [record]))


def test_plain_facts_of_knowedit_and_leme_are_still_read(tmp_path: Path) -> None:
    assert len(load_cases_of(written(tmp_path, KNOWEDIT)).cases) == 3
    assert len(load_cases_of(written(tmp_path, [LEME[0], LEME[2]])).cases) == 2


def test_what_ripple_edits_has_no_field_for(tmp_path: Path) -> None:
    recent, _, zsre = load_knowedit(written(tmp_path, KNOWEDIT)).cases
    with pytest.raises(DataError, match="case '0' has tests of 'reasoning', for which RippleEdits"):
        to_ripple_edits(recent)
    with pytest.raises(DataError, match="case '2' has paraphrases"):
        to_ripple_edits(RippleCase(zsre.id, zsre.request, "", {}, paraphrases=zsre.paraphrases))


def test_records_without_a_relation_are_written_without_it(tmp_path: Path) -> None:
    record = broken(MQUAKE[0], "requested_rewrite.0.relation_id")
    (case,) = load_mquake(written(tmp_path, [record])).cases
    assert load_mquake(written(tmp_path, [to_mquake(case)])).cases == (case,)
