"""A program that is wrong in each of the ways that are to be found."""

from __future__ import annotations

import os
import time

from ..steps import MIB, Steps, Violation
from .scenario import scenario

_left: list[object] = []


@scenario("self_test", when_named=True)
def self_test(steps: Steps) -> None:
    """Wrong, in another way for each call that fails."""
    arena = steps.arena("8MiB", pages="4K", chunk="64KiB")
    block = steps.alloc(arena, 1 * MIB)
    steps.free(block)
    steps.trim(arena)
    match steps.library.control.hit.name:
        case b"mmap":
            os.abort()
        case b"munmap":
            time.sleep(100)
        case b"madvise":
            _left.append(os.dup(1))
        case b"read":
            raise Violation("as was to be shown")
        case b"calloc":
            raise RuntimeError("as was to be shown")
        case b"close" if arena is not None:
            _left.append(arena.alloc(100))
