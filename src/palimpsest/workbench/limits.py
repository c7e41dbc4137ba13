"""Whether facts fit into the window that a model reads."""

from collections.abc import Sequence

from palimpsest.editors.sequential import Sequential
from palimpsest.errors import RequestError
from palimpsest.network.model import EditableModel
from palimpsest.types import EditRequest

ROOM = 4
"""Tokens that a prefix may be longer than its settings say: a full stop, a space, a special token."""


def check_window(model: EditableModel, requests: Sequence[EditRequest], editor: Sequential) -> None:
    """Check that prefix, prompt and target of each fact fit into the model's window together.

    Args:
        model: the model that is edited.
        requests: facts, each with an id.
        editor: settings of the sequence; the prefixes that it samples stand before the prompt.

    Raises:
        RequestError: for the first that is too long; nothing is changed.
    """
    window = getattr(model.net.config, "max_position_embeddings", None)
    if window is None:
        return
    prefix = editor.contexts.length + ROOM if editor.contexts.count else 0
    for request in requests:
        size = len(model.encode(f"{request.text} {request.target}"))
        if size + prefix > window:
            raise RequestError(
                f"fact {request.id!r} is {size} tokens long with its target, {model.name} reads {window} at "
                f"once, and a prefix takes up to {prefix}; shorten the prompt, the subject or the target"
            )
