"""Measures of KnowEdit under teacher forcing: edit success, portability and locality, by tokens.

As in EasyEdit, from which AlphaEdit's Table 4 has them: edit success and portability are the share of the
answer's tokens that are the most probable ones at their places, and locality the share of places at which the
most probable token is the one of the unedited model, whether it was right or not. A case's value is the mean
over its criteria of the means over their tests, a table's the mean over cases. Of the accepted names of an
answer the first is asked for.

Sources: Zhang et al. 2024 (KnowEdit); EasyEdit, ``easyeditor/evaluate`` and the summary in
``examples/run_knowedit_llama2.py``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from palimpsest.errors import ScoreError
from palimpsest.evaluation.answers import Pair
from palimpsest.evaluation.fluency import fluency
from palimpsest.evaluation.hops import Query, Test
from palimpsest.network.activations import run_behind
from palimpsest.network.head import logits_of
from palimpsest.network.model import EditableModel
from palimpsest.network.packed import pack
from palimpsest.network.sampling import sample
from palimpsest.network.tokens import encode_target
from palimpsest.types import Record

PORTABILITY = ("logical_generalisation", "reasoning", "subject_aliasing")
LOCALITY = ("relation_specificity", "preservation")
MEASURES = ("edit_success", "portability", "locality")

ROWS_PER_PASS = 64
"""Prompts with their answers that are read together."""


@runtime_checkable
class KnowEditCase(Protocol):
    """An edit with tests of what should follow from it and what should stay."""

    @property
    def id(self) -> str:
        """Unique among the cases."""
        ...

    @property
    def query(self) -> Query:
        """The edited statement with its new object."""
        ...

    @property
    def tests(self) -> Mapping[str, Sequence[Test]]:
        """Criterion -> tests."""
        ...


@dataclass(frozen=True)
class Forced:
    """Tokens of one answer after its prompt.

    Attributes:
        wanted: the answer's.
        likeliest: the most probable one at the place of each, given the answer's before it.
    """

    wanted: tuple[int, ...]
    likeliest: tuple[int, ...]


def forced_tokens(model: EditableModel, cases: Sequence[KnowEditCase]) -> dict[Pair, Forced]:
    """What a model, as it is now, holds for likeliest at each token of the answers of some cases.

    Args:
        model: the model, edited or not.
        cases: any number.

    Returns:
        (prompt, answer) -> tokens, of every edit and every test of the cases.

    Raises:
        ScoreError: if a prompt gives no token.
        RequestError: if an answer gives no token.
    """
    pairs = list(dict.fromkeys(pair for case in cases for pair in _pairs(case)))
    found: dict[Pair, Forced] = {}
    for start in range(0, len(pairs), ROWS_PER_PASS):
        here = pairs[start : start + ROWS_PER_PASS]
        found |= dict(zip(here, _forced(model, here), strict=True))
    return found


def knowedit(
    cases: Sequence[KnowEditCase], before: Mapping[Pair, Forced], after: Mapping[Pair, Forced]
) -> list[Record]:
    """Edit success, portability and locality of each case that has tests of them.

    Args:
        cases: with unique ids.
        before: of the unedited model, from `forced_tokens` of the same cases.
        after: of the edited one.

    Returns:
        Records with metrics of ``MEASURES`` and values in [0, 1]; ``prompts`` is the number of tests.

    Raises:
        ScoreError: if ids repeat, or an answer of a case was not asked for.
    """
    ids = [case.id for case in cases]
    twice = sorted({name for name in ids if ids.count(name) > 1})
    if twice:
        raise ScoreError(f"{len(twice)} ids of cases repeat, for example {twice[0]!r}; give each its own")
    lacking = [p for case in cases for p in _pairs(case) if p not in before or p not in after]
    if lacking:
        raise ScoreError(
            f"{len(lacking)} answers were not asked for, first {lacking[0]}; make both arguments with "
            "forced_tokens of the same cases"
        )
    wanted = {pair: one.wanted for pair, one in after.items()}
    as_before = {pair: one.likeliest for pair, one in before.items()}
    records = []
    for case in cases:
        edit = after[_pair(case.query)]
        records.append(Record(case.id, MEASURES[0], _same(edit.likeliest, edit.wanted), 1))
        for measure, criteria, aim in zip(
            MEASURES[1:], (PORTABILITY, LOCALITY), (wanted, as_before), strict=True
        ):
            held = [[_pair(q) for t in case.tests[c] for q in t.queries] for c in criteria if c in case.tests]
            shares = [np.mean([_same(after[pair].likeliest, aim[pair]) for pair in of]) for of in held]
            if shares:
                records.append(Record(case.id, measure, float(np.mean(shares)), sum(map(len, held))))
    return records


def fluency_of(
    model: EditableModel, cases: Sequence[KnowEditCase], tokens: int = 100, seed: int = 0
) -> list[Record]:
    """Fluency of one text sampled after each edited statement, in bits; see `palimpsest.evaluation.fluency`.

    Args:
        model: the model as it is now.
        cases: any number.
        tokens: of a text, at most; EasyEdit draws 100. Short texts have less entropy.
        seed: of the texts.

    Raises:
        ScoreError, NonFiniteError: as `palimpsest.network.sampling.sample`.
    """
    texts = sample(model, [case.query.prompt for case in cases], tokens, seed=seed)
    return [Record(case.id, "fluency", fluency(text), 1) for case, text in zip(cases, texts, strict=True)]


def _pair(query: Query) -> Pair:
    return query.prompt, query.answers[0][0]


def _pairs(case: KnowEditCase) -> list[Pair]:
    """Of the edit and of all tests."""
    tests = [test for held in case.tests.values() for test in held]
    return [_pair(case.query), *(_pair(query) for test in tests for query in test.queries)]


def _same(one: Sequence[int], other: Sequence[int]) -> float:
    """Share of places at which two rows of tokens agree."""
    return float(np.mean([a == b for a, b in zip(one, other, strict=True)]))


def _forced(model: EditableModel, pairs: Sequence[Pair]) -> list[Forced]:
    prompts = [model.encode(prompt) for prompt, _ in pairs]
    for (text, _), ids in zip(pairs, prompts, strict=True):
        if not ids:
            raise ScoreError(f"prompt {text!r} gives no token, so nothing follows it; give it a text")
    wanted = [encode_target(model.tokenizer, target, prompt) for prompt, target in pairs]
    packed = pack([ids + own[:-1] for ids, own in zip(prompts, wanted, strict=True)]).to(model.device)
    at = torch.cat(
        [
            packed.place[row, len(ids) - 1 : len(ids) - 1 + len(own)]
            for row, (ids, own) in enumerate(zip(prompts, wanted, strict=True))
        ]
    )
    with torch.no_grad():
        hidden = run_behind(model, [], packed).flatten(0, 1)  # (b·t, d_v)
        best: Int[Tensor, " q"] = logits_of(model, hidden[at]).argmax(1).cpu()
    ends = [0, *torch.tensor([len(own) for own in wanted]).cumsum(0).tolist()]
    return [
        Forced(tuple(own), tuple(best[a:b].tolist()))
        for own, (a, b) in zip(wanted, pairwise(ends), strict=True)
    ]
