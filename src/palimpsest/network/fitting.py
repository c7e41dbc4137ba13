"""Whether what was loaded fits together: tensors and architecture, tokenizer and embeddings, and the context.

A fault with which the model cannot be used is an error. What is odd and does no harm by itself is a line on
the error stream.
"""

import re
import sys
from collections.abc import Mapping
from typing import Any

from palimpsest.network.sources import unusable

HARMLESS = (
    r"(^|\.)(attn|attention)\.(masked_)?bias$",
    r"inv_freq$",
    r"(^|\.)position_ids$",
)
"""Patterns of tensors that old checkpoints hold and no network needs: masks and positions.

Transformers leaves out more of them by itself (``_keys_to_ignore_on_load_unexpected``).
"""

CONTEXT = "max_position_embeddings"
"""Field of a configuration with the length of the context; GPT-2 and GPT-J call it ``n_positions``."""

LEAST = 16
"""Tokens of the shortest context in which a prompt and an answer have room."""

SHOWN = 3
"""Names that a message lists."""

AGAIN = "Download the folder again, or correct config.json"


def tensors_fit(name: str, found: Mapping[str, Any]) -> None:
    """Check what transformers found out about the weights.

    Args:
        name: of the model.
        found: its ``output_loading_info``.

    Raises:
        ModelError: if weights are missing, have another shape than the architecture gives them, or are no
            part of it (but for HARMLESS ones).
    """
    missing, wrong = sorted(found["missing_keys"]), list(found["mismatched_keys"])
    stray = sorted(key for key in found["unexpected_keys"] if not re.search("|".join(HARMLESS), key))
    if wrong:
        first = wrong[0]
        shapes = f"{first[0]} is {tuple(first[1])}, expected {tuple(first[2])}"
        raise unusable(
            name, f"{len(wrong)} weights have another shape than config.json says: {shapes}", AGAIN
        )
    if missing:
        raise unusable(name, f"{len(missing)} weights are missing, first {missing[0]}", AGAIN)
    if stray:
        raise unusable(
            name,
            f"{len(stray)} tensors are no part of the network that config.json describes: {_some(stray)}",
            "Correct config.json, for example the number of layers, or take them out of the weights",
        )


def tokens_fit(name: str, tokenizer: Any, rows: int) -> None:
    """Check that every token has a row of the embeddings; more rows than tokens are usual.

    Special tokens without a row that the tokenizer sets around no text, as Gemma 3's for images in its models
    without any, are only said: no text gives them unless it spells them out.

    Args:
        name: of the model.
        tokenizer: its tokenizer.
        rows: of its input embeddings.

    Raises:
        ModelError: if a token of texts, or one that begins, ends or fills them, has none.
    """
    beyond = {text: at for text, at in tokenizer.get_vocab().items() if at >= rows}
    special = {one.content for one in tokenizer.added_tokens_decoder.values() if one.special}
    used = {tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token}
    faulty = sorted((at, text) for text, at in beyond.items() if text not in special - used)
    if faulty:
        highest, text = faulty[-1]
        raise unusable(
            name,
            f"its tokenizer has {len(faulty)} tokens without a row of the embeddings, the last {text!r} with "
            f"id {highest}, and the embeddings have {rows} rows",
            "Take the tokenizer that the model was saved with, or enlarge the embeddings "
            "(resize_token_embeddings) and train them",
        )
    if beyond:
        _say(
            f"{name}: its special tokens {_some(sorted(beyond))} have no row of the embeddings; a text that "
            "spells one out cannot be read"
        )


def context_fits(name: str, config: Any, tokenizer: Any, written: Mapping[str, Any] | None) -> None:
    """Check the length of the context that a configuration names, the only one that is used.

    Args:
        name: of the model.
        config: its configuration.
        tokenizer: its tokenizer; a shorter length that it names (``model_max_length``) is said.
        written: config.json as it is written, to see whether the length is; None where there is none.

    Raises:
        ModelError: if it is no length, or shorter than LEAST.
    """
    inner = config.get_text_config()
    field, length = inner.attribute_map.get(CONTEXT, CONTEXT), getattr(inner, CONTEXT, None)
    if not isinstance(length, int) or length < LEAST:
        raise unusable(
            name,
            f"config.json says {field} {length!r}, and a context of fewer than {LEAST} tokens has no room "
            "for a prompt and an answer",
            "Write the number of tokens there that the model was trained on",
        )
    parts = [] if written is None else [written, written.get("text_config") or {}]
    if parts and not any(key in part for part in parts for key in (field, CONTEXT)):
        _say(
            f"{name}: config.json does not say the length of the context ({field}); {length} tokens are "
            f"taken, the default of transformers for {inner.model_type}"
        )
    most = tokenizer.model_max_length
    if most < length:
        _say(
            f"{name}: config.json says {field} {length}, and the tokenizer model_max_length {most}; texts of "
            f"up to {length} tokens are read. Correct the one that is wrong"
        )


def _some(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    left = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {left} more" if left > 0 else "")


def _say(line: str) -> None:
    print(f"palimpsest: {line}", file=sys.stderr)
