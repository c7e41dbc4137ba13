"""Ripple cases that count, chosen with a judge that knows some prompts."""

from collections.abc import Callable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palimpsest.datasets.harder_cases import CRITERIA, Query, RippleCase, RippleTest
from palimpsest.errors import ScoreError
from palimpsest.evaluation.enough import BLOCK, enough
from palimpsest.evaluation.hops import conditions_held
from palimpsest.types import EditRequest


def case(name: str, conditions: dict[str, bool]) -> RippleCase:
    """A case with one test of each named criterion, whose condition holds or not."""
    tests = {}
    for criterion, holds in conditions.items():
        prompt = f"{name} {criterion} {'held' if holds else 'not'}"
        tests[criterion] = (RippleTest((Query(f"{prompt}?", (("x",),)),), (Query(prompt, (("x",),)),)),)
    return RippleCase(name, EditRequest("{} is", name, "x", name), "", tests)


def judge(asked: list[str]) -> Callable[[Sequence[Query]], list[bool]]:
    def answered(queries: Sequence[Query]) -> list[bool]:
        asked.extend(query.prompt for query in queries)
        return [query.prompt.endswith("held") for query in queries]

    return answered


some = st.dictionaries(st.sampled_from(CRITERIA), st.booleans(), max_size=3)


@given(st.lists(some, max_size=40), st.integers(1, 5))
def test_every_criterion_has_as_many_as_are_asked_for_or_all(made: list[dict[str, bool]], each: int) -> None:
    cases = [case(f"c{place}", conditions) for place, conditions in enumerate(made)]
    asked: list[str] = []
    chosen = enough(cases, judge(asked), each)
    assert chosen == [one for one in cases if one in chosen]
    assert len(asked) == len({*asked})
    held = conditions_held(cases, judge([]))
    counting = {c: {name for (name, kind, _), ok in held.items() if ok and kind == c} for c in CRITERIA}
    ids = {one.id for one in chosen}
    for names in counting.values():
        assert len(names & ids) >= min(each, len(names))
    for name in ids:  # none is chosen in vain
        others = ids - {name}
        assert any(name in names for names in counting.values())
        assert len(others) < len(ids) <= each * len(CRITERIA)


def test_no_more_is_asked_than_is_needed() -> None:
    cases = [case(f"c{place}", {"preservation": True}) for place in range(3 * BLOCK)]
    asked: list[str] = []
    assert enough(cases, judge(asked), 4) == cases[:4]
    assert len(asked) == BLOCK


def test_the_rarest_criterion_serves_the_others() -> None:
    plain = [case(f"p{place}", {"preservation": True}) for place in range(3)]
    both = case("both", {"preservation": True, "subject_aliasing": True})
    assert enough([*plain, both], judge([]), 1) == [both]


def test_bad_input() -> None:
    with pytest.raises(ScoreError, match="each is 0; ask for one case or more of each criterion"):
        enough([], judge([]), 0)
    twice = case("a", {"preservation": True})
    with pytest.raises(ScoreError, match="1 ids of cases repeat, for example 'a'"):
        enough([twice, twice], judge([]), 1)
    assert enough([], judge([]), 1) == []
