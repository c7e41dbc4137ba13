"""Twin of `palimpsest.memory.keys`: one forward pass of the whole model per layer, request and context."""

from collections.abc import Sequence

import torch
from torch import Tensor

from benchmarks.reference.forward import hidden_at, keys_at
from palimpsest.network.model import EditableModel
from palimpsest.network.tokens import encode_around_subject
from palimpsest.types import EditRequest


def keys(
    model: EditableModel, requests: Sequence[EditRequest], layer: int, contexts: Sequence[str]
) -> Tensor:
    """Key of each subject (d_k, n): half the bare prompt's, half the mean of the sampled contexts'."""
    columns = []
    for request in requests:
        found = []
        for context in contexts:
            ids, end = encode_around_subject(model.tokenizer, request.prompt, request.subject, context)
            found.append(keys_at(model, ids, layer)[end])
        bare, sampled = found[0], found[1:]
        columns.append((bare + torch.stack(sampled).mean(0)) / 2 if sampled else bare)
    return torch.stack(columns, 1)


def hidden(model: EditableModel, requests: Sequence[EditRequest], layer: int) -> Tensor:
    """Output of a layer at each subject's last token (d_v, n), in the bare prompt."""
    columns = []
    for request in requests:
        ids, end = encode_around_subject(model.tokenizer, request.prompt, request.subject)
        columns.append(hidden_at(model, ids, layer)[end])
    return torch.stack(columns, 1)
