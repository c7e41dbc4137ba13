"""What the end of a job means: done, lost and worth another try, or refused for this batch."""

import signal

from palimpsest.book.losses import FULL, LOST

STOPPED = 130
"""Exit status after an interruption by the user."""


def retried(status: int, first: bool = True) -> bool:
    """Whether the same job may succeed at another try.

    Only where memory, a GPU or a process was lost: status 75, or an end by a signal, as a number below zero
    or as a shell gives it, and so at the end of its time. Where a GPU's memory did not suffice (69), once
    more, since another process may have used it. An error of the user (2) or a fault of the package (70)
    comes again.

    Args:
        status: of the job.
        first: whether it has not ended with 69 in this batch before.
    """
    if status == FULL:
        return first
    by_shell = 128 < status < 128 + signal.NSIG
    return status == LOST or status < 0 or (by_shell and status != STOPPED)


def in_words(status: int) -> str:
    """A status as a message says it."""
    if status < 0:
        return f"ended by {signal.Signals(-status).name}"
    known = {
        2: "refused, status 2",
        FULL: f"the GPU's memory did not suffice, status {FULL}",
        LOST: f"lost memory, GPU or node, status {LOST}",
    }
    return known.get(status, f"failed with status {status}")
