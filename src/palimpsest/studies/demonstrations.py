"""Demonstrations for in-context editing, made from facts that no evaluation case uses."""

from collections.abc import Sequence

from palimpsest.editors.ike import Demonstration
from palimpsest.errors import DataError
from palimpsest.types import EvalCase


def demonstrations(cases: Sequence[EvalCase], asked: Sequence[EvalCase] = ()) -> tuple[Demonstration, ...]:
    """One demonstration of each case that can be shown without leaking an evaluation case.

    Args:
        cases: facts to show, for example of another split.
        asked: cases that will be scored. Their prompts, and facts about their subjects, are not shown.

    Raises:
        DataError: if no demonstration is left.
    """
    subjects = {case.request.subject for case in asked}
    prompts = {prompt for case in asked for prompt in _prompts(case)}
    found = []
    for case in cases:
        if case.request.subject in subjects or case.request.text in prompts:
            continue
        rewordings = [text for text in case.paraphrases if text not in prompts]
        elsewhere = [probe for probe in case.neighbours if probe.prompt not in prompts]
        if rewordings and elsewhere:
            found.append(Demonstration(case.request, rewordings[0], elsewhere[0]))
    if not found:
        raise DataError(
            f"none of {len(cases)} cases can be shown: each lacks a paraphrase or a neighbour, or is asked "
            f"about in one of {len(asked)} tests; take cases of another split"
        )
    return tuple(found)


def _prompts(case: EvalCase) -> list[str]:
    rewordings = [text for texts in case.perturbations.values() for text in texts]
    return [case.request.text, *case.paraphrases, *rewordings, *(probe.prompt for probe in case.neighbours)]
