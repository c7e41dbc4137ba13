"""Rules that turn recorded values into a verdict: one class for each kind of claim, without side effects.

A rule has the names of the values that it needs and its thresholds; ``judge`` returns a label and the reason.
No rule reads a file, so every label can be tested with made-up values. ``LABELS`` holds the meaning of each
label; a label is never typed into ``data/claims.yaml``.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field, model_validator

from palimpsest.errors import DataError

LABELS: dict[str, str] = {
    "proved": "an identity holds to the precision of float64",
    "wrong as printed": "a counter-example is computed, and the form that holds is shown",
    "reproduced": "direction and size agree with the print within the limits the rule states",
    "direction only": "the same direction, but another size, or no size to compare with",
    "not seen here": "tested at this scale, and the effect is absent or undecided",
    "contradicted": "the opposite was found: the whole interval, or most of the checks, speak against it",
    "not run": "not tested yet; the reason is given",
}

Entry = Mapping[str, Any]
"""One value of a record: value, low, high, unit, over, n."""


class Judgement(NamedTuple):
    """A label of ``LABELS`` and one sentence with the reason."""

    label: str
    reason: str


class MissingIntervalError(DataError):
    """Raised if a rule needs an interval and the value was recorded without one."""


def number(values: Mapping[str, Entry], name: str) -> float:
    """A recorded value as a finite number.

    Raises:
        DataError: if the value is a text, a truth value or not finite.
    """
    value = values[name]["value"]
    if isinstance(value, (bool, str)) or value is None or not math.isfinite(value):
        raise DataError(
            f"value {name} is {value!r}, and its rule needs a finite number; "
            "record a number under that name in the notebook"
        )
    return float(value)


def interval(values: Mapping[str, Entry], name: str) -> tuple[float, float]:
    """Lower and upper end of the interval of a recorded value.

    Raises:
        MissingIntervalError: if the value was recorded without an interval.
    """
    low, high = values[name].get("low"), values[name].get("high")
    if low is None or high is None:
        raise MissingIntervalError(
            f"value {name} has no interval; record it with low and high (see palimpsest.results.intervals)"
        )
    return float(low), float(high)


def span(values: Mapping[str, Entry], name: str) -> tuple[float, float]:
    """The ends of the interval if there is one, else the value twice."""
    value = number(values, name)
    try:
        return interval(values, name)
    except MissingIntervalError:
        return value, value


def largest(values: Mapping[str, Entry], names: Sequence[str]) -> float:
    """The largest absolute value; 0 if no name is given."""
    return max((abs(number(values, name)) for name in names), default=0.0)


class BaseRule(BaseModel):
    """Base of all rules: unknown fields are errors, and fields refer to values by name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    shows: tuple[str, ...] = ()
    """Names of further values to print beside the verdict; they do not affect it."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Names of the fields that hold names of values."""

    def names(self) -> tuple[str, ...]:
        """Names of the values on which the verdict depends, in the order of the fields."""
        found: list[str] = []
        for name in self.needs:
            given = getattr(self, name)
            found += [given] if isinstance(given, str) else list(given)
        return tuple(dict.fromkeys(found))


class Identity(BaseRule):
    """An exact formula: proved if every error is at most the tolerance."""

    kind: Literal["identity"] = "identity"
    values: tuple[str, ...] = Field(min_length=1)
    tolerance: float = Field(1e-8, ge=0)
    needs = ("values",)

    def judge(self, values: Mapping[str, Entry]) -> Judgement:
        """Compare the largest error with the tolerance."""
        error = largest(values, self.values)
        if error <= self.tolerance:
            return Judgement("proved", f"largest error {error:.2g}, allowed {self.tolerance:g}")
        return Judgement("contradicted", f"an error of {error:.2g} where {self.tolerance:g} is due")


class Bound(BaseRule):
    """An inequality: proved if none of the tested problems violates it."""

    kind: Literal["bound"] = "bound"
    violations: str
    tightness: str | None = None
    """Name of the largest ratio of the bounded quantity to its bound; 1 means that the bound is attained."""
    needs = ("violations",)

    def judge(self, values: Mapping[str, Entry]) -> Judgement:
        """Count violations, and report how closely the bound is attained."""
        count = number(values, self.violations)
        if count > 0:
            return Judgement("contradicted", f"the bound is violated {count:g} times")
        reason = "no violation found"
        if self.tightness is not None and self.tightness in values:
            reason += f"; the largest share of the bound used is {number(values, self.tightness):.3g}"
        return Judgement("proved", reason)


class Misprint(BaseRule):
    """A printed formula and its correction: wrong as printed if only the correction is exact."""

    kind: Literal["misprint"] = "misprint"
    printed: tuple[str, ...] = Field(min_length=1)
    corrected: tuple[str, ...] = Field(min_length=1)
    tolerance: float = Field(1e-8, ge=0)
    floor: float = Field(1e-3, gt=0)
    needs = ("printed", "corrected")

    def judge(self, values: Mapping[str, Entry]) -> Judgement:
        """Proved if the printed formula is exact, wrong as printed if only the corrected one is."""
        printed, corrected = largest(values, self.printed), largest(values, self.corrected)
        seen = f"printed form off by {printed:.2g}, corrected form by {corrected:.2g}"
        if corrected > self.tolerance:
            return Judgement("contradicted", f"{seen}: not even the corrected form holds")
        if printed <= self.tolerance:
            return Judgement("proved", seen)
        if printed >= self.floor:
            return Judgement("wrong as printed", seen)
        return Judgement("not seen here", f"{seen}: too little to call the print wrong")


class Counterexample(BaseRule):
    """A general statement: wrong as printed if one computed case violates it by at least the floor."""

    kind: Literal["counterexample"] = "counterexample"
    value: str
    floor: float = Field(gt=0)
    corrected: tuple[str, ...] = ()
    tolerance: float = Field(1e-8, ge=0)
    needs = ("value", "corrected")

    def judge(self, values: Mapping[str, Entry]) -> Judgement:
        """Compare the violation with the floor, and the corrected form with its tolerance."""
        breach, corrected = abs(number(values, self.value)), largest(values, self.corrected)
        seen = f"the counter-example breaks the statement by {breach:.2g}"
        if corrected > self.tolerance:
            return Judgement("contradicted", f"the corrected form fails too, by {corrected:.2g}")
        if breach >= self.floor:
            return Judgement("wrong as printed", seen)
        return Judgement("not seen here", f"{seen}, below the {self.floor:g} asked for")


class Absent(BaseRule):
    """A statement that relies on an effect whose computed size turns out to be zero."""

    kind: Literal["absent"] = "absent"
    what: str = Field(min_length=1)
    """Description of the effect, as the beginning of a sentence."""
    effect: str
    exact: tuple[str, ...] = ()
    tolerance: float = Field(1e-8, ge=0)
    needs = ("effect", "exact")

    def judge(self, values: Mapping[str, Entry]) -> Judgement:
        """Wrong as printed if the size of the effect is at most the tolerance."""
        size, error = abs(number(values, self.effect)), largest(values, self.exact)
        if error > self.tolerance:
            return Judgement("contradicted", f"the closed form beside it is off by {error:.2g}")
        told = f"{self.what}: {size:.2g}"
        return Judgement("wrong as printed" if size <= self.tolerance else "reproduced", told)


class Effect(BaseRule):
    """A difference with a direction and, optionally, a published size."""

    kind: Literal["effect"] = "effect"
    value: str
    direction: Literal["positive", "negative"]
    published: float | None = None
    factor: float = Field(2.0, ge=1)
    """Sizes agree if the larger is at most this many times the smaller."""
    reference: float = 0.0
    """Value without an effect: 0 for a difference, 1 for a ratio."""
    needs = ("value",)

    @model_validator(mode="after")
    def _published_has_the_direction(self) -> "Effect":
        if self.published is not None and self._sign * (self.published - self.reference) <= 0:
            raise ValueError(
                f"published {self.published:g} does not lie on the {self.direction} side "
                f"of {self.reference:g}; correct direction, published or reference"
            )
        return self

    @property
    def _sign(self) -> int:
        return 1 if self.direction == "positive" else -1

    def judge(self, values: Mapping[str, Entry]) -> Judgement:
        """Judge the direction by the interval, and the size only if the direction is certain."""
        low, high = (end - self.reference for end in interval(values, self.value))
        seen = f"[{low + self.reference:.3g}, {high + self.reference:.3g}]"
        if low <= 0 <= high:
            return Judgement("not seen here", f"interval {seen} includes {self.reference:g}")
        if (low > 0) != (self._sign > 0):
            return Judgement("contradicted", f"interval {seen} lies on the other side")
        if self.published is None:
            return Judgement("direction only", f"interval {seen}; no size is published")
        ratio = (number(values, self.value) - self.reference) / (self.published - self.reference)
        told = f"interval {seen}; {ratio:.2g} times the published size"
        close = 1 / self.factor <= ratio <= self.factor
        return Judgement("reproduced" if close else "direction only", told)


class PublishedSize(BaseRule):
    """A number without a direction: reproduced if our interval meets the published value."""

    kind: Literal["published_size"] = "published_size"
    value: str
    published: float
    tolerance: float = Field(ge=0)
    needs = ("value",)

    def judge(self, values: Mapping[str, Entry]) -> Judgement:
        """Whether our interval, or number, overlaps the published value plus or minus the tolerance."""
        low, high = span(values, self.value)
        told = f"[{low:.4g}, {high:.4g}] against {self.published:g} ± {self.tolerance:g}"
        meets = low <= self.published + self.tolerance and high >= self.published - self.tolerance
        return Judgement("reproduced" if meets else "not seen here", told)


class Readings(BaseRule):
    """A paper's reading of a number predicts how much of an edit is left undone; this share is measured."""

    kind: Literal["readings"] = "readings"
    measured: str
    claimed: str
    """Name of the share that the paper's reading predicts; above the measured one if the reading is wrong."""
    margin: float = Field(0.1, ge=0)
    needs = ("measured", "claimed")

    def judge(self, values: Mapping[str, Entry]) -> Judgement:
        """Contradicted if the claimed value exceeds the measured one by more than the margin."""
        left, predicted = span(values, self.measured), span(values, self.claimed)
        told = (
            f"{number(values, self.measured):.3g} left undone where the paper's reading "
            f"predicts {number(values, self.claimed):.3g}"
        )
        if predicted[0] - left[1] > self.margin:
            return Judgement("contradicted", told)
        if number(values, self.claimed) - number(values, self.measured) <= self.margin:
            return Judgement("reproduced", told)
        return Judgement("not seen here", f"{told}, but the intervals overlap")


class Condition(BaseModel):
    """One limit on one value; with an interval, its less favourable end is compared."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    value: str
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _one_limit(self) -> "Condition":
        if (self.at_least is None) == (self.at_most is None):
            raise ValueError(f"condition on {self.value}: give either at_least or at_most")
        return self

    def holds(self, values: Mapping[str, Entry]) -> bool:
        """Whether the value satisfies its limit."""
        low, high = span(values, self.value)
        if self.at_least is not None:
            return low >= self.at_least
        return self.at_most is not None and high <= self.at_most

    def __str__(self) -> str:
        if self.at_least is not None:
            return f"{self.value} at least {self.at_least:g}"
        return f"{self.value} at most {self.at_most:g}"


class Conditions(BaseRule):
    """A trend stated as limits fixed before the run: reproduced if all hold."""

    kind: Literal["conditions"] = "conditions"
    limits: tuple[Condition, ...] = Field(min_length=1)

    def names(self) -> tuple[str, ...]:
        """Names of the limited values."""
        return tuple(dict.fromkeys(limit.value for limit in self.limits))

    def judge(self, values: Mapping[str, Entry]) -> Judgement:
        """Check all limits; the reason names those that fail."""
        failed = [str(limit) for limit in self.limits if not limit.holds(values)]
        if failed:
            return Judgement("not seen here", f"does not hold: {'; '.join(failed)}")
        return Judgement("reproduced", f"holds: {'; '.join(map(str, self.limits))}")
