"""Readers of damaged files: an error class of the package or a result, in time, and no file touched.

Each property tries a few examples here and 300 under ``-m nightly`` (see `tests/conftest.py`).
"""

import json
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from palimpsest import cache
from palimpsest.book.arms import plan
from palimpsest.book.headlines import load_headlines
from palimpsest.book.profiles import load_profile
from palimpsest.cache import digest
from palimpsest.datasets import load_any_set, load_facts
from palimpsest.datasets.any_format import load_cases_of
from palimpsest.datasets.counterfact import load_counterfact
from palimpsest.datasets.facts import FACTS_FOLDER
from palimpsest.datasets.knowedit import load_knowedit
from palimpsest.datasets.leme import load_leme
from palimpsest.datasets.mquake import load_mquake
from palimpsest.datasets.multi_counterfact import load_multi_counterfact
from palimpsest.datasets.ripple_edits import load_labels, load_ripple_edits
from palimpsest.datasets.wordings import load_wordings
from palimpsest.datasets.zsre import load_zsre
from palimpsest.errors import PalimpsestError
from palimpsest.network.apply import WeightDelta
from palimpsest.results.claims import load_claims
from palimpsest.results.printed_audit import load_audit
from palimpsest.workbench import folder as files
from palimpsest.workbench.edit_file import load_edit, save_edit
from palimpsest.workbench.work import Work
from tests.datasets.benchmark_records import LEME, MQUAKE, RIPPLE, WIKIBIO
from tests.datasets.test_any_format import COUNTERFACT, EASYEDIT, KNOWEDIT, ZSRE
from tests.editing import stub_texts
from tests.fuzzing import bytes_near, values_near
from tests.tiny import tiny_model
from tests.workbench.edits import facts, told

pytestmark = pytest.mark.usefixtures("unchecked", "one_thread")

ROOT = Path(__file__).parents[1]
OWN = {
    "id": "a",
    "prompt": "{} was born in",
    "subject": "Anna Berg",
    "target": "Rome",
    "wordings": ["{} a", "{} b"],
}
RECORDS = {"own": OWN, "counterfact": COUNTERFACT, "zsre": ZSRE, "easyedit": EASYEDIT, "knowedit": KNOWEDIT}
RECORDS |= {"mquake": MQUAKE[1], "ripple": RIPPLE[0], "wikibio": WIKIBIO[0], "leme": LEME[0]}
FACT_READERS: dict[str, Callable[[Path], object]] = {
    "any": load_cases_of,
    "wordings": load_wordings,
    "counterfact": load_counterfact,
    "zsre": load_zsre,
    "any set": load_any_set,
    "mquake": load_mquake,
    "ripple": load_ripple_edits,
    "labels": load_labels,
    "knowedit": load_knowedit,
    "leme": load_leme,
    "multi-counterfact": load_multi_counterfact,
}
fuzzed = settings(
    deadline=timedelta(seconds=20),
    suppress_health_check=[
        HealthCheck.function_scoped_fixture,
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
    ],
)


def survives(read: Callable[[], object], folder: Path) -> None:
    """It returns or raises an error of the package whose message can be printed; files stay as they are."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    try:
        read()
    except PalimpsestError as error:
        message = str(error)
        assert message.strip()
        message.encode("utf-8", "backslashreplace")
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def as_text(value: Any) -> bytes:
    """JSON, also of what JSON does not have; halves of surrogate pairs are escaped."""
    return json.dumps(value).encode()


@pytest.mark.parametrize("reader", FACT_READERS)
@fuzzed
@given(data=st.data())
def test_facts(reader: str, tmp_path: Path, data: st.DataObject) -> None:
    record = RECORDS[data.draw(st.sampled_from(sorted(RECORDS)))]
    text = data.draw(st.sampled_from((as_text([record]), as_text(record), as_text({"facts": [record]}))))
    content = data.draw(st.one_of(bytes_near(text), values_near([record]).map(as_text)))
    path = tmp_path / "facts"
    path.write_bytes(content)
    survives(lambda: FACT_READERS[reader](path), tmp_path)


@pytest.fixture(scope="module")
def relation() -> dict[str, Any]:
    """One relation of the fact set, to write and read the whole takes too long."""
    whole = yaml.safe_load((FACTS_FOLDER / "relations.yaml").read_text("utf-8"))
    return {"P103": whole["P103"]}


@fuzzed
@given(data=st.data())
def test_fact_sets(relation: dict[str, Any], tmp_path: Path, data: st.DataObject) -> None:
    triples, relations = b"subject,relation,object\nAda,P103,English\n", as_text(relation)
    if data.draw(st.booleans()):
        triples = data.draw(bytes_near(triples))
    else:
        near = values_near(relation)
        relations = data.draw(st.one_of(bytes_near(relations), near.map(as_text), near.map(_as_yaml)))
    (tmp_path / "triples.csv").write_bytes(triples)
    (tmp_path / "relations.yaml").write_bytes(relations)
    survives(lambda: load_facts(tmp_path), tmp_path)


def _as_yaml(value: Any) -> bytes:
    return yaml.safe_dump(value, allow_unicode=True).encode("utf-8", "backslashreplace")


def checkout(folder: Path) -> Path:
    """A checkout without pages."""
    (folder / "config/profiles").mkdir(parents=True)
    (folder / "pyproject.toml").touch()
    return folder


SETTINGS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "data/claims.yaml": ("data/claims.yaml", load_claims),
    "config/profiles/laptop.yaml": ("config/profiles/laptop.yaml", lambda _: load_profile("laptop")),
    "config/arms.yaml": ("config/arms.yaml", lambda _: plan()),
    "book/headlines.yaml": ("book/headlines.yaml", load_headlines),
}


@pytest.fixture(scope="module")
def small() -> dict[str, Any]:
    """Settings files with their first rows: to write and read whole ones takes too long."""
    found = {name: yaml.safe_load((ROOT / name).read_text("utf-8")) for name in SETTINGS}
    found["data/claims.yaml"]["claims"] = found["data/claims.yaml"]["claims"][:6]
    found["config/arms.yaml"]["arms"] = found["config/arms.yaml"]["arms"][:3]
    notebooks = found["config/profiles/laptop.yaml"].get("notebooks", {})
    found["config/profiles/laptop.yaml"]["notebooks"] = dict(list(notebooks.items())[:2])
    return found


@pytest.mark.parametrize("name", SETTINGS)
@fuzzed
@given(data=st.data())
def test_settings(
    name: str, small: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    root = checkout(tmp_path_factory.mktemp("root"))
    path = root / SETTINGS[name][0]
    text = yaml.safe_dump(small[name], allow_unicode=True, default_flow_style=True).encode()
    changed = values_near(small[name]).map(lambda value: json.dumps(value, default=str).encode())
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data.draw(st.one_of(bytes_near(text), changed)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALIMPSEST_ROOT", str(root))
        survives(lambda: SETTINGS[name][1](path), root)


@fuzzed
@given(data=st.data())
def test_the_audit_of_printed_numbers(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    text = b"".join((ROOT / "data/published/audit.csv").read_bytes().splitlines(True)[:6])
    root = checkout(tmp_path_factory.mktemp("root"))
    (root / "data/published").mkdir(parents=True)
    (root / "data/published/audit.csv").write_bytes(data.draw(bytes_near(text)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALIMPSEST_ROOT", str(root))
        survives(load_audit.__wrapped__, root)


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Ledgers, description, work folder and edit file of a tiny model."""
    folder = tmp_path_factory.mktemp("edited")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALIMPSEST_CACHE", str(folder / "cache"))
        stub_texts(patch)
        done = told(tiny_model("llama"), facts(3))
        done.checkpoint(folder / "m")
        work = Work(folder / "out")
        work.begin("edit")
        edit = WeightDelta({1: torch.ones(32, 64)}, done.base["fingerprint"])
        save_edit(folder / "edit.safetensors", edit, facts(2), "tiny")
        yield folder


@fuzzed
@given(data=st.data())
def test_descriptions(edited: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Also with a checksum that fits, as somebody would write it who changes the file by hand."""
    text = (edited / "m/palimpsest.json").read_bytes()
    about = json.loads(text)
    del about[files.SUM]

    def signed(value: Any) -> bytes:
        try:
            return as_text(value | {files.SUM: digest(value)}) if isinstance(value, dict) else as_text(value)
        except UnicodeEncodeError:
            return as_text(value)

    content = data.draw(st.one_of(bytes_near(text), values_near(about).map(signed)))
    (tmp_path / "palimpsest.json").write_bytes(content)
    survives(lambda: files.read_description(tmp_path), tmp_path)


@fuzzed
@given(data=st.data())
def test_ledgers(edited: Path, tmp_path: Path, data: st.DataObject) -> None:
    """Bytes anywhere, mostly in the head; and another description in it."""
    about = files.read_description(edited / "m")
    (tmp_path / "ledgers").mkdir(exist_ok=True)
    source = files.ledger_path(edited / "m", 0)
    for layer in (1, 2):
        files.ledger_path(tmp_path, layer).write_bytes(files.ledger_path(edited / "m", layer).read_bytes())
    path = files.ledger_path(tmp_path, 0)
    if data.draw(st.booleans()):
        content = source.read_bytes()
        head = 8 + int.from_bytes(content[:8], "little")
        near = data.draw(bytes_near(content[:head]))
        path.write_bytes(near + content[head:] if data.draw(st.booleans()) else near)
    else:
        with safe_open(str(source), "pt") as file:
            known = json.loads(file.metadata()["ledger"])
        metadata = {"ledger": json.dumps(data.draw(values_near(known)))}
        save_file(load_file(source), path, metadata)
    survives(lambda: files.read_ledgers(tmp_path, about, "cpu"), tmp_path)


@fuzzed
@given(data=st.data())
def test_edit_files(edited: Path, tmp_path: Path, data: st.DataObject) -> None:
    source, path = edited / "edit.safetensors", tmp_path / "edit.safetensors"
    if data.draw(st.booleans()):
        path.write_bytes(data.draw(bytes_near(source.read_bytes()[:600])) + source.read_bytes()[600:])
    else:
        with safe_open(str(source), "pt") as file:
            metadata = dict(file.metadata())
        name = data.draw(st.sampled_from(sorted(metadata)))
        metadata[name] = data.draw(
            st.one_of(
                st.text(st.characters(codec="utf-8"), max_size=9),
                values_near([{"prompt": "{} is"}]).map(json.dumps),
            )
        )
        save_file(
            {data.draw(st.sampled_from(("layer-1", "layer-x", "x", "layer--1"))): torch.ones(2, 2)},
            path,
            metadata,
        )
    survives(lambda: load_edit(path), tmp_path)


@fuzzed
@given(data=st.data())
def test_what_a_work_folder_says_of_itself(edited: Path, tmp_path: Path, data: st.DataObject) -> None:
    work = Work(tmp_path / "out")
    work.folder.mkdir(exist_ok=True)
    text = (edited / ".out.palimpsest/owner.json").read_bytes()
    content = data.draw(st.one_of(bytes_near(text), values_near(json.loads(text)).map(as_text)))
    (work.folder / "owner.json").write_bytes(content)
    survives(lambda: (work.owner(), work.current, work.unfinished), tmp_path)


KEPT: dict[str, Callable[[], Any]] = {
    "tensors": lambda: cache.tensors("kind", {"a": 1}, lambda: {"x": torch.arange(6.0)})["x"].tolist(),
    "texts": lambda: cache.texts("kind", {"a": 1}, lambda: ["one", "two"]),
    "table": lambda: cache.table("kind", {"a": 1}, ["x"], lambda: [[1.0], [2.0]])["x"].tolist(),
}


@pytest.mark.parametrize("kind", KEPT)
@fuzzed
@given(data=st.data())
def test_files_of_the_cache(kind: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever was changed, in the file or its seal: what is read is what was written."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALIMPSEST_CACHE", str(folder))
        wanted = KEPT[kind]()
        places = sorted(path for path in folder.rglob("*") if path.is_file())
        assert len(places) == 2
        place = data.draw(st.sampled_from(places))
        place.write_bytes(data.draw(bytes_near(place.read_bytes())))
        cache._KNOWN.clear()  # as in another process
        assert KEPT[kind]() == wanted
        assert sorted(path for path in folder.rglob("*") if path.is_file()) == places


def test_the_damage_can_be_seen(tmp_path: Path) -> None:
    """A reader that fails in another way, or writes, is found."""
    with pytest.raises(ZeroDivisionError):
        survives(lambda: 1 / 0, tmp_path)
    with pytest.raises(AssertionError):
        survives(lambda: (tmp_path / "new").write_text("x"), tmp_path)
