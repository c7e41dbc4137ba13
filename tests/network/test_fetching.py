"""Models that are fetched beforehand, with a stand-in for the hub that fills its cache."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, HTTPError, RepositoryNotFoundError
from typer.testing import CliRunner

from palimpsest import cli, resources
from palimpsest.errors import ModelError, PalimpsestError, ResourceError, UnknownNameError
from palimpsest.network import fetching
from palimpsest.network.fetching import fetch_model, file_sizes, held, wanted
from tests.clone import make_clone

NAME = "some/model"
PARTS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
SIZES = {"config.json": 20, "tokenizer.json": 30, fetching.INDEXES[0]: 90, PARTS[0]: 2**30, PARTS[1]: 2**30}
OTHERS = {"pytorch_model.bin": 7, "flax_model.msgpack": 7, "README.md": 7, "original/params.json": 7}


class Hub:
    """A hub of one model, that loses its connection after some files."""

    def __init__(self, cache: Path, until: int = 99) -> None:
        self.folder = cache / "models--some--model"
        self.until = until
        self.asked: list[list[str]] = []

    def download(self, name: str, files: list[str]) -> None:
        self.asked.append(files)
        (self.folder / "refs").mkdir(parents=True, exist_ok=True)
        (self.folder / "refs" / "main").write_text("abc")
        place = self.folder / "snapshots" / "abc"
        place.mkdir(parents=True, exist_ok=True)
        for number, file in enumerate(files):
            if number == self.until:
                raise HTTPError("connection reset")
            weight_map = {"weight_map": {"a": PARTS[0], "b": PARTS[1]}}
            (place / file).write_text(json.dumps(weight_map) if "index" in file else "0" * 64)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    cache = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    return Hub(cache)


def probe(name: str) -> dict[str, int]:
    return SIZES | OTHERS


def test_the_size_is_said_and_a_model_that_is_there_is_not_asked_for(hub: Hub) -> None:
    said: list[str] = []
    fetch_model(NAME, said.append, probe, hub.download)
    assert said == ["fetching some/model: 2.0 GiB of 2.0 GiB, 5 files"]
    assert hub.asked == [sorted(SIZES)]
    assert held(NAME) == 128

    def never(name: str) -> None:
        raise AssertionError("the hub is asked")

    fetch_model(NAME, said.append, never, hub.download)
    assert said[1:] == ["some/model is here already (0.0 MiB of weights)"]


def test_a_download_that_broke_off_goes_on(hub: Hub) -> None:
    said: list[str] = []
    hub.until = 2  # the second part of the weights and the tokenizer are missing
    with pytest.raises(ResourceError, match=r"broke off \(HTTPError: .*reset\); give the same command again"):
        fetch_model(NAME, said.append, probe, hub.download)
    assert held(NAME) == 0
    hub.until = 99
    fetch_model(NAME, said.append, probe, hub.download)
    assert said[1:] == ["fetching some/model: 1.0 GiB of 2.0 GiB, 5 files"]
    assert held(NAME) > 0


def test_only_what_is_loaded_is_fetched() -> None:
    assert wanted(SIZES | OTHERS) == SIZES
    old = {"config.json": 1, "pytorch_model.bin": 5, "rust_model.ot": 5, "onnx/model.safetensors": 5}
    assert wanted(old) == {"config.json": 1, "pytorch_model.bin": 5}
    with pytest.raises(
        ModelError, match=r"has no weights that can be loaded \(\*.safetensors\); choose another"
    ):
        fetch_model(NAME, print, lambda _: {"config.json": 1}, lambda *_: None)


def fails(error: Exception) -> Callable[[str], Any]:
    def ask(name: str) -> Any:
        raise error

    return ask


def of_hub(kind: type[Exception]) -> Exception:
    return kind("no", response=SimpleNamespace(headers={}, request=None))


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (of_hub(GatedRepoError), ModelError, "is gated: accept its conditions"),
        (of_hub(RepositoryNotFoundError), UnknownNameError, "the hub has none of that id"),
        (OSError("no route"), ResourceError, r"the hub cannot be reached \(OSError\)"),
    ],
)
def test_why_a_model_cannot_be_fetched(
    hub: Hub, error: Exception, kind: type[PalimpsestError], message: str
) -> None:
    with pytest.raises(kind, match=message):
        fetch_model(NAME, print, fails(error), hub.download)
    assert hub.asked == []


def test_no_id_and_a_hub_that_is_switched_off(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnknownNameError, match="unknown model '/data/none'"):
        fetch_model("/data/none", print, probe, hub.download)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ResourceError, match=r"switched off \(HF_HUB_OFFLINE\)"):
        fetch_model(NAME, print, probe, hub.download)


def test_the_hub_is_asked_for_sizes_and_for_leave(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [SimpleNamespace(rfilename="config.json", size=5), SimpleNamespace(rfilename="a", size=None)]
    checked: list[str] = []

    class Api:
        def model_info(self, name: str, timeout: float, files_metadata: bool) -> SimpleNamespace:
            assert files_metadata
            return SimpleNamespace(gated="auto", siblings=files)

        def auth_check(self, name: str) -> None:
            checked.append(name)

    monkeypatch.setattr(fetching, "HfApi", Api)
    assert file_sizes(NAME) == {"config.json": 5, "a": 0}
    assert checked == [NAME]


def test_the_command_fetches_the_model_of_each_profile_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clone = make_clone(tmp_path / "clone", monkeypatch)
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, model in {"one": NAME, "two": NAME, "own": str(folder)}.items():
        clone.write_profile(name, model=model)
    monkeypatch.setattr(resources, "fetch_all", lambda: None)
    monkeypatch.setattr("palimpsest.network.embedded.unpacked_model", lambda: None)
    monkeypatch.setattr(fetching, "fetch_model", lambda name, say: say(f"fetching {name}"))
    asked = [part for name in ("one", "two", "own") for part in ("--profile", name)]
    done = CliRunner().invoke(cli.app, ["fetch", *asked])
    assert done.stdout == f"fetching {NAME}\n{folder} is here already\n"
