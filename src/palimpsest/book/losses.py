"""Which failures of a run may pass by themselves: memory that ran out, a GPU or a process that was lost."""

from collections.abc import Iterator

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


FULL = 69
"""Exit status of a run that a GPU's memory did not hold (EX_UNAVAILABLE): it may succeed on a larger GPU, or
once another process has left this one. More memory of the host does not help."""

OF_GPU = (
    "cuda out of memory",
    "hip out of memory",
    "cuda error: out of memory",
    "cublas_status_alloc_failed",
)
"""Parts of messages that say so, in small letters."""


def is_loss(error: BaseException) -> bool:
    """Whether an error, or the error of a cell that it stands for, or one that caused it, is such a loss."""
    return any(kind in KINDS or any(part in text.lower() for part in TEXTS) for kind, text in _causes(error))


def is_full(error: BaseException) -> bool:
    """Whether such an error says that the memory of a GPU did not suffice."""
    return any(part in text.lower() for _, text in _causes(error) for part in OF_GPU)


def _causes(error: BaseException) -> Iterator[tuple[str, str]]:
    """Name and message of an error, or of a cell's that it stands for, and of those that caused it."""
    found: BaseException | None = error
    while found is not None:
        yield getattr(found, "ename", type(found).__name__), str(getattr(found, "evalue", found))
        found = found.__cause__
