"""Reference texts for consistency, made from the project's facts.

CounterFact compares generated text with Wikipedia snippets about subjects that have the new object under the
same relation. Those snippets are not part of this project. What stands in for them are sentences: everything
the fact set says about such subjects, in every statement of the relation, with the object filled in. They are
short, of few patterns and name the object each time, so scores against them compare edits with each other and
are **not comparable with the consistency that papers print**.

The prompts of the cases are made from the same patterns. Score continuations without their prompt, or all
texts agree in the prompt's words before anything was generated.

Paragraphs of the embedded Wikipedia articles that mention the object were tried beside the sentences and left
out: a sixth of the cases has none, and they told texts that say the new object from others less well.
"""

from collections import defaultdict
from collections.abc import Sequence

from palimpsest.datasets.facts import Fact, FactSet
from palimpsest.types import SLOT, EvalCase


def reference_texts(facts: FactSet, cases: Sequence[EvalCase]) -> dict[str, tuple[str, ...]]:
    """Sentences about other subjects of which a case's new object is true.

    A subject is left out if its name and the case's contain one another. Facts of both splits count: nothing
    is tuned on these texts.

    Args:
        facts: the fact set.
        cases: with a relation of the fact set.

    Returns:
        Case id -> sentences, by subject, relation and pattern; none if the set knows no such subject.
    """
    holders: dict[tuple[str, str], list[str]] = defaultdict(list)
    about: dict[str, list[Fact]] = defaultdict(list)
    for fact in sorted(facts.facts, key=lambda fact: (fact.subject, fact.relation)):
        holders[fact.relation, fact.object].append(fact.subject)
        about[fact.subject].append(fact)
    return {
        case.id: tuple(
            sentence
            for subject in holders.get((case.relation, case.request.target), ())
            if subject not in case.request.subject and case.request.subject not in subject
            for fact in about[subject]
            for sentence in _sentences(facts, fact)
        )
        for case in cases
    }


def reference_corpus(facts: FactSet) -> list[str]:
    """Every sentence of every fact: the documents behind the term weights of consistency."""
    return [sentence for fact in facts.facts for sentence in _sentences(facts, fact)]


def _sentences(facts: FactSet, fact: Fact) -> list[str]:
    statements = facts.relations[fact.relation].statements
    return [f"{statement.replace(SLOT, fact.subject)} {fact.object}." for statement in statements]
