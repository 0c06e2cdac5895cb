from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conftest import GIB, MIB, SUPPORT, faults_writing, run_child

from arena import CommitError, Reservation


def test_commit_rounds_outward_release_inward() -> None:
    with Reservation("64MiB", pages="4K") as r:
        assert r.page_size == 4096
        assert r.commit(1, offset=4095) == 4096
        assert r.commit(2, offset=4095) == 4096
        assert r.committed == 8192
        assert r.release(8191) == 4096
        assert r.committed == 4096
        assert r.release(4095, offset=4096) == 0
        assert r.release() == 4096


def test_huge_pages_are_committed_whole() -> None:
    with Reservation("64MiB", pages="thp") as r:
        assert r.page_size == 2 * MIB
        assert r.commit(1) == 2 * MIB
        there = r.residency()
        assert there.present == 2 * MIB
        assert there.huge in (0, 2 * MIB)
        assert r.address % (2 * MIB) == 0


@pytest.mark.parametrize("pages", ["4K", "thp"])
@pytest.mark.parametrize("threads", [1, 2, 5])
def test_committed_is_resident(pages: Any, threads: int) -> None:
    with Reservation("512MiB", pages=pages) as r:
        assert r.commit("100MiB", offset="2MiB", threads=threads) == 100 * MIB
        assert r.commit("104MiB", threads=threads) == 4 * MIB
        assert r.residency().present == r.committed == 104 * MIB
        view = r.view("104MiB")
        assert faults_writing(view) == 0
        view.release()
        assert r.release("50MiB", offset="50MiB") == 50 * MIB
        assert r.residency().present == r.committed == 54 * MIB
        assert r.residency("50MiB", offset="50MiB").present == 0


def test_locked_and_dirty_are_known_for_the_whole_only() -> None:
    with Reservation("8MiB") as r:
        r.commit("4MiB")
        whole, part = r.residency(), r.residency("4MiB")
        assert whole.dirty == 4 * MIB
        assert whole.locked == 0
        assert part.dirty is None
        assert part.locked is None


def test_released_memory_is_zero() -> None:
    with Reservation("8MiB", pages="4K") as r:
        r.commit()
        r.view()[:] = b"\xff" * (8 * MIB)
        r.release("4MiB")
        r.commit()
        view = r.view()
        assert bytes(view[: 4 * MIB]) == bytes(4 * MIB)
        assert bytes(view[4 * MIB :]) == b"\xff" * (4 * MIB)
        view.release()


def test_views_are_of_committed_memory() -> None:
    r = Reservation("8MiB", pages="4K")
    r.commit("1MiB")
    with pytest.raises(ValueError, match="committed"):
        r.view("2MiB")
    view = r.view("1MiB")
    with pytest.raises(BufferError, match="exported"):
        r.release("4KiB", offset="1020KiB")
    with pytest.raises(BufferError):
        r.close()
    assert r.release("1MiB", offset="1MiB") == 0
    sub = view[:10]
    view.release()
    with pytest.raises(BufferError):
        r.release()
    sub.release()
    assert r.release() == MIB
    r.commit(4096)
    read = r.view(4096, readonly=True)
    with pytest.raises(TypeError):
        read[0] = 1
    del read
    with pytest.raises(ValueError, match="of no use"):
        r.view(0)
    r.close()
    r.close()
    assert r.closed
    for call in (r.commit, r.release, r.view, r.residency, r.verify):
        with pytest.raises(ValueError, match="closed"):
            call()
    assert r.committed == 0
    assert "closed" in repr(r)


def test_a_view_keeps_the_reservation() -> None:
    r = Reservation("8MiB")
    r.commit()
    view = r.view()
    del r
    view[0] = 1
    assert view[0] == 1


@pytest.mark.parametrize("call", ["commit", "release", "view", "residency", "verify"])
def test_ranges_beyond_the_end(call: str) -> None:
    with Reservation("8MiB") as r:
        for nbytes, offset in (
            (9 * MIB, 0),
            (1, 8 * MIB),
            (0, 9 * MIB),
            (-1, 0),
            (1, -1),
            (1 << 63, 0),
            ((1 << 63) - 1, 1),
        ):
            with pytest.raises(ValueError):
                getattr(r, call)(nbytes, offset=offset)
        with pytest.raises(TypeError):
            getattr(r, call)(1.5)


def test_read_pages_then_write_pages() -> None:
    with Reservation("16MiB", pages="4K") as r:
        assert r.commit(populate="read") == 16 * MIB
        there = r.residency()
        assert there.present == 16 * MIB
        if there.zero:
            assert there.zero == 16 * MIB
        with pytest.raises(ValueError, match="for writing"):
            r.view()
        assert bytes(r.view(readonly=True)[:10]) == bytes(10)
        assert r.commit("8MiB") == 0  # present before, but now for writing
        view = r.view("8MiB")
        assert faults_writing(view) == 0
        view.release()
        with pytest.raises(ValueError, match="populate"):
            r.commit(populate="execute")  # type: ignore[arg-type]


def test_copies_through_the_kernel() -> None:
    with Reservation("8MiB") as r:
        r.commit()
        assert r.write_from(b"hello", offset=100) == 5
        into = bytearray(5)
        assert r.read_into(into, offset=100) == 5
        assert into == b"hello"
        with pytest.raises(ValueError, match="beyond"):
            r.read_into(bytearray(10), offset=8 * MIB - 5)
        with pytest.raises(BufferError):
            r.read_into(b"readonly", offset=0)


def test_verify() -> None:
    with Reservation("8MiB") as r:
        r.commit("4MiB")
        r.view("4MiB")[:] = b"x" * (4 * MIB)
        r.verify()
        assert bytes(r.view("4MiB")[:]) == b"x" * (4 * MIB)
        assert r.committed == 4 * MIB


def test_more_than_there_is() -> None:
    with Reservation("8TiB") as r:
        with pytest.raises(CommitError) as caught:
            r.commit()
        assert caught.value.op == "preflight"
        assert r.committed == 0
        assert r.residency("64MiB").present == 0


def test_progress_with_tqdm_and_rich_as_they_stand() -> None:
    seen = []
    with Reservation("1GiB") as r:
        assert r.commit(progress=lambda done, total: seen.append((done, total))) == GIB
    assert seen[-1] == (GIB, GIB)


def test_no_file_descriptor() -> None:
    with Reservation("1MiB") as r:
        assert r.backing == "anonymous"
        with pytest.raises(OSError, match="no file descriptor"):
            r.fileno()


def test_dump_and_name() -> None:
    with Reservation("8MiB", name="frames") as r:
        flags = ""
        inside = False
        with open("/proc/self/smaps", encoding="ascii", errors="replace") as lines:
            for line in lines:
                if line.startswith(f"{r.address:x}-"):
                    inside = True
                if inside and line.startswith("VmFlags:"):
                    flags = line
                    break
        assert " dd" in flags  # don't dump


def test_a_refused_reservation_unmaps_nobody(child: Callable[..., str]) -> None:
    """The file's own mmap refuses, while other threads map and unmap as much memory as it was to take."""
    child(
        """
        import mmap, sys, threading
        from arena import Reservation, ReserveError
        N, over = 256 << 20, []
        def victim():
            while not over:
                with mmap.mmap(-1, N) as m:
                    for at in range(0, N, N // 16):
                        m[at] = 1
                    for at in range(0, N, N // 16):
                        assert m[at] == 1
        threads = [threading.Thread(target=victim) for _ in range(2)]
        for t in threads:
            t.start()
        sys.setswitchinterval(1e-5)
        for _ in range(20000):
            try:
                Reservation(N, path="/proc/self/limits", shared=True, readonly=True)
            except ReserveError:
                pass
            else:
                raise SystemExit("no error")
        over.append(1)
        for t in threads:
            t.join()
        """
    )


MAP_COUNT = r"""
import ctypes, gc, os, sys, threading
from arena import Arena, Reservation, ReserveError
from arena.realtime import Ring, lock_memory, unlock_memory
libc = ctypes.CDLL(None, use_errno=True)
libc.mmap.restype = ctypes.c_void_p
libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
LIMIT = int(open("/proc/sys/vm/max_map_count").read())
if LIMIT > 1 << 18:
    print("vm.max_map_count is too large here to be reached")
    sys.exit(77)
def count():
    return open("/proc/self/maps", "rb").read().count(b"\n")
def size():
    return int(open("/proc/self/statm").read().split()[0]) * 4096
def make(refused):
    for options in ({}, {"pages": "4K"}, {"shared": True}, {"shared": True, "backing": "anonymous"},
                    {"path": "/dev/shm", "shared": True}, {"path": "/tmp"}):
        try:
            with Reservation("64MiB", **options) as r:
                r.commit(4096)
        except OSError as error:
            refused.append(error.errno)
    for work in (ring, arena):
        try:
            work()
        except OSError as error:
            refused.append(error.errno)
def ring():
    Ring("64KiB").close()
def arena():
    with Arena("16MiB", pages="4K", chunk="64KiB", fork="drop") as a:
        a.alloc(100000)
def other(over, broken, runs):
    # What another thread maps stays as it is.
    while not over:
        p = libc.mmap(None, 64 << 20, 3, 0x4022, -1, 0)
        if p in (None, ctypes.c_void_p(-1).value):
            continue
        ctypes.memset(p, 7, 4096)
        ctypes.memset(p + (32 << 20), 7, 4096)
        if ctypes.string_at(p, 1) != b"\x07" or ctypes.string_at(p + (32 << 20), 1) != b"\x07":
            broken.append(p)
        libc.munmap(p, 64 << 20)
        runs.set()
make([])
refusals = 0
for left in (0, 1, 2, 3, 4, 5, 7, 9, 12):
    pid = os.fork()
    if pid == 0:
        gc.collect()
        refused, over, broken, runs = [], [], [], threading.Event()
        t = threading.Thread(target=other, args=(over, broken, runs))
        t.start()
        runs.wait()
        before = size()
        nbytes = (LIMIT + 100) * 2 * 4096
        at = libc.mmap(None, nbytes, 0, 0x4022, -1, 0)
        for i in range((LIMIT - count() - left) // 2):
            libc.mprotect(at + (2 * i + 1) * 4096, 4096, 1)
        for _ in range(2):
            make(refused)
        try:
            lock_memory(on_fault=True)
            unlock_memory()
        except OSError as error:
            refused.append(error.errno)
        over.append(1)
        t.join()
        libc.munmap(at, nbytes)
        later = []
        make(later)
        assert not later and not broken, (later, broken)
        assert set(refused) <= {12}, refused
        grown = size() - before
        assert grown < 2 << 20, (left, grown)  # Python's own; and nothing of the reservations stays
        os._exit(bool(refused) * 3)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert status in (0, 3), (left, status)
    refusals += status == 3
assert refusals, "the limit was never reached"
"""


def test_reservations_at_the_limit_of_mappings_beside_threads_that_map() -> None:
    done = run_child(MAP_COUNT, timeout=300)
    if done.returncode == 77:
        pytest.skip(done.stdout)
    assert done.returncode == 0, done.stderr


def test_whose_ends_cannot_be_cut_off_is_unmapped_whole(child: Callable[..., str]) -> None:
    child(
        """
        import errno
        import kernel
        from arena import Reservation, ReserveError

        def size():
            return int(open("/proc/self/statm").read().split()[0]) * 4096

        refused = 0
        Reservation("65MiB", pages="4K").close()
        before = size()
        kernel.answer(errno.ENOMEM, "munmap", arg=1, bit=(1 << 20) - 4096)  # but for multiples of 1 MiB
        for _ in range(50):
            try:
                Reservation("65MiB", pages="4K").close()
            except ReserveError as error:
                assert error.errno == errno.ENOMEM
                refused += 1
        assert refused > 10, refused
        assert size() - before < 8 << 20, size() - before
        """,
        PYTHONPATH=str(SUPPORT),
    )


def test_a_futex_that_has_not_touched_a_page_is_not_believed(child: Callable[..., str]) -> None:
    child(
        """
        import errno
        import kernel
        kernel.without_populate()
        kernel.without_wake_op()
        from arena import CommitError, Reservation
        r = Reservation("1MiB", shared=True)
        try:
            r.commit()
        except CommitError as error:
            assert error.errno == errno.EAGAIN, error
        else:
            raise SystemExit("no error")
        assert r.committed == 0
        """,
        PYTHONPATH=str(SUPPORT),
    )


def test_what_progress_raises_in_its_last_call_undoes_the_commit() -> None:
    r = Reservation("64MiB", pages="4K")

    def progress(done: int, total: int) -> None:
        if done == total:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        r.commit("16MiB", progress=progress)
    assert r.committed == r.residency().present == 0


def test_progress_is_not_called_where_nothing_is_to_be_done() -> None:
    r = Reservation("1MiB")
    r.commit()
    called: list[tuple[int, int]] = []
    assert r.commit(progress=lambda done, total: called.append((done, total))) == 0
    assert called == []
