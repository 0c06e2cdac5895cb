"""What a cycle does with a buffer, and how it waits: each by one call of C that Python has, so that all ways pay the
same microsecond for being Python."""

from __future__ import annotations

import ctypes
import errno
import os
import time
from typing import Any

from ..realtime import count_page_faults

__all__ = ["Toucher", "sleep_until"]

TIMER_ABSTIME = 1

_clock_nanosleep = ctypes.CDLL(None).clock_nanosleep


class Toucher:
    """Writes and reads buffers of ``nbytes``. What that needs is made here, and not in the cycle."""

    def __init__(self, nbytes: int, page: int) -> None:
        self.page = page
        self.ones = b"\1" * -(-nbytes // page)
        self.counter = count_page_faults()

    def write(self, buffer: Any) -> int:
        """Write one byte of each page. The thread's page faults meanwhile are returned."""
        with memoryview(buffer) as view, self.counter:
            view[:: self.page] = self.ones
        return self.counter.minor + self.counter.major

    def fill(self, buffer: Any) -> int:
        """Write every byte. The thread's page faults meanwhile are returned."""
        first = ctypes.c_char.from_buffer(buffer)
        at, nbytes = ctypes.addressof(first), len(buffer)
        with self.counter:
            ctypes.memset(at, 1, nbytes)
        return self.counter.minor + self.counter.major

    def read(self, buffer: Any) -> bytes:
        """Read one byte of each page."""
        with memoryview(buffer) as view:
            return bytes(view[:: self.page])


class Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


def sleep_until(deadline: int) -> None:
    """Sleep until time.monotonic_ns() is ``deadline``. Signal handlers run, and what they raise is raised.

    time.sleep() takes a duration and no deadline: the time between reading the clock and sleeping would count as late.
    """
    if deadline < 0:
        raise ValueError("the clock never was below 0")
    when = ctypes.byref(Timespec(*divmod(deadline, 10**9)))
    while failed := _clock_nanosleep(time.CLOCK_MONOTONIC, TIMER_ABSTIME, when, None):
        if failed != errno.EINTR:
            raise OSError(failed, f"clock_nanosleep: {os.strerror(failed)}")
