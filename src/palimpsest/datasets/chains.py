"""Multi-hop cases from the project's facts: the object of one fact is the subject of another.

An edit of either fact, or of both, changes the answer at the end. Every new object depends on the seed and
the edited fact alone, so within one choice of ``edited`` no fact is edited to two objects, and cases whose
unedited facts another case edits are left out: all edits of a list can be in one model at once.

The project's facts hold 241 chains of two facts and none of three: 12 objects of all relations are subjects
of further facts of their kind (`palimpsest.datasets.phrases`). So edits of second facts are few, and shared.
Source of the form: Zhong et al. 2023 (MQuAKE), whose chains have two to four facts.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from palimpsest.datasets.cases import seeded
from palimpsest.datasets.facts import SPLITS, Fact, FactSet, split_of
from palimpsest.datasets.harder_cases import Hop, HopEdit, MultiHopCase, Triple
from palimpsest.datasets.mquake import conflicts
from palimpsest.datasets.phrases import DESCRIBED, FURTHER, KINDS, aliases
from palimpsest.errors import DataError, UnknownNameError
from palimpsest.types import SLOT, EditRequest

EDITED = ("first", "second", "both")
"""Facts of a chain that are edited."""


@dataclass(frozen=True)
class Chain:
    """Two facts, the object of the first being the subject of the second."""

    first: Fact
    second: Fact

    @property
    def id(self) -> str:
        """Unique id: that of the first fact and the relation of the second."""
        return f"{self.first.id}>{self.second.relation}"


def chains(facts: FactSet) -> tuple[Chain, ...]:
    """All chains of two facts, in the order of the fact set."""
    by_subject = subjects(facts)
    return tuple(
        Chain(first, second)
        for first in facts.facts
        for second in further(by_subject, first.relation, first.object).values()
    )


def subjects(facts: FactSet) -> Mapping[str, tuple[Fact, ...]]:
    """Facts about each subject."""
    found: dict[str, list[Fact]] = defaultdict(list)
    for fact in facts.facts:
        found[fact.subject].append(fact)
    return {name: tuple(about) for name, about in found.items()}


def further(by_subject: Mapping[str, tuple[Fact, ...]], relation: str, name: str) -> dict[str, Fact]:
    """Facts about an object of a relation, by their relations; none if its name is only a homonym."""
    allowed = FURTHER.get(KINDS.get(relation, ""), ())
    return {fact.relation: fact for fact in by_subject.get(name, ()) if fact.relation in allowed}


def multi_hop_cases(
    facts: FactSet, n: int | None = None, seed: int = 0, *, split: str = "test", edited: str = "first"
) -> list[MultiHopCase]:
    """Multi-hop cases in the form of MQuAKE.

    Args:
        facts: the fact set.
        n: number of cases; all by default. Fewer cases are the first ones of more.
        seed: of all draws.
        split: ``test``, ``validation`` or ``all``. The head of the chain and every edited subject belong to
            it, as subjects do to the other data of that split; unedited facts in between may be of any.
        edited: ``first``, ``second`` or ``both``, the facts that are edited.

    Raises:
        DataError: if ``n`` is below 1, or fewer than ``n`` cases can be made.
        UnknownNameError: if the split or the choice of edited facts does not exist.
    """
    for kind, name, known in (("split", split, SPLITS), ("choice of edited facts", edited, EDITED)):
        if name not in known:
            raise UnknownNameError(kind, name, list(known))
    if n is not None and n < 1:
        raise DataError(f"{n} cases were asked for; ask for at least 1, or leave n out for all")
    by_subject = subjects(facts)
    order = sorted(chains(facts), key=lambda chain: (seeded(chain.id, seed).random(), chain.id))
    made = (_case(facts, by_subject, chain, seed, edited) for chain in order)
    cases = _consistent(case for case in made if case is not None and _belongs(case, split))
    if n is not None and len(cases) < n:
        raise DataError(
            f"{n} multi-hop cases were asked for, but split {split!r} with {edited!r} edited gives "
            f"{len(cases)}; ask for fewer, or for split='all'"
        )
    return cases[:n]


def _belongs(case: MultiHopCase, split: str) -> bool:
    own = {case.triples[0][0], *(edit.request.subject for edit in case.edits)}
    return split == "all" or all(split_of(name) == split for name in own)


def _consistent(cases: Iterable[MultiHopCase]) -> list[MultiHopCase]:
    """The cases without those that need a fact which another one edits to another object."""
    kept = list(cases)
    broken = {other for _, other, _ in conflicts(kept)}
    return [case for case in kept if case.id not in broken]


def _case(
    facts: FactSet, by_subject: Mapping[str, tuple[Fact, ...]], chain: Chain, seed: int, edited: str
) -> MultiHopCase | None:
    """The case of a chain; None if no new object changes the answer."""
    edits, head, end = [], chain.first, chain.second
    if edited != "second":
        middle = _new_middle(facts, by_subject, chain.first, seed)
        found = further(by_subject, head.relation, middle).get(end.relation)
        if found is None:
            return None
        edits.append((head, middle))
        head, end = Fact(head.subject, head.relation, middle), found
    if edited != "first":
        last = new_object(facts, end, seed, facts.objects[end.relation])
        if last is None:
            return None
        edits.append((end, last))
        end = Fact(end.subject, end.relation, last)
    if end.object == chain.second.object or chain.first.subject in (end.object, end.subject):
        return None
    name = f"{chain.id}/{edited}"
    return MultiHopCase(
        id=name,
        edits=tuple(_edit(facts, fact, new, f"{name}/{place}") for place, (fact, new) in enumerate(edits)),
        questions=_questions(facts, chain),
        answer=chain.second.object,
        aliases=aliases(chain.second.object),
        new_answer=end.object,
        new_aliases=aliases(end.object),
        hops=tuple(_hop(facts, fact) for fact in (chain.first, chain.second)),
        new_hops=tuple(_hop(facts, fact) for fact in (head, end)),
        triples=tuple(_triple(facts, fact) for fact in (chain.first, chain.second)),
        new_triples=tuple(_triple(facts, fact) for fact in (head, end)),
    )


def _new_middle(facts: FactSet, by_subject: Mapping[str, tuple[Fact, ...]], fact: Fact, seed: int) -> str:
    """The new object of a chain's first fact: one that changes as many answers as any; "" if none does."""
    alike = [relation for relation, kind in KINDS.items() if kind == KINDS[fact.relation]]
    pool = sorted({name for relation in alike for name in facts.objects[relation] if name in by_subject})
    old = further(by_subject, fact.relation, fact.object)

    def changed(name: str) -> int:
        new = further(by_subject, fact.relation, name)
        return sum(new[relation].object != old[relation].object for relation in new.keys() & old.keys())

    most = max(map(changed, pool), default=0)
    best = [name for name in pool if changed(name) == most > 0]
    return new_object(facts, fact, seed, best) or ""


def new_object(facts: FactSet, fact: Fact, seed: int, pool: Iterable[str]) -> str | None:
    """An object drawn from a pool, neither recorded for the subject nor visible in its name; None if none is.

    The draw depends on the seed, the fact and the pool alone.
    """
    subject = fact.subject.casefold()
    others = [
        name
        for name in pool
        if name not in facts.known_objects[fact.subject]
        and name.casefold() not in subject
        and subject not in name.casefold()
    ]
    return str(seeded(fact.id, seed).choice(others)) if others else None


def described(facts: FactSet, template: str, relation: str, subject: str, place: int = 0) -> str:
    """A template of a second fact, whose subject is described by the first fact.

    Args:
        facts: the fact set.
        template: of the second fact, with ``{}`` for its subject.
        relation: of the first fact.
        subject: of the first fact.
        place: of the description, 0 to 2.
    """
    text = template.replace(SLOT, DESCRIBED[relation][place]).replace(SLOT, subject)
    return text[:1].upper() + text[1:] if template.startswith(SLOT) else text


def _questions(facts: FactSet, chain: Chain) -> tuple[str, ...]:
    asked = facts.relations[chain.second.relation].questions
    return tuple(
        described(facts, asked[place % len(asked)], chain.first.relation, chain.first.subject, place)
        for place in range(3)
    )


def _edit(facts: FactSet, fact: Fact, new: str, name: str) -> HopEdit:
    relation = facts.relations[fact.relation]
    request = EditRequest(relation.prompt, fact.subject, new, name)
    return HopEdit(request, fact.object, relation.questions[0].replace(SLOT, fact.subject), fact.relation)


def _hop(facts: FactSet, fact: Fact) -> Hop:
    relation = facts.relations[fact.relation]
    question, cloze = (text.replace(SLOT, fact.subject) for text in (relation.questions[0], relation.prompt))
    return Hop(question, cloze, fact.object, aliases(fact.object))


def _triple(facts: FactSet, fact: Fact) -> Triple:
    return fact.subject, facts.relations[fact.relation].name, fact.object
