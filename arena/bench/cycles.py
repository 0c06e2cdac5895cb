"""The loop that is measured: wake up, take a buffer, write it, give it back, while others are kept for a while."""

from __future__ import annotations

import contextlib
import gc
import resource
import time
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from . import _calls
from .pressure import fork_once
from .ways import Way

__all__ = ["LIVE", "Samples", "quiet", "turn"]

KEPT = (0, 1, 2, 3, 2, 1)  # buffers that are live beside the cycle's own, cycle by cycle
LIVE = max(KEPT) + 1
SETTLE = len(KEPT)  # cycles of a turn that are not counted: all of the buffers have been there once


@dataclass
class Samples:
    """Nanoseconds, cycle by cycle, and the thread's page faults: in the buffers, and in whole cycles."""

    wake: array[int] = field(default_factory=lambda: array("q"))
    memory: array[int] = field(default_factory=lambda: array("q"))
    buffer_faults: int = 0
    cycle_faults: int = 0


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without the garbage collector, and with what there is already out of its sight."""
    enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


def faults() -> int:
    usage = resource.getrusage(resource.RUSAGE_THREAD)
    return usage.ru_minflt + usage.ru_majflt


def turn(way: Way, size: int, page: int, cycles: int, period: int, forks: bool, into: Samples) -> None:
    """So many cycles of one way, after some to settle. ``page``: as for _calls.write(). A ``period`` of 0: at once.

    The two clock readings around take, write and give are Python's: the same for every way, about 0.1 us.
    """
    wake, memory = array("q", bytes(8 * cycles)), array("q", bytes(8 * cycles))
    take, give, write, clock = way.take, way.give, _calls.write, time.monotonic_ns
    kept: list[Any] = []
    in_buffers = before = 0
    try:
        with way.ready():
            if forks:
                fork_once()
            deadline = clock() + period
            for i in range(-SETTLE, cycles):
                if i == 0:
                    in_buffers, before = 0, faults()
                while len(kept) > KEPT[i % len(KEPT)]:
                    give(kept.pop(0))
                while len(kept) < KEPT[i % len(KEPT)]:
                    kept.append(take(size))
                    in_buffers += write(kept[-1], 4096, 1)
                if period:
                    _calls.sleep_until(deadline)
                    late = clock() - deadline
                    # A cycle that was missed is not made up for: the next are not late because of it.
                    deadline += period * (1 + max(late, 0) // period)
                else:
                    late = 0
                start = clock()
                buffer = take(size)
                touched = write(buffer, page, i & 255)
                give(buffer)
                del buffer
                taken = clock() - start
                in_buffers += touched
                if i >= 0:
                    wake[i], memory[i] = late, taken
            in_all = faults() - before
    finally:
        while kept:
            give(kept.pop())
    into.wake.extend(wake)
    into.memory.extend(memory)
    into.buffer_faults += in_buffers
    into.cycle_faults += in_all
