"""What an edit may ask for: batches of facts, and facts that fit into the window that a model reads."""

from collections.abc import Sequence

from palimpsest.editors import check_room
from palimpsest.editors.sequential import Sequential
from palimpsest.errors import RequestError
from palimpsest.network.model import EditableModel
from palimpsest.types import EditRequest

ROOM = 4
"""Tokens that a prefix may be longer than its settings say: a full stop, a space, a special token."""


def check_batch(batch: int) -> None:
    """Check the number of facts whose values are optimised together.

    Raises:
        RequestError: if it is below 1.
    """
    if batch < 1:
        raise RequestError(f"batch is {batch}; optimise the values of 1 or more facts together")


def check_window(model: EditableModel, requests: Sequence[EditRequest], editor: Sequential) -> None:
    """Check that prefix, prompt and target of each fact fit into the model's window together.

    Args:
        model: the model that is edited.
        requests: facts.
        editor: settings of the sequence; the prefixes that it samples stand before the prompt.

    Raises:
        RequestError: for the first that is too long; nothing is changed.
    """
    check_room(model, requests)
    window = getattr(model.config, "max_position_embeddings", None)
    if window is None or not editor.contexts.count:
        return
    prefix = editor.contexts.length + ROOM
    for request in requests:
        size = len(model.encode(f"{request.text} {request.target}"))
        if size + prefix > window:
            raise RequestError(
                f"request {request.id!r}: {request.text[:60]!r} needs {size} tokens with its target and up "
                f"to {prefix} for a prefix, and the context of {model.name} holds {window}; shorten the "
                "prompt, the subject or the target"
            )
