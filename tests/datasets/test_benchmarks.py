"""Readers of the field's benchmarks with harder questions: what is read, how it is told, what is refused."""

import copy
import json
import os
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
from palimpsest.errors import DataError, RequestError
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
    assert [claim.supported for claim in LongFormCase("a", request, "", passage, ()).claims][:1] == [True]
    assert not any(
        "Paris" in c.text and not c.supported for c in LongFormCase("a", request, "", child, ()).claims
    )


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


# What is refused


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


TWICE = [MQUAKE[0]["requested_rewrite"][0], MQUAKE[0]["requested_rewrite"][0] | {"target_new": {"str": "x"}}]
CASES: list[tuple[str, str, object, str]] = [
    ("mquake", "single_hops", [], "multi-hop case '1' has no hops; give the facts of its chain"),
    ("mquake", "single_hops", ..., "field 'single_hops' is missing"),
    ("mquake", "new_single_hops", [], "has no new_hops"),
    ("mquake", "requested_rewrite", [], "has no edits"),
    ("mquake", "questions", [" "], "has no questions"),
    (
        "mquake",
        "requested_rewrite",
        TWICE,
        "edits the answer of 'Anna Berg lives in' twice, to 'Sudland' and to 'x'",
    ),
    ("mquake", "requested_rewrite", {}, "field 'requested_rewrite' must be a list of objects, not {}"),
    ("mquake", "requested_rewrite.0.subject", ..., "field 'requested_rewrite.0.subject' is missing"),
    ("mquake", "requested_rewrite.0.target_new.str", "Norland", "are both 'Norland'"),
    (
        "mquake",
        "requested_rewrite.0.target_new",
        "x",
        "field 'requested_rewrite.0.target_new.str' is missing",
    ),
    ("mquake", "requested_rewrite.0.prompt", "She lives in", "occurs 0 times in prompt"),
    ("mquake", "single_hops.1.answer", 3, "field 'single_hops.1.answer' must be a text, not 3"),
    (
        "mquake",
        "single_hops.0.answer_alias",
        "x",
        "field 'single_hops.0.answer_alias' must be a list of texts",
    ),
    ("mquake", "questions", "Where?", "field 'questions' must be a list of texts, not 'Where?'"),
    ("mquake", "new_answer", None, "field 'new_answer' must be a text, not None"),
    ("mquake", "orig", 3, "field 'orig' must be an object, not 3"),
    (
        "mquake",
        "orig.triples_labeled",
        [["a", "b"]],
        "field 'orig.triples_labeled' must be a list of three texts",
    ),
    ("mquake", "case_id", 1.5, "field 'case_id' must be a text or a whole number, not 1.5"),
    ("mquake", "case_id", True, "must be a text or a whole number, not True"),
    ("ripple", "edit", ..., "field 'edit' is missing"),
    ("ripple", "edit.prompt", ["x"], "field 'edit.prompt' must be a text"),
    ("ripple", "edit.prompt", "Something", "names no object that can be told from the rest, 'Something'"),
    ("ripple", "edit.relation", ..., "names no subject that can be told"),
    ("ripple", "edit.original_fact.prompt", "Else is so.", "it must begin as the edit"),
    ("ripple", "Forgetfulness", ..., "field 'Forgetfulness' is missing"),
    ("ripple", "Relation_Specificity", ..., "field 'Relation_Specificity' is missing"),
    (
        "ripple",
        "Relation_Specificity.0.test_queries",
        [],
        "field 'Relation_Specificity.0.test_queries' is an empty list",
    ),
    (
        "ripple",
        "Relation_Specificity.0.test_condition",
        "XOR",
        "field 'Relation_Specificity.0.test_condition' must be OR or AND, not 'XOR'",
    ),
    (
        "ripple",
        "Relation_Specificity.0.test_queries.0.answers.0.value",
        3,
        "field 'Relation_Specificity.0.test_queries.0.answers.0.value' must be a text, not 3",
    ),
    (
        "ripple",
        "Compositionality_I.0.condition_queries.0.prompt",
        ...,
        "field 'Compositionality_I.0.condition_queries.0.prompt' is missing",
    ),
    ("knowedit", "target_new", "", "field 'target_new' must be a text, not ''"),
    (
        "knowedit",
        "locality.Relation_Specificity.1.prompt",
        ...,
        "'locality.Relation_Specificity.1.prompt' is missing",
    ),
    (
        "knowedit",
        "locality.Relation_Specificity.0.ground_truth",
        ...,
        "field 'locality.Relation_Specificity.0.ground_truth' is missing",
    ),
    (
        "knowedit",
        "portability.Reasoning.0.ground_truth",
        [[]],
        "'portability.Reasoning.0.ground_truth' holds no answer",
    ),
    (
        "knowedit",
        "portability.Reasoning.0.ground_truth",
        [[3]],
        "must be a text or lists of texts, not [[3]]",
    ),
    (
        "knowedit",
        "portability.Reasoning.0.prompt",
        ["a", 3],
        "'portability.Reasoning.0.prompt' must be a text or",
    ),
    ("knowedit", "portability", [1], "field 'portability' must be an object, not [1]"),
    ("wikibio", "concept", ..., "field 'concept' is missing"),
    (
        "leme",
        "coupled_prompts_and_properties",
        None,
        "field 'coupled_prompts_and_properties' must be an object",
    ),
    ("leme", "coupled_prompts_and_properties", ..., "field 'coupled_prompts_and_properties' is missing"),
    (
        "leme",
        "coupled_prompts_and_properties.coupled_entities",
        [],
        "field 'coupled_prompts_and_properties.coupled_entities' is an empty list",
    ),
    (
        "leme",
        "coupled_prompts_and_properties.subject_entity.ground_truth.No. of children",
        "two",
        "",
    ),
    (
        "multi-counterfact",
        "requested_rewrite.target_new.str",
        3,
        "'requested_rewrite.target_new.str' must be a text",
    ),
]


@pytest.mark.parametrize(("kind", "path", "value", "message"), CASES, ids=range(len(CASES)))
def test_faults_are_named_by_format_record_and_field(
    kind: str, path: str, value: object, message: str, tmp_path: Path
) -> None:
    read, records = READ[kind]
    if not message:  # names of properties have dots
        bad = copy.deepcopy(records[0])
        bad["coupled_prompts_and_properties"]["subject_entity"]["ground_truth"]["No. of children"] = value
        message = "ground_truth.No. of children' must be a list of texts, not 'two'"
    else:
        bad = broken(records[0], path, value)
    file = written(tmp_path, [records[1], bad])
    with pytest.raises(DataError) as error:
        read(file)
    text = str(error.value)
    assert str(file) in text
    assert message in text
    if kind != "multi-counterfact":
        name = {"mquake": "MQuAKE", "ripple": "RippleEdits", "leme": "LEME"}.get(kind, "KnowEdit")
        assert f"read as {name}: 1 malformed record:\n  record 2: " in text
        file.write_text("\n".join(map(json.dumps, [records[1], bad])))
        with pytest.raises(DataError, match="\n  line 2: "):
            read(file)
    loose = read(file, strict=False)
    assert len(loose.cases) == 1
    assert [fault.line for fault in loose.rejected] == [2]


def test_ids_repeat_and_long_lists_are_cut(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"25 malformed records:\n(.*\n)*  and 5 more\n"):
        load_mquake(written(tmp_path, [MQUAKE[0], *[MQUAKE[0]] * 25]))
    with pytest.raises(DataError, match="record 2: id '1' was already used at 1"):
        load_mquake(written(tmp_path, [MQUAKE[0]] * 2))
    with pytest.raises(DataError, match="holds no record of MQuAKE"):
        load_mquake(written(tmp_path, []))


@pytest.mark.parametrize("read", [*{reader for reader, _ in READ.values()}, load_any_set])
def test_a_pipe_is_refused_at_once(read: Reader, tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(DataError, match="is a pipe and no file"):
        read(path)


@pytest.mark.parametrize("read", [*{reader for reader, _ in READ.values()}, load_any_set])
@pytest.mark.parametrize(
    "content", [b"\x00\xff\xfe", b"[" * 100_000, b'[{"case_id": NaN}]', b"[1, null, {}]"]
)
def test_crafted_files_are_refused(read: Reader, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "crafted"
    path.write_bytes(content)
    with pytest.raises(DataError):
        read(path)


def test_cases_that_cannot_be() -> None:
    request = EditRequest("{} lives in", "Anna", "Rome")
    for answers in ((), ((),), ((" ",),)):
        with pytest.raises(RequestError, match="give it a text and one or more groups"):
            Query("Where?", answers)
    with pytest.raises(RequestError, match="a ripple test has no query"):
        RippleTest(())
    with pytest.raises(RequestError, match="ripple case 'a' has tests of 'charm'; choose from logical_gen"):
        RippleCase("a", request, "", {"charm": ()})


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
