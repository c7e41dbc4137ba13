"""Reading of benchmark files whose records are no `palimpsest.types.EvalCase`, and parts of such records."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar, runtime_checkable

from palimpsest.datasets.files import Rejected, member, parsed_records, refusal, text_member
from palimpsest.errors import DataError
from palimpsest.files import file_sha256


@runtime_checkable
class Named(Protocol):
    """Anything with an id."""

    @property
    def id(self) -> str:
        """Unique within its data set."""
        ...


Case = TypeVar("Case", bound=Named)


@dataclass(frozen=True)
class LoadedSet(Generic[Case]):
    """Contents of a benchmark file.

    Attributes:
        format: name of the format.
        cases: usable cases in file order.
        rejected: malformed records in file order.
        sha256: hash of the file, for the record of a run.
    """

    format: str
    cases: tuple[Case, ...]
    rejected: tuple[Rejected, ...]
    sha256: str


def load_set(
    path: str | Path, name: str, parse: Callable[[Mapping[str, Any], str], Case], strict: bool = True
) -> LoadedSet[Case]:
    """Parse every record of a file.

    Args:
        path: the file, of any form that `palimpsest.datasets.reading` knows.
        name: of the format, for messages.
        parse: (record, id if it names none) -> case; raises DataError or RequestError with field and reason.
        strict: raise an error if a record is malformed, instead of listing it in the result.

    Raises:
        DataError: if the file is no regular file, cannot be read or holds no record, or (strict) holds a
            malformed record; the message names the format, the file, the record or line, and the field.
    """
    cases, rejected = parsed_records(path, lambda record, index: parse(record, str(index)))
    if rejected and strict:
        usable = f"the other {len(cases)} and find these in .rejected"
        raise refusal(path, rejected, f"correct them, or pass strict=False to go on with {usable}", name)
    if not cases and not rejected:
        raise DataError(f"{path}: holds no record of {name}; fetch it again")
    return LoadedSet(name, tuple(cases), tuple(rejected), file_sha256(Path(path)))


def label_of(record: Mapping[str, Any], default: str, field: str = "case_id") -> str:
    """The id of a record: a text or a whole number, or the default if it has none.

    Raises:
        DataError: if it is something else.
    """
    name = record.get(field, default)
    if isinstance(name, bool) or not isinstance(name, str | int) or not str(name).strip():
        raise DataError(f"field {field!r} must be a text or a whole number, not {name!r}")
    return str(name).strip()


def objects_member(record: Mapping[str, Any], field: str, at: str = "") -> list[Mapping[str, Any]]:
    """A required member that is a list of JSON objects.

    Raises:
        DataError: if it is missing or something else; the message names the field, behind ``at``.
    """
    value = _within(at, lambda: member(record, field))
    if not isinstance(value, list) or not all(isinstance(one, Mapping) for one in value):
        raise DataError(f"field {at + field!r} must be a list of objects, not {_short(value)}")
    return value


def object_member(record: Mapping[str, Any], field: str, at: str = "") -> Mapping[str, Any]:
    """A required member that is a JSON object; errors as `objects_member`."""
    value = _within(at, lambda: member(record, field))
    if not isinstance(value, Mapping):
        raise DataError(f"field {at + field!r} must be an object, not {_short(value)}")
    return value


def text_at(record: Mapping[str, Any], field: str, at: str = "") -> str:
    """A required member that is a text; errors as `objects_member`."""
    return _within(at, lambda: text_member(record, field))


def texts_at(record: Mapping[str, Any], field: str, at: str = "", needed: bool = True) -> tuple[str, ...]:
    """A member that is a list of texts, blank ones left out; errors as `objects_member`.

    Args:
        record: the object that has it.
        field: its name.
        at: fields that lead to the object, ending in a dot.
        needed: whether it may not be missing.
    """
    if not needed and field not in record:
        return ()
    return texts_of(_within(at, lambda: member(record, field)), at + field)


def texts_of(value: Any, field: str) -> tuple[str, ...]:
    """The texts of a list, without outer white space, blank ones left out.

    Raises:
        DataError: if it is no list of texts; the message names the field.
    """
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise DataError(f"field {field!r} must be a list of texts, not {_short(value)}")
    return tuple(one.strip() for one in value if one.strip())


Found = TypeVar("Found")


def _within(at: str, read: Callable[[], Found]) -> Found:
    """What a reader gives; its errors name the whole way to the field."""
    try:
        return read()
    except DataError as error:
        raise DataError(str(error).replace("field '", f"field '{at}", 1)) from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 80 else f"{text[:77]}..."
