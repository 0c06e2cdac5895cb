"""fork: by design a child may use, or is told that it may not use, what its parent had."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable

import pytest
from conftest import MIB, SUPPORT, faults_writing, in_child

from arena import Arena, Reservation

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def test_copy() -> None:
    a = Arena("256MiB")
    b = a.alloc("4MiB")
    b[:5] = b"hello"

    def work() -> None:
        assert bytes(b[:5]) == b"hello"
        b[:5] = b"child"
        c = a.alloc("8MiB")
        c[0] = 1
        del c
        assert a.trim() > 0
        b.free()
        a.close()

    in_child(work)
    assert bytes(b[:5]) == b"hello"
    assert a.stats().blocks == 1


def test_commit_and_warm_populate_again_what_became_copy_on_write() -> None:
    r = Reservation("64MiB", pages="4K")
    r.commit()
    a = Arena("256MiB", pages="4K", chunk="1MiB")
    a.warm("32MiB")
    r.view()[:] = b"x" * (64 * MIB)
    block = a.alloc("32MiB", grow=False)
    block[:] = b"y" * (32 * MIB)
    hold, release = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(release)
        os.read(hold, 1)
        os._exit(0)
    try:
        assert r.commit() == 0
        a.warm("1MiB")
        view = r.view()
        assert view[0] == view[64 * MIB - 1] == ord("x")
        assert faults_writing(view) == 0
        assert faults_writing(memoryview(block)) == 0
    finally:
        os.close(release)
        os.close(hold)
        os.waitpid(pid, 0)


def test_drop() -> None:
    a = Arena("256MiB", fork="drop")
    b = a.alloc("4MiB")
    b[:4] = b"abcd"
    r = Reservation("64MiB", fork="drop")
    r.commit("4MiB")
    view = r.view("4MiB")
    view[0] = 5

    def work() -> None:
        with pytest.raises(RuntimeError, match="fork='drop'"):
            a.alloc(100)
        with pytest.raises(RuntimeError, match="drop"):
            a.warm(100)
        with pytest.raises(RuntimeError, match="drop"):
            r.commit()
        with pytest.raises(RuntimeError, match="drop"):
            r.release("2MiB", offset="32MiB")
        with pytest.raises(RuntimeError, match="drop"):
            r.view("4MiB")
        assert view[0] == 0  # an address of the parent's; the child does not crash on it
        assert r.committed == 0
        b.free()
        a.close()

    in_child(work)
    assert bytes(b[:4]) == b"abcd"
    assert view[0] == 5
    a.alloc("1MiB")


def test_a_child_that_shares_a_reservation_makes_it_present_by_commit() -> None:
    r = Reservation("32MiB", shared=True, pages="4K")
    r.commit()

    def work() -> None:
        assert r.commit() == 0  # all is committed; but a fork leaves out the page tables of shared memory
        assert r.residency().present == r.size
        assert faults_writing(r.view()) == 0

    in_child(work)


def test_wipe() -> None:
    a = Arena("256MiB", fork="wipe", pages="4K")
    b = a.alloc("4MiB")
    b[:4] = b"abcd"

    def work() -> None:
        assert bytes(b[:4]) == bytes(4)
        a.warm("8MiB")
        assert faults_writing(memoryview(a.alloc("8MiB", grow=False))) == 0

    in_child(work)
    assert bytes(b[:4]) == b"abcd"


@pytest.mark.parametrize("pages", ["4K", "thp"])
def test_fork_in_the_middle_of_anothers_commit(pages: str) -> None:
    for attempt in range(4):
        a = Arena("4GiB", pages=pages)
        kept = a.alloc("1MiB")
        kept[:] = b"k" * MIB
        started = threading.Event()
        done: list[object] = []

        def commit(a: Arena = a, started: threading.Event = started, done: list[object] = done) -> None:
            started.set()
            done.append(a.alloc("1GiB"))

        thread = threading.Thread(target=commit)
        thread.start()
        started.wait()
        time.sleep(0.01 * attempt)

        def work(a: Arena = a, kept: object = kept) -> None:
            assert bytes(kept[:]) == b"k" * MIB  # type: ignore[index]
            b = a.alloc("16MiB", zero=True)
            assert not any(b[:MIB])
            b[:] = b"c" * (16 * MIB)
            s = a.stats()
            assert s.blocks in (2, 3)  # with the other thread's, if that was ready before the fork
            a.trim()
            assert a.residency().present <= a.stats().committed

        in_child(work)
        thread.join()
        assert len(done) == 1
        assert a.stats().blocks == 2
        done.clear()
        a.trim()


def test_fork_in_a_progress_callback() -> None:
    r = Reservation("1GiB")
    pids: list[int] = []

    def progress(done: int, total: int) -> None:
        if not pids and done < total:
            pid = os.fork()
            pids.append(pid)

    try:
        r.commit(threads=2, progress=progress)
    except OSError:
        # The child: its helper threads stayed with the parent.
        os._exit(0 if pids == [0] and r.committed == 0 else 1)
    if pids == [0]:
        os._exit(2)
    if pids:
        assert os.waitpid(pids[0], 0)[1] == 0
    assert r.committed == r.size


def test_dropped_memory_in_whose_place_nothing_can_be_had_is_refused(child: Callable[..., str]) -> None:
    """The addresses may be another's by now: each call of ours says so, and none reads them."""
    child(
        """
        import os, pickle
        import numpy as np
        import kernel
        from arena import Arena, Reservation
        from arena.realtime import Pool
        a = Arena("64MiB", fork="drop")
        b = a.alloc(100000)
        b[:3] = b"abc"
        r = Reservation("64MiB", fork="drop")
        r.commit("1MiB")
        pool = Pool(a, 4096, 4)
        kernel.without_exact_places()
        calls = {
            "alloc": lambda: a.alloc(10), "zeros": lambda: a.zeros(10), "warm": lambda: a.warm("1MiB"),
            "b[0]": lambda: b[0], "b[0] =": lambda: b.__setitem__(0, 1), "bytes": lambda: bytes(b),
            "memoryview": lambda: memoryview(b), "frombuffer": lambda: np.frombuffer(b, "u1"),
            "from_dlpack": lambda: np.from_dlpack(b), "pickle": lambda: pickle.dumps(b, protocol=5),
            "commit": r.commit, "release": r.release, "verify": r.verify,
            "read_into": lambda: r.read_into(bytearray(100)), "write_from": lambda: r.write_from(b"abc"),
            "take": pool.take,
        }
        harmless = [a.stats, a.trim, a.residency, lambda: list(a.blocks()), lambda: repr((a, b, r)), r.residency]
        pid = os.fork()
        if pid == 0:
            status = 0
            for name, call in calls.items():
                try:
                    call()
                except RuntimeError as error:
                    assert "fork='drop'" in str(error), (name, error)
                else:
                    print("no error:", name)
                    status = 1
            for call in harmless:
                call()
            b.free()
            pool.close()
            a.close()
            r.close()
            os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        assert bytes(b[:3]) == b"abc"
        """,
        PYTHONPATH=str(SUPPORT),
    )
