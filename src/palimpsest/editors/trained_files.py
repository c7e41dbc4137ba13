"""Files of what editors learn beforehand: where they stand, for which weights they are, and their checksum.

Each is a safetensors file, of the project (``data/trained``) or in the cache, with a format, the fingerprint
of the model that it was trained for, and texts of its kind in the metadata.
"""

from collections.abc import Mapping
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import load, save
from torch import Tensor

from palimpsest import cache, paths
from palimpsest.errors import ResourceError
from palimpsest.files import replacing
from palimpsest.network.model import EditableModel, fingerprint

REMAKE = "make it anew with `palimpsest train`, or remove it"


def write(path: Path, tensors: Mapping[str, Tensor], head: Mapping[str, str]) -> None:
    """Write tensors with texts beside them and the checksum of both.

    Args:
        path: replaced at once, by a whole file or not at all.
        tensors: by name.
        head: texts, of which ``format`` and ``base`` are needed to read them again.

    Raises:
        ResourceError: if the file cannot be written.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(path) as temporary:
        temporary.write_bytes(save(plain, cache.vouched(plain, head)))


def opened(path: Path, form: str, what: str) -> tuple[Mapping[str, str], dict[str, Tensor]]:
    """Texts and tensors of a file.

    Args:
        path: the file.
        form: format that it must have.
        what: it holds, for messages.

    Raises:
        ResourceError: if the file is of another format, is damaged or cannot be read.
    """
    try:
        tensors = load(path.read_bytes())  # through Python's own reading, which a traced run notices
        with safe_open(path, "pt") as handle:
            head = handle.metadata() or {}
        cache.require_sum(tensors, head)
    except cache.UNREADABLE as error:
        raise ResourceError(f"{path}: no readable {what} ({error}); {REMAKE}") from error
    if head.get("format") != form or "base" not in head:
        raise ResourceError(f"{path}: holds {head.get('format', 'something')!r}, not {form!r}; {REMAKE}")
    return head, tensors


def carried_dir() -> Path:
    """Folder of the trained networks that come with the project."""
    return paths.root() / "data" / "trained"


def network_file(base: str, kind: str) -> Path:
    """Where training puts a network: in the cache, by the fingerprint of the model.

    Args:
        base: fingerprint of the unedited model.
        kind: of the training, such as ``mend``; the ending of the file's name.
    """
    return paths.cache_dir() / "trained" / f"{base[:16]}.{kind}.safetensors"


def trained_file(model: EditableModel, kind: str, form: str, what: str, file: str | None = None) -> Path:
    """The file of what was trained for a model's weights: the project's own, or in the cache.

    Args:
        model: unedited.
        kind: as `network_file`.
        form: as `opened`.
        what: as `opened`.
        file: in which to look instead.

    Raises:
        ResourceError: if there is none; the message names the command that trains it.
    """
    base = fingerprint(model)
    carried = sorted(carried_dir().glob(f"*.{kind}.safetensors"))
    places = [Path(file).expanduser()] if file else [*carried, network_file(base, kind)]
    for path in places:
        if path.exists() and opened(path, form, what)[0]["base"] == base:
            return path
    looked = " and ".join(str(path) for path in places)
    raise ResourceError(
        f"no network of {kind} was trained for these weights of {model.name} (looked for {looked}); train "
        f"one: palimpsest train {kind} {model.name} --data FILE. A model that was edited uses the network of "
        "the unedited one within one sequence only: pass the state of the edit before"
    )
