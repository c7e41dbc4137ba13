"""Multi-hop and ripple scores, with a speaker that says what it is told and with a tiny model."""

import math
from collections.abc import Callable, Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.datasets.harder_cases import (
    CRITERIA,
    Hop,
    HopEdit,
    MultiHopCase,
    Query,
    RippleCase,
    RippleTest,
)
from palimpsest.errors import ScoreError
from palimpsest.evaluation.hops import (
    conditions_held,
    edit_wise,
    forced,
    hop_wise,
    instance_wise,
    intervals,
    judged_by,
    multi_hop,
    ripple,
    spoken,
)
from palimpsest.evaluation.hops import (
    given as gives,
)
from palimpsest.evaluation.said import first_answers
from palimpsest.types import EditRequest, Record, unspaced
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread")


def query(prompt: str, *names: str) -> Query:
    return Query(prompt, (names,))


def saying(**answers: str) -> Callable[[Sequence[str]], list[str]]:
    """A speaker that knows answers to prompts without their spaces, and says nothing else."""
    return lambda prompts: [answers.get(prompt.replace(" ", "_").strip("?"), "") for prompt in prompts]


def hop_case(name: str = "a", questions: int = 3) -> MultiHopCase:
    request = EditRequest("{} lives in", "Anna", "Sudland", f"{name}/0")
    home, capital = Hop("Home", "Anna lives in", "Norland"), Hop("Capital", "Its capital is", "Altstadt")
    return MultiHopCase(
        id=name,
        edits=(HopEdit(request, "Norland", "Home"),),
        questions=tuple(f"Q{place}" for place in range(questions)),
        answer="Altstadt",
        aliases=("Old Town",),
        new_answer="Neustadt",
        new_aliases=("New Town",),
        hops=(home, capital),
        new_hops=(Hop("Home", "Anna lives in", "Sudland"), Hop("Capital_2", "", "Neustadt")),
    )


# Judges


@pytest.mark.parametrize(
    ("said", "accepted", "anywhere", "at_start"),
    [
        ("Rome, of course", ["Rome"], True, True),
        ("it is ROME", ["Paris", "Rome"], True, False),
        ("Romeo", ["Rome"], False, False),
        ("Cafe\u0301 de Paris", ["Café de Paris"], True, True),
        ("Rome it is", [unspaced("Rome")], True, True),
        ("", ["Rome"], False, False),
    ],
)
def test_an_answer_gives_a_text_in_whole_words(
    said: str, accepted: list[str], anywhere: bool, at_start: bool
) -> None:
    assert gives(said, accepted) is anywhere
    assert gives(said, accepted, "begins") is at_start


def test_every_group_has_to_be_given_and_a_prompt_is_asked_once() -> None:
    asked: list[list[str]] = []

    def speaker(prompts: Sequence[str]) -> list[str]:
        asked.append(list(prompts))
        return ["Eli and F. Hall"] * len(prompts)

    both = Query("Who?", (("Eli",), ("Fay", "F. Hall")))
    judge = judged_by(speaker)
    assert judge([both, query("Who?", "Gil"), Query("Who?", (("Eli",), ("Gil",)))]) == [True, False, False]
    assert asked == [["Who?"]]
    with pytest.raises(ScoreError, match="0 answers were given to 1 prompts"):
        judged_by(lambda prompts: [])([both])


# Multi-hop


@pytest.mark.parametrize(
    ("answers", "value"),
    [({}, 0), ({"Q2": "in New Town"}, 1), ({"Q0": "Neustadt", "Q1": "Neustadt"}, 1), ({"Q0": "Altstadt"}, 0)],
)
def test_any_of_the_questions_counts(answers: dict[str, str], value: float) -> None:
    assert multi_hop([hop_case()], judged_by(saying(**answers))) == [Record("a", "multi_hop", value, 3)]


def test_the_old_answer_is_asked_before() -> None:
    judge = judged_by(saying(Q1="the Old Town"))
    assert multi_hop([hop_case()], judge, new=False)[0].value == 1
    assert multi_hop([hop_case()], judge)[0].value == 0


def test_recall_of_single_facts() -> None:
    judge = judged_by(saying(Home="Sudland", Anna_lives_in="Sudland"))
    case = hop_case()
    assert hop_wise([case], judge) == [Record("a", "hop_wise", 0.5, 2)]
    assert instance_wise([case], judge) == [Record("a", "instance_wise", 0.0, 2)]
    assert edit_wise([case], judge) == [Record("a", "edit_wise", 1.0, 1)]
    assert hop_wise([case], judge, new=False)[0].value == 0
    every = judged_by(saying(Home="Sudland", Capital_2="Neustadt"))
    assert instance_wise([case], every)[0].value == 1


@given(known=st.lists(st.booleans(), min_size=1, max_size=6), data=st.data())
def test_multi_hop_is_the_largest_and_instances_the_smallest_of_the_answers(
    known: list[bool], data: st.DataObject
) -> None:
    """The counts against sums written out: any question, all hops, and their share."""
    case = hop_case(questions=len(known))
    hops = data.draw(st.tuples(st.booleans(), st.booleans()))
    answers = {f"Q{place}": "Neustadt" for place, one in enumerate(known) if one}
    facts = zip(("Home", "Capital_2"), ("Sudland", "Neustadt"), hops, strict=True)
    answers |= {name: said for name, said, one in facts if one}
    judge = judged_by(saying(**answers))
    assert multi_hop([case], judge)[0].value == float(max(known))
    assert instance_wise([case], judge)[0].value == float(min(hops))
    assert hop_wise([case], judge)[0].value == sum(hops) / 2


def test_what_cannot_be_scored() -> None:
    judge = judged_by(saying())
    with pytest.raises(ScoreError, match="1 ids of cases repeat, for example 'a'"):
        multi_hop([hop_case(), hop_case()], judge)
    with pytest.raises(ScoreError, match="a judge gave 1 judgements of 3 queries"):
        multi_hop([hop_case()], lambda queries: [True])

    class Empty:
        id, edits, hops, new_hops, before, after = "e", (), (), (), (), ()

    with pytest.raises(ScoreError, match="case 'e' has nothing to ask for edit_wise"):
        edit_wise([Empty()], judge)
    assert multi_hop([], judge) == []


# Ripple tests

booleans = st.booleans()
ONE = RippleTest((query("A", "x"), query("B", "x")), (query("C", "y"), query("D", "y")))
ALL = RippleTest((query("A", "x"), query("B", "x")), every=True)


def ripple_case(name: str, **tests: tuple[RippleTest, ...]) -> RippleCase:
    return RippleCase(name, EditRequest("{} lives in", "Anna", "Rome", name), "", tests)


def test_only_tests_whose_conditions_hold_count() -> None:
    case = ripple_case("a", compositionality_1=(ONE, ALL), preservation=(ONE,))
    after = judged_by(saying(A="x"))
    held = judged_by(saying(C="y", D="y"))
    assert ripple([case], held, after) == [
        Record("a", "compositionality_1", 0.5, 2),
        Record("a", "preservation", 1.0, 1),
    ]
    half = judged_by(saying(C="y"))
    assert ripple([case], half, after) == [Record("a", "compositionality_1", 0.0, 1)]
    assert conditions_held([case], half) == {
        ("a", "compositionality_1", 0): False,
        ("a", "compositionality_1", 1): True,
        ("a", "preservation", 0): False,
    }
    assert ripple([case], held, judged_by(saying(A="x", B="x")))[0].value == 1
    with pytest.raises(ScoreError, match="ids of cases repeat"):
        ripple([case, case], held, after)
    assert ripple([], held, after) == []


@given(
    tests=st.lists(
        st.tuples(
            st.lists(st.booleans(), min_size=1, max_size=3),
            st.lists(st.booleans(), max_size=3),
            st.booleans(),
        ),
        max_size=8,
    )
)
def test_the_share_is_of_the_tests_that_count(tests: list[tuple[list[bool], list[bool], bool]]) -> None:
    """Against the definition, written as two sums."""
    before: set[str] = set()
    after: set[str] = set()
    made = []
    for place, (queries, conditions, every) in enumerate(tests):
        names = [f"q{place}.{number}" for number in range(len(queries))]
        needed = [f"c{place}.{number}" for number in range(len(conditions))]
        after |= {name for name, right in zip(names, queries, strict=True) if right}
        before |= {name for name, right in zip(needed, conditions, strict=True) if right}
        made.append(
            RippleTest(tuple(query(n, "x") for n in names), tuple(query(n, "x") for n in needed), every)
        )
    records = ripple(
        [ripple_case("a", preservation=tuple(made))],
        lambda queries: [one.prompt in before for one in queries],
        lambda queries: [one.prompt in after for one in queries],
    )
    counted = [all(q) if every else any(q) for q, conditions, every in tests if all(conditions)]
    expected = [Record("a", "preservation", sum(counted) / len(counted), len(counted))] if counted else []
    assert records == expected


# Intervals


def test_intervals_are_over_cases_and_hold_the_mean() -> None:
    values = [0.0, 1.0, 1.0, 0.5]
    records = [Record(str(place), "multi_hop", value, 3) for place, value in enumerate(values)]
    records.append(Record("0", "preservation", 0.25, 1))
    found = intervals(records, seed=0)
    assert list(found) == ["multi_hop", "preservation"]
    assert found["multi_hop"].mean == pytest.approx(np.mean(values))
    assert found["multi_hop"].low < found["multi_hop"].mean < found["multi_hop"].high
    assert found["multi_hop"] == intervals(records[::-1], seed=0)["multi_hop"]
    alone = found["preservation"]
    assert (alone.mean, alone.n) == (0.25, 1)
    assert math.isnan(alone.low)
    assert math.isnan(alone.high)
    with pytest.raises(ScoreError, match="case '0' has two values of 'multi_hop'"):
        intervals([records[0], records[0]], seed=0)


# A model


PROMPTS = ["The capital of France is", "Marie Curie plays", "Anna Berg", "Where does"]


def test_a_model_is_judged_by_what_it_says() -> None:
    model = tiny_model("llama")
    said = first_answers(model, PROMPTS, 1)
    assert len({*said}) == len(PROMPTS)
    right = [query(prompt, "xyzzy", word) for prompt, word in zip(PROMPTS, said, strict=True)]
    wrong = [query(prompt, word) for prompt, word in zip(PROMPTS, said[::-1], strict=True)]
    assert spoken(model, 1)([*right, *wrong]) == [True] * 4 + [False] * 4


def test_forcing_agrees_with_greedy_decoding() -> None:
    """A text of one token is right under forcing exactly if greedy decoding gives it."""
    model = tiny_model("llama")
    greedy = dict(zip(PROMPTS, first_answers(model, PROMPTS, 1), strict=True))
    words = [unspaced(word) for word in greedy.values()]
    rows = [(prompt, word) for prompt in PROMPTS for word in words]
    judged = forced(model)([query(prompt, word) for prompt, word in rows])
    assert judged == [unspaced(greedy[prompt]) == word for prompt, word in rows]
    assert judged.count(True) == len(PROMPTS)
    queries = [Query(prompt, ((*words, "xyzzy"),)) for prompt in PROMPTS]
    assert forced(model)(queries) == [True] * 4
    assert forced(model)([Query(PROMPTS[0], (tuple(words), ("xyzzy",)))]) == [False]
    assert forced(model)([]) == []


def test_criteria_are_metrics() -> None:
    case = ripple_case("a", **dict.fromkeys(CRITERIA, (ALL,)))
    records = ripple([case], judged_by(saying()), judged_by(saying(A="x", B="x")))
    assert {record.metric: record.value for record in records} == dict.fromkeys(CRITERIA, 1.0)
