"""Hard data sets from random measures, which several test files build."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from palimpsest.datasets import AlphaSet, Measures, alphaset1, alphaset2, alphaset3, known_reworded, rewrites
from palimpsest.types import EditRequest, EvalCase

HARD, OTHERS, GAP = 20, 80, 10
Recipe = Callable[..., AlphaSet]
NAMES = ("alphaset1", "alphaset2", "alphaset3")
every_set = pytest.mark.parametrize("name", NAMES)


def numbers(cases: list[EvalCase], seed: int = 0) -> dict[str, Measures]:
    """Random measures of every case."""
    drawn = np.random.default_rng(seed).random((len(cases), 3)).tolist()
    return {case.id: Measures(*row) for case, row in zip(cases, drawn, strict=True)}


def known(base: list[EvalCase]) -> list[bool]:
    return [i % 3 == 0 for i in range(len(base))]


OFFERED: dict[tuple[str, ...], list[EvalCase]] = {}
"""Candidates by the set and the prompts of its base facts, made once."""


def candidates_of(name: str, base: list[EvalCase]) -> list[EvalCase]:
    if name == "alphaset3":
        return base
    key = (name, *(case.request.text for case in base))
    if key not in OFFERED:
        OFFERED[key] = rewrites(base, 5) if name == "alphaset2" else known_reworded(base, known(base), 1)
    return OFFERED[key]


def build(name: str, base: list[EvalCase], **options: Any) -> AlphaSet:
    """One of the three sets from random measures."""
    sizes = {"hard": HARD, "others": OTHERS, "seed": 5} | options
    if name == "alphaset3":
        return alphaset3(base, numbers(base), **sizes)
    candidates = candidates_of(name, base)
    if name == "alphaset1":
        return alphaset1(base, candidates, numbers([*base, *candidates]), **sizes)
    return alphaset2(base, candidates, numbers([*base, *candidates]), **({"gap": GAP} | sizes))


def prompts(case: EvalCase) -> set[str]:
    """Everything that is ever asked about a case."""
    levels = {text for texts in case.perturbations.values() for text in texts}
    return {case.request.text, *case.paraphrases, *(p.prompt for p in case.neighbours)} | levels


def of_hand(*paraphrases: str, perturbations: dict[int, tuple[str, ...]] | None = None) -> EvalCase:
    request = EditRequest("{} was born in", "Ada", "Oslo", "a")
    return EvalCase("a", request, "Rome", paraphrases, (), "P19", perturbations or {})
