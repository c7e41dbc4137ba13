"""Ripple cases chosen so that every criterion has enough of them that count for a model.

A test counts only where the unedited model answers its conditions, which a small model rarely does. The
conditions cost a few answers and an edit costs much more, so they are asked first.
"""

from collections.abc import Sequence
from typing import TypeVar

from palimpsest.errors import ScoreError
from palimpsest.evaluation.hops import Judge, TestedCase, conditions_held

Case = TypeVar("Case", bound=TestedCase)

BLOCK = 32
"""Cases whose conditions are asked together."""


def enough(cases: Sequence[Case], before: Judge, each: int) -> list[Case]:
    """The first cases with which every criterion has some number of cases that count, if there are so many.

    Criteria are filled in turn, the rarest first, and cases that count for several serve them all. No answer
    of an edited model has a part in the choice.

    Args:
        cases: with unique ids.
        before: judge of the unedited model; one that remembers is asked nothing twice.
        each: cases of each criterion with a test whose conditions hold.

    Returns:
        The chosen cases, in their order. A criterion has fewer than ``each`` only if no further case counts.

    Raises:
        ScoreError: if ``each`` is below 1, or ids of cases repeat.
    """
    if each < 1:
        raise ScoreError(f"each is {each}; ask for one case or more of each criterion")
    of = {name: [case for case in cases if name in case.tests] for case in cases for name in case.tests}
    counts: dict[str, set[str]] = {}
    chosen: dict[str, set[str]] = {}
    for criterion in sorted(of, key=lambda name: (len(of[name]), name)):
        for start in range(0, len(of[criterion]), BLOCK):
            block = of[criterion][start : start + BLOCK]
            if sum(criterion in held for held in chosen.values()) >= each:
                break
            new = [case for case in block if case.id not in counts]
            counts |= {case.id: set() for case in new}
            for (name, kind, _), holds in conditions_held(new, before).items():
                counts[name] |= {kind} if holds else set()
            for case in block:
                short = sum(criterion in held for held in chosen.values()) < each
                if short and criterion in counts[case.id]:
                    chosen[case.id] = counts[case.id]
    return [case for case in cases if case.id in chosen]
