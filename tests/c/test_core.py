"""The C core where Python does not reach: the clock, the handles, the failures, and an old kernel."""

from __future__ import annotations

import errno
import functools
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cffi
import pytest
from c._build import CSRC, Failed, build, declarations, must, refused, struct
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

ffi = cffi.FFI()
NULL = ffi.NULL
KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40
PAGE, HUGE, CHUNK = 4 * KIB, 2 * MIB, 64 * KIB
EVER = (1 << 64) - 1
ZERO, NO_GROW = 1, 2
STOP = errno.ESTALE  # what our ticks say: nothing else here says it
LONG = 256 * MIB  # of 4 KiB pages: populating it takes far longer than the 10 ms until the tick is asked

EXTRA = """
#define _GNU_SOURCE
#include <sys/mman.h>
#include <sys/resource.h>
#include "arena_internal.h"

/* A page that cannot be populated, and one that can again. */
int spoil(void *page) { return mprotect(page, 4096, PROT_NONE); }
int repair(void *page) { return mprotect(page, 4096, PROT_READ | PROT_WRITE); }
/* A hole, over which a release fails; and memory again. */
int cut(void *page) { return munmap(page, 4096); }
int mend(void *page) {
    return mmap(page, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) == MAP_FAILED;
}
int drop(void *page, uint64_t bytes) { return madvise(page, bytes, MADV_DONTNEED); }
int is_mapped(void *page) {
    unsigned char there;
    return mincore(page, 4096, &there) == 0;
}

long faults_of_writing(char *at, uint64_t bytes) {
    struct rusage before, after;
    getrusage(RUSAGE_THREAD, &before);
    for (uint64_t i = 0; i < bytes; i += 4096) ((volatile char *)at)[i] = 1;
    getrusage(RUSAGE_THREAD, &after);
    return after.ru_minflt - before.ru_minflt;
}

/* Every page's word in the map: 0, 1 committed for reading, 2 for writing. */
void pages_of(reservation *r, unsigned char *out, uint64_t n) {
    for (uint64_t i = 0; i < n; i++)
        out[i] = reservation_is_committed(r, i * 4096, 4096, false) + reservation_is_committed(r, i * 4096, 4096, true);
}

/* One short operation after the other, until *over. */
int bustle(reservation *r, uint64_t offset, const int *over) {
    int rc = 0;
    while (rc == 0 && !__atomic_load_n(over, __ATOMIC_RELAXED)) {
        rc = reservation_commit(r, offset, 4096, true, 1, NULL, NULL, NULL, NULL);
        if (rc == 0) rc = reservation_release(r, offset, 4096, NULL, NULL, NULL, NULL);
    }
    return rc;
}

int index_check(arena *a) { return freelist_check(&a->index); }
uint64_t index_committed(arena *a) { return a->index.committed_granules * 64; }
"""
EXTRA_DECLARED = """
int spoil(void *page);
int repair(void *page);
int cut(void *page);
int mend(void *page);
int drop(void *page, uint64_t bytes);
int is_mapped(void *page);
long faults_of_writing(char *at, uint64_t bytes);
void pages_of(reservation *r, unsigned char *out, uint64_t n);
int bustle(reservation *r, uint64_t offset, const int *over);
int index_check(arena *a);
uint64_t index_committed(arena *a);
const struct os_features *os_features(void);
int os_residency(const void *addr, size_t bytes, struct os_residency *out);
"""


@functools.cache
def library(folder: Path) -> Any:
    structs = struct("os.h", "os_features") + struct("os.h", "os_residency")
    declared = declarations("arena.h") + structs + EXTRA_DECLARED
    return build(ffi, folder / "core.so", sorted(CSRC.glob("*.c")), EXTRA, declared)


@pytest.fixture(scope="session")
def lib(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return library(tmp_path_factory.getbasetemp())


lost: list[BaseException] = []


@pytest.fixture(autouse=True)
def nothing_is_lost_in_a_tick() -> Iterator[None]:
    yield
    if lost:
        raise lost.pop()


def ticking(function: Callable[[], int]) -> Any:
    """A tick for the core. What it raises stops the call, and is raised again when the test is over."""

    def remember(kind: type, error: BaseException, traceback: object) -> None:
        lost[:] = [error]

    signature = "int(void *, uint64_t, uint64_t)"
    return ffi.callback(signature, lambda arg, done, total: function(), error=-errno.EPROTO, onerror=remember)


def stop() -> int:
    return -STOP


def cannot(function: Callable[..., object], *args: Any, **options: Any) -> None:
    """There is a page in the range that cannot be populated; which error that is, is the kernel's affair."""
    with pytest.raises(Failed) as info:
        function(*args, **options)
    assert info.value.errno in (errno.EINVAL, errno.EFAULT, errno.ENOMEM), str(info.value)


@pytest.fixture
def populating(lib: Any) -> None:
    if not lib.os_features().populate:
        pytest.skip("a kernel that cannot be asked to populate has no error where it cannot, but a signal")


# --- the two objects, and Python types around them --------------------------------------------------------------------


class Range:
    """A reservation."""

    def __init__(self, lib: Any, size: int, *, pages: str = "4K", **config: Any) -> None:
        self.lib, self.error = lib, ffi.new("struct arena_error *")
        names = {"4K": lib.ARENA_PAGES_4K, "auto": lib.ARENA_PAGES_AUTO, "thp": lib.ARENA_PAGES_THP}
        options = ffi.new("struct reservation_config *", {"size": size, "pages": names[pages], **config})
        out = ffi.new("reservation **")
        must(lib.reservation_create(options, out, self.error))
        self.c = out[0]
        stats = self.stats()
        self.size, self.page, self.at = stats.size, stats.page_size, ffi.cast("char *", stats.address)

    def close(self) -> None:
        must(self.lib.reservation_destroy(self.c))

    def stats(self) -> Any:
        out = ffi.new("struct reservation_stats *")
        self.lib.reservation_get(self.c, out)
        return out

    @property
    def committed(self) -> int:
        committed: int = self.stats().committed
        return committed

    def commit(self, offset: int, n: int, *, write: bool = True, threads: int = 1, tick: Any = NULL) -> int:
        newly = ffi.new("uint64_t *", 12345)
        rc = self.lib.reservation_commit(self.c, offset, n, write, threads, tick, NULL, newly, self.error)
        assert rc == 0 or newly[0] == 0
        must(rc)
        value: int = newly[0]
        return value

    def release(self, offset: int, n: int, *, tick: Any = NULL) -> int:
        freed = ffi.new("uint64_t *", 12345)
        must(self.lib.reservation_release(self.c, offset, n, freed, tick, NULL, self.error))
        value: int = freed[0]
        return value

    def verify(self, offset: int, n: int, *, tick: Any = NULL) -> None:
        must(self.lib.reservation_verify(self.c, offset, n, tick, NULL, self.error))

    def has(self, offset: int, n: int, *, write: bool = True) -> bool:
        return bool(self.lib.reservation_is_committed(self.c, offset, n, write))

    def write(self, offset: int, data: bytes) -> None:
        ffi.memmove(self.at + offset, data, len(data))

    def read(self, offset: int, n: int) -> bytes:
        return bytes(ffi.buffer(self.at + offset, n))

    def residency(self, offset: int = 0, n: int = 0) -> Any:
        out = ffi.new("struct os_residency *")
        must(self.lib.os_residency(self.at + offset, n or self.size, out))
        return out

    def copy(self, offset: int, buffer: Any, *, into: bool) -> None:
        must(self.lib.reservation_copy(self.c, offset, ffi.from_buffer(buffer), len(buffer), into))


class Block(NamedTuple):
    handle: int
    offset: int
    bytes: int
    address: int
    dirty: int


class Arena:
    """An arena, with a clock that stands still."""

    def __init__(
        self, lib: Any, size: int = 16 * MIB, *, chunk: int = CHUNK, retain: int = EVER, **config: Any
    ) -> None:
        self.lib, self.error = lib, ffi.new("struct arena_error *")
        self.now = 1
        self.clock = ffi.callback("uint64_t(void *)", lambda arg: self.now)
        options = ffi.new("struct arena_config *", {"chunk": chunk, "retain": retain, "now_ns": self.clock, **config})
        options.reservation.size = size
        out = ffi.new("arena **")
        must(lib.arena_create(options, out, self.error))
        self.c = out[0]
        self.size, self.chunk = self.stats().reserved, lib.arena_chunk(self.c)
        self.base = int(ffi.cast("uintptr_t", lib.arena_address(self.c)))
        self.block, self.due = ffi.new("struct arena_block *"), ffi.new("bool *")

    def close(self) -> None:
        if self.c:
            must(self.lib.arena_destroy(self.c))
        self.c = NULL

    def stats(self) -> Any:
        out = ffi.new("struct arena_stats *")
        self.lib.arena_get(self.c, out)
        return out

    def answer(self) -> Block:
        b = self.block
        return Block(b.handle, b.offset, b.bytes, int(ffi.cast("uintptr_t", b.address)), b.dirty)

    def alloc(self, n: int, align: int = 64, flags: int = 0, *, tick: Any = NULL) -> Block:
        must(self.lib.arena_alloc(self.c, n, align, flags, tick, NULL, self.block, self.error))
        return self.answer()

    def attempt(self, n: int, align: int = 64) -> Block:
        must(self.lib.arena_try(self.c, n, align, self.block))
        return self.answer()

    def free(self, handle: int) -> None:
        must(self.lib.arena_free(self.c, handle))

    def give(self, handle: int) -> bool:
        must(self.lib.arena_give(self.c, handle, self.due))
        return bool(self.due[0])

    def collect(self) -> None:
        must(self.lib.arena_collect(self.c))

    def resize(self, handle: int, n: int, *, tick: Any = NULL) -> Block:
        must(self.lib.arena_resize(self.c, handle, n, tick, NULL, self.block, self.error))
        return self.answer()

    def find(self, address: int) -> Block:
        must(self.lib.arena_find(self.c, ffi.cast("void *", address), self.block))
        return self.answer()

    def warm(self, n: int, *, tick: Any = NULL) -> None:
        must(self.lib.arena_warm(self.c, n, 0, tick, NULL, self.error))

    def trim(self, keep: int = 0) -> int:
        freed = ffi.new("uint64_t *")
        must(self.lib.arena_trim(self.c, keep, freed, self.error))
        value: int = freed[0]
        return value

    def blocks(self, most: int = 256) -> list[tuple[int, int]]:
        out, cursor, found = ffi.new("struct arena_block[]", most), ffi.new("uint64_t *", 0), []
        while cursor[0] != EVER:
            n = self.lib.arena_blocks(self.c, cursor, out, most)
            assert n <= min(most, 256)
            found += [(out[i].offset, out[i].bytes) for i in range(n)]
        return found

    def write(self, block: Block, byte: int = 1) -> None:
        ffi.memmove(ffi.cast("char *", block.address), bytes([byte]) * block.bytes, block.bytes)

    def read(self, block: Block) -> bytes:
        return bytes(ffi.buffer(ffi.cast("char *", block.address), block.bytes))

    def figures(self) -> dict[str, int]:
        """What a call that failed must not have changed."""
        s = self.stats()
        return {
            name: getattr(s, name) for name in ("committed", "live", "free_committed", "blocks", "largest_free", "free")
        }

    def check(self) -> None:
        line = self.lib.index_check(self.c)
        assert line == 0, f"freelist_stats.c:{line} does not hold"
        assert not self.stats().reserved or self.lib.index_committed(self.c) == self.stats().committed


@pytest.fixture
def reserve(lib: Any) -> Iterator[Callable[..., Range]]:
    made: list[Range] = []

    def new(size: int, **options: Any) -> Range:
        made.append(Range(lib, size, **options))
        return made[-1]

    yield new
    for r in made:
        r.close()


@pytest.fixture
def make(lib: Any) -> Iterator[Callable[..., Arena]]:
    made: list[Arena] = []

    def new(*args: Any, **options: Any) -> Arena:
        made.append(Arena(lib, *args, **options))
        return made[-1]

    yield new
    for a in made:
        if a.c:
            a.check()
        a.close()


def old_kernel() -> Any:
    """One before 5.14, with nothing of what is probed for."""
    return ffi.new("struct os_features *")


# --- the reservation: what is committed, and what a failure leaves ----------------------------------------------------


def test_commit_rounds_outward_and_release_inward(reserve: Any) -> None:
    r = reserve(MIB)
    assert r.commit(PAGE - 1, 2) == 2 * PAGE
    assert r.has(0, 2 * PAGE) and not r.has(0, 2 * PAGE + 1)
    assert r.commit(0, PAGE) == 0
    assert r.release(1, 2 * PAGE - 1) == PAGE
    assert r.has(0, PAGE) and not r.has(PAGE, 1)
    assert r.release(0, PAGE - 1) == r.release(3, 0) == 0
    assert r.residency().present == r.committed == PAGE
    assert r.commit(PAGE, 0) == 0
    assert r.committed == PAGE


@pytest.mark.parametrize(("pages", "size", "threads"), [("4K", LONG, 1), ("4K", LONG, 3), ("auto", GIB, 1)])
def test_a_commit_refused_by_its_tick_gives_back_what_it_made_present_and_nothing_else(
    reserve: Any, pages: str, size: int, threads: int
) -> None:
    r = reserve(size, pages=pages)
    islands = [0, 4 * MIB + r.page, 10 * MIB, 130 * MIB, size - r.page]
    for at in islands:
        r.commit(at, r.page)
        r.write(at, b"kept")
    r.commit(16 * MIB, 4 * MIB, write=False)
    before = r.residency(), r.stats()
    refused(STOP, r.commit, 0, size, threads=threads, tick=ticking(stop))
    after = r.residency(), r.stats()
    for name in ("present", "huge", "swapped"):
        assert getattr(after[0], name) == getattr(before[0], name), name
    assert after[0].zero <= before[0].zero  # what was there to be read stays, whatever it is made of now
    for name in ("committed", "peak_committed", "commits", "commit_ns"):
        assert getattr(after[1], name) == getattr(before[1], name), name
    assert all(r.read(at, 5) == b"kept\0" for at in islands)
    assert r.error.err == STOP and r.error.committed == r.committed
    assert r.has(16 * MIB, 4 * MIB, write=False) and not r.has(16 * MIB, 1)


@pytest.mark.usefixtures("populating")
def test_a_commit_that_fails_in_the_middle_says_so_and_is_undone(reserve: Any) -> None:
    r = reserve(16 * MIB)
    r.commit(MIB, PAGE)
    r.write(MIB, b"kept")
    must(r.lib.spoil(r.at + 9 * MIB))
    cannot(r.commit, 100, 10 * MIB)
    assert ffi.string(r.error.op) == b"madvise(MADV_POPULATE_WRITE)"
    assert (r.error.offset, r.error.requested, r.error.committed) == (100, 10 * MIB, PAGE)
    assert r.residency().present == r.committed == PAGE
    assert r.read(MIB, 4) == b"kept"
    must(r.lib.repair(r.at + 9 * MIB))
    assert r.commit(100, 10 * MIB) == 10 * MIB


@pytest.mark.usefixtures("populating")
def test_a_failed_commit_for_writing_keeps_what_was_written_to_pages_committed_for_reading(reserve: Any) -> None:
    r = reserve(MIB)
    assert r.commit(0, MIB, write=False) == MIB
    r.write(8 * PAGE, b"by a store")
    must(r.lib.spoil(r.at + MIB - PAGE))
    cannot(r.commit, 0, MIB)
    assert r.read(8 * PAGE, 10) == b"by a store"
    assert r.has(0, MIB, write=False) and not r.has(0, PAGE)
    assert r.residency().present == r.committed == MIB
    must(r.lib.repair(r.at + MIB - PAGE))


@pytest.mark.parametrize("pages", ["4K", "auto"])
@pytest.mark.parametrize("populate", [True, False])
def test_what_is_committed_does_not_fault_on_an_old_kernel_either(reserve: Any, pages: str, populate: bool) -> None:
    features = ffi.new("struct os_features *", reserve(PAGE).lib.os_features()[0])
    features.populate = populate and features.populate
    r = reserve(32 * MIB, pages=pages, features=features)
    assert r.commit(r.page, 8 * MIB) == 8 * MIB
    assert r.residency().present == 8 * MIB
    assert r.lib.faults_of_writing(r.at + r.page, 8 * MIB) == 0
    assert r.commit(16 * MIB, 4 * MIB, write=False) == 4 * MIB
    assert r.residency(16 * MIB, 4 * MIB).present == 4 * MIB
    assert r.commit(16 * MIB, 4 * MIB) == 0
    assert r.lib.faults_of_writing(r.at + 16 * MIB, 4 * MIB) == 0
    assert r.release(0, r.size) == 12 * MIB
    assert r.residency().present == 0


def test_an_old_kernel_can_be_told_to_stop(reserve: Any) -> None:
    r = reserve(LONG, features=old_kernel())
    r.commit(MIB, PAGE)
    r.write(MIB, b"kept")
    refused(STOP, r.commit, 0, LONG, tick=ticking(stop))
    assert r.residency().present == r.committed == PAGE
    assert r.read(MIB, 4) == b"kept"


def test_copies_go_through_the_kernel(reserve: Any) -> None:
    r = reserve(MIB)
    r.commit(0, MIB)
    data = bytes(range(256)) * 40
    try:
        r.copy(PAGE - 100, data, into=True)
    except Failed as failed:
        assert failed.errno == errno.EPERM
        pytest.skip("process_vm_writev is forbidden here")
    assert r.read(PAGE - 100, len(data)) == data
    back = bytearray(len(data))
    r.copy(PAGE - 100, back, into=False)
    assert back == data
    r.copy(MIB, bytearray(), into=False)
    refused(errno.EINVAL, r.copy, MIB - 9, bytearray(10), into=False)
    refused(errno.EINVAL, r.copy, EVER - 4, bytearray(10), into=True)
    must(r.lib.spoil(r.at + 5 * PAGE))
    refused(errno.EFAULT, r.copy, 5 * PAGE - 3, bytearray(6), into=False)
    refused(errno.EFAULT, r.copy, 5 * PAGE - 3, bytearray(6), into=True)
    must(r.lib.repair(r.at + 5 * PAGE))


@pytest.mark.usefixtures("populating")
def test_verify_populates_again_or_says_why_not(reserve: Any) -> None:
    r = reserve(4 * MIB)
    r.commit(0, MIB)
    r.commit(2 * MIB, MIB, write=False)
    must(r.lib.drop(r.at + 10 * PAGE, 50 * PAGE))
    r.verify(0, 4 * MIB)
    assert r.residency(0, 2 * MIB).present == MIB
    assert r.lib.faults_of_writing(r.at, MIB) == 0
    must(r.lib.spoil(r.at + 20 * PAGE))
    cannot(r.verify, 0, MIB)
    assert ffi.string(r.error.op).startswith(b"madvise")
    r.verify(21 * PAGE, MIB)
    assert r.committed == 2 * MIB  # a diagnosis: nothing is taken back
    must(r.lib.repair(r.at + 20 * PAGE))
    refused(errno.EINVAL, r.verify, 4 * MIB, 1)


def test_ranges_that_are_not_in_the_reservation(reserve: Any) -> None:
    r = reserve(MIB)
    for offset, n in ((MIB, 1), (0, MIB + 1), (MIB + 1, 0), (EVER, 2), (1, EVER), (PAGE, EVER - PAGE + 1)):
        refused(errno.EINVAL, r.commit, offset, n)
        assert ffi.string(r.error.op) == b"range"
        refused(errno.EINVAL, r.release, offset, n)
        refused(errno.EINVAL, r.verify, offset, n)
        assert not r.has(offset, n)
    assert r.committed == 0


def test_reservations_that_cannot_be_had(reserve: Any) -> None:
    refused(errno.EINVAL, reserve, 0)
    for size in (EVER, EVER - HUGE, 1 << 63, (1 << 47) + 1):
        refused(errno.ENOMEM, reserve, size)


@pytest.mark.parametrize("headroom", [1 << 62, EVER])
def test_a_headroom_of_more_than_there_is_leaves_nothing(reserve: Any, headroom: int) -> None:
    r = reserve(MIB, headroom=headroom)
    refused(errno.ENOMEM, r.commit, 0, PAGE)
    assert ffi.string(r.error.op) == b"preflight"
    assert r.error.available == 0 and ffi.string(r.error.where)
    assert r.residency().present == 0


def test_64_tib_of_which_little_is_there(reserve: Any) -> None:
    r = reserve(64 * TIB)
    r.commit(0, PAGE)
    r.commit(64 * TIB - PAGE, PAGE)
    r.commit(33 * TIB + 5, 1)
    r.write(33 * TIB, b"here")
    assert r.committed == 3 * PAGE
    refused(STOP, r.commit, 40 * TIB, LONG, tick=ticking(stop))
    assert r.release(32 * TIB, 2 * TIB) == PAGE
    assert r.committed == 2 * PAGE
    r.commit(33 * TIB, PAGE)
    assert r.read(33 * TIB, 4) == bytes(4)


# --- the reservation: several at once ---------------------------------------------------------------------------------


def test_a_tick_may_do_everything_except_to_its_own_range(reserve: Any) -> None:
    r = reserve(2 * LONG)
    seen = []

    def tick() -> int:
        refused(errno.EDEADLK, r.commit, LONG - PAGE, 2 * PAGE)
        refused(errno.EDEADLK, r.release, 0, PAGE)
        refused(errno.EDEADLK, r.verify, 0, PAGE)
        refused(errno.EBUSY, r.close)
        seen.append((r.commit(LONG, PAGE), r.has(LONG, PAGE), r.release(LONG, PAGE), r.has(0, PAGE), r.committed))
        return 0

    assert r.commit(0, LONG, tick=ticking(tick)) == LONG
    assert set(seen) == {(PAGE, True, PAGE, False, 0)}


class Thread(threading.Thread):
    """Runs something, and knows what it returned or raised."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__(daemon=True)
        self.work = work
        self.result: Any = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self.result = self.work()
        except BaseException as error:
            self.error = error

    def wait(self) -> Any:
        self.join(20)
        assert not self.is_alive(), "it hangs"
        if self.error:
            raise self.error
        return self.result


def blocking(entered: threading.Event, leave: threading.Event, answer: int) -> Any:
    """A tick in which the commit stands still until it is told to go on."""

    def tick() -> int:
        entered.set()
        assert leave.wait(20)
        return answer

    return ticking(tick)


def test_who_waits_for_a_commit_that_fails_takes_over(reserve: Any) -> None:
    r = reserve(LONG)
    entered, leave, waiting = threading.Event(), threading.Event(), threading.Event()
    first = Thread(lambda: r.commit(0, LONG, tick=blocking(entered, leave, -STOP)))
    assert entered.wait(20)

    def wait() -> int:
        waiting.set()
        return 0

    second = Thread(lambda: r.commit(PAGE, PAGE, tick=ticking(wait)))
    assert waiting.wait(20)
    leave.set()
    refused(STOP, first.wait)
    assert second.wait() == PAGE
    assert r.committed == r.residency().present == PAGE


@pytest.mark.parametrize("what", ["commit", "release", "verify"])
def test_who_waits_is_asked_whether_to_go_on_however_busy_the_others_are(reserve: Any, what: str) -> None:
    r = reserve(LONG + MIB)
    entered, leave, over = threading.Event(), threading.Event(), ffi.new("int *")
    long = Thread(lambda: r.commit(0, LONG, tick=blocking(entered, leave, 0)))
    assert entered.wait(20)
    others = Thread(lambda: must(r.lib.bustle(r.c, LONG, over)))
    waiter = Thread(lambda: getattr(r, what)(PAGE, PAGE, tick=ticking(stop)))
    waiter.join(2)
    asked = not waiter.is_alive()
    leave.set()
    over[0] = 1
    long.wait()
    others.wait()
    assert asked
    refused(STOP, waiter.wait)


def test_two_who_want_in_their_ticks_what_the_other_commits_do_not_wait_for_ever(reserve: Any) -> None:
    r = reserve(2 * LONG)
    barrier, deadline = threading.Barrier(2), time.monotonic() + 5

    def patience() -> int:
        return -errno.ETIME if time.monotonic() > deadline else 0

    def commit(own: int, other: int) -> list[int]:
        answers: list[int] = []

        def tick() -> int:
            if not answers:
                barrier.wait(20)
                answers.append(r.lib.reservation_commit(r.c, other, PAGE, True, 1, ticking(patience), NULL, NULL, NULL))
            return 0

        must(r.lib.reservation_commit(r.c, own, LONG, True, 1, ticking(tick), NULL, NULL, NULL))
        return answers

    one, two = Thread(lambda: commit(0, LONG)), Thread(lambda: commit(LONG, 0))
    answers = one.wait() + two.wait()
    assert -errno.ETIME not in answers
    assert -errno.EDEADLK in answers
    assert r.committed == 2 * LONG


# --- the reservation: against a model ---------------------------------------------------------------------------------


class Pages(RuleBasedStateMachine):
    """The model: for each page whether it is committed for nothing, reading or writing, and what is written in it."""

    lib: Any = None
    N = 10
    places = st.integers(0, N * PAGE)

    @initialize(old=st.booleans())
    def start(self, old: bool) -> None:
        self.can_fail = not old and self.lib.os_features().populate
        self.r = Range(self.lib, self.N * PAGE, **({"features": old_kernel()} if old else {}))
        self.is_for = [0] * self.N
        self.data = [0] * self.N
        self.bad: set[int] = set()
        # Committed for reading; since a commit for writing failed maybe not the zero page.
        self.tried: set[int] = set()

    @rule(a=places, b=places, write=st.booleans())
    def commit(self, a: int, b: int, write: bool) -> None:
        start, end = min(a, b), max(a, b)
        pages = range(start // PAGE, -(-end // PAGE))
        lacking = [page for page in pages if self.is_for[page] < 1 + write]
        if self.bad.intersection(lacking):
            cannot(self.r.commit, start, end - start, write=write)
            self.tried.update(page for page in lacking if self.is_for[page])
            return
        newly = sum(self.is_for[page] == 0 for page in lacking)
        assert self.r.commit(start, end - start, write=write) == newly * PAGE
        for page in lacking:
            self.is_for[page] = 1 + write

    @rule(a=places, b=places)
    def release(self, a: int, b: int) -> None:
        start, end = min(a, b), max(a, b)
        pages = range(-(-start // PAGE), end // PAGE)
        assert self.r.release(start, end - start) == PAGE * sum(self.is_for[page] > 0 for page in pages)
        for page in pages:
            self.is_for[page] = self.data[page] = 0
        self.tried.difference_update(pages)

    @rule(a=places, b=places)
    def verify(self, a: int, b: int) -> None:
        start, end = min(a, b), max(a, b)
        if any(self.is_for[page] == 2 for page in self.bad if start // PAGE <= page < -(-end // PAGE)):
            cannot(self.r.verify, start, end - start)
        else:
            self.r.verify(start, end - start)

    @rule(page=st.integers(0, N - 1))
    def spoil_or_repair(self, page: int) -> None:
        if self.can_fail:
            must((self.lib.repair if page in self.bad else self.lib.spoil)(self.r.at + page * PAGE))
            self.bad ^= {page}

    @rule(a=places, b=places, byte=st.integers(1, 255))
    def write(self, a: int, b: int, byte: int) -> None:
        """To pages committed for reading that is a fault, and no crime."""
        for page in range(min(a, b) // PAGE, -(-max(a, b) // PAGE)):
            if self.is_for[page] and page not in self.bad:
                self.r.write(page * PAGE + 77, bytes([byte]))
                self.data[page] = byte

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "r"):
            return
        present = PAGE * sum(level > 0 for level in self.is_for)
        out = ffi.new("unsigned char[]", self.N)
        self.lib.pages_of(self.r.c, out, self.N)
        assert list(out) == self.is_for
        residency = self.r.residency()
        assert self.r.committed == residency.present == present
        if self.lib.os_features().pagemap_scan:
            zero = {page for page in range(self.N) if self.is_for[page] == 1 and not self.data[page]}
            assert PAGE * len(zero - self.tried) <= residency.zero <= PAGE * len(zero)
        for page, byte in enumerate(self.data):
            if self.is_for[page] and page not in self.bad:
                assert self.r.read(page * PAGE + 77, 1)[0] == byte

    def teardown(self) -> None:
        if hasattr(self, "r"):
            self.r.close()


def test_pages_are_as_a_model_says(lib: Any) -> None:
    Pages.lib = lib
    run_state_machine_as_test(
        Pages,
        settings=settings(
            max_examples=100,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
            derandomize=True,
            database=None,
        ),
    )


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_pages_are_as_a_model_says_for_long(lib: Any, seed: int) -> None:
    """The same, by chance alone: hypothesis seldom goes far."""
    Pages.lib = lib
    rng, pages = random.Random(seed), Pages()
    pages.start(old=False)
    for _ in range(1500):
        a, b = rng.randrange(Pages.N * PAGE), rng.randrange(Pages.N * PAGE)
        what = rng.randrange(10)
        if what < 4:
            pages.commit(a, b, rng.choice([False, True]))
        elif what < 6:
            pages.release(a, b)
        elif what < 7:
            pages.verify(a, b)
        elif what < 9:
            pages.write(a, b, rng.randrange(1, 256))
        else:
            pages.spoil_or_repair(a // PAGE)
        pages.agree()
    pages.teardown()


# --- the arena: handles, addresses, errors ----------------------------------------------------------------------------


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
def test_arenas_that_cannot_be_had(lib: Any, size: int, chunk: int, op: bytes) -> None:
    options = ffi.new("struct arena_config *", {"chunk": chunk, "reservation": {"size": size}})
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
        for function in (a.free, a.give):
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
        refused(errno.EINVAL, a.attempt, 100, align)
        refused(errno.EINVAL, a.alloc, 100, align)
    refused(errno.EINVAL, a.attempt, 0)
    refused(errno.EINVAL, a.alloc, 0)
    refused(errno.EINVAL, a.warm, 0)
    refused(errno.EINVAL, a.resize, b.handle, 0)
    for n in (a.size + 1, a.size, 1 << 63, EVER):
        for function in (a.attempt, a.alloc, a.warm):
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


@pytest.mark.usefixtures("populating")
def test_error_pointers_may_be_null(make: Any) -> None:
    a = make(2 * LONG, retain=0)
    lib, out, handle, tick = a.lib, a.block, a.alloc(64).handle, ticking(stop)
    assert lib.arena_alloc(a.c, LONG, 64, 0, tick, NULL, out, NULL) == -STOP
    assert lib.arena_alloc(a.c, 3 * LONG, 64, 0, NULL, NULL, out, NULL) == -errno.ENOSPC
    assert lib.arena_alloc(a.c, 0, 64, 0, NULL, NULL, out, NULL) == -errno.EINVAL
    assert lib.arena_resize(a.c, handle, LONG, tick, NULL, out, NULL) == -STOP
    assert lib.arena_resize(a.c, handle, 3 * LONG, NULL, NULL, out, NULL) == -errno.ENOSPC
    assert lib.arena_warm(a.c, LONG, 1, tick, NULL, NULL) == -STOP
    assert lib.arena_warm(a.c, 3 * LONG, 1, NULL, NULL, NULL) == -errno.ENOSPC
    assert lib.arena_trim(a.c, 0, ffi.new("uint64_t *"), NULL) == 0
    r = lib.arena_reservation(a.c)
    must(lib.spoil(lib.arena_address(a.c) + MIB))
    assert lib.reservation_commit(r, MIB, PAGE, True, 0, NULL, NULL, NULL, NULL) < 0
    must(lib.repair(lib.arena_address(a.c) + MIB))
    assert lib.reservation_commit(r, 3 * LONG, 1, True, 0, NULL, NULL, NULL, NULL) == -errno.EINVAL
    assert lib.reservation_release(r, 3 * LONG, 1, NULL, NULL, NULL, NULL) == -errno.EINVAL
    assert lib.reservation_release(r, MIB, 1, NULL, NULL, NULL, NULL) == 0
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


# --- the arena: old bytes ---------------------------------------------------------------------------------------------


def test_dirty_says_how_much_may_have_been_used_before(make: Any) -> None:
    a = make(4 * MIB)
    a.warm(2 * MIB)
    b = a.alloc(MIB)
    assert b.dirty == 0
    a.write(b)
    a.free(b.handle)
    assert a.attempt(100).dirty == 128
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
    refused(STOP, a.alloc, LONG, tick=ticking(stop))
    refused(STOP, a.warm, LONG, tick=ticking(stop))
    refused(STOP, a.resize, b.handle, LONG, tick=ticking(stop))
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
        while a.lib.arena_try(a.c, 64, 64, ffi.new("struct arena_block *")) == 0:
            pass
        return -STOP

    refused(STOP, a.resize, b.handle, LONG, tick=ticking(fill_the_index))
    assert a.find(b.address).bytes == CHUNK
    assert (b.offset, CHUNK) in a.blocks()


def test_a_release_that_fails_leaves_ledger_and_index_in_agreement(make: Any) -> None:
    a = make(4 * MIB)
    b = a.alloc(MIB)
    a.free(b.handle)
    hole = ffi.cast("char *", b.address + 5 * PAGE)
    must(a.lib.cut(hole))
    refused(errno.ENOMEM, a.trim)
    assert ffi.string(a.error.op) == b"madvise(MADV_DONTNEED)"
    a.check()
    must(a.lib.mend(hole))
    assert a.stats().free_committed == a.trim() == MIB


# --- the arena: what is retained, and for how long --------------------------------------------------------------------


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
    a.give(b.handle)
    a.now = 1001
    assert a.give(last.handle)
    a.attempt(20 * CHUNK)  # between the two halves of a free
    a.collect()
    assert a.stats().free_committed >= 8 * CHUNK


def test_a_late_collection_leaves_what_was_warmed(make: Any) -> None:
    a = make(retain=0, decay_ns=1000)
    b, last = a.alloc(32 * CHUNK), a.alloc(64)
    a.give(b.handle)
    a.now = 1001
    assert a.give(last.handle)
    a.warm(16 * CHUNK)
    a.collect()
    assert a.attempt(16 * CHUNK).bytes == 16 * CHUNK


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
        a.attempt(64)
        grown = a.alloc(CHUNK)
        a.resize(grown.handle, 2 * CHUNK)
        a.resize(grown.handle, 64)
        a.warm(64)
    assert a.stats().releases == 0


# --- the arena: its end, and calls from within calls ------------------------------------------------------------------


def test_a_tick_may_use_the_arena_but_not_end_it(make: Any) -> None:
    a = make(3 * LONG)
    lib, seen = a.lib, []
    hole, wall = a.alloc(MIB), a.alloc(MIB)
    a.free(hole.handle)

    def tick() -> int:
        assert lib.arena_close(a.c) == lib.arena_destroy(a.c) == lib.arena_reset(a.c) == -errno.EBUSY
        own = ffi.new("struct arena_block *")
        seen.append(lib.arena_try(a.c, 100, 64, own))
        assert lib.arena_alloc(a.c, MIB, 64, 0, NULL, NULL, own, NULL) == 0
        assert lib.arena_find(a.c, own.address, own) == 0
        assert lib.arena_free(a.c, own.handle) == 0
        assert len(a.blocks()) == 1 + len(seen)  # not the one that is in the making
        return 0

    big = a.alloc(LONG, tick=ticking(tick))
    assert seen and not any(seen)
    assert a.stats().live == big.bytes + wall.bytes + 128 * len(seen)
    must(lib.arena_reset(a.c))


def test_what_comes_back_to_the_chunk_in_the_making_is_refused(make: Any) -> None:
    a = make(LONG)
    answers = []

    def tick() -> int:
        answers.append(a.lib.arena_alloc(a.c, CHUNK - 64, 64, 0, NULL, NULL, ffi.new("struct arena_block *"), NULL))
        return 0

    a.alloc(LONG - CHUNK + 64, tick=ticking(tick))
    assert set(answers) == {-errno.EDEADLK}
    assert a.stats().blocks == 1
    assert a.alloc(CHUNK - 64).dirty == 0


def test_a_block_freed_while_it_grows_has_not_grown(make: Any) -> None:
    a = make(2 * LONG)
    b = a.alloc(64)

    def tick() -> int:
        rc: int = a.lib.arena_free(a.c, b.handle)
        assert rc in (0, -errno.EINVAL)
        return 0

    refused(errno.ECANCELED, a.resize, b.handle, LONG, tick=ticking(tick))
    assert a.stats().live == 0
    assert a.trim() == LONG


def test_the_last_block_of_a_closed_arena_may_be_freed_while_it_grows(make: Any) -> None:
    a = make(2 * LONG)
    b = a.alloc(64)
    must(a.lib.arena_close(a.c))

    def tick() -> int:
        if a.lib.arena_free(a.c, b.handle) == 0:
            assert a.lib.arena_close(a.c) == -errno.EBUSY
        return 0

    refused(errno.ECANCELED, a.resize, b.handle, LONG, tick=ticking(tick))
    assert not a.lib.is_mapped(ffi.cast("void *", a.base))


def test_a_closed_arena_goes_with_its_last_block(make: Any) -> None:
    a = make()
    b, c = a.alloc(MIB), a.alloc(64)
    base = ffi.cast("void *", a.base)
    must(a.lib.arena_close(a.c))
    must(a.lib.arena_close(a.c))
    for function in (a.alloc, a.attempt, a.warm):
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
            must(a.lib.arena_close(a.c))
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


def in_child(work: Callable[[], object]) -> None:
    """Runs work in a fork; what it raises fails the test."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException as error:
            os.write(write, repr(error).encode()[:4000])
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the child ended with {status}: {said}"


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_block_that_grows_in_another_thread_is_its_old_self_in_the_child_of_a_fork(make: Any) -> None:
    a = make(2 * LONG)
    b = a.alloc(MIB)
    a.write(b, 5)
    entered, leave = threading.Event(), threading.Event()
    grower = Thread(lambda: a.resize(b.handle, LONG, tick=blocking(entered, leave, 0)))
    assert entered.wait(20)

    def look() -> None:
        assert a.find(b.address)[:3] == b[:3]
        assert a.read(b) == bytes([5]) * MIB
        a.check()
        assert a.stats().committed == a.stats().live == MIB
        a.free(b.handle)
        must(a.lib.arena_close(a.c))

    try:
        in_child(look)
    finally:
        leave.set()
    assert grower.wait().bytes == LONG
    assert a.read(b) == bytes([5]) * MIB


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_commit_in_another_thread_leaves_what_was_written_to_pages_committed_for_reading(reserve: Any) -> None:
    r = reserve(LONG)
    r.commit(0, MIB, write=False)
    r.write(PAGE, b"kept")
    entered, leave = threading.Event(), threading.Event()
    other = Thread(lambda: r.commit(0, LONG, tick=blocking(entered, leave, 0)))
    assert entered.wait(20)

    def look() -> None:
        assert r.read(PAGE, 4) == b"kept"
        assert r.committed == MIB and r.has(0, MIB, write=False)
        assert r.commit(0, 2 * MIB) == MIB
        assert r.read(PAGE, 4) == b"kept"

    try:
        in_child(look)
    finally:
        leave.set()
    other.wait()
    assert r.read(PAGE, 4) == b"kept"
