"""KnowEdit files (Zhang et al. 2024): wiki_recent, wiki_counterfact, WikiBio and ZsRE, with all their tests.

Read are, of zjunlp/KnowEdit on Hugging Face, ``benchmark/wiki_recent/recent_*.json``,
``benchmark/wiki_counterfact/*_cf.json``, ``benchmark/WikiBio/wikibio-*-all.json`` and
``benchmark/ZsRE/ZsRE-test-all.json``. The schema is that of EasyEdit's ``easyeditor/dataset/knowedit.py``
at commit 7cc05e4020bc085642f88a75efcfe69449f27302 and of ``examples/KnowEdit.md``, "The Composition of
Dataset", at commit 1462f58b0689cdf92010fece34ffa11fa173b576.

A record is ``{subject, prompt, target_new, ground_truth?, rephrase_prompt?, portability?:
{Logical_Generalization, Reasoning, Subject_Aliasing}, locality: {Relation_Specificity, Forgetfulness}}``, in
WikiBio ``{text, labels, concept, locality}``; a test is ``{prompt, ground_truth}``, where ``ground_truth`` is
a text, a list of texts, or a list of such lists. Inner lists hold other names of one answer, and outer ones
other answers, any of which is right. ConvSent and Sanitation are of other kinds and not read.

`palimpsest.datasets.load_cases_of` reads the same files, without WikiBio, as plain facts with neighbours.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from palimpsest.datasets.case_files import (
    LoadedSet,
    label_of,
    load_set,
    object_member,
    objects_member,
    text_at,
)
from palimpsest.datasets.harder_cases import REASONING, Query, RippleCase, RippleTest
from palimpsest.errors import DataError
from palimpsest.types import EditRequest

FORMAT = "KnowEdit"

FIELDS = {
    "portability.Logical_Generalization": "logical_generalisation",
    "portability.Reasoning": REASONING,
    "portability.Subject_Aliasing": "subject_aliasing",
    "locality.Relation_Specificity": "relation_specificity",
    "locality.Forgetfulness": "preservation",
}
"""Field of a record -> criterion. Each is optional, as its two heads are."""

WIKIBIO = {"prompt": "text", "target_new": "labels", "subject": "concept"}
"""Field -> its name in WikiBio."""


def load_knowedit(path: str | Path, strict: bool = True) -> LoadedSet[RippleCase]:
    """Read a KnowEdit file, one JSON list or JSON lines. Tests have no conditions there.

    Args:
        path: the file.
        strict: raise an error for malformed records, such as those of wiki_recent without a new object, which
            EasyEdit skips; otherwise they are listed in ``LoadedSet.rejected``.

    Raises:
        DataError: as `palimpsest.datasets.case_files.load_set`.
    """
    return load_set(path, FORMAT, parse_knowedit, strict)


def parse_knowedit(record: Mapping[str, Any], default: str) -> RippleCase:
    """The case of a record; ``default`` is its id if it names none.

    Raises:
        DataError, RequestError: if the record is malformed, with the field and the reason.
    """
    name = label_of(record, default)
    biography = "labels" in record and "target_new" not in record
    prompt, target, subject = (
        text_at(record, other if biography else field) for field, other in WIKIBIO.items()
    )
    true = list(_texts(record.get("ground_truth"), "ground_truth"))[:1]
    rephrased = next((field for field in ("rephrase_prompt", "rephrase") if field in record), None)
    tests = {criterion: tests for field, criterion in FIELDS.items() if (tests := _tests(record, field))}
    return RippleCase(
        id=name,
        request=EditRequest(prompt, subject, target, name),
        target_true="".join(true),
        tests=tests,
        kind=_part(record, biography),
        paraphrases=tuple(_texts(record[rephrased], rephrased)) if rephrased else (),
    )


def _part(record: Mapping[str, Any], biography: bool) -> str:
    """The part of KnowEdit, by the fields that only it has."""
    if biography:
        return "WikiBio"
    if "cond" in record or "rephrase_prompt" in record:
        return "ZsRE"
    return "wiki_counterfact" if "ground_truth" in record else "wiki_recent"


def _tests(record: Mapping[str, Any], field: str) -> tuple[RippleTest, ...]:
    head, kind = field.split(".")
    if record.get(head) is None:
        return ()
    held = object_member(record, head)
    if held.get(kind) is None:
        return ()
    found = []
    for place, entry in enumerate(objects_member(held, kind, f"{head}.")):
        at = f"{field}.{place}."
        for query in _queries(entry, at):
            found.append(RippleTest((query,)))
    return tuple(found)


def _queries(entry: Mapping[str, Any], at: str) -> Iterator[Query]:
    """The query of a test; of several prompts, as EasyEdit's own lists have them, one each."""
    prompts = entry.get("prompt")
    if not isinstance(prompts, list):
        prompts = [text_at(entry, "prompt", at)]
    if "ground_truth" not in entry:
        raise DataError(f"field {at + 'ground_truth'!r} is missing")
    answers = tuple(_texts(entry["ground_truth"], f"{at}ground_truth"))
    if not answers:
        raise DataError(f"field {at + 'ground_truth'!r} holds no answer")
    for prompt in prompts:
        if not isinstance(prompt, str) or not prompt.strip():
            raise DataError(f"field {at + 'prompt'!r} must be a text or a list of texts, not {prompts!r}")
        yield Query(prompt.strip(), (answers,))


def _texts(value: Any, field: str) -> Iterator[str]:
    """Texts of a text or of lists in lists, each once and in order."""
    seen: dict[str, None] = {}
    waiting = [value]
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, list):
            waiting[:0] = one
        elif isinstance(one, str):
            seen |= {one.strip(): None} if one.strip() else {}
        elif value is not None:
            raise DataError(f"field {field!r} must be a text or lists of texts, not {str(value)[:80]}")
    return iter(seen)


def to_knowedit(case: RippleCase) -> dict[str, Any]:
    """The KnowEdit record of a case of wiki_counterfact; `load_knowedit` reads it back as the same case.

    Raises:
        DataError: if the case has tests of a criterion for which KnowEdit has no field, conditions, or tests
            of several queries or of several groups of answers.
    """
    odd = sorted(set(case.tests) - set(FIELDS.values()))
    if odd:
        raise DataError(
            f"case {case.id!r} has tests of {odd[0]!r}, for which KnowEdit has no field; leave them out, or "
            f"call them {REASONING!r} if they are of composition"
        )
    request = case.request
    record: dict[str, Any] = {
        "case_id": case.id,
        "subject": request.subject,
        "prompt": request.text,
        "target_new": request.target,
        "ground_truth": case.target_true,
        "portability": {},
        "locality": {},
    }
    for field, criterion in FIELDS.items():
        head, kind = field.split(".")
        if criterion in case.tests:
            record[head][kind] = [_written(test, case.id) for test in case.tests[criterion]]
    return record


def _written(test: RippleTest, name: str) -> dict[str, Any]:
    if test.conditions or len(test.queries) != 1 or len(test.queries[0].answers) != 1:
        raise DataError(
            f"case {name!r} has a test with {len(test.conditions)} conditions and {len(test.queries)} "
            "queries, where KnowEdit has one query with one group of answers; give it such tests"
        )
    (query,) = test.queries
    return {"prompt": query.prompt, "ground_truth": [list(query.answers[0])]}
