"""Which failures of a run may pass by themselves: memory that ran out, a GPU or a process that was lost."""

LOST = 75
"""Exit status of such a run (EX_TEMPFAIL of sysexits.h): the same command may succeed later or elsewhere."""

KINDS = ("OutOfMemoryError", "MemoryError", "DeadKernelError")
"""Names of errors; a kernel dies when the system takes its memory away."""

TEXTS = (
    "out of memory",
    "can't allocate memory",
    "Cannot allocate memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDA-capable device(s) is/are busy or unavailable",
    "no CUDA-capable device is detected",
    "uncorrectable ECC error",
    "fallen off the bus",
    "Kernel died",
)
"""Parts of messages of the driver and of the system. An illegal access or an assertion on the device is no
loss: it is a fault of the code, and comes again."""


def is_loss(error: BaseException) -> bool:
    """Whether an error, or the error of a cell that it stands for, or one that caused it, is such a loss."""
    found: BaseException | None = error
    while found is not None:
        kind, text = getattr(found, "ename", type(found).__name__), str(getattr(found, "evalue", found))
        if kind in KINDS or any(part in text for part in TEXTS):
            return True
        found = found.__cause__
    return False
