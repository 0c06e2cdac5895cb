"""Arenas: on each backing, and in each way to grow, shrink and keep."""

from __future__ import annotations

import gc
from typing import Any

from arena import Arena

from ..steps import KIB, MIB, Steps
from .scenario import scenario

SMALL: dict[str, Any] = {"pages": "4K", "chunk": "64KiB"}
SHARED: dict[str, Any] = {"shared": True, "chunk": "256KiB"}


def use(steps: Steps, arena: Arena | None) -> None:
    """A bit of everything, beside a block that stays."""
    if arena is None:
        return
    steps.alloc(arena, 100 * KIB)
    large = steps.alloc(arena, 3 * MIB)
    aligned = steps.alloc(arena, 5000, align=4096, zero=True)
    steps.free(large)
    steps.trim(arena)
    larger = steps.alloc(arena, 6 * MIB, zero=True)
    steps.resize(aligned, 9000)
    steps.free(larger)
    steps.trim(arena)
    steps.alloc(arena, 64 * KIB, zero=True)
    steps.check_blocks()


@scenario("arena_4k")
def arena_4k(steps: Steps) -> None:
    """Private memory in small pages."""
    use(steps, steps.arena("64MiB", name="arena-4k", **SMALL))


@scenario("arena_thp")
def arena_thp(steps: Steps) -> None:
    """Private memory in transparent huge pages."""
    use(steps, steps.arena("64MiB", name="arena-thp"))


@scenario("arena_memfd")
def arena_memfd(steps: Steps) -> None:
    """A memfd, shared."""
    use(steps, steps.arena("64MiB", name="arena-memfd", **SHARED))


@scenario("arena_memfd_private")
def arena_memfd_private(steps: Steps) -> None:
    """A memfd, mapped privately."""
    use(steps, steps.arena("64MiB", backing="memfd", chunk="256KiB"))


@scenario("arena_anonymous_shared")
def arena_anonymous_shared(steps: Steps) -> None:
    """Shared memory without a descriptor."""
    use(steps, steps.arena("64MiB", backing="anonymous", **SHARED))


@scenario("arena_hugetlb", huge_pages=20)
def arena_hugetlb(steps: Steps) -> None:
    """Private pages of the hugetlb pool."""
    use(steps, steps.arena("32MiB", pages="2M"))


@scenario("arena_hugetlb_shared", huge_pages=20)
def arena_hugetlb_shared(steps: Steps) -> None:
    """Shared pages of the hugetlb pool."""
    use(steps, steps.arena("32MiB", pages="2M", shared=True))


@scenario("arena_hugetlb_short", huge_pages=4)
def arena_hugetlb_short(steps: Steps) -> None:
    """A pool that has fewer pages than are asked for."""
    use(steps, steps.arena("32MiB", pages="2M"))


@scenario("arena_lock")
def arena_lock(steps: Steps) -> None:
    """What is committed is locked, and no more."""
    steps.all_locked = True
    use(steps, steps.arena("64MiB", lock=True, **SMALL))


@scenario("arena_lock_shared")
def arena_lock_shared(steps: Steps) -> None:
    """The same of shared memory."""
    steps.all_locked = True
    use(steps, steps.arena("32MiB", lock=True, **SHARED))


@scenario("arena_populate_read")
def arena_populate_read(steps: Steps) -> None:
    """Committed for reading."""
    arena = steps.arena("64MiB", populate="read", **SMALL)
    steps.free(steps.alloc(arena, 300 * KIB))
    steps.trim(arena)
    steps.alloc(arena, 100 * KIB, zero=True)


@scenario("arena_node")
def arena_node(steps: Steps) -> None:
    """Bound to a NUMA node."""
    try:
        arena = steps.arena("64MiB", node=0, **SMALL)
    except ValueError as error:
        steps.refused(error)  # EINVAL is the kernel's word for a node that it does not have
        return
    steps.free(steps.alloc(arena, 300 * KIB))
    steps.trim(arena)
    steps.alloc(arena, 100 * KIB, zero=True)


@scenario("warm")
def warm(steps: Steps) -> None:
    """Committed ahead, by several threads too, and given back."""
    arena = steps.arena("128MiB", retain="1MiB", **SMALL)
    if arena is None:
        return
    steps.attempt(arena.warm, "4MiB")
    first = steps.alloc(arena, 1 * MIB)
    second = steps.alloc(arena, 2 * MIB)
    steps.free(first)
    steps.attempt(arena.warm, "8MiB", threads=2)
    steps.free(second)
    steps.trim(arena)
    steps.alloc(arena, 64 * KIB, zero=True)


@scenario("resize")
def resize(steps: Steps) -> None:
    """A block that grows and shrinks."""
    arena = steps.arena("64MiB", **SMALL)
    block = steps.alloc(arena, 100)
    for nbytes in (70 * KIB, 50, 3 * MIB, 1 * MIB, 1):
        steps.resize(block, nbytes)


@scenario("retain")
def retain(steps: Steps) -> None:
    """Free memory beyond a bound goes back at once."""
    arena = steps.arena("64MiB", retain=0, **SMALL)
    for nbytes in (100 * KIB, 1 * MIB, 300 * KIB):
        block = steps.alloc(arena, nbytes)
        small = steps.alloc(arena, 50 * KIB, zero=True)
        steps.free(block)
        steps.free(small)
    steps.alloc(arena, 4096, zero=True)


@scenario("decay")
def decay(steps: Steps) -> None:
    """Free memory beyond a bound goes back after a time, here a very short one."""
    arena = steps.arena("64MiB", retain="64KiB", decay=1e-6, **SMALL)
    for nbytes in (100 * KIB, 1 * MIB, 300 * KIB):
        steps.free(steps.alloc(arena, nbytes))
        steps.free(steps.alloc(arena, 50 * KIB, zero=True))
    steps.alloc(arena, 4096, zero=True)


@scenario("reset")
def reset(steps: Steps) -> None:
    """All blocks end at once."""
    arena = steps.arena("64MiB", retain="128KiB", **SMALL)
    for nbytes in (100 * KIB, 1 * MIB, 300 * KIB):
        steps.alloc(arena, nbytes)
    steps.held.clear()
    gc.collect()
    if arena is not None:
        steps.attempt(arena.reset)
    steps.alloc(arena, 500 * KIB, zero=True)


@scenario("many_blocks")
def many_blocks(steps: Steps) -> None:
    """More blocks than the index was made for."""
    arena = steps.arena("64MiB", **SMALL)
    if arena is None:
        return
    blocks = [steps.attempt(arena.alloc, 64) for _ in range(5000)]
    del blocks[::2]
    steps.attempt(lambda: sum(nbytes for _, nbytes in arena.blocks()))
    steps.attempt(arena.residency)
    steps.alloc(arena, 200 * KIB)
    del blocks
    steps.trim(arena)


@scenario("close_with_blocks")
def close_with_blocks(steps: Steps) -> None:
    """The arena is closed before its last block goes."""
    arena = steps.attempt(Arena, "64MiB", **SMALL)
    if arena is None:
        return
    block = steps.attempt(arena.alloc, 100 * KIB)
    if block is not None:
        block[:3] = b"abc"
    arena.close()
    if block is not None:
        assert bytes(block[:3]) == b"abc"
