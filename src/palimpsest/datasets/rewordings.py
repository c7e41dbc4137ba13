"""Other wordings of a fact: as the prompt of a second edit, and held out for validation.

The held-out wording is the same for a fact and for its rewording, and never becomes a prompt.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from palimpsest.datasets.cases import seeded
from palimpsest.errors import DataError, RequestError
from palimpsest.types import EditRequest, EvalCase

REWORDED, REWRITTEN, QUESTION = "/reworded", "/rewritten", "/zsre"
"""Suffixes added to the id of the base fact: by `reworded`, by `rewrites` and for questions."""


def origin(case_id: str) -> str:
    """Id of the base fact from which a case was made; the id of a base fact is unchanged."""
    for ending in (REWORDED, REWRITTEN, QUESTION):
        case_id = case_id.removesuffix(ending)
    return case_id


def rewritten_of(case_id: str) -> str:
    """Id of the edit that a case from `rewrites` rewrites: of the fact, or of the question about it."""
    return case_id.removesuffix(REWRITTEN)


def as_request(case: EvalCase, text: str) -> EditRequest | None:
    """The case's edit with another wording as prompt; None if that does not name the subject exactly once."""
    try:
        return EditRequest(text, case.request.subject, case.request.target, case.request.id)
    except RequestError:
        return None


def hold_out(case: EvalCase) -> tuple[EvalCase, str]:
    """Hold out one wording of a case, so that no evaluation prompt uses it.

    With two paraphrases or more it is the last that can be a prompt, else the lightest perturbation that can.

    Returns:
        The case without that wording, and the wording. If there is none to spare, as in the original
        CounterFact and ZsRE files with one paraphrase, the unchanged case and an empty text.
    """
    if len(case.paraphrases) > 1:
        for text in reversed(case.paraphrases):
            if as_request(case, text):
                return without(case, {text}), text
    for level in sorted(case.perturbations):
        for text in case.perturbations[level]:
            if as_request(case, text):
                return without(case, {text}), text
    return case, ""


def without(case: EvalCase, texts: Collection[str]) -> EvalCase:
    """The case without the paraphrases, perturbations and neighbour prompts that are among the texts."""
    levels = {
        level: tuple(t for t in wordings if t not in texts) for level, wordings in case.perturbations.items()
    }
    return replace(
        case,
        paraphrases=tuple(text for text in case.paraphrases if text not in texts),
        neighbours=tuple(probe for probe in case.neighbours if probe.prompt not in texts),
        perturbations={level: wordings for level, wordings in levels.items() if wordings},
    )


def reworded(case: EvalCase) -> EvalCase:
    """The same edit with a rewording as prompt: the first paraphrase that names the subject exactly once.

    The old prompt takes the place of that paraphrase, so both cases have the same set of wordings. The new id
    ends in ``/reworded``.

    Raises:
        DataError: if no paraphrase other than the one that `hold_out` takes can be a prompt.
    """
    for text in hold_out(case)[0].paraphrases:
        request = as_request(case, text)
        if request is not None:
            name = case.id + REWORDED
            place = case.paraphrases.index(text)
            wordings = (*case.paraphrases[:place], case.request.text, *case.paraphrases[place + 1 :])
            return replace(case, id=name, request=replace(request, id=name), paraphrases=wordings)
    raise DataError(
        f"case {case.id!r}: none of its {len(case.paraphrases)} paraphrases names the subject "
        f"{case.request.subject!r} exactly once and is free to be a prompt; leave the case out or give it "
        "another paraphrase"
    )


def known_reworded(base: Sequence[EvalCase], known: Sequence[bool], hard: int = 200) -> list[EvalCase]:
    """Rewordings of the facts that a model knows before any edit: candidates of AlphaSet1.

    Args:
        base: facts with a true object; the edit writes the new object.
        known: whether the model knows each fact, from `palimpsest.evaluation.evaluate.knows`.
        hard: least number of candidates.

    Returns:
        One case for each known fact that can be reworded, in the order of the base facts.

    Raises:
        DataError: if fewer than ``hard`` are found, or ``known`` and ``base`` differ in number.
    """
    if len(known) != len(base):
        raise DataError(f"{len(known)} answers for {len(base)} base facts; ask knows about the same facts")
    tried = [_reworded_or_none(case) for case, knows in zip(base, known, strict=True) if knows]
    found = [case for case in tried if case is not None]
    if len(found) < hard:
        raise DataError(
            f"the model knows {sum(known)} of {len(base)} base facts and {len(found)} of them can be "
            f"reworded, {hard} are needed; give more base facts, take a model that knows more, or lower hard"
        )
    return found


def rewrites(
    base: Sequence[EvalCase], seed: int = 0, objects: Mapping[str, Sequence[str]] | None = None
) -> list[EvalCase]:
    """Second edits of base facts, with a reworded prompt and a third object: candidates of AlphaSet2.

    The third object is drawn uniformly from those of the relation, without the true object, the first new
    object, objects true of the subject under any relation in the base facts, and those visible in its name.
    Base facts without a relation are grouped by their prompt template. The true object of the rewrite is that
    of the fact.

    Args:
        base: facts to edit first.
        seed: of the draws; each draw depends on the seed and the id of its fact only.
        objects: relation -> objects; by default all that occur in the base facts.

    Returns:
        One case for each base fact that can be reworded and has a third object; the ids end in
        ``/rewritten``.
    """
    objects = objects if objects is not None else _objects(base)
    held: dict[str, set[str]] = defaultdict(set)
    for case in base:
        held[case.request.subject].add(case.target_true)
    found = []
    for case in base:
        second = _reworded_or_none(case)
        subject = case.request.subject
        taken = held[subject] | {case.request.target}
        known = objects.get(_group(case), ())
        others = sorted({o for o in known if o not in taken and not _alike(o.casefold(), subject.casefold())})
        if second is not None and others:
            name, third = case.id + REWRITTEN, str(seeded(case.id, seed).choice(others))
            request = replace(second.request, id=name, target=third)
            found.append(replace(second, id=name, request=request))
    return found


def _reworded_or_none(case: EvalCase) -> EvalCase | None:
    try:
        return reworded(case)
    except DataError:
        return None


def _group(case: EvalCase) -> str:
    """The relation, or the prompt template if the data set names no relation."""
    return case.relation or case.request.prompt


def _objects(base: Sequence[EvalCase]) -> dict[str, list[str]]:
    """All objects that occur under each relation, or under each prompt template without a relation."""
    found: dict[str, set[str]] = defaultdict(set)
    for case in base:
        found[_group(case)] |= {case.target_true, case.request.target} - {""}
    return {group: sorted(objects) for group, objects in found.items()}


def _alike(a: str, b: str) -> bool:
    return a in b or b in a
