"""Records of notebook runs as files: values with intervals as JSON, per-case rows as parquet.

No number in the text of a page is typed by hand. A notebook records a value once and refers to it by name::

    results = Results("01_one_edit", profile=profile, parameters={"seed": seed})
    results.describe(model={"name": "smollm2-135m"}, seed=seed, dtype="float32", device="cpu")
    results.value("efficacy", 97.8, low=93.1, high=99.4, unit="percent", over="cases", n=100)
    results.table("scores", frame)
    results.save()
    results.say("Efficacy is {efficacy}.")  # Efficacy is 97.8 [93.1, 99.4].

Cells that show something take all of it from here, by `Results.values`, `Results.frame` and `Results.say`, so
that they can be executed again without the cells that compute.
"""

import json
import math
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from palimpsest import paths
from palimpsest.cache import digest
from palimpsest.errors import DataError, UnknownNameError
from palimpsest.files import UNREADABLE, as_json, locked, write_atomically
from palimpsest.results.intervals import Interval
from palimpsest.results.prose import Markdown, filled
from palimpsest.results.prose import plain as escaped

SCHEMA = 1

STAGING = "PALIMPSEST_RESULTS"
"""Environment variable: the folder where the runner collects the files of a run in progress."""
RECORDS = "PALIMPSEST_RECORDS"
"""Environment variable: the folder of the records from which cells that show something are drawn again."""

OWN = "palimpsest-results"
"""Folder, in the working folder, of results that no runner vouches for."""

DIGITS = 6
"""Significant digits of stored numbers: linear algebra rounds differently in each run, even on one thread."""

UNITS = ("percent", "ratio", "count", "seconds", "norm", "score", "nats")

OVER = ("cases", "seeds")

Number = float | np.integer[Any] | np.floating[Any]

_NAME = re.compile(r"[a-z][a-z0-9_]*")


def plain(value: Any, where: str) -> Any:
    """Convert numpy and pandas scalars, tuples and mappings to JSON values, floats to ``DIGITS`` digits.

    Args:
        value: the value.
        where: name of the value in error messages.

    Raises:
        DataError: for a number that is not finite, or a type without a JSON form.
    """
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if not isinstance(value, (str, bool, int, float)) and hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        if not math.isfinite(value):
            raise DataError(
                f"{where} is {value}, not a finite number; "
                "find where it arises instead of recording it (an empty mean gives nan)"
            )
        return float(f"{value:.{DIGITS}g}")
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise DataError(
        f"{where} is a {type(value).__name__}, which a record cannot hold; "
        "give a number, a text or a truth value"
    )


class Results:
    """Collects the results of one notebook run and writes them together, or holds those of an earlier run.

    The latter is so where ``PALIMPSEST_RECORDS`` names a folder: values and tables are then those of its
    files, and nothing can be recorded.

    Args:
        notebook: file name of the notebook without its ending; used for the names of the files.
        profile: name of the profile of the parameters.
        parameters: the parameters as used, stored with the values.

    Raises:
        DataError: for a name, unit or number that a record may not hold.
    """

    def __init__(self, notebook: str, profile: str, parameters: Mapping[str, Any]) -> None:
        for name in (notebook, profile):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                raise DataError(f"{name!r} names no file; use letters, digits, '_', '-' and '.'")
        self.notebook, self.profile = notebook, profile
        self.parameters: dict[str, Any] = plain(parameters, "parameters")
        self.facts: dict[str, Any] = {}
        self.values: dict[str, dict[str, Any]] = {}
        self.tables: dict[str, pd.DataFrame] = {}
        source = os.environ.get(RECORDS)
        self._source = Path(source) if source else None
        if self._source is not None:
            kept = read(self._source / f"{notebook}.json")
            self.parameters, self.facts, self.values = kept["parameters"], kept["facts"], kept["values"]

    def _recording(self, what: str) -> None:
        if self._source is not None:
            raise DataError(
                f"{what} is recorded while {self.notebook} is only shown again; move it into a cell that is "
                "tagged compute"
            )

    def describe(self, **facts: Any) -> None:
        """Record the conditions: ``model``, ``data`` (mappings), ``seed``, ``dtype``, ``device``.

        Raises:
            DataError: if results of an earlier run are shown.
        """
        self._recording(", ".join(facts))
        self.facts |= plain(facts, "facts")

    def value(
        self,
        name: str,
        value: Number | str | bool | np.bool_,
        low: Number | None = None,
        high: Number | None = None,
        *,
        unit: str = "score",
        over: str = "",
        n: int | None = None,
    ) -> None:
        """Record one value.

        Args:
            name: lower case with underscores; claims refer to the value by it.
            value: a finite number, a text or a truth value.
            low: lower end of the interval.
            high: upper end of the interval.
            unit: one of ``UNITS``; texts and truth values keep the default.
            over: the resampled units, ``cases`` or ``seeds``; required with an interval.
            n: number of cases or seeds.

        Raises:
            DataError: if the name is invalid or already used, the unit or ``over`` is unknown, the interval
                is incomplete or does not contain the value, a number is not finite, or results of an earlier
                run are shown.
        """
        self._recording(f"value {name!r}")
        self._check(name, unit, over, (low, high))
        entry = plain({"value": value, "low": low, "high": high, "unit": unit, "over": over, "n": n}, name)
        _check_interval(name, entry)
        self.values[name] = entry

    def interval(self, name: str, found: Interval, unit: str, *, over: str = "cases") -> Interval:
        """Record an estimate with its interval, as `value` does, and return it."""
        self.value(name, found.mean, found.low, found.high, unit=unit, over=over, n=found.n)
        return found

    def _check(self, name: str, unit: str, over: str, ends: Sequence[Number | None]) -> None:
        if not _NAME.fullmatch(name):
            raise DataError(f"value name {name!r}: use lower case, digits and underscores")
        if name in self.values:
            raise DataError(f"value {name!r} is recorded twice; give the second another name")
        if unit not in UNITS:
            raise DataError(f"value {name!r}: unknown unit {unit!r}; choose {', '.join(UNITS)}")
        if over not in (*OVER, ""):
            raise DataError(f"value {name!r}: over is {over!r}; choose {' or '.join(OVER)}")
        if (ends[0] is None) != (ends[1] is None):
            raise DataError(f"value {name!r}: an interval needs both low and high")
        if ends[0] is not None and not over:
            raise DataError(f"value {name!r}: say what the interval is over: {' or '.join(OVER)}")

    def table(self, name: str, frame: pd.DataFrame) -> None:
        """Add a table of per-case rows, saved as ``<notebook>.<name>.parquet`` without the index.

        Raises:
            DataError: if the name is invalid, or results of an earlier run are shown.
        """
        self._recording(f"table {name!r}")
        if not _NAME.fullmatch(name):
            raise DataError(f"table name {name!r}: use lower case, digits and underscores")
        self.tables[name] = frame.map(lambda x: float(f"{x:.{DIGITS}g}") if isinstance(x, float) else x)

    def frame(self, name: str) -> pd.DataFrame:
        """A table as it is recorded, of this run or of the earlier one that is shown.

        Raises:
            UnknownNameError: if there is no table of that name.
        """
        if self._source is not None and name not in self.tables:
            file = self._source / f"{self.notebook}.{name}.parquet"
            if file.is_file():
                self.tables[name] = pd.read_parquet(file)
        if name not in self.tables:
            raise UnknownNameError(f"table of {self.notebook}", name, list(self.tables))
        return self.tables[name].reset_index(drop=True)

    def say(self, template: str, **words: object) -> Markdown:
        """A sentence with values of this record, as rich text; see `palimpsest.results.prose.filled`.

        Args:
            template: Markdown with names in braces: of values, or of parameters.
            words: further names; their texts are Markdown, as the template is. Recorded texts and parameters
                are shown as they are.

        Raises:
            UnknownNameError: if a name is neither recorded nor among the words.
        """
        return Markdown(self.filled(template, words))

    def filled(
        self, template: str, words: Mapping[str, object], literal: Callable[[str], str] = escaped
    ) -> str:
        """As `say`, with a choice of what makes markup of recorded texts and of parameters."""
        given = {name: value for name, value in self.parameters.items() if name not in self.values}
        texts = {name: {"value": value} for name, value in given.items() if isinstance(value, str)}
        others = {name: value for name, value in given.items() if name not in texts}
        return filled(template, self.values | texts, {**others, **words}, literal)

    def save(self) -> Path:
        """Write all files, each atomically; returns the path of the JSON file.

        The runner of `palimpsest run` says where; its results are those of the book. Without it, in Jupyter
        Lab or under papermill alone, they go to ``palimpsest-results/<profile>`` in the working folder; where
        a run of this notebook with other parameters is there already, to a folder of their own beside it, and
        a line on standard error names it.

        Raises:
            DataError: if results of an earlier run are shown.
        """
        self._recording("the record")
        staging = os.environ.get(STAGING)
        if staging:
            return self._write(Path(staging))
        folder = Path.cwd() / OWN / self.profile
        with locked(folder / f"{self.notebook}.json"):  # of two runs at once the second sees the first
            return self._write(self._own(folder))

    def _own(self, folder: Path) -> Path:
        """A folder that holds no record of another run of this notebook."""
        path = folder / f"{self.notebook}.json"
        with suppress(DataError):  # a file that is no record is another's too
            if not path.exists() or read(path)["parameters"] == self.parameters:
                return folder
        beside = folder.with_name(f"{self.profile}-{digest(self.parameters)[:8]}")
        print(f"palimpsest: {path} is of another run; this one is in {beside}", file=sys.stderr, flush=True)
        return beside

    def _write(self, folder: Path) -> Path:
        for name, frame in self.tables.items():
            content = frame.to_parquet(None, index=False, compression="zstd")
            write_atomically(folder / f"{self.notebook}.{name}.parquet", content)
        path = folder / f"{self.notebook}.json"
        write_atomically(path, as_json(self.as_dict()))
        return path

    def as_dict(self) -> dict[str, Any]:
        """The record as it is written to JSON."""
        return {
            "schema": SCHEMA,
            "notebook": self.notebook,
            "profile": self.profile,
            "parameters": self.parameters,
            "facts": self.facts,
            "values": self.values,
        }


def side(entry: Mapping[str, Any], more: str, less: str, neither: str, reference: float = 0.0) -> str:
    """One of three texts, chosen by the position of a value's interval relative to a reference.

    Args:
        entry: one of the ``values`` of a record, with an interval.
        more: text if the interval lies above the reference.
        less: text if it lies below.
        neither: text if it contains the reference.
        reference: in the value's unit.

    Raises:
        DataError: if the value has no interval.
    """
    if entry["low"] is None:
        raise DataError(f"the value {entry['value']} has no interval to compare with {reference}; record one")
    if entry["low"] > reference:
        return more
    return less if entry["high"] < reference else neither


def _check_interval(name: str, entry: Mapping[str, Any]) -> None:
    value, low, high = entry["value"], entry["low"], entry["high"]
    if low is None:
        return
    if isinstance(value, (str, bool)):
        raise DataError(f"value {name!r}: only a number has an interval, not {value!r}")
    if not low <= value <= high:
        raise DataError(f"value {name!r}: {value} lies outside its interval [{low}, {high}]")


def read(path: Path) -> dict[str, Any]:
    """Read a record.

    Raises:
        DataError: if the file is not a record of this schema.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except UNREADABLE as error:
        raise DataError(f"{path}: cannot be read as a record ({error}); run the notebook again") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        raise DataError(f"{path}: not a record of schema {SCHEMA}; run the notebook again")
    return content


def carried(notebook: str, table: str, profile: str = "long") -> pd.DataFrame | None:
    """A table of a notebook's run under another profile, or None if the repository does not contain it.

    For pages that show a long run beside their own results. The page becomes stale when the table changes.
    """
    path = paths.results_dir(profile) / f"{notebook}.{table}.parquet"
    return pd.read_parquet(path) if path.exists() else None
