"""Facts in the formats of the field: the same case from each, faults named by line and field."""

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from palimpsest.datasets import load_cases_of
from palimpsest.datasets.any_format import form_of, parse_case
from palimpsest.datasets.requests import load_requests
from palimpsest.errors import DataError
from palimpsest.types import EditRequest, EvalCase, Probe, unspaced

PROBE = "The capital of Italy is"
OWN = {"id": "7", "prompt": "{} lives in", "subject": "Anna Berg", "target": "Rome", "target_true": "Paris"}
OWN |= {"paraphrases": ["Where is Anna Berg?"], "neighbours": [{"prompt": PROBE, "target": "Milan"}]}
EASYEDIT = {
    "case_id": 7,
    "prompt": "Anna Berg lives in",
    "subject": "Anna Berg",
    "target_new": "Rome",
    "ground_truth": "Paris",
    "rephrase_prompt": "Where is Anna Berg?",
    "locality_prompt": PROBE,
    "locality_ground_truth": "Milan",
}
LOCALITY = {"neighborhood": {"prompt": [PROBE], "ground_truth": ["Milan"]}}
KNOWEDIT = {
    "id": "7",
    "subject": "Anna Berg",
    "prompt": "Anna Berg lives in",
    "target_new": "Rome",
    "ground_truth": [["Paris", "the city of Paris"]],
    "rephrase": "Where is Anna Berg?",
    "portability": {"Reasoning": [{"prompt": "Anna Berg speaks", "ground_truth": [["Italian"]]}]},
    "locality": {"Relation_Specificity": [{"prompt": PROBE, "ground_truth": [["Milan", "Milano"]]}]},
}
COUNTERFACT = {
    "case_id": 7,
    "requested_rewrite": {
        "prompt": "{} lives in",
        "subject": "Anna Berg",
        "target_new": {"str": "Rome"},
        "target_true": {"str": "Paris"},
    },
    "paraphrase_prompts": ["Where is Anna Berg?"],
    "neighborhood_prompts": [PROBE],
}
ZSRE = {
    "case_id": 7,
    "subject": "Anna Berg",
    "src": "Anna Berg lives in",
    "alt": "Rome",
    "answers": ["Paris"],
    "rephrase": "Where is Anna Berg?",
    "loc": "nq question: what is the capital of italy",
    "loc_ans": "Milan",
}
REQUEST = EditRequest("{} lives in", "Anna Berg", "Rome", "7")
CASE = EvalCase("7", REQUEST, "Paris", ("Where is Anna Berg?",), (Probe(PROBE, "Milan"),))
WITHOUT = ("locality_prompt", "locality_ground_truth")


@pytest.mark.parametrize(
    ("record", "neighbours"),
    [
        (OWN, CASE.neighbours),
        (EASYEDIT, CASE.neighbours),
        ({k: v for k, v in EASYEDIT.items() if k not in WITHOUT} | {"locality": LOCALITY}, CASE.neighbours),
        (KNOWEDIT, CASE.neighbours),
        (COUNTERFACT, (Probe(PROBE, "Paris"),)),  # its neighbours share the true object
        (ZSRE, (Probe("what is the capital of italy?", "Milan"),)),
    ],
    ids=["own", "easyedit", "easyedit-locality", "knowedit", "counterfact", "zsre"],
)
def test_every_format_gives_the_same_case(record: dict[str, Any], neighbours: tuple[Probe, ...]) -> None:
    case = parse_case(record)
    assert (case.request, case.target_true, case.paraphrases) == (REQUEST, "Paris", CASE.paraphrases)
    assert case.neighbours == neighbours


def test_only_prompt_subject_and_object_are_needed() -> None:
    short = {name: EASYEDIT[name] for name in ("prompt", "subject", "target_new")}
    case = parse_case(short)
    assert (case.id, case.target_true, case.paraphrases, case.neighbours) == (
        "Anna Berg lives in",
        "",
        (),
        (),
    )


@pytest.mark.parametrize(("value", "joined"), [(False, True), ("no", True), (True, False), ("true", False)])
def test_objects_are_joined_without_a_space_where_asked(value: object, joined: bool) -> None:
    case = parse_case(OWN | {"space": value})
    marked = unspaced if joined else str
    assert case.request.target == marked("Rome")
    assert (case.target_true, case.neighbours[0].target) == (marked("Paris"), marked("Milan"))


ROWS = [OWN, OWN | {"id": "8", "subject": "Marie Curie"}]
PLAIN = [{k: r[k] for k in ("id", "prompt", "subject", "target", "target_true")} for r in ROWS]


def _csv(mark: str) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(PLAIN[0]), delimiter=mark)
    writer.writeheader()
    writer.writerows(PLAIN)
    return text.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        json.dumps(PLAIN),
        json.dumps(PLAIN, indent=4),
        "\n".join(map(json.dumps, PLAIN)),
        "\r\n\r\n".join(map(json.dumps, PLAIN)),
        "\n".join(json.dumps(row, indent=2) for row in PLAIN),
        json.dumps({"facts": PLAIN}),
        json.dumps({"version": 1, "data": PLAIN}, indent=1),
        _csv(","),
        _csv(";"),
        _csv("\t"),
    ],
    ids=[
        "list",
        "pretty list",
        "lines",
        "crlf",
        "pretty objects",
        "facts",
        "data",
        "comma",
        "semicolon",
        "tab",
    ],
)
@pytest.mark.parametrize(
    "coded",
    [
        lambda text: text.encode(),
        lambda text: b"\xef\xbb\xbf" + text.encode(),
        lambda text: gzip.compress(text.encode()),
        lambda text: text.encode("utf-16"),
    ],
    ids=["utf-8", "bom", "gz", "utf-16"],
)
def test_a_file_is_recognised_by_its_content(
    content: str, coded: Callable[[str], bytes], tmp_path: Path
) -> None:
    path = tmp_path / "facts.of-any-name"
    path.write_bytes(coded(content))
    found = load_cases_of(path).cases
    assert [(case.request.subject, case.request.target, case.target_true) for case in found] == [
        ("Anna Berg", "Rome", "Paris"),
        ("Marie Curie", "Rome", "Paris"),
    ]


def test_one_pretty_printed_object(tmp_path: Path) -> None:
    path = tmp_path / "one.json"
    path.write_text(json.dumps(EASYEDIT, indent=2))
    assert load_requests(path) == [REQUEST]


GOOD = json.dumps(PLAIN[0])
BAD = [
    ("\ufeff" + GOOD + '\n{"prompt": ', "1 malformed record:\n  line 2: not valid JSON"),
    (GOOD + '\n{"prompt": "x"}', "line 2: field 'subject' is missing"),
    (
        GOOD + '\n{"text": "x", "label": 3}',
        "line 2: a record of no known format: it has 'text', 'label'; a for",
    ),
    (
        json.dumps(COUNTERFACT | {"requested_rewrite": {}}),
        "line 1: field 'requested_rewrite.prompt' is missing",
    ),
    (
        json.dumps(EASYEDIT | {"rephrase_prompt": 3}),
        "field 'rephrase_prompt' must be a text or a list of texts",
    ),
    (json.dumps(EASYEDIT | {"locality_prompt": [PROBE] * 2}), ""),
    (
        json.dumps(EASYEDIT | {"locality_prompt": [3], "locality_ground_truth": ["x"]}),
        "must be a list of texts",
    ),
    (
        json.dumps(EASYEDIT | {"locality_prompt": [PROBE], "locality_ground_truth": ["x", "y"]}),
        "field 'locality_prompt' has 1 prompts and 2 answers",
    ),
    (json.dumps(OWN | {"space": 3}), "field 'space' must be true or false, not 3"),
    (json.dumps(OWN | {"target": "Paris"}), "fields 'target' and 'target_true' are the same, 'Paris'"),
    (json.dumps(EASYEDIT | {"case_id": 1.5}), "field 'case_id' must be a text or a whole number, not 1.5"),
    ('{"prompt": "\\ud800", "subject": "x"}', "field 'prompt' holds half of a surrogate pair, '\\\\ud800'"),
    ('{"a": {"b": ["\\udfff"]}}', "field 'a.b' holds half of a surrogate pair"),
    (GOOD + "\n" + "[" * 100_000, "brackets are nested too deeply"),
    ("[" * 100_000, "brackets are nested too deeply"),
    ('{"id": ' + "9" * 5000 + "}", "not usable JSON (Exceeds the limit (4300 digits)"),
    (
        '{"id": NaN, "prompt": "x", "subject": "x", "target": "y"}',
        "must be a text or a whole number, not nan",
    ),
    ("[1, 2", "not valid JSON (Expecting ',' delimiter on line 1); fetch it again"),
    ('{"facts": []}', "holds no fact"),
    ('{"facts": 3}', "a record of no known format: it has 'facts'"),
    ("{\n}", "a record of no known format: it has no fields"),
    ("prompt,subject,target\n{} is,Rome\n", "line 2: field 'target' is missing"),
    ("prompt,subject,target\n{} is,Rome,x,y\n", "line 2: 1 cells more than the 3 columns"),
    ("name;age\nx;3\n", "line 2: a record of no known format: it has 'name', 'age'"),
    ("3", "a record must be a JSON object, not int"),
    ("no data at all", "line 1: not valid JSON"),
    ("", "holds no fact"),
]


@pytest.mark.parametrize(("content", "message"), BAD, ids=range(len(BAD)))
def test_faults_are_named_by_line_and_field(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "facts"
    path.write_text(content, encoding="utf-8")
    if not message:  # one answer for several prompts is theirs
        assert len(load_cases_of(path).cases[0].neighbours) == 2
        return
    with pytest.raises(DataError) as error:
        load_cases_of(path)
    assert str(path) in str(error.value)
    assert message in str(error.value)
    assert path.read_text(encoding="utf-8") == content


@pytest.mark.parametrize("name", ["CounterFact", "ZsRE in MEND's form", "EasyEdit or KnowEdit"])
def test_a_fault_is_said_with_the_format_that_it_was_read_as(name: str, tmp_path: Path) -> None:
    """And in a list by the number of its record."""
    path = tmp_path / "facts"
    (record,) = (one for one in (COUNTERFACT, ZSRE, EASYEDIT) if form_of(one).name == name)
    bad = record | {"requested_rewrite": {}} if name == "CounterFact" else record | {"subject": 3}
    path.write_text(json.dumps([record, bad], indent=1))
    with pytest.raises(DataError, match=rf"facts, read as {name}: 1 malformed record:\n  record 2: field '"):
        load_cases_of(path)
    path.write_text(f"{json.dumps(record)}\n{json.dumps({'prompt': '{} is'})}")
    both = " and ".join(sorted((name, "this project's")))
    with pytest.raises(
        DataError, match=rf"facts, read as {both}: 1 malformed record:\n  line 2: field 'subj"
    ):
        load_cases_of(path)
    path.write_text("3")
    with pytest.raises(DataError, match=r"facts: 1 malformed record:\n  line 1: a record must be a JSON"):
        load_cases_of(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(GOOD.encode(), mtime=0)[:-9], "damaged gzip file"),
        (b"\x1f\x8bjunk", "damaged gzip file"),
        (b"\xff\xfe\x00", "not UTF-8 text"),
        (b'{"prompt": "\xe9"}', "not UTF-8 text (invalid continuation byte at byte 12); save it as UTF-8"),
    ],
)
def test_bytes_that_are_no_text(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "facts"
    path.write_bytes(content)
    with pytest.raises(DataError) as error:
        load_cases_of(path)
    assert message in str(error.value)


@pytest.mark.parametrize("name", ["absent", ".", "x" * 252 + "/y", "\0"])
def test_no_file(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read|no path of a file"):
        load_cases_of(f"{tmp_path}/{name}")


def test_the_formats_are_told_apart() -> None:
    names = [form_of(record).name for record in (OWN, EASYEDIT, KNOWEDIT, COUNTERFACT, ZSRE)]
    assert names == [
        "this project's",
        *["EasyEdit or KnowEdit"] * 2,
        "CounterFact",
        "ZsRE in MEND's form",
    ]
