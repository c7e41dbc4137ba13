"""Locks: one process at a time, the holder by name, and nothing left behind."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from palimpsest.errors import BusyError, ResourceError
from palimpsest.files import holders, lock_file, locked

HOLD = """
import sys
from pathlib import Path
from palimpsest.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def other_process(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock until its input ends."""
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        try:
            yield process
        finally:
            process.kill()


def test_a_lock_may_be_held_several_times_over_and_leaves_nothing(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "out"
    with locked(path):
        with locked(path):
            assert lock_file(path).is_file()
        assert lock_file(path).is_file()
    assert list(path.parent.iterdir()) == []


def test_it_is_released_after_an_error(tmp_path: Path) -> None:
    def fail() -> None:
        with locked(tmp_path / "out"):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_another_process_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out"
    with other_process(path) as process:
        who = rf"{path} is in use by process {process.pid} on \S+ since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d\S+; "
        with pytest.raises(
            BusyError, match=f"{who}wait until that ends, or end it, and give the same command"
        ):
            locked(path, wait=0).__enter__()
        assert capsys.readouterr().err == ""
        with pytest.raises(BusyError):
            locked(path, wait=0.01).__enter__()
        assert re.fullmatch(rf"palimpsest: {who}waiting until that ends\n", capsys.readouterr().err)


def test_the_second_waits_until_the_first_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "out"
    with other_process(path) as process:
        assert process.stdin is not None
        process.stdin.close()  # it ends now or while we wait
        with locked(path, wait=60):
            assert lock_file(path).read_text().startswith(f"process {os.getpid()} on ")
    assert capsys.readouterr().err.count("\n") <= 1
    assert list(tmp_path.iterdir()) == []


def test_a_killed_holder_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / "out"
    with other_process(path) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert lock_file(path).is_file()
    with locked(path, wait=0):
        pass
    assert list(tmp_path.iterdir()) == []


def test_where_no_lock_can_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("a file")
    with pytest.raises(
        ResourceError, match=r"cannot write in .*file: .*; choose another folder, or make that"
    ):
        locked(tmp_path / "file" / "out").__enter__()
    with pytest.raises(ResourceError, match="File name too long"):
        locked(tmp_path / ("x" * 250)).__enter__()


def test_holders_are_those_of_locks_that_are_held(tmp_path: Path) -> None:
    assert holders(tmp_path / "absent", deep=True) == {}
    here, below, dead = tmp_path / "here", tmp_path / "a" / "b" / ".hidden", tmp_path / "dead"
    lock_file(dead).write_text("process 1 on a machine that was switched off")
    with other_process(here) as one, other_process(below) as two:
        found = holders(tmp_path, deep=True)
        assert found.keys() == {here, below}
        assert found[here].startswith(f"process {one.pid} on ")
        assert found[below].startswith(f"process {two.pid} on ")
        assert holders(tmp_path).keys() == {here}
        with pytest.raises(BusyError):  # it is still held
            locked(here, wait=0).__enter__()
    assert holders(tmp_path, deep=True) == {}
