"""Which failures of a run may pass by themselves: memory that ran out, a GPU or a process that was lost."""

LOST = 75
"""Exit status of such a run (EX_TEMPFAIL of sysexits.h): the same command may succeed later or elsewhere."""

KINDS = ("OutOfMemoryError", "MemoryError", "DeadKernelError")
"""Names of errors; a kernel dies when the system takes its memory away."""

TEXTS = (
    "out of memory",
    "can't allocate memory",
    "cannot allocate memory",
    "cublas_status_alloc_failed",
    "cuda-capable device(s) is/are busy or unavailable",
    "no cuda-capable device is detected",
    "ecc error",
    "fallen off the bus",
    "gpu is lost",
    "hardware error",
    "unspecified launch failure",
    "kernel died",
)
"""Parts of messages of the driver and of the system, in small letters. An illegal access or an assertion on
the device is no loss: it is a fault of the code, and comes again. A launch that fails for a reason that the
driver does not know counts as one, since no kernel here is written by hand."""


def is_loss(error: BaseException) -> bool:
    """Whether an error, or the error of a cell that it stands for, or one that caused it, is such a loss."""
    found: BaseException | None = error
    while found is not None:
        kind, text = getattr(found, "ename", type(found).__name__), str(getattr(found, "evalue", found))
        if kind in KINDS or any(part in text.lower() for part in TEXTS):
            return True
        found = found.__cause__
    return False
