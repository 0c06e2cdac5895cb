"""The free-space index against a model that knows every granule, and at its edges."""

from __future__ import annotations

import errno
import functools
import itertools
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cffi
import pytest
from core._build import CSRC, HERE, INCLUDE, Failed, build, declarations, must, refused
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

pytestmark = pytest.mark.slow  # the same on every CPython

SOURCES = [CSRC / "alloc" / f"freelist{part}.c" for part in ("", "_commit", "_stats", "_check")]
COMMITTED_ONLY = 1
ffi = cffi.FFI()

# The size classes, as the tests see them; and memory that costs nothing until it is written.
EXTRA = """
#define _GNU_SOURCE
#include <sys/mman.h>
#include "alloc/freelist_bins.h"
uint32_t down(uint64_t size) { return class_down(size); }
uint32_t up(uint64_t size) { return class_up(size); }
int same(uint64_t a, uint64_t b) { return same_class(a, b); }
void *table(size_t n) {
    return mmap(0, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}
void untable(void *p, size_t n) { munmap(p, n); }
"""
EXTRA_DECLARED = """
uint32_t down(uint64_t size);
uint32_t up(uint64_t size);
int same(uint64_t a, uint64_t b);
void *table(size_t n);
void untable(void *p, size_t n);
"""


@functools.cache
def library(folder: Path) -> Any:
    sizes = {"FREELIST_PAGE_GRANULES": 64, "FREELIST_ROWS": 37, "FREELIST_BINS": 37 << 5}
    return build(ffi, folder / "freelist.so", SOURCES, EXTRA, declarations("alloc/freelist.h", sizes) + EXTRA_DECLARED)


@pytest.fixture(scope="session")
def lib(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return library(tmp_path_factory.getbasetemp())


class Index:
    """The C object, its tables, and Python types around both."""

    def __init__(self, lib: Any, granules: int, chunk_shift: int, *, nodes: int = 0, leaves: int = 0) -> None:
        self.lib, self.granules, self.shift = lib, granules, chunk_shift
        self.layout = ffi.new("struct freelist_layout *")
        must(lib.freelist_plan(granules, chunk_shift, self.layout))
        plan = self.layout
        sizes = [plan.node_bytes, plan.leaf_bytes, plan.map_bytes, plan.side_bytes, plan.chunk_bytes]
        self.tables_at = [(lib.table(n), n) for n in sizes]
        self.tables = ffi.new("struct freelist_tables *", [ffi.cast("void *", at) for at, _ in self.tables_at])
        self.f = ffi.new("struct freelist *")
        self.block = ffi.new("struct freelist_block *")
        nodes = nodes or min(plan.max_nodes, 1 << 20)
        lib.freelist_init(self.f, plan, self.tables, nodes, leaves or min(plan.max_leaves, 1 << 16), 0)

    def close(self) -> None:
        for at, n in self.tables_at:
            self.lib.untable(at, n)

    def answer(self) -> tuple[int, int, int, bool]:
        return self.block.handle, self.block.offset, self.block.size, self.block.committed

    def alloc(self, size: int, align: int = 1, flags: int = 0) -> tuple[int, int, int, bool]:
        must(self.lib.freelist_alloc(self.f, size, align, flags, self.block))
        return self.answer()

    def free(self, handle: int) -> None:
        must(self.lib.freelist_free(self.f, handle))

    def get(self, handle: int) -> tuple[int, int, int, bool]:
        must(self.lib.freelist_get(self.f, handle, self.block))
        return self.answer()

    def find(self, offset: int) -> tuple[int, int, int, bool]:
        must(self.lib.freelist_find(self.f, offset, self.block))
        return self.answer()

    def resize(self, handle: int, size: int, flags: int = 0) -> tuple[int, int, int, bool]:
        must(self.lib.freelist_resize(self.f, handle, size, flags, self.block))
        return self.answer()

    def commit(self, first: int, count: int, near: int = 0) -> None:
        self.lib.freelist_commit(self.f, first, count, near)

    def commit_all(self) -> None:
        self.commit(0, self.granules >> self.shift)

    def pick(self, most: int = 1 << 40) -> tuple[int, int]:
        span = ffi.new("struct freelist_span *")
        must(self.lib.freelist_pick(self.f, most, span))
        return span.first, span.count

    def scan(self, most: int = 64) -> list[tuple[int, int]]:
        out, cursor = ffi.new("struct freelist_block[]", most), ffi.new("uint64_t *", 0)
        found = []
        while cursor[0] != (1 << 64) - 1:
            n = self.lib.freelist_scan(self.f, cursor, out, most)
            found += [(out[i].offset, out[i].size) for i in range(n)]
        return found

    def reset(self) -> None:
        self.lib.freelist_reset(self.f)

    def stats(self) -> dict[str, int]:
        s = ffi.new("struct freelist_stats *")
        self.lib.freelist_stats(self.f, s)
        names = ("live", "free", "free_committed", "committed", "largest_free", "largest_committed", "blocks")
        return {name: getattr(s, name) for name in names}

    def check(self) -> None:
        line = self.lib.freelist_check(self.f)
        assert line == 0, f"freelist_check.c:{line} does not hold"


@pytest.fixture
def make(lib: Any) -> Iterator[Any]:
    made: list[Index] = []

    def new(granules: int, chunk_shift: int = 6, *, committed: bool = False, **ready: int) -> Index:
        made.append(Index(lib, granules, chunk_shift, **ready))
        if committed:
            made[-1].commit_all()
        return made[-1]

    yield new
    for index in made:
        index.close()


def attempt(function: Any, *args: Any) -> tuple[Any, int]:
    """What it returned and 0, or None and the error."""
    try:
        return function(*args), 0
    except Failed as failure:
        return None, failure.errno


# --- size classes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "down", "up"),
    [
        (1, 1, 1),
        (31, 31, 31),
        (32, 32, 32),
        (63, 63, 63),
        (64, 64, 64),
        (65, 64, 65),
        (66, 65, 65),
        (126, 95, 95),
        (127, 95, 96),
        (128, 96, 96),
        (131, 96, 97),
        (132, 97, 97),
        (1 << 20, 16 << 5, 16 << 5),
        ((1 << 20) + 1, 16 << 5, (16 << 5) + 1),
        ((1 << 20) + (1 << 15), (16 << 5) + 1, (16 << 5) + 1),
        ((1 << 40) - 1, (36 << 5) - 1, 36 << 5),
        (1 << 40, 36 << 5, 36 << 5),
    ],
)
def test_classes(lib: Any, size: int, down: int, up: int) -> None:
    assert (lib.down(size), lib.up(size)) == (down, up)


def test_classes_are_in_order(lib: Any) -> None:
    sizes = sorted({n for k in range(41) for n in ((1 << k) - 1, 1 << k, (1 << k) + 1)} | set(range(1, 3000)))
    for smaller, larger in itertools.pairwise(sizes):
        assert lib.down(smaller) <= lib.down(larger)
        assert lib.up(smaller) <= lib.up(larger)
        assert lib.down(smaller) <= lib.up(smaller) <= lib.down(smaller) + 1
        assert (
            bool(lib.same(smaller, larger))
            == bool(lib.same(larger, smaller))
            == (lib.down(smaller) == lib.down(larger))
        )


# --- the model --------------------------------------------------------------------------------------------------------


class Model:
    """One entry a granule and one a chunk: slow, and easy to believe."""

    def __init__(self, index: Index) -> None:
        self.index = index
        self.owner = [0] * index.granules
        self.committed = [False] * (index.granules >> index.shift)
        self.blocks: dict[int, tuple[int, int]] = {}
        self.dead: list[int] = []

    def there(self, offset: int, size: int) -> bool:
        shift = self.index.shift
        return all(self.committed[offset >> shift : ((offset + size - 1) >> shift) + 1])

    def runs(self, *, committed: bool) -> list[tuple[int, int]]:
        """The free ranges, or the runs of committed granules in them: start and length."""
        found, start = [], None
        for i, owner in enumerate([*self.owner, 1]):
            good = owner == 0 and (not committed or self.committed[i >> self.index.shift])
            if good and start is None:
                start = i
            elif not good and start is not None:
                found.append((start, i - start))
                start = None
        return found

    def check(self) -> None:
        index = self.index
        index.check()
        free, runs = self.runs(committed=False), self.runs(committed=True)
        assert index.stats() == {
            "live": sum(size for _, size in self.blocks.values()),
            "free": sum(size for _, size in free),
            "free_committed": sum(size for _, size in runs),
            "committed": sum(self.committed) << index.shift,
            "largest_free": max((size for _, size in free), default=0),
            "largest_committed": max((size for _, size in runs), default=0),
            "blocks": len(self.blocks),
        }

    def check_blocks(self) -> None:
        index = self.index
        for handle, (offset, size) in self.blocks.items():
            expected = (handle, offset, size, self.there(offset, size))
            assert index.get(handle) == expected
            assert index.find(offset) == expected
        starts = {offset for offset, _ in self.blocks.values()}
        for offset in random.Random(len(starts)).sample(range(index.granules), 16):
            if offset not in starts:
                refused(errno.ENOENT, index.find, offset)
        assert index.scan() == sorted(place for place in self.blocks.values() if self.there(*place))

    def put(self, offset: int, size: int, handle: int) -> None:
        assert not any(self.owner[offset : offset + size])
        self.owner[offset : offset + size] = [handle] * size
        self.blocks[handle] = (offset, size)

    def alloc(self, size: int, align: int, flags: int) -> int | None:
        """The handle; None: there is no room, which the model agrees with, to within what a class can miss."""
        fits_committed = self.fits(size, align, committed=True)
        answer, error = attempt(self.index.alloc, size, align, flags)
        if error:
            assert error == errno.ENOSPC
            # With fewer ranges than are looked at one by one, nothing that fits is missed.
            assert not fits_committed or len(self.runs(committed=True)) > 32
            if not flags:
                assert not self.fits(size, align, committed=False) or len(self.runs(committed=False)) > 32
            return None
        handle: int
        handle, offset, got, committed = answer
        assert got == size
        assert offset % align == 0
        assert handle not in self.blocks
        assert handle not in self.dead
        assert committed == self.there(offset, size)
        assert committed or not flags
        # Each range is known by its longest run only, and in it the aligned place may be in a shorter one.
        if fits_committed and align == 1 and len(self.runs(committed=True)) <= 32:
            assert committed
        self.put(offset, size, handle)
        return handle

    def fits(self, size: int, align: int, *, committed: bool) -> bool:
        """Whether there is a place; a committed one counts if it is in the longest run of its range, whichever of
        several that long the index keeps."""
        free, runs = self.runs(committed=False), self.runs(committed=True)
        if not committed:
            return any(-start % align + size <= length for start, length in free)
        for start, length in free:
            inside = [run for run in runs if start <= run[0] < start + length]
            longest = max((n for _, n in inside), default=0)
            if longest and all(-at % align + size <= n for at, n in inside if n == longest):
                return True
        return False

    def free(self, handle: int) -> None:
        offset, size = self.blocks.pop(handle)
        self.index.free(handle)
        self.owner[offset : offset + size] = [0] * size
        self.dead.append(handle)
        refused(errno.EINVAL, self.index.free, handle)

    def commit(self, handle: int, first: int, end: int) -> None:
        self.index.commit(first, end - first, handle)
        self.committed[first:end] = [True] * (end - first)

    def chunks_of(self, handle: int) -> tuple[int, int]:
        offset, size = self.blocks[handle]
        return offset >> self.index.shift, ((offset + size - 1) >> self.index.shift) + 1

    def resize(self, handle: int, size: int, flags: int) -> None:
        offset, had = self.blocks[handle]
        room = not any(self.owner[offset + had : offset + size]) and offset + size <= self.index.granules
        if flags and size > had and room:
            behind = range((offset + had) >> self.index.shift, ((offset + size - 1) >> self.index.shift) + 1)
            room = all(self.committed[chunk] for chunk in behind)
        answer, error = attempt(self.index.resize, handle, size, flags)
        assert error == (0 if room else errno.ENOSPC)
        if error:
            return
        assert answer == (handle, offset, size, self.there(offset, size))
        self.owner[offset : offset + max(size, had)] = [handle] * size + [0] * max(had - size, 0)
        self.blocks[handle] = (offset, size)

    def pick(self, most: int) -> None:
        shift, rows = self.index.shift, []
        for start, length in self.runs(committed=True):
            first, end = -(-start >> shift), (start + length) >> shift
            if end > first:
                rows.append((length, end - first, end))
        answer, error = attempt(self.index.pick, most)
        assert error == (0 if rows else errno.ENOENT)
        if error:
            return
        first, count = answer
        # From the end of a run; and of one about as long as the longest: a class is 1/32 wide.
        longest = max(length for length, _, _ in rows)
        assert any(
            end == first + count and count == min(whole, most) and (length * 33 >= longest * 32 or whole <= 2)
            for length, whole, end in rows
        )
        assert all(self.committed[first : first + count])
        self.committed[first : first + count] = [False] * count

    def reset(self) -> None:
        self.index.reset()
        self.owner = [0] * self.index.granules
        self.dead += self.blocks
        self.blocks.clear()
        for handle in self.dead[-5:]:
            refused(errno.EINVAL, self.index.get, handle)


class Machine(RuleBasedStateMachine):
    lib: Any = None

    @initialize(chunks=st.integers(1, 12), shift=st.sampled_from([6, 7]), ready=st.booleans())
    def start(self, chunks: int, shift: int, ready: bool) -> None:
        self.model = Model(Index(self.lib, chunks << shift, shift))
        if ready:
            self.model.index.commit_all()
            self.model.committed = [True] * chunks

    def some(self, pick: int) -> int:
        return list(self.model.blocks)[pick % len(self.model.blocks)]

    def has_blocks(self) -> bool:
        return hasattr(self, "model") and bool(self.model.blocks)

    @rule(size=st.one_of(st.integers(1, 20), st.integers(1, 300)), align=st.integers(0, 6), flags=st.booleans())
    def alloc(self, size: int, align: int, flags: bool) -> None:
        if size <= self.model.index.granules:
            self.model.alloc(size, 1 << align, COMMITTED_ONLY if flags else 0)

    @precondition(has_blocks)
    @rule(pick=st.integers(0, 1000))
    def free(self, pick: int) -> None:
        self.model.free(self.some(pick))

    @precondition(has_blocks)
    @rule(pick=st.integers(0, 1000), skip=st.integers(0, 2), drop=st.integers(0, 2))
    def commit(self, pick: int, skip: int, drop: int) -> None:
        handle = self.some(pick)
        first, end = self.model.chunks_of(handle)
        if first + skip < end - drop:
            self.model.commit(handle, first + skip, end - drop)

    @precondition(has_blocks)
    @rule(pick=st.integers(0, 1000), size=st.integers(1, 300), flags=st.booleans())
    def resize(self, pick: int, size: int, flags: bool) -> None:
        if size <= self.model.index.granules:
            self.model.resize(self.some(pick), size, int(flags))

    @rule(most=st.integers(1, 4))
    def pick(self, most: int) -> None:
        self.model.pick(most)

    @rule(sure=st.integers(0, 5))
    def reset(self, sure: int) -> None:
        if sure == 0:
            self.model.reset()

    @invariant()
    def agree(self) -> None:
        if hasattr(self, "model"):
            self.model.check()

    def teardown(self) -> None:
        if hasattr(self, "model"):
            self.model.check_blocks()
            self.model.index.close()


def test_machine(lib: Any) -> None:
    Machine.lib = lib
    quiet = [HealthCheck.too_slow, HealthCheck.filter_too_much]
    run_state_machine_as_test(
        Machine,
        settings=settings(
            max_examples=100,
            stateful_step_count=50,
            deadline=None,
            suppress_health_check=quiet,
            derandomize=True,
            database=None,
        ),
    )


@pytest.mark.parametrize(("seed", "chunks", "shift"), [(1, 1, 6), (2, 5, 6), (3, 24, 6), (4, 6, 8), (5, 2, 10)])
def test_model(lib: Any, seed: int, chunks: int, shift: int) -> None:
    rng = random.Random(seed)
    model = Model(Index(lib, chunks << shift, shift))
    granules = chunks << shift
    for step in range(700):
        what = rng.random()
        if what < 0.45 or not model.blocks:
            size = rng.randint(1, max(1, granules // rng.choice([1, 2, 8, 40, 200])))
            align = 1 << rng.choice([0, 0, 0, 3, shift])
            handle = model.alloc(size, align, rng.choice([0, 0, 0, COMMITTED_ONLY]))
            if handle and rng.random() < 0.7:
                model.commit(handle, *model.chunks_of(handle))
        elif what < 0.75:
            model.free(rng.choice(list(model.blocks)))
        elif what < 0.87:
            handle = rng.choice(list(model.blocks))
            had = model.blocks[handle][1]
            model.resize(handle, rng.randint(1, min(granules, 2 * had)), rng.randint(0, 1))
        elif what < 0.97:
            model.pick(rng.randint(1, 3))
        elif what < 0.98:
            model.reset()
        model.check()
        if step % 20 == 0:
            model.check_blocks()
    model.index.close()


# --- by hand ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("granules", "shift"), [(0, 6), (65, 6), (64, 5), ((1 << 40) + 64, 6), (1 << 40, 6)])
def test_what_cannot_be_planned(lib: Any, granules: int, shift: int) -> None:
    assert lib.freelist_plan(granules, shift, ffi.new("struct freelist_layout *")) == -errno.EINVAL


def test_nonsense(make: Any) -> None:
    index = make(4 << 6, committed=True)
    for size, align in ((0, 1), (1, 0), (1, 3), (1, 128), (1, 1 << 63)):
        refused(errno.EINVAL, index.alloc, size, align)
    for size in (257, 1 << 40, (1 << 64) - 1):
        refused(errno.ENOSPC, index.alloc, size)
    handle = index.alloc(4)[0]
    refused(errno.EINVAL, index.resize, handle, 0)
    refused(errno.ENOSPC, index.resize, handle, (1 << 64) - 1)
    refused(errno.ENOENT, index.find, 1 << 40)
    index.check()


def test_the_whole_arena(make: Any) -> None:
    for granules, shift in ((1 << 6, 6), (5 << 6, 6), (97 << 8, 8)):
        for committed in (False, True):
            index = make(granules, shift, committed=committed)
            handle, offset, size, is_there = index.alloc(granules, 1 << shift)
            assert (offset, size, is_there) == (0, granules, committed)
            refused(errno.ENOSPC, index.alloc, 1)
            index.check()
            index.free(handle)
            assert index.stats()["largest_free"] == granules
            index.check()


@pytest.mark.parametrize("size", [1, 16, 64, 65, 1000, 4096])
def test_last_in_first_out(make: Any, size: int) -> None:
    index = make(1 << 16, 6, committed=True)
    index.alloc(100)
    handle, offset, *_ = index.alloc(size)
    for _ in range(10):
        index.free(handle)
        again, same, *_ = index.alloc(size)
        assert same == offset
        assert again != handle
        handle = again


def test_committed_is_preferred(make: Any) -> None:
    index = make(64 << 6)
    first = index.alloc(8 << 6)
    index.commit(0, 8, first[0])
    wall = index.alloc(1)
    far = index.alloc(4 << 6)
    index.commit((far[1] >> 6) + 1, 4, far[0])
    index.free(far[0])
    index.free(first[0])
    assert not wall[3]
    for _ in range(8):
        assert index.alloc(64)[3]
    refused(errno.ENOSPC, index.alloc, 5 << 6, 1, COMMITTED_ONLY)
    assert not index.alloc(5 << 6)[3]
    index.check()


def test_committed_only(make: Any) -> None:
    index = make(8 << 6)
    refused(errno.ENOSPC, index.alloc, 1, 1, COMMITTED_ONLY)
    handle = index.alloc(2 << 6)[0]
    index.commit(0, 2, handle)
    refused(errno.ENOSPC, index.resize, handle, 129, COMMITTED_ONLY)
    index.free(handle)
    assert index.alloc(2 << 6, 1, COMMITTED_ONLY)[1:] == (0, 128, True)
    refused(errno.ENOSPC, index.alloc, 1, 1, COMMITTED_ONLY)


def test_a_committed_tail_is_grown_downward(make: Any) -> None:
    index = make(8 << 6)
    last = index.alloc(8 << 6)
    index.commit(5, 3, last[0])
    index.free(last[0])
    assert index.alloc(4 << 6)[1] == 4 << 6  # three chunks of it are there already
    index.check()


def test_a_part_of_a_block_that_failed_to_commit(make: Any) -> None:
    index = make(16 << 6)
    handle = index.alloc(10 << 6)[0]
    index.commit(2, 3, handle)
    assert not index.get(handle)[3]
    assert index.scan() == []
    index.free(handle)
    index.check()
    assert index.stats()["free_committed"] == index.stats()["largest_committed"] == 3 << 6
    assert index.alloc(3 << 6, 64, COMMITTED_ONLY)[1] == 2 << 6


def test_alignment(make: Any) -> None:
    index = make(1 << 15, 12, committed=True)
    index.alloc(1)
    for shift in range(13):
        _, offset, *_ = index.alloc(3, 1 << shift)
        assert offset % (1 << shift) == 0
        index.check()
    index.reset()
    # One place is left, and it is in the class that the size itself is in.
    handles = [index.alloc(1 << 12, 1 << 12)[0] for _ in range(8)]
    index.free(handles[5])
    assert index.alloc(1 << 12, 1 << 12)[1] == 5 << 12


def test_handles(make: Any) -> None:
    index = make(1 << 12, committed=True)
    handle, offset, *_ = index.alloc(10)
    other = index.alloc(10)[0]
    for wrong in (0, 1, handle + 1, handle ^ (1 << 32), handle ^ (1 << 63), (1 << 64) - 1, handle & 0xFFFFFFFF):
        if wrong != other:
            refused(errno.EINVAL, index.free, wrong)
            refused(errno.EINVAL, index.get, wrong)
            refused(errno.EINVAL, index.resize, wrong, 1)
    index.free(handle)
    refused(errno.EINVAL, index.free, handle)
    again, same, *_ = index.alloc(10)
    assert same == offset
    assert again & 0xFFFFFFFF == handle & 0xFFFFFFFF
    assert again != handle
    refused(errno.EINVAL, index.free, handle)
    index.reset()
    for stale in (again, other):
        refused(errno.EINVAL, index.free, stale)
    assert index.alloc(10)[0] not in (handle, again, other)
    index.check()


def test_serials_pass_over_zero(make: Any) -> None:
    index = make(1 << 12, committed=True)
    index.f.serial = (1 << 32) - 3
    handles = [index.alloc(1)[0] for _ in range(6)]
    assert [handle >> 32 for handle in handles] == [(1 << 32) - 2, (1 << 32) - 1, 1, 2, 3, 4]
    index.check()


def test_more_bookkeeping_is_asked_for_before_anything_is_done(make: Any) -> None:
    index = make(1 << 12, nodes=5, leaves=2)
    index.commit_all()
    index.alloc(64)
    before = index.stats()
    refused(errno.EAGAIN, index.alloc, 1)
    assert index.stats() == before
    index.lib.freelist_ready(index.f, 100, 2)
    index.alloc(1)
    index.alloc(1)  # the second in its page: takes the leaf
    refused(errno.EAGAIN, index.alloc, 1)
    index.lib.freelist_ready(index.f, 100, 3)
    index.alloc(1)
    index.check()


def test_what_has_not_been_touched(make: Any) -> None:
    index = make(64 << 6)
    touched = ffi.new("uint64_t[]", [0b11])
    index.f.index_ready, index.f.index_ready_shift = touched, 0
    first = index.alloc(64)
    refused(errno.ENODATA, index.alloc, 64)
    assert (index.block.offset, index.block.size) == (64, 64)
    touched[0] = 0b111
    assert index.alloc(64)[1] == 64
    refused(errno.ENOENT, index.find, 40 << 6)
    index.free(first[0])
    index.check()


def test_a_failed_release_is_undone(make: Any) -> None:
    index = make(32 << 6, committed=True)
    index.alloc(5)
    first, count = index.pick(4)
    assert (first, count) == (28, 4)
    index.commit(first, count)
    assert index.stats()["committed"] == 32 << 6
    index.check()


def test_scan_leaves_no_page_in_two(make: Any) -> None:
    index = make(1 << 12, committed=True)
    for _ in range(64 + 10):
        index.alloc(1)
    out, cursor = ffi.new("struct freelist_block[]", 100), ffi.new("uint64_t *", 0)
    assert index.lib.freelist_scan(index.f, cursor, out, 100) == 64
    assert index.lib.freelist_scan(index.f, cursor, out, 63) == 0
    assert index.lib.freelist_scan(index.f, cursor, out, 100) == 10
    assert cursor[0] == (1 << 64) - 1


def test_64_tib(make: Any) -> None:
    """Every table is sparse; nothing that is done walks the arena."""
    granules = 1 << 40
    index = make(granules, 15)  # chunks of 2 MiB
    whole = index.alloc(granules)
    index.free(whole[0])
    low = index.alloc(1000)
    index.commit(0, 1, low[0])
    high = index.alloc(granules - (1 << 20))
    assert high[1] == 1000
    end = index.alloc((1 << 20) - 1000)
    assert end[1] + end[2] == granules
    assert not end[3]
    last = (granules >> 15) - 1
    index.commit(last, 1, end[0])
    for handle in (high[0], low[0], end[0]):
        index.free(handle)
        index.check()
    stats = index.stats()
    assert stats["free_committed"] == stats["committed"] == 2 << 15
    assert stats["largest_free"] == granules
    assert index.pick()[1] == 1
    assert index.pick()[1] == 1
    refused(errno.ENOENT, index.pick)
    # An island in the middle of it all.
    middle = index.alloc(granules // 2)
    island = index.alloc(1 << 15)
    index.commit(island[1] >> 15, 1, island[0])
    index.free(middle[0])
    index.free(island[0])
    assert index.alloc(1 << 15, 1 << 15, COMMITTED_ONLY)[1] == granules // 2
    index.check()


def test_the_largest_chunk(make: Any) -> None:
    index = make(4 << 24, 24)  # 1 GiB
    handle, *_ = index.alloc(1)
    index.commit(0, 1, handle)
    assert index.alloc(1 << 24, 1 << 24)[1:] == (1 << 24, 1 << 24, False)
    assert index.alloc((1 << 24) - 1)[3]
    index.check()


@pytest.mark.parametrize("sanitize", ["address,undefined"])
def test_stress(tmp_path: Path, sanitize: str) -> None:
    """A longer run under the sanitizers; freelist_stress.c by itself runs as long as one likes."""
    target = tmp_path / "stress"
    flags = ["-O1", "-g", "-std=gnu11", f"-fsanitize={sanitize}", "-fno-sanitize-recover=all", *INCLUDE]
    built = subprocess.run(
        ["gcc", *flags, str(HERE / "freelist_stress.c"), *map(str, SOURCES), "-o", str(target)],
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode and "asan" in built.stderr:
        pytest.skip("this gcc comes without the sanitizers")
    assert built.returncode == 0, built.stderr
    done = subprocess.run([str(target), "1", "20000"], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
