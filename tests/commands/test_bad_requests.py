"""Requests, batches and notebooks of the wrong kind get the package's own errors."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from palimpsest.book.parameters import Parameter, parsed, read_parameters
from palimpsest.book.profiles import load_profile
from palimpsest.editors import edit
from palimpsest.errors import NotebookError, ProfileError, RequestError
from palimpsest.types import EditRequest
from palimpsest.workbench.edited_model import EditedModel
from tests.clone import make_clone
from tests.editing import small, stub_texts
from tests.tiny import tiny_model
from tests.workbench.edits import EDITOR, facts

pytestmark = pytest.mark.usefixtures("one_thread", "unchecked", "own_cache")

ODD: list[Any] = [math.nan, None, 3, 2.5, True, ["Rome"], {"a": 1}, ("Rome",), b"Rome", EditRequest]
FIELDS = {"prompt": "{} is", "subject": "Anna", "target": "Rome", "id": "1"}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", ODD, ids=repr)
def test_a_field_of_a_request_is_a_text(field: str, value: Any) -> None:
    with pytest.raises(RequestError, match=rf"{field} is .*\({type(value).__name__}\); give it a text"):
        EditRequest(**(FIELDS | {field: value}))


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_holds_whole_characters(field: str) -> None:
    with pytest.raises(RequestError, match=f"{field} .*holds half of a surrogate pair"):
        EditRequest(**(FIELDS | {field: FIELDS[field] + "\ud800"}))


ONE = EditRequest(**FIELDS)
BATCHES: list[tuple[Any, str]] = [
    (math.nan, r"requests are 'nan' \(float\), not a list; write \[EditRequest"),
    (None, r"requests are 'None' \(NoneType\), not a list"),
    (3, r"\(int\), not a list"),
    ("text", r"\(str\), not a list"),
    (b"text", r"\(bytes\), not a list"),
    ({"prompt": "x"}, r"\(dict\), not a list"),
    (ONE, r"\(EditRequest\), not a list; write \[EditRequest\(\.\.\.\), \.\.\.\]"),
    ({ONE}, r"\(set\), not a list"),
    ([FIELDS], r"requests hold .*\(dict\); write"),
    ([ONE, None], r"requests hold 'None' \(NoneType\)"),
    ([ONE, [ONE]], r"requests hold .*\(list\)"),
    (["The capital"], r"requests hold 'The capital' \(str\)"),
]


@pytest.mark.parametrize(("requests", "message"), BATCHES, ids=range(len(BATCHES)))
def test_requests_are_a_list_of_them(requests: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stub_texts(monkeypatch)
    model = tiny_model("llama")
    edited = EditedModel(model, EDITOR)
    with pytest.raises(RequestError, match=message):
        edit(small("memit"), model, requests)
    with pytest.raises(RequestError, match=message):
        edited.edit(requests)
    assert len(edited) == 0


@pytest.mark.parametrize("batch", [0, -1])
def test_a_batch_holds_facts(batch: int) -> None:
    edited = EditedModel(tiny_model("llama"), EDITOR)
    with pytest.raises(RequestError, match=f"batch is {batch}; optimise the values of 1 or more facts"):
        edited.edit(facts(2), batch)
    assert len(edited) == 0


def test_a_request_longer_than_the_context_is_refused_before_anything_is_computed() -> None:
    long = EditRequest("word " * 300 + "{} is", "Anna", "Rome", "long")
    with pytest.raises(RequestError, match=r"request 'long': .* and the context of tiny-llama-0 holds 256"):
        edit(small("memit"), tiny_model("llama"), [long])


def notebook(source: str | None = None, **change: Any) -> str:
    cell: dict[str, Any] = {
        "cell_type": "code",
        "id": "a",
        "metadata": {"tags": ["parameters"]},
        "outputs": [],
    }
    cell |= {"source": source or "", "execution_count": None}
    return json.dumps({"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5} | change)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "is not a readable notebook"),
        ("[]", "is not a readable notebook"),
        ("3", "is not a readable notebook"),
        ("", "is not a readable notebook"),
        ("{", "is not a readable notebook"),
        ("[" * 100_000, "is not a readable notebook"),
        (notebook(nbformat="four"), "is not a readable notebook"),
        (notebook(cells=None), "is not a readable notebook"),
        (notebook(cells=[{}]), "is not a readable notebook"),
        (notebook(cells=[]), "has 0 cells tagged 'parameters'; tag exactly one"),
        (notebook("seed: int = ("), "the parameters cell is no Python"),
        (notebook("seed: int = 1\0"), "the parameters cell is no Python"),
        (notebook("seed = 1"), "write each parameter as 'name: type = value"),
        (notebook("seed: set = 1"), "type 'set' is not one of int"),
        (notebook("seed: int = open('x')"), "the default must be a literal"),
    ],
    ids=range(15),
)
def test_a_notebook_that_cannot_be_read(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "01_tiny.ipynb"
    path.write_text(content)
    with pytest.raises(NotebookError, match=message):
        read_parameters(path)


@pytest.mark.parametrize(
    ("kind", "text", "message"),
    [
        ("list[int]", "[1", r"command line: seed=\[1 cannot be read"),
        ("int", "{", "cannot be read"),
        ("int", "9" * 5000, "cannot be read"),
        ("int", "[" * 5000, "cannot be read"),
        ("int", "!!python/object:os.system x", "cannot be read"),
        ("int", "", "but the notebook declares seed: int"),
        ("int", "1.5", "but the notebook declares"),
        ("int", "true", "but the notebook declares"),
        ("float", ".nan", "but the notebook declares"),
        ("bool", "1", "give true or false"),
        ("list[str]", "[1]", "but the notebook declares"),
        ("int | None", "x", "but the notebook declares"),
    ],
)
def test_a_value_that_is_no_parameter(kind: str, text: str, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        parsed(Parameter("seed", kind, 1, ""), text)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe\x00", "odd.yaml is not YAML"),
        (b"model: [", "odd.yaml is not YAML"),
        (b"[" * 5000, "odd.yaml is not YAML"),
        (b"", "odd.yaml holds no mapping"),
        (b"- 1", "odd.yaml holds no mapping"),
        (b"model: x", "odd.yaml: description: Field required; machine: Field required"),
        (b"model: 3\ndescription: x\nmachine: x", "model: Input should be a valid string"),
        (b"model: ''\ndescription: x\nmachine: x", "model: String should have at least 1 character"),
        (b"model: x\ndescription: x\nmachine: x\nmore: 1", "more: Extra inputs are not permitted"),
        (
            b"model: x\ndescription: x\nmachine: x\nnotebooks: 3",
            "notebooks: Input should be a valid dictionary",
        ),
    ],
    ids=range(10),
)
def test_a_profile_that_cannot_be_read(
    content: bytes, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = make_clone(tmp_path / "clone", monkeypatch)
    (clone.root / "config/profiles/odd.yaml").write_bytes(content)
    with pytest.raises(ProfileError, match=message):
        load_profile("odd")
