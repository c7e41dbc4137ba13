"""No rule's outcome is fixed: from each rule, records are made up that bring out each of its labels.

The records are such as a notebook could write: a share lies between 0 and 100 percent, a ratio above zero, a
place among five sets from 1 to 5, and a conflict, which is a largest absolute cosine, between 0 and 1.
"""

import math
from collections.abc import Iterator, Mapping
from functools import singledispatch
from typing import Any

import pytest

from palimpsest.results.claims import Claim, load_claims, verdict
from palimpsest.results.effects import RANK, Count, Effect, Limit, Parts
from palimpsest.results.printed_audit import Audit
from palimpsest.results.rules import (
    LABELS,
    OWN_DATA,
    Absent,
    Bias,
    Bound,
    Counterexample,
    Entry,
    Identity,
    Misprint,
    Readings,
)
from tests.results.made_up import entry

Outcome = tuple[str, dict[str, Entry]]
"""The label that is intended, and the values that should bring it out."""

CASES = 1000
"""Cases over which a made-up value is taken."""
FAVOURABLE = {"verified numerically", "reproduced", "direction only"}
JUDGED = [item for item in load_claims().claims if item.rule is not None and not isinstance(item.rule, Audit)]


def made(value: float, low: float | None = None, high: float | None = None) -> Entry:
    return entry(value, low, high, "percent", CASES, "cases")


def each(names: tuple[str, ...], value: float) -> dict[str, Entry]:
    return {name: made(value) for name in names}


# From a rule to its outcomes ------------------------------------------------------------------


@singledispatch
def outcomes(rule: Any) -> Iterator[Outcome]:
    raise TypeError(f"no outcomes are known for {type(rule).__name__}")


@outcomes.register
def _(rule: Identity) -> Iterator[Outcome]:
    yield "verified numerically", each(rule.values, rule.tolerance / 2)
    for name in rule.values:
        yield "wrong as printed", each(rule.values, 0.0) | {name: made(2 * rule.tolerance + 1e-12)}


@outcomes.register
def _(rule: Bound) -> Iterator[Outcome]:
    yield "verified numerically", {rule.violations: made(0)}
    yield "wrong as printed", {rule.violations: made(1)}


@outcomes.register
def _(rule: Misprint) -> Iterator[Outcome]:
    right, between = each(rule.corrected, rule.tolerance / 2), (rule.tolerance + rule.floor) / 2
    only = tuple(name for name in rule.printed if name not in rule.corrected)
    wrong = "biased" if isinstance(rule, Bias) else "wrong as printed"
    yield "verified numerically", right | each(only, rule.tolerance / 2)
    yield "undecided", right | each(only, between)
    yield "undecided", each((*only, *rule.corrected), 2 * rule.floor)
    for name in only:
        yield wrong, right | each(only, 0.0) | {name: made(rule.floor)}


@outcomes.register
def _(rule: Counterexample) -> Iterator[Outcome]:
    yield "wrong as printed", each(rule.corrected, 0.0) | {rule.value: made(rule.floor)}
    yield "undecided", each(rule.corrected, 0.0) | {rule.value: made(rule.floor / 2)}


@outcomes.register
def _(rule: Absent) -> Iterator[Outcome]:
    found = 2 * rule.tolerance + 1
    yield "wrong as printed", each(rule.exact, 0.0) | {rule.effect: made(rule.tolerance)}
    yield "reproduced", each(rule.exact, 0.0) | {rule.effect: made(found)}
    if rule.exact:
        yield "undecided", each(rule.exact, found) | {rule.effect: made(0)}


@outcomes.register
def _(rule: Readings) -> Iterator[Outcome]:
    claimed = made(0.9, 0.85, 0.95)
    yield "reproduced", {rule.claimed: claimed, rule.measured: made(0.9, 0.85, 0.95)}
    yield "opposite here", {rule.claimed: claimed, rule.measured: made(0.1, 0.05, 0.15)}
    yield "undecided", {rule.claimed: claimed, rule.measured: made(0.5, 0.1, 0.9)}


@outcomes.register
def _(rule: Effect) -> Iterator[Outcome]:
    for label, (value, low, high) in _of_effect(rule):
        found = made(value) if rule.exact else made(value, low, high)
        if rule.minus is not None:  # a conflict of two sets, in the middle of its range
            yield label, {rule.value: made(0.5 + value), rule.minus: made(0.5)}
        elif sensible(rule, found):
            yield label, {rule.value: found}
    if not rule.exact:
        yield "undecided", {rule.value: made(rule.reference + _sign(rule))}


def _sign(rule: Effect) -> int:
    return 1 if rule.direction == "positive" else -1


def _of_effect(rule: Effect) -> Iterator[tuple[str, tuple[float, float, float]]]:
    """Labels, each with value, lower and upper end: tightly around a size, or over everything."""
    size = None if rule.published is None else abs(rule.published - rule.reference)
    step = size or rule.worth or 0.2
    room = 0.9 * abs(rule.reference) if rule.reference else math.inf

    def around(centre: float, half: float) -> tuple[float, float, float]:
        low, middle, high = sorted(
            rule.reference + _sign(rule) * at for at in (centre - half, centre, centre + half)
        )
        return middle, low, high

    if size is not None:
        yield "reproduced", around(size, size / 10)
        yield "direction only", around(size / rule.factor / 2, size / rule.factor / 20)
    else:
        there = 2 * step if rule.direction == "positive" else min(2 * step, 0.8 * room)
        yield "direction only", around(there, there / 10)
    back = min(step, room / 2)
    yield "opposite here", around(-back, back / 10)
    if size is not None or rule.worth is not None:
        least = rule.worth or step / rule.factor
        yield "absent here", around(0, min(least, step, room) / 10)
    if not rule.exact:
        wide = max(3 * step, rule.worth or 0)
        yield "undecided", around(0, wide) if wide < room else around(wide - room, wide)


@outcomes.register
def _(rule: Limit) -> Iterator[Outcome]:
    for label, (low, high) in _of_limit(rule):
        if label != "undecided":
            yield label, {rule.value: made(high)}  # a value without an interval is a point
        if low < high:
            yield label, {rule.value: made((low + high) / 2, low, high)}


def _of_limit(rule: Limit) -> Iterator[tuple[str, tuple[float, float]]]:
    low, high = rule.at_least, rule.at_most
    if rule.value.endswith("_place"):
        yield from (("reproduced", (1, 1)), ("opposite here", (5, 5)), ("undecided", (1, 5)))
    elif low is not None and high is not None:
        width = high - low
        yield "reproduced", (low + 0.4 * width, high - 0.4 * width)
        yield "opposite here", (high + 0.4 * width, high + 0.6 * width)
        yield "opposite here", (low - 0.6 * width, low - 0.4 * width)
        yield "undecided", (low - width, high + width)
    else:
        at, inwards = (high, -1) if low is None else (low, 1)
        assert at is not None
        for label, near, far in (
            ("reproduced", 0.02, 0.04),
            ("opposite here", -0.8, -0.7),
            ("undecided", -0.1, 0.04),
        ):
            first, last = sorted(at + inwards * abs(at) * move for move in (near, far))
            yield label, (first, last)


@outcomes.register
def _(rule: Count) -> Iterator[Outcome]:
    assert (rule.at_least is None) != (rule.at_most is None)
    at, good = (rule.at_most or 0.0, 0) if rule.at_least is None else (rule.at_least, 100)
    yield "reproduced", {rule.value: made((at + good) / 2)}
    yield "opposite here", {rule.value: made((at + 100 - good) / 2)}
    yield "undecided", {rule.value: made(at)}


@outcomes.register
def _(rule: Parts) -> Iterator[Outcome]:
    """All parts at their best, and then each of them at each of its outcomes."""
    found = {part.name: list(outcomes(part.rule)) for part in rule.parts}
    best = {name: max(of, key=lambda outcome: RANK.index(outcome[0])) for name, of in found.items()}
    for name, of in found.items():
        for outcome in of:
            chosen = best | {name: outcome}
            values = {key: item for _, of_part in chosen.values() for key, item in of_part.items()}
            yield min((label for label, _ in chosen.values()), key=RANK.index), values


def sensible(rule: Effect, found: Entry) -> bool:
    """Whether a notebook could have recorded it."""
    low, high = (0.0, math.inf) if rule.reference == 1 else (-math.inf, math.inf)
    if "conflict" in rule.value:
        low, high = 0.0, 1.0
    ends = [found[name] for name in ("value", "low", "high") if found[name] is not None]
    return all(low < end <= high for end in ends)


# What each rule has to be able to say ---------------------------------------------------------


def wanted(rule: Any) -> set[str]:
    """Labels that a rule must be able to give; more are welcome."""
    if isinstance(rule, Parts):
        of_parts = [wanted(part.rule) for part in rule.parts]
        best = "reproduced" if all("reproduced" in of for of in of_parts) else "direction only"
        return {best} | (set().union(*of_parts) - FAVOURABLE)
    if isinstance(rule, Effect):
        named = rule.published is not None or rule.worth is not None
        best = {"direction only"} if rule.published is None else {"reproduced", "direction only"}
        unsure = set() if rule.exact else {"undecided"}
        return best | unsure | {"opposite here"} | ({"absent here"} if named and not rule.exact else set())
    if isinstance(rule, Absent):
        return {"wrong as printed", "reproduced"} | ({"undecided"} if rule.exact else set())
    if isinstance(rule, Misprint):
        wrong = "biased" if isinstance(rule, Bias) else "wrong as printed"
        return {"verified numerically", "undecided", wrong}
    if isinstance(rule, Identity | Bound):
        return {"verified numerically", "wrong as printed"}
    if isinstance(rule, Counterexample):
        return {"wrong as printed", "undecided"}
    return {"reproduced", "opposite here", "undecided"}


def labels_of(rule: Any) -> set[str]:
    """Labels that the outcomes bring out, each checked against the intended one, in either unit."""
    found = set()
    for intended, values in outcomes(rule):
        for unit in ("percent", "ratio"):
            given: Mapping[str, Entry] = {name: dict(item, unit=unit) for name, item in values.items()}
            label, reason = rule.judge(given)
            assert label == intended, f"{reason}\n{given}"
        found.add(intended)
    return found


@pytest.mark.parametrize("claim", JUDGED, ids=lambda claim: claim.id)
def test_no_rules_outcome_is_fixed(claim: Claim) -> None:
    assert claim.rule is not None
    found = labels_of(claim.rule)
    assert wanted(claim.rule) <= found
    assert found - FAVOURABLE
    assert found & FAVOURABLE or isinstance(claim.rule, Counterexample)


PARTS = [(item, part) for item in JUDGED if isinstance(item.rule, Parts) for part in item.rule.parts]


@pytest.mark.parametrize(("claim", "part"), PARTS, ids=lambda of: getattr(of, "id", "") or of.name)
def test_no_part_of_a_statement_can_only_agree(claim: Claim, part: Any) -> None:
    missing = wanted(part.rule) - labels_of(part.rule)
    assert not missing, f"{claim.id}, {part.name}: no record that a notebook could write gives {missing}"


def test_every_label_is_given_by_some_claim() -> None:
    claims = load_claims().claims
    given = {label for claim in JUDGED for label in labels_of(claim.rule)}
    given |= {verdict(one, {}, "laptop").label for one in claims if one.rule is None or one.only_there}
    given |= {OWN_DATA for claim in claims if claim.own_data}
    assert given == set(LABELS)
