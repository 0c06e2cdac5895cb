"""What every test of a neighbour asserts: that it is there, where its memory is, and who keeps the block."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest

from arena import Arena, Block


def neighbour(name: str) -> Any:
    """The package, or the tests of this file are skipped."""
    return pytest.importorskip(name, reason=f"{name} is not installed: pip install '.[neighbours]'")


def holds_an_export(a: Arena, make: Callable[[Block], object], nbytes: int = 1 << 16) -> None:
    """make(block) holds an export: nobody takes its memory away, and the block goes with it."""
    before = a.stats().blocks
    block = a.alloc(nbytes, align=4096, zero=True)
    thing = make(block)
    for take_away in (block.free, a.reset, a.close):
        with pytest.raises(BufferError):
            take_away()
    with pytest.raises(BufferError):
        block.resize(2 * nbytes)
    del take_away, block
    gc.collect()
    assert a.stats().blocks == before + 1
    del thing
    gc.collect()
    assert a.stats().blocks == before


def keeps_the_object_only(a: Arena, make: Callable[[Block], object], nbytes: int = 1 << 16) -> None:
    """make(block) keeps the block, but it holds no export: an explicit free() is not refused. That is to be known, and
    safe: the memory is reused, and stays mapped."""
    before = a.stats().blocks
    block = a.alloc(nbytes, align=4096, zero=True)
    thing = make(block)
    del block
    gc.collect()
    assert a.stats().blocks == before + 1
    del thing
    gc.collect()
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
