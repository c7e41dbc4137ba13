"""Named errors of the package. Every message says what happened, with which value, and what to do."""


class PalimpsestError(Exception):
    """Base of every error this package raises on purpose."""


class RequestError(PalimpsestError, ValueError):
    """An edit request or an evaluation case is not usable as written."""


class UnknownNameError(PalimpsestError, KeyError):
    """A model, editor, profile, parameter or metric of that name does not exist."""

    def __init__(self, kind: str, name: str, known: list[str]) -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        super().__init__(name)

    def __str__(self) -> str:
        return f"unknown {self.kind} {self.name!r}; choose one of: {', '.join(self.known)}"


class ResourceError(PalimpsestError, OSError):
    """A pinned resource could not be fetched, verified or read."""


class BusyError(PalimpsestError, OSError):
    """Another process writes the same file or folder; the message says which, and since when."""


class ModelError(PalimpsestError, ValueError):
    """A network is of no supported family, or lacks what a family row promises."""


class SiteError(PalimpsestError, RuntimeError):
    """A requested site does not exist, or never fired during a forward pass."""


class NonFiniteError(PalimpsestError, ArithmeticError):
    """A tensor holds NaN or infinity; nothing was changed."""


class SingularProblemError(PalimpsestError, ArithmeticError):
    """A least-squares problem has no unique solution; the message says what to raise."""


class ShapeError(PalimpsestError, ValueError):
    """Tensors do not fit together; the message names expected and given shapes."""


class OutOfMemoryError(PalimpsestError, MemoryError):
    """The smallest piece of the work does not fit into memory; the message says how much it asks for."""


class DataError(PalimpsestError, ValueError):
    """A data file is malformed; the message lists the lines and the reasons."""


class ScoreError(PalimpsestError, ValueError):
    """Cases or measured values cannot be scored or averaged as given."""


class ProfileError(PalimpsestError, ValueError):
    """A profile or a settings file holds a value that is not allowed."""


class NotebookError(PalimpsestError, RuntimeError):
    """A notebook failed or may not be run as asked; earlier results are untouched."""


class LostRunError(NotebookError):
    """A run ended for want of memory, or lost its GPU or its process; the same command may succeed later."""


class FullGpuError(LostRunError):
    """A run did not fit into the memory of a GPU; a larger or an idle one may hold it."""


class ShardError(PalimpsestError, ValueError):
    """Shards of second moments do not belong together, or some are missing or damaged."""


class BookError(PalimpsestError, RuntimeError):
    """The book was not built, or the built one is not as required."""


class LedgerError(PalimpsestError, ValueError):
    """A ledger's facts, site or file do not allow what was requested; the ledger is unchanged."""


class StateError(PalimpsestError, TypeError):
    """One method received the state of another; the message says how to begin from what they share."""


class SequenceError(PalimpsestError, ValueError):
    """A sequence of edits was continued on weights other than its own, or its settings contradict."""
