"""Records of a data file; what it is written in is told by its content and not by its name.

Read are a JSON list, JSON lines, one or several objects over many lines each, one object with a list of
records under ``facts`` (or ``data``, ``records``, ``requests``, ``edits``), and CSV with a head, separated by
commas, semicolons or tabs; each also compressed with gzip, and in UTF-8 or UTF-16 with a byte-order mark.
"""

import codecs
import csv
import gzip
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from palimpsest.errors import DataError

WRAPPERS = ("facts", "data", "records", "requests", "edits")
"""Names under which one object may hold the list of records."""

GZIP = b"\x1f\x8b"

SEPARATORS = ",;\t"

Numbered = tuple[int, Any]
"""Line of a record, or its number in a JSON list; and the record, or a DataError that says its fault."""


def text_of(path: str | Path) -> str:
    """Text of a file, decompressed where it is gzip, without a byte-order mark.

    Raises:
        DataError: if the file cannot be read, is damaged, or is neither UTF-8 nor marked UTF-16.
    """
    try:
        content = Path(path).read_bytes()
        if content.startswith(GZIP):
            content = gzip.decompress(content)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path}: damaged gzip file ({error}); fetch it again") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except ValueError as error:
        raise DataError(f"{str(path)!r}: no path of a file ({error}); check it") from error
    wide = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        return content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from error


def numbered_records(path: str | Path) -> Iterator[Numbered]:
    """Records of a file with their lines.

    Raises:
        DataError: if the file cannot be read, or is one damaged JSON value.
    """
    for line, record in _records(path, text_of(path)):
        fault = None if isinstance(record, DataError) else _surrogate(record)
        yield line, fault or record


def _records(path: str | Path, text: str) -> Iterable[Numbered]:
    start = text.lstrip()[:1]
    if start == "[":
        found = _decoded(text)
        if isinstance(found, DataError):
            raise DataError(f"{path}: {found}; fetch it again")
        return enumerate(found, start=1)
    if start == "{":
        return _objects(path, text)
    return _lines(text) if start in ("", '"') or not _is_csv(text) else _rows(text)


def _objects(path: str | Path, text: str) -> Iterable[Numbered]:
    """Objects one a line, or over many lines each."""
    lines = list(_lines(text))
    if not any(isinstance(record, DataError) for _, record in lines):
        return _unwrapped(lines)
    spread = list(_spread(text))
    faults = [record for _, record in spread if isinstance(record, DataError)]
    if not faults:
        return _unwrapped(spread)
    if len(lines) > 1 and isinstance(lines[0][1], DataError) and len(spread) == 1:
        raise DataError(f"{path}: {faults[0]}; fetch it again")
    return lines


def _lines(text: str) -> Iterator[Numbered]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, _decoded(line, several=False)


def _spread(text: str) -> Iterator[Numbered]:
    """Values that follow each other, each over any number of lines; a faulty one is the last."""
    at, decoder = 0, json.JSONDecoder()
    while rest := text[at:].lstrip():
        at = len(text) - len(rest)
        try:
            found, end = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            yield 1 + text.count("\n", 0, at), _fault(error)
            return
        yield 1 + text.count("\n", 0, at), found
        at = end


def _unwrapped(records: list[Numbered]) -> Iterable[Numbered]:
    """The records of the one object that holds them in a list; else the records as they are."""
    if len(records) == 1 and isinstance(records[0][1], Mapping):
        held = [value for name, value in records[0][1].items() if name in WRAPPERS]
        if len(held) == 1 and isinstance(held[0], list):
            return enumerate(held[0], start=1)
    return records


def _is_csv(text: str) -> bool:
    """Whether the first line is a head with names of fields."""
    head = text.lstrip().split("\n", 1)[0]
    return any(mark in head for mark in SEPARATORS) and "{" not in head and "[" not in head


def _rows(text: str) -> Iterator[Numbered]:
    head = text.lstrip().split("\n", 1)[0]
    mark = max(SEPARATORS, key=head.count)
    reader = csv.DictReader(io.StringIO(text.lstrip(), newline=""), delimiter=mark)
    try:
        for row in reader:
            cells = {str(name).strip(): cell for name, cell in row.items() if cell and name is not None}
            if None in row:
                fault = f"{len(row[None])} cells more than the {len(reader.fieldnames or ())} columns"
                yield reader.line_num, DataError(f"{fault} of the head; put texts with {mark!r} in quotes")
            else:
                yield reader.line_num, cells
    except csv.Error as error:
        yield reader.line_num, DataError(f"not valid CSV ({error})")


def _decoded(text: str, several: bool = True) -> Any:
    """A decoded JSON text, or a DataError with its fault: with a line if it has several, else a column."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        return _fault(error, several)


def _fault(error: Exception, several: bool = True) -> DataError:
    if isinstance(error, json.JSONDecodeError):
        place = f"on line {error.lineno}" if several else f"at column {error.colno}"
        return DataError(f"not valid JSON ({error.msg} {place})")
    if isinstance(error, RecursionError):
        return DataError("not usable JSON (brackets are nested too deeply)")
    return DataError(f"not usable JSON ({str(error).partition(';')[0]})")


def _surrogate(record: Any) -> DataError | None:
    """A fault if a text of the record holds half a character, which no tokenizer and no file takes."""
    waiting = [("", record)]
    while waiting:
        name, value = waiting.pop()
        if isinstance(value, Mapping):
            waiting += [(f"{name}.{key}".removeprefix("."), inner) for key, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(name, inner) for inner in value]
        elif isinstance(value, str) and any("\ud800" <= letter <= "\udfff" for letter in value):
            shown = value.encode("utf-8", "backslashreplace").decode()
            return DataError(f"field {name!r} holds half of a surrogate pair, {shown!r}; write the character")
    return None
