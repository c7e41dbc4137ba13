"""Encoding of texts as token ids: special tokens, spaces before targets, subject position, padding.

Conventions. A prompt is encoded as the tokenizer does by default, with a beginning-of-sequence token where
the model has one (Llama-3) and never with an end token. A target's ids, which are appended to the prompt's,
are those by which prompt, space and target together are longer than the prompt, so that writing and scoring
see the tokens of the whole text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from palimpsest.errors import RequestError, ShapeError
from palimpsest.types import JOINER, SLOT, plain


@dataclass(frozen=True)
class Batch:
    """Padded sequences of token ids.

    Attributes:
        ids: token ids (b, t).
        mask: True at real tokens (b, t).
    """

    ids: Int[Tensor, "b t"]
    mask: Bool[Tensor, "b t"]

    @property
    def positions(self) -> Int[Tensor, "b t"]:
        """Position of each token in its own sequence; 0 at padding before it."""
        return (self.mask.long().cumsum(1) - 1).clamp(min=0)

    def attention(self, dtype: torch.dtype, seen: int = 0) -> Int[Tensor, "b s"]:
        """Mask that a network takes: 1 at real tokens and at ``seen`` ones before them, s = seen + t."""
        return torch.nn.functional.pad(self.mask.long(), (seen, 0), value=1)

    def behind(self, prefix: Sequence[int]) -> "Batch":
        """The same rows, each with these ids before its padding and tokens, (b, p + t)."""
        ids = torch.tensor(list(prefix), dtype=self.ids.dtype, device=self.ids.device)
        first = ids.expand(len(self.ids), -1)  # (p,) -> (b, p)
        return Batch(
            torch.cat([first, self.ids], 1), torch.cat([torch.ones_like(first).bool(), self.mask], 1)
        )

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device."""
        return Batch(self.ids.to(device), self.mask.to(device))


def encode(tokenizer: Any, text: str) -> list[int]:
    """Ids of a prompt, with the model's own beginning token and without an end token."""
    ids = list(tokenizer(text)["input_ids"])
    if ids and ids[-1] == tokenizer.eos_token_id and not text.endswith(str(tokenizer.eos_token)):
        ids.pop()
    return ids


def token_windows(tokenizer: Any, texts: Sequence[str], tokens: int, window: int) -> list[list[int]]:
    """Texts cut into windows of token ids, exactly ``tokens`` ids in all.

    Args:
        tokenizer: of the model that is to read them.
        texts: cut in their order; the last window ends where enough ids are collected.
        tokens: number of ids.
        window: ids in a whole window.

    Raises:
        ShapeError: if the texts hold fewer tokens than requested.
    """
    windows: list[list[int]] = []
    left = tokens
    for text in texts:
        ids = encode(tokenizer, text)
        for start in range(0, len(ids), window):
            piece = ids[start : start + min(window, left)]
            windows.append(piece)
            left -= len(piece)
            if left == 0:
                return windows
    raise ShapeError(f"the texts hold {tokens - left} tokens, {tokens} were asked for; ask for fewer")


def encode_target(tokenizer: Any, target: str, prompt: str = "") -> list[int]:
    """Ids of a target: those of the prompt, a space and the target, without those of the prompt.

    Without a prompt, and where the tokens of the whole text do not begin with those of the prompt, they are
    the ids of ``" " + target`` alone. A target of `palimpsest.types.unspaced` has no space before it.

    Args:
        tokenizer: of the model.
        target: the object.
        prompt: text before it, the subject filled in.

    Raises:
        RequestError: if the target is empty or gives no token.
    """
    text = plain(target) if target.startswith(JOINER) else f" {target}"
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text.strip() else []
    if not ids:
        raise RequestError(f"target {target!r} gives no token; give it a text")
    before, whole = encode(tokenizer, prompt), encode(tokenizer, prompt + text)
    follows = bool(before) and len(whole) > len(before) and whole[: len(before)] == before
    return whole[len(before) :] if follows else ids


def encode_around_subject(
    tokenizer: Any, prompt: str, subject: str, prefix: str = ""
) -> tuple[list[int], int]:
    """Ids of ``prefix`` + the filled prompt, and the index of the subject's last token.

    Args:
        tokenizer: a fast tokenizer (offsets are needed).
        prompt: text with one ``{}`` for the subject.
        subject: the entity.
        prefix: context before the prompt; braces in it are kept unchanged.

    Raises:
        RequestError: if the subject's last character belongs to no token.
    """
    before, after = prompt.split(SLOT)
    text = prefix + before + subject + after
    last = len(prefix + before + subject.rstrip()) - 1
    offsets = tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
    hits = [i for i, (start, end) in enumerate(offsets) if start <= last < end]
    if not hits:
        raise RequestError(f"the subject {subject!r} has no token in {text!r}; check its characters")
    return encode(tokenizer, text), hits[-1]


def pad(
    tokenizer: Any, sequences: Sequence[Sequence[int]], side: Literal["left", "right"] = "right"
) -> Batch:
    """Pad sequences of ids to one batch (b, t); padding is masked, whatever its id."""
    width = max(len(s) for s in sequences)
    fill = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id or 0
    ids = torch.full((len(sequences), width), int(fill))
    mask = torch.zeros(len(sequences), width, dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        start = width - len(sequence) if side == "left" else 0
        ids[row, start : start + len(sequence)] = torch.as_tensor(sequence)
        mask[row, start : start + len(sequence)] = True
    return Batch(ids, mask)
