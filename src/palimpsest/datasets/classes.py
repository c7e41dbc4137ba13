"""Semantic classes of relations: which kind of thing the object of a fact is.

``data/facts/classes.csv`` has a row for each of CounterFact's relations, with its class and the reason;
relations without facts in this project stand in it too, so that what is missing can be told.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from palimpsest.datasets.facts import FACTS_FOLDER
from palimpsest.datasets.files import read_text
from palimpsest.errors import DataError
from palimpsest.types import EvalCase

COLUMNS = ["relation", "name", "class", "reason"]


@dataclass(frozen=True)
class Classes:
    """Classes of relations.

    Attributes:
        of: Wikidata property id -> class; classes in the order of the file.
        names: property id -> short name of the relation.
        reasons: property id -> why it belongs to its class.
    """

    of: Mapping[str, str]
    names: Mapping[str, str]
    reasons: Mapping[str, str]

    def all(self) -> tuple[str, ...]:
        """All classes, in the order of the file."""
        return tuple(dict.fromkeys(self.of.values()))

    def grouped(self, cases: Sequence[EvalCase]) -> dict[str, list[EvalCase]]:
        """Class -> its cases, in their order; classes without a case are left out.

        Raises:
            DataError: if a case has no relation, or one without a class.
        """
        unknown = [case for case in cases if case.relation not in self.of]
        if unknown:
            raise DataError(
                f"{len(unknown)} of {len(cases)} cases have no class, for example {unknown[0].id!r} with the "
                f"relation {unknown[0].relation!r}; use data with relation ids that classes.csv lists"
            )
        found = {name: [case for case in cases if self.of[case.relation] == name] for name in self.all()}
        return {name: members for name, members in found.items() if members}

    def missing(self, relations: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Class -> names of its relations that are not among these; classes that lack none are left out."""
        without = {
            name: tuple(self.names[r] for r in self.of if self.of[r] == name and r not in relations)
            for name in self.all()
        }
        return {name: lacking for name, lacking in without.items() if lacking}


def load_classes(path: str | Path | None = None) -> Classes:
    """Read the classes.

    Args:
        path: the file; by default that of the project.

    Raises:
        DataError: if the file is missing, has other columns, an empty cell, or a relation twice.
    """
    file = Path(path) if path is not None else FACTS_FOLDER / "classes.csv"
    reader = csv.DictReader(io.StringIO(read_text(file)))
    if reader.fieldnames != COLUMNS:
        raise DataError(f"{file}: columns must be {','.join(COLUMNS)}, not {reader.fieldnames}")
    rows = list(reader)
    for row in rows:
        if None in row or not all(isinstance(cell, str) and cell.strip() for cell in row.values()):
            raise DataError(f"{file}: four texts are needed in each row, not {list(row.values())!r}")
    relations = [row["relation"] for row in rows]
    twice = sorted({name for name in relations if relations.count(name) > 1})
    if twice:
        raise DataError(f"{file}: relation {twice[0]!r} has two rows; a relation belongs to one class")
    of, names, reasons = ({row["relation"]: row[c] for row in rows} for c in ("class", "name", "reason"))
    return Classes(of, names, reasons)
