"""Who is inside: a fork's child does not inherit what other threads of its parent were in the middle of, and nobody
waits for a thread that unmaps or locks memory."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import MIB, in_child, rss
from measure import locked

from arena import Arena, Block, Reservation
from arena.realtime import Pool, Ring, lock_memory

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")

FORKS = 40


@contextlib.contextmanager
def beside(work: Callable[[], object]) -> Iterator[None]:
    """Another thread does this work again and again."""
    stop, begun = threading.Event(), threading.Event()
    raised: list[BaseException] = []

    def loop() -> None:
        try:
            while not stop.is_set():
                work()
                begun.set()
        except BaseException as error:
            raised.append(error)
            begun.set()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        begun.wait()
        yield
    finally:
        stop.set()
        thread.join()
    assert not raised, raised


def forked(times: int, work: Callable[[], object]) -> None:
    for i in range(times):
        time.sleep(0.0003 * (i % 7))
        in_child(work)


def use_and_free(block: Block) -> None:
    view = memoryview(block)
    assert len(view) == len(block)
    view[0] = 1
    view.release()
    block.resize(len(block))
    block.free()
    assert block.freed


def test_commit_and_release() -> None:
    r = Reservation("64MiB", pages="4K")

    def work() -> None:
        r.commit("32MiB")
        with contextlib.suppress(BufferError):
            r.release("32MiB")

    def child() -> None:
        assert r.commit("1MiB", offset="40MiB") == MIB
        view = r.view("1MiB", offset="40MiB")
        with pytest.raises(BufferError):
            r.close()
        view.release()
        before = rss()
        present = r.residency().present
        r.close()
        assert r.closed and r.committed == 0
        assert rss() <= before - present + MIB

    with beside(work):
        forked(FORKS, child)
    r.close()


def test_resize() -> None:
    a = Arena("256MiB", pages="4K", chunk="1MiB")
    block = a.alloc("1MiB")

    def work() -> None:
        block.resize("24MiB")
        block.resize("1MiB")
        a.trim()

    def child() -> None:
        use_and_free(block)
        a.close(strict=True)
        assert a.stats().committed == 0

    with beside(work):
        forked(FORKS, child)


def test_reset() -> None:
    a = Arena("64MiB")
    kept = a.alloc(100)
    with beside(a.reset):
        forked(FORKS, lambda: use_and_free(a.alloc(100)))
    assert kept.freed


def test_closing_and_the_end_of_arenas() -> None:
    now: list[Any] = [None]

    def work() -> None:
        a = now[0] = Arena("1GiB", pages="4K")
        a.warm("128MiB")
        a.close()
        now[0] = b = Arena("1GiB", pages="4K")
        b.warm("128MiB")
        del a, b
        now[0] = None

    def child() -> None:
        a = now[0]
        if a is not None:
            a.close()
            assert a.closed and a.stats().committed == 0
        now[0] = a = None
        assert rss() < before + 8 * MIB

    before = rss()
    with beside(work):
        forked(FORKS, child)


def test_closing_a_reservation() -> None:
    now: list[Any] = [None]

    def work() -> None:
        r = now[0] = Reservation("96MiB", pages="4K")
        r.commit()
        r.close()

    def child() -> None:
        r = now[0]
        r.close()
        assert r.closed and r.committed == 0
        assert rss() < before + 8 * MIB

    before = rss()
    with beside(work):
        forked(FORKS, child)


def test_writing_to_a_ring() -> None:
    ring = Ring("16MiB")
    data, out = bytes(12 * MIB), bytearray(12 * MIB)

    def work() -> None:
        ring.write(data)
        ring.readinto(out)

    def child() -> None:
        memoryview(ring).release()
        ring.close()
        assert ring.closed

    with beside(work):
        forked(FORKS, child)
    ring.close()


def test_making_and_closing_rings() -> None:
    def work() -> None:
        Ring("32MiB").close()

    def child() -> None:
        with open("/proc/self/maps", encoding="ascii", errors="replace") as maps:
            assert sum("arena-ring" in line for line in maps) <= 2  # those of a finished ring, which the thread has yet
        ring = Ring("1MiB")
        assert ring.write(b"x" * MIB) == MIB
        ring.close()

    with beside(work):
        forked(FORKS, child)


def test_pools() -> None:
    a = Arena("64MiB")
    pool = Pool(a, 4096, 8)

    def child() -> None:
        with pool.take() as block:
            block[0] = 1
        assert pool.free >= 7

    with beside(lambda: pool.put(pool.take())):
        forked(FORKS, child)


@pytest.mark.slow
def test_locking_all_memory() -> None:
    a = Arena("256MiB", pages="4K", chunk="1MiB")
    a.warm("32MiB")
    r = Reservation("16MiB", lock=True)
    r.commit()

    def work() -> None:
        with lock_memory():
            pass

    def child() -> None:
        use_and_free(a.alloc("48MiB"))
        a.close(strict=True)
        r.close()

    with beside(work):
        forked(10, child)


# What takes long, and whom it keeps waiting.


@contextlib.contextmanager
def counting() -> Iterator[Callable[[], int]]:
    """Counts as long as the interpreter lets another thread run, which it does where what runs lets go of the GIL."""
    count, stop = 0, False

    def loop() -> None:
        nonlocal count
        while not stop:
            count += 1
            time.sleep(0)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(10)
    thread = threading.Thread(target=loop)
    thread.start()
    try:
        time.sleep(0.01)
        yield lambda: count
    finally:
        stop = True
        thread.join()
        sys.setswitchinterval(interval)


def warmed() -> Arena:
    a = Arena("1GiB", pages="4K")
    a.warm("256MiB")
    return a


def last_block() -> list[Any]:
    a = warmed()
    b = a.alloc("200MiB")
    a.close()
    return [b]


def last_freed_block() -> list[Any]:
    a = warmed()
    b, freed = a.alloc("200MiB"), a.alloc(1)
    freed.free()
    a.close()
    return [b, freed]


def last_array() -> list[Any]:
    a = warmed()
    x = a.empty(200 * MIB, "u1")
    a.close()
    return [x]


def last_array_of_numpys() -> list[Any]:
    np = pytest.importorskip("numpy")
    a = warmed()
    with a.numpy_allocations():
        x = np.empty(200 * MIB, "u1")
    a.close()
    return [x]


def committed_reservation() -> list[Any]:
    r = Reservation("256MiB", pages="4K")
    r.commit()
    return [r]


@pytest.mark.skipif(hasattr(sys, "_is_gil_enabled") and not sys._is_gil_enabled(), reason="there is no GIL")
@pytest.mark.parametrize(
    "make",
    [
        last_block,
        last_freed_block,
        last_array,
        last_array_of_numpys,
        lambda: [warmed()],
        lambda: [Ring("128MiB")],
        committed_reservation,
    ],
)
def test_others_run_while_memory_is_unmapped(make: Callable[[], list[Any]]) -> None:
    kept = make()
    with counting() as count:
        before = count()
        while kept:
            kept.pop()
        assert count() > before


def test_others_run_while_memory_is_closed() -> None:
    for thing in (Ring("128MiB"), committed_reservation()[0], warmed()):
        with counting() as count:
            before = count()
            thing.close()
            assert count() > before


@pytest.mark.slow
def test_nobody_waits_for_memory_that_is_being_locked() -> None:
    a = Arena("2GiB", pages="4K")
    a.warm("768MiB")
    r = Reservation("64MiB")
    r.commit()
    n = 0

    def work() -> None:
        nonlocal n
        a.alloc(4096, grow=False)
        a.stats()
        r.view("1MiB")
        n += 1

    with beside(work):
        for _ in range(3):
            before = n
            lock = lock_memory()
            assert n > before + 10
            before = n
            with lock:
                pass
            assert n > before


def test_a_ring_keeps_its_lock() -> None:
    if os.geteuid() != 0:
        pytest.skip("to lock so much needs CAP_IPC_LOCK")
    before = locked()
    ring = Ring("8MiB", lock=True)
    plain = Ring("8MiB")
    own = locked() - before
    assert own >= 8 * MIB
    with lock_memory(), lock_memory(future=False):
        assert locked() >= before + 16 * MIB
    assert locked() - before == own
    with lock_memory():
        late = Ring("4MiB")
        assert locked() >= before + 20 * MIB
    assert locked() - before == own
    late.close()
    plain.close()
    ring.close()
    assert locked() == before
