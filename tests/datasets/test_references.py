"""Reference sentences of the project's facts."""

import random
from dataclasses import replace

import pytest

from palimpsest.datasets import Fact, FactSet, counterfact_style, load_facts
from palimpsest.datasets.references import reference_corpus, reference_texts
from palimpsest.types import EditRequest, EvalCase


@pytest.fixture(scope="module")
def facts() -> FactSet:
    return load_facts()


def case(subject: str, target: str, relation: str = "P103") -> EvalCase:
    return EvalCase("c", EditRequest("The mother tongue of {} is", subject, target), "x", relation=relation)


def small(facts: FactSet) -> FactSet:
    """Three speakers of French, one of them of known work, and one of English."""
    few = (
        Fact("Zoë", "P103", "French"),
        Fact("Anna Berg", "P103", "French"),
        Fact("Anna Berg", "P101", "physics"),
        Fact("Zoë Klein", "P103", "French"),
        Fact("Marie", "P103", "English"),
    )
    return FactSet(few, facts.relations, "")


def test_sentences_by_hand(facts: FactSet) -> None:
    few = small(facts)
    found = reference_texts(few, [case("Marie", "French")])["c"]
    language, field = facts.relations["P103"].statements, facts.relations["P101"].statements
    assert found == (
        *(f"{s.replace('{}', 'Anna Berg')} physics." for s in field),
        *(f"{s.replace('{}', 'Anna Berg')} French." for s in language),
        *(f"{s.replace('{}', 'Zoë')} French." for s in language),
        *(f"{s.replace('{}', 'Zoë Klein')} French." for s in language),
    )
    assert "The first language of Zoë is French." in found


def test_the_subject_itself_and_names_within_names_are_left_out(facts: FactSet) -> None:
    few = small(facts)
    for subject in ("Zoë", "Zoë Klein"):
        found = reference_texts(few, [case(subject, "French")])["c"]
        assert found
        assert not any("Zoë" in sentence for sentence in found)


def test_an_object_or_relation_without_facts_has_no_texts(facts: FactSet) -> None:
    few = small(facts)
    assert reference_texts(few, [case("Marie", "Latin")]) == {"c": ()}
    assert reference_texts(few, [case("Marie", "physics")]) == {"c": ()}, "true under another relation only"
    assert reference_texts(few, [case("Marie", "French", "P999")]) == {"c": ()}
    assert reference_texts(few, []) == {}


def test_order_of_the_facts_does_not_matter(facts: FactSet) -> None:
    cases = counterfact_style(facts, 50)
    shuffled = list(facts.facts)
    random.Random(0).shuffle(shuffled)
    assert shuffled != list(facts.facts)
    other = FactSet(tuple(shuffled), facts.relations, "")
    assert reference_texts(other, cases) == reference_texts(facts, cases)


def test_every_case_of_the_project_has_texts_that_say_its_new_object(facts: FactSet) -> None:
    cases = counterfact_style(facts)
    found = reference_texts(facts, cases)
    assert list(found) == [case.id for case in cases]
    for one in cases:
        sentences = found[one.id]
        says = [sentence for sentence in sentences if sentence.endswith(f" {one.request.target}.")]
        assert len(says) >= 5
        assert len(says) > len(sentences) / 2
        assert not any(one.request.subject in sentence for sentence in sentences)


def test_texts_follow_the_new_object(facts: FactSet) -> None:
    one = counterfact_style(facts, 1)[0]
    back = replace(one, request=replace(one.request, target=one.target_true))
    new, true = reference_texts(facts, [one])[one.id], reference_texts(facts, [back])[one.id]
    assert not set(new) & set(true)


def test_the_corpus_is_every_sentence_once(facts: FactSet) -> None:
    corpus = reference_corpus(facts)
    statements = sum(len(facts.relations[fact.relation].statements) for fact in facts.facts)
    assert len(corpus) == len(set(corpus)) == statements
    assert set(reference_texts(facts, counterfact_style(facts, 1)).popitem()[1]) <= set(corpus)
