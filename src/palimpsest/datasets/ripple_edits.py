"""RippleEdits files (Cohen et al. 2024): what follows from an edit, and what should not; reading and writing.

Read are ``recent.json``, ``random.json`` and ``popular.json`` of ``data/benchmark`` in edenbiran/RippleEdits.
The schema is that of ``src/benchmark.py``, ``fact.py``, ``query.py`` and ``testcase.py`` at commit
54f3b88af4895a3aacb580ec63ce7ae857185040. A record is ``{example_type, edit: {prompt, subject_id, relation,
target_id, original_fact?: {...}}, Relation_Specificity, Logical_Generalization, Subject_Aliasing,
Compositionality_I, Compositionality_II, Forgetfulness}``; a test is ``{test_queries, test_condition,
condition_queries}``, a query ``{prompt, answers: [{value, aliases}], query_type, subject_id, relation,
target_ids, phrase}``. The README spells the first criterion ``Relation_Specifity``, which is read too.

The files give subject and object by Wikidata's identifiers and inside one sentence only. Names are taken from
``subject_label`` and ``target_label`` of the edit (additions of this project, optional), from ``labels``, or
from the sentence and the queries; a record in which they cannot be found is malformed.

Departures from the released code: a query without an answer of two letters or a digit, which that code
answers rightly whatever is said, is left out with its test; the edit is a prompt with an object, as every
editor here takes it.
"""

import re
from collections.abc import Iterator, Mapping
from functools import partial
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
from palimpsest.datasets.files import first_record
from palimpsest.datasets.harder_cases import Query, RippleCase, RippleTest
from palimpsest.errors import DataError
from palimpsest.types import EditRequest

FORMAT = "RippleEdits"

FIELDS = {
    "Relation_Specificity": "relation_specificity",
    "Logical_Generalization": "logical_generalisation",
    "Subject_Aliasing": "subject_aliasing",
    "Compositionality_I": "compositionality_1",
    "Compositionality_II": "compositionality_2",
    "Forgetfulness": "preservation",
}
"""Field of a record -> criterion."""

MISSPELT = {"Relation_Specificity": "Relation_Specifity"}
"""Field -> its name in the README."""

CONDITIONS = {"OR": False, "AND": True}

VERB = re.compile(r" (?:is followed by|is|are|follows)(?= |$)")
"""What the statements of RippleEdits' relations end in, before the object."""

VERB_AT_END = re.compile(rf"{VERB.pattern}$")


def load_ripple_edits(
    path: str | Path, strict: bool = True, labels: Mapping[str, str] | None = None
) -> LoadedSet[RippleCase]:
    """Read a RippleEdits file, one JSON list or JSON lines.

    Args:
        path: the file.
        strict: raise an error for malformed records; otherwise they are listed in ``LoadedSet.rejected``.
        labels: Wikidata's identifier -> name, for example from `load_labels`.

    Raises:
        DataError: as `palimpsest.datasets.case_files.load_set`.
    """
    return load_set(path, FORMAT, partial(parse_ripple_edits, labels=labels or {}), strict)


def load_labels(path: str | Path) -> dict[str, str]:
    """Names of Wikidata's identifiers, from ``ent_label2id.json`` of the release, which maps the other way.

    Raises:
        DataError: if the file cannot be read or is no object of texts.
    """
    found = first_record(path)
    odd = [name for name, identifier in found.items() if not isinstance(identifier, str)]
    if odd:
        raise DataError(f"{path}: field {odd[0]!r} must be an identifier, not {found[odd[0]]!r}")
    return {identifier: name for name, identifier in found.items()}


def parse_ripple_edits(
    record: Mapping[str, Any], default: str, labels: Mapping[str, str] | None = None
) -> RippleCase:
    """The case of a record; ``default`` is its id if it names none.

    Raises:
        DataError, RequestError: if the record is malformed, with the field and the reason.
    """
    edit = object_member(record, "edit")
    kind = text_at(record, "example_type")
    tests: dict[str, tuple[RippleTest, ...]] = {}
    for field, criterion in FIELDS.items():
        written = _field(record, field)
        entries = objects_member(record, written)
        read = (_test(entry, f"{written}.{place}.") for place, entry in enumerate(entries))
        tests[criterion] = tuple(test for test in read if test is not None)
    stem, target = _split(record, edit, "edit.", labels or {})
    subject = _subject(record, edit, stem, labels or {})
    true = ""
    if "original_fact" in edit:
        original = object_member(edit, "original_fact", "edit.")
        sentence = _sentence(original, "edit.original_fact.")
        if not sentence.startswith(f"{stem} "):
            raise DataError(
                f"field 'edit.original_fact.prompt' is {sentence!r}; it must begin as the edit, {stem!r}"
            )
        true = sentence.removeprefix(f"{stem} ")
    name = label_of(record, default)
    return RippleCase(
        id=name,
        request=EditRequest(stem, subject, target, name),
        target_true=true,
        tests={criterion: found for criterion, found in tests.items() if found},
        kind=kind,
        relation=text_at(edit, "relation", "edit."),
    )


def _field(record: Mapping[str, Any], field: str) -> str:
    """The name that a record has for a field."""
    other = MISSPELT.get(field, field)
    return other if field not in record and other in record else field


def _test(entry: Mapping[str, Any], at: str) -> RippleTest | None:
    condition = text_at(entry, "test_condition", at)
    if condition not in CONDITIONS:
        raise DataError(f"field {at + 'test_condition'!r} must be OR or AND, not {condition!r}")
    asked = _queries(entry, "test_queries", at)
    conditions = _queries(entry, "condition_queries", at)
    if not asked:
        raise DataError(f"field {at + 'test_queries'!r} is an empty list; a test needs a query")
    if None in asked or None in conditions:
        return None
    return RippleTest(
        tuple(query for query in asked if query),
        tuple(query for query in conditions if query),
        CONDITIONS[condition],
    )


def _queries(entry: Mapping[str, Any], field: str, at: str) -> list[Query | None]:
    """Queries of a test; None for those without an answer."""
    found: list[Query | None] = []
    for place, query in enumerate(objects_member(entry, field, at)):
        here = f"{at}{field}.{place}."
        prompt = text_at(query, "prompt", here)
        groups = [
            _names(answer, f"{here}answers.{number}.")
            for number, answer in enumerate(objects_member(query, "answers", here))
        ]
        found.append(Query(prompt, tuple(groups)) if groups and all(groups) else None)
    return found


def _names(answer: Mapping[str, Any], at: str) -> tuple[str, ...]:
    """The names of an answer that the released code compares with: of two letters or more, or a digit."""
    value = answer.get("value")
    if not isinstance(value, str):
        raise DataError(f"field {at + 'value'!r} must be a text, not {value!r}")
    names = (value.strip(), *texts_at(answer, "aliases", at, needed=False))
    return tuple(name for name in names if len(name) > 1 or name.isdigit())


def _sentence(fact: Mapping[str, Any], at: str) -> str:
    return text_at(fact, "prompt", at).removesuffix(".")


def _split(
    record: Mapping[str, Any], edit: Mapping[str, Any], at: str, labels: Mapping[str, str]
) -> tuple[str, str]:
    """The edited statement without its object, and the object."""
    sentence, identifier = _sentence(edit, at), edit.get("target_id")
    names = [edit.get("target_label"), labels.get(str(identifier)), *_named(record, identifier)]
    for name in names:
        if isinstance(name, str) and name and sentence.endswith(f" {name}"):
            return sentence.removesuffix(f" {name}"), name
    places = [found.end() for found in VERB.finditer(sentence)]
    original = edit.get("original_fact")
    other = original.get("prompt") if isinstance(original, Mapping) else None
    if isinstance(other, str):
        places = [place for place in places if other.startswith(sentence[: place + 1])]
    if not places:
        raise DataError(
            f"field 'edit.prompt' names no object that can be told from the rest, {sentence!r}; pass labels="
        )
    return sentence[: places[-1]], sentence[places[-1] :].strip()


def _named(record: Mapping[str, Any], identifier: object) -> Iterator[str]:
    """Names that the queries give to an identifier."""
    for query in _all_queries(record):
        targets, answers = query.get("target_ids"), query.get("answers")
        if isinstance(targets, list) and isinstance(answers, list) and query.get("query_type") == "regular":
            for target, answer in zip(targets, answers, strict=False):
                if (
                    target == identifier
                    and isinstance(answer, Mapping)
                    and isinstance(answer.get("value"), str)
                ):
                    yield answer["value"]


def _all_queries(record: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    for field in FIELDS:
        for test in record[_field(record, field)]:
            yield from (*test["test_queries"], *test["condition_queries"])


def _subject(record: Mapping[str, Any], edit: Mapping[str, Any], stem: str, labels: Mapping[str, str]) -> str:
    """The name of the subject in the edited statement."""
    for name in (edit.get("subject_label"), labels.get(str(edit.get("subject_id")))):
        if isinstance(name, str) and name and name in stem:
            return name
    for prompt, relation in ((stem, edit.get("relation")), *_about(record, edit)):
        statement, words = VERB_AT_END.sub("", prompt), str(relation).replace("_", " ").casefold()
        _, _, name = statement.partition(f"{words} of ")
        if name and name in stem:
            return name
    raise DataError(
        f"field 'edit.prompt' names no subject that can be told from the rest, {stem!r}; pass labels="
    )


def _about(record: Mapping[str, Any], edit: Mapping[str, Any]) -> Iterator[tuple[str, object]]:
    """Prompts about the subject with their relations."""
    for query in _all_queries(record):
        if query.get("subject_id") == edit.get("subject_id") and query.get("query_type") == "regular":
            yield text_at(query, "prompt"), query.get("relation")


def to_ripple_edits(case: RippleCase) -> dict[str, Any]:
    """The RippleEdits record of a case; `load_ripple_edits` reads it back as the same case.

    Names take the place of Wikidata's identifiers, which are not known, so the release's own code, which
    looks identifiers up, cannot run it. ``case_id`` and the two labels are this project's additions.

    Raises:
        DataError: if the case has paraphrases or tests of a criterion that the format has no field for.
    """
    odd = sorted(set(case.tests) - set(FIELDS.values()))
    if odd or case.paraphrases:
        raise DataError(
            f"case {case.id!r} has {f'tests of {odd[0]!r}' if odd else 'paraphrases'}, for which RippleEdits "
            "has no field; leave them out"
        )
    request = case.request

    def fact(target: str) -> dict[str, Any]:
        return {
            "prompt": f"{request.text} {target}.",
            "subject_id": request.subject,
            "relation": case.relation,
            "target_id": target,
        }

    edit = fact(request.target) | {"subject_label": request.subject, "target_label": request.target}
    record: dict[str, Any] = {"case_id": case.id, "example_type": case.kind, "edit": edit}
    if case.target_true:
        edit["original_fact"] = fact(case.target_true)
    for field, criterion in FIELDS.items():
        record[field] = [
            {
                "test_queries": [_written(query, case) for query in test.queries],
                "test_condition": "AND" if test.every else "OR",
                "condition_queries": [_written(query, case) for query in test.conditions],
            }
            for test in case.tests.get(criterion, ())
        ]
    return record


def _written(query: Query, case: RippleCase) -> dict[str, Any]:
    return {
        "prompt": query.prompt,
        "answers": [{"value": group[0], "aliases": list(group[1:])} for group in query.answers],
        "query_type": "regular",
        "subject_id": case.request.subject,
        "relation": case.relation,
        "target_ids": [group[0] for group in query.answers],
        "phrase": query.prompt,
    }
