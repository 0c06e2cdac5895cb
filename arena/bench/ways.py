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
OURS = (ARENA, RESIDENT)  # the ways whose tails are compared


@dataclass(frozen=True)
class Way:
    """Where buffers come from: ``take(nbytes)`` and ``give(buffer)``, inside ``with way.ready()``."""

    name: str
    take: Callable[[int], Any]
    give: Callable[[Any], object]
    lock: bool = False

    @contextlib.contextmanager
    def ready(self) -> Iterator[None]:
        """Lock memory in the arena's turns only: mlockall(MCL_FUTURE) would populate ordinary memory too."""
        with lock_memory() if self.lock else contextlib.nullcontext():
            yield

    def after_fork(self) -> None:
        """Make what a fork has made copy-on-write this process's own again, where it is locked."""
        with self.ready():
            pass


def ways(stack: contextlib.ExitStack, size: int, live: int) -> tuple[list[Way], str]:
    """Return the ways to have ``live`` buffers of ``size`` bytes, which the stack closes, and what was locked."""
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
    # This way is the floor: as many blocks of the same memory are taken from a list and put back there.
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
