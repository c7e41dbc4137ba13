"""Second moments by shards: several processes or machines sum C₀ = E[k kᵀ] over parts of the text.

A shard is a range of whole forward passes, so that each reads the keys of an undivided run bit by bit; only
the order of the sums in float64 differs. A shard that was interrupted goes on from the sums it saved last.
The merged moments are the files that `palimpsest.memory.moments.key_statistics` looks for.
"""

import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import reduce
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from palimpsest import cache
from palimpsest.errors import ShardError
from palimpsest.files import as_json, locked, sweep, write_atomically
from palimpsest.memory.moments import SecondMoment, key_blocks
from palimpsest.memory.shard_files import (
    Keys,
    Shard,
    complete,
    damaged,
    manifests,
    require_room,
    require_same,
)
from palimpsest.network.model import EditableModel
from palimpsest.network.tokens import token_windows
from palimpsest.resources import statistics_texts

SAVE_EVERY = 300.0
"""Seconds of work that an interrupted shard repeats at most."""


def sum_shard(
    model: EditableModel,
    keys: Keys,
    shard: Shard,
    texts: Sequence[str] | None = None,
    folder: Path | None = None,
    save_every: float = SAVE_EVERY,
) -> Path:
    """Sum one shard, unless its file is there already; returns the path of its manifest.

    Args:
        model: the model that ``keys`` was made of.
        keys: which keys are summed.
        shard: which part of them.
        texts: those that ``keys`` was made of.
        folder: where the files go; default `Keys.folder`.
        save_every: seconds between saved sums.

    Raises:
        ShardError: if there are too few tokens for so many shards, or the folder holds shards of other keys
            or another number.
        ShapeError: if the texts hold fewer tokens than requested.
        ResourceError: if the folder cannot be written.
    """
    place = folder or keys.folder()
    manifest = place / f"{shard.stem}.json"
    with locked(place / shard.stem):
        require_room(place, keys, shard)
        if manifest.is_file() and not damaged(place, manifests(place)[manifest]):
            return manifest
        read = statistics_texts() if texts is None else texts
        windows = token_windows(model.tokenizer, read, keys.tokens, keys.window)
        partial = place / f"{shard.stem}.partial.safetensors"
        sums = _summed(model, keys, shard, windows, partial, save_every)
        files = {}
        for layer, moment in sums.items():
            path = place / shard.file(layer)
            sweep(path)
            with cache.sealed(path) as temporary:
                moment.save(temporary)
            files[str(layer)] = [path.name, cache.seal_of(path).read_text("utf-8")]
        count = next(iter(sums.values())).count
        content = {"keys": keys.as_dict(), "shard": shard.number, "of": shard.of, "tokens": count}
        write_atomically(manifest, as_json({**content, "files": files}))
        for path in (partial, cache.seal_of(partial)):
            with suppress(OSError):  # the shard is there; what is left is replaced by the next one
                path.unlink(missing_ok=True)
    return manifest


def _summed(
    model: EditableModel,
    keys: Keys,
    shard: Shard,
    windows: Sequence[Sequence[int]],
    partial: Path,
    save_every: float,
) -> dict[int, SecondMoment]:
    """Sums over a shard's forward passes, from where an interrupted run saved them."""
    passes = shard.within(-(-len(windows) // keys.batch_size))
    sums, done = _resumed(partial, keys, passes, model.device)
    own = windows[(passes.start + done) * keys.batch_size : passes.stop * keys.batch_size]
    saved = time.monotonic()
    for blocks in key_blocks(model, keys.layers, own, keys.batch_size):
        for layer, block in blocks.items():
            sums[layer] = _added(sums.get(layer), block, keys)
        done += 1
        if done < len(passes) and time.monotonic() - saved >= save_every:
            _save(partial, keys, passes, sums, done)
            saved = time.monotonic()
    return sums


def _added(total: SecondMoment | None, block: Float[Tensor, "d_k n"], keys: Keys) -> SecondMoment:
    """A sum with one more block of keys."""
    d_k = len(block)
    total = total or SecondMoment.empty(d_k, keys.texts, block.device)
    if keys.products == "float64":
        return total.add_keys(block)
    own = SecondMoment(torch.zeros(d_k, d_k, device=block.device, dtype=torch.float32)).add_keys(block)
    total.total += own.total
    total.count += own.count
    return total


def _save(partial: Path, keys: Keys, passes: range, sums: Mapping[int, SecondMoment], done: int) -> None:
    count = next(iter(sums.values())).count
    about = {"work": _work(keys, passes), "done": str(done), "count": str(count)}
    with cache.sealed(partial) as temporary:
        save_file(
            {str(layer): moment.total.cpu().contiguous() for layer, moment in sums.items()}, temporary, about
        )


def _resumed(
    partial: Path, keys: Keys, passes: range, device: torch.device
) -> tuple[dict[int, SecondMoment], int]:
    """Saved sums and how many passes they hold; nothing where there are none for this work."""
    if not partial.is_file():
        return {}, 0
    if not cache.stands(partial):
        print(f"palimpsest: {partial} is not as it was written; it is summed again", file=sys.stderr)
        return {}, 0
    with safe_open(partial, framework="pt") as handle:
        about = handle.metadata() or {}
    if about.get("work") != _work(keys, passes):
        return {}, 0
    totals = {int(layer): total.to(device) for layer, total in cache.read(partial).items()}
    count, done = int(about["count"]), int(about["done"])
    return {layer: SecondMoment(totals[layer], count, keys.texts) for layer in keys.layers}, done


def _work(keys: Keys, passes: range) -> str:
    return cache.digest([keys.as_dict(), passes.start, passes.stop])


def merge_shards(keys: Keys, folder: Path | None = None) -> dict[int, Path]:
    """Add all shards up and keep the moments where a page's run looks for them.

    Args:
        keys: which keys were summed.
        folder: where the shards are; default `Keys.folder`.

    Returns:
        Layer -> file of its second moment. A file that is there already is kept as it is.

    Raises:
        ShardError: if a shard is missing, was changed since it was written, or is of other keys.
        ResourceError: if the cache cannot be written.
    """
    place = folder or keys.folder()
    found = manifests(place)
    if not found:
        raise ShardError(f"{place} holds no shards; sum them with 'palimpsest stats --shard 1/n' and so on")
    for path, content in found.items():
        require_same(path, content, keys)
    shards = complete(place, found)
    made = {layer: keys.file(layer) for layer in keys.layers}
    with cache.missing(made.values()) as missing:
        for layer in (layer for layer, path in made.items() if path in missing):
            parts = (SecondMoment.load(place / content["files"][str(layer)][0]) for content in shards)
            merged = reduce(SecondMoment.merge, parts)
            if merged.count != keys.tokens:
                raise ShardError(f"the shards in {place} hold {merged.count} tokens, not {keys.tokens}")
            with cache.sealed(made[layer]) as temporary:
                replace(merged, source=_source(keys)).save(temporary)
    return made


def _source(keys: Keys) -> str:
    return keys.texts if keys.products == "float64" else f"{keys.texts}, products in {keys.products}"
