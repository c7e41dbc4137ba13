"""Rules that turn recorded values into a verdict: one class for each kind of claim, without side effects.

A rule has the names of the values that it needs and its thresholds; ``judge`` returns a label and the reason.
No rule reads a file, so every label can be tested with made-up values. ``LABELS`` holds the meaning of each
label; a label is never typed into ``data/claims.yaml``.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from palimpsest.errors import DataError

UNTESTED = "not tested in the paper's regime"
OWN_DATA = "own data"

LABELS: dict[str, str] = {
    "verified numerically": "the statement held on every random problem tried, within the stated tolerance",
    "wrong as printed": "a computation contradicts what is printed; the note gives the form that holds",
    "biased": "an estimator misses what it estimates, by an amount that is computed",
    "reproduced": "direction and size agree with the paper within the limits of the rule",
    "direction only": "the direction agrees; the size differs, or none is published",
    "opposite here": "the result contradicts the claim: the whole interval lies on the other side or outside "
    "the limit, or most printed numbers disagree",
    "absent here": "the interval excludes even the smallest effect worth naming",
    "undecided": "the interval includes both no effect and one worth naming, or the run was too small to "
    "see the published one",
    UNTESTED: "what was run differs from the paper where it matters; the page named is to run it",
    OWN_DATA: "judged on data that this project made to the schema of the paper's; the reason says what "
    "came out",
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
            found += [given] if isinstance(given, str) else list(given or ())
        return tuple(dict.fromkeys(found))


class Identity(BaseRule):
    """An exact formula: verified if every error is at most the tolerance."""

    kind: Literal["identity"] = "identity"
    values: tuple[str, ...] = Field(min_length=1)
    tolerance: float = Field(1e-8, ge=0)
    needs = ("values",)

    def judge(self, values: Mapping[str, Entry]) -> Judgement:
        """Compare the largest error with the tolerance."""
        error = largest(values, self.values)
        if error <= self.tolerance:
            return Judgement("verified numerically", f"largest error {error:.2g}, allowed {self.tolerance:g}")
        return Judgement("wrong as printed", f"an error of {error:.2g} where {self.tolerance:g} is due")


class Bound(BaseRule):
    """An inequality: verified if none of the tested problems violates it."""

    kind: Literal["bound"] = "bound"
    violations: str
    tightness: str | None = None
    """Name of the largest ratio of the bounded quantity to its bound; 1 means that the bound is attained."""
    needs = ("violations",)

    def judge(self, values: Mapping[str, Entry]) -> Judgement:
        """Count violations, and report how closely the bound is attained."""
        count = number(values, self.violations)
        if count > 0:
            return Judgement("wrong as printed", f"the bound is violated {count:g} times")
        reason = "no violation found"
        if self.tightness is not None and self.tightness in values:
            reason += f"; the largest share of the bound used is {number(values, self.tightness):.3g}"
        return Judgement("verified numerically", reason)


class Misprint(BaseRule):
    """A printed formula and its correction: wrong as printed if only the correction is exact."""

    kind: Literal["misprint"] = "misprint"
    printed: tuple[str, ...] = Field(min_length=1)
    corrected: tuple[str, ...] = Field(min_length=1)
    tolerance: float = Field(1e-8, ge=0)
    floor: float = Field(1e-3, gt=0)
    needs = ("printed", "corrected")

    def judge(self, values: Mapping[str, Entry]) -> Judgement:
        """Verified if the printed formula is exact, wrong as printed if only the corrected one is."""
        printed, corrected = largest(values, self.printed), largest(values, self.corrected)
        seen = f"printed form off by {printed:.2g}, corrected form by {corrected:.2g}"
        if corrected > self.tolerance:
            return Judgement(
                "undecided", f"{seen}: not even the corrected form holds, so the check is in doubt"
            )
        if printed <= self.tolerance:
            return Judgement("verified numerically", seen)
        if printed >= self.floor:
            return Judgement("wrong as printed", seen)
        return Judgement("undecided", f"{seen}: too little to call the paper wrong")


class Bias(Misprint):
    """An estimator and one without its bias: biased if the first misses by at least the floor."""

    kind: Literal["bias"] = "bias"  # type: ignore[assignment]

    def judge(self, values: Mapping[str, Entry]) -> Judgement:
        """As a misprint; what would be wrong as printed is biased."""
        label, reason = super().judge(values)
        return Judgement("biased" if label == "wrong as printed" else label, reason)


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
            return Judgement("undecided", f"the corrected form fails too, by {corrected:.2g}")
        if breach >= self.floor:
            return Judgement("wrong as printed", seen)
        return Judgement("undecided", f"{seen}, below the {self.floor:g} asked for")


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
            return Judgement("undecided", f"the closed form beside it is off by {error:.2g}")
        told = f"{self.what}: {size:.2g}"
        return Judgement("wrong as printed" if size <= self.tolerance else "reproduced", told)


class Readings(BaseRule):
    """A paper's reading of a number predicts how much of an edit is left undone; this share is measured."""

    kind: Literal["readings"] = "readings"
    measured: str
    claimed: str
    """Name of the share that the paper's reading predicts."""
    margin: float = Field(0.1, ge=0)
    needs = ("measured", "claimed")

    def judge(self, values: Mapping[str, Entry]) -> Judgement:
        """Opposite if the two intervals lie apart by more than the margin."""
        left, predicted = span(values, self.measured), span(values, self.claimed)
        told = (
            f"{number(values, self.measured):.3g} left undone where the paper's reading "
            f"predicts {number(values, self.claimed):.3g}"
        )
        if max(predicted[0] - left[1], left[0] - predicted[1]) > self.margin:
            return Judgement("opposite here", told)
        if abs(number(values, self.claimed) - number(values, self.measured)) <= self.margin:
            return Judgement("reproduced", told)
        return Judgement("undecided", f"{told}, but the intervals overlap")
