"""Diagnosing an edit on disk, as a folder and as a file, through the command line."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

from palimpsest import cli
from palimpsest.cache import SUM
from palimpsest.errors import DataError, ResourceError, ScoreError
from palimpsest.evaluation import stability
from palimpsest.evaluation.responses import Decoding
from palimpsest.network.apply import WeightDelta, installed
from palimpsest.network.model import fingerprint, load, read_weight
from palimpsest.workbench import diagnosis
from palimpsest.workbench.diagnosis import diagnose_on_disk
from palimpsest.workbench.edit_file import load_edit, save_edit
from tests.disk import flip
from tests.editing import stub_texts
from tests.embedders import letters
from tests.workbench.edits import facts, tiny_folder, written

pytestmark = pytest.mark.usefixtures("own_cache", "one_thread")

COMMANDS = CliRunner()
SMALL = Decoding(samples=2, tokens=4, seed=3)
OPTIONS = ["--samples", "2", "--tokens", "4", "--seed", "3"]


@pytest.fixture(autouse=True)
def _light(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_texts(monkeypatch)
    monkeypatch.setattr(diagnosis, "embedder", lambda name, device: letters())


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model (base), three facts written into it (edited), and wordings of them."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PALIMPSEST_CACHE", str(folder / "cache"))
        stub_texts(patch)
        written(tiny_folder(folder / "base"), folder / "edited", 3)
    lines = [
        {"id": fact.id, "prompt": fact.prompt, "subject": fact.subject, "target": fact.target}
        | {"wordings": [fact.prompt, "What of {}? It is"]}
        for fact in facts(3)
    ]
    (folder / "facts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder


@pytest.fixture
def room(made: Path, tmp_path: Path) -> Path:
    """A copy of it, for tests that write."""
    for name in ("edited", "facts.jsonl"):
        (shutil.copytree if name == "edited" else shutil.copy)(made / name, tmp_path / name)
    return tmp_path


def test_a_folder_is_diagnosed_as_its_two_models_are(made: Path, room: Path) -> None:
    said: list[str] = []
    done = diagnose_on_disk(room / "edited", wordings=room / "facts.jsonl", decoding=SMALL, say=said.append)
    ways = {fact.id: [fact.text, f"What of {fact.subject}? It is"] for fact in facts(3)}
    wanted = stability.diagnose(load(made / "base"), load(room / "edited"), ways, letters(), SMALL)
    pd.testing.assert_frame_equal(done.table, wanted.table)
    assert done.table["unchanged"].mean() < 1
    assert done.path == room / "edited.uncertainty.csv"
    assert len(said) == 1
    assert said[0].startswith("before and after: 6 facts: 24 texts of at most 4 tokens, about 0.")
    pd.testing.assert_frame_equal(pd.read_csv(done.path, dtype={"fact": str}), done.table)
    about = json.loads(done.path.with_suffix(".json").read_text())
    assert about["model"]["fingerprint"] == fingerprint(load(made / "base"))
    assert about["decoding"]["samples"] == 2
    assert about["wordings"]["0"] == ways["0"]
    assert [row["measure"] for row in about["summary"]] == list(done.summary["measure"])


def test_the_command_prints_cost_table_and_interval(room: Path, made: Path) -> None:
    arguments = [
        "diagnose",
        "--edit",
        str(room / "edited"),
        "--wordings",
        str(room / "facts.jsonl"),
        *OPTIONS,
    ]
    result = COMMANDS.invoke(cli.app, [*arguments, "--model", str(made / "base")])
    assert result.exit_code == 0, result.stderr
    lines = result.stdout.splitlines()
    assert lines[0].startswith("before and after: 6 facts")
    assert lines[1].split() == list(diagnosis.SHOWN)
    assert "95 % intervals, bootstrap over facts; growth is relative:" in lines
    assert any(line.startswith("total: ") and line.endswith("] over 3 facts") for line in lines)
    assert lines[-1] == str(room / "edited.uncertainty.csv")
    again = COMMANDS.invoke(cli.app, arguments)
    assert again.stdout.splitlines()[0] == "before and after: 6 facts, all on disk"
    assert again.stdout.splitlines()[1:] == lines[1:]


def test_one_fact_has_a_row_and_no_interval(room: Path) -> None:
    out = room / "deep" / "one.csv"
    done = diagnose_on_disk(
        room / "edited", out, wordings=room / "facts.jsonl", decoding=SMALL, limit=1, say=lambda _: None
    )
    assert len(pd.read_csv(out)) == 1
    assert done.summary.empty
    assert str(done).endswith("one fact has no interval; diagnose an edit of two or more")


def test_an_edit_in_a_file(made: Path, room: Path) -> None:
    base, edited = load(made / "base"), load(made / "edited")
    delta = {i: read_weight(edited, i).double() - read_weight(base, i).double() for i in (0, 1, 2)}
    edit = WeightDelta(delta, fingerprint(base))
    save_edit(room / "one.safetensors", edit, facts(3), str(made / "base"))
    saved = load_edit(room / "one.safetensors")
    assert (saved.requests, saved.model, saved.edit.base) == (tuple(facts(3)), str(made / "base"), edit.base)
    with installed(base, saved.edit):
        assert all(torch.equal(read_weight(base, i), read_weight(edited, i)) for i in delta)
    by_file, by_folder = (
        diagnose_on_disk(room / name, wordings=room / "facts.jsonl", decoding=SMALL, say=lambda _: None)
        for name in ("one.safetensors", "edited")
    )
    pd.testing.assert_frame_equal(by_file.table, by_folder.table)


def test_a_bit_of_an_edit_in_a_file_that_flips_is_seen(tmp_path: Path) -> None:
    """In its matrices, and in what stands beside them; a file without a checksum is read."""
    path = tmp_path / "one.safetensors"
    save_edit(path, WeightDelta({0: torch.ones(2, 2)}, "base"), facts(1), "tiny")
    message = r"holds no edit that can be read \(it was changed since it was written: its SHA-256 differs\)"
    for at in (-1, path.read_bytes().index(b"base") + 7):
        whole = path.read_bytes()
        flip(path, at)
        with pytest.raises(ResourceError, match=message):
            load_edit(path)
        path.write_bytes(whole)
    with safe_open(path, "pt") as file:
        about = {name: text for name, text in file.metadata().items() if name != SUM}
    save_file({"layer-0": torch.zeros(2, 2, dtype=torch.float64)}, path, about)
    assert not load_edit(path).edit.deltas[0].any()


def test_an_edit_of_another_model_is_refused_before_anything_is_asked(made: Path, room: Path) -> None:
    from tests.tiny import tiny_model

    other = tiny_model("llama", seed=5)
    other.net.save_pretrained(room / "other")
    other.tokenizer.save_pretrained(room / "other")
    save_edit(room / "one.safetensors", WeightDelta({}, fingerprint(other)), facts(3), str(made / "base"))
    for edit, model in ((room / "edited", room / "other"), (room / "one.safetensors", made / "base")):
        arguments = ["--edit", str(edit), "--model", str(model), "--wordings", str(room / "facts.jsonl")]
        result = COMMANDS.invoke(cli.app, ["diagnose", *arguments, *OPTIONS])
        assert result.exit_code == 2
        assert "the edit was made for a model with other weights than" in result.stderr
        assert result.stdout == ""
    assert not (room / "edited.uncertainty.csv").exists()


def test_what_is_missing_is_named(room: Path) -> None:
    (room / "junk.safetensors").write_text("junk")
    torch_file = room / "plain.safetensors"
    save_file({"layer-0": torch.zeros(2, 2)}, torch_file)
    cases = [
        (
            ["--edit", "absent"],
            "absent holds no edited model (it has no palimpsest.json); give a folder that",
        ),
        (["--edit", str(room / "junk.safetensors")], "junk.safetensors holds no edit that can be read ("),
        (["--edit", str(torch_file)], "its format is None, not '1'); give a file that save_edit wrote, or a"),
        (["--edit", str(room / "edited")], "3 of 3 facts have no wordings, first '0': its prompt 'The "),
        (["--edit", str(room / "edited"), "--samples", "1"], "samples is 1; one response to a wording shows"),
        (["--edit", str(room / "edited"), "--limit", "0"], "limit is 0; diagnose at least 1 fact"),
    ]
    for arguments, message in cases:
        result = COMMANDS.invoke(cli.app, ["diagnose", *arguments])
        assert result.exit_code == 2
        assert message in result.stderr


def test_a_file_that_cannot_be_written(room: Path) -> None:
    (room / "file").write_text("")
    with pytest.raises(ResourceError, match="cannot write in"):
        save_edit(room / "file" / "one.safetensors", WeightDelta({}), [], "tiny")


def test_numbers_out_of_range_stop_before_the_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "load", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(ScoreError, match="limit is -1"):
        diagnose_on_disk(Path("absent"), limit=-1)
    with pytest.raises(DataError, match=r"absent.jsonl: cannot be read"):
        diagnosis.load_wordings("absent.jsonl")
