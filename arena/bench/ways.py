"""Where a loop's buffers come from: the arena, ordinary memory, and memory that is always there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from .. import Arena
from ..realtime import lock_memory

__all__ = ["ARENA", "OURS", "RESIDENT", "Way", "ways"]

ARENA, RESIDENT = "arena", "memset"
OURS = (ARENA, RESIDENT)  # those of which tails are compared


@dataclass(frozen=True)
class Way:
    """``take(nbytes)`` and ``give(buffer)``; inside ``with way.ready()`` as a real-time program would have it."""

    name: str
    take: Callable[[int], Any]
    give: Callable[[Any], object]
    lock: bool = False

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """mlockall(MCL_FUTURE) would populate ordinary memory too: it is in force in the arena's turns only."""
        with lock_memory() if self.lock else contextlib.nullcontext():
            yield

    def after_fork(self) -> None:
        """What a fork has made copy-on-write is this process's own again, where it is locked."""
        with self.ready():
            pass


def ways(stack: contextlib.ExitStack, size: int, live: int) -> tuple[list[Way], str]:
    """The ways to have ``live`` buffers of ``size`` bytes, closed with the stack; and what was locked, in words."""
    space = (2 * live + 1) * (size + (2 << 20))
    try:
        arena, locked, said = Arena(space, fork="drop", lock=True, name="latency"), True, "the arena is locked"
        stack.callback(arena.close)
        arena.warm(2 * live * size)
    except OSError as error:
        arena, locked, said = Arena(space, fork="drop", name="latency"), False, f"the arena is not locked: {error}"
        stack.callback(arena.close)
        arena.warm(2 * live * size)
    everything = False
    if locked:
        try:
            with lock_memory():
                everything = True
        except OSError as error:
            said += f"; the process is not: {error}"
        else:
            said += ", and in its turns and memset's the whole process"
    # The floor: as many blocks of the same memory, taken from a list and put back there.
    resident = [arena.alloc(size) for _ in range(live)]
    for block in resident:
        stack.callback(block.free)
    found = [
        Way(ARENA, arena.alloc, lambda block: block.free(), lock=everything),
        Way(RESIDENT, lambda nbytes: resident.pop(), resident.append, lock=everything),
        Way("bytearray", bytearray, lambda buffer: None),
    ]
    with contextlib.suppress(ImportError):
        import numpy as np

        found.append(Way("np.empty", lambda nbytes: np.empty(nbytes, "u1"), lambda buffer: None))
    return found, said
