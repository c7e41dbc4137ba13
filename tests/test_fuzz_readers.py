"""The readers that `tests/test_fuzz.py` lacks, in one table: damage ends in the package's own errors."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from palimpsest.batch import job
from palimpsest.batch.matrix import load_matrix
from palimpsest.book import crate, model_files, needs, staleness
from palimpsest.book.confirm import tolerance
from palimpsest.book.evidence import declared
from palimpsest.book.parameters import read_parameters
from palimpsest.book.provenance import read_provenance
from palimpsest.book.regression import load_tolerances
from palimpsest.cache import SUM
from palimpsest.datasets import Measures, Member, load_alphaset
from palimpsest.datasets.classes import load_classes
from palimpsest.datasets.task_files import load_tasks
from palimpsest.datasets.tasks import pair_tasks
from palimpsest.editors import hypernetwork, named_sequences, reader
from palimpsest.editors import settings as editor_settings
from palimpsest.memory.moments import SecondMoment
from palimpsest.memory.shard_files import Shard, manifests
from palimpsest.network.chosen import ChosenContext
from palimpsest.network.model import load
from palimpsest.results import published, records, regime
from palimpsest.studies import settings_search
from palimpsest.training import runs
from palimpsest.types import EditRequest, EvalCase, Probe
from palimpsest.workbench.wrap_file import load_wrap, save_wrap
from tests.editing import some_reader
from tests.fuzzing import bytes_near, values_near
from tests.network.test_wraps import EDITED
from tests.test_fuzz import as_text, checkout, fuzzed, survives
from tests.tiny import tiny_model
from tests.workbench.edits import tiny_folder
from tests.wraps import wrap

pytestmark = pytest.mark.usefixtures("unchecked", "one_thread")

HARD: tuple[bytes, ...] = (
    *(b"[" * 100_000, b"9" * 5000, b'{"a": ' + b"9" * 5000 + b"}", b"", b"3", b"[]", b"{}", b"null", b"\xff"),
    *(b"!!timestamp x", b"!!bool x", b"!!int ''", b"2026-99-99", b"a: &a [*a]", b"{[]: 1}", b"\0", b"a: 0x"),
)
"""Contents that a parser refuses, or takes for something that a reader does not expect, in its own way."""


@dataclass(frozen=True)
class Reader:
    """One reader of text.

    Attributes:
        place: of its file in a checkout.
        read: from the checkout.
        content: smallest valid content: what JSON and YAML hold, or a text.
    """

    place: str
    read: Callable[[Path], object]
    content: Any


NOTEBOOK = {
    "cells": [
        {
            "cell_type": "code",
            "execution_count": None,
            "id": "a",
            "metadata": {"tags": ["parameters"]},
            "outputs": [],
            "source": "seed: int = 1  # of every draw",
        }
    ],
    "metadata": {},
    "nbformat": 4,
    "nbformat_minor": 5,
}
MODEL = {
    "also": ["hub/x"],
    "editors": {"memit": {"layers": [1], "targets": {}}},
    "alphaset": {"memit": {"ridge": 1.0}},
    "regimes": {"paper": {"every": {"ridge": 1.0}, "memit": {}}},
    "shape": {"layers": 2},
}
FILES = {"0": [Shard(1, 1).file(0), "0" * 64]}
MANIFEST = {"keys": {"layers": [0]}, "shard": 1, "of": 1, "tokens": 3, "files": FILES}
CASE = EvalCase("a", EditRequest("{} lives in", "Anna", "Rome"), "Paris", ("p",), (Probe("q", "r"),), "P1")
MEMBER = asdict(Member(CASE, "hard", measures=Measures(1.0)))
HEAD = {"alphaset": 1, "name": "a", "members": 1, "recipe": {}}
COLUMNS = f"search,candidate,round,editor,settings,{','.join(settings_search.SCORES)},failed,seconds"


def _settings(_: Path) -> object:
    """All that asks a settings file of a model."""
    found = [editor_settings.known_models(), editor_settings.shapes(), model_files.model_files()]
    found += [model_files.file_of("x")]  # type: ignore[list-item]
    for ask in (
        lambda: editor_settings.editor_settings("x", "memit"),
        lambda: editor_settings.alphaset_settings("x"),
        lambda: editor_settings.regime_settings("x", "paper", "memit"),
        lambda: staleness._yaml(editor_settings.models_dir() / "x.yaml"),
    ):
        ask()
    return found


READERS: dict[str, Reader] = {
    "parameters": Reader(
        "notebooks/a.ipynb", lambda root: read_parameters(root / "notebooks/a.ipynb"), NOTEBOOK
    ),
    "record": Reader("a.json", lambda root: records.read(root / "a.json"), {"schema": records.SCHEMA}),
    "provenance": Reader("a.provenance.json", lambda root: read_provenance("a", root), {"inputs": {}}),
    "settings": Reader("config/models/x.yaml", _settings, MODEL),
    "sequences": Reader(
        "config/sequences.yaml",
        lambda _: (named_sequences.configurations(), needs._sequences()),
        {"memit_naive": {"host": "memit", "values": "each_step"}},
    ),
    "regimes": Reader(
        "data/regimes.yaml",
        lambda _: regime.published_runs(),
        {"a": {"source": "Table 1", "numbers": {"load": 3.0}, "inferred": {"load": "so"}}},
    ),
    "batch": Reader(
        "config/batch.yaml",
        lambda root: load_matrix(root / "config/batch.yaml"),
        {"profiles": ["laptop"], "seeds": [0], "pages": ["00_a"]},
    ),
    "numerical": Reader(
        "config/numerical.yaml",
        lambda _: tolerance(["a"]),
        [{"definitions": ["a"], "relative": 1e-4, "reason": "sums in another order"}],
    ),
    "not reached": Reader(
        "config/not_reached.yaml", lambda _: declared(), [{"definitions": ["a."], "reason": "no page asks"}]
    ),
    "tolerances": Reader(
        "tolerances.yaml",
        lambda root: load_tolerances(root / "tolerances.yaml"),
        {"default": {"relative": 1e-4, "absolute": 1e-6, "reason": "sums in another order"}, "pages": {}},
    ),
    "manifest": Reader(f"{Shard(1, 1).stem}.json", manifests, MANIFEST),
    "plan of a batch": Reader(
        "plan.json", lambda root: job._read(root / "plan.json"), {"id": "a", "jobs": {}}
    ),
    "citation": Reader(
        "CITATION.cff",
        lambda root: crate.citation(root / "CITATION.cff"),
        {
            **dict.fromkeys(("title", "abstract", "version", "license", "date-released"), "t"),
            "authors": [{}],
            "keywords": ["k"],
        },
    ),
    "pairs": Reader(
        "pairs.yaml", lambda root: pair_tasks(root / "pairs.yaml"), {"t": {"p": ["He {is|are} so"]}}
    ),
    "members": Reader("set.jsonl", lambda root: load_alphaset(root / "set.jsonl"), MEMBER),
    "classes": Reader(
        "classes.csv",
        lambda root: load_classes(root / "classes.csv"),
        "relation,name,class,reason\nP1,n,c,r\n",
    ),
    "task": Reader(
        "sst2.jsonl",
        lambda root: load_tasks(root),
        {"sentence": "so it is", "label": 1},
    ),
    "published": Reader(
        "data/published/alphaedit_table1.csv",
        lambda _: published.published("alphaedit", 1),
        "method,metric,value,spread\nMEMIT,Efficacy,1.0,0.1\n",
    ),
    "search": Reader(
        "search.csv",
        lambda root: settings_search._read(SimpleNamespace(table=root / "search.csv", key="k")),  # type: ignore[arg-type]
        f"{COLUMNS}\nk,c,1,memit,{{}}{',1.0' * len(settings_search.SCORES)},,2.0\n",
    ),
}


def text_of(name: str, value: Any) -> bytes:
    """A value in the form of a reader's file."""
    if isinstance(value, str):
        return value.encode()
    if name == "members":
        return as_text(HEAD) + b"\n" + as_text(value) + b"\n"
    return b"\n".join([as_text(value)] * (12 if name == "task" else 1))


def placed(name: str, root: Path, content: bytes) -> Callable[[], object]:
    """Write a reader's file; what reads it."""
    reader = READERS[name]
    path = root / reader.place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    for other in ("config/profiles/laptop.yaml", "notebooks/00_a.ipynb"):  # which a batch may name
        (root / other).parent.mkdir(exist_ok=True)
        (root / other).touch()

    def read() -> object:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PALIMPSEST_ROOT", str(root))
            return reader.read(root)

    return read


@pytest.mark.parametrize("name", READERS)
def test_the_smallest_content_is_read(name: str, tmp_path: Path) -> None:
    """So that damage to it is near something that is read to its end."""
    assert placed(name, checkout(tmp_path), text_of(name, READERS[name].content))() is not None


@pytest.mark.parametrize("name", READERS)
def test_contents_that_parsers_refuse(name: str, tmp_path: Path) -> None:
    root = checkout(tmp_path)
    for content in HARD:
        survives(placed(name, root, content), root)


@pytest.mark.parametrize("name", READERS)
@fuzzed
@given(data=st.data())
def test_texts(name: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    content, root = READERS[name].content, checkout(tmp_path_factory.mktemp("root"))
    near = bytes_near(text_of(name, content))
    if not isinstance(content, str):
        near = st.one_of(near, values_near(content).map(lambda value: text_of(name, [value])[1:-1]))
    survives(placed(name, root, data.draw(near)), root)


def _texts_chosen() -> ChosenContext:
    return ChosenContext(("New fact: a.\n",), embedded([""]), 0.9, embedded, base="b")


def embedded(texts: Any) -> torch.Tensor:
    """The same direction for every text."""
    return torch.ones(len(texts), 3, dtype=torch.float64)


def _checkpoint(path: Path) -> None:
    runs.keep(_run(), path, "mark")


def _run() -> runs.Run:
    network = hypernetwork.Hypernetwork((0, 1), (3, 4), 2)
    adam = torch.optim.Adam(network.parameters(), lr=0.1)
    sum(one.square().sum() for one in network.parameters()).backward()  # type: ignore[union-attr]
    adam.step()
    best = {name: one.clone() for name, one in network.state_dict().items()}
    return runs.Run(network, adam, 1, [{"step": 0, "loss": 1.0}], best, 2.0)


TENSORS: dict[str, tuple[Callable[[Path], object], Callable[[Path], object]]] = {
    "memory": (lambda path: save_wrap(path, wrap(tiny_model("llama"), EDITED), "m"), load_wrap),
    "texts": (
        lambda path: save_wrap(path, _texts_chosen(), "m"),
        lambda path: load_wrap(path, embedded),
    ),
    "hypernetwork": (
        lambda path: hypernetwork.Hypernetwork((0, 1), (3, 4), 2).save(path, "b"),
        lambda path: (hypernetwork.base_of(path), hypernetwork.read(path)),
    ),
    "reader": (lambda path: some_reader(tiny_model("llama")).save(path, "b"), reader.read),
    "checkpoint": (_checkpoint, lambda path: runs.restore(_run(), path, "mark")),
    "moment": (lambda path: SecondMoment(torch.eye(3).double(), 3, "s").save(path), SecondMoment.load),
}
"""Name -> writer and reader of a file of tensors."""
PARTS = st.sampled_from(
    [
        torch.ones(()),
        torch.ones(0),
        torch.ones(2, 5),
        torch.ones(3, 3, dtype=torch.int32),
        torch.ones(2, 2, 2),
    ]
)


@pytest.mark.parametrize("name", TENSORS)
@fuzzed
@given(data=st.data())
def test_tensors(name: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Bytes of the head or anywhere; and another text or tensor in it, without a checksum."""
    write, read = TENSORS[name]
    folder = tmp_path_factory.mktemp("tensors")
    path = folder / "a.safetensors"
    write(path)
    read(path)
    if data.draw(st.booleans()):
        content = path.read_bytes()
        head = 8 + int.from_bytes(content[:8], "little")
        near = data.draw(bytes_near(content[:head]))
        path.write_bytes(near + content[head:] if data.draw(st.booleans()) else near)
    else:
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            about = {key: text for key, text in file.metadata().items() if key != SUM}
        told = data.draw(st.one_of(st.just(about), _told_near(about)))
        key = data.draw(st.sampled_from([*sorted(tensors), "other"]))
        if data.draw(st.booleans()):
            tensors.pop(key, None)
        else:
            tensors[key] = data.draw(PARTS).clone()
        save_file(tensors, path, told)
    survives(lambda: read(path), folder)


def _told_near(about: Mapping[str, str]) -> st.SearchStrategy[dict[str, str]]:
    """Texts of a file in which one is another, or is missing."""
    texts = st.text(st.characters(codec="utf-8"), max_size=9)
    odd = st.one_of(texts, values_near([{"a": 1}]).map(json.dumps), st.just("[" * 100_000))
    changed = st.tuples(st.sampled_from(sorted(about)), odd).map(lambda row: {**about, row[0]: row[1]})
    gone = st.sampled_from(sorted(about)).map(lambda key: {k: v for k, v in about.items() if k != key})
    return st.one_of(changed, gone)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_folder(tmp_path_factory.mktemp("base") / "base")


@fuzzed
@given(data=st.data())
def test_the_configuration_of_a_model(folder: Path, data: st.DataObject) -> None:
    path = folder / "config.json"
    whole = path.read_bytes()
    try:
        path.write_bytes(data.draw(st.one_of(bytes_near(whole), values_near(json.loads(whole)).map(as_text))))
        survives(lambda: load(str(folder)), folder)
    finally:
        path.write_bytes(whole)
