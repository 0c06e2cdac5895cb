"""Arenas in C: handles and addresses, old bytes, a clock that is passed in, and calls from within calls."""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import in_child
from core import _core
from core._build import must, refused
from core._core import (
    CHUNK,
    EVER,
    GIB,
    HUGE,
    KIB,
    LONG,
    MIB,
    NO_GROW,
    NULL,
    PAGE,
    STOP,
    TIB,
    ZERO,
    Arena,
    Thread,
    blocking,
    ffi,
    library,
    progress_of,
    stop,
)

pytestmark = pytest.mark.slow  # the same on every CPython


@pytest.fixture(autouse=True)
def nothing_is_lost_in_a_tick() -> Iterator[None]:
    yield
    if _core.lost:
        raise _core.lost.pop()


@pytest.fixture
def make() -> Iterator[Callable[..., Arena]]:
    made: list[Arena] = []

    def new(*args: Any, **options: Any) -> Arena:
        made.append(Arena(*args, **options))
        return made[-1]

    yield new
    for a in made:
        if a.c:
            a.check()
        a.close()


# --- handles, addresses, errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "chunk", "op"),
    [
        (0, 0, b"size"),
        (64 * TIB + 1, 0, b"size"),
        (EVER, 0, b"size"),
        (MIB, 2 * KIB, b"chunk"),
        (MIB, 96 * KIB, b"chunk"),
        (MIB, 2 * GIB, b"chunk"),
        (64 * TIB, 64 * KIB, b"chunk"),
    ],
)
def test_arenas_that_cannot_be_had(size: int, chunk: int, op: bytes) -> None:
    lib, options = library(), ffi.new("struct arena_config *", {"chunk": chunk, "reservation": {"size": size}})
    out, error = ffi.new("arena **"), ffi.new("struct arena_error *")
    assert lib.arena_create(options, out, error) == lib.arena_create(options, out, NULL) == -errno.EINVAL
    assert ffi.string(error.op) == op and error.err == errno.EINVAL


@pytest.mark.parametrize(
    ("size", "chunk"), [(1, PAGE), (PAGE, PAGE), (64 * KIB - 1, 32 * KIB), (MIB, MIB), (GIB, HUGE)]
)
def test_a_small_arena_has_small_chunks(make: Any, size: int, chunk: int) -> None:
    a = make(size, chunk=0)
    assert a.chunk == chunk
    assert a.size == -(-size // chunk) * chunk


def test_a_block_is_found_by_where_it_begins(make: Any) -> None:
    a = make()
    blocks = [a.alloc(n) for n in (64, 1, 5000, MIB, 64)]
    for b in blocks:
        assert a.find(b.address)[:4] == b[:4]
        for wrong in (1, 8, 63):
            refused(errno.ENOENT, a.find, b.address + wrong)
    for inside in (64, PAGE, CHUNK, MIB - 64):
        refused(errno.ENOENT, a.find, blocks[3].address + inside)
    for outside in (0, 64, a.base - 64, a.base + a.size, a.base + a.size - 64, EVER & ~63):
        refused(errno.ENOENT, a.find, outside)
    a.free(blocks[1].handle)
    refused(errno.ENOENT, a.find, blocks[1].address)


def test_a_handle_is_good_until_its_block_is_freed(make: Any) -> None:
    a = make()
    first = a.alloc(100)
    a.free(first.handle)
    again = a.alloc(100)
    assert again.address == first.address and again.handle != first.handle
    for _ in range(2):
        for function in (a.free, a.free_deferred):
            refused(errno.EINVAL, function, first.handle)
        refused(errno.EINVAL, a.resize, first.handle, 10)
        assert ffi.string(a.error.op) == b"resize"
    for wrong in (0, 1, EVER, again.handle + 1, again.handle ^ 1 << 32, again.handle & 0xFFFFFFFF):
        refused(errno.EINVAL, a.free, wrong)
    must(a.lib.arena_reset(a.c))
    refused(errno.EINVAL, a.free, again.handle)
    assert a.alloc(100).handle not in (first.handle, again.handle)
    refused(errno.EINVAL, a.free, again.handle)


def test_handles_of_another_arena_are_not_believed(make: Any) -> None:
    arenas = [make() for _ in range(5)]
    handles = [[a.alloc(100).handle for _ in range(200)] for a in arenas]
    for a in arenas:
        for others in handles:
            if others is not handles[arenas.index(a)]:
                for handle in others:
                    refused(errno.EINVAL, a.free, handle)
        assert a.stats().blocks == 200


def test_requests_that_make_no_sense(make: Any) -> None:
    a = make()
    b = a.alloc(100)
    before = a.figures()
    for align in (3, 65, 96, 100, 3 * 64, 2 * CHUNK, EVER):
        refused(errno.EINVAL, a.alloc_committed, 100, align)
        refused(errno.EINVAL, a.alloc, 100, align)
    refused(errno.EINVAL, a.alloc_committed, 0)
    refused(errno.EINVAL, a.alloc, 0)
    refused(errno.EINVAL, a.warm, 0)
    refused(errno.EINVAL, a.resize, b.handle, 0)
    for n in (a.size + 1, a.size, 1 << 63, EVER):
        for function in (a.alloc_committed, a.alloc, a.warm):
            refused(errno.ENOSPC, function, n)
        refused(errno.ENOSPC, a.resize, b.handle, max(n, a.size + 1))
    assert a.figures() == before
    assert a.alloc(1, 1).bytes == a.alloc(1, 0).bytes == 64


def test_what_is_available_is_said(make: Any) -> None:
    a = make(4 * MIB)
    b = a.alloc(MIB)
    refused(errno.ENOSPC, a.alloc, 4 * MIB)
    assert (a.error.available, a.error.requested, a.error.committed) == (3 * MIB, 4 * MIB, MIB)
    a.free(b.handle)
    refused(errno.ENOSPC, a.alloc, 2 * MIB, 64, NO_GROW)
    assert a.error.available == MIB
    assert a.alloc(MIB, 64, NO_GROW).offset == 0


def test_a_block_grows_into_what_is_free_behind_it(make: Any) -> None:
    a = make(4 * MIB)
    b, wall = a.alloc(1000), a.alloc(64)
    refused(errno.ENOSPC, a.resize, b.handle, 1025)
    assert ffi.string(a.error.op) == b"resize"
    assert a.resize(b.handle, 1024)[:3] == b[:3]
    assert a.resize(b.handle, 65).bytes == 128
    a.free(wall.handle)
    assert a.resize(b.handle, 4 * MIB)[:3] == (b.handle, 0, 4 * MIB)
    assert a.stats().committed == 4 * MIB
    refused(errno.ENOSPC, a.resize, b.handle, 4 * MIB + 1)
    assert a.resize(b.handle, 1).bytes == 64
    assert a.stats().live == 64


def test_error_pointers_may_be_null(make: Any) -> None:
    a = make(2 * LONG, retain=0)
    lib, out, handle, progress = a.lib, a.block, a.alloc(64).handle, progress_of(stop)
    assert lib.arena_alloc(a.c, LONG, 64, 0, progress, NULL, out, NULL) == -STOP
    assert lib.arena_alloc(a.c, 3 * LONG, 64, 0, NULL, NULL, out, NULL) == -errno.ENOSPC
    assert lib.arena_alloc(a.c, 0, 64, 0, NULL, NULL, out, NULL) == -errno.EINVAL
    assert lib.arena_resize(a.c, handle, LONG, progress, NULL, out, NULL) == -STOP
    assert lib.arena_resize(a.c, handle, 3 * LONG, NULL, NULL, out, NULL) == -errno.ENOSPC
    assert lib.arena_warm(a.c, LONG, 0, 1, progress, NULL, NULL) == -STOP
    assert lib.arena_warm(a.c, 3 * LONG, 0, 1, NULL, NULL, NULL) == -errno.ENOSPC
    assert lib.arena_trim(a.c, 0, ffi.new("uint64_t *"), NULL) == 0
    r = lib.arena_reservation(a.c)
    assert lib.reservation_commit(r, MIB, LONG, True, 0, progress, NULL, NULL, NULL) == -STOP
    assert lib.reservation_commit(r, 3 * LONG, 1, True, 0, NULL, NULL, NULL, NULL) == -errno.EINVAL
    assert lib.reservation_release(r, 3 * LONG, 1, False, NULL, NULL, NULL, NULL) == -errno.EINVAL
    assert lib.reservation_release(r, MIB, 1, False, NULL, NULL, NULL, NULL) == 0
    assert lib.reservation_verify(r, 3 * LONG, 1, NULL, NULL, NULL) == -errno.EINVAL
    assert lib.reservation_create(ffi.new("struct reservation_config *"), ffi.new("reservation **"), NULL) < 0


@pytest.mark.parametrize("most", [64, 256, 1000])
def test_all_blocks_are_listed_in_order_however_many(make: Any, most: int) -> None:
    a = make(4 * MIB)
    blocks = [a.alloc(64 * (1 + i % 70)) for i in range(1000)]
    assert a.blocks(most) == [(b.offset, b.bytes) for b in sorted(blocks, key=lambda b: b.offset)]
    for b in blocks[::3]:
        a.free(b.handle)
    kept = [b for i, b in enumerate(blocks) if i % 3]
    assert a.blocks(most) == [(b.offset, b.bytes) for b in sorted(kept, key=lambda b: b.offset)]
    must(a.lib.arena_reset(a.c))
    assert a.blocks(most) == []


def test_64_tib_and_blocks_beyond_4_gib(make: Any) -> None:
    a = make(64 * TIB, chunk=0, read_only_populate=True)  # the zero page: 5 GiB for nothing
    low, high = a.alloc(5 * GIB + 64), a.alloc(PAGE, PAGE)
    assert low.bytes == 5 * GIB + 64 and high.offset == 5 * GIB + PAGE
    a.write(high, 7)
    assert a.find(high.address)[:3] == high[:3] == (high.handle, 5 * GIB + PAGE, PAGE)
    assert a.blocks() == [(0, low.bytes), (high.offset, PAGE)]
    refused(errno.ENOSPC, a.alloc, 64 * TIB - 5 * GIB)
    assert a.error.available == 64 * TIB - high.offset - PAGE
    assert a.resize(high.handle, 3 * GIB).bytes == 3 * GIB
    assert a.read(high._replace(bytes=PAGE)) == bytes([7]) * PAGE
    a.free(low.handle)
    a.free(high.handle)
    assert a.trim() == a.stats().peak_committed
    assert a.stats().largest_free == 64 * TIB


# --- old bytes --------------------------------------------------------------------------------------------------------


def test_dirty_says_how_much_may_have_been_used_before(make: Any) -> None:
    a = make(4 * MIB)
    a.warm(2 * MIB)
    b = a.alloc(MIB)
    assert b.dirty == 0
    a.write(b)
    a.free(b.handle)
    assert a.alloc_committed(100).dirty == 128
    must(a.lib.arena_reset(a.c))
    part = a.alloc(MIB + CHUNK)  # more than was ever used
    assert part.dirty == MIB
    assert a.read(part)[MIB:] == bytes(CHUNK)
    a.free(part.handle)
    beyond = a.alloc(3 * MIB)  # into what is not committed yet
    assert beyond.dirty <= MIB + CHUNK
    assert a.read(beyond)[beyond.dirty :] == bytes(3 * MIB - beyond.dirty)
    a.free(beyond.handle)
    a.trim()
    assert a.alloc(MIB).dirty == 0
    assert a.stats().committed == MIB


def test_zero_gives_zeroes_whatever_was_there(make: Any) -> None:
    a = make(16 * MIB, chunk=PAGE)
    for n in (64, 5000, MIB - 64, MIB, 3 * MIB + 64):
        wall, b = a.alloc(64), a.alloc(n)
        a.write(b, 0xFF)
        a.free(b.handle)
        again = a.alloc(n, 64, ZERO)
        assert (again.address, again.dirty) == (b.address, 0)
        assert not any(a.read(again))
        a.free(again.handle)
        a.free(wall.handle)


def test_a_grown_block_says_how_much_of_it_may_have_been_used_before(make: Any) -> None:
    a = make(4 * MIB)
    b, behind = a.alloc(MIB), a.alloc(MIB)
    a.write(behind)
    a.free(behind.handle)
    grown = a.resize(b.handle, 3 * MIB)
    assert grown.dirty == 2 * MIB
    assert a.read(grown)[2 * MIB :] == bytes(MIB)


def test_a_refused_block_leaves_nothing_behind(make: Any) -> None:
    a = make(2 * LONG)
    b = a.alloc(MIB + 64)
    a.write(b)
    before = a.figures()
    refused(STOP, a.alloc, LONG, progress=progress_of(stop))
    refused(STOP, a.warm, LONG, progress=progress_of(stop))
    refused(STOP, a.resize, b.handle, LONG, progress=progress_of(stop))
    assert a.figures() == before
    assert a.find(b.address).bytes == b.bytes
    assert a.blocks() == [(b.offset, b.bytes)]
    assert a.read(b) == b"\1" * b.bytes
    assert a.alloc(LONG).dirty == 0


def test_a_block_that_could_not_grow_has_its_size_again_though_the_index_is_full(make: Any) -> None:
    a = make(2 * LONG)
    ready, b = a.alloc(MIB), a.alloc(CHUNK)
    a.free(ready.handle)

    def fill_the_index() -> int:
        while a.lib.arena_alloc_committed(a.c, 64, 64, ffi.new("struct arena_block *")) == 0:
            pass
        return -STOP

    refused(STOP, a.resize, b.handle, LONG, progress=progress_of(fill_the_index))
    assert a.find(b.address).bytes == CHUNK
    assert (b.offset, CHUNK) in a.blocks()


def test_a_release_that_fails_leaves_ledger_and_index_in_agreement(make: Any) -> None:
    a = make(4 * MIB)
    b = a.alloc(MIB)
    a.free(b.handle)
    hole = ffi.cast("char *", b.address + 5 * PAGE)
    must(a.lib.cut(hole))
    refused(errno.ENOMEM, a.trim)
    assert ffi.string(a.error.op) == b"release"
    a.check()
    assert a.stats().committed == a.residency() == 0  # but for the page that is nobody's now, it was given back
    must(a.lib.mend(hole))
    b = a.alloc(MIB)
    a.write(b)
    a.free(b.handle)
    assert a.stats().free_committed == a.trim() == MIB


# --- what is retained, and for how long -------------------------------------------------------------------------------


def test_without_decay_what_is_beyond_retain_goes_at_once(make: Any) -> None:
    a = make(retain=4 * CHUNK, decay_ns=0)
    blocks = [a.alloc(CHUNK) for _ in range(10)]
    for i, b in enumerate(blocks):
        a.free(b.handle)
        assert a.stats().free_committed == min(i + 1, 4) * CHUNK
    assert a.stats().releases == 6


def test_all_is_retained_until_trim(make: Any) -> None:
    a = make(retain=EVER, decay_ns=1)
    b = a.alloc(8 * MIB)
    a.free(b.handle)
    a.now += 100
    a.free(a.alloc(64).handle)
    assert a.stats().releases == 0
    assert a.trim(3 * MIB) == 5 * MIB
    assert a.trim(3 * MIB) == 0
    assert a.trim(MIB + 1) == 2 * MIB - CHUNK
    assert a.trim() == MIB + CHUNK


def test_nothing_is_released_before_its_time(make: Any) -> None:
    a = make(retain=0, decay_ns=1000)
    wall, b = a.alloc(64), a.alloc(8 * MIB)
    a.free(b.handle)
    for a.now in (2, 500, 1000):
        a.free(a.alloc(64).handle)
        assert a.stats().releases == 0
    a.now = 1001
    a.free(wall.handle)
    assert a.stats().releases > 0
    assert a.stats().committed <= 2 * CHUNK


def test_the_least_that_was_free_during_the_window_decides(make: Any) -> None:
    a = make(retain=0, decay_ns=1000)
    blocks = [a.alloc(CHUNK) for _ in range(10)]
    for b in blocks[:8]:
        a.free(b.handle)
    a.now = 1001
    a.free(blocks[8].handle)  # what was free at the first free was one chunk: the window had just begun
    assert a.stats().free_committed == 8 * CHUNK
    a.now = 1500
    used = a.alloc(5 * CHUNK)  # of the eight, three are left
    a.free(used.handle)
    a.now = 2001
    a.free(blocks[9].handle)
    assert a.stats().free_committed == (8 - 3 + 1) * CHUNK


def test_memory_freed_in_the_window_is_not_taken_for_what_was_released_in_it(make: Any) -> None:
    a = make(retain=0, decay_ns=1000)
    old, young, last = a.alloc(32 * CHUNK), a.alloc(32 * CHUNK), [a.alloc(64) for _ in range(4)]
    a.free(old.handle)
    a.now = 1001
    a.free(last[0].handle)
    assert a.stats().releases == 1
    a.now = 2000
    a.free(young.handle)
    a.now = 2001  # a nanosecond later
    a.free(last[1].handle)
    assert a.stats().free_committed >= 32 * CHUNK
    a.now = 3001
    a.free(last[2].handle)
    assert a.stats().free_committed < 2 * CHUNK


def test_memory_freed_in_the_window_is_not_taken_for_what_was_trimmed_in_it(make: Any) -> None:
    a = make(retain=0, decay_ns=1000)
    old, young, last = a.alloc(32 * CHUNK), a.alloc(32 * CHUNK), a.alloc(64)
    a.free(old.handle)
    a.trim()
    a.now = 1000
    a.free(young.handle)
    a.now = 1001
    a.free(last.handle)
    assert a.stats().free_committed >= 32 * CHUNK


def test_a_late_collection_leaves_what_is_to_be_retained(make: Any) -> None:
    a = make(retain=8 * CHUNK, decay_ns=1000)
    b, last = a.alloc(32 * CHUNK), a.alloc(64)
    a.free_deferred(b.handle)
    a.now = 1001
    assert a.free_deferred(last.handle)
    a.alloc_committed(20 * CHUNK)  # between the two halves of a free
    a.purge()
    assert a.stats().free_committed >= 8 * CHUNK


def test_a_late_collection_leaves_what_was_warmed(make: Any) -> None:
    a = make(retain=0, decay_ns=1000)
    b, last = a.alloc(32 * CHUNK), a.alloc(64)
    a.free_deferred(b.handle)
    a.now = 1001
    assert a.free_deferred(last.handle)
    a.warm(16 * CHUNK)
    a.purge()
    assert a.alloc_committed(16 * CHUNK).bytes == 16 * CHUNK


def test_what_is_warmed_stays_until_trim(make: Any) -> None:
    a = make(retain=0, decay_ns=0)
    a.warm(16 * CHUNK)
    for _ in range(3):
        a.free(a.alloc(16 * CHUNK).handle)
        assert a.stats().free_committed == 16 * CHUNK
    a.warm(4 * CHUNK)
    a.free(a.alloc(64).handle)
    assert a.stats().free_committed == 16 * CHUNK
    a.trim(8 * CHUNK)
    a.free(a.alloc(64).handle)
    assert a.stats().free_committed == 0


@pytest.mark.parametrize("decay", [EVER, EVER - 10])
def test_a_decay_of_for_ever_is_for_ever(make: Any, decay: int) -> None:
    a = make(retain=0, decay_ns=decay)
    small, big = [a.alloc(64) for _ in range(3)], a.alloc(8 * MIB)
    a.now = 1000
    a.free(big.handle)
    for a.now, b in zip((2000, 3000, 1 << 60), small, strict=True):
        a.free(b.handle)
    assert a.stats().releases == 0


def test_an_allocation_releases_nothing(make: Any) -> None:
    a = make(retain=0, decay_ns=1000)
    b = a.alloc(8 * MIB)
    a.free(b.handle)
    for a.now in (2000, 5000, 9000):
        a.alloc(64)
        a.alloc_committed(64)
        grown = a.alloc(CHUNK)
        a.resize(grown.handle, 2 * CHUNK)
        a.resize(grown.handle, 64)
        a.warm(64)
    assert a.stats().releases == 0


# --- its end, and calls from within calls -----------------------------------------------------------------------------


def test_a_tick_may_use_the_arena_but_not_end_it(make: Any) -> None:
    a = make(3 * LONG)
    lib, seen = a.lib, []
    hole, wall = a.alloc(MIB), a.alloc(MIB)
    a.free(hole.handle)

    def progress() -> int:
        assert lib.arena_close(a.c, False) == lib.arena_destroy(a.c) == lib.arena_reset(a.c) == -errno.EBUSY
        own = ffi.new("struct arena_block *")
        seen.append(lib.arena_alloc_committed(a.c, 100, 64, own))
        assert lib.arena_alloc(a.c, MIB, 64, 0, NULL, NULL, own, NULL) == 0
        assert lib.arena_find(a.c, own.address, own) == 0
        assert lib.arena_free(a.c, own.handle) == 0
        assert len(a.blocks()) == 1 + len(seen)  # not the one that is in the making
        return 0

    big = a.alloc(LONG, progress=progress_of(progress))
    assert seen and not any(seen)
    assert a.stats().live == big.bytes + wall.bytes + 128 * len(seen)
    must(lib.arena_reset(a.c))


def test_what_comes_back_to_the_chunk_in_the_making_is_refused(make: Any) -> None:
    a = make(LONG)
    answers = []

    def progress() -> int:
        answers.append(a.lib.arena_alloc(a.c, CHUNK - 64, 64, 0, NULL, NULL, ffi.new("struct arena_block *"), NULL))
        return 0

    a.alloc(LONG - CHUNK + 64, progress=progress_of(progress))
    assert set(answers) == {-errno.EDEADLK}
    assert a.stats().blocks == 1
    assert a.alloc(CHUNK - 64).dirty == 0


def test_a_block_freed_while_it_grows_has_not_grown(make: Any) -> None:
    a = make(2 * LONG)
    b = a.alloc(64)

    def progress() -> int:
        rc: int = a.lib.arena_free(a.c, b.handle)
        assert rc in (0, -errno.EINVAL)
        return 0

    refused(errno.ECANCELED, a.resize, b.handle, LONG, progress=progress_of(progress))
    assert a.stats().live == 0
    assert a.trim() == LONG


def test_the_last_block_of_a_closed_arena_may_be_freed_while_it_grows(make: Any) -> None:
    a = make(2 * LONG)
    b = a.alloc(64)
    must(a.lib.arena_close(a.c, False))

    def progress() -> int:
        if a.lib.arena_free(a.c, b.handle) == 0:
            assert a.lib.arena_close(a.c, False) == -errno.EBUSY
        return 0

    refused(errno.ECANCELED, a.resize, b.handle, LONG, progress=progress_of(progress))
    assert not a.lib.is_mapped(ffi.cast("void *", a.base))


def test_a_closed_arena_goes_with_its_last_block(make: Any) -> None:
    a = make()
    b, c = a.alloc(MIB), a.alloc(64)
    base = ffi.cast("void *", a.base)
    must(a.lib.arena_close(a.c, False))
    must(a.lib.arena_close(a.c, False))
    for function in (a.alloc, a.alloc_committed, a.warm):
        refused(errno.ESHUTDOWN, function, 64)
    a.write(b)
    assert a.find(b.address).bytes == MIB
    a.free(b.handle)
    assert a.lib.is_mapped(base)
    a.free(c.handle)
    assert not a.lib.is_mapped(base)
    refused(errno.EINVAL, a.free, c.handle)
    assert (a.stats().reserved, a.stats().committed, a.stats().free_committed) == (0, 0, 0)
    assert a.trim() == 0 and a.blocks() == []


def test_an_arena_is_destroyed_with_its_blocks(make: Any) -> None:
    for closed in (False, True):
        a = make()
        for _ in range(100):
            a.alloc(10000)
        if closed:
            must(a.lib.arena_close(a.c, False))
        a.close()
        assert not a.lib.is_mapped(ffi.cast("void *", a.base))


def test_a_reset_frees_everything_and_collects_what_is_due(make: Any) -> None:
    a = make(retain=2 * CHUNK, decay_ns=0)
    handles = [a.alloc(CHUNK).handle for _ in range(20)]
    must(a.lib.arena_reset(a.c))
    assert (a.stats().blocks, a.stats().live) == (0, 0)
    assert a.stats().free_committed == 2 * CHUNK
    for handle in handles:
        refused(errno.EINVAL, a.free, handle)


def test_warm_is_not_confused_by_many_runs_that_are_just_too_short(make: Any) -> None:
    """More of them than are looked at, before the one that is long enough and ends where what is committed ends."""
    a = make(8 * CHUNK)
    short, walls = [], []
    for _ in range(44):
        short.append(a.alloc(PAGE))
        walls.append(a.alloc(64))
    long = PAGE + 64
    a.alloc(3 * CHUNK - 44 * long - long)
    last = a.alloc(long)
    assert last.offset + last.bytes == a.stats().committed == 3 * CHUNK
    a.free(last.handle)
    for b in short:
        a.free(b.handle)
    a.warm(long)
    a.check()
    assert a.stats().live == 3 * CHUNK - 44 * PAGE - long


# --- fork -------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_block_that_grows_in_another_thread_is_its_old_self_in_the_child_of_a_fork(make: Any) -> None:
    a = make(2 * LONG)
    b = a.alloc(MIB)
    a.write(b, 5)
    entered, leave = threading.Event(), threading.Event()
    grower = Thread(lambda: a.resize(b.handle, LONG, progress=blocking(entered, leave, 0)))
    assert entered.wait(20)

    def look() -> None:
        assert a.find(b.address)[:3] == b[:3]
        assert a.read(b) == bytes([5]) * MIB
        a.check()
        assert a.stats().committed == a.stats().live == MIB
        a.free(b.handle)
        must(a.lib.arena_close(a.c, False))

    try:
        in_child(look)
    finally:
        leave.set()
    assert grower.wait().bytes == LONG
    assert a.read(b) == bytes([5]) * MIB


# --- alloc(NO_GROW): nothing but index work ---------------------------------------------------------------------------


def test_a_million_small_blocks_after_warm_make_no_system_call_and_no_fault(make: Callable[..., Arena]) -> None:
    many = 1 << 20
    a, b = make(1 << 30, chunk=2 * MIB), make(1 << 30, chunk=2 * MIB)
    faults = ffi.new("long *")
    for arena in (a, b):
        arena.warm(many * 64, many)
    must(a.lib.allocate(a.c, many, 64, faults))
    assert faults[0] == 0 and a.stats().blocks == many
    must(b.lib.allocate_without_system_calls(b.c, many, 64))
    assert b.stats().blocks == many


def test_without_warm_for_as_many_blocks_nothing_is_populated_by_the_way(make: Callable[..., Arena]) -> None:
    a = make(1 << 30, chunk=2 * MIB)
    a.warm(64 * MIB)
    assert a.lib.allocate(a.c, 1 << 20, 64, ffi.new("long *")) == -errno.ENOSPC
    had = a.stats().blocks
    assert 8000 < had < 1 << 20
    refused(errno.ENOSPC, a.alloc, 64, flags=NO_GROW)
    assert ffi.string(a.error.op) == b"index"
    refused(errno.EAGAIN, a.alloc_committed, 64)
    a.alloc(64)  # which may grow
    a.alloc(64, flags=NO_GROW)


def test_the_index_that_was_warmed_lasts_whatever_is_freed_meanwhile(make: Callable[..., Arena]) -> None:
    many = 3000
    a = make(64 * MIB)
    a.warm(8 * MIB, many)
    blocks = [a.alloc(64 + 64 * (i % 7), flags=NO_GROW) for i in range(many)]
    for block in blocks[::2]:
        a.free(block.handle)
    for _ in range(many // 2):
        a.alloc(64, flags=NO_GROW)
    a.check()


def test_an_index_cannot_be_warmed_for_more_than_the_arena_holds(make: Callable[..., Arena]) -> None:
    a = make(MIB)
    a.warm(MIB, 1 << 40)
    for _ in range(MIB // 64):
        a.alloc(64, flags=NO_GROW)
    refused(errno.ENOSPC, a.alloc, 64, flags=NO_GROW)
    a.check()
