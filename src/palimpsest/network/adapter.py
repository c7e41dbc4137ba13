"""Low-rank matrices on the edited maps of some layers that act at marked tokens only.

A token is marked by its number: the ids of a marked text are their places in the vocabulary plus a multiple
of its size, which is taken off again before the embedding. So every token says for itself whether it is read
with the matrices, and a pass over padded rows, one over rows packed into lines, and one that goes on from
cached attention keys need to know nothing else. Tokens without a mark are read by the network as it is, bit
by bit.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from threading import local
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from palimpsest.errors import ModelError, ShapeError
from palimpsest.network.model import EditableModel, read_weight
from palimpsest.network.wraps import changed


class Adapter(nn.Module):
    """B A, added to the edited map of each of some layers (Hu et al., ICLR 2022, Eq. 3, with α = r).

    Args:
        layers: ascending.
        width: (d_v, d_k) of their edited weights, which have one shape.
        rank: r; cut to the smaller of the two.
        seed: of A, uniform in ±1/√d_k; B begins with zeros, so that nothing changes at first.

    Attributes:
        down: A of each layer (l, r, d_k).
        up: B of each layer (l, d_v, r).
    """

    def __init__(self, layers: Sequence[int], width: tuple[int, int], rank: int, seed: int = 0) -> None:
        super().__init__()
        d_v, d_k = width
        rank, generator = min(rank, d_v, d_k), torch.Generator().manual_seed(seed)
        self.layers, self.width = tuple(layers), (d_v, d_k)
        drawn = 2 * torch.rand(len(self.layers), rank, d_k, generator=generator) - 1
        self.down = nn.Parameter(drawn / d_k**0.5)
        self.up = nn.Parameter(torch.zeros(len(self.layers), d_v, rank))

    @contextmanager
    def in_force(self, model: EditableModel, mark: int) -> Iterator[None]:
        """Inside the block tokens with a mark are read with the matrices, in all passes of any thread.

        Args:
            model: the model.
            mark: from `mark_of`; another for each adapter that is in force at once.

        Raises:
            ModelError: if the maps of the layers have another shape.
        """
        shapes = {tuple(read_weight(model, layer).shape) for layer in self.layers}
        if shapes - {self.width}:
            raise ModelError(
                f"the adapter is for maps of shape {self.width}, and those of layers {list(self.layers)} of "
                f"{model.name} are {sorted(shapes)}; take one that was trained for this model"
            )
        here = local()  # of each thread: rows of its pass that have a mark
        body = model.net.get_submodule(model.family.norm.rsplit(".", 1)[0])

        def unmark(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            ids, *rest = args
            mine = ids // mark % 2 == 1
            here.rows = mine.flatten().nonzero()[:, 0].to(model.device)
            return (ids - mark * mine, *rest)

        def end(*_: Any) -> None:
            here.rows = None

        def change(at: int) -> Callable[[Tensor, Tensor], Tensor | None]:
            def act(inputs: Tensor, outputs: Tensor) -> Tensor | None:
                rows = getattr(here, "rows", None)
                return None if rows is None or not len(rows) else self._added(at, inputs, outputs, rows)

            return act

        with ExitStack() as stack:
            handles = [
                model.net.get_input_embeddings().register_forward_pre_hook(unmark),
                body.register_forward_hook(end, always_call=True),
            ]
            for handle in handles:
                stack.callback(handle.remove)
            for at, layer in enumerate(self.layers):
                stack.enter_context(changed(model, layer, "map", change(at)))
            yield

    def _added(
        self, at: int, inputs: Float[Tensor, "q d_k"], outputs: Float[Tensor, "q d_v"], rows: Tensor
    ) -> Float[Tensor, "q d_v"]:
        step = inputs[rows].to(self.down) @ self.down[at].T @ self.up[at].T
        return outputs.index_copy(0, rows, (outputs[rows].to(step) + step).to(outputs))


def adapter_of(
    layers: Sequence[int], down: Float[Tensor, "l r d_k"], up: Float[Tensor, "l d_v r"]
) -> Adapter:
    """An adapter with given matrices, to be used and not trained.

    Raises:
        ShapeError: if they do not belong together.
    """
    if (
        down.ndim != 3
        or up.ndim != 3
        or not len(layers) == len(down) == len(up)
        or down.shape[1] != up.shape[2]
    ):
        raise ShapeError(
            f"an adapter of layers {list(layers)} has matrices {tuple(down.shape)} and {tuple(up.shape)}, "
            "which should be (layers, rank, d_k) and (layers, d_v, rank); take both from one file"
        )
    made = Adapter(layers, (up.shape[1], down.shape[2]), down.shape[1])
    made.load_state_dict({"down": down, "up": up})
    return made.requires_grad_(False)


def mark_of(model: EditableModel, before: int = 0) -> int:
    """What is added to the ids of a marked text: the number of embeddings, doubled for each earlier mark.

    Args:
        model: the model.
        before: adapters that are in force already.
    """
    return len(model.net.get_input_embeddings().weight) * 2**before


class MarkingTokenizer:
    """A tokenizer whose ids are marked for some texts, and which reads marked ids as the texts that they are.

    Args:
        tokenizer: the one of the model, or another of this kind.
        mine: whether a text is marked.
        mark: from `mark_of`.
        size: number of embeddings.
    """

    def __init__(self, tokenizer: Any, mine: Callable[[str], bool], mark: int, size: int) -> None:
        self._tokenizer, self._mine, self._mark, self._size = tokenizer, mine, mark, size

    def __getattr__(self, name: str) -> Any:
        return getattr(self._tokenizer, name)

    def __len__(self) -> int:
        return len(self._tokenizer)

    def __call__(self, text: str, **options: Any) -> Any:
        """Ids of one text, and what else was asked for; an end token, which may be taken off, has no mark."""
        found, end = self._tokenizer(text, **options), self._tokenizer.eos_token_id
        if self._mine(text):
            found["input_ids"] = [i if i == end else i + self._mark for i in found["input_ids"]]
        return found

    def decode(self, ids: Any, **options: Any) -> str:
        """Text of ids, marked or not."""
        plain = [token % self._size for token in torch.as_tensor(ids).flatten().tolist()]
        return str(self._tokenizer.decode(plain, **options))
