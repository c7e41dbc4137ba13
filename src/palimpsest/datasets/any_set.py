"""Benchmarks with harder questions, recognised by the fields of their first record.

    MQuAKE            requested_rewrite, a list; single_hops
    RippleEdits       edit, example_type
    LEME              coupled_prompts_and_properties, or dependancies
    KnowEdit          portability or locality with a list of tests by kind; in WikiBio text, labels, concept

MultiCounterFact has CounterFact's fields and cannot be told from it: call `load_multi_counterfact`. Files of
plain facts are those of `palimpsest.datasets.any_format`.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from palimpsest.datasets import knowedit, leme, mquake, ripple_edits
from palimpsest.datasets.any_format import form_of
from palimpsest.datasets.case_files import LoadedSet
from palimpsest.datasets.files import first_record
from palimpsest.errors import DataError
from palimpsest.files import special


def _tests_by_kind(record: Mapping[str, Any]) -> bool:
    """Whether portability or locality holds lists of tests, as KnowEdit has them."""
    held = [value for name in ("portability", "locality") for value in [record.get(name)]]
    return any(isinstance(one, Mapping) and any(isinstance(v, list) for v in one.values()) for one in held)


TOLD: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    mquake.FORMAT: lambda record: isinstance(record.get("requested_rewrite"), list),
    ripple_edits.FORMAT: lambda record: "edit" in record and "example_type" in record,
    leme.FORMAT: lambda record: any(name in record for name in leme.HEADS),
    knowedit.FORMAT: lambda record: {"text", "labels", "concept"} <= set(record) or _tests_by_kind(record),
}
"""Format -> whether a record is of it."""

READERS: Mapping[str, Callable[[str | Path, bool], LoadedSet[Any]]] = {
    mquake.FORMAT: mquake.load_mquake,
    ripple_edits.FORMAT: ripple_edits.load_ripple_edits,
    leme.FORMAT: leme.load_leme,
    knowedit.FORMAT: knowedit.load_knowedit,
}


def set_format(record: Mapping[str, Any]) -> str:
    """The format of a record, or an empty text if it is of none of `TOLD`."""
    return next((name for name, told in TOLD.items() if told(record)), "")


def load_any_set(path: str | Path, strict: bool = True) -> LoadedSet[Any]:
    """Read a benchmark whose format is told by its first record.

    Args:
        path: the file.
        strict: raise an error for malformed records; otherwise they are listed in ``LoadedSet.rejected``.

    Returns:
        `MultiHopCase`, `RippleCase` or `LongFormCase` objects, by the format.

    Raises:
        DataError: if the file is no regular file, cannot be read, is of another format, which the message
            names, or of none; and as the reader of the format.
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
