"""Evaluation cases from the project's fact set, in the style of CounterFact and of ZsRE.

Every draw of a case comes from a generator seeded by (seed, id of the fact), and cases are ordered by one
such draw. So a case does not depend on the number of cases, fewer cases are the first ones of more, and both
styles have the facts in the same order.
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from hashlib import sha256

import numpy as np

from palimpsest.datasets.facts import Fact, FactSet
from palimpsest.datasets.zsre import check_target
from palimpsest.errors import DataError
from palimpsest.types import SLOT, EditRequest, EvalCase, Probe


def counterfact_style(
    facts: FactSet,
    n: int | None = None,
    seed: int = 0,
    *,
    split: str = "test",
    relations: list[str] | None = None,
    max_neighbours: int = 10,
    min_neighbours: int = 1,
) -> list[EvalCase]:
    """Cases in the style of CounterFact (Meng et al. 2022, section 3.3).

    The new object is another object of the relation, drawn uniformly from the distinct ones; objects recorded
    for the subject under any relation, or visible in its name, are excluded. Neighbours are other subjects
    with the same split, relation and object, each with a statement template drawn at random.

    Args:
        facts: the fact set.
        n: number of cases; all of the split by default.
        seed: of all draws.
        split: ``test``, ``validation`` (for tuning; no subject in common) or ``all``.
        relations: property ids to draw from; all by default.
        max_neighbours: largest number of neighbours of a case.
        min_neighbours: facts with fewer neighbours are skipped.

    Raises:
        DataError: if fewer than ``n`` cases can be made.
        UnknownNameError: if the split or a relation does not exist.
    """
    pool = facts.select(split, relations)
    groups: dict[tuple[str, str], list[Fact]] = defaultdict(list)
    for fact in pool:
        groups[fact.relation, fact.object].append(fact)

    def make(fact: Fact, rng: np.random.Generator) -> EvalCase | None:
        target = _other_object(facts, fact, rng)
        same = [f for f in groups[fact.relation, fact.object] if not _overlap(f, fact)]
        if target is None or len(same) < min_neighbours:
            return None
        relation = facts.relations[fact.relation]
        drawn = [same[i] for i in rng.permutation(len(same))[:max_neighbours]]
        return EvalCase(
            id=fact.id,
            request=EditRequest(relation.prompt, fact.subject, target, fact.id),
            target_true=fact.object,
            paraphrases=_filled(relation.paraphrases, fact),
            neighbours=tuple(_probe(relation.statements, other, rng) for other in drawn),
            relation=fact.relation,
            perturbations=_filled_levels(relation.perturbations, fact),
        )

    return _first(pool, make, n, seed, split)


def zsre_style(
    facts: FactSet,
    n: int | None = None,
    seed: int = 0,
    *,
    split: str = "test",
    relations: list[str] | None = None,
    target: str = "alt",
) -> list[EvalCase]:
    """Cases in the style of ZsRE in MEND's form: a question, one rewording and one unrelated question.

    The unrelated question is about another subject of the same split under another relation, and is scored
    against its own true object.

    Args:
        facts: the fact set.
        n: number of cases; all of the split by default.
        seed: of all draws; the new object equals that of ``counterfact_style`` under this seed.
        split: ``test``, ``validation`` (for tuning; no subject in common) or ``all``.
        relations: property ids to draw from; all by default, at least two are needed.
        target: ``alt`` writes another object of the relation; ``answer`` writes the true object, and
            ``target_true`` is empty.

    Raises:
        DataError: if fewer than ``n`` cases can be made.
        UnknownNameError: if the split, a relation or the target choice does not exist.
    """
    check_target(target)
    pool = facts.select(split, relations)

    def make(fact: Fact, rng: np.random.Generator) -> EvalCase | None:
        new = _other_object(facts, fact, rng)
        other = _unrelated(pool, fact, new, rng)
        if new is None or other is None:
            return None
        relation = facts.relations[fact.relation]
        question, rewording = relation.questions[0], str(rng.choice(relation.questions[1:]))
        written, true = (new, fact.object) if target == "alt" else (fact.object, "")
        return EvalCase(
            id=fact.id,
            request=EditRequest(question, fact.subject, written, fact.id),
            target_true=true,
            paraphrases=_filled((rewording,), fact),
            neighbours=(_probe(facts.relations[other.relation].questions[:1], other, rng),),
            relation=fact.relation,
            perturbations=_filled_levels(relation.question_perturbations, fact),
        )

    return _first(pool, make, n, seed, split)


def _first(
    pool: Sequence[Fact],
    make: Callable[[Fact, np.random.Generator], EvalCase | None],
    n: int | None,
    seed: int,
    split: str,
) -> list[EvalCase]:
    """The first ``n`` cases that can be made, in the seed's order."""
    if n is not None and n < 1:
        raise DataError(f"{n} cases were asked for; ask for at least 1, or leave n out for all")
    generators = [(fact, seeded(fact.id, seed)) for fact in pool]
    drawn = [(rng.random(), fact.id, fact, rng) for fact, rng in generators]
    cases: list[EvalCase] = []
    for _, _, fact, rng in sorted(drawn, key=lambda row: row[:2]):
        if len(cases) == n:
            break
        case = make(fact, rng)
        if case is not None:
            cases.append(case)
    if n is not None and len(cases) < n:
        raise DataError(
            f"{n} cases were asked for, but split {split!r} of these relations gives "
            f"{len(cases)}; ask for fewer, for more relations or for split='all'"
        )
    return cases


def seeded(case_id: str, seed: int) -> np.random.Generator:
    """A generator seeded by the seed and the id of a case alone."""
    name = int.from_bytes(sha256(case_id.encode()).digest()[:8], "big")
    return np.random.default_rng([seed, name])


def _other_object(facts: FactSet, fact: Fact, rng: np.random.Generator) -> str | None:
    """Another object of the relation, neither recorded for the subject nor visible in its name, or None."""
    subject = fact.subject.casefold()
    others = [
        candidate
        for candidate in facts.objects[fact.relation]
        if candidate not in facts.known_objects[fact.subject]
        and candidate.casefold() not in subject
        and subject not in candidate.casefold()
    ]
    return str(rng.choice(others)) if others else None


def _unrelated(pool: Sequence[Fact], fact: Fact, target: str | None, rng: np.random.Generator) -> Fact | None:
    """A fact of another relation that shares neither subject nor object with the edit, or None."""
    for index in rng.permutation(len(pool)):
        other = pool[index]
        fresh = other.object not in (fact.object, target) and not _overlap(other, fact)
        if fresh and other.relation != fact.relation:
            return other
    return None


def _overlap(a: Fact, b: Fact) -> bool:
    """Whether one subject's name contains the other's."""
    return a.subject in b.subject or b.subject in a.subject


def _probe(templates: Sequence[str], fact: Fact, rng: np.random.Generator) -> Probe:
    template = templates[int(rng.integers(len(templates)))]
    return Probe(template.replace(SLOT, fact.subject), fact.object)


def _filled(templates: Sequence[str], fact: Fact) -> tuple[str, ...]:
    return tuple(template.replace(SLOT, fact.subject) for template in templates)


def _filled_levels(levels: Mapping[int, Sequence[str]], fact: Fact) -> dict[int, tuple[str, ...]]:
    return {level: _filled(templates, fact) for level, templates in levels.items()}
