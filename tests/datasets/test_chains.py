"""Cases with harder questions from the project's own facts: what they hold, and that files give them back."""

import json
from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from palimpsest.datasets import (
    FactSet,
    LoadedSet,
    conflicts,
    load_any_set,
    load_facts,
    load_leme,
    load_mquake,
    load_ripple_edits,
    long_form_cases,
    multi_hop_cases,
    ripple_cases,
    split_of,
    to_leme,
    to_mquake,
    to_ripple_edits,
)
from palimpsest.datasets.chains import EDITED, chains, further, subjects
from palimpsest.datasets.facts import SPLITS
from palimpsest.datasets.harder_cases import CRITERIA, Query
from palimpsest.datasets.phrases import ALIASES, DESCRIBED, FURTHER, INSIDE, KINDS, SEVERAL, SPORTS
from palimpsest.errors import DataError, UnknownNameError

seeds = st.integers(0, 10_000)
splits = st.sampled_from(SPLITS)
edited_facts = st.sampled_from(EDITED)
few = settings(max_examples=6)
"""Every example makes hundreds of cases."""


@cache
def own() -> FactSet:
    return load_facts()


def read_back(read: Any, records: list[Any]) -> LoadedSet[Any]:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "own.json"
        path.write_text(json.dumps(records, ensure_ascii=False), encoding="utf-8")
        loaded: LoadedSet[Any] = read(path)
        assert loaded.cases == load_any_set(path).cases
        return loaded


# Chains and multi-hop cases


def test_as_many_chains_as_are_stated() -> None:
    found = chains(own())
    by_subject = subjects(own())
    assert len(found) == 241
    assert len({chain.second.subject for chain in found}) == 12
    longer = [c for c in found if further(by_subject, c.second.relation, c.second.object)]
    assert longer == []


@pytest.mark.parametrize(
    ("edited", "split", "cases", "edits"),
    [
        ("first", "test", 136, 136),
        ("first", "validation", 61, 61),
        ("second", "test", 130, 9),
        ("second", "validation", 15, 4),
        ("both", "test", 101, 106),
        ("both", "validation", 8, 10),
    ],
)
def test_as_many_cases_and_distinct_edits_as_are_stated(
    edited: str, split: str, cases: int, edits: int
) -> None:
    found = multi_hop_cases(own(), split=split, edited=edited)
    assert len(found) == cases
    assert len({edit.request.text for case in found for edit in case.edits}) == edits


@few
@given(seed=seeds, split=splits, edited=edited_facts)
def test_files_give_multi_hop_cases_back(seed: int, split: str, edited: str) -> None:
    cases = tuple(multi_hop_cases(own(), seed=seed, split=split, edited=edited)[:8])
    assert read_back(load_mquake, [to_mquake(case) for case in cases]).cases == cases


@few
@given(seed=seeds, split=splits, edited=edited_facts)
def test_an_edit_changes_the_answer_through_the_chain(seed: int, split: str, edited: str) -> None:
    true = {(fact.subject, own().relations[fact.relation].name): fact.object for fact in own().facts}
    cases = multi_hop_cases(own(), seed=seed, split=split, edited=edited)
    assert conflicts(cases) == []
    assert len({case.id for case in cases}) == len(cases)
    for case in cases:
        written = {edit.request.text: edit.request.target for edit in case.edits}
        assert len(case.edits) == 1 + (edited == "both")
        assert case.answer != case.new_answer
        for triples, hops, answer, after in (
            (case.triples, case.hops, case.answer, False),
            (case.new_triples, case.new_hops, case.new_answer, True),
        ):
            (head, _, middle), (second, _, end) = triples
            assert (middle, end) == (second, answer)
            assert head == case.triples[0][0]
            for triple, hop in zip(triples, hops, strict=True):
                known = true.get(triple[:2])
                assert triple[2] == hop.answer == (written.get(hop.cloze, known) if after else known)
        assert len({*case.questions}) == 3
        names = {case.triples[1][0], case.new_triples[1][0]}
        assert not any(name in question for name in names for question in case.questions)


@few
@given(seed=seeds, edited=edited_facts)
def test_splits_share_no_head_and_no_edited_subject(seed: int, edited: str) -> None:
    found = {}
    for split in ("test", "validation"):
        cases = multi_hop_cases(own(), seed=seed, split=split, edited=edited)
        found[split] = {case.triples[0][0] for case in cases}
        found[split] |= {edit.request.subject for case in cases for edit in case.edits}
        assert {split_of(name) for name in found[split]} == {split}
    assert not found["test"] & found["validation"]


@few
@given(seed=seeds, n=st.integers(1, 40))
def test_fewer_are_the_first_ones(seed: int, n: int) -> None:
    assert multi_hop_cases(own(), n, seed) == multi_hop_cases(own(), seed=seed)[:n]


@pytest.mark.parametrize("make", [multi_hop_cases, ripple_cases, long_form_cases])
def test_the_seed_decides(make: Any) -> None:
    assert make(own(), 20, 0) == make(own(), 30, 0)[:20]
    assert make(own(), 20, 0) != make(own(), 20, 1)


def test_too_many_or_unknown() -> None:
    with pytest.raises(DataError, match="500 multi-hop cases were asked for, but split 'test' with 'first'"):
        multi_hop_cases(own(), 500)
    with pytest.raises(DataError, match="9999 ripple cases were asked for, but split 'test' with pres"):
        ripple_cases(own(), 9999, criteria=["preservation"])
    for make in (multi_hop_cases, ripple_cases, long_form_cases):
        with pytest.raises(DataError, match="0 cases were asked for"):
            make(own(), 0)  # type: ignore[operator]
        with pytest.raises(UnknownNameError, match="unknown split 'train'"):
            make(own(), split="train")  # type: ignore[operator]
    with pytest.raises(UnknownNameError, match="unknown choice of edited facts 'third'; choose one of: both"):
        multi_hop_cases(own(), edited="third")
    with pytest.raises(UnknownNameError, match="unknown criterion 'charm'"):
        ripple_cases(own(), criteria=["charm"])


# Ripple tests


def test_as_many_ripple_tests_as_are_stated() -> None:
    cases = ripple_cases(own(), split="all")
    count = Counter(name for case in cases for name, tests in case.tests.items() for _ in tests)
    assert len(cases) == 1689
    assert count == {
        "logical_generalisation": 252,
        "compositionality_1": 994,
        "compositionality_2": 241,
        "subject_aliasing": 81,
        "preservation": 689,
        "relation_specificity": 121,
    }


@few
@given(seed=seeds, split=splits)
def test_files_give_ripple_cases_back(seed: int, split: str) -> None:
    cases = tuple(ripple_cases(own(), 12, seed, split=split))
    assert read_back(load_ripple_edits, [to_ripple_edits(case) for case in cases]).cases == cases


@few
@given(seed=seeds, split=splits, criterion=st.sampled_from(CRITERIA))
def test_ripple_tests_ask_what_their_criterion_says(seed: int, split: str, criterion: str) -> None:
    statements = {
        own().relations[fact.relation].prompt.replace("{}", fact.subject): fact.object for fact in own().facts
    }
    for case in ripple_cases(own(), seed=seed, split=split, criteria=[criterion])[::20]:
        request = case.request
        assert list(case.tests) == [criterion]
        assert request.target not in own().known_objects[request.subject]
        assert split in ("all", split_of(request.subject))
        for test in case.tests[criterion]:
            (query,) = test.queries
            answers = query.answers[0]
            conditions: dict[str, Query] = {one.prompt: one for one in test.conditions}
            for prompt, one in conditions.items():
                if criterion != "subject_aliasing":
                    assert statements[prompt] == one.answers[0][0]
            if criterion == "compositionality_1":
                assert any(request.target in prompt for prompt in conditions)
                assert request.subject in query.prompt
                assert request.target not in query.prompt
            elif criterion in ("compositionality_2", "subject_aliasing"):
                assert answers[0] == request.target
                assert query.prompt != request.text
                if criterion == "compositionality_2":
                    assert request.subject not in query.prompt
            elif criterion == "preservation":
                assert answers[0] == case.target_true
                assert request.target in query.prompt
            elif criterion == "relation_specificity":
                assert test.conditions == test.queries
                assert query.prompt != request.text
            else:
                assert query.prompt != request.text
                assert request.subject in query.prompt


# Long texts


@few
@given(seed=seeds, split=splits)
def test_files_give_long_form_cases_back(seed: int, split: str) -> None:
    cases = tuple(case for case in long_form_cases(own(), 12, seed, split=split) if case.related)
    assert read_back(load_leme, [to_leme(case) for case in cases]).cases == cases


@few
@given(seed=seeds, split=splits)
def test_long_texts_ask_for_all_facts_and_related_entities(seed: int, split: str) -> None:
    about = subjects(own())
    for case in long_form_cases(own(), 20, seed, split=split):
        assert case.passage.entity == case.request.subject
        for passage in (case.passage, *case.related):
            wanted = {own().relations[f.relation].name: (f.object,) for f in about[passage.entity]}
            assert passage.required == wanted
            assert all(f"- {name}" in passage.prompt for name in wanted)
        assert case.edited in case.passage.required
        for other in case.related:
            objects = {value for values in other.required.values() for value in values}
            assert objects & {case.request.subject, case.target_true}
            assert split in ("all", split_of(other.entity))
        stale = f"{case.request.text} {case.target_true}"
        assert {claim.supported for claim in case.claims if claim.text == stale} == {False}
        assert 1 <= len(case.related) <= 3


# Wordings


def test_descriptions_have_one_slot_and_a_kind() -> None:
    assert set(DESCRIBED) == set(KINDS)
    assert set(KINDS.values()) == set(FURTHER)
    for phrases in DESCRIBED.values():
        assert len({*phrases}) == 3
        assert all(phrase.count("{}") == 1 and phrase[0].islower() for phrase in phrases)
    used = {*DESCRIBED, *INSIDE, *SEVERAL, *(name for names in FURTHER.values() for name in names)}
    assert used <= set(own().relations)
    objects = own().objects
    assert set(SPORTS) <= set(objects["P413"])
    assert set(SPORTS.values()) <= set(objects["P641"])


def test_other_names_are_of_subjects_and_give_no_object_away() -> None:
    about = subjects(own())
    assert set(ALIASES) <= set(about)
    for name, others in ALIASES.items():
        assert others
        for other in others:
            assert other not in about
            for fact in about[name]:
                assert fact.object.casefold() not in other.casefold()
                text = own().relations[fact.relation].prompt.replace("{}", other)
                assert text.count(other) == 1
