"""Formats of benchmarks with harder questions, told by the fields of a record.

    MQuAKE            requested_rewrite, a list
    RippleEdits       edit, example_type
    LEME              coupled_prompts_and_properties, or dependancies
    KnowEdit          portability or locality with a list of tests by kind; in WikiBio text, labels, concept

MultiCounterFact has CounterFact's fields and cannot be told from it.
"""

from collections.abc import Callable, Mapping
from typing import Any

LEME_HEADS = ("coupled_prompts_and_properties", "dependancies")
"""Names of the field that tells a record of LEME."""

_WIKIBIO = {"text", "labels", "concept"}


def _tests_by_kind(record: Mapping[str, Any]) -> bool:
    """Whether portability or locality holds lists of tests, as KnowEdit has them."""
    held = [record.get(name) for name in ("portability", "locality")]
    return any(isinstance(one, Mapping) and any(isinstance(v, list) for v in one.values()) for one in held)


TOLD: Mapping[str, Callable[[Mapping[str, Any]], bool]] = {
    "MQuAKE": lambda record: isinstance(record.get("requested_rewrite"), list),
    "RippleEdits": lambda record: "edit" in record and "example_type" in record,
    "LEME": lambda record: any(name in record for name in LEME_HEADS),
    "KnowEdit": lambda record: set(record) >= _WIKIBIO or _tests_by_kind(record),
}
"""Format -> whether a record is of it."""


def set_format(record: Mapping[str, Any]) -> str:
    """The format of a record, or an empty text if it is of none of `TOLD`."""
    return next((name for name, told in TOLD.items() if told(record)), "")


def more_than_facts(record: Mapping[str, Any]) -> str:
    """The format of a record that cannot be read as one plain fact, or an empty text."""
    name = set_format(record)
    plain = name == "LEME" or (name == "KnowEdit" and "prompt" in record)
    return "" if plain else name
