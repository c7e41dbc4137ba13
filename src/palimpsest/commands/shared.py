"""What all commands share: one place that turns errors into messages, and options that several have."""

import errno
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from palimpsest.book.gpus import RETRY, is_lost
from palimpsest.errors import OutOfMemoryError, PalimpsestError, RetriableError

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

    An expected error of the package exits with status 2, which the same command would do again; want of
    memory and a lost GPU with 75, after which it may succeed; an interrupt by the user with 130; and any
    other error, which is a fault of the package, with 70: its message says in which file the work was, what
    the cause is, and how to report it.
    """

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Take ``--debug`` out of the arguments, wherever it stands."""
        ctx.obj = {"debug": DEBUG in args}
        return super().parse_args(ctx, [argument for argument in args if argument != DEBUG])

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except PASSED:
            raise
        except (RetriableError, OutOfMemoryError) as error:
            stop(ctx, error, f"{error}", RETRY)
        except PalimpsestError as error:
            stop(ctx, error, f"{error}", 2)
        except KeyboardInterrupt as error:
            stop(ctx, error, "stopped; the same command goes on from what is done", 130)
        except Exception as error:
            if isinstance(error, OSError) and error.errno == errno.EPIPE:
                raise  # whoever reads the output has gone
            if is_lost(type(error).__name__, f"{error}"):
                stop(ctx, error, lost(error), RETRY)
            stop(ctx, error, unexpected(error, ctx.invoked_subcommand or ""), FAILED)


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
        from palimpsest.network.device import device

        device(name)
    return name


Device = Annotated[str, typer.Option(help="Where to compute: cpu or cuda.", callback=usable)]

NoWait = Annotated[
    bool, typer.Option("--no-wait", help="Stop at once if another process writes the same; name it.")
]


def waiting(no_wait: bool) -> float:
    """Seconds to wait for another process: none, or without end, which is -1."""
    return 0 if no_wait else -1
