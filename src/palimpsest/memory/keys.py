"""Keys and hidden states at the last token of each request's subject, where the model looks up a fact."""

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
    """Activations at a site at the subject's last token, for every request in every context.

    Args:
        model: the model as it is now.
        requests: n requests.
        site: where to read.
        contexts: c prefixes.

    Returns:
        (n, c, d), with d = d_k or d_v depending on the site.

    Raises:
        RequestError: if a subject's last character belongs to no token.
        SiteError: if the site does not exist or did not fire.
    """
    rows = [
        encode_around_subject(model.tokenizer, request.prompt, request.subject, context)
        for request in requests
        for context in contexts
    ]
    # Attention is causal: later tokens cannot affect the subject's last one, so the rows end there.
    found = _at_the_end(model, [ids[: last + 1] for ids, last in rows], site)  # (n·c, d)
    return found.reshape(len(requests), len(contexts), -1)


def last_states(model: EditableModel, texts: Sequence[str], site: Site) -> Float[Tensor, "n d"]:
    """Activations at a site at the last token of each text, (n, d).

    Raises:
        RequestError: if a text gives no token.
        SiteError: if the site does not exist or did not fire.
    """
    rows = [encode(model.tokenizer, text) for text in texts]
    for text, ids in zip(texts, rows, strict=True):
        if not ids:
            raise RequestError(f"text {text!r} gives no token, so there is no state to read; give it a word")
    return _at_the_end(model, rows, site)


def _at_the_end(model: EditableModel, rows: Sequence[list[int]], site: Site) -> Float[Tensor, "n d"]:
    """Activations at a site at the last token of each row of token ids, (n, d)."""
    found = []
    for start in range(0, len(rows), ROWS_PER_PASS):
        part = rows[start : start + ROWS_PER_PASS]
        batch = pad(model.tokenizer, part).to(model.device)
        last = torch.tensor([len(ids) - 1 for ids in part], device=model.device)  # (b,)
        states = capture(model, batch, [site])[site]  # (b, t, d)
        found.append(states[torch.arange(len(part), device=model.device), last])  # (b, d)
    return torch.cat(found)


def subject_keys(
    model: EditableModel, requests: Sequence[EditRequest], layer: int, contexts: Sequence[str]
) -> Float[Tensor, "d_k n"]:
    """Key of each subject: the bare prompt has weight one half, the sampled contexts share the other half.

    Args:
        model: the model as it is now; keys depend on edits in lower layers only.
        requests: n requests.
        layer: the edited layer.
        contexts: prefixes, the empty one first; if it is the only one, the key is that of the bare prompt.

    Source: MEMIT's released ``compute_ks`` (mean within each template group, then over groups).
    """
    states = states_at_subjects(model, requests, Site(layer, "key"), contexts)  # (n, c, d_k)
    bare, sampled = states[:, 0], states[:, 1:]  # (n, d_k), (n, c − 1, d_k)
    mean = (bare + sampled.mean(1)) / 2 if sampled.shape[1] else bare
    return mean.T


def subject_hidden(
    model: EditableModel, requests: Sequence[EditRequest], layer: int
) -> Float[Tensor, "d_v n"]:
    """Output of a whole layer at each subject's last token, (d_v, n), bare prompt."""
    return states_at_subjects(model, requests, Site(layer, "hidden"))[:, 0].T
