"""KnowEdit's measures, by hand from made-up tokens and with a tiny model."""

import pytest

from palimpsest.datasets.harder_cases import Query, RippleCase, RippleTest
from palimpsest.errors import RequestError, ScoreError
from palimpsest.evaluation.answers import ask
from palimpsest.evaluation.fluency import fluency
from palimpsest.evaluation.knowedit import Forced, fluency_of, forced_tokens, knowedit
from palimpsest.network.sampling import sample
from palimpsest.types import EditRequest, Record
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")

EDIT = ("Anna lives in", "Sudland")


def test_of(prompt: str, *names: str) -> RippleTest:
    return RippleTest((Query(prompt, (names,)),))


test_of.__test__ = False  # type: ignore[attr-defined]


def case(name: str = "a", **tests: tuple[RippleTest, ...]) -> RippleCase:
    return RippleCase(name, EditRequest("{} lives in", "Anna", "Sudland", name), "Norland", tests)


def test_measures_by_hand() -> None:
    """Two criteria of portability, one with two tests; locality asks what was said before, right or not."""
    one = case(
        reasoning=(test_of("Q1", "x"), test_of("Q2", "y")),
        subject_aliasing=(test_of("Q3", "z", "other name"),),
        preservation=(test_of("Q4", "w"),),
    )
    before = {
        EDIT: Forced((1, 2), (0, 0)),
        ("Q1", "x"): Forced((3,), (3,)),
        ("Q2", "y"): Forced((4, 5), (0, 0)),
        ("Q3", "z"): Forced((6,), (0,)),
        ("Q4", "w"): Forced((7, 8, 9, 10), (7, 0, 0, 1)),
    }
    after = before | {
        EDIT: Forced((1, 2), (1, 0)),
        ("Q1", "x"): Forced((3,), (0,)),
        ("Q2", "y"): Forced((4, 5), (4, 0)),
        ("Q3", "z"): Forced((6,), (6,)),
        ("Q4", "w"): Forced((7, 8, 9, 10), (7, 8, 0, 1)),
    }
    assert knowedit([one], before, after) == [
        Record("a", "edit_success", 0.5, 1),
        Record("a", "portability", ((0 + 0.5) / 2 + 1) / 2, 3),
        Record("a", "locality", 3 / 4, 1),
    ]
    assert [record.value for record in knowedit([one], after, after)][2] == 1
    assert knowedit([case()], before, after) == [Record("a", "edit_success", 0.5, 1)]
    assert knowedit([], {}, {}) == []


def test_a_lacking_answer_and_a_repeated_case() -> None:
    asked = {EDIT: Forced((1,), (1,))}
    with pytest.raises(ScoreError, match=r"1 answers were not asked for, first \('Q', 'x'\); make both"):
        knowedit([case(reasoning=(test_of("Q", "x"),))], asked, asked)
    with pytest.raises(ScoreError, match="1 ids of cases repeat, for example 'a'"):
        knowedit([case(), case()], asked, asked)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_tokens_are_those_that_answers_are_scored_by(family: str) -> None:
    """Where the likeliest token is the answer's, and nowhere else, the scorer counts a hit."""
    model = tiny_model(family)
    words = ["red", "blue house", "some longer answer", "the"]
    tests = tuple(
        test_of(f"Prompt number {place} {'and more ' * place}is", w) for place, w in enumerate(words)
    )
    one = case(reasoning=tests)
    found = forced_tokens(model, [one])
    assert len(found) == 1 + len(words)
    answers = ask(model, list(found))
    for row, forced in enumerate(found.values()):
        same = [a == b for a, b in zip(forced.wanted, forced.likeliest, strict=True)]
        assert answers.hits[row][answers.mask[row]].tolist() == same


def test_empty_prompts_and_texts() -> None:
    model = tiny_model("llama")
    with pytest.raises(RequestError):
        case(reasoning=(test_of("Q", " "),))
    assert forced_tokens(model, []) == {}
    cases = [case("a"), case("b")]
    texts = sample(model, [one.query.prompt for one in cases], 6, seed=3)
    assert fluency_of(model, cases, 6, seed=3) == [
        Record(name, "fluency", fluency(text), 1) for name, text in zip("ab", texts, strict=True)
    ]
