"""What SERAC learns beforehand: which prompts a fact answers, and how the network reads it before them."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from palimpsest import cache
from palimpsest.editors.trained_files import REMAKE, opened, trained_file, write
from palimpsest.errors import PalimpsestError, ProfileError, ResourceError
from palimpsest.network.adapter import Adapter, adapter_of
from palimpsest.network.model import EditableModel
from palimpsest.network.read_context import ScopeHead

FORMAT, WHAT = "palimpsest reader 1", "scope classifier and adapter"
KIND = "serac"
"""Name of its file and of its training."""


@dataclass(frozen=True)
class Scope:
    """A threshold with the pairs that it was calibrated on.

    Attributes:
        threshold: least cosine, or probability of a classifier, of a prompt in scope, in (0, 1].
        accuracy: mean of the shares of pairs in and out of scope that it tells right, in [0, 1].
        inside: number of pairs in scope, at least 1.
        outside: number of pairs out of scope, at least 1.

    Raises:
        ProfileError: if a number is out of range; so a threshold alone is no scope.
    """

    threshold: float
    accuracy: float
    inside: int
    outside: int

    def __post_init__(self) -> None:
        if not (0 < self.threshold <= 1 and 0 <= self.accuracy <= 1 and min(self.inside, self.outside) >= 1):
            raise ProfileError(
                f"a scope has threshold {self.threshold:g} in (0, 1], accuracy {self.accuracy:g} in [0, 1] "
                f"and {self.inside} and {self.outside} pairs, of which there must be one in scope and one "
                "out of it; take what calibrated_threshold finds"
            )


@dataclass(frozen=True, eq=False)
class Reader:
    """A trained scope classifier and a trained adapter.

    Attributes:
        head: tells which prompts are in the scope of a statement, by embeddings.
        scope: its threshold, with pairs of facts that were not trained on.
        adapter: with it in force the network reads a fact before a prompt.
        about: where it comes from; JSON-able.
    """

    head: ScopeHead
    scope: Scope
    adapter: Adapter
    about: Mapping[str, Any] = field(default_factory=dict)

    def save(self, path: Path, base: str) -> None:
        """Write it to a safetensors file.

        Args:
            path: replaced at once, by a whole file or not at all.
            base: fingerprint of the model for which it was trained.

        Raises:
            ResourceError: if the file cannot be written.
        """
        head = {
            "format": FORMAT,
            "base": base,
            "layers": json.dumps(self.adapter.layers),
            "bias": repr(self.head.bias),
            "scope": json.dumps(asdict(self.scope)),
            "about": json.dumps(self.about, sort_keys=True),
        }
        write(path, {"scope": self.head.weights, **self.adapter.state_dict()}, head)


def read(path: Path) -> Reader:
    """The reader of a file.

    Raises:
        ResourceError: if the file holds none, is damaged or cannot be read.
    """
    head, tensors = opened(path, FORMAT, WHAT)
    try:
        layers = tuple(int(layer) for layer in json.loads(head["layers"]))
        adapter = adapter_of(layers, tensors["down"], tensors["up"])
        classifier = ScopeHead(tensors["scope"].double().reshape(-1), float(head["bias"]))
        scope = Scope(**json.loads(head["scope"]))
        about = dict(json.loads(head["about"]))
    except (*cache.UNREADABLE, PalimpsestError) as error:
        raise ResourceError(f"{path}: a damaged {WHAT} ({error}); {REMAKE}") from error
    return Reader(classifier, scope, adapter, about)


def reader_file(model: EditableModel, file: str | None = None) -> Path:
    """The file of what was trained for a model's weights; arguments as `reader_for`.

    Raises:
        ResourceError: if there is none; the message names the command that trains it, and the other mode.
    """
    try:
        return trained_file(model, KIND, FORMAT, WHAT, file)
    except ResourceError as error:
        raise ResourceError(
            f"{error}. An untrained SERAC needs a scope instead: pass scope=calibrated_threshold(embed, "
            "inside, outside)"
        ) from error


def reader_for(model: EditableModel, file: str | None = None) -> Reader:
    """What was trained for a model's weights, on its device.

    Args:
        model: unedited.
        file: in which to look instead of the project's own and the cache.

    Raises:
        ResourceError: if there is none; the message names the command that trains it.
    """
    found = read(reader_file(model, file))
    found.adapter.to(model.device)
    return found
