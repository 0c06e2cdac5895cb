"""What the examples share: how they end, and how they measure time, faults, resident memory and the page cache."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar, final

__all__ = [
    "Spent",
    "command",
    "in_page_cache",
    "milliseconds",
    "page_cache",
    "percentile",
    "reset_peak",
    "resident",
    "resident_peak",
    "take_turns",
]

T = TypeVar("T")


def command(main: Callable[[], int]) -> Callable[[], int]:
    """A main() that ends with a line, and not with a traceback, when Ctrl-C comes or the machine says no."""

    @functools.wraps(main)
    def guarded() -> int:
        try:
            return main()
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return 130
        except (OSError, MemoryError) as error:
            print(error, file=sys.stderr)
            return 1

    return guarded


@final
class Spent:
    """Seconds and page faults of a ``with`` block: of all threads, the kernel's own populating included."""

    faults = 0
    seconds = 0.0

    def begin(self) -> None:
        self.faults = -_faults()
        self.seconds = -time.perf_counter()

    def end(self) -> None:
        self.seconds += time.perf_counter()
        self.faults += _faults()

    def __enter__(self) -> Spent:
        self.begin()
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()


def _faults() -> int:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_minflt + usage.ru_majflt


def percentile(values: Sequence[float], percent: float) -> float:
    """By nearest rank: one of the values."""
    ordered = sorted(values)
    return ordered[min(int(len(ordered) * percent / 100), len(ordered) - 1)]


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.2f} ms"


def take_turns(ways: dict[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Every way so many times, one after the other, and another first in each round."""
    names = list(ways)
    results: dict[str, list[T]] = {name: [] for name in names}
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            results[name].append(ways[name]())
    return results


def resident(which: str = "VmRSS") -> int:
    """Resident bytes of this process."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which + ":"))


def resident_peak() -> int:
    """The most there were since reset_peak()."""
    return resident("VmHWM")


def reset_peak() -> None:
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as knob:
        knob.write("5")


def page_cache(path: str, *, fill: bool) -> None:
    """All of the file is in the page cache then, or none of it that was written to the disk and is not mapped."""
    with open(path, "rb", buffering=0) as raw:
        if fill:
            scratch = bytearray(1 << 20)
            while raw.readinto(scratch):
                pass
        else:
            os.fsync(raw)
            os.posix_fadvise(raw.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def in_page_cache(path: str) -> int | None:
    """Bytes of the file in the page cache, by mincore(2). None: it tells only those who might write to the file."""
    if not os.access(path, os.W_OK):
        return None
    with open(path, "rb") as raw, mmap.mmap(raw.fileno(), 0, mmap.MAP_PRIVATE) as pages:
        present = bytearray(-(-len(pages) // mmap.PAGESIZE))
        start = ctypes.c_char.from_buffer(pages)
        vector = ctypes.c_char.from_buffer(present)
        failed = ctypes.CDLL(None).mincore(ctypes.byref(start), ctypes.c_size_t(len(pages)), ctypes.byref(vector))
        del start
    return None if failed else sum(byte & 1 for byte in present) * mmap.PAGESIZE
