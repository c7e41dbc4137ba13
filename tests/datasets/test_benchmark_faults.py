"""What the readers of benchmarks refuse: every fault named by format, file, record and field."""

import copy
import json
import os
from pathlib import Path

import pytest

from palimpsest.datasets import load_any_set, load_mquake
from palimpsest.datasets.harder_cases import Query, RippleCase, RippleTest
from palimpsest.errors import DataError, RequestError
from palimpsest.types import EditRequest
from tests.datasets.benchmark_records import MQUAKE, RIPPLE
from tests.datasets.test_benchmarks import READ, Reader, broken, written

READERS = [*dict.fromkeys(reader for reader, _ in READ.values()), load_any_set]
TWICE = [MQUAKE[0]["requested_rewrite"][0], MQUAKE[0]["requested_rewrite"][0] | {"target_new": {"str": "x"}}]
ELSE = RIPPLE[0]["edit"] | {"target_label": "Sudland", "original_fact": {"prompt": "Else is so."}}
CASES: list[tuple[str, str, object, str]] = [
    ("mquake", "single_hops", [], "multi-hop case '1' has no hops; give the facts of its chain"),
    ("mquake", "single_hops", ..., "field 'single_hops' is missing"),
    ("mquake", "new_single_hops", [], "has no new_hops"),
    ("mquake", "requested_rewrite", [], "has no edits"),
    ("mquake", "questions", [" "], "has no questions"),
    (
        "mquake",
        "requested_rewrite",
        TWICE,
        "the answer of 'Anna Berg lives in' twice, to 'Sudland' and to 'x'",
    ),
    ("mquake", "requested_rewrite", {}, "field 'requested_rewrite' must be a list of objects, not {}"),
    ("mquake", "requested_rewrite.0.subject", ..., "field 'requested_rewrite.0.subject' is missing"),
    ("mquake", "requested_rewrite.0.target_new.str", "Norland", "are both 'Norland'"),
    (
        "mquake",
        "requested_rewrite.0.target_new",
        "x",
        "'requested_rewrite.0.target_new.str' is missing",
    ),
    ("mquake", "requested_rewrite.0.prompt", "She lives in", "occurs 0 times in prompt"),
    ("mquake", "single_hops.1.answer", 3, "field 'single_hops.1.answer' must be a text, not 3"),
    (
        "mquake",
        "single_hops.0.answer_alias",
        "x",
        "'single_hops.0.answer_alias' must be a list of texts",
    ),
    ("mquake", "questions", "Where?", "field 'questions' must be a list of texts, not 'Where?'"),
    ("mquake", "new_answer", None, "field 'new_answer' must be a text, not None"),
    ("mquake", "orig", 3, "field 'orig' must be an object, not 3"),
    (
        "mquake",
        "orig.triples_labeled",
        [["a", "b"]],
        "'orig.triples_labeled' must be a list of three",
    ),
    ("mquake", "case_id", 1.5, "field 'case_id' must be a text or a whole number, not 1.5"),
    ("mquake", "case_id", True, "must be a text or a whole number, not True"),
    ("ripple", "edit", ..., "field 'edit' is missing"),
    ("ripple", "edit.prompt", ["x"], "field 'edit.prompt' must be a text"),
    ("ripple", "edit.prompt", "Something", "names no object that can be told from the rest, 'Something'"),
    ("ripple", "edit.relation", ..., "field 'edit.relation' is missing"),
    ("ripple", "edit.original_fact.prompt", "Else is so.", "names no object that can be told"),
    ("ripple", "edit", ELSE, "'edit.original_fact.prompt' is 'Else is so'; it must begin as the edit"),
    ("ripple", "Forgetfulness", ..., "field 'Forgetfulness' is missing"),
    ("ripple", "Relation_Specificity", ..., "field 'Relation_Specificity' is missing"),
    (
        "ripple",
        "Relation_Specificity.0.test_queries",
        [],
        "field 'Relation_Specificity.0.test_queries' is an empty list",
    ),
    (
        "ripple",
        "Relation_Specificity.0.test_condition",
        "XOR",
        "field 'Relation_Specificity.0.test_condition' must be OR or AND, not 'XOR'",
    ),
    (
        "ripple",
        "Relation_Specificity.0.test_queries.0.answers.0.value",
        3,
        "field 'Relation_Specificity.0.test_queries.0.answers.0.value' must be a text, not 3",
    ),
    (
        "ripple",
        "Compositionality_I.0.condition_queries.0.prompt",
        ...,
        "field 'Compositionality_I.0.condition_queries.0.prompt' is missing",
    ),
    ("knowedit", "target_new", "", "field 'target_new' must be a text, not ''"),
    (
        "knowedit",
        "locality.Relation_Specificity.1.prompt",
        ...,
        "'locality.Relation_Specificity.1.prompt' is",
    ),
    (
        "knowedit",
        "locality.Relation_Specificity.0.ground_truth",
        ...,
        "field 'locality.Relation_Specificity.0.ground_truth' is missing",
    ),
    (
        "knowedit",
        "portability.Reasoning.0.ground_truth",
        [[]],
        "Reasoning.0.ground_truth' holds no answer",
    ),
    (
        "knowedit",
        "portability.Reasoning.0.ground_truth",
        [[3]],
        "be a text or lists of texts, not [[3]]",
    ),
    (
        "knowedit",
        "portability.Reasoning.0.prompt",
        ["a", 3],
        "Reasoning.0.prompt' must be a text or",
    ),
    ("knowedit", "portability", [1], "field 'portability' must be an object, not [1]"),
    ("wikibio", "concept", ..., "field 'concept' is missing"),
    (
        "leme",
        "coupled_prompts_and_properties",
        None,
        "'coupled_prompts_and_properties' must be an object",
    ),
    ("leme", "coupled_prompts_and_properties", ..., "field 'coupled_prompts_and_properties' is missing"),
    (
        "leme",
        "coupled_prompts_and_properties.coupled_entities",
        [],
        "field 'coupled_prompts_and_properties.coupled_entities' is an empty list",
    ),
    (
        "leme",
        "coupled_prompts_and_properties.subject_entity.ground_truth.No. of children",
        "two",
        "",
    ),
    (
        "multi-counterfact",
        "requested_rewrite.target_new.str",
        3,
        "target_new.str' must be a text, not 3",
    ),
]


@pytest.mark.parametrize(("kind", "path", "value", "message"), CASES, ids=range(len(CASES)))
def test_faults_are_named_by_format_record_and_field(
    kind: str, path: str, value: object, message: str, tmp_path: Path
) -> None:
    read, records = READ[kind]
    if not message:  # names of properties have dots
        bad = copy.deepcopy(records[0])
        bad["coupled_prompts_and_properties"]["subject_entity"]["ground_truth"]["No. of children"] = value
        message = "ground_truth.No. of children' must be a list of texts, not 'two'"
    else:
        bad = broken(records[0], path, value)
    file = written(tmp_path, [records[1], bad])
    with pytest.raises(DataError) as error:
        read(file)
    text = str(error.value)
    assert str(file) in text
    assert message in text
    if kind != "multi-counterfact":
        name = {"mquake": "MQuAKE", "ripple": "RippleEdits", "leme": "LEME"}.get(kind, "KnowEdit")
        assert f"read as {name}: 1 malformed record:\n  record 2: " in text
        file.write_text("\n".join(map(json.dumps, [records[1], bad])))
        with pytest.raises(DataError, match="\n  line 2: "):
            read(file)
    loose = read(file, strict=False)
    assert len(loose.cases) == 1
    assert [fault.line for fault in loose.rejected] == [2]


def test_ids_repeat_and_long_lists_are_cut(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"25 malformed records:\n(.*\n)*  and 5 more\n"):
        load_mquake(written(tmp_path, [MQUAKE[0], *[MQUAKE[0]] * 25]))
    with pytest.raises(DataError, match="record 2: case id '1' was already used on line 1"):
        load_mquake(written(tmp_path, [MQUAKE[0]] * 2))
    with pytest.raises(DataError, match="holds no record of MQuAKE"):
        load_mquake(written(tmp_path, []))


@pytest.mark.parametrize("read", READERS)
def test_a_pipe_is_refused_at_once(read: Reader, tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(DataError, match="is a pipe and no file"):
        read(path)


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("content", [b"\x00\xff", b"[" * 100_000, b'[{"case_id": NaN}]', b"[1, null, {}]"])
def test_crafted_files_are_refused(read: Reader, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "crafted"
    path.write_bytes(content)
    with pytest.raises(DataError):
        read(path)


def test_cases_that_cannot_be() -> None:
    request = EditRequest("{} lives in", "Anna", "Rome")
    for answers in ((), ((),), ((" ",),)):
        with pytest.raises(RequestError, match="give it a text and one or more groups"):
            Query("Where?", answers)
    with pytest.raises(RequestError, match="a ripple test has no query"):
        RippleTest(())
    with pytest.raises(RequestError, match="ripple case 'a' has tests of 'charm'; choose from logical_gen"):
        RippleCase("a", request, "", {"charm": ()})
