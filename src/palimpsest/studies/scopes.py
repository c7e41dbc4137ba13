"""Pairs that a scope is calibrated on: statements of facts with prompts that they answer, and with others."""

from collections.abc import Sequence

from palimpsest.editors.serac import Pair
from palimpsest.errors import DataError
from palimpsest.types import EvalCase, joined


def scope_pairs(cases: Sequence[EvalCase], each: int = 2) -> tuple[list[Pair], list[Pair]]:
    """Pairs in scope, from the rewordings of each case, and out of scope, from its neighbours.

    Args:
        cases: none of which is tested, for example of the validation split.
        each: most pairs of either kind from one case.

    Raises:
        DataError: if either kind has no pair.
    """
    inside, outside = [], []
    for case in cases:
        statement = joined(case.request.text, case.request.target)
        inside += [(statement, prompt) for prompt in case.paraphrases[:each]]
        outside += [(statement, probe.prompt) for probe in case.neighbours[:each]]
    if not inside or not outside:
        raise DataError(
            f"{len(cases)} cases give {len(inside)} pairs in scope and {len(outside)} out of it; give cases "
            "with paraphrases and neighbours"
        )
    return inside, outside
