"""Shards of second moments on disk: which keys they hold, their names, and whether they belong together.

A shard is one file for each layer, in the format of `palimpsest.memory.moments.SecondMoment`, and a manifest
in JSON, which is written last and vouches for them by their SHA-256.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import TypeAdapter, ValidationError

from palimpsest import cache
from palimpsest.errors import ShardError, UnknownNameError
from palimpsest.memory.moments import REVISION
from palimpsest.network.model import EditableModel, fingerprint
from palimpsest.paths import cache_dir
from palimpsest.resources import PINS

Products = Literal["float64", "float32"]
"""Dtype of the products K Kᵀ of one forward pass. ``float32`` is for cards that are slow in float64: each
product then has relative errors of about 1e-7, and the sum over passes is in float64 all the same."""

SUM_AGAIN = "delete it and sum its shard again"


@dataclass(frozen=True)
class Keys:
    """Which keys are summed, and how: shards belong together if they agree in all of it.

    Attributes:
        model: fingerprint of the weights.
        dtype: of the weights.
        layers: indices of the layers, ascending.
        tokens: number of tokens, from the start of the texts.
        window: tokens per sequence.
        batch_size: sequences per forward pass.
        texts: origin of the texts.
        products: see `Products`.
    """

    model: str
    dtype: str
    layers: tuple[int, ...]
    tokens: int
    window: int
    batch_size: int
    texts: str
    products: Products

    @classmethod
    def of(
        cls,
        model: EditableModel,
        layers: Sequence[int],
        tokens: int = 100_000,
        texts: Sequence[str] | None = None,
        window: int = 256,
        batch_size: int = 16,
        products: Products = "float64",
    ) -> "Keys":
        """Keys of a model as it is now; arguments as of `palimpsest.memory.moments.key_statistics`.

        Raises:
            ShardError: if no layer is given.
            SiteError: if the model does not have a layer.
        """
        chosen = tuple(sorted({*layers}))
        if not chosen:
            raise ShardError(f"no layer was given; {model.name} has layers 0 to {model.n_layers - 1}")
        for layer in chosen:
            model.layer(layer)
        sample = f"wikipedia-sample {PINS['wikipedia-sample'].sha256[:12]}, even articles"
        origin = sample if texts is None else f"own texts {cache.digest(list(texts))[:12]}"
        dtype = str(next(model.net.parameters()).dtype)
        return cls(fingerprint(model), dtype, chosen, tokens, window, batch_size, origin, products)

    def file(self, layer: int) -> Path:
        """Where a page's run looks for the second moment of a layer."""
        own = ("model", "dtype", "tokens", "window", "texts")
        key = {"revision": REVISION, "layer": layer} | {name: getattr(self, name) for name in own}
        name = cache.digest(key)[:32]
        return cache_dir() / "statistics" / f"{name}.safetensors"

    def folder(self) -> Path:
        """Where shards are kept by default: a folder of the cache for these keys alone."""
        return cache_dir() / "statistics" / f"shards-{cache.digest(self.as_dict())[:16]}"

    def as_dict(self) -> dict[str, Any]:
        """What a shard records of its keys."""
        return {**vars(self), "layers": list(self.layers), "revision": REVISION}


@dataclass(frozen=True)
class Shard:
    """One of the parts of the work.

    Attributes:
        number: from 1.
        of: number of shards.

    Raises:
        ShardError: if there is no such shard.
    """

    number: int
    of: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.of:
            raise ShardError(f"shard {self}: the first number goes from 1 to the second, as in 2/8")

    @classmethod
    def parsed(cls, text: str) -> "Shard":
        """The shard written as ``number/of``.

        Raises:
            ShardError: if the text is not of that form.
        """
        number, _, of = text.partition("/")
        if not (number.isdecimal() and of.isdecimal()):
            raise ShardError(f"shard {text!r}: write number/of, for example 2/8")
        return cls(int(number), int(of))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    @property
    def stem(self) -> str:
        """How the names of its files begin."""
        return f"shard-{self.number:04d}-of-{self.of:04d}"

    def file(self, layer: int | str) -> str:
        """Name of the file of a layer."""
        return f"{self.stem}.layer-{int(layer):03d}.safetensors"

    def within(self, batches: int) -> range:
        """Its forward passes among all of them.

        Raises:
            ShardError: if there are fewer passes than shards.
        """
        if batches < self.of:
            raise ShardError(
                f"{self.of} shards were asked for, but the tokens make {batches} forward passes only; ask "
                f"for at most {batches} shards"
            )
        return range((self.number - 1) * batches // self.of, self.number * batches // self.of)


@dataclass(frozen=True)
class Manifest:
    """What the manifest of a shard says.

    Attributes:
        keys: `Keys.as_dict`.
        shard: its number, from 1.
        of: number of shards.
        tokens: number of keys in its sums.
        files: layer -> name of its file and that file's SHA-256.
    """

    keys: dict[str, Any]
    shard: int
    of: int
    tokens: int
    files: dict[str, tuple[str, str]]


_MANIFEST = TypeAdapter(Manifest)


def manifests(folder: Path) -> dict[Path, dict[str, Any]]:
    """What the manifests in a folder say, in the order of their names.

    Raises:
        ShardError: if one cannot be read.
    """
    found = {}
    for path in sorted(folder.glob("shard-*-of-*.json")):
        try:
            found[path] = asdict(_MANIFEST.validate_json(path.read_bytes()))
            shard = Shard(found[path]["shard"], found[path]["of"])
            strange = [name for layer, (name, _) in found[path]["files"].items() if name != shard.file(layer)]
            if path.stem != shard.stem or strange:
                raise ValueError(f"it is of {shard.stem} and names {', '.join(strange) or 'its files'}")
        except ValidationError as error:
            fault = error.errors()[0]
            reason = f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}".removeprefix(": ")
            raise ShardError(f"{path} cannot be read ({reason}); {SUM_AGAIN}") from error
        except (OSError, ValueError) as error:
            raise ShardError(f"{path} cannot be read ({error}); {SUM_AGAIN}") from error
    return found


def require_same(path: Path, content: Mapping[str, Any], keys: Keys) -> None:
    """Refuse a shard of other keys, or one that lacks a layer.

    Raises:
        ShardError: if it is; the message says in what they differ.
    """
    there, wanted = content["keys"], keys.as_dict()
    differing = [
        f"{name} {there.get(name)}, not {value}" for name, value in wanted.items() if there.get(name) != value
    ]
    if differing:
        raise ShardError(
            f"{path} is of other keys: {'; '.join(differing)}. Give each work a folder of its own"
        )
    lacking = [str(layer) for layer in keys.layers if str(layer) not in content["files"]]
    if lacking:
        raise ShardError(f"{path} names no file of layer {', '.join(lacking)}; {SUM_AGAIN}")


def require_room(folder: Path, keys: Keys, shard: Shard) -> None:
    """Refuse a folder whose shards do not go together with this one.

    Raises:
        ShardError: if they are of other keys, or of another number.
    """
    for path, content in manifests(folder).items():
        require_same(path, content, keys)
        if content["of"] != shard.of:
            raise ShardError(
                f"{path} is one of {content['of']} shards, and shard {shard} was asked for; go on with "
                f"{content['of']}, or delete them or give another folder"
            )


def complete(folder: Path, found: Mapping[Path, Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """All shards in their order.

    Raises:
        ShardError: if one is missing or damaged, or they are of different divisions.
    """
    counts = sorted({content["of"] for content in found.values()})
    if len(counts) > 1:
        raise ShardError(f"{folder} holds shards of {' and of '.join(map(str, counts))}; keep those of one")
    by_number = {content["shard"]: content for content in found.values()}
    missing = [str(Shard(n, counts[0])) for n in range(1, counts[0] + 1) if n not in by_number]
    if missing:
        raise ShardError(f"{folder} lacks shard {', '.join(missing)}; sum it with --shard {missing[0]}")
    faults = [name for content in by_number.values() for name in damaged(folder, content)]
    if faults:
        raise ShardError(
            f"{', '.join(faults)} in {folder}: missing or not as written (its SHA-256 differs); sum that "
            "shard again, which replaces it"
        )
    return [by_number[number] for number in sorted(by_number)]


def damaged(folder: Path, content: Mapping[str, Any]) -> list[str]:
    """Files of a manifest that are missing or not as they were written."""
    files = content["files"].values()
    return [name for name, digest in files if not cache.stands(folder / name, digest)]


def known_products(name: str) -> Products:
    """The `Products` of a name.

    Raises:
        UnknownNameError: if there are none of that name.
    """
    for known in get_args(Products):
        if name == known:
            return known
    raise UnknownNameError("dtype of products", name, list(get_args(Products)))


def layers_of(text: str) -> list[int]:
    """Layers written as numbers and ranges, for example ``3,5-8``.

    Raises:
        ShardError: if the text is not of that form.
    """
    layers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if not (first.isdecimal() and (last if dash else first).isdecimal()):
            raise ShardError(f"layers {text!r}: write numbers and ranges, for example 3,5-8")
        layers += range(int(first), int(last or first) + 1)
    return layers
