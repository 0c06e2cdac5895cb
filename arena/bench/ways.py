"""Where a loop's buffers come from: the arena, ordinary memory, and memory that is always there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from .. import Arena
from ..realtime import lock_memory

__all__ = ["ARENA", "RESIDENT", "Way", "ways"]

ARENA, RESIDENT = "arena", "memset"


class Way:
    """``take(nbytes)`` and ``give(buffer)``; inside ``with way.ready()`` as a real-time program would have it."""

    def __init__(
        self, name: str, take: Callable[[int], Any], give: Callable[[Any], object] | None = None, *, lock: bool = False
    ) -> None:
        self.name = name
        self.take = take
        self.give = give or (lambda buffer: None)
        self.lock = lock

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """mlockall(MCL_FUTURE) would populate ordinary memory too: it is in force in the arena's turns only."""
        with lock_memory() if self.lock else contextlib.nullcontext():
            yield


def ways(stack: contextlib.ExitStack, size: int, live: int) -> tuple[list[Way], str]:
    """The ways to have ``live`` buffers of ``size`` bytes, closed with the stack; and what was locked, in words."""
    live += 1  # and the floor
    space = (live + 1) * (size + (2 << 20))
    try:
        arena, locked, said = Arena(space, fork="drop", lock=True, name="latency"), True, "the arena is locked"
        stack.callback(arena.close)
        arena.warm(live * size)
    except OSError as error:
        arena, locked, said = Arena(space, fork="drop", name="latency"), False, f"the arena is not locked: {error}"
        stack.callback(arena.close)
        arena.warm(live * size)
    everything = False
    if locked:
        try:
            with lock_memory():
                everything = True
        except OSError as error:
            said += f"; the process is not: {error}"
        else:
            said += ", and in its turns the whole process"
    # The floor: one more block of the same memory, that is neither taken nor given.
    resident = arena.alloc(size)
    stack.callback(resident.free)
    found = [
        Way(ARENA, arena.alloc, lambda block: block.free(), lock=everything),
        Way(RESIDENT, lambda nbytes: resident, lock=everything),
        Way("bytearray", bytearray),
    ]
    with contextlib.suppress(ImportError):
        import numpy as np

        found.append(Way("np.empty", lambda nbytes: np.empty(nbytes, "u1")))
    return found, said
