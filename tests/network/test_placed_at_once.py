"""Weights are read to the device where they are to lie; the host never holds a whole copy of the model."""

import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import _disable_current_modes
from transformers import AutoModelForCausalLM

from palimpsest.errors import ModelError
from palimpsest.network import model as model_module
from palimpsest.network.model import FAMILIES, fingerprint, load
from tests.device_double import DEVICE, OnDevice
from tests.test_device_double import device  # noqa: F401 -- a fixture
from tests.tiny import tiny_model

pytestmark = pytest.mark.usefixtures("one_thread", "device")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return saved("llama", tmp_path)


def saved(kind: str, place: Path) -> Path:
    model = tiny_model(kind)
    model.net.save_pretrained(place)
    model.tokenizer.save_pretrained(place)
    return place


def on_the_host() -> int:
    """Bytes of tensors of numbers in the host's memory, made since `gc.freeze`; not those of the double."""
    alive = gc.get_objects()
    there = {id(item.held) for item in alive if type(item) is OnDevice}
    here = [item for item in alive if type(item) in (Tensor, nn.Parameter) and id(item) not in there]
    numbers = [item for item in here if item.device.type == "cpu" and item.dtype.is_floating_point]
    return sum({item.untyped_storage().data_ptr(): item.nbytes for item in numbers}.values())


class Watched(TorchFunctionMode):
    """Notes, whenever a tensor is sent to the double, how much of the model lies in the host's memory."""

    def __enter__(self) -> "Watched":
        self.held: list[int] = []
        gc.collect()
        gc.freeze()
        super().__enter__()
        return self

    def __exit__(self, *args: Any) -> None:
        super().__exit__(*args)
        gc.unfreeze()

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is Tensor.to and DEVICE in (*args, *(kwargs or {}).values()):
            self.held.append(on_the_host())
        return function(*args, **(kwargs or {}))


@pytest.fixture
def returned(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Devices of a network's tensors at the moment when transformers hands it over."""
    seen: list[Any] = []
    real = AutoModelForCausalLM.from_pretrained

    class Seen:
        @staticmethod
        def from_pretrained(*args: Any, **kwargs: Any) -> Any:
            loaded: Any = real(*args, **kwargs)
            seen.extend(str(part.device) for part in (*loaded[0].parameters(), *loaded[0].buffers()))
            return loaded

    monkeypatch.setattr(model_module, "AutoModelForCausalLM", Seen)
    return seen


@pytest.mark.parametrize("kind", FAMILIES)
def test_every_family_is_read_to_the_device(kind: str, tmp_path: Path, returned: list[Any]) -> None:
    saved(kind, tmp_path)
    loaded = load(tmp_path, torch.float32, DEVICE)
    assert {*returned} == {str(DEVICE)}
    assert {str(weight.device) for weight in loaded.net.parameters()} == {str(DEVICE)}
    assert fingerprint(loaded) == fingerprint(tiny_model(kind))


@pytest.mark.parametrize("kind", FAMILIES)
def test_a_map_of_one_device_gives_the_same_weights_and_buffers(kind: str, tmp_path: Path) -> None:
    """Frequencies of a rotation stand in no file; the double can leave them unset."""
    place = saved(kind, tmp_path)
    with _disable_current_modes():
        plain: Any = AutoModelForCausalLM.from_pretrained(place)
        mapped: Any = AutoModelForCausalLM.from_pretrained(place, device_map={"": torch.device("cpu")})
    for of in ("named_parameters", "named_buffers"):
        one, other = (dict(getattr(net, of)()) for net in (plain, mapped))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
    assert not any(hasattr(module, "_hf_hook") for module in mapped.modules())


def test_the_host_holds_one_weight_at_a_time(folder: Path) -> None:
    """Of a net that is loaded to the host and then moved, it holds all."""
    with Watched() as watched:
        load(folder, torch.float32, DEVICE)
    weights = load_file(folder / "model.safetensors")
    largest, whole = (of(part.nbytes for part in weights.values()) for of in (max, sum))
    assert len(watched.held) > len(weights)
    assert 0 < max(watched.held) <= largest + 1024 < whole / 4  # 1024: frequencies of the rotation

    with Watched() as moved:
        load(folder, torch.float32).net.to(DEVICE)
    assert max(moved.held) >= whole


def test_the_host_keeps_bits_and_type(folder: Path, returned: list[Any]) -> None:
    assert fingerprint(load(folder)) == fingerprint(load(folder, device={"": "cpu"}))
    assert {*returned} == {"cpu"}
    assert load(folder).net.dtype == torch.float32


def test_a_device_takes_the_type_of_the_file(folder: Path) -> None:
    tiny_model("llama").net.to(torch.bfloat16).save_pretrained(folder)
    assert load(folder, device=DEVICE).net.dtype == torch.bfloat16


def without(name: str) -> Callable[[Path], None]:
    def change(weights: dict[str, Tensor]) -> None:
        del weights[name]

    return rewritten(change)


def rewritten(change: Callable[[dict[str, Tensor]], None]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        path = folder / "model.safetensors"
        weights = load_file(path)
        change(weights)
        save_file(weights, path, {"format": "pt"})

    return make


def narrow(weights: dict[str, Tensor]) -> None:
    weights["model.layers.1.mlp.down_proj.weight"] = weights["model.layers.1.mlp.down_proj.weight"][
        :, :9
    ].clone()


def stray(weights: dict[str, Tensor]) -> None:
    weights["model.layers.9.mlp.down_proj.weight"] = torch.zeros(2, 2)


def short(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 3}))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (
            without("model.layers.2.mlp.down_proj.weight"),
            r"1 weights are missing, first model\.layers\.2\.mlp",
        ),
        (
            rewritten(narrow),
            r"1 weights have another shape .*: model\.layers\.1\.mlp\.down_proj\.weight is \(",
        ),
        (rewritten(stray), r"1 tensors are no part of the network .*: model\.layers\.9\.mlp"),
        (short, "max_position_embeddings 3, and a context of fewer than 16 tokens"),
    ],
)
def test_what_does_not_fit_is_refused_as_on_the_host(
    make: Callable[[Path], None], reason: str, folder: Path
) -> None:
    make(folder)
    for place in ("cpu", DEVICE):
        with pytest.raises(ModelError, match=reason):
            load(folder, device=place)
