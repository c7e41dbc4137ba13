"""Mentions of a name: whole words as a regular expression finds them, any script, any Unicode form."""

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.errors import RequestError
from palimpsest.mentions import mentions, near, normal
from palimpsest.types import EditRequest, plain, unspaced

WORDS = st.text("ab_ 1.-é", max_size=12)


@given(text=WORDS, name=st.text("ab_ 1.é", min_size=1, max_size=3))
def test_in_scripts_with_spaces_it_is_the_expression_for_whole_words(text: str, name: str) -> None:
    whole = re.finditer(rf"(?<!\w){re.escape(name)}(?!\w)", text)
    assert mentions(text, name) == [match.span() for match in whole]


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [
        ("中国的首都是哪里？", "中国", 1),
        ("中国是中国人的国家", "中国", 2),
        ("日本の首都は", "日本", 1),
        ("서울의 시장은", "서울", 1),
        ("กรุงเทพเป็นเมืองหลวงของ", "กรุงเทพ", 1),
        ("Les Français parlent", "Français", 1),
        ("Die Hauptstadt von Österreich ist", "sterreich", 0),
        ("Столица России", "России", 1),
        ("Столица России", "Росси", 0),
        ("日本Tokyo市", "Tokyo", 1),
        ("Jose\u0301 lives in", "Jose", 0),
    ],
)
def test_any_script(text: str, name: str, count: int) -> None:
    assert len(mentions(text, name)) == count


@pytest.mark.parametrize(
    ("text", "name", "found"),
    [
        ("the mother tongue of danielle darrieux is", "Danielle Darrieux", "danielle darrieux"),
        ("Jose lives in", "José", "Jose"),
        ("Marie  Curie works", "Marie Curie", "Marie  Curie"),
        ("O’Brien lives in", "O'Brien", "O’Brien"),
        ("Nobody is here", "Anna", ""),
        ("Nobody is here", " ", ""),
    ],
)
def test_what_nearly_matches(text: str, name: str, found: str) -> None:
    assert near(text, name) == found


@pytest.mark.parametrize(("form", "other"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_a_subject_in_another_unicode_form_is_found(form: str, other: str) -> None:
    name, prompt = (
        unicodedata.normalize(form, "José Saramago"),
        unicodedata.normalize(other, "José Saramago is"),
    )
    request = EditRequest(prompt, name, "Rome")
    assert (request.prompt, request.text) == ("{} is", "José Saramago is")
    assert EditRequest("Anna\u00a0Berg lives in", "Anna Berg", "Rome").text == "Anna Berg lives in"


def test_what_is_in_one_form_already_stays_as_it_is() -> None:
    decomposed = unicodedata.normalize("NFD", "José")
    request = EditRequest(f"{decomposed} lives in", decomposed, "Rome")
    assert (request.prompt, request.subject) == ("{} lives in", decomposed)
    assert normal(request.subject) == "José"


@pytest.mark.parametrize(
    ("prompt", "subject", "message"),
    [
        (
            "danielle darrieux speaks",
            "Danielle Darrieux",
            "0 times .* where 'danielle darrieux' nearly matches",
        ),
        ("中国在哪里？中国是", "中国", "occurs 2 times"),
        ("{}在哪里？中国是", "中国", "must occur exactly once"),
    ],
)
def test_a_request_says_what_is_wrong_with_its_mentions(prompt: str, subject: str, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        EditRequest(prompt, subject, "x")


def test_a_target_without_a_space_is_marked_and_shown_plainly() -> None:
    target = unspaced("岸田文雄")
    assert unspaced(target) == target
    assert plain(target) == plain("岸田文雄") == "岸田文雄"
    assert EditRequest("日本の首相は{}", "人", target).target == target
    with pytest.raises(RequestError, match="target is empty"):
        EditRequest("{} is", "Rome", unspaced(" "))
