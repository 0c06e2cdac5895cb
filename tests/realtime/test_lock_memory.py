"""arena.realtime.lock_memory: all of a process's memory, but of sparse reservations only what is committed."""

from __future__ import annotations

import resource
import textwrap
from collections.abc import Callable
from pathlib import Path

import machine
import pytest
from conftest import MIB, run_child
from test_lock import KINDS, limited

pytestmark = pytest.mark.slow  # the same on every CPython

HELP = """
import mmap, os, sys, threading
from arena import Arena, CommitError, LockError, Reservation
from arena.realtime import lock_memory, unlock_memory

def status(key):
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith(key + ":"))

def locked():
    return status("VmLck")

def index_rss():
    total = inside = 0
    for line in open("/proc/self/smaps", errors="replace"):
        first = line.split(maxsplit=1)[0]
        if not first.endswith(":"):
            start = int(first.split("-")[0], 16)
            inside = any(start == address for address in INDEX)
        elif inside and first == "Rss:":
            total += int(line.split()[1]) << 10
    return total

INDEX = ()
"""


@pytest.fixture
def run(child: Callable[..., str]) -> Callable[..., str]:
    """In a child: what is locked here would be so for the tests that follow."""
    return lambda code, **options: child(HELP + textwrap.dedent(code), **options)


@pytest.fixture(autouse=True)
def may_lock() -> None:
    done = run_child(HELP + "lock_memory()")
    if done.returncode:
        pytest.skip(f"this process may not lock its memory: {done.stderr.strip().splitlines()[-1]}")


def test_reservations_are_not_populated_but_what_is_committed_is_locked(run: Callable[..., str]) -> None:
    run(
        """
        lock_memory(); unlock_memory()  # what it populates of the rest of the process
        a, r = Arena("64GiB"), Reservation("64GiB", shared=True)
        p = Reservation("64GiB", path=".", shared=False)
        block = a.alloc("8MiB")
        r.commit("8MiB")
        before = status("VmRSS")
        lock_memory()
        assert status("VmRSS") - before < 1 << 20, status("VmRSS") - before
        assert a.residency().locked == r.residency().locked == 8 << 20
        assert p.residency().present == 0
        # And later: what is committed, and what is made.
        more = a.alloc("16MiB")
        p.commit("4MiB")
        new = Arena("64GiB")
        newer = new.alloc("4MiB")
        assert (a.residency().locked, p.residency().locked, new.residency().locked) == (24 << 20, 4 << 20, 4 << 20)
        before = locked(), status("VmRSS")
        del block, more, newer
        for each in (a, new):
            each.trim()
        p.release()
        assert a.residency().locked == new.residency().locked == p.residency().locked == 0
        assert a.residency().present == new.residency().present == 0
        assert before[0] - locked() == 32 << 20
        assert before[1] - status("VmRSS") >= 31 << 20
        unlock_memory()
        assert locked() == 0 and r.residency().locked == 0
        a.alloc("8MiB")
        assert locked() == 0
        """
    )


def test_the_rest_of_the_process_is_locked(run: Callable[..., str]) -> None:
    run(
        """
        import mmap
        there = mmap.mmap(-1, 8 << 20)
        lock_memory()
        assert locked() > 12 << 20
        later = mmap.mmap(-1, 4 << 20)
        def rss_of(size):
            text, inside = 0, False
            for line in open("/proc/self/smaps"):
                first = line.split(maxsplit=1)[0]
                if not first.endswith(":"):
                    start, end = (int(n, 16) for n in first.split("-"))
                    inside = end - start == size
                elif inside and first == "Locked:":
                    text += int(line.split()[1]) << 10
            return text
        assert rss_of(8 << 20) >= 8 << 20 and rss_of(4 << 20) >= 4 << 20
        unlock_memory()
        """
    )


def test_on_fault_populates_nothing(run: Callable[..., str]) -> None:
    run(
        """
        import mmap
        lock_memory(); unlock_memory()
        there = mmap.mmap(-1, 64 << 20)
        before = status("VmRSS")
        with lock_memory(on_fault=True):
            later = mmap.mmap(-1, 64 << 20)
            assert status("VmRSS") - before < 2 << 20
            assert locked() >= 128 << 20
        assert locked() == 0
        """
    )


def test_only_now_and_only_later(run: Callable[..., str]) -> None:
    run(
        """
        a = Arena("1GiB")
        block = a.alloc("2MiB")
        with lock_memory(current=False):
            assert locked() == 0
            more = a.alloc("2MiB")
            assert a.residency().locked == 2 << 20 and locked() < 3 << 20  # and a little bookkeeping
        assert locked() == 0
        with lock_memory(future=False):
            assert a.residency().locked == 4 << 20
            before = locked()
            more = a.alloc("2MiB"), Arena("1GiB").alloc("2MiB")
            assert a.residency().locked == 4 << 20
            a.trim()
        assert locked() == 0
        for nonsense in (dict(current=False, future=False),):
            try:
                lock_memory(**nonsense)
            except ValueError:
                pass
            else:
                raise SystemExit("no ValueError")
        """
    )


def test_what_lock_true_has_locked_stays_so(run: Callable[..., str]) -> None:
    run(
        """
        a = Arena("64GiB", lock=True)
        block = a.alloc("6MiB")
        with lock_memory():
            more = a.alloc("2MiB")
            assert a.residency().locked == 8 << 20
        assert locked() == a.residency().locked == 8 << 20
        del block
        a.trim()
        assert locked() == a.stats().committed == 2 << 20
        """
    )


def test_nesting(run: Callable[..., str]) -> None:
    run(
        """
        import mmap
        with lock_memory(future=False):
            outer = locked()
            assert outer
            with lock_memory(current=False):
                later = mmap.mmap(-1, 4 << 20)
                assert locked() >= outer + (4 << 20)
            last = mmap.mmap(-1, 8 << 20)
            assert outer <= locked() < outer + (8 << 20)  # `later` was there at the last lock_memory of what is there
            with lock_memory():
                unlock_memory()  # before its end: which then does nothing
            assert locked() >= outer
        assert locked() == 0
        try:
            unlock_memory()
        except RuntimeError as error:
            assert "no lock_memory()" in str(error)
        else:
            raise SystemExit("unlocked without a lock")
        try:
            with lock_memory():
                raise KeyError
        except KeyError:
            assert locked() == 0
        """
    )


def test_a_forks_child_inherits_none(run: Callable[..., str]) -> None:
    run(
        """
        a = Arena("64GiB")
        block = a.alloc("4MiB")
        with lock_memory():
            pid = os.fork()
            if pid == 0:
                status_code = 1
                try:
                    assert locked() == 0, locked()
                    try:
                        unlock_memory()
                    except RuntimeError as error:
                        assert "inherits no locks" in str(error), error
                    more = a.alloc("2MiB")
                    assert locked() == 0, "it locks what it commits, as its parent does"
                    with lock_memory():
                        # The pages are the parent's too, and the kernel counts half of each.
                        assert a.residency().locked == 4 << 20
                        a.warm("1MiB")
                        assert a.residency().locked == a.stats().committed >= 4 << 20
                    assert locked() == 0
                    status_code = 0
                except BaseException as error:
                    print(repr(error), file=sys.stderr, flush=True)
                finally:
                    os._exit(status_code)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            assert a.residency().locked == 4 << 20
        assert locked() == 0
        """
    )


def test_what_a_fork_made_copy_on_write_is_our_own_after_another_call(run: Callable[..., str]) -> None:
    """The interpreter's pages and the bookkeeping of arenas; what is committed with fork="drop" never was."""
    run(
        """
        import gc
        from arena import PageFaultError
        from arena.realtime import no_page_faults

        a = Arena("64GiB", fork="drop", lock=True)
        a.warm("8MiB")
        gc.disable()
        ones = bytes(256)

        def cycle():
            view = memoryview(a.alloc("1MiB", grow=False))
            view[::4096] = ones

        def fork():
            if (child := os.fork()) == 0:
                os._exit(0)
            os.waitpid(child, 0)

        guard = no_page_faults()

        def faults():
            try:
                with guard:
                    cycle()
            except PageFaultError as error:
                return error.minor
            return 0

        lock_memory()
        after_lock = []
        for _ in range(6):
            assert min(faults() for _ in range(200)) == 0
            fork()
            assert faults(), "the fork has made nothing copy-on-write"
            fork()
            with lock_memory():
                pass
            after_lock.append(faults())
        assert min(after_lock) == 0, after_lock
        """
    )


@pytest.mark.parametrize("memlock", [0, 64 * 1024, 8 * MIB])
def test_a_limit_that_is_too_small_says_what_to_do_and_locks_nothing(memlock: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if hard != resource.RLIM_INFINITY and hard < memlock:
        pytest.skip(f"RLIMIT_MEMLOCK is {hard} bytes")
    done = run_child(
        HELP
        + textwrap.dedent(
            """
            a = Arena("64GiB")
            block = a.alloc("2MiB")
            own = Reservation("64GiB", lock=True)
            try:
                own.commit("2MiB")
            except CommitError:
                assert LIMIT < 2 << 20
            before = locked()
            for options in ({}, {"on_fault": True}, {"future": False}):
                try:
                    lock_memory(**options)
                except LockError as error:
                    print(error)
                    assert error.available == LIMIT and error.op == "mlockall", error.available
                else:
                    raise SystemExit(f"all was locked with {LIMIT} bytes")
                assert locked() == before == own.committed
            more = a.alloc("2MiB")
            assert locked() == before
            """
        ).replace("LIMIT", str(memlock)),
        preexec=limited(memlock),
    )
    assert done.returncode == 0, done.stderr
    for word in ("RLIMIT_MEMLOCK", "limits.conf", "LimitMEMLOCK=", "--ulimit memlock", "IPC_LOCK", "securityContext"):
        assert word in done.stdout


LIMITED = """
MIB = 1 << 20
ones = b"1" * (2 * MIB)
lock_memory(current=False)
try:
    mmap.mmap(-1, 64 * MIB, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
except (OSError, MemoryError):
    pass
else:
    raise SystemExit("more can be mapped than may be locked")
"""


def test_what_is_made_later_counts_by_what_is_committed(tmp_path: Path) -> None:
    """Without CAP_IPC_LOCK, where mmap(2) says EAGAIN to anything larger than the limit."""
    code = """
    for options in KINDS:
        with Reservation("64GiB", **options) as r:
            before, rss = locked(), status("VmRSS")
            r.commit("2MiB")
            with r.view("2MiB") as view:
                view[:] = ones
            assert r.residency().locked == 2 * MIB, (options, r.residency())
            assert 2 * MIB <= locked() - before <= 2 * MIB + 65536, options  # and its page maps
            assert status("VmRSS") - rss < 3 * MIB, options
            try:
                r.commit("32MiB")
            except CommitError as error:
                assert error.op == "mlock" and "RLIMIT_MEMLOCK" in str(error), error
            else:
                raise SystemExit(f"{options}: 32 MiB locked, of 8 allowed")
            r.release()
            assert locked() - before <= 65536, options
    a = Arena("64GiB", fork="drop")
    block = a.alloc("1MiB")
    block[0] = 1
    assert a.residency().locked == a.stats().committed == 2 * MIB
    """
    kinds = [{**kind, "path": str(tmp_path)} if "path" in kind else kind for kind in KINDS]
    code = LIMITED + textwrap.dedent(code).replace("KINDS", repr(kinds))
    done = run_child(HELP + code, preexec=limited(8 * MIB))
    assert done.returncode == 0, done.stderr


def test_huge_pages_of_the_pool_have_to_be_mapped_before() -> None:
    code = """
    try:
        Reservation("64MiB", pages="2M")
    except OSError as error:
        assert "RLIMIT_MEMLOCK" in str(error), error
    else:
        raise SystemExit("the kernel has learned to grow mappings of huge pages")
    """
    with machine.huge_pages(4):
        done = run_child(HELP + LIMITED + textwrap.dedent(code), preexec=limited(8 * MIB))
    assert done.returncode == 0, done.stderr


def test_a_nested_lock_that_fails_leaves_the_outer_one(run: Callable[..., str]) -> None:
    run(
        """
        import mmap, resource, ctypes
        a = Arena("64GiB")
        block = a.alloc("2MiB")
        soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
        lock_memory(current=False)
        more = a.alloc("2MiB")
        assert a.residency().locked == 2 << 20
        header, data = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        libc = ctypes.CDLL(None)
        assert libc.capget(header, data) == 0
        data[0] &= ~(1 << 14)  # no CAP_IPC_LOCK from here on
        assert libc.capset(header, data) == 0
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (min(hard, 8 << 20) if hard != -1 else 8 << 20, hard))
        try:
            lock_memory()
        except LockError:
            pass
        else:
            raise SystemExit("all of Python was locked, in 8 MiB")
        more = [more, a.alloc("2MiB")]
        assert a.residency().locked == 2 << 20, "the outer one is not in force"
        unlock_memory()
        assert locked() == 0
        """
    )


def test_while_others_commit_and_make_and_drop_arenas(run: Callable[..., str]) -> None:
    run(
        """
        import time
        over = time.monotonic() + 3
        errors = []
        a = Arena("64GiB", pages="4K", chunk="64KiB", retain=0)
        def work(i):
            try:
                while time.monotonic() < over:
                    if i % 2:
                        new = Arena("64GiB")
                        block = new.alloc("1MiB")
                        assert block[0] == 0
                        del block, new
                    else:
                        block = a.alloc("8MiB")
                        block[5] = 1
                        del block
            except BaseException as error:
                errors.append(error)
        threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
        for t in threads: t.start()
        peak = rounds = 0
        while time.monotonic() < over:
            with lock_memory():
                peak = max(peak, status("VmRSS"))
            pid = os.fork()
            if pid == 0:
                os._exit(0)
            os.waitpid(pid, 0)
            rounds += 1
        for t in threads: t.join()
        assert not errors, errors
        # 64 GiB are reserved; free-threaded CPython has 1 GiB of its own.
        assert rounds > 2 and peak < 4 << 30, (rounds, peak)
        lock_memory()
        assert a.residency().present == a.stats().committed
        unlock_memory()
        assert locked() == 0
        """
    )


def test_a_commit_under_way_is_locked_as_it_should_be_in_the_end(run: Callable[..., str]) -> None:
    run(
        """
        import time
        def commit(r):
            thread = threading.Thread(target=r.commit)
            thread.start()
            time.sleep(0.05)
            return thread
        lock_memory()
        r = Reservation("1GiB", lock=True, pages="4K")
        thread = commit(r)
        unlock_memory()
        thread.join()
        assert r.residency().locked == locked() == 1 << 30, locked()
        r.close()
        with lock_memory():
            inner = lock_memory()
            r = Reservation("1GiB", pages="4K")
            thread = commit(r)
            unlock_memory()
            thread.join()
            assert r.residency().locked == 1 << 30
            r.close()
        r = Reservation("1GiB", pages="4K")
        thread = commit(r)
        with lock_memory():
            thread.join()
            assert r.residency().locked == 1 << 30
        assert locked() == 0
        """
    )


def test_a_signal_leaves_no_lock_that_nobody_knows_of(run: Callable[..., str]) -> None:
    run(
        """
        import signal
        class Alarm(Exception):
            pass
        def handler(*_):
            raise Alarm
        import mmap
        there = mmap.mmap(-1, 512 << 20)
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.03)
        try:
            lock_memory()
        except Alarm:
            pass
        else:
            raise SystemExit("the signal came too late")
        assert locked() == 0
        with lock_memory(current=False):
            inner = lock_memory(on_fault=True)
            signal.setitimer(signal.ITIMER_REAL, 0.003)
            try:
                while True:
                    unlock_memory()
                    lock_memory(on_fault=True)
            except Alarm:
                pass
        signal.setitimer(signal.ITIMER_REAL, 0)
        from arena.realtime import locking
        while locking._in_force:
            unlock_memory()
        assert locked() == 0
        """
    )


def test_a_fork_in_the_middle_of_another_threads_lock(run: Callable[..., str]) -> None:
    run(
        """
        import mmap, time
        there = mmap.mmap(-1, 512 << 20)
        thread = threading.Thread(target=lock_memory)
        thread.start()
        time.sleep(0.02)
        pid = os.fork()
        if pid == 0:
            import signal
            signal.alarm(20)
            with lock_memory(on_fault=True):
                pass
            os._exit(0 if locked() == 0 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        thread.join()
        unlock_memory()
        """
    )


def test_each_with_ends_its_own_lock(run: Callable[..., str]) -> None:
    run(
        """
        first = lock_memory(current=False)
        second = lock_memory()
        with first:
            pass
        assert locked() > 0
        try:
            first.__enter__()
        except RuntimeError as error:
            assert "not in force" in str(error)
        else:
            raise SystemExit("entered twice")
        with second:
            pass
        assert locked() == 0
        """
    )


def test_a_file_with_a_strange_name(run: Callable[..., str], tmp_path: object) -> None:
    run(
        """
        import mmap
        with open(os.path.join(FOLDER, "x [vdso] [v].bin"), "w+b") as file:
            file.truncate(4 << 20)
            there = mmap.mmap(file.fileno(), 4 << 20)
        with lock_memory():
            inside = False
            for line in open("/proc/self/smaps"):
                if ".bin" in line:
                    inside = True
                elif inside and line.startswith("Locked:"):
                    assert int(line.split()[1]) == 4096, line
                    break
        """.replace("FOLDER", repr(str(tmp_path)))
    )


def test_what_a_commit_that_fails_had_in_its_hands_is_locked_too(run: Callable[..., str]) -> None:
    """lock_memory() leaves out the range of a commit under way; whatever becomes of that, what is there is locked."""
    run(
        """
        def locked_at(address):
            inside = False
            for line in open("/proc/self/smaps", errors="replace"):
                first = line.split(maxsplit=1)[0]
                if not first.endswith(":"):
                    start, end = (int(x, 16) for x in first.split("-"))
                    inside = start <= address < end
                elif inside and first == "Locked:":
                    return int(line.split()[1]) << 10

        r = Reservation("1GiB", pages="4K")
        r.commit("1MiB", offset=0)
        def lock_and_stop(done, total):
            lock_memory()
            raise KeyError
        assert locked_at(r.address) == 0
        try:
            r.commit("4MiB", offset=0, progress=lock_and_stop)
        except KeyError:
            pass
        else:
            raise SystemExit("it went on")
        assert r.committed == 1 << 20, r.committed
        assert locked_at(r.address) == 1 << 20, locked_at(r.address)
        unlock_memory()
        assert locked_at(r.address) == 0
        """
    )
