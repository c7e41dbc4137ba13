"""Sentence embedders: texts in, vectors out, with identical vectors for equal texts of one call.

The embedded one is all-MiniLM-L6-v2 (384 dimensions, unit norm), run by sentence-transformers as by its
authors. Nothing is ever fetched from a hub: another embedder is a folder that sentence-transformers can read,
or the id of one that is already in the local hub cache.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor

from palimpsest import resources
from palimpsest.errors import ModelError, NonFiniteError, ScoreError, UnknownNameError
from palimpsest.network.placement import one_of

DEFAULT = "minilm"
PROBE = "A probe: tokenizers differ in œ, 1987, and what they put before\n and after a text."


@dataclass(frozen=True)
class Embedder:
    """A sentence embedder, from `embedder`.

    Attributes:
        name: name or folder it was loaded by.
        net: the SentenceTransformer.
        batch_size: texts per forward pass.
    """

    name: str
    net: Any = field(repr=False)
    batch_size: int = 64

    def __call__(self, texts: Sequence[str]) -> Float64[Tensor, "n d"]:
        """Embeddings of texts (n, d), one row each, on the CPU in float64.

        Equal texts are embedded once, so their rows are equal to the last bit. The empty text has an
        embedding like any other.

        Args:
            texts: any number, each of any length; tokens beyond the embedder's context are cut off.

        Raises:
            ScoreError: if an entry is not a string.
            NonFiniteError: if an embedding is not finite.
        """
        wrong = [text for text in texts if not isinstance(text, str)]
        if wrong:
            raise ScoreError(f"{self.name} embeds texts, not {wrong[0]!r}; give a list of texts")
        rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        if not rows:
            return torch.zeros(0, self.dimensions, dtype=torch.float64)
        found = self.net.encode(
            list(rows), batch_size=self.batch_size, convert_to_tensor=True, show_progress_bar=False
        )
        if not found.isfinite().all():
            raise NonFiniteError(
                f"{self.name} gives NaN or infinity; its weights are damaged, so fetch them again"
            )
        return found.double().cpu()[[rows[text] for text in texts]]  # (distinct, d) -> (n, d)

    @property
    def dimensions(self) -> int:
        """Number of dimensions of an embedding."""
        return int(self.net.get_embedding_dimension())

    @cached_property
    def digest(self) -> str:
        """Hash of what determines an embedding: modules, weights, context size, tokens of a probe text."""
        total = hashlib.sha256(f"{self.net} {self.net.max_seq_length}".encode())
        total.update(str(self.net.tokenizer(PROBE)["input_ids"]).encode())
        for name, tensor in sorted(self.net.state_dict().items()):
            total.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
            total.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        return total.hexdigest()


def embedder(
    name: str | Path = DEFAULT, batch_size: int = 64, device: str | torch.device = "cpu"
) -> Embedder:
    """Load a sentence embedder.

    Args:
        name: ``minilm`` (embedded), a folder that sentence-transformers can read, or a hub id in the local
            cache of the hub.
        batch_size: texts per forward pass.
        device: device to compute on.

    Raises:
        UnknownNameError: if the name is none of the three.
        ModelError: if it is found but cannot be used as an embedder, there is no such device, or the batch
            size is below 1.
        ResourceError: if the embedded one cannot be fetched or was damaged.
    """
    if batch_size < 1:
        raise ModelError(f"batch_size of embedder {name} is {batch_size}; it must be 1 or more")
    place = one_of(device)
    source = resources.fetch(DEFAULT) if str(name) == DEFAULT else name
    from sentence_transformers import SentenceTransformer  # takes seconds to import

    try:
        net = SentenceTransformer(
            str(source), device=str(place), local_files_only=True, trust_remote_code=False
        )
        dimensions = net.get_embedding_dimension()
    except OSError as error:
        known = [DEFAULT, "a folder in sentence-transformers format", "a hub id in the local hub cache"]
        raise UnknownNameError("embedder", str(name), known) from error
    except Exception as error:  # the library raises what its modules raise on a folder of something else
        reason = str(error).partition("\n")[0]
        raise ModelError(f"{name} cannot be used as a sentence embedder: {reason}; give another") from error
    if dimensions is None:
        raise ModelError(f"{name} gives no embedding of fixed length; give a sentence embedder")
    net.eval().requires_grad_(False)
    return Embedder(str(name), net, batch_size)
