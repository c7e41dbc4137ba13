"""Records of notebook runs as files: values with intervals as JSON, per-case rows as parquet.

No number in the text of a page is typed by hand. A notebook records a value once, and the same call makes it
available to the page under its name::

    results = Results("01_one_edit", profile=profile, parameters={"seed": seed})
    results.describe(model={"name": "smollm2-135m"}, seed=seed, dtype="float32", device="cpu")
    results.value("efficacy", 97.8, low=93.1, high=99.4, unit="percent", over="cases", n=100)
    results.table("scores", frame)
    results.save()

after which the text may say {glue:text}`efficacy_text`, which reads "97.8 [93.1, 99.4]".
"""

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from palimpsest import paths
from palimpsest.errors import DataError
from palimpsest.files import as_json, write_atomically
from palimpsest.results.intervals import Interval

SCHEMA = 1

STAGING = "PALIMPSEST_RESULTS"
"""Environment variable: the folder where the runner collects the files of a run in progress."""
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


def _number(value: float, unit: str) -> str:
    if unit == "count":
        return f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"
    if unit in ("percent", "seconds"):
        return f"{value:.1f}"
    return f"{value:.3f}" if value == 0 or 1e-2 <= abs(value) < 1e3 else f"{value:.2e}"


def readable(entry: Mapping[str, Any]) -> str:
    """Text of a stored value as shown on a page, for example ``97.8 [93.1, 99.4]``.

    Args:
        entry: one of the ``values`` of a record: value, low, high and unit.
    """
    value = entry["value"]
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, str):
        return value
    text = _number(value, entry["unit"])
    if entry.get("low") is None:
        return text
    return f"{text} [{_number(entry['low'], entry['unit'])}, {_number(entry['high'], entry['unit'])}]"


class Results:
    """Collects the results of one notebook run and writes them together.

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

    def describe(self, **facts: Any) -> None:
        """Record the conditions: ``model``, ``data`` (mappings), ``seed``, ``dtype``, ``device``."""
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
        """Record one value and glue it into the page as ``name`` and, formatted, as ``name_text``.

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
                is incomplete or does not contain the value, or a number is not finite.
        """
        self._check(name, unit, over, (low, high))
        entry = plain({"value": value, "low": low, "high": high, "unit": unit, "over": over, "n": n}, name)
        _check_interval(name, entry)
        self.values[name] = entry
        _glue({name: entry["value"], f"{name}_text": readable(entry)})

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
            DataError: if the name is invalid.
        """
        if not _NAME.fullmatch(name):
            raise DataError(f"table name {name!r}: use lower case, digits and underscores")
        self.tables[name] = frame.map(lambda x: float(f"{x:.{DIGITS}g}") if isinstance(x, float) else x)

    def save(self) -> Path:
        """Write all files, each atomically; returns the path of the JSON file.

        The runner of `palimpsest run` says where; its results are those of the book. Without it, in Jupyter
        Lab or under papermill alone, they go to ``palimpsest-results/<profile>`` in the working folder.
        """
        staging = os.environ.get(STAGING)
        folder = Path(staging) if staging else Path.cwd() / OWN / self.profile
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


def _glue(named: Mapping[str, Any]) -> None:
    """Make values available to the text of the page; does nothing outside a notebook."""
    from IPython.core.getipython import get_ipython

    if get_ipython() is None:
        return
    from myst_nb import glue

    for name, value in named.items():
        glue(name, value, display=False)


def read(path: Path) -> dict[str, Any]:
    """Read a record.

    Raises:
        DataError: if the file is not a record of this schema.
    """
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
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
