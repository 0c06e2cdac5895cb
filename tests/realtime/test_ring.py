"""arena.realtime.Ring: memory mapped twice, so that every window is contiguous; one side writes, one reads."""

from __future__ import annotations

import array
import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import GIB, MIB, SUPPORT, faults_writing, in_child, rss, run_child
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from kernel import CANNOT, PAGE
from machine import MemoryCgroup
from measure import locked, steady_faults
from test_lock import limited
from test_pool import allocations, in_threads, nothing

from arena import CommitError, ReserveError
from arena.realtime import Ring

pytestmark = pytest.mark.slow  # the same on every CPython


def mapped(name: str = "arena-ring") -> list[tuple[int, int]]:
    """Where the rings of this name are mapped, and how long."""
    with open("/proc/self/maps", encoding="ascii", errors="replace") as lines:
        spans = [line.split()[0].split("-") for line in lines if f"/memfd:{name} " in line]
    return [(int(start, 16), int(end, 16) - int(start, 16)) for start, end in spans]


# --- what it is -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nbytes", [1, PAGE, PAGE + 1, "1MiB", 3 * MIB - 5])
def test_the_same_pages_twice(nbytes: Any) -> None:
    with Ring(nbytes, name="twice") as ring:
        n = ring.nbytes
        assert n % PAGE == 0 and n >= (MIB if nbytes == "1MiB" else nbytes)
        with memoryview(ring) as view:
            assert (len(view), view.readonly, view.format) == (2 * n, False, "B")
            for at in (0, n // 2, n - 1):
                view[at] = 1 + at % 255
                assert view[n + at] == view[at]
                view[n + at] = 77
                assert view[at] == 77
        assert mapped("twice") == [(ring.address - PAGE, n + PAGE), (ring.address + n, n)]
    assert not mapped("twice")


def test_nothing_faults_at_use() -> None:
    with Ring("4MiB") as ring, memoryview(ring) as view:
        assert faults_writing(view) == 0


def test_memory_is_there_once() -> None:
    before = rss()
    with Ring("16MiB"):
        # Rss counts mappings; what the file has is in none of them twice.
        assert rss() - before >= 32 * MIB
        size = sum(os.stat(f"/proc/self/map_files/{a:x}-{a + n:x}").st_blocks * 512 for a, n in mapped()[:1])
        assert size == 16 * MIB + PAGE


def test_its_size_is_sealed_and_no_descriptor_is_left() -> None:
    before = os.listdir("/proc/self/fd")
    with Ring(PAGE) as ring:
        assert os.listdir("/proc/self/fd") == before
        start, length = mapped()[0]
        file = os.open(f"/proc/self/map_files/{start:x}-{start + length:x}", os.O_RDWR)
        try:
            for size in (0, 3 * PAGE):
                with pytest.raises(PermissionError):
                    os.ftruncate(file, size)
        finally:
            os.close(file)
        assert ring.write(b"still there") == 11


# --- writing and reading ----------------------------------------------------------------------------------------------


def test_copies() -> None:
    with Ring(PAGE) as ring:
        assert (ring.readable, ring.writable) == (0, PAGE)
        assert ring.write(b"") == 0 == ring.readinto(bytearray())
        assert ring.write(bytes(range(200))) == 200
        part = bytearray(50)
        assert ring.readinto(part) == 50 and part == bytes(range(50))
        assert ring.write(b"x" * PAGE) == PAGE - 150
        assert ring.write(b"y") == 0 == ring.writable
        rest = bytearray(PAGE + 10)
        assert ring.readinto(rest) == PAGE
        assert rest == bytes(range(50, 200)) + b"x" * (PAGE - 150) + bytes(10)
        assert ring.readinto(rest) == 0
        assert ring.write_position == ring.read_position == PAGE + 50
        assert ring.write(array.array("d", [1.5, 2.5])) == 16
        doubles = array.array("d", [0, 0])
        assert ring.readinto(doubles) == 16 and [*doubles] == [1.5, 2.5]


def test_windows_are_contiguous() -> None:
    with Ring(PAGE) as ring:
        for i in range(20):
            with ring.write_view(3000) as window:
                window[:] = bytes([i]) * 3000
            ring.produced(3000)
            with ring.read_view(3000) as window:
                assert window == bytes([i]) * 3000
            ring.consumed(3000)
        with ring.write_view() as all_free, ring.read_view() as nothing_there:
            assert (len(all_free), len(nothing_there)) == (PAGE, 0)
        assert ring.write_position == ring.read_position == 60_000


def test_one_view_is_enough() -> None:
    with Ring(PAGE) as ring, memoryview(ring) as view:
        for i in range(50):
            at = ring.write_position % ring.nbytes
            view[at : at + 1000] = bytes([i]) * 1000
            ring.produced(1000)
            at = ring.read_position % ring.nbytes
            assert view[at : at + 1000] == bytes([i]) * 1000
            ring.consumed(1000)


def test_arrays_over_it() -> None:
    np = pytest.importorskip("numpy", reason="NumPy is not installed")
    with Ring(PAGE) as ring:
        samples = np.frombuffer(ring, np.int16)
        samples[:1024] = np.arange(1024)
        ring.produced(2048)
        at = ring.read_position % ring.nbytes // 2
        assert samples[at : at + 1024].sum() == 1023 * 512
        with pytest.raises(BufferError):
            ring.close()
        del samples


def test_more_than_there_is() -> None:
    with Ring(PAGE) as ring:
        ring.write(b"x" * 100)
        for use, words in (
            (ring.write_view, f"{PAGE - 100} are"),
            (ring.produced, f"{PAGE - 100} are"),
            (ring.read_view, "100 are"),
            (ring.consumed, "100 are"),
        ):
            for n in (PAGE - 99, 1 << 40, 1 << 70):
                with pytest.raises(ValueError, match=words):
                    use(n)
            with pytest.raises(ValueError, match="negative"):
                use(-1)
            with pytest.raises(TypeError):
                use("1")  # type: ignore[arg-type]
        assert (ring.readable, ring.write_position, ring.read_position) == (100, 100, 0)
        for data in (None, 5, "text"):
            with pytest.raises(TypeError):
                ring.write(data)  # type: ignore[arg-type]
        with pytest.raises(BufferError):
            ring.readinto(b"read-only")
        assert ring.readable == 100


def test_no_allocation_and_no_fault() -> None:
    data, room = bytes(100), bytearray(100)
    with Ring(PAGE) as ring:

        def cycles(n: int) -> None:
            for _ in itertools.repeat(None, n):
                ring.write(data)
                ring.readinto(room)

        objects, peak = allocations(cycles)
        of_nothing = allocations(nothing)
        assert objects <= of_nothing[0] and peak <= of_nothing[1]
        assert steady_faults(lambda: cycles(20_000)) == 0


# --- whose memory -----------------------------------------------------------------------------------------------------


def test_a_signal_stops_the_making_of_one_and_nothing_is_left() -> None:
    class Alarm(Exception):
        pass

    def handler(signum: int, frame: object) -> None:
        raise Alarm

    before, descriptors = signal.signal(signal.SIGALRM, handler), len(os.listdir("/proc/self/fd"))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.02)
        with pytest.raises(Alarm):
            Ring("1GiB", name="stopped")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert not mapped("stopped")
    assert len(os.listdir("/proc/self/fd")) == descriptors


def test_close_waits_for_views() -> None:
    ring = Ring(PAGE)
    window = ring.write_view(10)
    with pytest.raises(BufferError, match="exported"):
        ring.close()
    window[0] = 1
    window.release()
    ring.close()
    ring.close()
    assert ring.closed and repr(ring) == "<arena.realtime.Ring closed>"
    assert not mapped()
    uses: list[Any] = [
        lambda: ring.readable,
        lambda: ring.writable,
        lambda: ring.write_position,
        lambda: ring.read_position,
        lambda: ring.write(b"1"),
        lambda: ring.readinto(bytearray(1)),
        lambda: ring.produced(0),
        lambda: ring.consumed(0),
        ring.write_view,
        ring.read_view,
        ring.__enter__,
    ]
    for use in uses:
        with pytest.raises(ValueError, match="closed"):
            use()
    with pytest.raises(BufferError, match="closed"):
        memoryview(ring)


def test_a_view_keeps_the_memory() -> None:
    view = Ring(PAGE).write_view()
    view[:] = b"x" * PAGE
    assert len(mapped()) == 2
    del view
    assert not mapped()


def test_what_is_said_of_it() -> None:
    with Ring("64KiB") as ring:
        ring.write(b"x" * 1536)
        assert repr(ring) == "<arena.realtime.Ring of 64 KiB, 1.5 KiB to read>"


# --- what cannot be had -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("nbytes", "options", "error"),
    [
        (0, {}, ValueError),
        (-1, {}, ValueError),
        ("much", {}, ValueError),
        (1.5, {}, TypeError),
        (None, {}, TypeError),
        ("65TiB", {}, ValueError),
        (PAGE, {"name": 5}, TypeError),
        (PAGE, {"name": "x" * 80}, ValueError),
        (PAGE, {"name": "a\0b"}, ValueError),
        (PAGE, {"name": "ä"}, ValueError),
        ("60TiB", {}, (CommitError, ReserveError)),
    ],
)
def test_nonsense(nbytes: Any, options: dict[str, Any], error: type[Exception]) -> None:
    before = os.listdir("/proc/self/fd")
    with pytest.raises(error):
        Ring(nbytes, **options)
    assert not mapped() and os.listdir("/proc/self/fd") == before


REFUSALS = [
    ("memfd_create", "EMFILE", "answer(error, 'memfd_create')", "memfd_create", "RLIMIT_NOFILE"),
    ("ftruncate", "ENOSPC", "answer(error, 'ftruncate')", "ftruncate", "room"),
    ("seal", "EPERM", "answer(error, 'fcntl', arg=1, values=(1033,))", "fcntl(F_ADD_SEALS)", "failed"),
    ("first mapping", "ENOMEM", "answer(error, 'mmap', arg=3, values=(0x104001,))", "mmap", "RLIMIT_AS"),
    ("second mapping", "ENOMEM", "answer(error, 'mmap', arg=5, values=(4096,))", "mmap", "RLIMIT_AS"),
    ("opening it", "ENOMEM", "answer(error, 'mprotect')", "mmap", "RLIMIT_AS"),
    ("mlock", "ENOMEM", "answer(error, 'mlock2')", "mlock", "vm.max_map_count"),
    ("fallocate", "ENOSPC", "answer(error, 'fallocate')", "fallocate", "room"),
    ("populate", "ENOMEM", "answer(error, 'madvise', arg=2, values=(23,))", "madvise(MADV_POPULATE_WRITE)", "memory"),
    (
        "populating the second",
        "EFAULT",
        "answer(error, 'madvise', arg=1, values=(12288,))",
        "madvise(MADV_POPULATE_WRITE)",
        "nothing behind",
    ),
]


@pytest.mark.parametrize(("name", "error", "refuse", "op", "words"), REFUSALS, ids=[r[0] for r in REFUSALS])
def test_nothing_is_left_where_the_kernel_refuses(name: str, error: str, refuse: str, op: str, words: str) -> None:
    done = run_child(
        f"""
        import errno, os
        from kernel import answer
        from arena.realtime import Ring
        def state():
            maps = [line for line in open("/proc/self/maps") if "arena-ring" in line]
            locked = next(line for line in open("/proc/self/status") if line.startswith("VmLck"))
            size = next(line for line in open("/proc/self/status") if line.startswith("VmSize"))
            return maps, len(os.listdir("/proc/self/fd")), locked, size
        Ring(3 * 4096, lock=True).close()
        state()
        error = errno.{error}
        {refuse}
        before = state()
        try:
            Ring(3 * 4096, lock=True)
        except (OSError, MemoryError) as found:
            assert found.errno == error and found.op == {op!r}, (found.op, found)
            assert {words!r} in str(found), found
        else:
            raise SystemExit("it was made")
        assert state() == before, (before, state())
        """,
        PYTHONPATH=os.fspath(SUPPORT),
    )
    if done.returncode == CANNOT:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("without", ["madvise", "fallocate"])
def test_an_older_kernel_fills_it_too(without: str) -> None:
    done = run_child(
        f"""
        from kernel import without_populate, without_fallocate
        from measure import faults_writing
        {"without_populate()" if without == "madvise" else "without_fallocate()"}
        from arena.realtime import Ring
        with Ring("1MiB") as ring, memoryview(ring) as view:
            assert faults_writing(view) == 0
        """,
        PYTHONPATH=os.fspath(SUPPORT),
    )
    if done.returncode == CANNOT:
        pytest.skip(done.stdout.strip())
    assert done.returncode == 0, done.stdout + done.stderr


def test_limits_of_address_space_and_descriptors() -> None:
    done = run_child(
        """
        import os, resource
        from arena import ReserveError
        from arena.realtime import Ring
        def refused(words, *args):
            try:
                Ring(*args)
            except ReserveError as error:
                assert words in str(error), error
            else:
                raise SystemExit("it was made")
            Ring("1MiB").close()
        Ring(1).close()
        now = next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmSize:"))
        resource.setrlimit(resource.RLIMIT_AS, (now + (96 << 20), resource.RLIM_INFINITY))
        refused("RLIMIT_AS", "64MiB")
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        used = max(int(fd) for fd in os.listdir("/proc/self/fd"))
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        kept = [os.open("/", os.O_RDONLY) for _ in range(20)]
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(kept) + 1, hard))
        try:
            Ring("1MiB")
        except ReserveError as error:
            assert "RLIMIT_NOFILE" in str(error), error
        else:
            raise SystemExit("it was made")
        os.close(kept.pop())
        Ring("1MiB").close()
        """
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_memory_cgroups_limit_is_an_error_and_not_a_kill(cgroup: MemoryCgroup) -> None:
    cgroup.limit(64 * MIB)
    done = run_child(
        """
        from arena import CommitError
        from arena.realtime import Ring
        try:
            Ring("100MiB")
        except CommitError as error:
            assert error.op == "preflight" and "cgroup" in str(error), error
            assert error.available < 64 << 20
        else:
            raise SystemExit("it was made")
        Ring("20MiB").write(b"alive")
        """,
        preexec=cgroup.enter,
    )
    assert done.returncode == 0, done.stderr


# --- locked -----------------------------------------------------------------------------------------------------------


def test_locked_once() -> None:
    before = locked()
    try:
        ring = Ring("1MiB", lock=True)
    except CommitError as error:
        pytest.skip(f"this process may not lock a MiB: {error}")
    assert locked() - before == MIB + PAGE
    ring.close()
    assert locked() == before


def test_rlimit_memlock() -> None:
    done = run_child(
        """
        from arena import CommitError
        from arena.realtime import Ring
        Ring("60KiB", lock=True).close()
        kept = Ring("32KiB", lock=True)
        for nbytes, available in (("64KiB", 28), ("16MiB", 28)):
            try:
                Ring(nbytes, lock=True)
            except CommitError as error:
                assert error.op == "mlock" and error.available == available << 10, (error.available, error)
                assert "RLIMIT_MEMLOCK" in str(error) and "CAP_IPC_LOCK" in str(error)
            else:
                raise SystemExit("it was locked")
        Ring("16MiB").close()
        Ring("24KiB", lock=True).close()
        """,
        preexec=limited(64 * 1024),
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("lock", [False, True])
def test_after_mlockall(lock: bool) -> None:
    done = run_child(
        f"""
        import ctypes
        from arena.realtime import Ring
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mlockall(1 | 2):
            raise SystemExit(77)
        def locked():
            return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmLck:"))
        before = locked()
        with Ring("8MiB", lock={lock}) as ring, memoryview(ring) as view:
            view[:] = bytes(len(view))
            assert locked() - before < 40 << 20
        assert locked() - before < 24 << 20  # of Python's own
        """
    )
    if done.returncode == CANNOT:
        pytest.skip("mlockall is not allowed here")
    assert done.returncode == 0, done.stderr


# --- threads and forks ------------------------------------------------------------------------------------------------


def test_one_writes_and_one_reads() -> None:
    total = 300_000
    sequence = bytes(i % 251 for i in range(total))
    with Ring(PAGE) as ring:
        got = bytearray()

        def write() -> None:
            rng, done = random.Random(1), 0
            while done < total:
                n = min(rng.randrange(3000), total - done)
                if rng.random() < 0.5:
                    done += ring.write(sequence[done : done + n])
                elif n <= ring.writable:
                    with ring.write_view(n) as window:
                        window[:] = sequence[done : done + n]
                    ring.produced(n)
                    done += n
                if not ring.writable:
                    time.sleep(0)

        def read() -> None:
            rng, room = random.Random(2), bytearray(3000)
            while len(got) < total:
                n = rng.randrange(3000)
                if rng.random() < 0.5:
                    with memoryview(room)[:n] as part:
                        got.extend(part[: ring.readinto(part)])
                else:
                    n = min(n, ring.readable)
                    with ring.read_view(n) as window:
                        got.extend(window)
                    ring.consumed(n)
                if not ring.readable:
                    time.sleep(0)

        in_threads(write, read)
        assert got == sequence


def test_big_copies_let_others_run() -> None:
    with Ring("32MiB") as ring:
        data, room = b"x" * (24 * MIB), bytearray(24 * MIB)
        done = threading.Event()

        def look() -> None:
            while not done.wait(0):
                assert 0 <= ring.readable <= ring.nbytes
                with pytest.raises(ValueError, match="are"):
                    ring.write_view(GIB)

        def work() -> None:
            try:
                for _ in range(5):
                    assert ring.write(data) == len(data) == ring.readinto(room)
                    assert room == data
            finally:
                done.set()

        in_threads(look, work)


def test_closed_while_others_use_it() -> None:
    for _ in range(100):
        ring = Ring(PAGE)
        barrier = threading.Barrier(3)

        def use(ring: Ring = ring, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            room = bytearray(100)
            try:
                while True:
                    ring.write(b"x" * 100)
                    ring.readinto(room)
                    assert ring.readable <= ring.nbytes
            except ValueError as error:
                assert "closed" in str(error)

        def close(ring: Ring = ring, barrier: threading.Barrier = barrier) -> None:
            barrier.wait()
            while not ring.closed:
                try:
                    ring.close()
                except BufferError:
                    time.sleep(0)

        in_threads(use, use, close)
    assert not mapped()


def test_shared_with_a_forks_child() -> None:
    with Ring(PAGE, lock=True) as ring, memoryview(ring) as view:
        ring.write(b"from the parent")

        def child() -> None:
            room = bytearray(100)
            assert ring.readinto(room) == 15 and room[:15] == b"from the parent"
            assert ring.write(b"from the child") == 14
            assert locked() == 0
            with pytest.raises(BufferError):
                ring.close()

        in_child(child)
        assert (ring.readable, ring.read_position) == (14, 15)
        room = bytearray(14)
        ring.readinto(room)
        assert room == b"from the child"
        # Shared memory is not copied on write: the fork made nothing fault.
        assert faults_writing(view) == 0


def test_a_child_may_close_its_own() -> None:
    with Ring(PAGE) as ring:
        in_child(ring.close)
        assert ring.write(b"x") == 1


# --- a model ----------------------------------------------------------------------------------------------------------


class RingMachine(RuleBasedStateMachine):
    """The model: a queue of bytes, and two counts."""

    sizes = st.one_of(st.integers(0, 3 * PAGE), st.sampled_from([0, 1, PAGE - 1, PAGE, PAGE + 1, 2 * PAGE]))

    @initialize(pages=st.integers(1, 3))
    def start(self, pages: int) -> None:
        self.ring = Ring(pages * PAGE)
        self.capacity = pages * PAGE
        self.queue = bytearray()
        self.written = self.read = 0
        self.source = self.bytes_of()

    def bytes_of(self) -> Iterator[int]:
        rng = random.Random(5)
        while True:
            yield rng.randrange(256)

    def next_bytes(self, n: int) -> bytes:
        return bytes(itertools.islice(self.source, n))

    def came(self, data: bytes) -> None:
        self.queue += data
        self.written += len(data)

    def went(self, n: int) -> bytes:
        data = bytes(self.queue[:n])
        del self.queue[:n]
        self.read += n
        return data

    @rule(n=sizes)
    def write(self, n: int) -> None:
        data = self.next_bytes(n)
        done = self.ring.write(data)
        assert done == min(n, self.capacity - len(self.queue))
        self.came(data[:done])

    @rule(n=sizes)
    def readinto(self, n: int) -> None:
        room = bytearray(n)
        done = self.ring.readinto(room)
        assert done == min(n, len(self.queue))
        assert room[:done] == self.went(done) and not any(room[done:])

    @rule(n=sizes, part=st.floats(0, 1))
    def write_view(self, n: int, part: float) -> None:
        if n > self.capacity - len(self.queue):
            with pytest.raises(ValueError):
                self.ring.write_view(n)
            with pytest.raises(ValueError):
                self.ring.produced(n)
            return
        data = self.next_bytes(n)
        with self.ring.write_view(n) as window:
            window[:] = data
        done = int(n * part)
        self.ring.produced(done)
        self.came(data[:done])

    @rule(n=sizes, part=st.floats(0, 1))
    def read_view(self, n: int, part: float) -> None:
        if n > len(self.queue):
            with pytest.raises(ValueError):
                self.ring.read_view(n)
            with pytest.raises(ValueError):
                self.ring.consumed(n)
            return
        done = int(n * part)
        with self.ring.read_view(n) as window:
            assert window == self.queue[:n]
        self.ring.consumed(done)
        self.went(done)

    @invariant()
    def counts(self) -> None:
        if hasattr(self, "ring"):
            assert (self.ring.readable, self.ring.writable) == (len(self.queue), self.capacity - len(self.queue))
            assert (self.ring.write_position, self.ring.read_position) == (self.written, self.read)
            with self.ring.read_view() as window:
                assert window == self.queue

    def teardown(self) -> None:
        if hasattr(self, "ring"):
            self.ring.close()


TestRingMachine = RingMachine.TestCase
TestRingMachine.settings = settings(
    max_examples=50, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck)
)
