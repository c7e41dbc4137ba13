"""Content-addressed cache on disk: safetensors, parquet and JSON files named by a hash of all they come from.

The folder is ``$PALIMPSEST_CACHE`` or ``~/.cache/palimpsest``. Files are written under a temporary name and
moved, so a killed process leaves no partial file; of two processes that need the same entry the second waits
for the first. Beside each file stands its SHA-256: one that was changed since is computed again, with a line
saying so. A file is read once for that in a process, and again only if its size, time or place changed.
"""

import hashlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from safetensors import SafetensorError

from palimpsest import files
from palimpsest.errors import BusyError, ResourceError
from palimpsest.files import file_sha256, lock_file, locked, replacing, sweep, write_atomically
from palimpsest.paths import cache_dir

if TYPE_CHECKING:  # hashing and paths are used where torch is not loaded
    import pandas as pd
    from torch import Tensor

T = TypeVar("T")
SUM = "sha256"
"""Name of the checksum among the texts of a file of tensors; see `vouched`."""
UNREADABLE = (*files.UNREADABLE, SafetensorError, ArithmeticError, RuntimeError, MemoryError)
"""What reading a file of tensors raises that was damaged or is another; `RuntimeError` is also of torch."""
_KNOWN: dict[Path, tuple[int, ...]] = {}
"""Files that this process found as they were written, with their stamp at that time."""


@contextmanager
def empty() -> Iterator[Path]:
    """Use an empty temporary cache inside the block, to time what would otherwise be read from disk."""
    before = os.environ.get("PALIMPSEST_CACHE")
    with files.scratch("cache") as folder:
        os.environ["PALIMPSEST_CACHE"] = str(folder)
        try:
            yield folder
        finally:
            if before is None:
                del os.environ["PALIMPSEST_CACHE"]
            else:
                os.environ["PALIMPSEST_CACHE"] = before


def digest(value: Any) -> str:
    """Sha256 of a JSON-able value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def tensor_sha256(tensor: "Tensor") -> str:
    """Sha256 of a tensor's dtype, shape and bits, independent of its device."""
    import torch

    flat = tensor.detach().cpu().contiguous().reshape(-1)
    flat = flat.as_strided(flat.shape, (1,))  # one number may have another stride
    total = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
    total.update(flat.view(torch.uint8).numpy().data)
    return total.hexdigest()


def vouched(tensors: Mapping[str, "Tensor"], about: Mapping[str, str]) -> dict[str, str]:
    """Texts that are to stand beside tensors in one file, with the checksum of both under ``SUM``.

    safetensors writes texts in any order, so that the checksum is not one of the file's bytes.
    """
    return {**about, SUM: _sum(tensors, about)}


def require_sum(tensors: Mapping[str, "Tensor"], about: Mapping[str, str]) -> None:
    """Check what was read of a file against its checksum from `vouched`, if it has one.

    Raises:
        ResourceError: if they differ; the message names no file.
    """
    if about.get(SUM) not in (None, _sum(tensors, about)):
        raise ResourceError("it was changed since it was written: its SHA-256 differs")


def _sum(tensors: Mapping[str, "Tensor"], about: Mapping[str, str]) -> str:
    texts = {name: text for name, text in about.items() if name != SUM}
    return digest([{name: tensor_sha256(tensor) for name, tensor in tensors.items()}, texts])


def stands(path: Path, digest: str = "") -> bool:
    """Whether a file of the cache is there as it was written.

    Args:
        path: the file.
        digest: its SHA-256; by default the one beside it. A file without one, of an earlier version, gets it.
    """
    if not path.is_file():
        return False
    stamp, seal = _stamp(path), seal_of(path)
    if _KNOWN.get(path) != stamp:
        found = file_sha256(path)
        if not digest and not seal.is_file():
            with suppress(ResourceError):  # a cache that may only be read
                write_atomically(seal, found.encode())
        elif found != (digest or seal.read_text("utf-8", errors="replace")).strip():
            return False
        _KNOWN[path] = stamp
    return True


def _stands_alone(path: Path) -> bool:
    """As `stands`; a lock that a killed process left beside a file that stands is removed."""
    found = stands(path)
    if found and lock_file(path).exists():
        with suppress(BusyError, ResourceError), locked(path, wait=0):
            pass
    return found


def _stamp(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def seal_of(path: Path) -> Path:
    """File with the SHA-256 of a file of the cache."""
    return path.with_name(f"{path.name}.sha256")


@contextmanager
def missing(paths: Iterable[Path]) -> Iterator[list[Path]]:
    """Those of some files of the cache that are to be made, because they do not stand; their locks are held.

    Another process that makes one of them is waited for. One line on standard error names each that was
    changed.

    Raises:
        ResourceError: if nothing can be written there.
    """
    with ExitStack() as held:
        waited = sorted(path for path in paths if not _stands_alone(path))
        for path in waited:
            held.enter_context(locked(path))
        made = [path for path in waited if not stands(path)]
        for path in made:
            for place in (path, seal_of(path)):
                sweep(place)
            if path.exists():
                line = f"palimpsest: cache file {path} is not as it was written (its SHA-256 differs)"
                print(f"{line}; it is computed again", file=sys.stderr, flush=True)
        yield made


@contextmanager
def sealed(path: Path) -> Iterator[Path]:
    """Temporary path that becomes a file of the cache, with its checksum, if the block ends without an error.

    Raises:
        ResourceError: as `palimpsest.files.replacing`.
    """
    with replacing(path) as temporary:
        yield temporary
        write_atomically(seal_of(path), file_sha256(temporary).encode())
    _KNOWN[path] = _stamp(path)


def keep(path: Path, compute: Callable[[], T], write: Callable[[T, Path], object]) -> None:
    """Make a file of the cache unless it stands.

    Args:
        path: the file.
        compute: makes the content.
        write: writes it to a temporary path.

    Raises:
        ResourceError: if it cannot be written.
    """
    with missing([path]) as made:
        if made:
            content = compute()
            with sealed(path) as temporary:
                write(content, temporary)


def tensors(
    kind: str,
    key: Mapping[str, Any],
    compute: Callable[[], Mapping[str, "Tensor"]],
) -> dict[str, "Tensor"]:
    """Tensors that ``compute`` returns, read from disk if this key was computed before.

    Args:
        kind: folder inside the cache, for example ``statistics``.
        key: everything the result depends on: model fingerprint, parameters, data hashes.
        compute: called if the entry is missing or was changed.

    Raises:
        ResourceError: if the stored file cannot be read or written; the message names it.
    """
    from safetensors.torch import save_file

    path = cache_dir() / kind / f"{digest(key)[:32]}.safetensors"
    about = {"key": json.dumps(key, sort_keys=True, default=str)}

    def write(made: Mapping[str, "Tensor"], temporary: Path) -> None:
        save_file({name: t.detach().cpu().contiguous() for name, t in made.items()}, temporary, about)

    keep(path, compute, write)
    return read(path)


def texts(kind: str, key: Mapping[str, Any], compute: Callable[[], Sequence[str]]) -> tuple[str, ...]:
    """Texts that ``compute`` returns, read from disk if this key was computed before.

    Args:
        kind: folder inside the cache, for example ``contexts``.
        key: everything the texts depend on.
        compute: called if the entry is missing or was changed.

    Raises:
        ResourceError: if the stored file cannot be read or written; the message names it.
    """
    path = cache_dir() / kind / f"{digest(key)[:32]}.json"
    keep(
        path,
        lambda: json.dumps(list(compute()), ensure_ascii=False),
        lambda made, temporary: temporary.write_text(made, encoding="utf-8"),
    )
    try:
        return tuple(map(str, json.loads(path.read_text(encoding="utf-8"))))
    except (OSError, ValueError, TypeError) as error:
        raise ResourceError(
            f"cache file {path} is damaged ({error}); delete it and it will be computed again"
        ) from error


def read(path: Path) -> dict[str, "Tensor"]:
    """Tensors of one safetensors file.

    Raises:
        ResourceError: if it is damaged.
    """
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise ResourceError(
            f"cache file {path} is damaged ({error}); delete it and it will be computed again"
        ) from error


def table(
    kind: str,
    key: Mapping[str, Any],
    columns: Sequence[str],
    rows: Callable[[], Iterable[Sequence[Any]]],
) -> "pd.DataFrame":
    """Table whose rows ``rows`` returns, read from disk if this key was computed before.

    Args:
        kind: folder inside the cache, for example ``trajectories``.
        key: everything the result depends on: model fingerprint, settings, hashes of data.
        columns: names, in the order of a row.
        rows: called if the entry is missing or was changed.

    Raises:
        ResourceError: if the stored file cannot be read or written; the message names it.
    """
    import pandas as pd

    path = cache_dir() / kind / f"{digest(key)[:32]}.parquet"
    keep(
        path,
        lambda: pd.DataFrame(list(rows()), columns=list(columns)),
        lambda made, temporary: made.to_parquet(temporary, index=False),
    )
    try:
        return pd.read_parquet(io.BytesIO(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise ResourceError(
            f"cache file {path} is damaged ({error}); delete it and it will be computed again"
        ) from error
