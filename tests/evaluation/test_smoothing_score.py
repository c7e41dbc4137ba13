"""Which wordings judge a candidate, and that none of the test's do unless that is asked for."""

from collections.abc import Sequence

import pytest
import torch

from palimpsest.errors import ScoreError, UnknownNameError
from palimpsest.evaluation import smoothing_score
from palimpsest.evaluation.answers import Answers
from palimpsest.evaluation.smoothing_score import score_by
from palimpsest.network.model import EditableModel
from palimpsest.network.tokens import encode_target
from palimpsest.types import EditRequest, EvalCase, Probe
from tests.tiny import tiny_model

CASES = [
    EvalCase(
        id=name,
        request=EditRequest(f"{{}} lives in {place},", "Anna Berg", "Rome", name),
        target_true="Paris",
        paraphrases=(f"In {place}, home of Anna Berg is",),
        neighbours=(Probe("Marie Curie lives in", "Paris"),),
    )
    for name, place in (("a", "town"), ("b", "the city"))
]
REQUESTS = [case.request for case in CASES]
HELD = {"a": ["Anna Berg, of the town, is at"], "b": ["One finds Anna Berg in"]}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Every (prompt, target) that a score asks; the first target's first of two tokens comes out."""
    pairs: list[tuple[str, str]] = []

    def ask(model: EditableModel, given: Sequence[tuple[str, str]]) -> Answers:
        pairs.extend(given)
        hits, mask = torch.zeros(len(given), 2, dtype=torch.bool), torch.ones(len(given), 2, dtype=torch.bool)
        hits[0, 0] = True
        return Answers(torch.zeros(len(given), 2, dtype=torch.float64), hits, mask)

    monkeypatch.setattr(smoothing_score, "ask", ask)
    return pairs


def test_by_validation_only_held_out_wordings_are_asked(asked: list[tuple[str, str]]) -> None:
    score = score_by("validation", CASES, HELD)
    assert score(tiny_model("llama"), REQUESTS) == 0.25  # half of one of two targets
    assert asked == [(HELD["a"][0], "Rome"), (HELD["b"][0], "Rome")]


def test_by_edit_prompts_only_the_requests_are_asked(asked: list[tuple[str, str]]) -> None:
    score_by("edit_prompts")(tiny_model("llama"), REQUESTS[:1])
    assert asked == [(REQUESTS[0].text, "Rome")]


def test_as_published_the_test_itself_is_asked(asked: list[tuple[str, str]]) -> None:
    score_by("as_published_code", CASES)(tiny_model("llama"), REQUESTS[1:])
    assert asked == [(REQUESTS[1].text, "Rome"), (CASES[1].paraphrases[0], "Rome")]


def test_the_score_is_of_the_model_as_it_is() -> None:
    """On a real forward pass: the word that a model says first scores 1, another one 0."""
    model = tiny_model("llama")
    words = [name for name in ("Rome", "Paris", "French", "English") if len(tokens(model, name)) == 1]
    assert len(words) > 1
    head = model.net.get_submodule(model.family.head).weight
    with torch.no_grad():  # the head sees only the first of the words
        head.zero_()
        head[tokens(model, words[0])[0]] = 1.0
        hidden = model.net.model(model.tokenizer(REQUESTS[0].text, return_tensors="pt").input_ids)[0][0, -1]
        head *= torch.sign(hidden.sum())
    score = score_by("edit_prompts")
    for word, wanted in ((words[0], 1.0), (words[1], 0.0)):
        request = EditRequest(REQUESTS[0].prompt, REQUESTS[0].subject, word)
        assert score(model, [request]) == wanted


def tokens(model: EditableModel, word: str) -> list[int]:
    return list(encode_target(model.tokenizer, word))


@pytest.mark.parametrize(
    ("rule", "validation", "message"),
    [
        ("validation", None, r"'validation' needs wordings; pass validation="),
        (
            "validation",
            {"a": [CASES[1].paraphrases[0]]},
            r"held out for validation and asked in the test of.*'b'",
        ),
        ("validation", {"a": [REQUESTS[0].text]}, r"asked in the test of case 'a'; leave it out of one"),
    ],
)
def test_leaks_are_refused(rule: str, validation: dict[str, list[str]] | None, message: str) -> None:
    with pytest.raises(ScoreError, match=message):
        score_by(rule, CASES, validation)


def test_a_request_without_wordings() -> None:
    score = score_by("validation", CASES, {"a": HELD["a"]})
    with pytest.raises(ScoreError, match=r"1 of 2 requests have no wordings.*'b'.*select by 'edit_prompts'"):
        score(tiny_model("llama"), REQUESTS)


def test_unknown_rule() -> None:
    with pytest.raises(
        UnknownNameError, match="unknown selection rule 'test'; choose one of: as_published_code"
    ):
        score_by("test")
