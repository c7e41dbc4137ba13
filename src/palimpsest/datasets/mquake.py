"""MQuAKE files (Zhong et al. 2023): multi-hop questions whose answers change with edits; reading and writing.

Read are ``MQuAKE-CF.json``, ``MQuAKE-CF-3k.json``, ``MQuAKE-CF-3k-v2.json`` and ``MQuAKE-T.json`` of the
folder ``datasets`` in princeton-nlp/MQuAKE. The schema is that of the README and of ``run_mello.ipynb`` at
commit fb43dadc2d8cd19d08ce81c63d957b59deb3f3cd.

A record is ``{case_id, requested_rewrite: [{prompt, relation_id, target_new: {str, id}, target_true: {str,
id}, subject, question}], questions, answer, answer_alias, new_answer, new_answer_alias, single_hops:
[{question, cloze, answer, answer_alias}], new_single_hops, orig: {triples, triples_labeled, new_triples,
new_triples_labeled, edit_triples}}``, in MQuAKE-T also ``answer_extended``. Identifiers of entities are not
read. Cases of the first 3k release contradict each other; `conflicts` lists them in any set.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from palimpsest.datasets.case_files import (
    LoadedSet,
    label_of,
    load_set,
    object_member,
    objects_member,
    text_at,
    texts_at,
)
from palimpsest.datasets.harder_cases import Hop, HopEdit, MultiHopCase, Triple
from palimpsest.errors import DataError
from palimpsest.types import EditRequest

FORMAT = "MQuAKE"


def load_mquake(path: str | Path, strict: bool = True) -> LoadedSet[MultiHopCase]:
    """Read an MQuAKE file, one JSON list or JSON lines.

    Args:
        path: the file.
        strict: raise an error for malformed records; otherwise they are listed in ``LoadedSet.rejected``.

    Raises:
        DataError: as `palimpsest.datasets.case_files.load_set`.
    """
    return load_set(path, FORMAT, parse_mquake, strict)


def parse_mquake(record: Mapping[str, Any], default: str) -> MultiHopCase:
    """The case of a record; ``default`` is its id if it names none.

    Raises:
        DataError, RequestError: if the record is malformed, with the field and the reason.
    """
    name = label_of(record, default)
    edits = tuple(
        _edit(entry, f"requested_rewrite.{place}.", f"{name}/{place}")
        for place, entry in enumerate(objects_member(record, "requested_rewrite"))
    )
    triples, new_triples = (
        _triples(record, f"orig.{field}") for field in ("triples_labeled", "new_triples_labeled")
    )
    return MultiHopCase(
        id=name,
        edits=edits,
        questions=texts_at(record, "questions"),
        answer=text_at(record, "answer"),
        aliases=texts_at(record, "answer_alias", needed=False),
        new_answer=text_at(record, "new_answer"),
        new_aliases=texts_at(record, "new_answer_alias", needed=False),
        hops=_hops(record, "single_hops"),
        new_hops=_hops(record, "new_single_hops"),
        triples=triples,
        new_triples=new_triples,
        extended=texts_at(record, "answer_extended", needed=False),
    )


def _edit(entry: Mapping[str, Any], at: str, name: str) -> HopEdit:
    new, true = (text_at(entry, field, at) for field in ("target_new.str", "target_true.str"))
    if new == true:
        raise DataError(f"fields {at + 'target_new.str'!r} and {at + 'target_true.str'!r} are both {new!r}")
    request = EditRequest(text_at(entry, "prompt", at), text_at(entry, "subject", at), new, name)
    relation = text_at(entry, "relation_id", at) if "relation_id" in entry else ""
    return HopEdit(request, true, text_at(entry, "question", at), relation)


def _hops(record: Mapping[str, Any], field: str) -> tuple[Hop, ...]:
    found = []
    for place, entry in enumerate(objects_member(record, field)):
        at = f"{field}.{place}."
        question, cloze, answer = (text_at(entry, name, at) for name in ("question", "cloze", "answer"))
        found.append(Hop(question, cloze, answer, texts_at(entry, "answer_alias", at, needed=False)))
    return tuple(found)


def _triples(record: Mapping[str, Any], field: str) -> tuple[Triple, ...]:
    if "orig" not in record:
        return ()
    part = object_member(record, "orig").get(field.removeprefix("orig."), [])
    fits = isinstance(part, list) and all(isinstance(one, list) and len(one) == 3 for one in part)
    if not fits or not all(isinstance(text, str) for one in part for text in one):
        raise DataError(f"field {field!r} must be a list of three texts each, not {str(part)[:80]!r}")
    return tuple((one[0], one[1], one[2]) for one in part)


def to_mquake(case: MultiHopCase) -> dict[str, Any]:
    """The MQuAKE record of a case; `load_mquake` reads it back as the same case.

    Names take the place of Wikidata's identifiers of entities, which are not known.
    """
    record: dict[str, Any] = {
        "case_id": case.id,
        "requested_rewrite": [
            {
                "prompt": edit.request.prompt,
                "relation_id": edit.relation,
                "target_new": {"str": edit.request.target, "id": edit.request.target},
                "target_true": {"str": edit.target_true, "id": edit.target_true},
                "subject": edit.request.subject,
                "question": edit.question,
            }
            for edit in case.edits
        ],
        "questions": list(case.questions),
        "answer": case.answer,
        "answer_alias": list(case.aliases),
        "new_answer": case.new_answer,
        "new_answer_alias": list(case.new_aliases),
        "single_hops": _written(case.hops),
        "new_single_hops": _written(case.new_hops),
        "orig": {
            "triples": [list(triple) for triple in case.triples],
            "triples_labeled": [list(triple) for triple in case.triples],
            "new_triples": [list(triple) for triple in case.new_triples],
            "new_triples_labeled": [list(triple) for triple in case.new_triples],
            "edit_triples": [
                [edit.request.subject, edit.relation, edit.request.target] for edit in case.edits
            ],
        },
    }
    for entry in record["requested_rewrite"]:
        if not entry["relation_id"]:
            del entry["relation_id"]
    return record | ({"answer_extended": list(case.extended)} if case.extended else {})


def _written(hops: Iterable[Hop]) -> list[dict[str, Any]]:
    return [
        {"question": h.question, "cloze": h.cloze, "answer": h.answer, "answer_alias": list(h.aliases)}
        for h in hops
    ]


def conflicts(cases: Sequence[MultiHopCase]) -> list[tuple[str, str, str]]:
    """Pairs of cases that cannot both hold when all edits are in one model.

    Either both edit a fact to different objects, or one edits a fact whose old object another's new chain
    needs. Facts are told apart by their filled statements.

    Returns:
        Id of the case whose edit is in the way, id of the other case, and the statement; in order.
    """
    edited: dict[str, dict[str, str]] = {}
    for case in cases:
        for edit in case.edits:
            edited.setdefault(edit.request.text, {}).setdefault(edit.request.target, case.id)
    found = []
    for case in cases:
        needed = {hop.cloze: {hop.answer, *hop.aliases} for hop in case.new_hops}
        needed |= {edit.request.text: {edit.request.target} for edit in case.edits}
        for statement, objects in needed.items():
            others = edited.get(statement, {})
            found += [(by, case.id, statement) for target, by in others.items() if target not in objects]
    return found
