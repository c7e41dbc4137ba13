"""MEND: edits by a trained network that turns gradients into updates (Mitchell et al., ICLR 2022).

One pass over the facts gives the gradient of their losses at the edited maps, token by token, and a network
(`palimpsest.editors.hypernetwork`) makes an update of it. The network is trained beforehand on other facts
(`palimpsest.training`), so that with the update in force facts and their rewordings are answered, and
neighbours as before; it is kept for one set of weights, and an editor without it refuses.

`InstructEdit` (Zhang et al., IJCAI 2024) is the same with an instruction, which says what kind of request it
is, before the text whose gradient is taken; one network is trained on several kinds.

Differences from the released codes: the edited map of the last layers is changed in every family (there both
maps of the MLP); a fact's loss is its own mean over its tokens; features are normalised by the first training
facts and not by all; η is trained on a logarithmic scale.
"""

from collections.abc import Sequence
from dataclasses import dataclass as plain_dataclass
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from palimpsest.editors import trained_files
from palimpsest.editors.base import Prepared, State, WeightEditor, start, step_norms
from palimpsest.editors.hypernetwork import FORMAT, WHAT, Hypernetwork, read, require_shape
from palimpsest.editors.settings import Layers
from palimpsest.editors.trained_files import carried_dir as carried_dir
from palimpsest.editors.trained_files import network_file as network_file
from palimpsest.editors.ultraedit import features
from palimpsest.errors import NonFiniteError
from palimpsest.files import file_sha256
from palimpsest.memory.settings import ContextSettings
from palimpsest.network.apply import WeightDelta
from palimpsest.network.model import EditableModel, fingerprint, read_weight
from palimpsest.types import EditRequest


@plain_dataclass(frozen=True, repr=False)
class MendState(State):
    """State of MEND.

    Attributes:
        network: the trained one; None to look for it at the first edit. It stays that of the unedited model.
    """

    network: Hypernetwork | None = None


@dataclass(frozen=True, config={"extra": "forbid"})
class Mend(WeightEditor):
    """MEND; the fields are its settings.

    Attributes:
        layers: edited layers, ascending; those that the network was trained for.
        batch: facts in one pass; affects only speed and memory.
        network: file of the trained network; None for the one that was trained for the model's weights, of
            the project or in the cache.

    Source: Mitchell et al., ICLR 2022, Algorithm 2.
    """

    keeps = MendState
    printed = "MEND"
    trained_as: ClassVar[str] = "mend"
    """Name of its network's file and of its training."""

    layers: Layers
    batch: int = Field(default=10, ge=1)
    network: str | None = None

    def edit(
        self, model: EditableModel, requests: Sequence[EditRequest], state: State | Prepared | None = None
    ) -> tuple[WeightDelta, MendState]:
        """One pass and one update for all requests; see `palimpsest.edit`.

        Raises:
            ResourceError: if no network was trained for these weights.
            ModelError: if it was trained for other layers.
            NonFiniteError: if a loss, a gradient or an update is NaN or infinite.
        """
        own: MendState = self.own(state)
        network = own.network or trained_for(model, self.trained_as, self.network)
        width = tuple(read_weight(model, self.layers[0]).shape)
        require_shape(network, self.layers, (width[0], width[1]))
        at = self.prepare(model, own.prepared)
        read_, losses = features(model, requests, self.layers, self._prefixes(), self.batch)
        with torch.no_grad():
            deltas = {layer: network.update(layer, *both).double() for layer, both in read_.items()}
        for layer, delta in deltas.items():
            if not torch.isfinite(delta).all():
                raise NonFiniteError(f"layer {layer}: the update is NaN or infinite. No weight was changed")
        notes = {
            "contexts": list(at.contexts),
            "facts": len(requests),
            "tokens": len(next(iter(read_.values()))[0]),
            "loss_history": [[loss] for loss in losses],
            "step_norm": step_norms(deltas),
            "network": network.about,
        }
        return WeightDelta(deltas, fingerprint(model), notes), replace(own, prepared=at, network=network)

    def prepare(self, model: EditableModel, prepared: Prepared | None = None) -> Prepared:
        """Nothing is needed of the unedited model but its network, which the first edit looks for."""
        return start(model, prepared, ContextSettings(count=0), (), 0)

    def learnt(self, model: EditableModel) -> str:
        """Hash of the file of the network.

        Raises:
            ResourceError: if no network was trained for these weights.
        """
        return file_sha256(trained_file(model, self.trained_as, self.network))

    def _prefixes(self) -> tuple[str, ...]:
        """Texts before each fact, over which its loss is averaged."""
        return ("",)


@plain_dataclass(frozen=True, repr=False)
class InstructState(MendState):
    """State of InstructEdit; as that of MEND."""


@dataclass(frozen=True, config={"extra": "forbid"})
class InstructEdit(Mend):
    """InstructEdit; the fields are its settings.

    Attributes:
        instruction: text before each fact while its gradient is taken; one of those of the training, or a
            new one for a kind of request that was not trained.

    Source: Zhang et al., IJCAI 2024, Sec. 3.
    """

    keeps = InstructState
    printed = "InstructEdit"
    trained_as: ClassVar[str] = "instruct_edit"

    instruction: str = Field(default="Complete the statement. ", min_length=1)

    def _prefixes(self) -> tuple[str, ...]:
        return (self.instruction,)


def trained_for(model: EditableModel, kind: str, file: str | None = None) -> Hypernetwork:
    """The network that was trained for a model's weights, on its device; arguments as `trained_file`.

    Raises:
        ResourceError: if there is none; the message names the command that trains it.
    """
    return read(trained_file(model, kind, file)).to(model.device)


def trained_file(model: EditableModel, kind: str, file: str | None = None) -> Path:
    """The file of the network that was trained for a model's weights: the project's own, or in the cache.

    Args:
        model: unedited.
        kind: as `palimpsest.editors.trained_files.network_file`.
        file: in which to look instead.

    Raises:
        ResourceError: if there is none; the message names the command that trains it.
    """
    return trained_files.trained_file(model, kind, FORMAT, WHAT, file)
