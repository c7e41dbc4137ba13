"""What all commands share: one place that turns errors into messages, and options that several have."""

import errno
import os
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from palimpsest.book.losses import FULL, LOST, is_full, is_loss
from palimpsest.errors import DataError, FullGpuError, LostRunError, PalimpsestError, ResourceError
from palimpsest.files import special

UNSAID = 3
"""Exit status of `edit --require` if the model does not say a fact."""

FAILED = 70
"""Exit status after an error that no part of the package expects (EX_SOFTWARE of sysexits.h)."""

DEBUG = "--debug"

OF_TYPER: tuple[Any, ...] = tuple(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)
"""Base of typer's own errors, such as an unknown option; typer has no public name for it."""

PASSED: tuple[type[BaseException], ...] = (*OF_TYPER, typer.Exit, typer.Abort)
"""What typer itself turns into messages and exit statuses."""


class OneMessage(TyperGroup):
    """Commands whose errors are one message each; ``--debug``, before or after the command, adds a traceback.

    An expected error of the package exits with status 2, a loss of memory, of the GPU or of a kernel, after
    which the same command may succeed, with 75, a GPU whose memory does not suffice with 69, an interrupt by
    the user with 130, and any other error, which is a fault of the package, with 70: its message says in
    which file the work was, what the cause is, and how to report it.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take ``--debug`` out of the arguments, wherever it stands."""
        ctx.obj = {"debug": DEBUG in args}
        if not sys.stderr.isatty() and "tqdm" not in sys.modules:
            os.environ.setdefault("TQDM_DISABLE", "1")  # bars are for somebody who looks on
        return super().parse_args(ctx, [argument for argument in args if argument != DEBUG])

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except PASSED:
            raise
        except PalimpsestError as error:
            stop(ctx, error, f"{error}", status_of(error))
        except KeyboardInterrupt as error:
            stop(ctx, error, "stopped; the same command goes on from what is done", 130)
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # whoever reads the output has gone
            if is_loss(error):
                stop(ctx, error, lost(error), FULL if is_full(error) else LOST)
            stop(ctx, error, unexpected(error, ctx.invoked_subcommand or ""), FAILED)


def status_of(error: PalimpsestError) -> int:
    """Exit status of an expected error: 69 for a full GPU, 75 where the same command may succeed, else 2."""
    if isinstance(error, FullGpuError) or is_full(error):
        return FULL
    return LOST if isinstance(error, LostRunError) or is_loss(error) else 2


def stop(ctx: Any, error: BaseException, message: str, status: int) -> NoReturn:
    """Print a message, after the traceback if that was asked for, and end with a status."""
    if (ctx.obj or {}).get("debug"):
        echo("".join(traceback.format_exception(error)))
    echo(f"palimpsest: {message}")
    raise typer.Exit(status) from None


def echo(text: str) -> None:
    """Print to standard error, also what cannot be encoded there."""
    encoding = getattr(sys.stderr, "encoding", None) or "utf-8"
    typer.echo(text.encode(encoding, "backslashreplace").decode(encoding), err=True)


def unexpected(error: BaseException, command: str) -> str:
    """The message of an error that no part of the package expects."""
    cause = str(error).strip().partition("\n")[0] or "without a message"
    file = file_of(error)
    where = f" The work was on {file}." if file else ""
    return (
        f"{command or 'the command'} failed with an error that it does not expect, {type(error).__name__}: "
        f"{cause}.{where} Check that file and what was given first. If they are right, this is a fault of "
        f"palimpsest: report it with the command, this message, what {DEBUG} adds to it, and the output of "
        "`palimpsest doctor`"
    )


def lost(error: BaseException) -> str:
    """The message of an error that says that memory did not suffice or a GPU was lost."""
    cause = str(error).strip().partition("\n")[0]
    return (
        f"memory did not suffice, or the GPU was lost ({type(error).__name__}: {cause}). What was done "
        "before is kept; give the same command again, on a device that is free or larger"
    )


def file_of(error: BaseException) -> str:
    """The file that was worked on: that of the error, else the innermost path that the package held."""
    named = getattr(error, "filename", None)
    if isinstance(named, str) and named:
        return named
    found = ""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        found = _path_in(frame) or found
    return found


def _path_in(frame: FrameType) -> str:
    if not str(frame.f_globals.get("__name__", "")).startswith("palimpsest."):
        return ""
    paths = [value for value in frame.f_locals.values() if isinstance(value, Path)]
    return str(paths[-1]) if paths else ""


def usable(name: str) -> str:
    """Check a device that was given as an option; the default is not worth loading torch for.

    Raises:
        ModelError: if there is no such device.
    """
    if name != "cpu":
        from palimpsest.network.placement import placed

        placed(name)
    return name


def readable(path: Path | None) -> Path | None:
    """Check a file that is to be read: from a pipe or a device reading may never end.

    Raises:
        DataError: if it is no file.
    """
    if path is not None and (kind := special(path)):
        raise DataError(f"{path}: is {kind} and no file; write what it gives to a file, and read that")
    return path


def writable(path: Path | None) -> Path | None:
    """Check a file that is to be written, before the work whose result it is to hold.

    Raises:
        ResourceError: if something is there that is no file, and would be replaced or cannot be.
    """
    if path is None:
        return None
    try:
        found = "a folder" if path.is_dir() else special(path)
        size = len(os.fsencode(path.name))
    except (OSError, ValueError) as error:
        raise ResourceError(f"{str(path)!r} cannot be the path of a file: {error}; choose another") from error
    if found or size > LONGEST or not size:
        reason = f"is {found}" if found else f"has a name of {size} bytes, and 1 to {LONGEST} are possible"
        raise ResourceError(f"{path} {reason}; choose the path of a file, which is made or replaced")
    return path


LONGEST = 200
"""Bytes of a file's name: file systems allow 255, and temporary files add to it."""

Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, or auto: all GPUs.", callback=usable)]

NoWait = Annotated[
    bool, typer.Option("--no-wait", help="Stop at once if another process writes the same; name it.")
]

Anyway = Annotated[
    bool, typer.Option("--anyway", help="Run also what by its plan exceeds the memory of its GPU.")
]


def waiting(no_wait: bool) -> float:
    """Seconds to wait for another process: none, or without end, which is -1."""
    return 0 if no_wait else -1
