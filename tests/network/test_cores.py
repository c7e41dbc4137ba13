"""Work in pieces: on all cores with one thread each, in the caller's order, and in halves without memory."""

import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import torch

from palimpsest.errors import OutOfMemoryError
from palimpsest.network import cores
from palimpsest.network.activations import capture
from palimpsest.network.cores import (
    LARGE,
    M_MMAP_THRESHOLD,
    give_back,
    in_halves,
    return_freed_blocks,
    side_by_side,
)
from palimpsest.network.model import Site
from palimpsest.network.packed import pack
from tests.tiny import tiny_model

CPU = torch.device("cpu")


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("two_threads")
def test_results_come_in_order_from_workers_with_one_thread() -> None:
    both = threading.Barrier(2, timeout=20)  # passed only if two items run at once

    def work(item: int) -> tuple[int, int]:
        both.wait()
        return item * item, torch.get_num_threads()

    assert side_by_side(work, range(6), CPU) == [(i * i, 1) for i in range(6)]
    assert torch.get_num_threads() == 2


@pytest.mark.usefixtures("two_threads")
def test_an_error_ends_the_work_and_gives_the_threads_back() -> None:
    begun = []

    def work(item: int) -> None:
        begun.append(item)
        raise ZeroDivisionError(item)

    with pytest.raises(ZeroDivisionError, match="0"):
        side_by_side(work, range(1000), CPU)
    assert len(begun) < 1000
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("device", ["meta", "cpu"])
@pytest.mark.usefixtures("one_thread")
def test_with_one_thread_or_on_a_device_it_is_a_loop(device: str) -> None:
    here = threading.get_ident()
    assert side_by_side(lambda i: threading.get_ident() == here, range(3), torch.device(device)) == [True] * 3


@pytest.mark.usefixtures("two_threads")
def test_passes_of_two_threads_through_one_model_read_their_own_states() -> None:
    model, site = tiny_model("llama"), Site(2, "hidden")
    rows = [[[i, i + 1, i + 2]] for i in range(2, 40)]
    expected = [capture(model, pack(own), [site])[site] for own in rows]
    found = side_by_side(lambda own: capture(model, pack(own), [site])[site], rows, CPU)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
    assert not model.layer(2)._forward_hooks


def fits(most: int, error: Exception) -> tuple[list[list[int]], "object"]:
    """Work that fails on more than so many items, and what it was asked."""
    asked: list[list[int]] = []

    def work(items: Sequence[int]) -> list[int]:
        asked.append(list(items))
        if len(items) > most:
            raise error
        return list(items)

    return asked, work


SHORT = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    MemoryError(),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
]


@pytest.mark.parametrize("error", SHORT)
def test_without_memory_it_goes_on_in_halves_and_says_so(
    error: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    asked, work = fits(2, error)
    found = in_halves(work, range(5), "facts")  # type: ignore[arg-type]
    assert [i for part in found for i in part] == [0, 1, 2, 3, 4]
    assert asked == [[0, 1, 2, 3, 4], [0, 1], [2, 3, 4], [2], [3, 4]]
    said = capsys.readouterr().out
    assert said.count("\n") == 2
    assert "5 facts at once do not fit into memory; going on with 2" in said


def test_one_item_that_does_not_fit_is_an_error_with_the_amount() -> None:
    _, work = fits(0, SHORT[0])
    with pytest.raises(OutOfMemoryError, match=r"one of the facts alone.*20\.00 MiB.*narrower dtype"):
        in_halves(work, range(4), "facts")  # type: ignore[arg-type]


def test_other_errors_pass() -> None:
    asked, work = fits(0, RuntimeError("shapes do not fit"))
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        in_halves(work, range(4), "facts")  # type: ignore[arg-type]
    assert len(asked) == 1


def test_the_c_library_is_asked_to_give_large_blocks_back(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int]] = []

    class Library:
        """A C library that notes what it is asked."""

        def mallopt(self, name: int, value: int) -> None:
            asked.append((name, value))

    monkeypatch.setattr(cores.ctypes, "CDLL", lambda _: Library())
    return_freed_blocks()
    assert asked == [(M_MMAP_THRESHOLD, LARGE)]


def test_another_c_library_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cores.ctypes, "CDLL", lambda _: object())
    return_freed_blocks()
    give_back()


HELD = (
    "import torch\n"
    "from palimpsest.network.cores import LARGE, give_back, return_freed_blocks\n"
    "def held():\n"
    "    rows = open('/proc/self/status').read().splitlines()\n"
    "    return next(int(row.split()[1]) for row in rows if row.startswith('RssAnon')) * 1024\n"
)
"""Beginning of a program that asks how much memory it holds."""


def told(program: str) -> float:
    """The number that a program prints, which runs in a process of its own: settings hold for a whole one."""
    if not Path("/proc/self/status").is_file():
        pytest.skip("this system does not tell a process's memory in /proc; runs on Linux")
    command = [sys.executable, "-c", HELD + program]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_a_block_that_is_freed_is_given_back() -> None:
    program = (
        "return_freed_blocks()\n"
        "size = 8 * LARGE\n"
        "torch.zeros(size, dtype=torch.uint8).add_(1)\n"  # glibc has now seen such a block freed
        "before = held()\n"
        "kept = [torch.ones(size, dtype=torch.uint8) for _ in range(4)]\n"
        "kept[:3] = []\n"  # holes below the last block
        "print((held() - before) / size)\n"
    )
    assert told(program) == pytest.approx(1, abs=0.3)


def test_small_blocks_below_one_that_is_held_are_given_back_on_request() -> None:
    program = (
        "kept = [torch.ones(2**16, dtype=torch.uint8) for _ in range(1024)]\n"  # 64 MiB
        "kept[:-1] = []\n"
        "before = held()\n"
        "give_back()\n"
        "print((before - held()) / 2**26)\n"
    )
    assert told(program) == pytest.approx(1, abs=0.3)
