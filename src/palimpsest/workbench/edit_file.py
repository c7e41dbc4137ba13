"""One edit as a safetensors file: its update matrices, the model it was made for, and its facts.

layer-<n>    Δ (d_v, d_k) of that layer, float64
metadata     format, base (fingerprint), model (name), requests (JSON), sha256 (of all else)
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from palimpsest import cache
from palimpsest.errors import ResourceError
from palimpsest.files import replacing
from palimpsest.network.apply import WeightDelta
from palimpsest.types import EditRequest

FORMAT = "1"


@dataclass(frozen=True)
class SavedEdit:
    """Contents of a file.

    Attributes:
        edit: for `palimpsest.network.apply.installed` and `palimpsest.network.apply.commit`; without its
            notes.
        requests: the facts that it writes.
        model: name of the model it was made for.
    """

    edit: WeightDelta
    requests: tuple[EditRequest, ...]
    model: str


def save_edit(path: str | Path, edit: WeightDelta, requests: Sequence[EditRequest], model: str) -> None:
    """Write an edit to a file atomically: after an error the file is unchanged.

    Args:
        path: usually ending in ``.safetensors``.
        edit: the weight updates.
        requests: the facts that it writes.
        model: name of the model it was made for, by which `palimpsest.network.model.load` finds it.

    Raises:
        ResourceError: if the file cannot be written.
    """
    tensors = {
        f"layer-{layer}": delta.detach().double().cpu().contiguous() for layer, delta in edit.deltas.items()
    }
    facts = json.dumps([asdict(request) for request in requests], ensure_ascii=False)
    about = {"format": FORMAT, "base": edit.base, "model": model, "requests": facts}
    with replacing(Path(path)) as temporary:
        save_file(tensors, temporary, metadata=cache.vouched(tensors, about))


def load_edit(path: str | Path) -> SavedEdit:
    """Read a file written by `save_edit`.

    Raises:
        ResourceError: if the file does not exist, or holds no edit of this format.
    """
    try:
        with safe_open(str(path), "pt") as file:
            about, names = file.metadata() or {}, file.keys()
            tensors = {name: file.get_tensor(name) for name in names}
        cache.require_sum(tensors, about)
        deltas = {int(name.removeprefix("layer-")): delta for name, delta in tensors.items()}
        if about.get("format") != FORMAT:
            raise ValueError(f"its format is {about.get('format')!r}, not {FORMAT!r}")
        requests = tuple(EditRequest(**request) for request in json.loads(about["requests"]))
        return SavedEdit(WeightDelta(deltas, about["base"]), requests, about["model"])
    except cache.UNREADABLE as error:
        raise ResourceError(
            f"{path} holds no edit that can be read ({error}); give a file that save_edit wrote, or a folder "
            "of `palimpsest edit`"
        ) from error
