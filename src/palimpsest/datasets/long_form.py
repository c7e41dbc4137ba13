"""Long-form cases from the project's facts: texts about a subject and about entities that depend on it.

Related are entities whose object the subject is, and others with the same object under the relation, as in
LEME's ``subject_as_object`` and ``overlap_properties``. The prompts are this project's; LEME's ask for an
essay on the properties of Wikidata, of which a subject has many and here one or two.

Source of the form: Rosati et al. 2024 (LEME).
"""

from palimpsest.datasets.cases import counterfact_style, seeded
from palimpsest.datasets.chains import subjects
from palimpsest.datasets.facts import Fact, FactSet
from palimpsest.datasets.harder_cases import LongFormCase, Passage
from palimpsest.types import EvalCase

RELATED = 3
"""Largest number of related entities of a case."""


def long_form_cases(
    facts: FactSet, n: int | None = None, seed: int = 0, *, split: str = "test", related: int = RELATED
) -> list[LongFormCase]:
    """Long-form cases in the form of LEME, one for each case of `palimpsest.datasets.counterfact_style`.

    Args:
        facts: the fact set.
        n: number of cases; all of the split by default. Fewer cases are the first ones of more.
        seed: of all draws.
        split: ``test``, ``validation`` or ``all``, to which the edited subject and every entity with the same
            object belong.
        related: largest number of related entities; those whose object the subject is come first.

    Raises:
        DataError: if fewer than ``n`` cases can be made.
        UnknownNameError: if the split does not exist.
    """
    about = subjects(facts)
    pool = facts.select(split)
    found = []
    for case in counterfact_style(facts, n, seed, split=split):
        subject = case.request.subject
        over = [fact.subject for fact in pool if fact.object == subject]
        same = [
            fact.subject
            for fact in pool
            if (fact.relation, fact.object) == (case.relation, case.target_true) and fact.subject != subject
        ]
        drawn = [same[place] for place in seeded(case.id, seed).permutation(len(same))]
        names = list(dict.fromkeys([*over, *drawn]))[:related]
        passages = tuple(_passage(facts, name, about[name]) for name in names)
        found.append(_long(facts, case, _passage(facts, subject, about[subject]), passages))
    return found


def _passage(facts: FactSet, name: str, about: tuple[Fact, ...]) -> Passage:
    """The text that is asked for, with all facts of its entity."""
    required = {facts.relations[fact.relation].name: (fact.object,) for fact in about}
    listed = "\n".join(f"- {label}" for label in required)
    return Passage(name, f"Tell everything that is known about {name}. Do not leave out:\n{listed}", required)


def _long(facts: FactSet, case: EvalCase, passage: Passage, related: tuple[Passage, ...]) -> LongFormCase:
    return LongFormCase(
        id=case.id,
        request=case.request,
        target_true=case.target_true,
        passage=passage,
        related=related,
        relation=case.relation,
        edited=facts.relations[case.relation].name,
        paraphrases=case.paraphrases,
        neighbours=case.neighbours,
    )
