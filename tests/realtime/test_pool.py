"""arena.realtime.Pool: blocks made in advance. No allocation, no fault, and no block with two at a time."""

from __future__ import annotations

import contextlib
import gc
import itertools
import queue
import sys
import sysconfig
import threading
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import pytest
from conftest import MIB, in_child
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from measure import steady_faults

from arena import Arena, ArenaFullError
from arena.realtime import Pool, PoolBlock

CYCLES = 100_000


def test_blocks_are_equal_apart_and_aligned() -> None:
    with Arena("64MiB") as a, Pool(a, 1000, 10) as pool, Pool(a, "1KiB", 3, align=4096) as pages:
        assert [b.index for b in pool.blocks] == [*range(10)]
        assert [b.address - pool.blocks[0].address for b in pool.blocks] == [1024 * i for i in range(10)]
        assert {b.address % 64 for b in pool.blocks} == {0} == {b.address % 4096 for b in pages.blocks}
        for i, block in enumerate(pool.blocks):
            assert len(block) == block.nbytes == pool.nbytes == 1000 == len(memoryview(block))
            block[:] = bytes([i]) * 1000
        assert [bytes(b[:]) for b in pool.blocks] == [bytes([i]) * 1000 for i in range(10)]
        assert pool.free == 10


def test_align_below_a_cache_line_packs() -> None:
    with Arena("64MiB") as a, Pool(a, 3, 10, align=1) as pool:
        assert [b.address - pool.blocks[0].address for b in pool.blocks] == [3 * i for i in range(10)]


def test_take_and_put() -> None:
    with Arena("64MiB") as a, Pool(a, 64, 2) as pool:
        first, second = pool.take(), pool.take()
        assert {first, second} == {*pool.blocks}
        assert pool.free == 0 and pool.try_take() is None
        with pytest.raises(ArenaFullError, match=r"all 2 blocks .* 64 bytes .* put\(\)") as info:
            pool.take()
        assert (info.value.op, info.value.requested, info.value.available) == ("take", 64, 0)
        pool.put(first)
        pool.put(second)
        assert pool.take() is second, "the one that was put last is in the cache"
        pool.put(second)
        with pool.take() as block:
            assert pool.free == 1
        assert pool.free == 2
        with pytest.raises(KeyError), pool.take():
            raise KeyError
        assert pool.free == 2
        with pytest.raises(ValueError, match="not taken"), pool.take() as block:
            pool.put(block)


def test_what_is_not_taken_cannot_be_put() -> None:
    with Arena("64MiB") as a, Pool(a, 64, 2) as pool, Pool(a, 64, 2) as other:
        block, foreign = pool.take(), other.take()
        pool.put(block)
        for never in pool.blocks:
            with pytest.raises(ValueError, match="not taken"):
                pool.put(never)
        with pytest.raises(ValueError, match="another pool's"):
            pool.put(foreign)
        for nonsense in (None, 0, b"", memoryview(foreign), a):
            with pytest.raises(TypeError):
                pool.put(nonsense)  # type: ignore[arg-type]
        assert (pool.free, other.free) == (2, 1)
        other.put(foreign)


@pytest.mark.parametrize(
    ("nbytes", "count", "options", "error"),
    [
        (0, 1, {}, ValueError),
        (-1, 1, {}, ValueError),
        ("much", 1, {}, ValueError),
        (1.5, 1, {}, TypeError),
        (64, 0, {}, ValueError),
        (64, -1, {}, ValueError),
        (64, 1 << 24, {}, ValueError),
        (64, 1 << 70, {}, ValueError),
        (64, "2", {}, TypeError),
        (64, None, {}, TypeError),
        (64, 1, {"align": 0}, ValueError),
        (64, 1, {"align": 48}, ValueError),
        (64, 1, {"align": "4MiB"}, ValueError),
        ("1MiB", 65, {}, ArenaFullError),
        (1 << 62, 100, {}, ValueError),
    ],
)
def test_nonsense(nbytes: Any, count: Any, options: dict[str, Any], error: type[Exception]) -> None:
    with Arena("64MiB") as a:
        with pytest.raises(error):
            Pool(a, nbytes, count, **options)
        assert a.stats().blocks == 0
        for no_arena in (None, 1, bytearray(1000)):
            with pytest.raises(TypeError, match=r"arena\.Arena"):
                Pool(no_arena, 64, 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="closed"):
        Pool(a, 64, 1)


# --- no allocation, no fault ------------------------------------------------------------------------------------------


def cycles(pool: Pool, n: int) -> None:
    for _ in itertools.repeat(None, n):
        pool.put(pool.take())
        block = pool.try_take()
        if block is not None:
            pool.put(block)


def allocations(work: Callable[[int], None]) -> tuple[int, int]:
    """Objects that are more after so many cycles than before, and the most bytes there were in between, so that what
    is freed at once is seen too. Both with what the measurement itself needs."""
    work(1000)
    gc.collect()
    objects = sys.getallocatedblocks()
    work(CYCLES)
    objects = sys.getallocatedblocks() - objects
    tracemalloc.start()
    try:
        work(10)
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        work(1000)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    return objects, peak - before


def nothing(n: int) -> None:
    for _ in itertools.repeat(None, n):
        pass


def test_no_allocation() -> None:
    with Arena("64MiB") as a, Pool(a, 4096, 8) as pool:
        objects, peak = allocations(lambda n: cycles(pool, n))
        of_nothing = allocations(nothing)
        assert objects <= of_nothing[0] and peak <= of_nothing[1]


def test_no_fault() -> None:
    with Arena("64MiB", pages="4K") as a, Pool(a, "64KiB", 64) as pool:
        views = [memoryview(block) for block in pool.blocks]
        data = bytes(range(256)) * 256

        def cycle() -> None:
            for _ in itertools.repeat(None, 500):
                block = pool.take()
                views[block.index][:] = data
                pool.put(block)
            taken = [pool.take() for _ in views]
            for block in taken:
                views[block.index][:] = data
                pool.put(block)
            cycles(pool, CYCLES)

        assert steady_faults(cycle) == 0
        views.clear()


# --- whose memory -----------------------------------------------------------------------------------------------------


def test_close_waits_for_blocks_and_views() -> None:
    a = Arena("64MiB")
    pool = Pool(a, "1MiB", 4)
    assert a.stats().live == 4 * MIB
    block = pool.take()
    with pytest.raises(BufferError, match=r"taken: put\(\)"):
        pool.close()
    view = memoryview(block)
    pool.put(block)
    with pytest.raises(BufferError, match="exported"):
        pool.close()
    assert pool.take() is block
    pool.put(block)
    view.release()
    with pytest.raises(BufferError):
        a.reset()
    pool.close()
    pool.close()
    assert pool.closed and pool.free == 0 == a.stats().live
    assert repr(pool) == "<arena.realtime.Pool closed>"
    for use in (pool.take, pool.try_take, pool.__enter__, lambda: pool.put(block)):
        with pytest.raises(ValueError, match="closed"):
            use()
    with pytest.raises(BufferError, match="closed"):
        memoryview(block)
    with pytest.raises(BufferError, match="closed"):
        block[0]
    a.close()


def test_the_memory_goes_with_the_last_that_uses_it() -> None:
    a = Arena("64MiB")
    pool = Pool(a, 4096, 4)
    block, view = pool.take(), memoryview(pool.blocks[2])
    del pool
    assert a.stats().blocks == 1
    block[0] = view[0] = 7
    with block:
        pass
    del block
    assert a.stats().blocks == 1
    view[4095] = 1
    del view
    assert a.stats().blocks == 0
    a.close()


def test_views_may_be_kept() -> None:
    with Arena("64MiB") as a, Pool(a, 4096, 2) as pool:
        views = [memoryview(block).cast("I") for block in pool.blocks]
        for i in range(100):
            block = pool.take()
            views[block.index][5] = i
            assert block[20] == i
            pool.put(block)
        views.clear()


def test_what_is_said_of_them() -> None:
    with Arena("64MiB") as a, Pool(a, "4KiB", 3) as pool, pool.take():
        assert repr(pool) == "<arena.realtime.Pool of 3 blocks of 4 KiB, 2 free>"
        assert repr(pool.blocks[2]) == "<arena.realtime.PoolBlock 2 of 4096 bytes>"


def test_blocks_are_not_made_by_others() -> None:
    with pytest.raises(TypeError):
        PoolBlock()
    with pytest.raises(TypeError):
        PoolBlock.__new__(PoolBlock)


# --- threads ----------------------------------------------------------------------------------------------------------


def in_threads(*work: Any) -> None:
    errors: list[BaseException] = []

    def run(one: Any) -> None:
        try:
            one()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def test_one_takes_and_one_puts() -> None:
    with Arena("64MiB") as a, Pool(a, 64, 8) as pool:
        way: queue.SimpleQueue[PoolBlock | None] = queue.SimpleQueue()

        def take() -> None:
            for i in range(20_000):
                block = pool.try_take()
                while block is None:
                    time.sleep(0)
                    block = pool.try_take()
                block[0:4] = i.to_bytes(4, "little")
                way.put(block)
            way.put(None)

        def put() -> None:
            for i, block in enumerate(iter(way.get, None)):
                assert int.from_bytes(block[0:4], "little") == i
                pool.put(block)

        in_threads(take, put)
        assert pool.free == 8


def test_many_take_and_put() -> None:
    with Arena("64MiB") as a, Pool(a, 64, 6) as pool:
        views = [memoryview(block).cast("Q") for block in pool.blocks]

        def work(me: int) -> None:
            for i in range(10_000):
                mine = [block for block in (pool.try_take() for _ in range(1 + i % 3)) if block is not None]
                for block in mine:
                    views[block.index][0] = views[block.index][7] = me << 32 | i
                for block in mine:
                    assert views[block.index][0] == views[block.index][7] == me << 32 | i
                    pool.put(block)
                if i % 1000 == 0:
                    with pytest.raises(BufferError):
                        pool.close()

        in_threads(*[lambda me=me: work(me) for me in range(6)])
        assert pool.free == 6
        views.clear()


def test_of_many_that_put_one_block_one_succeeds() -> None:
    with Arena("64MiB") as a, Pool(a, 64, 2) as pool:
        for _ in range(200):
            block, barrier = pool.take(), threading.Barrier(4)
            won: list[int] = []

            def put(block: PoolBlock = block, barrier: threading.Barrier = barrier, won: list[int] = won) -> None:
                barrier.wait()
                try:
                    pool.put(block)
                except ValueError:
                    return
                won.append(1)

            in_threads(put, put, put, put)
            assert won == [1] and pool.free == 2


def test_closed_while_others_take() -> None:
    a = Arena("64MiB")
    for _ in range(100):
        pool = Pool(a, 64, 3)
        barrier = threading.Barrier(4)

        def take(pool: Pool = pool, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            try:
                while True:
                    block = pool.try_take()
                    if block is not None:
                        block[0] = 1
                        pool.put(block)
            except ValueError as error:
                assert "closed" in str(error)

        def close(pool: Pool = pool, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            while not pool.closed:
                with contextlib.suppress(BufferError):
                    pool.close()

        in_threads(take, take, take, close)
    assert a.stats().blocks == 0


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="this Python was built with a GIL")
def test_the_gil_stays_off() -> None:
    enabled = vars(sys)["_is_gil_enabled"]
    assert not enabled()


# --- forks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fork", ["copy", "wipe"])
def test_a_child_has_a_pool_of_its_own(fork: Any) -> None:
    with Arena("64MiB", fork=fork) as a, Pool(a, 4096, 4) as pool:
        held = pool.take()
        held[:5] = b"hello"

        def child() -> None:
            assert pool.free == 3
            assert bytes(held[:5]) == (b"hello" if fork == "copy" else bytes(5))
            others = [pool.take() for _ in range(3)]
            assert held not in others and pool.try_take() is None
            held[:5] = b"child"
            for block in (held, *others):
                pool.put(block)
            in_child(lambda: [pool.take() for _ in range(4)])
            pool.close()
            a.close()

        in_child(child)
        assert bytes(held[:5]) == b"hello" and pool.free == 3
        pool.put(held)


@pytest.mark.parametrize("options", [{"shared": True}, {"fork": "drop"}, {"shared": True, "fork": "drop"}], ids=str)
def test_what_stays_the_parents(options: dict[str, Any]) -> None:
    a = Arena("64MiB", retain=0, **options)
    pool = Pool(a, "2MiB", 4)
    held = pool.take()
    held[:5] = b"hello"

    def child() -> None:
        for use in (pool.take, pool.try_take, lambda: pool.put(held), held.__exit__):
            with pytest.raises(RuntimeError, match="fork's child"):
                use(*((None, None, None) if use == held.__exit__ else ()))
        assert pool.free == 0
        if options == {"shared": True}:
            held[:5] = b"child"
        pool.close()
        with pytest.raises(ValueError, match="closed"):
            pool.take()

    in_child(child)
    assert bytes(held[:5]) == (b"child" if options == {"shared": True} else b"hello")
    assert pool.free == 3
    pool.put(held)
    pool.close()
    a.close()


# --- a model ----------------------------------------------------------------------------------------------------------


class PoolMachine(RuleBasedStateMachine):
    """The model: a stack of the free ones."""

    @initialize(count=st.integers(1, 9), nbytes=st.integers(1, 300))
    def start(self, count: int, nbytes: int) -> None:
        self.arena = Arena("1MiB", chunk="4KiB")
        self.pool = Pool(self.arena, nbytes, count)
        self.stack = [*reversed(range(count))]
        self.taken: dict[int, bytes] = {}
        self.fill = itertools.cycle(range(256))
        self.views: list[memoryview] = []

    @rule(insist=st.booleans())
    def take(self, insist: bool) -> None:
        if not self.stack:
            if insist:
                with pytest.raises(ArenaFullError):
                    self.pool.take()
            else:
                assert self.pool.try_take() is None
            return
        block = self.pool.take() if insist else self.pool.try_take()
        assert block is not None and block.index == self.stack.pop()
        self.taken[block.index] = bytes([next(self.fill)]) * len(block)
        block[:] = self.taken[block.index]

    @rule(data=st.data())
    def put(self, data: st.DataObject) -> None:
        index = data.draw(st.integers(0, len(self.pool.blocks) - 1))
        block = self.pool.blocks[index]
        if index not in self.taken:
            with pytest.raises(ValueError, match="not taken"):
                self.pool.put(block)
            return
        assert bytes(block[:]) == self.taken.pop(index)
        self.pool.put(block)
        self.stack.append(index)

    @rule(data=st.data())
    def export(self, data: st.DataObject) -> None:
        self.views.append(memoryview(self.pool.blocks[data.draw(st.integers(0, len(self.pool.blocks) - 1))]))

    @rule()
    def drop_views(self) -> None:
        self.views.clear()

    @rule()
    def close(self) -> None:
        if self.taken or self.views:
            with pytest.raises(BufferError):
                self.pool.close()
            return
        nbytes, count = self.pool.nbytes, len(self.pool.blocks)
        self.pool.close()
        assert self.arena.stats().blocks == 0
        self.pool = Pool(self.arena, nbytes, count)
        self.stack = [*reversed(range(count))]

    @invariant()
    def counts(self) -> None:
        if hasattr(self, "pool"):
            assert self.pool.free == len(self.stack)
            assert self.arena.stats().blocks == 1


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(
    max_examples=50, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
