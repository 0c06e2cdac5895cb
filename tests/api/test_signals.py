"""Signals, and other Python code that runs in the middle of a commit."""

from __future__ import annotations

import signal
import threading
import time

import pytest
from conftest import GIB, MIB

from arena import Arena, Reservation


class Alarm(Exception):
    pass


@pytest.fixture
def alarm():  # type: ignore[no-untyped-def]
    """Raises Alarm from a signal handler in 30 ms."""
    raised: list[float] = []

    def handler(*_: object) -> None:
        raised.append(time.monotonic())
        raise Alarm

    before = signal.signal(signal.SIGALRM, handler)
    yield lambda: (signal.setitimer(signal.ITIMER_REAL, 0.03) and raised) or raised
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_signal_stops_a_commit_and_all_is_rolled_back(alarm, threads: int) -> None:  # type: ignore[no-untyped-def]
    with Reservation("64GiB", pages="4K") as r:
        raised = alarm()
        with pytest.raises(Alarm):
            r.commit("4GiB", threads=threads)
        assert raised
        assert r.committed == 0
        assert r.residency("4GiB").present == 0
        assert r.commit("1MiB") == MIB


def test_keyboard_interrupt_during_alloc(child) -> None:  # type: ignore[no-untyped-def]
    child(
        """
        import _thread, os, signal, threading, time
        from arena import Arena
        a = Arena("64GiB", pages="4K")
        kept = a.alloc("1MiB")
        threading.Timer(0.05, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        try:
            a.alloc("6GiB")
        except KeyboardInterrupt:
            pass
        else:
            raise SystemExit("not interrupted")
        s = a.stats()
        assert (s.blocks, s.live) == (1, 1 << 20), s
        assert a.residency().present == s.committed <= 4 << 20
        """
    )


def test_a_handler_that_allocates_from_the_same_arena() -> None:
    a = Arena("8GiB", pages="4K")
    a.warm("16MiB")
    got: list[object] = []

    def handler(*_: object) -> None:
        got.append(a.alloc("1MiB"))
        signal.setitimer(signal.ITIMER_REAL, 0.01)  # not before it is done: its own handler would need the same chunk

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        b = a.alloc("1GiB")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert got
    assert a.stats().blocks == 1 + len(got)
    del b


def test_a_finalizer_that_allocates_from_the_same_arena() -> None:
    a = Arena("1GiB")

    class Final:
        def __init__(self, block: object) -> None:
            self.block = block

        def __del__(self) -> None:
            kept.append(a.alloc("1MiB"))

    kept: list[object] = []
    for _ in range(50):
        Final(a.alloc("3MiB"))
    assert a.stats().blocks == len(kept) == 50


def test_waiters_take_over_when_the_other_fails() -> None:
    """Two threads need the same pages; the one that populates them is interrupted, and the other is not."""
    with Reservation("4GiB", pages="4K") as r:
        inside, results = threading.Event(), []

        def stop(done: int, total: int) -> None:
            inside.set()
            time.sleep(0.1)
            raise Alarm

        def fails() -> None:
            try:
                r.commit(GIB, threads=1, progress=stop)
            except Alarm:
                results.append("interrupted")

        def waits() -> None:
            inside.wait()
            results.append(str(r.commit(2 * MIB, offset="10MiB")))

        threads = [threading.Thread(target=fails), threading.Thread(target=waits)]
        for t in threads:
            t.start()
        inside.wait()
        with pytest.raises(BufferError):
            r.close()
        for t in threads:
            t.join()
        assert sorted(results) == [str(2 * MIB), "interrupted"]
        assert r.committed == r.residency().present == 2 * MIB


def test_committed_memory_does_not_wait_for_anothers_commit() -> None:
    a = Arena("8GiB", pages="4K")
    a.warm("16MiB")
    inside, go = threading.Event(), threading.Event()

    def hold(done: int, total: int) -> None:
        inside.set()
        go.wait(60)

    thread = threading.Thread(target=lambda: a.warm("512MiB", threads=1, progress=hold))
    thread.start()
    assert inside.wait(60)
    for _ in range(1000):
        a.alloc("1MiB", grow=False)
    with pytest.raises(BufferError):
        a.close()
    with pytest.raises(BufferError):
        a.reset()
    go.set()
    thread.join()
