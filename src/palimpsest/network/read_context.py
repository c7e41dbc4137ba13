"""An edit that is a text before some prompts, chosen by a trained classifier and read with an adapter."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from palimpsest.cache import digest, tensor_sha256
from palimpsest.errors import ShapeError
from palimpsest.network.adapter import Adapter, MarkingTokenizer, mark_of
from palimpsest.network.chosen import ChosenContext
from palimpsest.network.model import EditableModel


def features(one: Float[Tensor, "n d"], other: Float[Tensor, "n d"]) -> Float64[Tensor, "n f"]:
    """Of pairs of embeddings u, v of norm 1: cosine, |u − v| and u ∘ v, so that f = 1 + 2 d; float64."""
    u, v = (torch.nn.functional.normalize(part.double(), dim=1) for part in (one, other))
    return torch.cat([(u * v).sum(1, keepdim=True), (u - v).abs(), u * v], 1)


@dataclass(frozen=True, eq=False)
class ScopeHead:
    """Logistic regression that tells whether a prompt is in the scope of a statement.

    Attributes:
        weights: of `features` (1 + 2 d,), float64.
        bias: a number.
    """

    weights: Float64[Tensor, " f"]
    bias: float

    def probabilities(
        self, prompt: Float[Tensor, "1 d"], statements: Float[Tensor, "m d"]
    ) -> Float64[Tensor, " m"]:
        """Probability that a prompt is in the scope of each statement.

        Raises:
            ShapeError: if the embeddings have another width than those that it was fitted on.
        """
        if 1 + 2 * statements.shape[1] != len(self.weights):
            raise ShapeError(
                f"the scope classifier was fitted on embeddings of {(len(self.weights) - 1) // 2} numbers, "
                f"and these have {statements.shape[1]}; give the embedder that it was trained with"
            )
        pairs = features(prompt.expand_as(statements), statements)
        return torch.sigmoid(pairs @ self.weights + self.bias)


@dataclass(frozen=True, repr=False, eq=False)
class ReadContext(ChosenContext):
    """Edit that places one of its texts before a prompt, and has the two read by an adapted network.

    A text is chosen if the classifier's probability is largest and reaches ``threshold``. The adapter acts at
    all tokens of a text that holds one of ``texts``, not at those that are said behind it.

    Attributes:
        head: the classifier.
        adapter: low-rank matrices of some layers.
    """

    head: ScopeHead = field(kw_only=True)
    adapter: Adapter = field(kw_only=True)

    @property
    def digest(self) -> str:
        """Hash of texts, embeddings, threshold, classifier and adapter."""
        parts = [self.head.weights, self.adapter.down, self.adapter.up]
        told = [self.head.bias, list(self.adapter.layers)]
        return digest([super().digest, told, [tensor_sha256(part) for part in parts]])

    @property
    def what(self) -> str:
        """A text before some prompts, which an adapted network reads."""
        return "a text before some prompts that an adapted network reads"

    def near(self, prompt: str) -> Float64[Tensor, " m"]:
        """Probability that the prompt is in the scope of each text."""
        return self.head.probabilities(self.embed([prompt]), self.vectors)

    @contextmanager
    def in_force(self, model: EditableModel) -> Iterator[None]:
        """Inside the block texts that hold one of these are marked, and marked ones read with the adapter.

        Raises:
            ModelError: if the adapter does not fit the model.
        """
        mark = mark_of(model, sum(isinstance(wrap, ReadContext) for wrap in model.wraps))
        before = model.tokenizer
        with self.adapter.in_force(model, mark):
            model.tokenizer = MarkingTokenizer(before, self._holds, mark, mark_of(model))
            try:
                yield
            finally:
                model.tokenizer = before

    def _holds(self, text: str) -> bool:
        return any(one in text for one in self.texts)
