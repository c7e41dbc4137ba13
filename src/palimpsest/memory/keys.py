"""Keys and hidden states at the last token of each request's subject, the place where a fact is looked up."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from palimpsest.errors import RequestError
from palimpsest.network.activations import capture
from palimpsest.network.model import EditableModel, Site
from palimpsest.network.tokens import encode, encode_around_subject, pad
from palimpsest.types import EditRequest

ROWS_PER_PASS = 128


def states_at_subjects(
    model: EditableModel,
    requests: Sequence[EditRequest],
    site: Site,
    contexts: Sequence[str] = ("",),
) -> Float[Tensor, "n c d"]:
    """What passes a site at the subject's last token, for every request in every context.

    Returns:
        (n, c, d) with c contexts, d = d_k or d_v by site.
    """
    rows = [
        encode_around_subject(model.tokenizer, request.prompt, request.subject, context)
        for request in requests
        for context in contexts
    ]
    # What follows the subject cannot reach its last token, so the rows end there.
    found = _at_the_end(model, [ids[: last + 1] for ids, last in rows], site)
    return found.reshape(len(requests), len(contexts), -1)


def last_states(model: EditableModel, texts: Sequence[str], site: Site) -> Float[Tensor, "n d"]:
    """What passes a site at the last token of each text (n, d).

    Raises:
        RequestError: if a text gives no token.
    """
    rows = [encode(model.tokenizer, text) for text in texts]
    for text, ids in zip(texts, rows, strict=True):
        if not ids:
            raise RequestError(f"text {text!r} gives no token, so there is no state to read; give it a word")
    return _at_the_end(model, rows, site)


def _at_the_end(model: EditableModel, rows: Sequence[list[int]], site: Site) -> Float[Tensor, "n d"]:
    """What passes a site at the last of each row of token ids."""
    found = []
    for start in range(0, len(rows), ROWS_PER_PASS):
        part = rows[start : start + ROWS_PER_PASS]
        batch = pad(model.tokenizer, part).to(model.device)
        last = torch.tensor([len(ids) - 1 for ids in part], device=model.device)
        states = capture(model, batch, [site])[site]
        found.append(states[torch.arange(len(part), device=model.device), last])
    return torch.cat(found)


def subject_keys(
    model: EditableModel, requests: Sequence[EditRequest], layer: int, contexts: Sequence[str]
) -> Float[Tensor, "d_k n"]:
    """Key of each subject: the bare prompt weighs one half, the sampled contexts share the other half.

    Args:
        model: the model as it is now; keys depend on edits in lower layers only.
        requests: n requests.
        layer: the edited layer.
        contexts: prefixes, the empty one first.

    Source: MEMIT's released ``compute_ks`` (mean within each template group, then over groups).
    """
    states = states_at_subjects(model, requests, Site(layer, "key"), contexts)
    bare, sampled = states[:, 0], states[:, 1:]
    mean = (bare + sampled.mean(1)) / 2 if sampled.shape[1] else bare
    return mean.T


def subject_hidden(
    model: EditableModel, requests: Sequence[EditRequest], layer: int
) -> Float[Tensor, "d_v n"]:
    """Output of a whole layer at each subject's last token, bare prompt."""
    return states_at_subjects(model, requests, Site(layer, "hidden"))[:, 0].T
