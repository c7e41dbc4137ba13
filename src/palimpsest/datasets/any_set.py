"""Benchmarks with harder questions, whose format is recognised by `palimpsest.datasets.set_formats`."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from palimpsest.datasets import knowedit, leme, mquake, ripple_edits
from palimpsest.datasets.any_format import form_of
from palimpsest.datasets.case_files import LoadedSet
from palimpsest.datasets.files import first_record
from palimpsest.datasets.set_formats import TOLD, set_format
from palimpsest.errors import DataError
from palimpsest.files import special

READERS: Mapping[str, Callable[[str | Path, bool], LoadedSet[Any]]] = {
    mquake.FORMAT: mquake.load_mquake,
    ripple_edits.FORMAT: ripple_edits.load_ripple_edits,
    leme.FORMAT: leme.load_leme,
    knowedit.FORMAT: knowedit.load_knowedit,
}


def load_any_set(path: str | Path, strict: bool = True) -> LoadedSet[Any]:
    """Read a benchmark whose format is told by its first record.

    Args:
        path: the file.
        strict: raise an error for malformed records; otherwise they are listed in ``LoadedSet.rejected``.

    Returns:
        `MultiHopCase`, `RippleCase` or `LongFormCase` objects, by the format.

    Raises:
        DataError: if the file is no regular file, cannot be read, is of another format, which the message
            names, or of none; and as the reader of the format. MultiCounterFact cannot be told from
            CounterFact: call `palimpsest.datasets.load_multi_counterfact`.
    """
    if kind := special(path):
        raise DataError(f"{path}: is {kind} and no file; write what it gives to a file, and read that")
    record = first_record(path)
    name = set_format(record)
    if not name:
        raise DataError(f"{path}: {_other(record)}")
    return READERS[name](path, strict)


def _other(record: Mapping[str, Any]) -> str:
    """What is said of a record that is of no format here."""
    try:
        plain = form_of(record).name
    except DataError:
        fields = ", ".join(map(repr, list(record)[:6])) or "no fields"
        return f"a record of no known format: it has {fields}; known are {', '.join(TOLD)} and plain facts"
    return f"holds plain facts ({plain}); read it with palimpsest.datasets.load_cases_of"
