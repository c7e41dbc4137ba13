"""CounterFact files (Meng et al. 2022, ROME): reading the original records, and writing such records.

A record is ``{case_id, requested_rewrite: {prompt, subject, target_new: {str}, target_true: {str},
relation_id?}, paraphrase_prompts, neighborhood_prompts}``. All neighbours share the record's true object.
Members not named here (generation and attribute prompts) are not read. ``perturbations`` (level -> texts) is
this project's addition and is optional.
"""

from collections.abc import Mapping
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
from palimpsest.errors import DataError
from palimpsest.types import EditRequest, EvalCase, Probe


def load_counterfact(path: str | Path, strict: bool = True) -> Loaded:
    """Read a CounterFact file, one JSON list or JSON lines.

    Args:
        path: the file.
        strict: raise an error for malformed records; otherwise they are listed in ``Loaded.rejected``.

    Raises:
        DataError: if the file cannot be read, or (strict) has malformed records, which the message lists.
    """
    return load_cases(path, _parse, strict)


def _parse(record: Mapping[str, Any], index: int) -> EvalCase:
    case_id = str(record.get("case_id", index))
    true = text_member(record, "requested_rewrite.target_true.str")
    new = text_member(record, "requested_rewrite.target_new.str")
    if new == true:
        raise DataError(f"target_new and target_true are the same, {new!r}")
    request = EditRequest(
        prompt=text_member(record, "requested_rewrite.prompt"),
        subject=text_member(record, "requested_rewrite.subject"),
        target=new,
        id=case_id,
    )
    neighbours = texts_member(record, "neighborhood_prompts")
    return EvalCase(
        id=case_id,
        request=request,
        target_true=true,
        paraphrases=texts_member(record, "paraphrase_prompts"),
        neighbours=tuple(Probe(prompt, true) for prompt in neighbours),
        relation=str(member(record, "requested_rewrite").get("relation_id", "")),
        perturbations=perturbations_member(record),
    )


def to_counterfact(case: EvalCase) -> dict[str, Any]:
    """The CounterFact record of a case; `load_counterfact` reads it back as the same case.

    Raises:
        DataError: if a neighbour's object is not the case's true object; the format cannot express that.
    """
    odd = [probe for probe in case.neighbours if probe.target != case.target_true]
    if odd:
        raise DataError(
            f"case {case.id!r}: neighbour {odd[0].prompt!r} has the object {odd[0].target!r}, but "
            f"CounterFact neighbours share the true object {case.target_true!r}; use to_zsre"
        )
    record: dict[str, Any] = {
        "case_id": case.id,
        "requested_rewrite": {
            "prompt": case.request.prompt,
            "relation_id": case.relation,
            "target_new": {"str": case.request.target},
            "target_true": {"str": case.target_true},
            "subject": case.request.subject,
        },
        "paraphrase_prompts": list(case.paraphrases),
        "neighborhood_prompts": [probe.prompt for probe in case.neighbours],
    }
    if case.perturbations:
        levels = sorted(case.perturbations.items())
        record["perturbations"] = {str(level): list(texts) for level, texts in levels}
    return record
