"""Rules that judge effects: an interval against no effect, against a published size, or against a limit.

A direction is certain if the whole interval lies on one side of no effect. If it is not, two cases differ:
*absent here*, where the interval excludes every effect worth naming, and *undecided*, where it does not, or
where the run could not have seen an effect of the published size. The smallest effect that a run could have
seen, with 80 % power at the 5 % level, follows from the width of its interval.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator
from scipy import stats

from palimpsest.errors import DataError
from palimpsest.results.rules import BaseRule, Entry, Judgement, interval, number, span

LEVEL = 0.95
POWER = 0.8
TWO_SIDED = float(stats.norm.ppf((1 + LEVEL) / 2))
"""Half the width of a 95 % interval in standard errors, 1.96."""
VISIBLE = (TWO_SIDED + float(stats.norm.ppf(POWER))) / (2 * TWO_SIDED)
"""Smallest visible effect as a share of the width of a 95 % interval, 0.71."""


def exact_interval(successes: int, trials: int) -> tuple[float, float]:
    """Clopper-Pearson interval of a proportion at the 95 % level, in [0, 1].

    Raises:
        DataError: if there is no trial, or there are more successes than trials.
    """
    if not 0 <= successes <= trials or trials < 1:
        raise DataError(f"{successes} of {trials} is no count; give 0 to n successes of n trials")
    found = stats.binomtest(successes, trials).proportion_ci(LEVEL, method="exact")
    return float(found.low), float(found.high)


def ends(values: Mapping[str, Entry], name: str) -> tuple[float, float]:
    """Interval of a recorded value; one without width, of a share of n cases, is made the exact one.

    A bootstrap of n equal differences has no width and says nothing about the next case: no success in n
    trials is compatible with a share up to the upper end of its exact interval, in either direction.

    Raises:
        MissingIntervalError: if the value was recorded without an interval.
    """
    low, high = interval(values, name)
    entry = values[name]
    if low < high or entry.get("unit") != "percent" or entry.get("over") != "cases" or not entry.get("n"):
        return low, high
    margin = 100 * exact_interval(0, int(entry["n"]))[1]
    return low - margin, high + margin


def over(entry: Entry) -> str:
    """Over how many cases or runs an interval is, as it stands behind one; empty if that was not recorded."""
    return f" over {entry['n']} {entry['over']}" if entry.get("n") and entry.get("over") else ""


class Effect(BaseRule):
    """A difference or ratio with a direction and, optionally, a published size."""

    kind: Literal["effect"] = "effect"
    value: str
    minus: str | None = None
    """Name of a value that is subtracted, such as that of a control set; needs ``exact``."""
    exact: bool = False
    """The value is a property of what is on disk and not an estimate, so that it needs no interval."""
    direction: Literal["positive", "negative"]
    published: float | None = None
    factor: float = Field(2.0, ge=1)
    """Sizes agree if the larger is at most this many times the smaller."""
    reference: float = 0.0
    """Value without an effect: 0 for a difference, 1 for a ratio."""
    worth: float | None = Field(None, gt=0)
    """Smallest effect worth naming, a distance from the reference in the claimed direction; where it is not
    given, the published size over the factor."""
    sign_test: bool = False
    """The value is a share of n paired cases, in percent: those that are won minus those that are lost. The
    direction is certain only if the sign test agrees for the fewest cases that can have moved."""
    needs = ("value", "minus")

    @model_validator(mode="after")
    def _consistent(self) -> "Effect":
        if self.published is not None and self._sign * (self.published - self.reference) <= 0:
            raise ValueError(
                f"published {self.published:g} does not lie on the {self.direction} side "
                f"of {self.reference:g}; correct direction, published or reference"
            )
        if self.minus is not None and not self.exact:
            raise ValueError(f"{self.value} minus {self.minus} has no interval; set exact, or record it")
        return self

    @property
    def _sign(self) -> int:
        return 1 if self.direction == "positive" else -1

    @property
    def _size(self) -> float | None:
        return None if self.published is None else abs(self.published - self.reference)

    def read(self, values: Mapping[str, Entry]) -> tuple[float, float, float] | None:
        """Value, lower and upper end; None for an estimate without an interval, or with one without width."""
        value = number(values, self.value)
        if self.exact:
            value -= number(values, self.minus) if self.minus is not None else 0.0
            return value, value, value
        if values[self.value].get("low") is None:
            return None
        low, high = ends(values, self.value)
        if low == high:
            return None
        if self.sign_test and _by_chance(values, self.value):
            half = max(value - low, high - value, abs(value - self.reference))
            return value, value - half, value + half
        return value, low, high

    def chance(self, values: Mapping[str, Entry]) -> float:
        """Two-sided p-value of no effect, by the normal distribution that the interval's width implies."""
        found = self.read(values)
        if found is None:
            return 1.0
        value, low, high = found
        if high <= low:
            return float(value == self.reference)
        return float(2 * stats.norm.sf(abs(value - self.reference) * 2 * TWO_SIDED / (high - low)))

    def judge(self, values: Mapping[str, Entry]) -> Judgement:
        """Judge the direction by the interval, and the size only if the direction is certain."""
        found = self.read(values)
        told = self._told(values, found)
        if found is None:
            return Judgement("undecided", f"{told}, recorded without an interval that has a width")
        value, *both = (self._sign * (end - self.reference) for end in found)
        low, high = sorted(both)
        if self.worth is not None and low > 0 and high < self.worth:
            return Judgement(
                "absent here", f"{told}: certain, but less than the {self.worth:.3g} worth naming"
            )
        if low > 0:
            if self._size is None:
                return Judgement("direction only", f"{told}; no size is published")
            ratio = value / self._size
            close = 1 / self.factor <= ratio <= self.factor
            label = "reproduced" if close else "direction only"
            return Judgement(label, f"{told}; {ratio:.2g} times the published size")
        if high < 0:
            return Judgement("opposite here", f"{told}: all of it lies on the other side")
        return self._nothing_seen(high, VISIBLE * (high - low), told)

    def _nothing_seen(self, high: float, visible: float, told: str) -> Judgement:
        seen = f"{told}; smallest effect that this run could have seen: {visible:.2g}"
        worth = self.worth or (self._size / self.factor if self._size else None)
        if worth is None:
            return Judgement("undecided", seen)
        if self._size is not None and visible > self._size:
            return Judgement("undecided", f"{seen}, more than the published {self._size:.3g}")
        if high < worth:
            return Judgement("absent here", f"{seen}; {worth:.3g} or more is excluded")
        return Judgement("undecided", f"{seen}; both no effect and {worth:.3g} are possible")

    def _told(self, values: Mapping[str, Entry], found: tuple[float, float, float] | None) -> str:
        if found is None or found[1] == found[2]:
            told = f"{number(values, self.value) if found is None else found[0]:.3g}"
        else:
            told = f"{found[0]:.3g} [{found[1]:.3g}, {found[2]:.3g}]{over(values[self.value])}"
        return told if self.published is None else f"{told}, published {self.published:.3g}"


def _by_chance(values: Mapping[str, Entry], name: str) -> bool:
    """Whether the fewest cases that give this share would all fall on one side by chance (sign test)."""
    if not values[name].get("n"):
        raise DataError(
            f"value {name} has no n, which the sign test needs; record the number of cases with it"
        )
    moved = math.ceil(abs(number(values, name)) * int(values[name]["n"]) / 100 - 1e-9)
    return moved == 0 or float(stats.binomtest(moved, moved).pvalue) > 1 - LEVEL


class Limit(BaseRule):
    """A statement that a quantity stays within limits: at least, at most, or between both.

    Equivalence (a gap within a margin on either side) and non-inferiority (at least minus a margin) are of
    this kind.
    """

    kind: Literal["limit"] = "limit"
    value: str
    at_least: float | None = None
    at_most: float | None = None
    needs = ("value",)

    @model_validator(mode="after")
    def _some_limit(self) -> "Limit":
        if self.at_least is None and self.at_most is None:
            raise ValueError(f"limit on {self.value}: give at_least, at_most or both")
        if self.at_least is not None and self.at_most is not None and self.at_least >= self.at_most:
            raise ValueError(f"limit on {self.value}: at_least must lie below at_most")
        return self

    def interval(self, values: Mapping[str, Entry]) -> tuple[float, float]:
        """The interval that is compared; a value without one counts as a point."""
        if values[self.value].get("low") is None:
            return span(values, self.value)
        return ends(values, self.value)

    def judge(self, values: Mapping[str, Entry]) -> Judgement:
        """Reproduced if the whole interval lies within, opposite if all of it lies outside."""
        low, high = self.interval(values)
        lower = -math.inf if self.at_least is None else self.at_least
        upper = math.inf if self.at_most is None else self.at_most
        ends_told = f" [{low:.3g}, {high:.3g}]{over(values[self.value])}" if low < high else ""
        told = f"{number(values, self.value):.3g}{ends_told}, {self._wanted()} is claimed"
        if lower <= low and high <= upper:
            return Judgement("reproduced", told)
        if high < lower or low > upper:
            return Judgement("opposite here", f"{told}: all of it lies outside")
        return Judgement("undecided", f"{told}: the interval reaches over the limit")

    def _wanted(self) -> str:
        if self.at_least is not None and self.at_most is not None:
            return f"{self.at_least:g} to {self.at_most:g}"
        return f"at least {self.at_least:g}" if self.at_least is not None else f"at most {self.at_most:g}"


class Count(Limit):
    """A limit on a share of n cases, in percent, with the exact (Clopper-Pearson) interval."""

    kind: Literal["count"] = "count"  # type: ignore[assignment]

    def interval(self, values: Mapping[str, Entry]) -> tuple[float, float]:
        """Exact interval of the share, from the value and its n."""
        entry = values[self.value]
        if not entry.get("n"):
            raise DataError(f"value {self.value} has no n; record the number of cases with it")
        trials = int(entry["n"])
        low, high = exact_interval(round(number(values, self.value) * trials / 100), trials)
        return 100 * low, 100 * high


Judged = Annotated[Effect | Limit | Count, Field(discriminator="kind")]


class Part(BaseModel):
    """One effect of a statement that names several."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str = Field(min_length=3)
    """What is judged, as the reader reads it."""
    rule: Judged

    @model_validator(mode="after")
    def _shows_belong_to_the_whole(self) -> "Part":
        if self.rule.shows:
            raise ValueError(f"part {self.name!r}: values to show belong to the whole rule, not to a part")
        return self


RANK = ("opposite here", "absent here", "undecided", "direction only", "reproduced")
"""A statement of several parts gets the first of these labels that a part has."""


class Parts(BaseRule):
    """A statement of several effects, each judged alone; it is reproduced if all of them are.

    One part on the other side is enough for "opposite here", so these are corrected for the number of
    effects that were looked at (Holm's method).
    """

    kind: Literal["parts"] = "parts"
    parts: tuple[Part, ...] = Field(min_length=2)

    @model_validator(mode="after")
    def _names_differ(self) -> "Parts":
        names = [part.name for part in self.parts]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two parts are called {name!r}; give each its own name")
        return self

    def names(self) -> tuple[str, ...]:
        """Names of the values of all parts."""
        return tuple(dict.fromkeys(name for part in self.parts for name in part.rule.names()))

    def judged(self, values: Mapping[str, Entry]) -> list[tuple[str, Judgement]]:
        """Name and judgement of each part, after the correction."""
        effects = {
            part.name: part.rule.chance(values) for part in self.parts if isinstance(part.rule, Effect)
        }
        certain = {
            name for name, p in zip(effects, holm(list(effects.values())), strict=True) if p <= 1 - LEVEL
        }
        found = []
        for part in self.parts:
            label, reason = part.rule.judge(values)
            if label == "opposite here" and isinstance(part.rule, Effect) and part.name not in certain:
                label, reason = "undecided", f"{reason}, but not after Holm's correction"
            found.append((part.name, Judgement(label, reason)))
        return found

    def judge(self, values: Mapping[str, Entry]) -> Judgement:
        """The least favourable label of a part, and what was found of each."""
        found = self.judged(values)
        label = min((judgement.label for _, judgement in found), key=RANK.index)
        return Judgement(label, "; ".join(f"{name}: {each.label}, {each.reason}" for name, each in found))


def holm(chances: Sequence[float]) -> list[float]:
    """P-values adjusted for their number by Holm's step-down method, in the order given."""
    order = sorted(range(len(chances)), key=chances.__getitem__)
    adjusted, so_far = [0.0] * len(chances), 0.0
    for rank, index in enumerate(order):
        so_far = max(so_far, min(1.0, (len(chances) - rank) * chances[index]))
        adjusted[index] = so_far
    return adjusted
