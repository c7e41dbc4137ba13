"""Wordings with which written facts are queried: from a file, or from the fact set's templates."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from palimpsest.datasets.facts import LEVELS, FactSet
from palimpsest.datasets.files import load_cases, refusal, texts_member
from palimpsest.datasets.requests import parse_request
from palimpsest.errors import DataError
from palimpsest.types import SLOT, EditRequest, EvalCase


def load_wordings(path: str | Path) -> dict[str, tuple[str, ...]]:
    """Read wordings from one JSON list or JSON lines.

    A record is an edit request, as `palimpsest.datasets.requests.load_requests` reads it, with a member
    ``wordings``: two or more different texts, in which ``{}`` stands for the subject.

    Returns:
        Id of the fact -> its wordings, subject filled in.

    Raises:
        DataError: if the file cannot be read, or has malformed records, which the message lists.
    """

    def parse(record: Mapping[str, Any], _: int) -> EvalCase:
        request, own = parse_request(record), texts_member(record, "wordings")
        if len(set(own)) < max(len(own), 2):
            raise DataError(f"field 'wordings' must hold two or more different texts, not {list(own)!r}")
        return EvalCase(request.id, request, "", tuple(text.replace(SLOT, request.subject) for text in own))

    loaded = load_cases(path, parse, strict=False)
    if loaded.rejected:
        raise refusal(path, loaded.rejected, "correct the file; nothing was asked")
    return {case.id: case.paraphrases for case in loaded.cases}


def wordings_of(
    requests: Sequence[EditRequest], facts: FactSet, given: Mapping[str, tuple[str, ...]] | None = None
) -> dict[str, tuple[str, ...]]:
    """Id of each request -> its wordings.

    Given wordings have priority. Otherwise a request whose prompt is a statement or question template of the
    fact set has the six perturbation levels of that template's kind.

    Args:
        requests: facts; the filled prompt serves as id if a fact has none.
        facts: the fact set.
        given: id -> wordings, for example from `load_wordings`.

    Raises:
        DataError: if a request has no wordings.
    """
    levels = {
        prompt: [templates[level][0] for level in LEVELS]
        for relation in facts.relations.values()
        for prompts, templates in (
            (relation.statements, relation.perturbations),
            (relation.questions, relation.question_perturbations),
        )
        for prompt in prompts
    }
    found, without = dict[str, tuple[str, ...]](), list[EditRequest]()
    for request in requests:
        name = request.id or request.text
        if name in (given or {}):
            found[name] = (given or {})[name]
        elif request.prompt in levels:
            found[name] = tuple(text.replace(SLOT, request.subject) for text in levels[request.prompt])
        else:
            without.append(request)
    if without:
        first = without[0]
        raise DataError(
            f"{len(without)} of {len(requests)} facts have no wordings, first {first.id or first.text!r}: "
            f"its prompt {first.prompt!r} is no sentence of the fact set. Give a file of facts with a member "
            "'wordings', two or more texts with {} in the subject's place"
        )
    return found
