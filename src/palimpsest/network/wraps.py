"""Edits that change no weight and wrap the model instead: a layer's outputs, or the texts that it reads.

A `Wrap` is in force inside `palimpsest.network.apply.installed` and leaves nothing behind. While it is, its
digest is part of `palimpsest.network.model.fingerprint`, so that no cached answer of the unedited model is
taken for one of the edited.

`LayerWrap` asks a `palimpsest.network.codebook.Codebook` at every token whether the input of a layer is near
a key, and changes the layer's output at those tokens only. What happens at a token depends on its own input
alone. Attention is causal, so the change is the same in a whole pass, in one that shares beginnings between
rows (`palimpsest.network.packed`), and in one that goes on from cached attention keys and values.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from palimpsest.cache import digest
from palimpsest.errors import NonFiniteError, ShapeError
from palimpsest.network.activations import first_tensor
from palimpsest.network.codebook import Codebook
from palimpsest.network.model import EditableModel, Part, read_weight
from palimpsest.types import Shown

At = Literal["map", "layer"]
"""What is wrapped: the edited map of a layer (d_k -> d_v), or the whole decoder layer (d_v -> d_v)."""

INPUT: dict[At, Part] = {"map": "key", "layer": "input"}
"""Part of a `Site` at which the input is read."""

OUTPUT: dict[At, Part] = {"map": "value", "layer": "hidden"}
"""Part of a `Site` at which the output is read."""

Change = Callable[[Tensor, Tensor], Tensor | None]
"""(inputs (q, d_in), outputs (q, d_v)) of all tokens -> the outputs instead; None leaves them as they are."""


@dataclass(frozen=True, repr=False, eq=False, kw_only=True)
class Wrap(Shown):
    """Edit that changes no weight; base of all kinds. Two are equal if digest, base and notes are.

    Attributes:
        base: fingerprint of the model it was made for; empty to skip the check.
        notes: origin of the edit; JSON-able.
        reads: whether it adds a text before some prompts, which only who encodes by the model can see.
    """

    reads: ClassVar[bool] = False

    base: str = ""
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """Hash of all that the wrap does."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it does")

    @property
    def what(self) -> str:
        """What it is, for messages: ``a text before some prompts``."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it is")

    def before(self, prompt: str) -> str:
        """Text that is read next to a prompt, before it; empty for a wrap that adds none."""
        return ""

    def in_force(self, model: EditableModel) -> AbstractContextManager[None]:
        """The wrap acts on the model inside the block."""
        raise NotImplementedError(f"{type(self).__name__} does not say how it acts")

    def norm(self) -> float:
        """0, because no weight changes."""
        return 0.0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Wrap):
            return NotImplemented
        return (self.digest, self.base, self.notes) == (other.digest, other.base, other.notes)

    __hash__ = None  # type: ignore[assignment]

    def told(self) -> dict[str, object]:
        """Method and number of facts, as far as the notes say."""
        return {name: self.notes[name] for name in ("method", "facts") if name in self.notes}


@contextmanager
def held(model: EditableModel, wrap: Wrap) -> Iterator[None]:
    """The wrap is in force and among ``model.wraps``, so that the fingerprint knows of it."""
    before = model.wraps
    with wrap.in_force(model):
        model.wraps = (*before, wrap)
        try:
            yield
        finally:
            model.wraps = before


@dataclass(frozen=True, eq=False)
class Replaced:
    """Outputs are replaced by a value of their entry.

    Attributes:
        values: one row for each entry (m, d_v).
    """

    values: Float[Tensor, "m d_v"]

    def tensors(self) -> dict[str, Tensor]:
        """What there is to save, by name."""
        return {"values": self.values}

    def __call__(
        self, inputs: Float[Tensor, "q d_in"], outputs: Float[Tensor, "q d_v"], entry: Int[Tensor, " q"]
    ) -> Float[Tensor, "q d_v"]:
        """Values of the entries, whatever the outputs were."""
        return self.values.to(outputs.device)[entry].to(outputs.dtype)


@dataclass(frozen=True, eq=False)
class AddedBlocks:
    """A low-rank map of the inputs is added to the outputs, one for each entry.

    Attributes:
        down: (m, r, d_in).
        up: (m, d_v, r).
    """

    down: Float[Tensor, "m r d_in"]
    up: Float[Tensor, "m d_v r"]

    def tensors(self) -> dict[str, Tensor]:
        """What there is to save, by name."""
        return {"down": self.down, "up": self.up}

    def __call__(
        self, inputs: Float[Tensor, "q d_in"], outputs: Float[Tensor, "q d_v"], entry: Int[Tensor, " q"]
    ) -> Float[Tensor, "q d_v"]:
        """Outputs + up · down · inputs."""
        down, up = (part.to(inputs.device)[entry] for part in (self.down, self.up))
        step = up @ (down @ inputs.to(down.dtype)[:, :, None])  # (q, d_v, 1)
        return (outputs.to(step.dtype) + step[:, :, 0]).to(outputs.dtype)


Act = Replaced | AddedBlocks

ACTS: dict[str, type[Replaced] | type[AddedBlocks]] = {"replaced": Replaced, "added_blocks": AddedBlocks}
"""Name in files -> what is done at the tokens of an entry."""


@dataclass(frozen=True, repr=False, eq=False)
class LayerWrap(Wrap):
    """Edit that changes what a layer gives for inputs near some keys.

    Attributes:
        layer: index of the decoder layer.
        book: keys, each as wide as the input.
        act: what is done at the tokens whose input belongs to an entry.
        at: what of the layer is wrapped.
    """

    layer: int
    book: Codebook
    act: Act
    at: At = "map"

    @property
    def digest(self) -> str:
        """Hash of layer, place, codebook and contents."""
        parts = {name: _hash(part) for name, part in self.tensors().items()}
        kind = type(self.act).__name__
        return digest([self.layer, self.at, kind, list(self.book.labels), parts])

    @property
    def what(self) -> str:
        """A memory at one layer."""
        return f"a memory of {len(self.book)} entries at layer {self.layer}"

    def tensors(self) -> dict[str, Tensor]:
        """Codebook and contents by name."""
        return {"keys": self.book.keys, "radii": self.book.radii, **self.act.tensors()}

    @property
    def bytes(self) -> int:
        """Size of all tensors."""
        return sum(part.numel() * part.element_size() for part in self.tensors().values())

    @contextmanager
    def in_force(self, model: EditableModel) -> Iterator[None]:
        """Inside the block the layer is wrapped.

        Raises:
            SiteError: if there is no such layer.
            ShapeError: if keys or contents do not fit it.
            NonFiniteError: if the contents are not finite.
        """
        self._check(model)
        with changed(model, self.layer, self.at, self._change if len(self.book) else _unchanged):
            yield

    def _change(self, inputs: Tensor, outputs: Tensor) -> Tensor | None:
        entry = self.book.nearest(inputs)
        mine = (entry >= 0).nonzero()[:, 0]
        if not len(mine):
            return None
        found = self.act(inputs[mine], outputs[mine], entry[mine])
        return outputs.index_copy(0, mine, found)

    def _check(self, model: EditableModel) -> None:
        d_v, d_k = read_weight(model, self.layer).shape
        wide, m = d_k if self.at == "map" else d_v, len(self.book)
        if m and self.book.keys.shape[1] != wide:
            raise ShapeError(
                f"layer {self.layer}: the keys are {self.book.keys.shape[1]} wide and the input of the "
                f"{self.at} of {model.name} is {wide}; install the edit on the model that it was made for"
            )
        rank = self.act.down.shape[1] if isinstance(self.act, AddedBlocks) else 0
        wanted = {"values": (m, d_v), "down": (m, rank, wide), "up": (m, d_v, rank)}
        for name, part in self.act.tensors().items():
            if m and tuple(part.shape) != wanted[name]:
                raise ShapeError(
                    f"layer {self.layer}: {name} are {tuple(part.shape)}, where {wanted[name]} fits {m} "
                    f"entries in {model.name}; make the edit again on this model"
                )
            if not part.isfinite().all():
                raise NonFiniteError(
                    f"layer {self.layer}: {name} hold NaN or infinity; the edit was refused. Lower the "
                    "learning rate of its editor"
                )

    def shown(self) -> dict[str, object]:
        """Method, facts, place and size; and how to use it."""
        return {
            **self.told(),
            "layer": self.layer,
            "entries": len(self.book),
            "bytes": self.bytes,
            "use": "installed(model, edit) for a block",
        }


def _unchanged(inputs: Tensor, outputs: Tensor) -> None:
    return None


def _hash(part: Tensor) -> str:
    """Hash of dtype, shape and bits."""
    plain = part.detach().cpu().contiguous()
    head = f"{plain.dtype} {tuple(plain.shape)} ".encode()
    return sha256(head + plain.flatten().view(torch.uint8).numpy().tobytes()).hexdigest()


@contextmanager
def changed(model: EditableModel, layer: int, at: At, change: Change) -> Iterator[None]:
    """In all passes inside the block, of any thread, a layer's outputs go through ``change``.

    Changes nest: a later one sees what an earlier one at the same place returns.

    Args:
        model: the model.
        layer: index of the decoder layer.
        at: what of it is wrapped.
        change: given all tokens of a pass, padding included, as rows.

    Raises:
        SiteError: if there is no such layer.
    """

    def after(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        given, own = args[0] if args else kwargs["hidden_states"], first_tensor(output)
        rows = (states.reshape(-1, states.shape[-1]).to(place) for states in (given, own))
        found = change(*rows)
        if found is None:
            return None
        put = found.reshape(own.shape).to(own.device)
        return (put, *output[1:]) if isinstance(output, tuple) else put

    module, place = model.projection(layer) if at == "map" else model.layer(layer), model.device
    handle = module.register_forward_hook(after, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
