"""Reference texts for consistency, made from the project's facts.

CounterFact compares generated text with Wikipedia snippets about subjects that have the new object under the
same relation. These snippets are not part of this project. They are replaced by sentences: all facts of the
fact set about such subjects, in every statement template of their relation, with the object filled in. The
sentences are short, follow few templates and name the object each time, so scores against them can compare
edits with each other but are **not comparable with the consistency that papers print**.

The prompts of the cases are made from the same templates. Score continuations without their prompt; otherwise
all texts share the prompt's words before anything is generated.

Paragraphs of the embedded Wikipedia articles that mention the object were tried as additional references and
rejected: a sixth of the cases has none, and they separated texts with the new object from others less well.
"""

from collections import defaultdict
from collections.abc import Sequence

from palimpsest.datasets.facts import Fact, FactSet
from palimpsest.types import SLOT, EvalCase


def reference_texts(facts: FactSet, cases: Sequence[EvalCase]) -> dict[str, tuple[str, ...]]:
    """Sentences about other subjects for which a case's new object is true.

    A subject is excluded if its name contains that of the case's subject or is contained in it. Facts of both
    splits are used, since nothing is tuned on these texts.

    Args:
        facts: the fact set.
        cases: with a relation of the fact set.

    Returns:
        Case id -> sentences, ordered by subject, relation and template; empty if there is no such subject.
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
    """Every sentence of every fact: the documents for `palimpsest.evaluation.fluency.term_weights`."""
    return [sentence for fact in facts.facts for sentence in _sentences(facts, fact)]


def _sentences(facts: FactSet, fact: Fact) -> list[str]:
    statements = facts.relations[fact.relation].statements
    return [f"{statement.replace(SLOT, fact.subject)} {fact.object}." for statement in statements]
