"""Cases in the style of CounterFact and ZsRE, and the loaders of the original schemas."""

import json
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from palimpsest.datasets import (
    Fact,
    FactSet,
    counterfact_style,
    load_counterfact,
    load_facts,
    load_zsre,
    split_of,
    to_counterfact,
    to_zsre,
    zsre_style,
)
from palimpsest.errors import DataError, UnknownNameError
from palimpsest.files import file_sha256
from palimpsest.types import EditRequest, EvalCase, Probe
from tests.datasets.originals import original

Style = Callable[..., list[EvalCase]]
FEW = ["P36", "P103", "P127", "P1303"]
both_styles = pytest.mark.parametrize("style", [counterfact_style, zsre_style])


@pytest.fixture(scope="module")
def facts() -> FactSet:
    return load_facts()


@pytest.fixture(scope="module")
def cases(facts: FactSet) -> list[EvalCase]:
    return counterfact_style(facts, seed=3)


@pytest.fixture(scope="module")
def questions(facts: FactSet) -> list[EvalCase]:
    return zsre_style(facts, seed=3)


@pytest.fixture(scope="module")
def truth(facts: FactSet) -> dict[tuple[str, str], str]:
    """Prompt of every statement and question -> true object, for looking probes up."""
    return {
        (fact.relation, template.replace("{}", fact.subject)): fact.object
        for fact in facts.facts
        for relation in [facts.relations[fact.relation]]
        for template in (*relation.statements, *relation.questions)
    }


# --- draws ------------------------------------------------------------------------------------


@both_styles
def test_more_cases_begin_with_the_fewer(facts: FactSet, style: Style) -> None:
    long = style(facts, 40, 7, relations=FEW)
    assert len(long) == 40
    for k in (1, 13, 39):
        assert style(facts, k, 7, relations=FEW) == long[:k]


@both_styles
def test_the_seed_decides(facts: FactSet, style: Style) -> None:
    first = style(facts, 30, 7, relations=FEW)
    assert style(facts, 30, 7, relations=FEW) == first
    assert style(facts, 30, 8, relations=FEW) != first


@both_styles
def test_splits_share_no_subject_nor_probe(facts: FactSet, style: Style) -> None:
    test, validation = (style(facts, split=s, relations=FEW) for s in ("test", "validation"))
    assert {split_of(case.request.subject) for case in test} == {"test"}
    assert {split_of(case.request.subject) for case in validation} == {"validation"}
    seen = {probe.prompt for case in test for probe in case.neighbours}
    assert not seen & {probe.prompt for case in validation for probe in case.neighbours}


def test_case_ids_are_unique_and_cases_span_the_relations(
    facts: FactSet, cases: list[EvalCase], questions: list[EvalCase]
) -> None:
    for every in (cases, questions):
        assert len(every) >= 1500
        assert len({case.id for case in every}) == len(every)
        assert {case.relation for case in every} == set(facts.relations)


def test_all_is_the_union_of_the_splits(facts: FactSet) -> None:
    every, test, validation = (
        {case.id for case in zsre_style(facts, split=s, relations=FEW)} for s in ("all", "test", "validation")
    )
    assert test | validation == every
    assert len(test) + len(validation) == len(every)


def test_both_styles_edit_the_same_facts_to_the_same_objects(facts: FactSet) -> None:
    stated = counterfact_style(facts, 20, 5, relations=FEW, min_neighbours=0)
    asked = zsre_style(facts, 20, 5, relations=FEW)
    pairs = [[(case.id, case.request.target) for case in cases] for cases in (stated, asked)]
    assert pairs[0] == pairs[1]


@both_styles
def test_relations_can_be_chosen(facts: FactSet, style: Style) -> None:
    chosen = style(facts, 10, 0, relations=["P36", "P103"])
    assert {case.relation for case in chosen} == {"P36", "P103"}


@both_styles
def test_impossible_requests_say_what_is_possible(facts: FactSet, style: Style) -> None:
    with pytest.raises(DataError, match=r"5000 cases were asked for, but split 'test' .* gives 1"):
        style(facts, 5000, relations=FEW)
    with pytest.raises(DataError, match="0 cases were asked for; ask for at least 1"):
        style(facts, 0)
    with pytest.raises(UnknownNameError, match="unknown split 'train'"):
        style(facts, 1, split="train")


# --- content of CounterFact-style cases ---------------------------------------------------------


def test_new_object_belongs_to_the_relation_and_is_not_true(facts: FactSet, cases: list[EvalCase]) -> None:
    for case in cases:
        assert case.request.target in facts.objects[case.relation]
        assert case.request.target != case.target_true
        assert case.request.target not in facts.known_objects[case.request.subject]
        for text in (case.request.text, *case.paraphrases):
            assert case.request.target not in text
            assert case.target_true not in text


def of_hand(facts: FactSet, *rows: tuple[str, str, str]) -> FactSet:
    """A set of the given facts with the project's relations."""
    triples = tuple(Fact(*row) for row in rows)
    return FactSet(triples, {name: facts.relations[name] for name in ("P103", "P1412")}, "")


def test_objects_true_elsewhere_or_seen_in_the_name_are_never_drawn(facts: FactSet) -> None:
    # Of Dutch, French, Greek and Thai, only Thai is neither true of Greek Ada nor in her name.
    own = of_hand(
        facts,
        ("Greek Ada", "P103", "Dutch"),
        ("Greek Ada", "P1412", "French"),
        ("Bo", "P103", "French"),
        ("Cy", "P103", "Greek"),
        ("Di", "P103", "Thai"),
    )
    for seed in range(12):
        cases = counterfact_style(own, seed=seed, split="all", min_neighbours=0)
        (target,) = (c.request.target for c in cases if c.id == "P103:Greek Ada")
        assert target == "Thai"


def test_unrelated_question_is_about_someone_else(facts: FactSet) -> None:
    own = of_hand(
        facts,
        ("Ada", "P103", "Dutch"),
        ("Ada", "P1412", "French"),
        ("Bo", "P103", "Greek"),
        ("Cy", "P1412", "Thai"),
        ("Ada Lovelace", "P1412", "Latin"),
    )
    for seed in range(12):
        cases = zsre_style(own, seed=seed, split="all", relations=["P103", "P1412"])
        (probe,) = (c.neighbours[0] for c in cases if c.id == "P103:Ada")
        assert probe == Probe("Which language does Cy speak?", "Thai")


def test_new_objects_are_spread_evenly(facts: FactSet) -> None:
    # P103 has twelve objects or more; an even draw gives none of them a third of the cases.
    drawn = Counter(c.request.target for c in counterfact_style(facts, relations=["P103"]))
    assert set(drawn) == set(facts.objects["P103"])
    assert max(drawn.values()) < drawn.total() / 3


def test_neighbours_share_relation_and_object_but_not_the_subject(
    cases: list[EvalCase], truth: dict[tuple[str, str], str]
) -> None:
    for case in cases:
        assert 1 <= len(case.neighbours) <= 10
        assert len({probe.prompt for probe in case.neighbours}) == len(case.neighbours)
        for probe in case.neighbours:
            assert probe.target == case.target_true == truth[case.relation, probe.prompt]
            assert case.request.subject not in probe.prompt
            assert not probe.prompt.endswith("?")


def test_neighbour_limits_hold(facts: FactSet) -> None:
    few = counterfact_style(facts, relations=FEW, max_neighbours=2)
    assert {len(case.neighbours) for case in few} == {1, 2}
    many = counterfact_style(facts, relations=FEW, min_neighbours=8)
    assert {len(case.neighbours) for case in many} == {8, 9, 10}
    none = counterfact_style(facts, relations=FEW, min_neighbours=0)
    assert len(none) == len(facts.select("test", FEW))


def test_case_carries_all_rewordings(facts: FactSet, cases: list[EvalCase]) -> None:
    for case in cases[:50]:
        relation, subject = facts.relations[case.relation], case.request.subject
        assert case.request.prompt == relation.prompt
        assert case.paraphrases == tuple(t.replace("{}", subject) for t in relation.paraphrases)
        assert list(case.perturbations) == [1, 2, 3, 4, 5, 6]
        assert case.perturbations[4] == (relation.perturbations[4][0].replace("{}", subject),)


# --- content of ZsRE-style cases ----------------------------------------------------------------


def test_zsre_cases_ask_questions(questions: list[EvalCase], truth: dict[tuple[str, str], str]) -> None:
    objects = {prompt: (relation, true) for (relation, prompt), true in truth.items()}
    for case in questions:
        ((reworded,), (probe,)) = case.paraphrases, case.neighbours
        assert case.request.text.endswith("?")
        assert reworded.endswith("?")
        assert reworded != case.request.text
        assert truth[case.relation, reworded] == case.target_true != case.request.target
        relation, true = objects[probe.prompt]
        assert relation != case.relation
        assert probe.target == true
        assert true not in (case.target_true, case.request.target)
        assert case.request.subject not in probe.prompt


def test_zsre_target_answer_writes_the_true_object(facts: FactSet) -> None:
    alt, answer = (zsre_style(facts, 30, 1, relations=FEW, target=t) for t in ("alt", "answer"))
    assert [case.target_true for case in alt] == [case.request.target for case in answer]
    assert {case.target_true for case in answer} == {""}
    with pytest.raises(UnknownNameError, match="unknown ZsRE target 'true'; choose one of: alt, a"):
        zsre_style(facts, 1, target="true")


# --- round trips --------------------------------------------------------------------------------


@pytest.mark.parametrize("lines", [True, False], ids=["jsonl", "json"])
def test_counterfact_round_trip(tmp_path: Path, cases: list[EvalCase], lines: bool) -> None:
    some = cases[:300]
    loaded = load_counterfact(write(tmp_path, [to_counterfact(case) for case in some], lines))
    assert loaded.cases == some
    assert loaded.rejected == []


@pytest.mark.parametrize("target", ["alt", "answer"])
def test_zsre_round_trip(tmp_path: Path, facts: FactSet, target: str) -> None:
    cases = zsre_style(facts, 60, 2, relations=FEW, target=target)
    path = write(tmp_path, [to_zsre(case) for case in cases], lines=False)
    assert load_zsre(path, target).cases == cases


def test_file_sha256_is_sha256_of_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    digest = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert file_sha256(path) == digest


def write(folder: Path, records: list[Any], lines: bool = True) -> Path:
    path = folder / ("records.jsonl" if lines else "records.json")
    path.write_text("\n".join(map(json.dumps, records)) if lines else json.dumps(records))
    return path


# --- the original schemas, by hand --------------------------------------------------------------

COUNTERFACT: dict[str, Any] = {
    "case_id": 17,
    "requested_rewrite": {
        "prompt": "{} was born in",
        "relation_id": "P19",
        "target_new": {"str": "Oslo", "id": "Q585"},
        "target_true": {"str": "Rome", "id": "Q220"},
        "subject": "Ada",
    },
    "paraphrase_prompts": ["The birthplace of Ada is"],
    "neighborhood_prompts": ["Bo was born in", "Cy was born in"],
    "generation_prompts": ["Ada lived"],
}
ZSRE: dict[str, Any] = {
    "subject": "Ada",
    "src": "Where was Ada born?",
    "pred": "Bonn",
    "rephrase": "What is the birthplace of Ada?",
    "alt": "Oslo",
    "answers": ["Rome", "Roma"],
    "loc": "nq question: who wrote hamlet",
    "loc_ans": "Shakespeare",
    "cond": "Bonn >> Oslo || Where was Ada born?",
}


def test_counterfact_record_becomes_this_case(tmp_path: Path) -> None:
    assert load_counterfact(write(tmp_path, [COUNTERFACT])).cases == [
        EvalCase(
            id="17",
            request=EditRequest("{} was born in", "Ada", "Oslo", "17"),
            target_true="Rome",
            paraphrases=("The birthplace of Ada is",),
            neighbours=(Probe("Bo was born in", "Rome"), Probe("Cy was born in", "Rome")),
            relation="P19",
        )
    ]


def test_zsre_record_becomes_this_case(tmp_path: Path) -> None:
    path = write(tmp_path, [ZSRE], lines=False)
    common: dict[str, Any] = {
        "id": "0",
        "paraphrases": ("What is the birthplace of Ada?",),
        "neighbours": (Probe("who wrote hamlet?", "Shakespeare"),),
    }
    question = "Where was {} born?"
    alt = EvalCase(request=EditRequest(question, "Ada", "Oslo", "0"), target_true="Rome", **common)
    answer = EvalCase(request=EditRequest(question, "Ada", "Rome", "0"), target_true="", **common)
    assert load_zsre(path).cases == [alt]
    assert load_zsre(path, target="answer").cases == [answer]


def changed(record: dict[str, Any], field: str, value: Any) -> dict[str, Any]:
    """A copy with one member (dots reach into nested ones) replaced, or removed for None."""
    copy = json.loads(json.dumps(record))
    *path, last = field.split(".")
    inner = copy
    for step in path:
        inner = inner[step]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return copy


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("requested_rewrite", None, "field 'requested_rewrite.target_true.str' is missing"),
        ("requested_rewrite.subject", None, "field 'requested_rewrite.subject' is missing"),
        ("requested_rewrite.target_new.str", " ", "'requested_rewrite.target_new.str' must be a text"),
        ("requested_rewrite.target_new.str", "Rome", "target_new and target_true are the same"),
        ("requested_rewrite.prompt", "Bo was born in", "subject 'Ada' occurs 0 times in prompt"),
        ("requested_rewrite.prompt", "Ada, {}", "subject 'Ada' must occur exactly once in prompt"),
        ("paraphrase_prompts", "text", "'paraphrase_prompts' must be a list of texts, not 'text'"),
        ("neighborhood_prompts", [{"prompt": "x"}], "must be a list of texts"),
        ("perturbations", {"one": ["x"]}, "'perturbations' must map levels to lists of texts"),
        ("perturbations", ["x"], "'perturbations' must map levels to lists of texts"),
    ],
)
def test_malformed_counterfact_records_say_why(tmp_path: Path, field: str, value: Any, reason: str) -> None:
    path = write(tmp_path, [COUNTERFACT, changed(COUNTERFACT, field, value)])
    with pytest.raises(DataError, match="1 malformed record:\n  line 2: ") as error:
        load_counterfact(path)
    assert reason in str(error.value)
    assert "pass strict=False to go on with the other 1 records" in str(error.value)
    loaded = load_counterfact(path, strict=False)
    assert [case.id for case in loaded.cases] == ["17"]
    assert [r.line for r in loaded.rejected] == [2]
    assert reason in loaded.rejected[0].reason


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("answers", [], "field 'answers' is an empty list"),
        ("alt", "", "field 'alt' must be a text, not ''"),
        ("alt", None, "field 'alt' is missing"),
        ("loc", None, "field 'loc' is missing"),
        ("src", "Where was she born?", "subject 'Ada' occurs 0 times in prompt"),
        ("rephrase", 3, "field 'rephrase' must be a text, not 3"),
    ],
)
def test_malformed_zsre_records_say_why(tmp_path: Path, field: str, value: Any, reason: str) -> None:
    path = write(tmp_path, [changed(ZSRE, field, value)])
    (rejected,) = load_zsre(path, strict=False).rejected
    assert rejected.line == 1
    assert reason in rejected.reason


def test_a_locality_question_gets_one_question_mark(tmp_path: Path) -> None:
    for loc in ("who wrote hamlet", "nq question: who wrote hamlet?", "who wrote hamlet?"):
        (case,) = load_zsre(write(tmp_path, [changed(ZSRE, "loc", loc)])).cases
        assert case.neighbours == (Probe("who wrote hamlet?", "Shakespeare"),)


def test_an_empty_alt_matters_only_where_it_is_used(tmp_path: Path) -> None:
    path = write(tmp_path, [changed(ZSRE, "alt", "")])
    assert len(load_zsre(path, target="answer").cases) == 1


def test_lines_that_are_no_records_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text("\n".join([json.dumps(COUNTERFACT), "", "{broken", "3", json.dumps(COUNTERFACT)]))
    rejected = load_counterfact(path, strict=False).rejected
    assert [r.line for r in rejected] == [3, 4, 5]
    assert rejected[0].reason.startswith("not valid JSON (Expecting property name")
    assert rejected[1].reason == "a record must be a JSON object, not int"
    assert rejected[2].reason == "case id '17' was already used on line 1"


def test_long_lists_of_malformed_records_are_cut_at_twenty(tmp_path: Path) -> None:
    path = write(tmp_path, [{} for _ in range(26)])
    with pytest.raises(DataError, match="26 malformed records") as error:
        load_zsre(path)
    assert str(error.value).count("\n  line ") == 20
    assert "\n  and 6 more\n" in str(error.value)


def test_unreadable_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.json: cannot be read \(No such file"):
        load_counterfact(tmp_path / "gone.json")
    path = tmp_path / "cut.json"
    path.write_text('[{"a": 1},')
    with pytest.raises(DataError, match=r"not valid JSON .* on line 1"):
        load_zsre(path)
    with pytest.raises(UnknownNameError, match="unknown ZsRE target 'new'"):
        load_zsre(path, target="new")


def test_cases_that_do_not_fit_a_schema_are_refused(facts: FactSet, cases: list[EvalCase]) -> None:
    (asked,) = zsre_style(facts, 1, relations=FEW)
    with pytest.raises(DataError, match="CounterFact neighbours share the true object"):
        to_counterfact(asked)
    with pytest.raises(DataError, match="a ZsRE record holds one of each"):
        to_zsre(cases[0])
    statement = EvalCase("a", asked.request, "x", ("y",), (Probe("Bo was born in", "Rome"),))
    with pytest.raises(DataError, match=r"neighbour 'Bo was born in' must end in '\?'"):
        to_zsre(statement)


# --- the original files -------------------------------------------------------------------------


@pytest.mark.slow
def test_original_counterfact_loads_whole() -> None:
    loaded = load_counterfact(original("counterfact_10k.jsonl"))
    assert len(loaded.cases) == 10_000
    assert loaded.cases[0].request == EditRequest(
        "The mother tongue of {} is", "Danielle Darrieux", "English", "0"
    )
    assert loaded.cases[0].target_true == "French"
    assert {len(case.paraphrases) for case in loaded.cases} == {1}
    assert {len(case.neighbours) for case in loaded.cases} == set(range(1, 11))


def test_original_zsre_loads_but_for_one_empty_alternative() -> None:
    path = original("zsre_mend_700.json")
    loaded = load_zsre(path, strict=False)
    assert len(loaded.cases) == 699
    assert [(r.line, r.reason) for r in loaded.rejected] == [(535, "field 'alt' must be a text, not ''")]
    assert len(load_zsre(path, target="answer").cases) == 700
    assert loaded.cases[0].neighbours == (
        Probe("john goodman's character in the big lebowski?", "Walter Sobchak"),
    )


@pytest.mark.parametrize("load", [load_counterfact, load_zsre])
def test_a_pipe_is_refused_at_once(load: Callable[[Path], object], tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(
        DataError, match="is a pipe and no file; write what it gives to a file, and read that"
    ):
        load(path)
