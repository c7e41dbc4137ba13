"""Second moment C0 = E[k kᵀ] of a layer's keys over text, which describes what the model already stores.

It is accumulated in float64 over all real tokens, for several layers in one truncated forward pass. Special
tokens that the tokenizer adds at the start of a text are counted, as in the papers; padding never is.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm import tqdm

from palimpsest import cache
from palimpsest.errors import NonFiniteError, ResourceError, ShapeError
from palimpsest.files import replacing
from palimpsest.network.activations import capture
from palimpsest.network.cores import side_by_side
from palimpsest.network.model import EditableModel, Site, fingerprint
from palimpsest.network.tokens import pad, token_windows
from palimpsest.paths import cache_dir
from palimpsest.resources import PINS, statistics_texts

REVISION = 1
"""Part of the cache key; raise it when the same tokens give other moments than before."""

WINDOWS = 4
"""Windows that one core reads together."""

ROWS = 384
"""Rows of a moment that are summed at once."""


@dataclass
class SecondMoment:
    """Streaming sum of k kᵀ in float64.

    Attributes:
        total: Σ k kᵀ (d_k, d_k), float64.
        count: number of keys summed.
        source: origin of the keys; saved with the sum.
    """

    total: Float[Tensor, "d_k d_k"]
    count: int = 0
    source: str = ""

    @classmethod
    def empty(cls, d_k: int, source: str = "", device: torch.device | str = "cpu") -> "SecondMoment":
        """Sum over no keys."""
        return cls(torch.zeros(d_k, d_k, dtype=torch.float64, device=device), 0, source)

    @property
    def value(self) -> Float[Tensor, "d_k d_k"]:
        """Mean second moment, Σ k kᵀ / count.

        Raises:
            ShapeError: if no key was counted.
        """
        if self.count == 0:
            raise ShapeError("the second moment of no keys is undefined; update it with at least one token")
        return self.total / self.count

    def add_keys(self, keys: Float[Tensor, "d_k n"]) -> "SecondMoment":
        """Add n keys in place; returns the same object.

        Raises:
            NonFiniteError: if a key holds NaN or infinity; nothing is added.
        """
        _require_finite([keys])
        for start in self.blocks():
            self.add_rows(keys, start)
        self.count += keys.shape[1]
        return self

    def blocks(self) -> list[int]:
        """First row of each block of rows that `add_rows` sums; the one with the most work comes first."""
        return list(range(0, len(self.total), ROWS))[::-1]

    def add_rows(self, keys: Float[Tensor, "d_k n"], start: int) -> None:
        """Add n keys to one block of rows up to the diagonal, and to its mirror image; the count stays.

        Blocks touch different parts of the sum, so that several may be summed at the same time.
        """
        stop = start + ROWS
        keys = keys[:stop].to(self.total)
        part = keys[start:] @ keys.T  # (rows, columns up to the diagonal)
        self.total[start:stop, :stop] += part
        self.total[:start, start:stop] += part[:, :start].T

    def merge(self, other: "SecondMoment") -> "SecondMoment":
        """Sum over the keys of both, as if they had been streamed into one.

        Raises:
            ShapeError: if the widths differ.
        """
        if self.total.shape != other.total.shape:
            raise ShapeError(
                f"widths differ: {len(self.total)} and {len(other.total)}; merge equal sites only"
            )
        source = " + ".join(dict.fromkeys(filter(None, (self.source, other.source))))
        return SecondMoment(self.total + other.total, self.count + other.count, source)

    def save(self, path: Path) -> None:
        """Write as safetensors with count and source, atomically.

        Raises:
            ResourceError: if the file cannot be written; an earlier one is unchanged.
        """
        with replacing(Path(path)) as temporary:
            about = {"count": str(self.count), "source": self.source}
            save_file({"total": self.total.cpu().contiguous()}, temporary, metadata=about)

    @classmethod
    def load(cls, path: Path) -> "SecondMoment":
        """Read a file from `save`.

        Raises:
            ResourceError: if the file is missing, damaged or of another kind.
        """
        total = cache.read(Path(path)).get("total")
        with safe_open(path, framework="pt") as handle:
            about = handle.metadata() or {}
        if total is None or "count" not in about:
            raise ResourceError(f"{path} holds no second moment; collect it with key_statistics")
        return cls(total, int(about["count"]), about.get("source", ""))


def key_statistics(
    model: EditableModel,
    layers: Sequence[int],
    tokens: int = 100_000,
    texts: Sequence[str] | None = None,
    window: int = 256,
    batch_size: int = 16,
) -> dict[int, SecondMoment]:
    """Second moment of the keys of several layers over text, read from disk if computed before.

    Args:
        model: the model as it is now; editing it changes the key of the cached result.
        layers: indices of the layers.
        tokens: number of tokens to read, from the start of the texts.
        texts: default the embedded Wikipedia sample, every second article (the others stay held out).
        window: tokens per sequence; each text is cut into such windows.
        batch_size: sequences per forward pass.

    Returns:
        One SecondMoment per layer, on the model's device.

    Raises:
        ShapeError: if the texts hold fewer tokens than requested.
        ResourceError: if a stored file is damaged or cannot be written.
    """
    embedded = f"wikipedia-sample {PINS['wikipedia-sample'].sha256[:12]}, even articles"
    source = embedded if texts is None else f"own texts {cache.digest(list(texts))[:12]}"
    key = {
        "revision": REVISION,
        "model": fingerprint(model),
        "dtype": str(next(model.net.parameters()).dtype),
        "tokens": tokens,
        "window": window,
        "texts": source,
    }
    paths = {
        layer: cache_dir() / "statistics" / f"{cache.digest(key | {'layer': layer})[:32]}.safetensors"
        for layer in layers
    }
    with cache.missing(paths.values()) as missing:
        fresh = [layer for layer, path in paths.items() if path in missing]
        if fresh:
            read = texts if texts is not None else statistics_texts()
            windows = token_windows(model.tokenizer, read, tokens, window)
            for layer, moment in collect(model, fresh, windows, batch_size, source).items():
                with cache.sealed(paths[layer]) as temporary:
                    moment.save(temporary)
    return {layer: _moved(SecondMoment.load(path), model.device) for layer, path in paths.items()}


def collect(
    model: EditableModel,
    layers: Sequence[int],
    windows: Sequence[Sequence[int]],
    batch_size: int = 16,
    source: str = "",
) -> dict[int, SecondMoment]:
    """Second moments over windows of token ids; a forward pass stops after the highest of the layers."""
    moments: dict[int, SecondMoment] = {}
    for blocks in _blocks(model, layers, windows, batch_size):
        for layer, keys in blocks.items():
            if layer not in moments:
                moments[layer] = SecondMoment.empty(len(keys), source, model.device)
        _require_finite(blocks.values())
        # One task for each layer would leave cores idle: layers are few.
        tasks = [(layer, start) for start in moments[layers[0]].blocks() for layer in layers]
        side_by_side(
            lambda task: moments[task[0]].add_rows(blocks[task[0]], task[1]),  # noqa: B023 -- used at once
            tasks,
            model.device,
        )
        for layer, keys in blocks.items():
            moments[layer].count += keys.shape[1]
    return moments


def _require_finite(keys: Iterable[Float[Tensor, "d_k n"]]) -> None:
    if not all(torch.isfinite(some).all() for some in keys):
        raise NonFiniteError("keys hold NaN or infinity; nothing was added to the second moment")


def text_keys(
    model: EditableModel,
    layer: int,
    tokens: int = 100_000,
    texts: Sequence[str] | None = None,
    window: int = 256,
    batch_size: int = 16,
) -> Iterator[Float[Tensor, "d_k b"]]:
    """Keys that `key_statistics` sums, one block (d_k, b) per forward pass, in the order of the texts.

    Nothing is cached. Texts are cut into windows when the first block is requested.

    Args:
        model: the model as it is now.
        layer: layer whose keys are read.
        tokens: number of keys, from the start of the texts.
        texts: default as in `key_statistics`.
        window: tokens per sequence.
        batch_size: sequences per forward pass.

    Raises:
        ShapeError: if the texts hold fewer tokens than requested.
    """
    read = texts if texts is not None else statistics_texts()
    windows = token_windows(model.tokenizer, read, tokens, window)
    for blocks in _blocks(model, [layer], windows, batch_size):
        yield blocks[layer]


def _blocks(
    model: EditableModel, layers: Sequence[int], windows: Sequence[Sequence[int]], batch_size: int
) -> Iterator[dict[int, Tensor]]:
    """Keys (d_k, b) of each layer at the real tokens, one batch of windows at a time."""
    sites = [Site(layer) for layer in layers]
    starts = range(0, len(windows), batch_size)
    for start in tqdm(starts, desc=f"key statistics, {len(layers)} layers", unit="batch"):
        some = windows[start : start + batch_size]

        def read(first: int, some: Sequence[Sequence[int]] = some) -> dict[int, Tensor]:
            batch = pad(model.tokenizer, some[first : first + WINDOWS]).to(model.device)
            states = capture(model, batch, sites)
            # (windows, t, d_k), of which the mask keeps the real tokens
            return {site.layer: states[site][batch.mask] for site in states}

        parts = side_by_side(read, range(0, len(some), WINDOWS), model.device)
        # (b, d_k) -> (d_k, b)
        yield {layer: torch.cat([part[layer] for part in parts]).T for layer in layers}


key_blocks = _blocks
"""The blocks of keys that `collect` sums, for sums that are kept elsewhere."""


def _moved(moment: SecondMoment, device: torch.device) -> SecondMoment:
    return SecondMoment(moment.total.to(device), moment.count, moment.source)
