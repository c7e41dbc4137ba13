"""Reading of edit requests: facts to write into a model, without evaluation prompts."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from palimpsest.datasets.any_format import load_cases_of, parse_case
from palimpsest.types import EditRequest


def load_requests(path: str | Path) -> list[EditRequest]:
    """Read edit requests from a file of any format that `palimpsest.datasets.any_format` knows.

    The prompt has ``{}`` for the subject, or names the subject exactly once; without an id the filled prompt
    serves as id.

    Args:
        path: the file.

    Raises:
        DataError: if the file cannot be read or holds no fact, or if records are malformed or repeat an id or
            a prompt with its subject; the message lists them.
    """
    return [case.request for case in load_cases_of(path).cases]


def parse_request(record: Mapping[str, Any]) -> EditRequest:
    """The edit request of a record of any format, with an id.

    Raises:
        DataError, RequestError: if the record is malformed, with the reason.
    """
    return parse_case(record).request
