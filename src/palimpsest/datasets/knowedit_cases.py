"""KnowEdit cases from the project's facts: an edit with what should follow from it, and what should stay.

They are the ripple tests of `palimpsest.datasets.ripples` in the form of KnowEdit's wiki_counterfact: without
conditions, and with both kinds of composition under one name. Source of the form: Zhang et al. 2024.
"""

from dataclasses import replace

from palimpsest.datasets.facts import FactSet
from palimpsest.datasets.harder_cases import REASONING, RippleCase, RippleTest
from palimpsest.datasets.ripples import ripple_cases
from palimpsest.errors import DataError

PORTABILITY = ("logical_generalisation", REASONING, "subject_aliasing")
"""Criteria of what should follow from an edit."""

LOCALITY = ("relation_specificity", "preservation")
"""Criteria of what should stay. KnowEdit calls the second forgetfulness."""

COMPOSED = ("compositionality_1", "compositionality_2")

KIND = "wiki_counterfact"
"""Part of KnowEdit whose form these cases have."""


def knowedit_cases(
    facts: FactSet, n: int | None = None, seed: int = 0, *, split: str = "test"
) -> list[RippleCase]:
    """KnowEdit cases that have tests of both portability and locality.

    Args:
        facts: the fact set.
        n: number of cases; all by default. Fewer cases are the first ones of more.
        seed: of all draws.
        split: ``test``, ``validation`` or ``all``, to which the edited subject belongs.

    Raises:
        DataError: if ``n`` is below 1, or fewer than ``n`` cases can be made.
        UnknownNameError: if the split does not exist.
    """
    if n is not None and n < 1:
        raise DataError(f"{n} cases were asked for; ask for at least 1, or leave n out for all")
    made = (_case(case) for case in ripple_cases(facts, seed=seed, split=split))
    cases = [case for case in made if all(any(c in case.tests for c in of) for of in (PORTABILITY, LOCALITY))]
    if n is not None and len(cases) < n:
        raise DataError(
            f"{n} KnowEdit cases were asked for, but split {split!r} gives {len(cases)}; ask for fewer, or "
            "for split='all'"
        )
    return cases[:n]


def _case(case: RippleCase) -> RippleCase:
    tests: dict[str, tuple[RippleTest, ...]] = {}
    for criterion, held in case.tests.items():
        name = REASONING if criterion in COMPOSED else criterion
        tests[name] = (*tests.get(name, ()), *(RippleTest(test.queries) for test in held))
    return replace(case, tests=tests, kind=KIND, relation="")
