"""Cases for editors that are trained: apart from the pages' facts, and from each other by subject."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.datasets import counterfact_style, load_facts, training_split, zsre_style
from palimpsest.datasets.training import PARTS, SHARES, training_part
from palimpsest.errors import DataError
from palimpsest.types import EditRequest, EvalCase

FACTS = load_facts()
names = st.text(st.characters(categories=("L", "N")), min_size=3, max_size=12)


def case(number: int, subject: str) -> EvalCase:
    name = str(number)
    return EvalCase(name, EditRequest("{} lives in", subject, "Rome", name), "Paris")


CASES = [case(number, f"Person {number % 400}") for number in range(1000)]


def test_no_subject_is_in_two_parts_or_in_the_fact_set() -> None:
    own = counterfact_style(FACTS, 30, split="all")
    split = training_split([*own, *CASES], FACTS)
    parts = {name: {one.request.subject for one in getattr(split, name)} for name in PARTS}
    known = {fact.subject for fact in FACTS.facts}
    for name, subjects in parts.items():
        assert not subjects & known
        assert all(not subjects & parts[other] for other in PARTS if other != name)
    assert split.left_out == 30
    assert sum(len(getattr(split, name)) for name in PARTS) == 1000
    assert [len(parts[name]) for name in PARTS] == pytest.approx([400 * share for share in SHARES], abs=25)


def test_no_fact_of_the_pages_is_left_for_training() -> None:
    used = {one.id for split in ("test", "validation") for one in zsre_style(FACTS, split=split)}
    assert used == {fact.id for fact in FACTS.facts}
    with pytest.raises(DataError, match="no case is left for training and validation and test: 0 cases are"):
        training_split(zsre_style(FACTS, split="all"), FACTS)


@given(subject=names, other=names)
def test_a_part_depends_on_the_name_alone(subject: str, other: str) -> None:
    part = training_part(subject)
    assert part in PARTS
    assert part == training_part(f" {unicodedata.normalize('NFD', subject)} ")
    few = training_split([*CASES, case(2000, subject)], FACTS)
    more = training_split([case(2001, other), case(2000, subject), *CASES], FACTS)
    found = [name for name in PARTS if case(2000, subject) in getattr(few, name)]
    assert found == [name for name in PARTS if case(2000, subject) in getattr(more, name)]


def test_spelling_does_not_hide_a_subject_of_the_pages() -> None:
    subject = FACTS.facts[0].subject
    assert training_split([*CASES, case(2000, subject.upper())], FACTS).left_out == 1


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.9, 0.1, 0.0), (0.5, 0.5, 0.5), (float("nan"), 0.5, 0.5)])
def test_shares_that_make_no_split(shares: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="must be three positive numbers that make 1"):
        training_part("Anna", shares)
