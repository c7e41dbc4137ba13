"""Ripple tests from the project's facts: what follows from an edit, and what should stay.

    compositionality_1      a further fact of the new object, asked of the subject, where it changes
    compositionality_2      the edited fact, asked of something whose object is the subject
    subject_aliasing        the edited fact under another name of the subject
    logical_generalisation  what the edit entails: the continent of what lies in a country, city or region,
                            and the sport of a position that only one sport has, where they change
    preservation            the old object, where a subject may have several of the relation
    relation_specificity    other facts of the subject that the edit does not entail

Source: Cohen et al. 2024 (RippleEdits), whose tests come from Wikidata. Here other names were
written by hand for 66 subjects (`palimpsest.datasets.phrases`), and only 61 subjects have a second fact, so
that subject aliasing and relation specificity have few tests. Conditions are asked of the model before the
edit, as there; for another name, whether the model knows the old fact under it.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from palimpsest.datasets.cases import seeded
from palimpsest.datasets.chains import described, further, new_object, subjects
from palimpsest.datasets.facts import Fact, FactSet
from palimpsest.datasets.harder_cases import CRITERIA, Query, RippleCase, RippleTest
from palimpsest.datasets.phrases import DESCRIBED, INSIDE, LIES_ON, SEVERAL, SPORTS, aliases
from palimpsest.errors import DataError, UnknownNameError
from palimpsest.types import SLOT, EditRequest

KIND = "counterfactual"
"""Part of the benchmark to which these cases belong."""


@dataclass(frozen=True)
class _World:
    """The facts, and how they are looked up.

    Attributes:
        facts: the fact set.
        about: subject -> its facts.
        behind: object -> facts that have it and whose relation has descriptions.
    """

    facts: FactSet
    about: Mapping[str, tuple[Fact, ...]]
    behind: Mapping[str, tuple[Fact, ...]]

    def statement(self, relation: str, name: str) -> str:
        return self.facts.relations[relation].prompt.replace(SLOT, name)

    def query(self, fact: Fact) -> Query:
        return Query(self.statement(fact.relation, fact.subject), (named(fact.object),))


def named(name: str) -> tuple[str, ...]:
    """A name with the other names of the same entity."""
    return (name, *aliases(name))


def ripple_cases(
    facts: FactSet,
    n: int | None = None,
    seed: int = 0,
    *,
    split: str = "test",
    criteria: Sequence[str] = CRITERIA,
) -> list[RippleCase]:
    """Ripple cases in the form of RippleEdits.

    The new object is drawn from those of the relation about which there are further facts, if there are any,
    as a test of composition needs one; else from all.

    Args:
        facts: the fact set.
        n: number of cases; all by default. Fewer cases are the first ones of more.
        seed: of all draws.
        split: ``test``, ``validation`` or ``all``, to which the edited subject belongs.
        criteria: those of which tests are made; cases without a test are left out.

    Raises:
        DataError: if ``n`` is below 1, or fewer than ``n`` cases can be made.
        UnknownNameError: if the split or a criterion does not exist.
    """
    for criterion in criteria:
        if criterion not in CRITERIA:
            raise UnknownNameError("criterion", criterion, list(CRITERIA))
    if n is not None and n < 1:
        raise DataError(f"{n} cases were asked for; ask for at least 1, or leave n out for all")
    world = _World(facts, subjects(facts), _behind(facts))
    order = sorted(facts.select(split), key=lambda fact: (seeded(fact.id, seed).random(), fact.id))
    made = (_case(world, fact, seed, criteria) for fact in order)
    cases = list(islice((case for case in made if case is not None), n))
    if n is not None and len(cases) < n:
        raise DataError(
            f"{n} ripple cases were asked for, but split {split!r} with {', '.join(criteria)} gives "
            f"{len(cases)}; ask for fewer, for more criteria or for split='all'"
        )
    return cases


def _behind(facts: FactSet) -> dict[str, tuple[Fact, ...]]:
    found: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts.facts:
        if fact.relation in DESCRIBED:
            found[fact.object].append(fact)
    return {name: tuple(held) for name, held in found.items()}


def _case(world: _World, fact: Fact, seed: int, criteria: Sequence[str]) -> RippleCase | None:
    pool = world.facts.objects[fact.relation]
    rich = [name for name in pool if further(world.about, fact.relation, name)]
    target = new_object(world.facts, fact, seed, rich) or new_object(world.facts, fact, seed, pool)
    if target is None:
        return None
    new = Fact(fact.subject, fact.relation, target)
    tests = {name: tuple(_MAKERS[name](world, fact, new)) for name in CRITERIA if name in criteria}
    if not any(tests.values()):
        return None
    relation = world.facts.relations[fact.relation]
    return RippleCase(
        id=fact.id,
        request=EditRequest(relation.prompt, fact.subject, target, fact.id),
        target_true=fact.object,
        tests={name: found for name, found in tests.items() if found},
        kind=KIND,
        relation=relation.name,
    )


Maker = Callable[[_World, Fact, Fact], Iterator[RippleTest]]
"""(world, fact before the edit, fact after it) -> tests of one criterion."""


def _changed(world: _World, old: Fact, new: Fact) -> dict[str, Fact]:
    """Facts about the new object that are not known of the old one, by their relations."""
    before = further(world.about, old.relation, old.object)
    after = further(world.about, new.relation, new.object)
    same = {name for name in before.keys() & after.keys() if before[name].object == after[name].object}
    return {name: fact for name, fact in after.items() if name not in same}


def _composed_1(world: _World, old: Fact, new: Fact) -> Iterator[RippleTest]:
    for second in _changed(world, old, new).values():
        template = world.facts.relations[second.relation].prompt
        text = described(world.facts, template, new.relation, new.subject)
        if new.subject != second.object:
            yield RippleTest((Query(text, (named(second.object),)),), (world.query(second),))


def _composed_2(world: _World, old: Fact, new: Fact) -> Iterator[RippleTest]:
    for first in world.behind.get(new.subject, ()):
        if new.relation in further(world.about, first.relation, new.subject):
            template = world.facts.relations[new.relation].prompt
            text = described(world.facts, template, first.relation, first.subject)
            yield RippleTest((Query(text, (named(new.object),)),), (world.query(first),))


def _aliased(world: _World, old: Fact, new: Fact) -> Iterator[RippleTest]:
    for other in aliases(new.subject):
        text = world.statement(new.relation, other)
        yield RippleTest((Query(text, (named(new.object),)),), (Query(text, (named(old.object),)),))


def _entailed(world: _World, old: Fact, new: Fact) -> Iterator[RippleTest]:
    if new.relation in INSIDE:
        second = _changed(world, old, new).get(LIES_ON)
        if second:
            text = world.statement(LIES_ON, new.subject)
            yield RippleTest((Query(text, (named(second.object),)),), (world.query(second),))
    sport = SPORTS.get(new.object) if new.relation == "P413" else None
    if sport and sport != SPORTS.get(old.object):
        yield RippleTest((Query(world.statement("P641", new.subject), ((sport,),)),))


def _preserved(world: _World, old: Fact, new: Fact) -> Iterator[RippleTest]:
    if old.relation in SEVERAL:
        known = world.query(old)
        text = f'If the answer "{new.object}" is left aside, {_inside(known.prompt, old.subject)}'
        yield RippleTest((Query(text, known.answers),), (known,))


def _inside(sentence: str, subject: str) -> str:
    """A sentence as it goes on behind a comma."""
    return sentence if sentence.startswith(subject) else sentence[:1].lower() + sentence[1:]


def _specific(world: _World, old: Fact, new: Fact) -> Iterator[RippleTest]:
    entailed = {LIES_ON} if new.relation in INSIDE else {"P641"} if new.relation == "P413" else set()
    for other in world.about[new.subject]:
        if other.relation not in (new.relation, *entailed):
            query = world.query(other)
            yield RippleTest((query,), (query,))


_MAKERS: Mapping[str, Maker] = {
    "logical_generalisation": _entailed,
    "compositionality_1": _composed_1,
    "compositionality_2": _composed_2,
    "subject_aliasing": _aliased,
    "preservation": _preserved,
    "relation_specificity": _specific,
}
"""Criterion -> what makes its tests."""
