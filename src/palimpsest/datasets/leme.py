"""LEME files (Rosati et al. 2024): edits with entities whose facts depend on the subject.

Read are ``counterfact_with_coupled_entities.json`` and ``zsre_mend_eval_with_coupled_entities.json`` of the
folder ``data`` in domenicrosati/longform-evaluation-model-editing, and records with CounterFact's fields are
written. The schema is that of ``src/produce_coupled_entities.py`` and ``src/deberta_annotator.py`` at commit
19e920eb6a7cde871166cd5bd6015734616606cd. A record is one of CounterFact, or of ZsRE in MEND's form, with
``coupled_prompts_and_properties: {subject_entity: {entity, coupled_prompt, properties, ground_truth: property
-> objects}, coupled_entities: [{entity, coupled_prompt, overlapping_ground_truth,
not_overlapping_ground_truth, ...}]}``; ``dependancies`` and ``ground_truth`` are older names that the
annotator knows as well. Of a coupled entity the overlapping facts are required, since its prompt asks for
those.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from palimpsest.datasets.any_format import parse_case
from palimpsest.datasets.case_files import (
    LoadedSet,
    label_of,
    load_set,
    object_member,
    objects_member,
    text_at,
    texts_of,
)
from palimpsest.datasets.counterfact import to_counterfact
from palimpsest.datasets.harder_cases import LongFormCase, Passage
from palimpsest.datasets.set_formats import LEME_HEADS
from palimpsest.errors import DataError
from palimpsest.types import EvalCase

FORMAT = "LEME"


def load_leme(path: str | Path, strict: bool = True) -> LoadedSet[LongFormCase]:
    """Read a LEME file, one JSON list or JSON lines.

    Args:
        path: the file.
        strict: raise an error for malformed records; otherwise they are listed in ``LoadedSet.rejected``.

    Raises:
        DataError: as `palimpsest.datasets.case_files.load_set`.
    """
    return load_set(path, FORMAT, parse_leme, strict)


def parse_leme(record: Mapping[str, Any], default: str) -> LongFormCase:
    """The case of a record; ``default`` is its id if it names none.

    Raises:
        DataError, RequestError: if the record is malformed, with the field and the reason.
    """
    head = next((name for name in LEME_HEADS if name in record), LEME_HEADS[0])
    held = object_member(record, head)
    plain = {name: value for name, value in record.items() if name != "id"}
    case = parse_case(plain | {"case_id": label_of(record, default)})
    passage = _passage(object_member(held, "subject_entity", f"{head}."), f"{head}.subject_entity.")
    related = tuple(
        _passage(entry, f"{head}.coupled_entities.{place}.")
        for place, entry in enumerate(objects_member(held, "coupled_entities", f"{head}."))
    )
    if not related:
        raise DataError(f"field '{head}.coupled_entities' is an empty list; a case needs a related entity")
    return LongFormCase(
        id=case.id,
        request=case.request,
        target_true=case.target_true,
        passage=passage,
        related=related,
        relation=case.relation,
        edited=text_at(held, "edited_property") if "edited_property" in held else "",
        paraphrases=case.paraphrases,
        neighbours=case.neighbours,
    )


def _passage(entry: Mapping[str, Any], at: str) -> Passage:
    field = next(
        (name for name in ("ground_truth", "overlapping_ground_truth") if name in entry), "ground_truth"
    )
    facts = object_member(entry, field, at)
    required = {str(name): texts_of(values, f"{at}{field}.{name}") for name, values in facts.items()}
    return Passage(
        entity=text_at(entry, "entity", at),
        prompt=text_at(entry, "coupled_prompt", at),
        required={name: values for name, values in required.items() if values},
    )


def to_leme(case: LongFormCase) -> dict[str, Any]:
    """The LEME record of a case, with CounterFact's fields; `load_leme` reads it back as the same case.

    ``edited_property`` is this project's addition.

    Raises:
        DataError: if a neighbour's object is not the case's true object, which CounterFact cannot express.
    """
    plain = EvalCase(
        case.id, case.request, case.target_true, case.paraphrases, case.neighbours, case.relation
    )
    held: dict[str, Any] = {
        "subject_entity": {
            "properties": list(case.passage.required),
            "coupled_prompt": case.passage.prompt,
            "ground_truth": {name: list(values) for name, values in case.passage.required.items()},
            "entity": case.passage.entity,
        },
        "coupled_entities": [
            {
                "entity": other.entity,
                "coupled_prompt": other.prompt,
                "overlapping_ground_truth": {name: list(values) for name, values in other.required.items()},
                "not_overlapping_ground_truth": {},
            }
            for other in case.related
        ],
    }
    if case.edited:
        held["edited_property"] = case.edited
    return to_counterfact(plain) | {LEME_HEADS[0]: held}
