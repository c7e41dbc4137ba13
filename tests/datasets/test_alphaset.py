"""Hard data sets: recipes and wordings set aside. What is hard is given as numbers, no model is asked."""

from collections.abc import Callable

import numpy as np
import pytest

from palimpsest.datasets import (
    AlphaSet,
    counterfact_style,
    hold_out,
    load_facts,
    percentile_reached,
    reworded,
    rewrites,
    zsre_style,
)
from palimpsest.datasets.alphaset import plain
from palimpsest.datasets.rewordings import origin
from palimpsest.errors import DataError
from palimpsest.types import EvalCase
from tests.datasets.alphasets import (
    HARD,
    NAMES,
    OTHERS,
    build,
    candidates_of,
    every_set,
    known,
    numbers,
    of_hand,
    prompts,
)
from tests.test_layering import behind, package_graph, reached


@pytest.fixture(scope="module")
def base() -> list[EvalCase]:
    return counterfact_style(load_facts(), 400, seed=1)


def test_recipes_reach_no_model() -> None:
    graph = package_graph()
    for room in ("alphaset", "alphaset_members", "rewordings"):
        assert not {"torch", "transformers", "network.model"} & reached(f"datasets.{room}", graph)
    walls = {
        w for wall in ("datasets", "editors") for w in behind(wall, reached("studies.difficulty", graph))
    }
    assert walls == set()


# --- plain draws --------------------------------------------------------------------------------


def test_a_plain_set_is_drawn_as_others_are(base: list[EvalCase]) -> None:
    """Smaller ones are part of larger ones; the seed decides which facts and in what order."""
    small, large, other = (plain("plain", base, size, seed) for size, seed in ((30, 1), (60, 1), (60, 2)))
    assert small == plain("plain", list(reversed(base)), 30, 1)
    assert small.base_ids < large.base_ids != other.base_ids
    order = [case.id for case in large.cases]
    assert [case.id for case in small.cases] == [name for name in order if name in small.base_ids]
    assert len(small.scored) == 30
    assert all(member.role == "other" and member.validation for member in small.members)


def test_plain_sets_that_cannot_be(base: list[EvalCase]) -> None:
    for size in (0, 401):
        with pytest.raises(
            DataError, match=rf"a set of {size} was asked for, of 400 base facts; give more or"
        ):
            plain("plain", base, size)
    with pytest.raises(DataError, match="ids repeat"):
        plain("plain", [*base, base[0]], 5)


def test_a_case_asks_fewer_prompts(base: list[EvalCase]) -> None:
    for case in base[:20]:
        few = case.limited(1, 2)
        assert (few.paraphrases, few.neighbours) == (case.paraphrases[:1], case.neighbours[:2])
        assert few.request is case.request
        assert case.limited(99, 99) == case


# --- recipes ------------------------------------------------------------------------------------


@every_set
def test_the_seed_decides(base: list[EvalCase], name: str) -> None:
    first = build(name, base)
    assert build(name, base) == first
    other = build(name, base, seed=6)
    assert other.base_ids != first.base_ids
    assert [case.id for case in other.cases if case.id in first.base_ids] != [
        case.id for case in first.cases if case.id in other.base_ids
    ]


@every_set
def test_sizes_and_roles(base: list[EvalCase], name: str) -> None:
    made = build(name, base, about={"layer": 3})
    roles = [member.role for member in made.members]
    first_edits = OTHERS - HARD if name == "alphaset2" else OTHERS
    assert (roles.count("hard"), roles.count("other")) == (HARD, first_edits)
    assert len({case.id for case in made.cases}) == len(made.cases) == HARD + OTHERS
    assert made.recipe["layer"] == 3
    assert (made.recipe["hard"], made.recipe["others"], made.recipe["seed"]) == (HARD, OTHERS, 5)


@every_set
def test_hard_members_are_exactly_the_extreme_ones(base: list[EvalCase], name: str) -> None:
    made = build(name, base)
    measure = made.recipe["hardest_by"]
    candidates = candidates_of(name, base)
    given = numbers(base if name == "alphaset3" else [*base, *candidates])
    ranked = sorted(candidates, key=lambda case: getattr(given[case.id], measure), reverse=True)
    assert {m.case.id for m in made.members if m.role == "hard"} == {case.id for case in ranked[:HARD]}
    assert min(made.values(measure, "hard")) == getattr(given[ranked[HARD - 1].id], measure)


@every_set
def test_others_share_no_subject_with_hard_ones(base: list[EvalCase], name: str) -> None:
    made = build(name, base)
    subjects = {
        role: {m.case.request.subject for m in made.members if m.role == role} for role in ("hard", "other")
    }
    assert not subjects["hard"] & subjects["other"]


@every_set
def test_fewer_others_are_the_first_of_more(base: list[EvalCase], name: str) -> None:
    few, many = (build(name, base, others=others) for others in (40, 90))
    assert {case.id for case in few.cases} < {case.id for case in many.cases}
    if name != "alphaset2":  # whose order also depends on the gap
        left = [case.id for case in many.cases if case.id in few.base_ids or "/" in case.id]
        assert left == [case.id for case in few.cases]


def test_three_sets_can_be_disjoint(base: list[EvalCase]) -> None:
    sets: list[AlphaSet] = []
    for name in NAMES:
        taken = frozenset[str]().union(*(made.base_ids for made in sets))
        sets.append(build(name, base, hard=10, others=40, exclude=taken))
        assert not sets[-1].base_ids & taken
        assert sets[-1].recipe["excluded"] == len(taken)
    assert len(frozenset().union(*(made.base_ids for made in sets))) == 50 + 40 + 50


def test_alphaset1_writes_known_facts_by_a_rewording(base: list[EvalCase]) -> None:
    made = build("alphaset1", base)
    by_id = {case.id: (case, knows) for case, knows in zip(base, known(base), strict=True)}
    for member in made.members:
        old, knows = by_id[origin(member.case.id)]
        assert member.case.request.target == old.request.target != member.case.target_true == old.target_true
        if member.role == "hard":
            assert knows
            assert member.case.request.text == old.paraphrases[0]
            assert old.request.text in member.case.paraphrases
        else:
            assert member.case.request == old.request


@pytest.mark.parametrize(("hard", "others", "gap"), [(20, 80, 10), (30, 30, 30), (1, 40, 40), (30, 40, 7)])
def test_rewrites_come_after_their_originals_and_never_in_one_batch(
    base: list[EvalCase], hard: int, others: int, gap: int
) -> None:
    for seed in range(5):
        made = build("alphaset2", base, hard=hard, others=others, gap=gap, seed=seed)
        place = {case.id: i for i, case in enumerate(made.cases)}
        member = {m.case.id: m for m in made.members}
        again = [m for m in made.members if m.role == "hard"]
        assert len(again) == hard
        for one in again:
            assert place[one.case.id] - place[one.supersedes] >= gap
            assert place[one.case.id] // gap > place[one.supersedes] // gap
            first = member[one.supersedes]
            assert first.role == "superseded"
            objects = {one.case.request.target, first.case.request.target, one.case.target_true}
            assert len(objects) == 3
            assert one.case.request.text != first.case.request.text
            assert one.validation == first.validation
        superseded = {one.supersedes for one in again}
        assert [case.id for case in made.scored] == [c.id for c in made.cases if c.id not in superseded]


def test_rewrites_are_spread_over_the_stream(base: list[EvalCase]) -> None:
    """Not all originals first and rewrites last: the order is random but for the gap."""
    place = [
        i for i, m in enumerate(build("alphaset2", base, hard=30, others=150).members) if m.role == "hard"
    ]
    assert min(place) < 90 < np.mean(place) < max(place)


def test_third_objects_are_of_the_relation_and_do_not_depend_on_the_other_facts(base: list[EvalCase]) -> None:
    facts = load_facts()
    by_id = {case.id: case for case in base}
    made = rewrites(base, 3, facts.objects)
    for case in made:
        old = by_id[origin(case.id)]
        assert case.request.target in facts.objects[case.relation]
        assert case.request.target not in (old.target_true, old.request.target)
        assert case.request.target.casefold() not in case.request.subject.casefold()
    # Facts of other subjects change nothing, facts of the same subject what is true of it.
    few = [case for case in base if case.request.subject in {c.request.subject for c in base[:50]}]
    assert rewrites(few, 3, facts.objects) == [c for c in made if origin(c.id) in {f.id for f in few}]
    assert rewrites(base, 4, facts.objects) != made


# --- wordings set aside -------------------------------------------------------------------------


@pytest.mark.slow
@every_set
@pytest.mark.parametrize("style", [counterfact_style, zsre_style])
def test_no_validation_wording_is_ever_scored(name: str, style: Callable[..., list[EvalCase]]) -> None:
    made = build(name, style(load_facts(), 400, seed=1))
    aside = {member.validation for member in made.members}
    assert "" not in aside
    assert not aside & {text for case in made.cases for text in prompts(case)}
    assert all(member.case.paraphrases for member in made.members)
    wordings = {case.request.text for case in made.validation(0.3)}
    assert wordings <= aside


def test_leaks_were_there_to_be_closed(base: list[EvalCase]) -> None:
    """Negative control: without care, neighbours ask what was set aside."""
    aside = {hold_out(case)[1] for case in base}
    assert aside & {text for case in base for text in prompts(hold_out(case)[0])}
    assert build("alphaset1", base, others=300).recipe["neighbours_dropped"] > 0


def test_validation_is_a_share_and_the_known_facts(base: list[EvalCase]) -> None:
    first, second, third = (build(name, base) for name in NAMES)
    assert len(third.validation()) == len(second.validation()) == 10
    hard = {m.case.id + "/validation" for m in first.members if m.role == "hard"}
    drawn = {case.id for case in first.validation()}
    assert hard < drawn
    assert len(drawn) <= HARD + 10
    assert first.validation() == first.validation()
    assert first.validation(seed=1) != first.validation()
    everything = {case.id for case in second.validation(1.0)}
    assert everything == {case.id + "/validation" for case in second.scored}
    case = first.validation()[0]
    assert case.paraphrases == ()
    assert case.perturbations == {}
    assert case.request.id == case.id


def test_what_is_held_out_by_hand() -> None:
    case = of_hand("The birthplace of Ada is", "Ada comes from", "Ada, yes Ada, is from")
    kept, wording = hold_out(case)
    assert wording == "Ada comes from"
    assert kept.paraphrases == ("The birthplace of Ada is", "Ada, yes Ada, is from")
    levels = {2: ("Ada hails from",), 1: ("Ada, Ada:", "Ada was born at", "Ada's city is")}
    kept, wording = hold_out(of_hand("Ada comes from", perturbations=levels))
    assert wording == "Ada was born at"
    assert kept.paraphrases == ("Ada comes from",)
    assert kept.perturbations == {2: ("Ada hails from",), 1: ("Ada, Ada:", "Ada's city is")}
    assert hold_out(of_hand("Ada comes from")) == (of_hand("Ada comes from"), "")


def test_rewording_by_hand() -> None:
    case = of_hand("Ada, yes Ada, is from", "Now. The birthplace of Ada is", "Ada comes from")
    new = reworded(case)
    assert (new.id, new.request.id) == ("a/reworded", "a/reworded")
    assert new.request.prompt == "Now. The birthplace of {} is"
    assert new.paraphrases == ("Ada, yes Ada, is from", "Ada was born in", "Ada comes from")
    assert hold_out(new)[1] == hold_out(case)[1] == "Ada comes from"
    assert reworded(of_hand("Ada comes from")).paraphrases == ("Ada was born in",)


@pytest.mark.parametrize(
    "paraphrases", [(), ("It is there",), ("She is from", "Ada comes from"), ("Ada, Ada",)]
)
def test_cases_without_a_free_wording_are_refused(paraphrases: tuple[str, ...]) -> None:
    expected = rf"case 'a': none of its {len(paraphrases)} paraphrases names the subject 'Ada' exactly once"
    with pytest.raises(DataError, match=expected):
        reworded(of_hand(*paraphrases))
    assert rewrites([of_hand(*paraphrases)], objects={"P19": ["Bonn"]}) == []


# --- the bar ------------------------------------------------------------------------------------


def test_percentile_by_hand() -> None:
    assert percentile_reached([9.5], list(range(10))) == 100
    assert percentile_reached([4, 6], list(range(10))) == 50
    assert percentile_reached([1.0], [1.0, 1.0]) == 0


@every_set
def test_hard_members_lie_above_the_ninetieth_percentile_and_random_ones_do_not(
    base: list[EvalCase], name: str
) -> None:
    made = build(name, base)
    measure = made.recipe["hardest_by"]
    everyone = [getattr(m, measure) for m in numbers(base).values()]
    hard = made.values(measure, "hard")
    # The share of candidates decides: 20 of 134, about 400 and 400.
    assert percentile_reached(hard, everyone) >= 90
    random = np.random.default_rng(0).choice(everyone, HARD).tolist()
    assert 25 < percentile_reached(random, everyone) < 75
