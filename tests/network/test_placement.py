"""A model over two devices: one the CPU, the other its double; the numbers are those of one device."""

from pathlib import Path
from typing import Any

import pytest
import torch

from palimpsest.editors import EDITORS
from palimpsest.editors.base import WeightEditor
from palimpsest.editors.remembered import RememberingEditor
from palimpsest.errors import ModelError
from palimpsest.evaluation.answers import ask
from palimpsest.network.apply import installed
from palimpsest.network.model import (
    FAMILIES,
    EditableModel,
    describe,
    fingerprint,
    load,
    read_weight,
    write_weight,
)
from palimpsest.network.placement import blocks, connected, one_of, placed
from tests.device_double import DEVICE
from tests.editing import begun, sampled, small
from tests.sequences import FACTS
from tests.test_device_double import MEASURED, alike, device  # noqa: F401 -- a fixture
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread", "own_cache", "device")
ALL = [name for name, row in EDITORS.items() if issubclass(row.editor, WeightEditor | RememberingEditor)]


def halved(kind: str, there: range = range(1, 3)) -> EditableModel:
    """A tiny model with some layers on the other device."""
    model = tiny_model(kind)
    for layer in there:
        model.layer(layer).to(DEVICE)
    connected(model.net, model.family, model.name)
    return model


def on_both(kind: str, work: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    found = []
    for name, model in (("one", tiny_model(kind)), ("two", halved(kind))):
        monkeypatch.setenv("PALIMPSEST_CACHE", str(tmp_path / name))
        found.append(work(model))
    return found[0], found[1]


@sampled(ALL)
def test_every_editor(name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(model: EditableModel) -> list[Any]:
        editor = small(name)
        edit, _ = editor.edit(model, FACTS[:3], begun(editor))
        with installed(model, edit):
            asked = ask(model, [(fact.text, fact.target) for fact in FACTS[:3]]).nll.tolist()
            return [asked, [read_weight(model, layer).cpu().flatten().tolist() for layer in editor.layers]]

    plain, there = on_both(kind, work, tmp_path, monkeypatch)
    assert alike(there, plain)


@pytest.mark.parametrize("what", MEASURED)
@pytest.mark.parametrize(
    "kind", ["llama", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("gpt2", "gemma2", "opt"))]
)
def test_every_measurement(kind: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, there = on_both(kind, MEASURED[what], tmp_path, monkeypatch)
    assert alike(there, plain)


@pytest.mark.parametrize("kind", FAMILIES)
def test_blocks_hold_every_weight(kind: str) -> None:
    net = tiny_model(kind).net
    held = [id(weight) for _, module in blocks(net, FAMILIES[kind]) for weight in module.parameters()]
    assert {*held} == {id(weight) for weight in net.parameters()}
    assert len(held) - len({*held}) <= 1  # a head that is the embedding


def test_weights_are_read_on_the_models_device_and_written_where_they_lie() -> None:
    model = halved("llama")
    weight = read_weight(model, 1)
    assert weight.device.type == "cpu"
    assert model.projection(1).weight.device.type == DEVICE.type
    write_weight(model, 1, weight + 1)
    torch.testing.assert_close(read_weight(model, 1), weight + 1)
    assert model.projection(1).weight.device.type == DEVICE.type
    assert fingerprint(model) != fingerprint(halved("llama"))
    assert fingerprint(halved("llama")) == fingerprint(tiny_model("llama"))
    assert describe(model)["device"] == f"cpu and {DEVICE}"


def test_a_layer_on_two_devices_is_refused() -> None:
    model = tiny_model("llama")
    model.projection(2).to(DEVICE)
    message = rf"layers\.2 of {model.name} lies on cpu and {DEVICE}; a device map must keep each layer whole"
    with pytest.raises(ModelError, match=message):
        connected(model.net, model.family, model.name)


def test_parts_that_are_not_loaded_are_named() -> None:
    model = tiny_model("llama")
    model.net.model.layers[3] = model.layer(3).to_empty(device="meta")
    with pytest.raises(ModelError, match=r"1 of its parts, the first of them model\.layers\.3, are not load"):
        connected(model.net, model.family, model.name)


@pytest.mark.parametrize(
    ("gpus", "place"), [(0, torch.device("cpu")), (1, torch.device("cuda")), (2, "auto")]
)
def test_auto_takes_all_gpus(gpus: int, place: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: gpus)
    monkeypatch.setattr(
        torch.accelerator, "current_accelerator", lambda: torch.device("cuda") if gpus else None
    )
    assert placed("auto") == place
    assert one_of("auto") == torch.device("cuda" if gpus else "cpu")
    assert one_of("cpu") == torch.device("cpu")


def test_places() -> None:
    assert placed("cpu") == torch.device("cpu")
    assert placed({"": "cpu"}) == torch.device("cpu")
    split = {"model.embed_tokens": "cpu", "model.layers": str(DEVICE)}
    assert placed(split) == split
    with pytest.raises(ModelError, match="the device map is empty; name a part"):
        placed({})
    with pytest.raises(ModelError, match="device 'nowhere' cannot be used here"):
        placed({"model.layers.0": "nowhere"})


def test_a_model_is_loaded_by_a_map(tmp_path: Path) -> None:
    model = tiny_model("llama")
    model.net.save_pretrained(tmp_path)
    model.tokenizer.save_pretrained(tmp_path)
    assert fingerprint(load(tmp_path, device={"": "cpu"})) == fingerprint(load(tmp_path))
    model.net.to(torch.bfloat16).save_pretrained(tmp_path)
    assert next(load(tmp_path, device={"": "cpu"}).net.parameters()).dtype is torch.float32
