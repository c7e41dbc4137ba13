"""Shape, dtype and bytes of a model's weights, found without loading them."""

import csv
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache

from palimpsest import paths
from palimpsest.book.model_files import file_of, models_dir
from palimpsest.errors import ModelError, ResourceError
from palimpsest.network.sources import EMBEDDED, check_folder
from palimpsest.resources import PINS
from palimpsest.studies.cost import SHAPES, Shape

DERIVED: dict[str, Shape] = {
    "gemma-2b": Shape("Gemma-2B", 18, 2048, 16_384, 8, 1, 256, 256_000, 3, tied=True),
    "phi-1.5": Shape("phi-1.5", 24, 2048, 8192, 32, 32, 64, 51_200, 2, tied=False),
}
"""Shapes, as in `palimpsest.studies.cost.SHAPES`, of models whose settings are derived and not published.
Source: ``config.json`` of google/gemma-2b and microsoft/phi-1_5 on the Hugging Face hub."""

UNGATED = ("gpt_neox", "phi")
"""Model types that call the width of an MLP ``intermediate_size``, as those with a gate do, and have none."""

INDEX, CONFIG = "model.safetensors.index.json", "config.json"


@dataclass(frozen=True)
class Weights:
    """What is known of a model before it is loaded.

    Attributes:
        model: name, folder or hub id.
        shape: its sizes.
        dtype: of the weights on their device: float32 on a CPU, else as stored.
        stored: bytes of the files.
        missing: bytes of them that are not on this machine yet.
    """

    model: str
    shape: Shape
    dtype: torch.dtype
    stored: int
    missing: int


def weights_of(model: str, device: str) -> Weights:
    """Look a model up: in its folder, in the cache of the hub, else in the tables of the project.

    Args:
        model: name, folder or hub id.
        device: where it is to be loaded.

    Raises:
        ModelError: if a folder or a configuration in the cache is no such model.
        ResourceError: if the model is not on this machine and no table tells its size.
    """
    if Path(model).is_dir():
        check_folder(Path(model))
        stored = sum(path.stat().st_size for path in _weight_files(Path(model)))
        config = _json(Path(model) / CONFIG)
        return Weights(model, shape_of(model, config), _dtype(config, device), stored, 0)
    cached = _cached(model, CONFIG)
    row = _downloads().get(model, {})
    known = file_of(model)
    shape = (SHAPES | DERIVED).get(known[0].removesuffix(".yaml")) if known else None
    if cached is not None:
        config = _json(cached)
        shape = shape or shape_of(model, config)
        index = _cached(model, INDEX)
        size = _json(index).get("metadata", {}).get("total_size", 0) if index else 0
        stored = int(size or row.get("bytes", 0)) or shape.weights * _dtype(config, "cuda").itemsize
        held = sum(path.stat().st_size for path in _weight_files(cached.parent))
        return Weights(model, shape, _dtype(config, device), stored, max(stored - held, 0))
    if not row or shape is None:
        raise ResourceError(
            f"model {model!r} is not on this machine, and config/models/downloads.csv does not tell its "
            "size; give a folder, fetch it from its hub once, or add a row there"
        )
    stored = int(row["bytes"])
    held = stored if model == EMBEDDED and _fetched() else 0
    return Weights(model, shape, _dtype({"torch_dtype": row["dtype"]}, device), stored, stored - held)


def shape_of(model: str, config: Mapping[str, Any]) -> Shape:
    """Sizes of a model by its ``config.json``.

    Raises:
        ModelError: if a size is not there.
    """

    def get(*names: str, default: int | None = None) -> int:
        found = next((config[name] for name in names if config.get(name) is not None), default)
        if not isinstance(found, int):
            raise ModelError(f"{model}: its config.json has none of {', '.join(names)}; complete it")
        return found

    d_v, heads = get("hidden_size", "n_embd"), get("num_attention_heads", "n_head")
    gated = "intermediate_size" in config and config.get("model_type") not in UNGATED
    return Shape(
        name=model,
        layers=get("num_hidden_layers", "n_layer"),
        d_v=d_v,
        d_k=get("intermediate_size", "n_inner", default=4 * d_v),
        heads=heads,
        groups=get("num_key_value_heads", default=heads),
        d_head=get("head_dim", default=d_v // heads),
        vocabulary=get("vocab_size"),
        maps=3 if gated else 2,
        tied=bool(config.get("tie_word_embeddings", config.get("model_type") == "gpt2")),
        positions=get("n_positions") if config.get("model_type") == "gpt2" else 0,
    )


def _dtype(config: Mapping[str, Any], device: str) -> torch.dtype:
    if device == "cpu":
        return torch.float32
    found = getattr(torch, str(config.get("torch_dtype") or config.get("dtype") or "float32"), torch.float32)
    return found if isinstance(found, torch.dtype) else torch.float32


def _weight_files(folder: Path) -> list[Path]:
    safe = sorted(folder.glob("*.safetensors"))
    return safe or sorted(folder.glob("pytorch_model*.bin"))


def _cached(model: str, name: str) -> Path | None:
    """A file of a hub model that the hub's cache holds."""
    try:
        found = try_to_load_from_cache(model, name)
    except ValueError:  # no id
        return None
    return Path(found) if isinstance(found, str) else None


def _fetched() -> bool:
    pin = PINS[EMBEDDED]
    return (paths.cache_dir() / "resources" / f"{EMBEDDED}-{pin.sha256[:12]}").is_dir()


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is no JSON ({error}); restore it") from error
    return content if isinstance(content, dict) else {}


def _downloads() -> dict[str, dict[str, str]]:
    """Model -> row of ``config/models/downloads.csv``."""
    path = models_dir() / "downloads.csv"
    if not path.is_file():
        return {}
    with path.open(encoding="utf-8", newline="") as file:
        return {row["model"]: row for row in csv.DictReader(file)}
