"""Counts in long texts, by hand."""

import pytest

from palimpsest.datasets import load_facts, long_form_cases
from palimpsest.datasets.harder_cases import LongFormCase, Passage
from palimpsest.errors import ScoreError
from palimpsest.evaluation.fluency import fluency, repetition
from palimpsest.evaluation.long_form import MEASURES, long_form, prompts_of
from palimpsest.types import EditRequest

ANNA = Passage("Anna", "About Anna", {"home": ("Norland",), "pet": ("cat", "dog")})
BEN = Passage("Ben", "About Ben", {"home": ("Norland",)})


def case(old: str = "Norland", *related: Passage) -> LongFormCase:
    request = EditRequest("{} lives in", "Anna", "Sudland", "a")
    return LongFormCase("a", request, old, ANNA, related, edited="home")


def counts(one: LongFormCase, anna: str, ben: str = "") -> dict[str, float]:
    texts = {"About Anna": anna, "About Ben": ben}
    return {record.metric: record.value for record in long_form([one], texts)}


def test_what_the_edit_leaves_true() -> None:
    assert case("Norland", BEN).still_true == ((ANNA, "cat"), (ANNA, "dog"), (BEN, "Norland"))
    for own in long_form_cases(load_facts(), 30):
        kept = [claim.text for claim in own.claims if claim.text.count(": ") and claim.supported]
        assert len([*own.still_true]) == len(kept)


@pytest.mark.parametrize(
    ("text", "new", "old"),
    [
        ("She lives in SUDLAND.", 1, 0),
        ("From Norland to Sudland", 1, 1),
        ("She likes Norlanders", 0, 0),
        ("", 0, 0),
    ],
)
def test_names_in_the_text_about_the_subject(text: str, new: int, old: int) -> None:
    found = counts(case(), text)
    assert (found["names_new"], found["names_old"]) == (new, old)
    assert counts(case(old=""), text)["names_old"] == 0


def test_facts_are_looked_for_in_their_own_text() -> None:
    one = case("Norland", BEN)
    assert counts(one, "a cat", "Norland")["names_facts"] == pytest.approx(2 / 3)
    assert counts(one, "a cat of Norland", "a dog")["names_facts"] == pytest.approx(1 / 3)
    alone = LongFormCase("a", one.request, "Norland", Passage("Anna", "About Anna"), (), edited="home")
    assert "names_facts" not in counts(alone, "a cat")


def test_repetition_and_entropy_are_of_the_subjects_text() -> None:
    text = "the same again and the same again and the same again"
    found = counts(case("Norland", BEN), text, "quite another text")
    assert list(found) == list(MEASURES)
    assert found["repetition"] == repetition(text) > 0
    assert found["entropy"] == fluency(text)


def test_a_text_that_is_missing() -> None:
    one = case("Norland", BEN)
    assert prompts_of([one, one]) == ["About Anna", "About Ben"]
    with pytest.raises(ScoreError, match="1 prompts have no text, first 'About Ben'; give one for each"):
        long_form([one], {"About Anna": "x"})
    assert long_form([], {}) == []
