"""Reading facts to write into a model, without anything to test them with."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from palimpsest.datasets.files import load_cases, refusal, text_member
from palimpsest.errors import DataError
from palimpsest.types import EditRequest, EvalCase


def load_requests(path: str | Path) -> list[EditRequest]:
    """Read facts from one JSON list or JSON lines.

    A record is ``{prompt, subject, target, id?}``. The prompt has ``{}`` in the subject's place, or names
    the subject once; without an id the filled prompt serves as one. Records of the original CounterFact
    file, which have a ``requested_rewrite``, are read too.

    Args:
        path: the file.

    Raises:
        DataError: if the file cannot be read or holds no fact; or lists the lines that are malformed, use an
            id again, or ask the same prompt and subject again.
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
    """The request of a record of either form, with an id.

    Raises:
        DataError, RequestError: with the reason, if it has none.
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
