"""Permissions of files hold for root too: without the two capabilities by which it passes them over."""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

VERSION = 0x20080522
"""Third version of the interface of capset(2): two words of 32 bits each."""
PASSED_OVER = 1 << 1 | 1 << 2
"""CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH, in the first word."""


class _Header(ctypes.Structure):
    _fields_ = (("version", ctypes.c_uint32), ("pid", ctypes.c_int))


class _Word(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint32) for name in ("effective", "permitted", "inheritable"))


@contextmanager
def permissions_hold() -> Iterator[None]:
    """What may not be read or written cannot be inside the block, by this thread and those it starts."""
    if os.geteuid() != 0:
        yield
        return
    if not sys.platform.startswith("linux"):
        pytest.skip("root passes permissions over, and only Linux lets it give that up; run as a user")
    libc, header, words = ctypes.CDLL(None, use_errno=True), _Header(VERSION, 0), (_Word * 2)()
    assert libc.capget(ctypes.byref(header), words) == 0, os.strerror(ctypes.get_errno())
    before = words[0].effective
    try:
        _set(libc, words, before & ~PASSED_OVER)
        yield
    finally:
        _set(libc, words, before)


def _set(libc: ctypes.CDLL, words: "ctypes.Array[_Word]", effective: int) -> None:
    words[0].effective = effective
    assert libc.capset(ctypes.byref(_Header(VERSION, 0)), words) == 0, os.strerror(ctypes.get_errno())
