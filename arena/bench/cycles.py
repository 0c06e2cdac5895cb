"""The loop that is measured: wake up, take a buffer, write it, give it back, while others are kept for a while."""

from __future__ import annotations

import mmap
import resource
import time
from array import array
from dataclasses import dataclass, field
from typing import Any

from .pressure import fork_once
from .touch import Toucher, sleep_until
from .ways import Way

__all__ = ["LIVE", "PAGE", "Samples", "turn"]

PAGE = mmap.PAGESIZE
KEPT = (0, 1, 2, 3, 2, 1)  # how many buffers are live beside the cycle's own, cycle by cycle
LIVE = max(KEPT) + 1
SETTLE = len(KEPT)  # so many first cycles of a turn are not counted: after them every buffer was taken once
# The kernel lets real-time threads have 95% of a second (sched_rt_runtime_us): without pauses, so many nanoseconds are
# followed by a rest of an eighth.
STINT, REST = 40_000_000, 8


@dataclass
class Samples:
    """Nanoseconds of each cycle, and the thread's page faults in the buffers and in whole cycles."""

    wake: array[int] = field(default_factory=lambda: array("q"))
    memory: array[int] = field(default_factory=lambda: array("q"))
    buffer_faults: int = 0
    cycle_faults: int = 0


def faults() -> int:
    usage = resource.getrusage(resource.RUSAGE_THREAD)
    return usage.ru_minflt + usage.ru_majflt


def turn(way: Way, size: int, page: int, cycles: int, period: int, forks: bool, into: Samples) -> float:
    """Run so many cycles of one way, after some to settle, and, with ``forks``, after a fork. The seconds are returned.

    One byte of every ``page`` is written, or with 0 all of them. With a ``period`` of 0 one cycle follows the other. A
    buffer that is kept has a byte of each page written when it is taken, and read before it is given back. What is
    Python's of take, write and give is the same for every way: a microsecond for a byte a page, two when it is filled.
    """
    wake, memory = array("q", bytes(8 * cycles)), array("q", bytes(8 * cycles))
    touch = Toucher(size, PAGE)
    take, give, write, clock = way.take, way.give, touch.write if page else touch.fill, time.monotonic_ns
    kept: list[Any] = []
    in_buffers = before = 0
    try:
        with way.ready():
            began = rested = clock()
            deadline = began + period
            for i in range(-SETTLE, cycles):
                if i == 0:
                    if forks:
                        fork_once()
                        way.after_fork()
                    in_buffers, before = 0, faults()
                    began = clock()
                    deadline = began + period
                while len(kept) > KEPT[i % len(KEPT)]:
                    touch.read(kept[0])
                    give(kept.pop(0))
                while len(kept) < KEPT[i % len(KEPT)]:
                    kept.append(take(size))
                    in_buffers += touch.write(kept[-1])
                if period:
                    sleep_until(deadline)
                    late = clock() - deadline
                    # A cycle that was missed is not made up for, so it does not make the next ones late.
                    deadline += period * (1 + max(late, 0) // period)
                else:
                    late = 0
                    if (worked := clock() - rested) > STINT:
                        time.sleep(worked / REST / 1e9)
                        rested = clock()
                start = clock()
                buffer = take(size)
                touched = write(buffer)
                give(buffer)
                del buffer
                taken = clock() - start
                in_buffers += touched
                if i >= 0:
                    wake[i], memory[i] = late, taken
            in_all = faults() - before
            took = clock() - began
    finally:
        while kept:
            give(kept.pop())
    into.wake.extend(wake)
    into.memory.extend(memory)
    into.buffer_faults += in_buffers
    into.cycle_faults += in_all
    return took / 1e9
