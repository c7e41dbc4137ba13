"""Whether two runs of a page gave the same values: of two revisions, or of two machines.

``results/smoke/tolerances.yaml`` says how far values may lie apart on another machine, and which may differ
at all, each with its reason.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field

from palimpsest.book.profiles import carried_smoke
from palimpsest.errors import DataError
from palimpsest.files import UNREADABLE
from palimpsest.results import records

DIGITS = 6
"""Significant digits in which the values of two revisions must agree on one machine: all that records
keep."""

TIMES = ("seconds",)
"""Units of what differs from run to run whatever the code."""


class Allowance(BaseModel):
    """How far one value may move, and why.

    Attributes:
        relative: largest share of the value's size by which it may move.
        absolute: largest move in the value's own unit; one of the two is enough.
        anything: any value will do, for example for a ratio of run times.
        reason: why this is no fault.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    relative: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    absolute: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    anything: bool = False
    reason: str = Field(min_length=1)

    def holds(self, one: Any, other: Any) -> bool:
        """Whether two recorded values are near enough."""
        if self.anything or one == other:
            return True
        if (
            isinstance(one, bool)
            or isinstance(other, bool)
            or not all(isinstance(v, int | float) for v in (one, other))
        ):
            return False
        return math.isclose(one, other, rel_tol=self.relative, abs_tol=self.absolute)


class Tolerances(BaseModel):
    """What is allowed on another machine.

    Attributes:
        default: for every value without a row of its own.
        pages: page -> value -> its allowance.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    default: Allowance
    pages: dict[str, dict[str, Allowance]] = Field(default_factory=dict)

    def of(self, page: str, value: str) -> Allowance:
        """The allowance of one value."""
        return self.pages.get(page, {}).get(value, self.default)


def tolerances_file() -> Path:
    """The file of allowances."""
    return carried_smoke() / "tolerances.yaml"


def load_tolerances(path: Path | None = None) -> Tolerances:
    """Read the allowances.

    Raises:
        DataError: if the file is missing, no YAML or not as it should be.
    """
    file = path or tolerances_file()
    try:
        return Tolerances.model_validate(yaml.safe_load(file.read_text("utf-8")))
    except UNREADABLE as error:
        raise DataError(
            f"{file}: no allowances can be read from it ({error}); restore it from git"
        ) from error


@dataclass(frozen=True)
class Difference:
    """A value that is not the same in two runs; None where it is missing."""

    page: str
    name: str
    before: Any
    after: Any

    def __str__(self) -> str:
        return f"{self.page}: {self.name} was {self._shown(self.before)}, is {self._shown(self.after)}"

    @staticmethod
    def _shown(value: Any) -> str:
        return "missing" if value is None else repr(value)


def differences(
    before: Mapping[str, Any], after: Mapping[str, Any], allowed: Mapping[str, Allowance] | Tolerances
) -> Iterator[Difference]:
    """Values that two records of one page do not agree on.

    Args:
        before: a record.
        after: another one.
        allowed: tolerances, or allowances by the value's name with "" for all others.
    """
    page = str(before["notebook"])
    for name in sorted({*before["values"], *after["values"]}):
        one, other = (record["values"].get(name) for record in (before, after))
        if one is None or other is None:
            yield Difference(page, name, one and one["value"], other and other["value"])
            continue
        allowance = (
            allowed.of(page, name) if isinstance(allowed, Tolerances) else allowed.get(name, allowed[""])
        )
        if one["unit"] in TIMES:
            continue
        ends = [(one[key], other[key]) for key in ("value", "low", "high")]
        if not all(allowance.holds(*pair) for pair in ends):
            yield Difference(page, name, _readable(one), _readable(other))


def _readable(entry: Mapping[str, Any]) -> Any:
    return entry["value"] if entry["low"] is None else [entry[key] for key in ("value", "low", "high")]


def check_against_carried(folder: Path, pages: list[str]) -> list[Difference]:
    """Compare small runs with those that the repository carries in ``results/smoke``.

    Args:
        folder: holds the new records.
        pages: names of notebooks.

    Raises:
        DataError: if a record is missing or damaged.
    """
    allowed, carried = load_tolerances(), carried_smoke()
    found: list[Difference] = []
    for page in pages:
        if not (carried / f"{page}.json").is_file():
            raise DataError(
                f"{carried / page}.json is missing: no values of {page} are carried to compare with; look at "
                "the new "
                f"ones in {folder / page}.json, then run `palimpsest check-notebooks --accept {page}`"
            )
        before, after = (records.read(place / f"{page}.json") for place in (carried, folder))
        found += differences(before, after, allowed)
    return found
