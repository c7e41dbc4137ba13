"""Scores of multi-hop questions and ripple tests, from prompts and the answers that are right.

What counts as a right answer is decided by a judge: `spoken` lets a model answer greedily and looks for an
accepted text in what it says, as the code of RippleEdits does, and `forced` asks by teacher forcing whether
greedy decoding would give an accepted text. A case's value is a share in [0, 1], a table's the mean over
cases.

Cases are any objects with the members below, such as those of the project's data sets.

Sources: Zhong et al. 2023 (MQuAKE): edit-wise success rate, instance-wise accuracy, and multi-hop accuracy,
where any of the three questions counts. Cohen et al. 2024 (RippleEdits), whose code takes tests only where
the model answers their conditions before the edit; the shares of passed tests are means over the cases that
have such tests. Unlike there, a failed edit does not take a case out of the mean, and neither does an edit of
a fact that the model did not know.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Literal, Protocol, runtime_checkable

import numpy as np

from palimpsest.errors import ScoreError
from palimpsest.evaluation.answers import ask
from palimpsest.evaluation.metrics import accuracy
from palimpsest.evaluation.said import first_answers
from palimpsest.mentions import mentions, normal
from palimpsest.network.model import EditableModel
from palimpsest.results.intervals import Interval, bootstrap_mean
from palimpsest.types import Record, plain

TOKENS = 20
"""Tokens of a spoken answer, at most."""


@runtime_checkable
class Query(Protocol):
    """A prompt with groups of accepted texts, of each of which one has to be given."""

    @property
    def prompt(self) -> str:
        """The question, or a statement without its end."""
        ...

    @property
    def answers(self) -> tuple[tuple[str, ...], ...]:
        """Groups of accepted texts."""
        ...


@runtime_checkable
class Asking(Protocol):
    """Anything that stands for a query: an edit or a hop."""

    @property
    def query(self) -> Query:
        """The query."""
        ...


@runtime_checkable
class HopCase(Protocol):
    """A multi-hop case."""

    @property
    def id(self) -> str:
        """Unique among the cases."""
        ...

    @property
    def edits(self) -> Sequence[Asking]:
        """The edited statements with their new objects."""
        ...

    @property
    def hops(self) -> Sequence[Asking]:
        """The facts of the chain before the edits."""
        ...

    @property
    def new_hops(self) -> Sequence[Asking]:
        """The facts of the chain after the edits."""
        ...

    @property
    def before(self) -> Sequence[Query]:
        """The questions with the answers before the edits."""
        ...

    @property
    def after(self) -> Sequence[Query]:
        """The questions with the answers after the edits."""
        ...


@runtime_checkable
class Test(Protocol):
    """A ripple test."""

    @property
    def queries(self) -> Sequence[Query]:
        """Asked after the edit."""
        ...

    @property
    def conditions(self) -> Sequence[Query]:
        """Asked before it."""
        ...

    @property
    def every(self) -> bool:
        """Whether all queries have to be answered rightly, or one of them."""
        ...


@runtime_checkable
class TestedCase(Protocol):
    """An edit with ripple tests by criterion."""

    @property
    def id(self) -> str:
        """Unique among the cases."""
        ...

    @property
    def tests(self) -> Mapping[str, Sequence[Test]]:
        """Criterion -> tests."""
        ...


Judge = Callable[[Sequence[Query]], Sequence[bool]]
"""Queries -> whether each is answered rightly."""

Speaker = Callable[[Sequence[str]], Sequence[str]]
"""Prompts -> what is said after each."""

Match = Literal["mentions", "begins"]


def given(said: str, accepted: Sequence[str], match: Match = "mentions") -> bool:
    """Whether an answer gives one of the accepted texts, in whole words and whatever the case.

    Args:
        said: the answer.
        accepted: texts.
        match: ``mentions`` finds a text anywhere, ``begins`` only where the answer begins.
    """
    text = normal(said).casefold().strip()
    places = (mentions(text, normal(plain(name)).casefold().strip()) for name in accepted)
    return any(found and (match == "mentions" or found[0][0] == 0) for found in places)


def judged_by(speaker: Speaker, match: Match = "mentions") -> Judge:
    """The judge of what a speaker says: right if a text of every group is given.

    Args:
        speaker: prompts -> answers, each prompt asked once.
        match: as `given`.

    Raises:
        ScoreError: from the returned judge, if the speaker gives another number of answers than prompts.
    """

    def judge(queries: Sequence[Query]) -> list[bool]:
        prompts = list(dict.fromkeys(query.prompt for query in queries))
        said = list(speaker(prompts))
        if len(said) != len(prompts):
            raise ScoreError(f"{len(said)} answers were given to {len(prompts)} prompts; give one to each")
        answer = dict(zip(prompts, said, strict=True))
        return [all(given(answer[q.prompt], group, match) for group in q.answers) for q in queries]

    return judge


def spoken(model: EditableModel, tokens: int = TOKENS, match: Match = "mentions") -> Judge:
    """The judge of a model's greedy answers.

    Args:
        model: the model as it is when the judge is asked.
        tokens: of an answer, at most.
        match: as `given`.

    Raises:
        ScoreError, NonFiniteError: from the returned judge, as `palimpsest.evaluation.said.first_answers`.
    """
    return judged_by(lambda prompts: first_answers(model, prompts, tokens), match)


def forced(model: EditableModel) -> Judge:
    """The judge by teacher forcing: right if of every group one text is what greedy decoding gives.

    A query with two groups is right only if both begin the answer, so `spoken` is the one for such lists.

    Raises:
        ScoreError, RequestError, NonFiniteError: from the returned judge, as
            `palimpsest.evaluation.answers.ask`.
    """

    def judge(queries: Sequence[Query]) -> list[bool]:
        pairs = [(q.prompt, name) for q in queries for group in q.answers for name in group]
        answers = ask(model, pairs)
        right = accuracy(answers.hits, answers.mask).bool().tolist() if pairs else []
        by_group = [any(hits) for hits in _dealt(right, [len(group) for q in queries for group in q.answers])]
        return [all(groups) for groups in _dealt(by_group, [len(q.answers) for q in queries])]

    return judge


def edit_wise(cases: Sequence[HopCase], after: Judge) -> list[Record]:
    """Share of each case's edited statements that the edited model completes with the new object."""
    return _shares("edit_wise", cases, [[edit.query for edit in case.edits] for case in cases], after)


def hop_wise(cases: Sequence[HopCase], judge: Judge, new: bool = True) -> list[Record]:
    """Share of the single facts of each case's chain that are recalled.

    Args:
        cases: any number.
        judge: of the edited model for ``new`` facts, of the unedited one for the old ones.
        new: ask for the facts after the edits; otherwise for those before.
    """
    asked = [[hop.query for hop in (case.new_hops if new else case.hops)] for case in cases]
    return _shares("hop_wise", cases, asked, judge)


def instance_wise(cases: Sequence[HopCase], judge: Judge, new: bool = True) -> list[Record]:
    """1 for each case all of whose single facts are recalled, else 0; arguments as `hop_wise`."""
    return [
        Record(one.case, "instance_wise", float(one.value == 1), one.prompts)
        for one in hop_wise(cases, judge, new)
    ]


def multi_hop(cases: Sequence[HopCase], judge: Judge, new: bool = True) -> list[Record]:
    """1 for each case any of whose questions is answered rightly, else 0; arguments as `hop_wise`."""
    found = _shares("multi_hop", cases, [case.after if new else case.before for case in cases], judge)
    return [Record(one.case, one.metric, float(one.value > 0), one.prompts) for one in found]


def ripple(cases: Sequence[TestedCase], before: Judge, after: Judge) -> list[Record]:
    """Share of each case's tests of each criterion that are passed, of those whose conditions hold.

    Args:
        cases: any number.
        before: judge of the unedited model, asked about the conditions; call it before the edit is made, or
            give answers that were kept.
        after: judge of the edited model.

    Returns:
        One record for each case and criterion with a test whose conditions hold; ``prompts`` is the number of
        these tests.
    """
    held = conditions_held(cases, before)
    kept = [
        (case.id, criterion, test)
        for case in cases
        for criterion, tests in case.tests.items()
        for place, test in enumerate(tests)
        if held[case.id, criterion, place]
    ]
    right = after([query for _, _, test in kept for query in test.queries])
    dealt = _dealt(right, [len(test.queries) for _, _, test in kept])
    passed: dict[tuple[str, str], list[bool]] = {}
    for (name, criterion, test), answered in zip(kept, dealt, strict=True):
        passed.setdefault((name, criterion), []).append(all(answered) if test.every else any(answered))
    return [
        Record(name, criterion, float(np.mean(found)), len(found))
        for (name, criterion), found in passed.items()
    ]


def conditions_held(cases: Sequence[TestedCase], before: Judge) -> dict[tuple[str, str, int], bool]:
    """Whether all conditions of each test hold: (case, criterion, place of the test) -> bool.

    Raises:
        ScoreError: if ids of cases repeat.
    """
    _require_distinct(cases)
    tests = [
        ((case.id, criterion, place), test)
        for case in cases
        for criterion, held in case.tests.items()
        for place, test in enumerate(held)
    ]
    right = before([query for _, test in tests for query in test.conditions])
    dealt = _dealt(right, [len(test.conditions) for _, test in tests])
    return {key: all(answered) for (key, _), answered in zip(tests, dealt, strict=True)}


def intervals(records: Iterable[Record], seed: int, level: float = 0.95) -> dict[str, Interval]:
    """Mean over cases of each metric, with a percentile bootstrap interval over cases.

    Args:
        records: of any metrics, in any order.
        seed: of every interval.
        level: nominal coverage, in (0, 1).

    Returns:
        Metric -> interval, in order of appearance; the ends are NaN where there is only one case.

    Raises:
        ScoreError: if a case has two values of one metric, or the level is out of range.
    """
    values: dict[str, dict[str, float]] = {}
    for one in records:
        if one.case in values.setdefault(one.metric, {}):
            raise ScoreError(f"case {one.case!r} has two values of {one.metric!r}; give each case once")
        values[one.metric][one.case] = one.value
    found = {}
    for metric, by_case in values.items():
        numbers = list(by_case.values())
        alone = len(numbers) == 1
        found[metric] = (
            Interval(numbers[0], np.nan, np.nan, 1) if alone else bootstrap_mean(numbers, seed, level)
        )
    return found


def _shares(
    metric: str, cases: Sequence[HopCase], asked: Sequence[Sequence[Query]], judge: Judge
) -> list[Record]:
    """The share of each case's queries that are answered rightly; all are asked at once."""
    _require_distinct(cases)
    empty = [case.id for case, queries in zip(cases, asked, strict=True) if not queries]
    if empty:
        raise ScoreError(f"case {empty[0]!r} has nothing to ask for {metric}; leave it out")
    right = judge([query for queries in asked for query in queries])
    return [
        Record(case.id, metric, float(np.mean(answered)), len(answered))
        for case, answered in zip(cases, _dealt(right, list(map(len, asked))), strict=True)
    ]


def _dealt(right: Sequence[bool], sizes: Sequence[int]) -> list[list[bool]]:
    """The judgements in runs of the given sizes."""
    if len(right) != sum(sizes):
        raise ScoreError(
            f"a judge gave {len(right)} judgements of {sum(sizes)} queries; it must give one each"
        )
    ends = [0, *accumulate(sizes)]
    return [list(right[start:end]) for start, end in pairwise(ends)]


def _require_distinct(cases: Sequence[HopCase] | Sequence[TestedCase]) -> None:
    ids = [case.id for case in cases]
    twice = sorted({name for name in ids if ids.count(name) > 1}) if len({*ids}) < len(ids) else []
    if twice:
        raise ScoreError(f"{len(twice)} ids of cases repeat, for example {twice[0]!r}; give each its own")
