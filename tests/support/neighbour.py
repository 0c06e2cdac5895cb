"""What every test of a neighbour asserts: that it is there, where its memory is, and who keeps the block."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from measure import faults_at, minor_faults

from arena import Arena, Block


def neighbour(name: str) -> Any:
    """The package, or the tests of this file are skipped."""
    return pytest.importorskip(name, reason=f"{name} is not installed: pip install '.[neighbours]'")


def holds_an_export(a: Arena, make: Callable[[Block], object], nbytes: int = 1 << 16) -> None:
    """make(block) holds an export: nobody takes its memory away, and the block goes with it, at once."""
    before = a.stats().blocks
    block = a.alloc(nbytes, align=4096, zero=True)
    thing = make(block)
    for take_away in (block.free, a.reset, lambda: a.close(strict=True)):
        with pytest.raises(BufferError):
            take_away()
    with pytest.raises(BufferError):
        block.resize(2 * nbytes)
    del take_away, block
    assert a.stats().blocks == before + 1
    del thing
    assert a.stats().blocks == before


def keeps_the_object_only(a: Arena, make: Callable[[Block], object], nbytes: int = 1 << 16) -> None:
    """make(block) keeps the block, but it holds no export: an explicit free() is not refused. That is to be known, and
    safe: the memory is reused, and stays mapped."""
    before = a.stats().blocks
    block = a.alloc(nbytes, align=4096, zero=True)
    thing = make(block)
    del block
    assert a.stats().blocks == before + 1
    del thing
    assert a.stats().blocks == before
    block = a.alloc(nbytes, align=4096, zero=True)
    thing = make(block)
    block.free()
    assert a.stats().blocks == before
    del thing, block


def python_bytes(work: Callable[[], object]) -> int:
    """The most memory that Python objects took meanwhile: what was copied through bytes shows here."""
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        work()
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def faults_into(a: Arena, fill: Callable[[memoryview], object], nbytes: int = 4 << 20) -> int:
    """The page faults of fill(view), where view is memory that nobody has written yet."""
    a.warm(nbytes + (1 << 20))
    few, view = memoryview(a.alloc(1 << 16)), memoryview(a.alloc(nbytes))
    return faults_at(a.address, a.size, lambda: fill(view), lambda: fill(few))


def faults_of_the_device(a: Arena, fill: Callable[[memoryview], object], nbytes: int = 4 << 20) -> int:
    """The same where the kernel looks the pages up for a device, which only getrusage(2) counts, together with the
    interpreter's own. Those come now and then, and what is wrong with ours each time: so the fewest of some tries."""
    counts = []
    for _ in range(5):
        a.warm(nbytes + (1 << 20))
        view = memoryview(a.alloc(nbytes))
        before = minor_faults()
        fill(view)
        counts.append(minor_faults() - before)
        view.release()
        a.trim()
    return min(counts[1:])
