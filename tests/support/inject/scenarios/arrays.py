"""NumPy: arrays on an arena, NumPy's own allocations, and mapped files."""

from __future__ import annotations

import contextlib

import numpy as np

import arena

from ..steps import KIB, Steps, Violation, must_be_present
from .scenario import scenario


@scenario("arrays")
def arrays(steps: Steps) -> None:
    """Arrays that own their blocks."""
    pool = steps.arena("64MiB", pages="4K", chunk="64KiB")
    if pool is None:
        return
    empty = steps.attempt(pool.empty, (100, 100))
    if empty is not None:
        empty[:] = 3
        must_be_present(empty.ctypes.data, empty.nbytes, "empty")
    zeros = steps.attempt(pool.zeros, 1000)
    if zeros is not None and zeros.any():
        raise Violation("zeros() gave something else")
    full = steps.attempt(pool.full, 100, 7)
    if full is not None and (full != 7).any():
        raise Violation("full() gave something else")
    copy = steps.attempt(pool.array, [1, 2, 3])
    if copy is not None and copy.tolist() != [1, 2, 3]:
        raise Violation("array() gave something else")
    steps.attempt(lambda: np.from_dlpack(pool.alloc(100)))
    if empty is not None:
        steps.attempt(pool.empty_like, empty)


@scenario("numpy_allocations")
def numpy_allocations(steps: Steps) -> None:
    """NumPy allocates on an arena, and says why it cannot."""
    pool = steps.arena("64MiB", pages="4K", chunk="64KiB")
    if pool is None:
        return
    with contextlib.ExitStack() as block:
        if steps.attempt(lambda: block.enter_context(pool.numpy_allocations())) is not None:
            try:
                _calculate()
            except MemoryError as error:
                steps.refused(error)
                if pool.last_error is None:
                    raise Violation("a MemoryError without a last_error") from None
    with contextlib.ExitStack() as block:
        steps.attempt(lambda: block.enter_context(pool.numpy_allocations(overflow="malloc")))
        if np.ones(300_000).sum() != 300_000:
            raise Violation("a wrong sum")


def _calculate() -> None:
    one = np.ones(300_000)
    two = one + 1
    if two.sum() != 600_000:
        raise Violation("a wrong sum")
    two.resize(500_000, refcheck=False)
    if np.zeros(100_000).any():
        raise Violation("zeros() gave something else")


@scenario("memmap")
def memmap(steps: Steps) -> None:
    """A mapped file in each mode. A new one that could not be made is not there, and an old one is as it was."""
    path = steps.file("mapped", steps.places.disk)
    data = np.arange(200_000.0)
    data.tofile(path)
    read = steps.attempt(arena.memmap, path, "f8", mode="r")
    if read is not None and not np.array_equal(data, read):
        raise Violation('memmap(mode="r") gave something else')
    update = steps.attempt(arena.memmap, path, "f8", mode="r+")
    if update is not None:
        update[5] = -1.0
        steps.attempt(update.flush)
    private = steps.attempt(arena.memmap, path, "f8", mode="c", offset=16)
    if private is not None:
        private[:] = 0
    del read, update, private
    before = path.read_bytes()
    longer = steps.attempt(arena.memmap, path, "f8", mode="w+", shape=(300_000,))
    if longer is None and path.read_bytes()[: len(before)] != before:
        raise Violation('memmap(mode="w+") failed, and what was there is not kept')
    if longer is not None and longer.any():
        raise Violation('memmap(mode="w+") is not zero')
    del longer
    new = steps.file("mapped-new", steps.places.disk)
    made = steps.attempt(arena.memmap, new, "f8", mode="w+", shape=(3000,))
    if made is None and new.exists():
        raise Violation('memmap(mode="w+") failed, and the new file is still there')
    del made
    steps.attempt(arena.memmap, path, "f8", mode="w+", shape=(30_000,))


@scenario("numpy_retain")
def numpy_retain(steps: Steps) -> None:
    """Temporaries of NumPy on an arena that gives back what is free at once."""
    pool = steps.arena("64MiB", pages="4K", chunk="64KiB", retain=0)
    if pool is None:
        return
    try:
        with pool.numpy_allocations():
            for n in (100 * KIB, 20 * KIB):
                total = (np.ones(n) * 2 + 1).sum()
                if total != 3 * n:
                    raise Violation("a wrong sum")
    except MemoryError as error:
        steps.refused(error)
