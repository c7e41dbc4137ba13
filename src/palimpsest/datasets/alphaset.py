"""Three hard data sets in the manner of AlphaSet (AlphaEdit+, sections 2.2, 4.1 and B.1), from base facts.

AlphaSet1 conflicts with preserved knowledge, AlphaSet2 with earlier edits, AlphaSet3 asks for large changes.
Each is a share of hard members among random others. What is hard is measured on a model
(`palimpsest.studies.difficulty`) and given here as numbers: nothing here loads a model.

Where this differs from the paper, which neither prints its scripts nor releases prompts for all of it:
rewordings are the fact set's own paraphrases, not a language model's; the known facts of AlphaSet1 are base
facts, not found in Wikipedia; the hard members are the hardest by measure, not by choice of hand.

All draws come from a generator seeded by (seed, id of the case). Others are taken in the order of one draw
and hard members in the order of their measure, so a smaller set is part of a larger one as long as no subject
of the further hard members was among the others.
"""

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from heapq import heapify, heappop, heappush
from typing import Any

from palimpsest.datasets.alphaset_members import AlphaSet, Measures, Member, Role, draws
from palimpsest.datasets.rewordings import REWRITTEN, hold_out, origin, without
from palimpsest.errors import DataError
from palimpsest.types import EvalCase

Place = tuple[EvalCase, Role, str]
"""A case, its role, and the id of the earlier edit that it rewrites."""


def alphaset1(
    base: Sequence[EvalCase],
    candidates: Sequence[EvalCase],
    measures: Mapping[str, Measures],
    *,
    hard: int = 200,
    others: int = 800,
    seed: int = 0,
    exclude: Collection[str] = (),
    about: Mapping[str, Any] | None = None,
) -> AlphaSet:
    """AlphaSet1: edits against preserved knowledge, the candidates with the largest s_K0 among random others.

    Args:
        base: facts that the others are drawn from, by their own prompts.
        candidates: from `palimpsest.datasets.rewordings.known_reworded`.
        measures: case id -> measures; ``conflict_preserved`` is needed for every candidate.
        hard: number of hard members.
        others: number of others; none shares a subject with a hard one.
        seed: of the choice of others and of the order.
        exclude: ids of base facts used elsewhere.
        about: added to the recipe, for example the model, the layer and what the preserved keys are.

    Raises:
        DataError: if a size is below 1, ids repeat, a measure is missing, or there are too few facts.
    """
    recipe = _recipe("conflict_preserved", hard, others, seed, exclude, about)
    _check(base, candidates)
    return _hard_among_others("AlphaSet1", base, candidates, measures, recipe, exclude)


def alphaset2(
    base: Sequence[EvalCase],
    candidates: Sequence[EvalCase],
    measures: Mapping[str, Measures],
    *,
    gap: int,
    hard: int = 200,
    others: int = 800,
    seed: int = 0,
    exclude: Collection[str] = (),
    about: Mapping[str, Any] | None = None,
) -> AlphaSet:
    """AlphaSet2: edits against earlier edits, the rewrites with the largest s_Kp after their originals.

    Args:
        base: facts that the originals and the others are drawn from.
        candidates: from `palimpsest.datasets.rewordings.rewrites`.
        measures: case id -> measures; ``conflict_past``, with the original's key, is needed for every
            candidate.
        gap: a rewrite stands at least so many places after its original; with the size of a batch, they are
            never in the same one.
        hard: number of rewrites.
        others: number of first edits, of which ``hard`` are the originals and superseded; the rest share no
            subject with them.
        seed: of the choice of others and of the order.
        exclude: ids of base facts used elsewhere.
        about: added to the recipe.

    Raises:
        DataError: if a size is below 1, ids repeat, a measure is missing, a candidate's original is not among
            the base facts, there are too few facts, or too few others for the gap.
    """
    recipe = _recipe("conflict_past", hard, others, seed, exclude, about) | {"gap": gap}
    if gap < 1 or others < max(hard, gap):
        raise DataError(
            f"gap {gap} with {hard} rewrites needs at least {max(hard, gap)} first edits and a gap of 1 or "
            f"more, others is {others}; lower gap or hard, or raise others"
        )
    _check(base, candidates)
    taken = _hardest(candidates, measures, "conflict_past", hard, exclude)
    by_id = {case.id: case for case in base}
    lost = [c.id for c in taken if origin(c.id) not in by_id or not c.id.endswith(REWRITTEN)]
    if lost:
        raise DataError(f"{lost[0]!r} rewrites none of the base facts; make candidates with rewrites(base)")
    rest = _others(base, taken, others - hard, seed, exclude) if others > hard else []
    pairs = [(by_id[origin(case.id)], case) for case in taken]
    return _set("AlphaSet2", _apart(pairs, rest, gap, seed), measures, recipe)


def alphaset3(
    base: Sequence[EvalCase],
    measures: Mapping[str, Measures],
    *,
    hard: int = 300,
    others: int = 1200,
    seed: int = 0,
    exclude: Collection[str] = (),
    about: Mapping[str, Any] | None = None,
) -> AlphaSet:
    """AlphaSet3: edits that ask for the largest changes, by ‖r‖, among random others.

    Args:
        base: facts, by their own prompts.
        measures: case id -> measures; ``inconsistency`` is needed for every base fact not excluded.
        hard: number of hard members.
        others: number of others; none shares a subject with a hard one.
        seed: of the choice of others and of the order.
        exclude: ids of base facts used elsewhere.
        about: added to the recipe; the paper measures at the third edited layer.

    Raises:
        DataError: if a size is below 1, ids repeat, a measure is missing, or there are too few facts.
    """
    recipe = _recipe("inconsistency", hard, others, seed, exclude, about)
    _check(base, ())
    return _hard_among_others("AlphaSet3", base, base, measures, recipe, exclude)


def plain(title: str, base: Sequence[EvalCase], size: int, seed: int = 0) -> AlphaSet:
    """Base facts and their order, both drawn as the hard sets draw their others: nothing in it is hard.

    Statements and questions of the same facts give the same facts in the same order.

    Raises:
        DataError: if ids repeat or there are too few facts.
    """
    _check(base, ())
    if not 1 <= size <= len(base):
        raise DataError(
            f"a set of {size} was asked for, of {len(base)} base facts; give more or ask for fewer"
        )
    ranks = {case.id: draws(origin(case.id), seed) for case in base}
    drawn = sorted(base, key=lambda case: (ranks[case.id][0], case.id))[:size]
    drawn.sort(key=lambda case: (ranks[case.id][1], case.id))
    return _set(title, [(case, "other", "") for case in drawn], {}, {"size": size, "seed": seed})


def _hard_among_others(
    name: str,
    base: Sequence[EvalCase],
    candidates: Sequence[EvalCase],
    measures: Mapping[str, Measures],
    recipe: Mapping[str, Any],
    exclude: Collection[str],
) -> AlphaSet:
    """The hardest candidates among random base facts, in a random order, as the recipe says."""
    taken = _hardest(candidates, measures, recipe["hardest_by"], recipe["hard"], exclude)
    rest = _others(base, taken, recipe["others"], recipe["seed"], exclude)
    places: list[Place] = [(case, "hard", "") for case in taken]
    places += [(case, "other", "") for case in rest]
    places.sort(key=lambda place: (draws(place[0].id, recipe["seed"])[1], place[0].id))
    return _set(name, places, measures, recipe)


def _recipe(
    measure: str,
    hard: int,
    others: int,
    seed: int,
    exclude: Collection[str],
    about: Mapping[str, Any] | None,
) -> dict[str, Any]:
    for name, size in (("hard", hard), ("others", others)):
        if size < 1:
            raise DataError(f"{name}={size}: a hard data set needs at least 1 of each kind; raise it")
    sizes = {"hardest_by": measure, "hard": hard, "others": others, "seed": seed, "excluded": len(exclude)}
    return {**(about or {}), **sizes}


def _check(base: Sequence[EvalCase], candidates: Sequence[EvalCase]) -> None:
    counts = Counter(case.id for case in (*base, *candidates))
    twice = [name for name, count in counts.items() if count > 1]
    if twice:
        raise DataError(
            f"{len(twice)} ids repeat among base facts and candidates, for example {twice[0]!r}; give each "
            "case its own id"
        )


def _hardest(
    cases: Sequence[EvalCase],
    measures: Mapping[str, Measures],
    measure: str,
    count: int,
    exclude: Collection[str],
) -> list[EvalCase]:
    """The cases with the largest measure, largest first, ties by id."""
    left = [case for case in cases if origin(case.id) not in exclude]
    values = {case.id: _value(measures.get(case.id), measure) for case in left}
    missing = [name for name, value in values.items() if not math.isfinite(value)]
    if missing:
        raise DataError(
            f"{len(missing)} of {len(left)} cases have no finite {measure}, for example {missing[0]!r}; "
            "measure them with palimpsest.difficulty"
        )
    if len(left) < count:
        raise DataError(
            f"{count} hard members were asked for, {len(left)} of {len(cases)} candidates are left after "
            "exclude; give more base facts or lower hard"
        )
    return sorted(left, key=lambda case: (-values[case.id], case.id))[:count]


def _value(measures: Measures | None, measure: str) -> float:
    value = getattr(measures, measure, None)
    return math.nan if value is None else float(value)


def _others(
    base: Sequence[EvalCase], hard: Sequence[EvalCase], count: int, seed: int, exclude: Collection[str]
) -> list[EvalCase]:
    """Base facts drawn at random, none about a subject of the hard ones."""
    subjects = {case.request.subject for case in hard}
    left = [case for case in base if case.id not in exclude and case.request.subject not in subjects]
    if len(left) < count:
        raise DataError(
            f"{count} other facts were asked for, {len(left)} of {len(base)} base facts are left after "
            "exclude and the subjects of the hard ones; give more base facts or lower others"
        )
    return sorted(left, key=lambda case: (draws(case.id, seed)[0], case.id))[:count]


def _apart(
    pairs: Sequence[tuple[EvalCase, EvalCase]], rest: Sequence[EvalCase], gap: int, seed: int
) -> list[Place]:
    """A random order in which each rewrite stands at least ``gap`` places after its original.

    At every place the free case with the smallest draw is next; a rewrite is free ``gap`` places after its
    original. With r originals left, one of them is next at place n - r - gap at the latest: then the last
    rewrites still find their places.
    """
    rewriting = {case.id for _, case in pairs}
    firsts, later = [], {}
    for first, case in pairs:
        # Of a pair's two draws, the original has the smaller one, as it would in a random order.
        early, late = sorted(draws(name, seed)[1] for name in (first.id, case.id))
        firsts.append((early, first.id, first))
        later[first.id] = (late, case.id, case)
    free = [(draws(case.id, seed)[1], case.id, case) for case in rest]
    heapify(firsts)
    heapify(free)
    total, order = 2 * len(pairs) + len(rest), list[Place]()
    waiting: dict[int, tuple[float, str, EvalCase]] = {}
    for place in range(total):
        if place in waiting:
            heappush(free, waiting.pop(place))
        forced = place == total - len(firsts) - gap
        if firsts and (forced or not free or firsts[0] < free[0]):
            first = heappop(firsts)[2]
            waiting[place + gap] = later[first.id]
            order.append((first, "superseded", ""))
        else:
            case = heappop(free)[2]
            again = case.id in rewriting
            order.append((case, "hard", origin(case.id)) if again else (case, "other", ""))
    return order


def _set(
    name: str, places: Sequence[Place], measures: Mapping[str, Measures], recipe: Mapping[str, Any]
) -> AlphaSet:
    """Set one wording of each case aside, and let no case of the set ask it."""
    held = [hold_out(case) for case, _, _ in places]
    prompts = {case.request.text for case, _, _ in places}
    unscored = {wording for _, wording in held} - prompts - {""}
    members = []
    for (case, role, supersedes), (_, wording) in zip(places, held, strict=True):
        own = wording if wording in unscored else ""
        known = measures.get(case.id, Measures())
        members.append(Member(without(case, unscored), role, own, known, supersedes))
    dropped = sum(len(c.neighbours) for c, _, _ in places) - sum(len(m.case.neighbours) for m in members)
    return AlphaSet(name, tuple(members), {**recipe, "neighbours_dropped": dropped})
