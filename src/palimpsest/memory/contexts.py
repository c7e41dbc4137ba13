"""Context prefixes: short texts placed before a prompt so that an edit does not depend on its exact wording.

The MEMIT family samples five texts of ten tokens from the unedited model, starting from five fixed words.
Here they are drawn with an explicit generator, stored with the edit, and checked by scoring them again in a
separate forward pass: the released generator passes a wrong attention mask to current transformers and
produces noise without an error.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from palimpsest import cache
from palimpsest.errors import ModelError
from palimpsest.network.model import EditableModel, fingerprint
from palimpsest.network.tokens import encode, pad

REVISION = 1
"""Part of the cache key; raise it when the same settings give other texts than before."""

STARTS = ("The", "Therefore", "Because", "I", "You")


def sample_contexts(
    model: EditableModel,
    count: int = 5,
    length: int = 10,
    seed: int = 0,
    top_k: int = 5,
    starts: Sequence[str] = STARTS,
    opening: str = "\n",
) -> tuple[str, ...]:
    """Sample ``count`` prefixes, each ending in a full stop and a space; the empty prefix comes first.

    Texts that were sampled before from the same weights are read from disk.

    Args:
        model: model to sample from, usually unedited.
        count: number of sampled prefixes.
        length: tokens of each, the start word included.
        seed: seed of the generator; same seed and same model give the same prefixes.
        top_k: sample among the k likeliest tokens.
        starts: start words, used in turn.
        opening: text before the start word that the model sees while sampling; not part of the prefix.
            Small models continue a lone word with lists of numbers, and a word on a new line with sentences.

    Raises:
        ModelError: if a sampled text is less likely than the limit of `check_readable` allows.
        ResourceError: if a stored file is damaged or cannot be written.

    Source: MEMIT's released ``get_context_templates`` (five words, ten tokens, top 5); the opening is added
    here.
    """
    key = {
        "revision": REVISION,
        "model": fingerprint(model),
        "texts": [count, length, seed, top_k, list(starts), opening],
    }

    def draw() -> list[str]:
        generator = torch.Generator().manual_seed(seed)
        texts = []
        for index in range(count):
            ids = encode(model.tokenizer, opening + starts[index % len(starts)])
            lead = len(encode(model.tokenizer, opening))
            while len(ids) - lead < length:
                top = next_logits(model, ids).topk(top_k)
                choice = torch.multinomial(top.values.softmax(0).cpu(), 1, generator=generator)
                ids.append(int(top.indices[choice]))
            texts.append(model.tokenizer.decode(ids[lead:], skip_special_tokens=True))
        check_readable(model, texts)
        return texts

    texts = cache.texts("contexts", key, draw)
    clean = (" ".join(text.replace("{", " ").replace("}", " ").split()) for text in texts)
    return ("", *(f"{text}. " for text in clean))


def check_readable(model: EditableModel, texts: Sequence[str], limit: float | None = None) -> list[float]:
    """Mean negative log-likelihood of each text, in nats per token, from a plain forward pass.

    Args:
        model: model that wrote the texts.
        texts: two tokens or more each.
        limit: largest accepted value; default half of ln(vocabulary), far above text and below noise.

    Raises:
        ModelError: if a text is above the limit; names the first.
    """
    limit = limit if limit is not None else 0.5 * math.log(len(model.tokenizer))
    scores = []
    for text in texts:
        ids = torch.tensor([encode(model.tokenizer, text)], device=model.device)  # (1, t)
        with torch.no_grad():
            logits = model.net(input_ids=ids).logits[0, :-1].float()  # (t − 1, vocabulary)
        nll = torch.nn.functional.cross_entropy(logits, ids[0, 1:])
        scores.append(float(nll))
        if not nll <= limit:  # also when it is not a number
            raise ModelError(
                f"context {text!r} scores {float(nll):.1f} nats a token, above {limit:.1f}: it is noise. "
                "Sample from an undamaged model, or give the editor readable contexts"
            )
    return scores


def next_logits(model: EditableModel, ids: Sequence[int]) -> Tensor:
    """Logits (vocabulary,) of the token after ``ids``."""
    batch = pad(model.tokenizer, [ids]).to(model.device)
    with torch.no_grad():
        return model.net(input_ids=batch.ids, logits_to_keep=1).logits[0, -1].float()
