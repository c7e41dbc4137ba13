"""ZsRE files in MEND's format (Levy et al. 2017; Mitchell et al. 2022): reading and writing.

A record is ``{subject, src, rephrase, alt, answers, loc, loc_ans, pred?, cond?}``: a question, its rewording,
another object, the accepted answers, and an unrelated question with its answer. ``case_id``, ``relation_id``
and ``perturbations`` are this project's additions and optional.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from palimpsest.datasets.files import (
    Loaded,
    load_cases,
    member,
    perturbations_member,
    text_member,
    texts_member,
)
from palimpsest.errors import DataError, UnknownNameError
from palimpsest.types import EditRequest, EvalCase, Probe

TARGETS = ("alt", "answer")
"""Object that is written into the model: ``alt``, another object (MEND, EasyEdit), or ``answer``, the first
accepted answer (the code of MEMIT and its descendants)."""

LOCALITY_HEAD = "nq question: "


def check_target(target: str) -> None:
    """Check that a target choice is ``alt`` or ``answer``.

    Raises:
        UnknownNameError: otherwise.
    """
    if target not in TARGETS:
        raise UnknownNameError("ZsRE target", target, list(TARGETS))


def load_zsre(path: str | Path, target: str = "alt", strict: bool = True) -> Loaded:
    """Read a ZsRE file, one JSON list or JSON lines.

    The locality question becomes the only neighbour: its prefix ``nq question: `` is removed and a question
    mark is added at its end. Cases are numbered by position unless they have a ``case_id``.

    Args:
        path: the file.
        target: ``alt`` edits towards another object, with the first accepted answer as true object;
            ``answer`` edits towards that answer, and ``target_true`` is empty.
        strict: raise an error for malformed records; otherwise they are listed in ``Loaded.rejected``.

    Raises:
        DataError: if the file cannot be read, or (strict) has malformed records, which the message lists.
        UnknownNameError: if ``target`` is neither of the two.
    """
    check_target(target)
    return load_cases(path, partial(_parse, target=target), strict)


def _parse(record: Mapping[str, Any], index: int, target: str) -> EvalCase:
    case_id = str(record.get("case_id", index))
    answers = texts_member(record, "answers")
    if not answers:
        raise DataError("field 'answers' is an empty list")
    member(record, "alt")
    request = EditRequest(
        prompt=text_member(record, "src"),
        subject=text_member(record, "subject"),
        target=text_member(record, "alt") if target == "alt" else answers[0].strip(),
        id=case_id,
    )
    question = text_member(record, "loc").removeprefix(LOCALITY_HEAD).removesuffix("?")
    return EvalCase(
        id=case_id,
        request=request,
        target_true=answers[0].strip() if target == "alt" else "",
        paraphrases=(text_member(record, "rephrase"),),
        neighbours=(Probe(question + "?", text_member(record, "loc_ans")),),
        relation=str(record.get("relation_id", "")),
        perturbations=perturbations_member(record),
    )


def to_zsre(case: EvalCase) -> dict[str, Any]:
    """The ZsRE record of a case; `load_zsre` reads it back as the same case.

    A case with a true object is written for ``target="alt"``, one without for ``target="answer"`` (its
    ``alt`` is then empty). ``pred``, a model's answer in the original files, holds the first answer.

    Raises:
        DataError: if the case does not have exactly one paraphrase and one neighbour prompt ending in ``?``.
    """
    if len(case.paraphrases) != 1 or len(case.neighbours) != 1:
        raise DataError(
            f"case {case.id!r} has {len(case.paraphrases)} paraphrases and "
            f"{len(case.neighbours)} neighbours; a ZsRE record holds one of each"
        )
    (probe,) = case.neighbours
    if not probe.prompt.endswith("?"):
        raise DataError(f"case {case.id!r}: neighbour {probe.prompt!r} must end in '?' in ZsRE")
    answer = case.target_true or case.request.target
    alternative = case.request.target if case.target_true else ""
    record: dict[str, Any] = {
        "case_id": case.id,
        "relation_id": case.relation,
        "subject": case.request.subject,
        "src": case.request.text,
        "pred": answer,
        "rephrase": case.paraphrases[0],
        "alt": alternative,
        "answers": [answer],
        "loc": LOCALITY_HEAD + probe.prompt.removesuffix("?"),
        "loc_ans": probe.target,
        "cond": f"{answer} >> {alternative} || {case.request.text}",
    }
    if case.perturbations:
        levels = sorted(case.perturbations.items())
        record["perturbations"] = {str(level): list(texts) for level, texts in levels}
    return record
