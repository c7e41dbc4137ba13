"""Downloading a model of the hub into its cache beforehand, so that machines that load it need no network."""

import json
from collections.abc import Callable, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, snapshot_download, try_to_load_from_cache

from palimpsest.errors import ModelError, ResourceError
from palimpsest.network.sources import PATIENCE, Probe, check_id, check_name

SMALL = ("*.json", "*.txt", "*.model", "*.jinja")
"""Files beside the weights: configuration and tokenizer."""

SAFE, OLD = ("model*.safetensors",), ("pytorch_model*.bin",)
"""Files of weights, and those that hold them where a model has none of these."""

INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
ALONE = ("model.safetensors", "pytorch_model.bin")

Download = Callable[[str, list[str]], Any]


def held(name: str) -> int:
    """Bytes of a model's weights in the cache of the hub; 0 unless all, and a tokenizer, are there."""
    tokenizer = ("tokenizer.json", "vocab.json", "tokenizer.model")
    if _cached(name, "config.json") is None or not any(_cached(name, file) for file in tokenizer):
        return 0
    for index, alone in zip(INDEXES, ALONE, strict=True):
        listed = _cached(name, index)
        files = [alone]
        if listed is not None:
            files = sorted(set(json.loads(listed.read_bytes()).get("weight_map", {}).values()))
        found = [path for path in (_cached(name, file) for file in files) if path is not None]
        if found and len(found) == len(files):
            return sum(path.stat().st_size for path in found)
    return 0


def wanted(sizes: Mapping[str, int]) -> dict[str, int]:
    """What loading needs of a model's files, and their bytes.

    Args:
        sizes: name of every file of the model -> bytes; those in folders are of other programs.
    """
    weights = SAFE if any(fnmatch(name, SAFE[0]) for name in sizes) else OLD
    return {
        name: size
        for name, size in sizes.items()
        if "/" not in name and any(fnmatch(name, pattern) for pattern in (*SMALL, *weights))
    }


def fetch_model(
    name: str,
    say: Callable[[str], None] = print,
    probe: Probe | None = None,
    download: Download | None = None,
) -> None:
    """Download a hub model unless all of it is in the cache; an interrupted download goes on.

    Args:
        name: its id.
        say: told the size before anything large is fetched, or that all is there.
        probe: asks the hub for the sizes of its files; by default the hub itself.
        download: fetches files of a model; by default from the hub.

    Raises:
        UnknownNameError: if it is no id, or the hub has no such model.
        ModelError: if its conditions were not accepted, or it has no weights.
        ResourceError: if the hub cannot be reached, or the download breaks off.
    """
    check_name(name)
    if size := held(name):
        say(f"{name} is here already ({in_words(size)} of weights)")
        return
    files = wanted(check_id(name, probe or file_sizes))
    if not any(fnmatch(file, pattern) for file in files for pattern in (*SAFE, *OLD)):
        raise ModelError(f"model {name!r} has no weights that can be loaded (*.safetensors); choose another")
    missing = sum(size for file, size in files.items() if _cached(name, file) is None)
    say(f"fetching {name}: {in_words(missing)} of {in_words(sum(files.values()))}, {len(files)} files")
    try:
        (download or _download)(name, sorted(files))
    except Exception as error:  # the hub's client raises errors of several libraries
        raise ResourceError(
            f"model {name!r}: the download broke off ({type(error).__name__}: "
            f"{str(error).strip().partition(chr(10))[0]}); give the same command again, which goes on with it"
        ) from error


def in_words(size: int) -> str:
    """Bytes as a message says them."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 / 10 else f"{size / 2**20:.1f} MiB"


def file_sizes(name: str) -> dict[str, int]:
    """Bytes of every file of a model, by the hub; raises its errors, also for conditions not accepted."""
    info = HfApi().model_info(name, timeout=PATIENCE, files_metadata=True)
    if info.gated:
        HfApi().auth_check(name)
    return {file.rfilename: file.size or 0 for file in info.siblings or ()}


def _download(name: str, files: list[str]) -> None:
    snapshot_download(name, allow_patterns=files)


def _cached(name: str, file: str) -> Path | None:
    found = try_to_load_from_cache(name, file)
    return Path(found) if isinstance(found, str) else None
