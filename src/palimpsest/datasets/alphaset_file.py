"""Files of hard data sets: writing and reading ours, and reading those that AlphaEdit+'s authors released."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

from palimpsest.datasets.alphaset_members import AlphaSet, Measures, Member, Role
from palimpsest.datasets.files import (
    Rejected,
    member,
    perturbations_member,
    read_text,
    refusal,
    texts_member,
)
from palimpsest.datasets.zsre import load_zsre
from palimpsest.errors import DataError
from palimpsest.files import file_sha256, replacing
from palimpsest.types import EditRequest, EvalCase, Probe

FORMAT = 1
"""Format number in the first line of a file; increase it when the fields change."""


def save_alphaset(alphaset: AlphaSet, path: str | Path) -> None:
    """Write a set as JSON lines, its recipe in the first line; the file is replaced atomically.

    Raises:
        DataError: if the recipe or a measure would change in JSON; nothing is written.
        ResourceError: if the file cannot be written; an existing file is unchanged.
    """
    head = {"alphaset": FORMAT, "name": alphaset.name, "members": len(alphaset.members)}
    lines = [_line(alphaset.name, head | {"recipe": alphaset.recipe})]
    lines += [_line(one.case.id, asdict(one)) for one in alphaset.members]
    with replacing(Path(path)) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def load_alphaset(path: str | Path) -> AlphaSet:
    """Read a set written by `save_alphaset`.

    Raises:
        DataError: if the file cannot be read, is of another kind, is truncated, or has damaged lines, which
            the message lists.
    """
    # Not splitlines: a text may contain other line separators, which JSON does not escape.
    first, *lines = read_text(path).removesuffix("\n").split("\n")
    head = _head(path, first)
    members: list[Member] = []
    rejected: list[Rejected] = []
    for number, line in enumerate(lines, start=2):
        try:
            members.append(_member(json.loads(line)))
        except RecursionError:
            rejected.append(Rejected(number, "its brackets are nested too deeply"))
        except (ValueError, TypeError) as error:
            rejected.append(Rejected(number, str(error)))
    if rejected:
        raise refusal(path, rejected, "build the set again, or restore the file")
    if len(members) != head["members"]:
        raise DataError(
            f"{path}: {len(members)} members where its first line says {head['members']}; the file was cut "
            "off or joined. Build the set again, or restore the file"
        )
    return AlphaSet(head["name"], tuple(members), head["recipe"])


def load_released(path: str | Path, name: str = "") -> AlphaSet:
    """Read a set as the authors released it: ZsRE records in MEND's form, in the order of writing.

    Their code edits towards the first accepted answer, so there is no true object. A record rewrites an
    earlier one if it has the same subject, a different first answer, and the same rephrased question or
    alternative object; the same subject alone would join different facts about one entity. The latest such
    earlier record is then superseded and the new one hard. The release does not say which of the remaining
    records are hard, so they are ``other``. With one rephrased question each, no wording is held out.

    Args:
        path: one JSON list or JSON lines.
        name: of the set; by default the file's name without its ending.

    Raises:
        DataError: if the file cannot be read, or has malformed records, which the message lists.
    """
    cases = load_zsre(path, target="answer").cases
    # Records with an empty alternative are rejected here, so they have none.
    alternatives = {c.id: c.request.target for c in load_zsre(path, target="alt", strict=False).cases}
    earlier: dict[str, list[EvalCase]] = {}
    rewrites: dict[str, str] = {}
    for case in cases:
        about = earlier.setdefault(_same(case.request.subject), [])
        found = [old for old in about if _rewrites(case, old, alternatives)]
        if found:
            rewrites[case.id] = found[-1].id
        about.append(case)
    gone = set(rewrites.values())

    def role(case: EvalCase) -> Role:
        return "superseded" if case.id in gone else "hard" if case.id in rewrites else "other"

    members = tuple(Member(case, role(case), supersedes=rewrites.get(case.id, "")) for case in cases)
    recipe = {"released": Path(path).name, "sha256": file_sha256(Path(path))}
    return AlphaSet(name or Path(path).stem, members, recipe)


def _rewrites(case: EvalCase, old: EvalCase, alternatives: Mapping[str, str]) -> bool:
    if _same(case.request.target) == _same(old.request.target):
        return False
    alternative, other = alternatives.get(case.id, ""), alternatives.get(old.id, "")
    rephrased = [_same(c.paraphrases[0]) for c in (case, old)]
    return rephrased[0] == rephrased[1] or (alternative != "" and _same(alternative) == _same(other))


def _same(text: str) -> str:
    """Text normalised in case and white space, for comparison."""
    return " ".join(text.casefold().split())


def _line(name: str, record: dict[str, Any]) -> str:
    """A record as one line of JSON.

    Raises:
        DataError: if it cannot be written, or its recipe would change in JSON.
    """
    try:
        line = json.dumps(record, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{name!r} cannot be written as JSON: {error}; keep texts and finite numbers"
        ) from error
    recipe = record.get("recipe", {})
    if json.loads(line).get("recipe", {}) != recipe:
        raise DataError(f"{name!r}: recipe {recipe} would change in JSON; use texts as names and lists")
    return line


def _head(path: str | Path, line: str) -> dict[str, Any]:
    try:
        head = json.loads(line)
    except (ValueError, RecursionError):  # no JSON, a number of too many digits, or brackets too deep
        head = {}
    kinds = {"alphaset": int, "name": str, "members": int, "recipe": dict}
    fits = isinstance(head, dict) and all(isinstance(head.get(key), kind) for key, kind in kinds.items())
    if not fits or head["alphaset"] != FORMAT:
        raise DataError(
            f"{path}: the first line is not that of a hard data set of format {FORMAT}: {line[:80]!r}; "
            "read sets that the authors released with load_released, build others again"
        )
    return head


def _member(record: Any) -> Member:
    """Make a member from its decoded line; raises an error with the reason if it is malformed."""
    if not isinstance(record, dict):
        raise DataError(f"a member must be a JSON object, not {record!r}")
    if record.get("role") not in get_args(Role):
        raise DataError(f"role {record.get('role')!r} is none of {', '.join(get_args(Role))}")
    request, neighbours = member(record, "case.request"), member(record, "case.neighbours")
    read = record["case"] | {
        "request": EditRequest(**request),
        "paraphrases": texts_member(record, "case.paraphrases"),
        "neighbours": tuple(Probe(**probe) for probe in neighbours),
        "perturbations": perturbations_member(record["case"]),
    }
    measures = Measures(**member(record, "measures"))
    return Member(**record | {"case": EvalCase(**read), "measures": measures})
