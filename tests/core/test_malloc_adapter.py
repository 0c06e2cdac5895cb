"""malloc's interface in C: when it lets go of the lock, addresses that are not its own, overflow, and the end."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from core import _core
from core._build import must, refused
from core._core import EVER, KIB, LONG, MIB, NULL, STOP, Arena, ffi, library, progress_of, stop

pytestmark = pytest.mark.slow  # the same on every CPython


class Adapter:
    """A malloc adapter of an arena, whose caller's lock is held or not."""

    def __init__(self, *, held: bool = True, overflow: bool = False, progress: Any = NULL, **config: Any) -> None:
        self.lib, self.arena, self.held, self.progress = library(), Arena(**config), held, progress
        self.said: list[str] = []
        self.leave = ffi.callback("void *(void)", self._leave)
        self.come_back = ffi.callback("void(void *)", lambda token: self.said.append("come back"))
        given = {"arena": self.arena.c, "overflow": overflow, "leave": self.leave, "come_back": self.come_back}
        self.c = ffi.new("struct malloc_adapter *", {**given, "progress": progress})

    def _leave(self) -> Any:
        if not self.held:
            return NULL
        self.said.append("leave")
        return self.c

    def malloc(self, n: int) -> Any:
        return self.lib.adapter_malloc(self.c, n)

    def calloc(self, n: int, each: int) -> Any:
        return self.lib.adapter_calloc(self.c, n, each)

    def realloc(self, at: Any, n: int) -> Any:
        return self.lib.adapter_realloc(self.c, at, n)

    def free(self, at: Any) -> None:
        self.lib.adapter_free(self.c, at, 99)

    def why(self) -> tuple[int, str]:
        error = ffi.new("struct arena_error *")
        rc = self.lib.adapter_why(self.arena.c, error)
        return rc, ffi.string(error.op).decode() if error.op else ""

    def offset(self, at: Any) -> int:
        return int(ffi.cast("uintptr_t", at)) - self.arena.base

    def times(self) -> int:
        """How often the lock was let go of, and got back, since this was asked."""
        assert self.said == ["leave", "come back"] * (len(self.said) // 2)
        n = len(self.said) // 2
        self.said.clear()
        return n


@pytest.fixture
def make() -> Iterator[Callable[..., Adapter]]:
    made: list[Adapter] = []

    def new(**options: Any) -> Adapter:
        made.append(Adapter(**options))
        return made[-1]

    yield new
    for adapter in made:
        adapter.arena.check()
        adapter.arena.close()
    if _core.lost:
        raise _core.lost.pop()


def test_the_callers_lock_is_let_go_of_for_what_takes_long_and_nothing_else(make: Callable[..., Adapter]) -> None:
    h = make(retain=0)
    a = h.malloc(100)
    assert h.times() == 1  # a commit
    b = h.malloc(100)
    assert h.times() == 0
    b = h.realloc(b, 200)
    assert h.times() == 1
    h.free(b)
    assert h.times() == 0
    h.free(a)
    assert h.times() == 1  # a release, for nothing is retained
    assert h.arena.stats().committed == 0
    h.free(h.malloc(8 * MIB))
    big = h.malloc(8 * MIB)
    h.times()
    keep = make()
    keep.free(keep.malloc(8 * MIB))
    keep.times()
    assert keep.calloc(1, 64 * KIB) != NULL and keep.times() == 0
    assert keep.calloc(2, 2 * MIB) != NULL and keep.times() == 1  # to clear it
    h.free(big)


def test_nobodys_lock(make: Callable[..., Adapter]) -> None:
    h = make(held=False, retain=0, progress=progress_of(stop))
    at = h.realloc(h.malloc(LONG // 64), LONG // 32)  # its progress would have stopped it
    assert at != NULL
    h.free(at)
    assert h.said == [] and h.why()[0] == 0
    bare = make()
    bare.c.leave = NULL
    bare.c.come_back = NULL
    bare.free(bare.calloc(3, MIB))


@pytest.mark.parametrize("overflow", [False, True])
def test_a_tick_that_stops_it(make: Callable[..., Adapter], overflow: bool) -> None:
    h = make(overflow=overflow, progress=progress_of(stop), size=2 * LONG)
    before = h.arena.figures()
    assert h.malloc(LONG) == NULL or overflow
    assert h.why()[0] == -STOP
    assert h.arena.figures() == before
    h.progress = h.c.progress = progress_of(lambda: -errno.EINTR)
    assert h.malloc(LONG) == NULL and ffi.errno == errno.ENOMEM  # who was stopped gets nothing from elsewhere
    assert h.why()[0] == -errno.EINTR
    small = h.malloc(64)
    before = h.arena.figures()
    assert h.realloc(small, LONG) == NULL
    assert h.arena.figures() == before


def test_in_place_and_moved(make: Callable[..., Adapter]) -> None:
    h = make()
    a = h.malloc(1000)
    ffi.memmove(a, b"x" * 1000, 1000)
    assert h.realloc(a, 5000) == a and h.realloc(a, 1000) == a
    b = h.malloc(1)
    moved = h.realloc(a, 5000)
    assert moved not in (a, NULL, b) and bytes(ffi.buffer(moved, 1000)) == b"x" * 1000
    assert h.arena.blocks() == sorted([(h.offset(b), 64), (h.offset(moved), 5056)])
    assert h.realloc(NULL, 64) == a  # its place was free again
    assert h.realloc(a, 0) == a


def test_addresses_that_are_not_its_own(make: Callable[..., Adapter]) -> None:
    h = make()
    a = h.malloc(1000)
    before = h.arena.figures()
    h.free(NULL)
    h.free(a + 64)
    h.free(a + 8)
    h.free(ffi.cast("char *", h.arena.base) + h.arena.size - 64)
    assert h.arena.figures() == before
    h.free(a)
    h.free(a)
    assert h.arena.stats().blocks == 0
    other = make()
    b = other.malloc(64)
    other.free(b)


def test_overflow(make: Callable[..., Adapter]) -> None:
    h = make(overflow=True)
    out = h.calloc(32, MIB)
    assert not 0 <= h.offset(out) < h.arena.size and not any(bytes(ffi.buffer(out, 32 * MIB))[::4096])
    assert h.why() == (-errno.ENOSPC, "alloc") and h.arena.stats().overflows == 1
    out = h.realloc(out, 33 * MIB)
    inside = h.malloc(10 * MIB)
    ffi.memmove(inside, b"abc", 3)
    moved = h.realloc(inside, 20 * MIB)
    assert bytes(ffi.buffer(moved, 3)) == b"abc" and h.arena.stats().blocks == 0
    for at in (out, moved):
        h.free(at)
    assert h.calloc(1 << 40, 1 << 40) == NULL  # more than there is of anything
    strict = make()
    assert strict.malloc(20 * MIB) == NULL and strict.calloc(1 << 40, 1 << 40) == NULL
    assert strict.malloc(EVER) == NULL and strict.why()[0] == -errno.ENOSPC


def test_reset_leaves_them_alone(make: Callable[..., Adapter]) -> None:
    h = make()
    lib = h.lib
    a = h.malloc(64)
    h.arena.alloc(64)
    refused(errno.EBUSY, lambda: must(lib.arena_reset(h.arena.c)))
    a = h.realloc(a, 128)
    refused(errno.EBUSY, lambda: must(lib.arena_reset(h.arena.c)))
    h.free(a)
    must(lib.arena_reset(h.arena.c))
    assert h.arena.stats().blocks == 0


def test_a_closed_arena_goes_with_its_last_block_and_its_addresses_are_mallocs(make: Callable[..., Adapter]) -> None:
    h = make(overflow=True)
    a = h.malloc(100)
    page = ffi.cast("void *", h.arena.base)
    must(h.lib.arena_close(h.arena.c, False))
    out = h.malloc(100)  # closed: from malloc
    assert h.why() == (-errno.ESHUTDOWN, "alloc") and not 0 <= h.offset(out) < h.arena.size
    ffi.memmove(a, b"still there", 11)
    assert h.lib.is_mapped(page)
    h.free(a)
    assert not h.lib.is_mapped(page)
    h.free(h.realloc(out, 1000))
