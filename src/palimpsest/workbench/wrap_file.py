"""One edit that changes no weight as a safetensors file: a memory at a layer, or texts chosen for prompts.

tensors      a memory: keys, radii and contents by their names; texts: vectors, and that of a probe text
also         of texts that are read with an adapter: its down and up, and the weights of the scope
metadata     format, kind, base (fingerprint), model (name), sha256 (of all else)
about        in the metadata, as JSON: the rest of the edit, without notes

Such an edit is no part of a folder that transformers loads: it acts while it is installed.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from palimpsest import cache
from palimpsest.errors import ResourceError
from palimpsest.files import replacing
from palimpsest.network.adapter import adapter_of
from palimpsest.network.chosen import ChosenContext, Embed, cosines
from palimpsest.network.codebook import Codebook
from palimpsest.network.read_context import ReadContext, ScopeHead
from palimpsest.network.wraps import ACTS, LayerWrap, Wrap

FORMAT = "1"
MEMORY, TEXTS, READ = "memory", "texts", "read texts"
PROBE = "The capital of France is Paris, and 7 œuvres were sold there in 1987."
"""Text whose embedding tells whether an embedder is the one that texts were chosen with."""
ALIKE = 0.999
"""Least cosine of two embeddings of ``PROBE`` by one embedder, on whatever machine."""


def save_wrap(path: str | Path, edit: Wrap, model: str) -> None:
    """Write an edit to a file atomically: after an error the file is unchanged.

    Args:
        path: usually ending in ``.safetensors``.
        edit: a `LayerWrap` or `ChosenContext`. The embedder of the latter is not written.
        model: name of the model it was made for.

    Raises:
        ResourceError: if the file cannot be written, or the edit is of another kind.
    """
    about: dict[str, Any]
    if isinstance(edit, LayerWrap):
        acts = {cls: name for name, cls in ACTS.items()}
        kind, tensors = MEMORY, edit.tensors()
        about = {"layer": edit.layer, "at": edit.at, "act": acts[type(edit.act)], "labels": edit.book.labels}
    elif isinstance(edit, ChosenContext):
        kind, tensors = TEXTS, {"vectors": edit.vectors, "probe": edit.embed([PROBE])}
        about = {"texts": edit.texts, "threshold": edit.threshold}
        if isinstance(edit, ReadContext):
            kind, tensors = READ, tensors | {"scope": edit.head.weights, **edit.adapter.state_dict()}
            about |= {"bias": edit.head.bias, "layers": edit.adapter.layers}
    else:
        raise ResourceError(
            f"an edit of kind {type(edit).__name__} has no file format; save a LayerWrap or a ChosenContext"
        )
    told = {"format": FORMAT, "kind": kind, "base": edit.base, "model": model}
    told["about"] = json.dumps(about, ensure_ascii=False)
    plain = {name: part.detach().cpu().contiguous() for name, part in tensors.items()}
    with replacing(Path(path)) as temporary:
        save_file(plain, temporary, metadata=cache.vouched(plain, told))


def load_wrap(path: str | Path, embed: Embed | None = None) -> Wrap:
    """Read a file written by `save_wrap`; the edit has no notes.

    Args:
        path: the file.
        embed: for texts chosen for prompts, the embedder that they were made with.

    Raises:
        ResourceError: if the file does not exist or holds no such edit, or if it needs an embedder and none,
            or another one, is given.
    """
    try:
        with safe_open(str(path), "pt") as file:
            told, names = file.metadata() or {}, file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
        cache.require_sum(tensors, told)
        made = _made(told, tensors, embed)
    except cache.UNREADABLE as error:
        raise ResourceError(
            f"{path} holds no edit without weights that can be read ({error}); give a file that save_wrap "
            "wrote"
        ) from error
    if made is None:
        raise ResourceError(
            f"{path} holds texts that are chosen by embeddings, and no embedder was given; pass embed=, the "
            "one that they were made with"
        )
    if isinstance(made, ChosenContext) and "probe" in tensors:  # files of earlier versions have none
        _require_embedder(path, tensors["probe"], made.embed([PROBE]))
    return made


def _made(told: Mapping[str, str], tensors: dict[str, Tensor], embed: Embed | None) -> Wrap | None:
    """The edit of what was read; None if it needs an embedder and none is given."""
    if told.get("format") != FORMAT:
        raise ValueError(f"its format is {told.get('format')!r}, not {FORMAT!r}")
    about, base, kind = json.loads(told["about"]), told["base"], told["kind"]
    if kind == MEMORY:
        book = Codebook(tensors.pop("keys"), tensors.pop("radii"), tuple(about["labels"]))
        return LayerWrap(about["layer"], book, ACTS[about["act"]](**tensors), about["at"], base=base)
    if kind not in (TEXTS, READ):
        raise ValueError(f"its kind is {kind!r}, none of {MEMORY!r}, {TEXTS!r} and {READ!r}")
    if embed is None:
        return None
    texts, threshold = tuple(about["texts"]), float(about["threshold"])
    if kind == TEXTS:
        return ChosenContext(texts, tensors["vectors"], threshold, embed, base=base)
    adapter = adapter_of(tuple(about["layers"]), tensors["down"], tensors["up"])
    head = ScopeHead(tensors["scope"], float(about["bias"]))
    return ReadContext(texts, tensors["vectors"], threshold, embed, base=base, head=head, adapter=adapter)


def _require_embedder(path: str | Path, probe: Tensor, own: Tensor) -> None:
    """Check that an embedder gives the probe text the embedding that it had when the texts were saved.

    Raises:
        ResourceError: otherwise.
    """
    differs = ""
    if probe.ndim != 2 or len(probe) != 1:
        raise ResourceError(f"{path} holds no embedding of a probe text; give a file that save_wrap wrote")
    if own.shape != probe.shape:
        differs = f"their embeddings have {probe[0].numel()} numbers, and it makes {own.shape[1]}"
    elif not (near := float(cosines(own, probe))) > ALIKE:
        differs = f"its embedding of a probe text has a cosine of {near:.3f} with theirs, not of 1"
    if differs:
        raise ResourceError(
            f"{path} holds texts that were chosen with another embedder than the given one: {differs}; pass "
            "embed=, the one that they were made with"
        )
