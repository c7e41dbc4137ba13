"""KnowEdit cases from the project's own facts: what they hold, and that files give them back."""

import json
from functools import cache
from pathlib import Path

import pytest

from palimpsest.datasets import (
    FactSet,
    knowedit_cases,
    load_any_set,
    load_facts,
    load_knowedit,
    ripple_cases,
    split_of,
    to_knowedit,
)
from palimpsest.datasets.harder_cases import Query, RippleCase, RippleTest
from palimpsest.datasets.knowedit_cases import LOCALITY, PORTABILITY
from palimpsest.errors import DataError, UnknownNameError
from palimpsest.types import EditRequest


@cache
def own() -> FactSet:
    return load_facts()


@pytest.mark.parametrize(("split", "cases"), [("test", 105), ("validation", 37), ("all", 142)])
def test_as_many_cases_as_there_are(split: str, cases: int) -> None:
    found = knowedit_cases(own(), split=split)
    assert len(found) == len({case.id for case in found}) == cases
    for case in found:
        assert split in ("all", split_of(case.request.subject))
        assert set(case.tests) <= {*PORTABILITY, *LOCALITY}
        assert {*PORTABILITY} & set(case.tests)
        assert {*LOCALITY} & set(case.tests)


def test_queries_are_those_of_the_ripple_tests_without_conditions() -> None:
    rippled = {case.id: case for case in ripple_cases(own())}
    for case in knowedit_cases(own()):
        same = rippled[case.id]
        assert (case.request, case.target_true) == (same.request, same.target_true)
        tests = [test for held in case.tests.values() for test in held]
        assert {test.conditions for test in tests} == {()}
        queries = [query for test in tests for query in test.queries]
        others = [query for held in same.tests.values() for test in held for query in test.queries]
        assert sorted(queries, key=str) == sorted(others, key=str)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_files_give_cases_back(tmp_path: Path, seed: int) -> None:
    cases = tuple(knowedit_cases(own(), seed=seed))
    path = tmp_path / "own.json"
    path.write_text(json.dumps([to_knowedit(case) for case in cases]), encoding="utf-8")
    assert load_knowedit(path).cases == cases
    assert load_any_set(path).cases == cases


def test_fewer_are_the_first_ones_and_the_seed_decides() -> None:
    assert knowedit_cases(own(), 20) == knowedit_cases(own())[:20]
    assert knowedit_cases(own(), 20) != knowedit_cases(own(), 20, seed=1)


def test_what_cannot_be_made_or_written() -> None:
    with pytest.raises(DataError, match="500 KnowEdit cases were asked for, but split 'test' gives 105; ask"):
        knowedit_cases(own(), 500)
    with pytest.raises(DataError, match="0 cases were asked for; ask for at least 1"):
        knowedit_cases(own(), 0)
    with pytest.raises(UnknownNameError, match="unknown split 'train'"):
        knowedit_cases(own(), split="train")
    one = Query("The mother of Anna is", (("Dora",),))
    for name, test, message in (
        (
            "compositionality_1",
            RippleTest((one,)),
            "has tests of 'compositionality_1', for which KnowEdit has",
        ),
        (
            "reasoning",
            RippleTest((one,), (one,)),
            "has a test with 1 conditions and 1 queries, where KnowEdit",
        ),
        ("reasoning", RippleTest((one, one)), "has a test with 0 conditions and 2 queries"),
    ):
        case = RippleCase("a", EditRequest("{} lives in", "Anna", "Sudland"), "Norland", {name: (test,)})
        with pytest.raises(DataError, match=message):
            to_knowedit(case)
