"""Original data from one path: the hard sets that AlphaEdit+'s authors released, CounterFact and ZsRE files.

What a file holds is told by its records: CounterFact's have ``requested_rewrite``, MEND's form of ZsRE has
``src``. The released hard sets are in MEND's form too; they are told by their names: ``K0.json``,
``KP.json`` and ``KI.json`` in the authors' repository, or ``AlphaSet1.json`` and so on.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from palimpsest.datasets.alphaset_file import load_released
from palimpsest.datasets.alphaset_members import AlphaSet
from palimpsest.datasets.counterfact import load_counterfact
from palimpsest.datasets.files import Loaded, first_record, given_place
from palimpsest.datasets.zsre import load_zsre
from palimpsest.errors import DataError
from palimpsest.files import file_sha256
from palimpsest.types import EvalCase

RELEASED = {"k0": "AlphaSet1", "kp": "AlphaSet2", "ki": "AlphaSet3"}
"""Names of the files that the authors released, without ending and in small letters -> set."""

ENDINGS = (".json", ".jsonl")


@dataclass(frozen=True)
class Original:
    """Original data as cases; ids begin with the kind of data, so that no two sources share one.

    Attributes:
        statements: of CounterFact files.
        questions: of ZsRE files, edited towards their alternative object.
        sets: title -> hard set, as released: without a true object, so that only metrics by tokens apply.
        rejected: number of malformed records that were left out, of CounterFact and ZsRE files.
        sha256: name of a file -> hash.
    """

    statements: list[EvalCase] = field(default_factory=list)
    questions: list[EvalCase] = field(default_factory=list)
    sets: Mapping[str, AlphaSet] = field(default_factory=dict)
    rejected: int = 0
    sha256: Mapping[str, str] = field(default_factory=dict)


def load_original(path: str | Path) -> Original:
    """Read the original data of a file, or of all JSON and JSON-lines files of a folder.

    Raises:
        DataError: if nothing is there, a file is of no known kind, two files hold the same hard set, or a
            released set has malformed records.
    """
    where = Path(path)
    files = sorted(f for f in where.iterdir() if f.suffix in ENDINGS) if where.is_dir() else [where]
    if not files or not all(f.is_file() for f in files):
        raise DataError(
            f"{path}: no file with original data; give a JSON or JSON-lines file, or a folder with some"
        )
    statements: list[EvalCase] = []
    questions: list[EvalCase] = []
    sets: dict[str, AlphaSet] = {}
    rejected = 0
    for file in files:
        kind = _kind(file)
        if kind == "CounterFact":
            loaded = load_counterfact(file, strict=False)
            statements += _renamed(loaded, kind)
        elif kind == "ZsRE":
            loaded = load_zsre(file, strict=False)
            questions += _renamed(loaded, kind)
        elif kind in sets:
            raise DataError(f"{file}: {kind} was read from another file of {path} already; keep one of them")
        else:
            sets[kind] = _own_ids(load_released(file, kind))
            continue
        rejected += len(loaded.rejected)
    hashes = {file.name: file_sha256(file) for file in files}
    return Original(statements, questions, dict(sorted(sets.items())), rejected, hashes)


def original_statements(data: str, seed: int) -> tuple[list[EvalCase], Mapping[str, str]]:
    """The facts of original CounterFact files in an order that is drawn, and the hash of each file.

    Args:
        data: file or folder, found as `palimpsest.datasets.files.given_place` does.
        seed: of the order.

    Raises:
        DataError: if nothing is there, or what is there holds no CounterFact record.
    """
    where = given_place(data)
    found = load_original(where)
    if not found.statements:
        raise DataError(f"{where}: no CounterFact record (a member requested_rewrite) in it")
    order = np.random.default_rng(seed).permutation(len(found.statements))
    return [found.statements[place] for place in order], found.sha256


def _kind(file: Path) -> str:
    """CounterFact, ZsRE, or the title of a released hard set.

    Raises:
        DataError: if it is none of them.
    """
    record = first_record(file)
    if "requested_rewrite" in record:
        return "CounterFact"
    name = file.stem.casefold()
    if "src" in record:
        titled = [title for title in RELEASED.values() if title.casefold() in name]
        return RELEASED.get(name) or (titled[0] if titled else "ZsRE")
    raise DataError(
        f"{file}: its first record has neither 'requested_rewrite' (CounterFact) nor 'src' (ZsRE in MEND's "
        f"form), but {', '.join(sorted(record)[:5]) or 'nothing'}"
    )


def _renamed(loaded: Loaded, kind: str) -> list[EvalCase]:
    return [_named(case, f"{kind} {case.id}") for case in loaded.cases]


def _own_ids(found: AlphaSet) -> AlphaSet:
    members = tuple(
        replace(
            member,
            case=_named(member.case, f"{found.name} {member.case.id}"),
            supersedes=member.supersedes and f"{found.name} {member.supersedes}",
        )
        for member in found.members
    )
    return replace(found, members=members)


def _named(case: EvalCase, name: str) -> EvalCase:
    return replace(case, id=name, request=replace(case.request, id=name))
