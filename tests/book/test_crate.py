"""Results as an RO-Crate, read back by the library that others read it with."""

import json
import shutil
import sys
import zipfile
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import pytest
from rocrate.rocrate import ROCrate
from typer.testing import CliRunner

from palimpsest import cli
from palimpsest.book.crate import write_crate
from palimpsest.errors import BookError
from tests.clone import Clone, make_clone

ROOT = Path(__file__).parents[2]
STARTED = {
    "started": "2026-11-28T10:00:00+00:00",
    "versions": {"python": "3.11.7", "torch": version("torch")},
}


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clone:
    made = make_clone(tmp_path / "clone", monkeypatch)
    for name in ("CITATION.cff", "LICENSE"):
        shutil.copyfile(ROOT / name, made.root / name)
    made.pretend_run()
    record = made.root / "results/laptop/01_tiny.json"
    made.pretend_run(records={record.name: sha256(record.read_bytes()).hexdigest()}, **STARTED)
    return made


def test_a_crate_has_what_the_specification_requires(clone: Clone, tmp_path: Path) -> None:
    """RO-Crate 1.1: metadata descriptor, and of the root its type, name, description, date and licence."""
    out = write_crate("laptop", tmp_path / "out")
    graph = json.loads((out / "ro-crate-metadata.json").read_text("utf-8"))
    assert graph["@context"][0] == "https://w3id.org/ro/crate/1.1/context"
    entities = {entity["@id"]: entity for entity in graph["@graph"]}
    descriptor, root = entities["ro-crate-metadata.json"], entities["./"]
    assert descriptor["@type"] == "CreativeWork"
    assert descriptor["conformsTo"] == {"@id": "https://w3id.org/ro/crate/1.1"}
    assert descriptor["about"] == {"@id": "./"}
    assert root["@type"] == "Dataset"
    assert root["datePublished"] == "2026-11-29"
    assert "results of the profile laptop" in root["name"]
    assert "a test of the machinery" in root["description"]
    assert root["license"] == {"@id": "https://spdx.org/licenses/MIT"}
    assert entities[root["author"][0]["@id"]]["name"] == "The Palimpsest authors"
    files = {entity["@id"] for entity in entities.values() if entity["@type"] == "File"}
    assert {part["@id"] for part in root["hasPart"]} == files
    linked = {link["@id"] for entity in entities.values() for link in _links(entity)}
    assert {name for name in linked if not name.startswith("https://w3id.org/")} <= set(entities)


def _links(entity: dict[str, object]) -> list[dict[str, str]]:
    values = [v for value in entity.values() for v in (value if isinstance(value, list) else [value])]
    return [value for value in values if isinstance(value, dict)]


def test_every_file_is_there_with_its_hash_and_the_record_is_the_one_of_its_run(
    clone: Clone, tmp_path: Path
) -> None:
    out = write_crate("laptop", tmp_path / "out.zip")
    zipfile.ZipFile(out).extractall(tmp_path / "unpacked")
    crate = ROCrate(tmp_path / "unpacked")
    files = {entity.id: entity for entity in crate.get_by_type("File")}
    results = {f"results/laptop/01_tiny.{end}" for end in ("ipynb", "json", "provenance.json")}
    assert results | {"CITATION.cff", "LICENSE", "data/claims.yaml", "verdicts.json"} == set(files)
    for name, entity in files.items():
        content = (tmp_path / "unpacked" / name).read_bytes()
        assert entity["sha256"] == sha256(content).hexdigest()
        assert entity["contentSize"] == str(len(content))
    vouched = clone.provenance()["records"]["01_tiny.json"]
    assert files["results/laptop/01_tiny.json"]["sha256"] == vouched
    assert files["results/laptop/01_tiny.ipynb"]["creativeWorkStatus"] == "up to date"
    assert files["results/laptop/01_tiny.ipynb"]["encodingFormat"] == "application/x-ipynb+json"


def test_a_run_names_its_results_versions_and_time(clone: Clone, tmp_path: Path) -> None:
    crate = ROCrate(write_crate("laptop", tmp_path / "out"))
    run = crate.dereference("#run-01_tiny")
    assert {entity.id.rpartition(".")[2] for entity in run["result"]} == {"ipynb", "json"}
    assert len(run["result"]) == 3
    versions = {entity["name"]: entity["softwareVersion"] for entity in run["instrument"]}
    assert versions == {"Palimpsest": version("palimpsest"), "python": "3.11.7", "torch": version("torch")}
    assert run["startTime"] == "2026-11-28T10:00:00+00:00"
    assert run["endTime"] == "2026-11-28T10:20:34+00:00"
    assert run["description"].startswith("code abc, content ")


def test_claims_come_with_their_verdicts(clone: Clone, tmp_path: Path) -> None:
    shutil.copyfile(ROOT / "data/claims.yaml", clone.root / "data/claims.yaml")
    shutil.copytree(ROOT / "data/published", clone.root / "data/published")
    rows = json.loads((write_crate("laptop", tmp_path / "out") / "verdicts.json").read_text("utf-8"))
    first = next(row for row in rows if row["id"] == "A01")
    assert first["verdict"] == "not run"
    assert {verdict["profile"] for verdict in first["verdicts"]} >= {"laptop"}
    assert first["statement"]


def test_what_cannot_be_vouched_for_is_no_crate(clone: Clone, tmp_path: Path) -> None:
    clone.write_provenance(clone.provenance() | {"records": {"01_tiny.json": "0" * 64}})
    with pytest.raises(BookError, match=r"01_tiny.json in .*: not what the run wrote, so that no crate can"):
        write_crate("laptop", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mistakes_are_messages(clone: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def says(*arguments: object) -> str:
        result = CliRunner().invoke(cli.app, ["crate", *map(str, arguments)])
        assert result.exit_code == 2
        return result.stderr

    (tmp_path / "mine").mkdir()
    assert f"{tmp_path / 'mine'} exists; remove it, or choose another place" in says(
        "--out", tmp_path / "mine"
    )
    assert "the profile smoke has no result to put into a crate" in says("--profile", "smoke")
    (clone.root / "CITATION.cff").write_text("title: a\n")
    assert "CITATION.cff lacks abstract, authors, version, license" in says()
    (clone.root / "CITATION.cff").unlink()
    assert "CITATION.cff cannot be read" in says()
    monkeypatch.setitem(sys.modules, "rocrate.rocrate", None)
    assert "the package rocrate, which writes crates, is not installed; install the extra 'crate'" in says()
