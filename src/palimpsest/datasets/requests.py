"""Reading of edit requests: facts to write into a model, without evaluation prompts."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from palimpsest.datasets.files import load_cases, refusal, text_member
from palimpsest.errors import DataError
from palimpsest.types import EditRequest, EvalCase


def load_requests(path: str | Path) -> list[EditRequest]:
    """Read edit requests from one JSON list or JSON lines.

    A record is ``{prompt, subject, target, id?}``. The prompt has ``{}`` for the subject, or names the
    subject exactly once; without an id the filled prompt serves as id. Records of the original CounterFact
    file, which have a ``requested_rewrite``, are read too.

    Args:
        path: the file.

    Raises:
        DataError: if the file cannot be read or holds no fact, or if records are malformed or repeat an id or
            a prompt with its subject; the message lists them.
    """
    asked: set[str] = set()

    def parse(record: Mapping[str, Any], _: int) -> EvalCase:
        request = parse_request(record)
        if request.text in asked:
            raise DataError(f"{request.text!r} is asked a second time; keep one target for it")
        asked.add(request.text)
        return EvalCase(request.id, request, "")

    loaded = load_cases(path, parse, strict=False)
    if loaded.rejected:
        raise refusal(path, loaded.rejected, "correct the file; nothing was edited")
    if not loaded.cases:
        raise DataError(
            f"{path}: holds no fact; write one JSON object with prompt, subject and target per line"
        )
    return [case.request for case in loaded.cases]


def parse_request(record: Mapping[str, Any]) -> EditRequest:
    """The edit request of a record of either form, with an id.

    Raises:
        DataError, RequestError: if the record is malformed, with the reason.
    """
    if "requested_rewrite" in record:
        label, inside, new = "case_id", "requested_rewrite.", "target_new.str"
    else:
        label, inside, new = "id", "", "target"
    prompt, subject, target = (text_member(record, inside + name) for name in ("prompt", "subject", new))
    name = record.get(label, "")
    if isinstance(name, bool) or not isinstance(name, str | int):
        raise DataError(f"field {label!r} must be a text or a whole number, not {name!r}")
    request = EditRequest(prompt, subject, target, str(name).strip())
    return request if request.id else replace(request, id=request.text)
