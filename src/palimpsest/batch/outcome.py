"""What the end of a job means: done, lost and worth another try, or refused for this batch."""

import signal

from palimpsest.book.losses import LOST

STOPPED = 130
"""Exit status after an interruption by the user."""


def retried(status: int) -> bool:
    """Whether the same job may succeed at another try.

    Only where memory, a GPU or a process was lost: status 75, or an end by a signal, as a number below zero
    or as a shell gives it. An error of the user (2) or a fault of the package (70) comes again.
    """
    by_shell = 128 < status < 128 + signal.NSIG
    return status == LOST or status < 0 or (by_shell and status != STOPPED)


def in_words(status: int) -> str:
    """A status as a message says it."""
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    return {2: "refused, status 2", LOST: f"lost memory, GPU or node, status {LOST}"}.get(
        status, f"failed with status {status}"
    )
