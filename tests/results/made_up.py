"""Made-up values and records, and the label that a rule gives them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from palimpsest.results.rules import Entry

LEMMAS = {
    "p01_residual_error": 1e-12,
    "p01_corrected_update_error": 1e-13,
    "p01_printed_update_error": 0.9,
    "p02_equality_gap": 0.3,
    "p02_bound_violations": 0,
    "p03_signed_error": 1e-12,
    "p03_unsigned_error": 0.2,
    "p04_bound_violations": 0,
    "p04_tightness": 1.0,
    "p05_update_error": 1e-14,
    "p05_admitted": 0,
    "p06_negative_gains": 0,
    "p06_smallest_gain": 1e-9,
    "p07_scan_error": 1e-14,
    "p07_curriculum_effect": 0.0,
}
"""Values that page 03 is expected to record."""


def entry(
    value: Any,
    low: float | None = None,
    high: float | None = None,
    unit: str = "score",
    n: int | None = None,
    over: str = "",
) -> Entry:
    return {"value": value, "low": low, "high": high, "unit": unit, "over": over, "n": n}


def label(rule: Any, **values: Any) -> str:
    given = {name: item if isinstance(item, dict) else entry(item) for name, item in values.items()}
    return str(rule.judge(given).label)


def record(folder: Path, profile: str, notebook: str, values: Mapping[str, Any]) -> None:
    """Write a record as a notebook does."""
    (folder / profile).mkdir(parents=True, exist_ok=True)
    content = {"schema": 1, "values": {name: entry(value) for name, value in values.items()}}
    (folder / profile / f"{notebook}.json").write_text(json.dumps(content), "utf-8")
    (folder / profile / f"{notebook}.provenance.json").write_text("{}", "utf-8")
