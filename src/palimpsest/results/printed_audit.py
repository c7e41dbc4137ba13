"""Audit of printed numbers: rules that judge a claim by arithmetic checks of the published tables.

The results of the checks are stored in ``data/published/audit.csv``; a rule selects rows and counts how many
agree.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field

from palimpsest import paths
from palimpsest.errors import DataError
from palimpsest.files import UNREADABLE
from palimpsest.results.rules import BaseRule, Judgement

Row = Mapping[str, str]
"""One check: id, paper, place, claim, computed, published, agrees, note."""


COLUMNS = ("id", "paper", "place", "claim", "computed", "published", "agrees", "note")


@cache
def load_audit() -> tuple[Row, ...]:
    """The rows of ``data/published/audit.csv``; every field is a text.

    Raises:
        DataError: if the file cannot be read, or lacks a column.
    """
    path = paths.root() / "data" / "published" / "audit.csv"
    try:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    except UNREADABLE as error:
        raise DataError(f"{path}: cannot be read as CSV ({error}); restore it from the repository") from error
    missing = [name for name in COLUMNS if name not in frame]
    if missing:
        raise DataError(f"{path}: has no column {', '.join(missing)}; restore it from the repository")
    return tuple({str(key): value for key, value in row.items()} for row in frame.to_dict("records"))


def prefix(row: Row) -> str:
    """Kind of check of a row: the letters at the start of its id."""
    return row["id"].rstrip("0123456789")


def agreement(rows: Sequence[Row]) -> tuple[int, int]:
    """Number of rows that agree, and number of rows that can be checked."""
    checkable = [row for row in rows if row["agrees"] != "not checkable"]
    return sum(row["agrees"] == "yes" for row in checkable), len(checkable)


class Rows(BaseModel):
    """Selection of rows of the audit of published numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    prefixes: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()
    between_papers: bool = False
    """Keep only rows that compare two papers."""

    def pick(self, audit: Sequence[Row]) -> list[Row]:
        """The selected rows.

        Raises:
            DataError: if an id does not exist, or no row is selected.
        """
        unknown = set(self.ids) - {row["id"] for row in audit}
        picked = [
            row
            for row in audit
            if (row["id"] in self.ids or prefix(row) in self.prefixes)
            and ("/" in row["paper"] or not self.between_papers)
        ]
        if unknown or not picked:
            missing = ", ".join(sorted(unknown)) or "any row of that selection"
            raise DataError(f"the audit has no row {missing}; see data/published/audit.csv for its ids")
        return picked


class Audit(BaseRule):
    """A claim about printed numbers that is decided by arithmetic on the printed tables."""

    kind: Literal["audit"] = "audit"
    rows: Rows
    corrected: Rows | None = None
    """Rows that test the corrected statement."""
    share: float = Field(0.95, gt=0.5, le=1)

    def judge(self, audit: Sequence[Row]) -> Judgement:
        """Compare the share of agreeing rows, among those that can be checked, with ``share``."""
        agree, total = agreement(self.rows.pick(audit))
        told = f"{agree} of {total} checks of the printed numbers agree"
        if not total:
            return Judgement("undecided", "none of the printed numbers can be checked")
        if agree >= self.share * total:
            return Judgement("reproduced", told)
        if self.corrected is not None:
            right, of = agreement(self.corrected.pick(audit))
            told += f"; the corrected form fits {right} of {of}"
            if right >= self.share * of:
                return Judgement("wrong as printed", told)
        return Judgement("opposite here" if 2 * agree < total else "direction only", told)
