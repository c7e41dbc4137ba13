"""Reading of record files in JSON or JSON lines, and error messages that list malformed records."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from palimpsest.datasets.reading import numbered_records, text_of
from palimpsest.errors import DataError, RequestError
from palimpsest.files import file_sha256, special
from palimpsest.types import EvalCase

Parsed = TypeVar("Parsed")

FOLDER = "PALIMPSEST_ORIGINALS"
"""Environment variable with the folder of original data."""

LISTED = 20
"""Largest number of rejected records that an error message lists."""


@dataclass(frozen=True)
class Rejected:
    """A malformed record.

    Attributes:
        line: line of the file, from 1; in a file that is one JSON list, number of the record, from 1.
        reason: description of the fault, with the value found.
    """

    line: int
    reason: str


@dataclass(frozen=True)
class Loaded:
    """Contents of a data file: the usable cases, and the malformed records.

    Attributes:
        cases: usable cases in file order.
        rejected: malformed records in file order.
        sha256: hash of the file, for the record of a run.
    """

    cases: list[EvalCase]
    rejected: list[Rejected]
    sha256: str


def given_place(data: str | Path) -> Path:
    """File or folder of original data that a parameter names.

    A relative one that is not found is looked up in the folder that the environment variable
    ``PALIMPSEST_ORIGINALS`` names, so that a recorded parameter says nothing of a machine.

    Raises:
        DataError: if nothing is there and no such folder is named.
    """
    where, folder = Path(data).expanduser(), os.environ.get(FOLDER)
    if where.exists():
        return where
    if not folder:
        raise DataError(f"{data}: not found; give its whole path, or its folder in {FOLDER}")
    return Path(folder).expanduser() / data


def read_text(path: str | Path) -> str:
    """Text of a UTF-8 file.

    Raises:
        DataError: if the file cannot be read or is not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error


def refusal(path: str | Path, rejected: list[Rejected], remedy: str, form: str = "") -> DataError:
    """The error that lists malformed records, at most ``LISTED`` of them one by one.

    Args:
        path: the file.
        rejected: its malformed records.
        remedy: what the user can do.
        form: name of the format as which the file was read, if it is one of several.
    """
    place = "record" if form and text_of(path).lstrip()[:1] == "[" else "line"
    lines = [f"  {place} {fault.line}: {fault.reason}" for fault in rejected[:LISTED]]
    if len(rejected) > LISTED:
        lines.append(f"  and {len(rejected) - LISTED} more")
    read = f"{path}, read as {form}" if form else f"{path}"
    head = f"{read}: {len(rejected)} malformed record{'s' if len(rejected) > 1 else ''}:"
    return DataError("\n".join([head, *lines, remedy]))


def parsed_records(
    path: str | Path, parse: Callable[[Mapping[str, Any], int], Parsed]
) -> tuple[list[Parsed], list[Rejected]]:
    """What a function makes of every record of a JSON or JSON-lines file, and the records that it refuses.

    Args:
        path: the file.
        parse: (record, index of the record from 0) -> result; raises DataError or RequestError with the
            reason for a malformed record. A result's ``id``, if it has one, must be unique.

    Raises:
        DataError: if the file is a pipe or a device or cannot be read.
    """
    if kind := special(path):
        raise DataError(f"{path}: is {kind} and no file; write what it gives to a file, and read that")
    found: list[Parsed] = []
    rejected: list[Rejected] = []
    seen: dict[str, int] = {}
    for index, (line, record) in enumerate(numbered_records(path)):
        try:
            result = parse(_mapping(record), index)
            name = getattr(result, "id", None)
            if name in seen:
                raise DataError(f"case id {name!r} was already used on line {seen[name]}")
        except RecursionError:
            rejected.append(Rejected(line, "its brackets are nested too deeply"))
        except (DataError, RequestError) as error:
            rejected.append(Rejected(line, str(error)))
        else:
            if name is not None:
                seen[name] = line
            found.append(result)
    return found, rejected


def load_cases(path: str | Path, parse: Callable[[Mapping[str, Any], int], EvalCase], strict: bool) -> Loaded:
    """Parse every record of a JSON or JSON-lines file.

    Args:
        path: the file.
        parse: as `parsed_records`.
        strict: raise an error if a record is malformed, instead of listing it in the result.

    Raises:
        DataError: if the file is a pipe or a device or cannot be read, or (strict) holds a malformed record.
    """
    cases, rejected = parsed_records(path, parse)
    if rejected and strict:
        remedy = (
            f"correct the file, or pass strict=False to go on with the other {len(cases)} "
            "records and find these in .rejected"
        )
        raise refusal(path, rejected, remedy)
    return Loaded(cases, rejected, file_sha256(Path(path)))


def load_records(path: str | Path, parse: Callable[[Mapping[str, Any], int], Parsed]) -> list[Parsed]:
    """What a function makes of every record of a JSON or JSON-lines file.

    Args:
        path: the file.
        parse: as `parsed_records`.

    Raises:
        DataError: if the file cannot be read or holds a malformed record; the message lists the lines.
    """
    found, rejected = parsed_records(path, parse)
    if rejected:
        raise refusal(path, rejected, "correct these records, or leave them out of the file")
    return found


def first_record(path: str | Path) -> Mapping[str, Any]:
    """The first record of a JSON or JSON-lines file, by which its kind is told.

    Raises:
        DataError: if the file cannot be read, or its first record is no JSON object.
    """
    for _, record in numbered_records(path):
        return _mapping(record)
    raise DataError(f"{path}: holds no record; fetch it again")


def _mapping(record: Any) -> Mapping[str, Any]:
    if isinstance(record, DataError):
        raise record
    if not isinstance(record, Mapping):
        raise DataError(f"a record must be a JSON object, not {type(record).__name__}")
    return record


def member(record: Mapping[str, Any], name: str) -> Any:
    """A required member of a record; dots in the name separate nested members.

    Raises:
        DataError: if it is missing.
    """
    value: Any = record
    for step in name.split("."):
        if not isinstance(value, Mapping) or step not in value:
            raise DataError(f"field {name!r} is missing")
        value = value[step]
    return value


def text_member(record: Mapping[str, Any], name: str) -> str:
    """A required member that is a non-blank text, without leading and trailing white space.

    Raises:
        DataError: if it is missing or not such a text.
    """
    value = member(record, name)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"field {name!r} must be a text, not {value!r}")
    return value.strip()


def texts_member(record: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """A required member that is a list of non-blank texts.

    Raises:
        DataError: if it is missing or not such a list.
    """
    value = member(record, name)
    if not isinstance(value, list) or not all(isinstance(v, str) and v.strip() for v in value):
        raise DataError(f"field {name!r} must be a list of texts, not {value!r}")
    return tuple(value)


def perturbations_member(record: Mapping[str, Any]) -> dict[int, tuple[str, ...]]:
    """The optional member ``perturbations``, level -> texts, which the original formats do not have.

    Raises:
        DataError: if it does not map levels to lists of texts.
    """
    if "perturbations" not in record:
        return {}
    try:
        return {int(level): texts_member(record["perturbations"], level) for level in record["perturbations"]}
    except (TypeError, ValueError) as error:
        raise DataError(f"field 'perturbations' must map levels to lists of texts: {error}") from error
