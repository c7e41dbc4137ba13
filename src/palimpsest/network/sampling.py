"""Sampling of texts from a model in batches, where each prompt has its own random numbers.

A sample depends on the seed, its prompt and how often that prompt came before in the list, not on the other
prompts, their order or the batch size. Only the last bits of a batched product differ between batches, which
can change a draw that falls exactly on the edge between two tokens. The global random state is neither read
nor changed.

A repeated prompt is read once: its samples start from copies of one key/value cache. Finished rows leave the
batch.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import torch
from jaxtyping import Float, Float64, Int
from torch import Tensor
from tqdm import tqdm
from transformers import DynamicCache

from palimpsest.errors import NonFiniteError, ScoreError
from palimpsest.network.activations import context_of, read_once
from palimpsest.network.layer_types import mask_of_padded
from palimpsest.network.model import EditableModel
from palimpsest.network.tokens import Batch, encode, pad

_LARGEST = torch.finfo(torch.float32).max / 4
_FIRST_CANDIDATES = 64


@dataclass(frozen=True)
class _Choice:
    """Settings of the draw of the next token; see `sample`."""

    top_k: int | None
    top_p: float
    temperature: float


def sample(
    model: EditableModel,
    prompts: Sequence[str],
    tokens: int = 50,
    top_k: int | None = 5,
    seed: int = 0,
    batch_size: int = 32,
    top_p: float = 1.0,
    temperature: float = 1.0,
    names: Sequence[str] | None = None,
) -> list[str]:
    """Sample continuations of prompts, without the prompts.

    A token is drawn among the ``top_k`` likeliest, reduced to the fewest of them that together hold ``top_p``
    of their probability. A prompt given m times has m independent samples; the first ones do not depend on m.
    A text ends early at the tokenizer's end token.

    Args:
        model: the model, edited or not.
        prompts: texts to continue; may repeat.
        tokens: largest number of new tokens of each.
        top_k: number of tokens to draw from; None for all, 1 for the likeliest.
        seed: seed of all draws.
        batch_size: prompts per forward pass.
        top_p: share of the probability to draw from, in (0, 1]; below 1 this is nucleus sampling (Holtzman
            et al. 2020).
        temperature: divides the logits; above 0.
        names: one per prompt, used instead of it to seed its random numbers: two prompts of one name, given
            in two calls, are drawn with the same numbers.

    Returns:
        One text per prompt, in their order: the continuation, which usually begins with a space.

    Raises:
        ScoreError: if a setting is out of range, a prompt gives no token, prompt and continuation exceed the
            model's context, or there are not as many names as prompts.
        NonFiniteError: if the model gives NaN.
    """
    rows = [model.encode(prompt) for prompt in prompts]
    choice = _Choice(top_k, top_p, temperature)
    names = prompts if names is None else names
    if len(names) != len(prompts):
        raise ScoreError(f"{len(prompts)} prompts have {len(names)} names; give each prompt its own, or none")
    _check(model, prompts, rows, [tokens] * len(rows), choice, batch_size)
    return _sample(model, rows, _uniforms(names, [tokens] * len(rows), seed), choice, batch_size)


def passages(
    model: EditableModel,
    prompts: Sequence[str],
    length: int = 100,
    top_k: int = 5,
    seed: int = 0,
    batch_size: int = 32,
) -> list[str]:
    """Prompts with their continuation, together ``length`` tokens: the texts on which fluency is scored.

    Arguments and errors as `sample`.

    Source: the generation tests of ROME, MEMIT and AlphaEdit: one sample per prompt, top 5, at most 100
    tokens including the prompt. Those continue after an end token; here it ends the text.
    """
    rows = [model.encode(prompt) for prompt in prompts]
    new = [length - len(encode(model.tokenizer, prompt)) for prompt in prompts]  # a context does not count
    choice = _Choice(top_k, 1.0, 1.0)
    _check(model, prompts, rows, new, choice, batch_size)
    texts = _sample(model, rows, _uniforms(prompts, new, seed), choice, batch_size)
    return [prompt + text for prompt, text in zip(prompts, texts, strict=True)]


def _sample(
    model: EditableModel,
    rows: Sequence[list[int]],
    noise: Sequence[Float64[Tensor, "_"]],
    choice: _Choice,
    batch_size: int,
) -> list[str]:
    """Continue each row of token ids by at most one token per number; rows of similar length run together."""
    order = sorted(range(len(rows)), key=lambda row: (len(rows[row]), rows[row]))
    texts = [""] * len(rows)
    for first in tqdm(range(0, len(order), batch_size), desc="sampling", unit="batch", leave=False):
        some = order[first : first + batch_size]
        found = _continue(model, [rows[row] for row in some], [noise[row] for row in some], choice)
        for row, ids in zip(some, found, strict=True):
            texts[row] = _text(model.tokenizer, rows[row], ids)
    return texts


def _uniforms(names: Sequence[str], new: Sequence[int], seed: int) -> list[Float64[Tensor, "_"]]:
    """Numbers in [0, 1) for each name, from the seed, the name and how often it came before."""
    seen: Counter[str] = Counter()
    found = []
    for name, count in zip(names, new, strict=True):
        key = sha256(f"{seed} {seen[name]} {name}".encode()).digest()[:7]
        generator = torch.Generator().manual_seed(int.from_bytes(key, "big"))
        found.append(torch.rand(count, generator=generator, dtype=torch.float64))
        seen[name] += 1
    return found


def _continue(
    model: EditableModel,
    rows: Sequence[list[int]],
    noise: Sequence[Float64[Tensor, "_"]],
    choice: _Choice,
) -> list[list[int]]:
    """New token ids of each row of one left-padded batch, up to its end token."""
    distinct = {ids: place for place, ids in enumerate(dict.fromkeys(map(tuple, rows)))}
    prefix = context_of(model, list(distinct))
    rest = pad(model.tokenizer, [ids[len(prefix) :] for ids in distinct], side="left").to(model.device)
    batch = rest.behind(prefix)  # (distinct, p + t)
    # (rows, most new tokens), padded at the end
    uniforms = torch.nn.utils.rnn.pad_sequence(list(noise), batch_first=True).to(model.device)
    cache = read_once(model, prefix, len(distinct)) if prefix else DynamicCache()
    logits, cache = _step(model, rest.ids, batch, cache)  # logits (distinct, v)
    alive = list(range(len(rows)))
    places = [distinct[tuple(ids)] for ids in rows]  # of the rows alive, in the last forward pass
    new: list[list[int]] = [[] for _ in rows]
    for step in range(uniforms.shape[1]):
        if step:
            logits, cache = _step(model, batch.ids[:, -1:], batch, cache)  # from ids (alive, 1): (alive, v)
        # (alive, v) and (alive,) -> (alive,); the first logits have one row per distinct prompt.
        ids = draw(logits[places], uniforms[alive, step], choice.top_k, choice.top_p, choice.temperature)
        drawn = ids.tolist()
        going = [i for i, token in enumerate(drawn) if token != model.tokenizer.eos_token_id]
        for i in going:
            new[alive[i]].append(drawn[i])
        going = [i for i in going if step + 1 < len(noise[alive[i]])]
        if not going:
            break
        alive, places = [alive[i] for i in going], [places[i] for i in going]
        if places != list(range(len(batch.ids))):
            cache.batch_select_indices(torch.tensor(places, device=model.device))
        batch = _longer(batch, places, ids[going])  # (going, t + 1)
        places = list(range(len(alive)))
    return new


def _longer(batch: Batch, rows: list[int], ids: Int[Tensor, " b"]) -> Batch:
    """These rows of a batch, each with one more token (b, t + 1)."""
    ids = ids[:, None]  # (b, 1)
    return Batch(
        torch.cat([batch.ids[rows], ids], 1), torch.cat([batch.mask[rows], torch.ones_like(ids).bool()], 1)
    )


def _step(
    model: EditableModel, ids: Int[Tensor, "b t"], batch: Batch, cache: Any
) -> tuple[Float[Tensor, "b v"], Any]:
    """Logits of the token after the batch; ``ids`` are its last columns, not yet in the cache."""
    with torch.no_grad():
        out = model.net(
            input_ids=ids,
            attention_mask=mask_of_padded(model, batch.mask, ids.shape[1]),
            position_ids=batch.positions[:, -ids.shape[1] :],
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    logits = out.logits[:, -1].float()  # (b, 1, v) -> (b, v)
    if logits.isnan().any():
        raise NonFiniteError(
            f"{model.name} gives NaN while sampling: its weights hold NaN or infinity or its activations "
            "overflow; undo the last edit, weaken it, or load the model in a wider dtype"
        )
    return logits.clamp(-_LARGEST, _LARGEST), out.past_key_values


def draw(
    logits: Float[Tensor, "b v"],
    uniform: Float64[Tensor, " b"],
    top_k: int | None = None,
    top_p: float = 1.0,
    temperature: float = 1.0,
) -> Int[Tensor, " b"]:
    """Draw one token per row, by inverting its distribution function at u.

    Tokens are sorted by decreasing probability and cut to ``top_k``, then to the fewest that hold ``top_p``
    of the remaining probability. The token drawn is the first whose cumulative probability exceeds u times
    that of all kept.
    Example: probabilities 0.5, 0.3, 0.2 give the first for u < 0.5, the second for u < 0.8; with top_p = 0.6
    the third is cut, and the second comes from u = 0.625.

    Without ``top_k`` only as many tokens are sorted as hold ``top_p``, tried in growing numbers: a full sort
    of a large vocabulary takes as long as a forward pass of a small model.

    Args:
        logits: any finite numbers (b, vocabulary).
        uniform: numbers in [0, 1) (b,).
        top_k: number of tokens to draw from; None for all.
        top_p: share of their probability to draw from, in (0, 1].
        temperature: divides the logits; above 0.

    Returns:
        Token ids (b,).
    """
    width = logits.shape[1]
    if top_k is not None or top_p == 1:
        top = logits.topk(min(top_k or width, width), 1)  # (b, k) values and indices
        return _pick((top.values.double() / temperature).softmax(1), top.indices, uniform, top_p)
    log_total = (logits / temperature).logsumexp(1, keepdim=True).double()  # (b, 1)
    found = torch.empty(len(logits), dtype=torch.int64, device=logits.device)
    rows, count = torch.arange(len(logits), device=logits.device), _FIRST_CANDIDATES
    while len(rows):
        top = logits[rows].topk(min(count, width), 1)  # (undecided rows, c)
        p = (top.values.double() / temperature - log_total[rows]).exp()  # (undecided rows, c)
        enough = (p.sum(1) >= top_p) | (count >= width)  # (undecided rows,)
        found[rows[enough]] = _pick(p[enough], top.indices[enough], uniform[rows[enough]], top_p)
        rows, count = rows[~enough], 8 * count
    return found


def _pick(
    p: Float64[Tensor, "b c"], tokens: Int[Tensor, "b c"], uniform: Float64[Tensor, " b"], top_p: float
) -> Int[Tensor, " b"]:
    """Token drawn in each row, from the probabilities of candidates in decreasing order."""
    kept = p.cumsum(1) - p < top_p  # (b, c): the tokens before it do not hold top_p yet
    total = torch.where(kept, p, 0).cumsum(1)  # (b, c)
    index = (total <= uniform[:, None] * total[:, -1:]).sum(1)  # (b, c) <= (b, 1) * (b, 1), summed to (b,)
    return tokens.gather(1, index[:, None])[:, 0]  # (b, 1) -> (b,)


def _text(tokenizer: Any, prompt: list[int], new: list[int]) -> str:
    """Text that the new ids add, with the space that some tokenizers drop at the start of a text."""
    before = tokenizer.decode(prompt, skip_special_tokens=True)
    return str(tokenizer.decode([*prompt, *new], skip_special_tokens=True))[len(before) :]


def _check(
    model: EditableModel,
    prompts: Sequence[str],
    rows: Sequence[list[int]],
    new: Sequence[int],
    choice: _Choice,
    batch_size: int,
) -> None:
    sizes_fit = batch_size >= 1 and (choice.top_k is None or choice.top_k >= 1)
    if not (sizes_fit and 0 < choice.top_p <= 1 and 0 < choice.temperature < float("inf")):
        raise ScoreError(
            f"cannot sample with {choice}, batch_size={batch_size}; batch size and top_k are 1 or more, "
            "top_p lies in (0, 1], and temperature is above 0"
        )
    longest = model.config.max_position_embeddings
    for prompt, ids, count in zip(prompts, rows, new, strict=True):
        if not ids:
            raise ScoreError(f"prompt {prompt!r} gives no token, so nothing can be continued; give it a text")
        if count < 1:
            raise ScoreError(f"prompt {prompt!r} of {len(ids)} tokens leaves {count} to sample; ask for more")
        if len(ids) + count > longest:
            raise ScoreError(
                f"prompt {prompt!r} of {len(ids)} tokens and {count} new ones exceed the context of "
                f"{model.name}, {longest} tokens; ask for fewer"
            )
