"""Content-addressed cache on disk: safetensors, parquet and JSON files named by a hash of all they come from.

The folder is ``$PALIMPSEST_CACHE`` or ``~/.cache/palimpsest``. Files are written under a temporary name and
moved, so a killed process leaves no partial file and two processes may write the same entry.
"""

import hashlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError

from palimpsest.errors import ResourceError
from palimpsest.files import replacing
from palimpsest.paths import cache_dir

if TYPE_CHECKING:  # hashing and paths are used where torch is not loaded
    import pandas as pd
    from torch import Tensor


@contextmanager
def empty() -> Iterator[Path]:
    """Use an empty temporary cache inside the block, to time what would otherwise be read from disk."""
    before = os.environ.get("PALIMPSEST_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["PALIMPSEST_CACHE"] = folder
        try:
            yield Path(folder)
        finally:
            if before is None:
                del os.environ["PALIMPSEST_CACHE"]
            else:
                os.environ["PALIMPSEST_CACHE"] = before


def digest(value: Any) -> str:
    """Sha256 of a JSON-able value, independent of the order of keys."""
    text = json.dumps(value, sort_keys=True, default=str, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def tensors(
    kind: str,
    key: Mapping[str, Any],
    compute: Callable[[], Mapping[str, "Tensor"]],
) -> dict[str, "Tensor"]:
    """Tensors that ``compute`` returns, read from disk if this key was computed before.

    Args:
        kind: folder inside the cache, for example ``statistics``.
        key: everything the result depends on: model fingerprint, parameters, data hashes.
        compute: called if the entry is missing.

    Raises:
        ResourceError: if the stored file is damaged or cannot be written; the message names it.
    """
    from safetensors.torch import save_file

    path = cache_dir() / kind / f"{digest(key)[:32]}.safetensors"
    if not path.exists():
        result = {name: t.detach().cpu().contiguous() for name, t in compute().items()}
        with replacing(path) as temporary:
            save_file(result, temporary, metadata={"key": json.dumps(key, sort_keys=True, default=str)})
    return read(path)


def texts(kind: str, key: Mapping[str, Any], compute: Callable[[], Sequence[str]]) -> tuple[str, ...]:
    """Texts that ``compute`` returns, read from disk if this key was computed before.

    Args:
        kind: folder inside the cache, for example ``contexts``.
        key: everything the texts depend on.
        compute: called if the entry is missing.

    Raises:
        ResourceError: if the stored file is damaged or cannot be written; the message names it.
    """
    path = cache_dir() / kind / f"{digest(key)[:32]}.json"
    if not path.exists():
        made = json.dumps(list(compute()), ensure_ascii=False)
        with replacing(path) as temporary:
            temporary.write_text(made, encoding="utf-8")
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
        rows: called if the entry is missing.

    Raises:
        ResourceError: if the stored file is damaged or cannot be written; the message names it.
    """
    import pandas as pd

    path = cache_dir() / kind / f"{digest(key)[:32]}.parquet"
    if not path.exists():
        made = pd.DataFrame(list(rows()), columns=list(columns))
        with replacing(path) as temporary:
            made.to_parquet(temporary, index=False)
    try:
        return pd.read_parquet(io.BytesIO(path.read_bytes()))
    except (OSError, ValueError) as error:
        raise ResourceError(
            f"cache file {path} is damaged ({error}); delete it and it will be computed again"
        ) from error
