"""count_page_faults and no_page_faults: this thread's faults, of every kind there is, and where they were."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import ctypes
import errno
import gc
import mmap
import os
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import SUPPORT, in_child, run_child
from measure import PAGE, quietest

from arena import Arena, ArenaError, PageFaultError
from arena.realtime import PageFault, count_page_faults, no_page_faults

PRELUDE = """
import ctypes, errno, gc, mmap, os, resource, sys
from kernel import answer, cannot, drop_capabilities
from measure import quietest
from arena import PageFaultError
from arena.realtime import count_page_faults, no_page_faults

def fresh(pages):
    m = mmap.mmap(-1, pages * mmap.PAGESIZE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    m.madvise(mmap.MADV_NOHUGEPAGE)
    return m

def address(m):
    return ctypes.addressof(ctypes.c_char.from_buffer(m))

def caught(guard, work, *args):
    try:
        with guard:
            work(*args)
    except PageFaultError as error:
        return error
    raise AssertionError("no fault")

def refused(guard, pages):
    m = fresh(pages)
    return m, caught(guard, ctypes.memset, address(m), 1, len(m))
"""

GUARDS: list[Any] = [True, False, "lines"]


def fresh(pages: int) -> mmap.mmap:
    """Memory without a page."""
    m = mmap.mmap(-1, pages * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    m.madvise(mmap.MADV_NOHUGEPAGE)
    return m


def address(m: Any) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(m))


def refuses_none_of(work: Callable[[], object]) -> None:
    """What faults does it in each round; the interpreter's own pages in the first, after a fork, and now and then."""
    guard = no_page_faults()
    refused: list[PageFaultError] = []
    for _ in range(300):
        try:
            with guard:
                work()
        except PageFaultError as error:
            refused.append(error)
    assert len(refused) < 150, refused[-1]


def fault(pages: int) -> int:
    """Faults so often, and gives where first. By calls that are rehearsed and allocate next to nothing."""
    old, m = bytearray(16 * PAGE), fresh(pages)
    at = address(m)
    for _ in range(300):
        ctypes.memset(address(old), 1, len(old))
    ctypes.memset(at, 1, pages * PAGE)
    return at


def faults_refused(guard: no_page_faults, pages: int) -> tuple[int, PageFaultError]:
    """Writes to so many new pages under the guard; where they were, and what it said."""

    def attempt() -> tuple[int, PageFaultError]:
        m = fresh(pages)
        at, nbytes = address(m), pages * PAGE
        with pytest.raises(PageFaultError) as caught, guard:
            ctypes.memset(at, 1, nbytes)
        return at, caught.value

    return quietest(attempt)


@pytest.fixture(autouse=True)
def no_collection() -> Iterator[None]:
    """It faults when it likes."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def perf() -> None:
    done = run_child(PRELUDE + "e = caught(no_page_faults(), lambda: fresh(1).write(b'x')); assert e.where, e", **PATHS)
    if done.returncode:
        pytest.skip(f"page faults cannot be sampled here: {done.stderr.strip().splitlines()[-1]}")


PATHS: dict[str, Any] = {"PYTHONPATH": str(SUPPORT)}


@pytest.fixture
def run(child: Callable[..., str]) -> Callable[..., str]:
    return lambda code, **options: child(PRELUDE + textwrap.dedent(code), **PATHS, **options)


def test_what_is_counted_is_this_threads_faults() -> None:
    count = count_page_faults()
    assert (count.minor, count.major) == (0, 0)
    for pages in (1, 7, 64):
        counts = []
        for _ in range(6):  # a page of the interpreter's own faults in one or another
            m = fresh(pages)
            at, nbytes = address(m), pages * PAGE
            with count as same:
                ctypes.memset(at, 1, nbytes)
                inside = count.minor
                ctypes.memset(at, 1, nbytes)
            counts.append((inside, count.minor, count.major))
        assert same is count
        assert min(counts) == (pages, pages, 0)
    again = []
    for _ in range(6):
        with count:
            pass
        again.append((count.minor, count.major))
    assert min(again) == (0, 0)


def test_blocks_within_each_other_of_one_object_or_of_several() -> None:
    outer, inner = count_page_faults(), count_page_faults()
    counts = []
    for _ in range(6):
        a, b, c = (address(fresh_kept(n)) for n in (2, 3, 4))
        with outer:
            ctypes.memset(a, 1, 2 * PAGE)
            with inner:
                ctypes.memset(b, 1, 3 * PAGE)
                with inner:
                    ctypes.memset(c, 1, 4 * PAGE)
                innermost = inner.minor
            assert inner.minor >= 7
        assert innermost >= 3
        counts.append((inner.minor, outer.minor))
    assert min(counts) == (7, 9)


kept: list[mmap.mmap] = []


def fresh_kept(pages: int) -> mmap.mmap:
    kept.append(fresh(pages))
    return kept[-1]


@pytest.mark.parametrize("where", GUARDS)
def test_any_fault_is_refused_and_the_error_says_how_many(where: Any) -> None:
    _, error = faults_refused(no_page_faults(where=where), 5)
    assert isinstance(error, (ArenaError, RuntimeError))
    assert (error.minor, error.major) == (5, 0)
    assert "5 page faults (5 minor, 0 major) where no minor faults are allowed" in str(error)
    assert error.hint and error.hint in str(error)


def test_where_each_of_them_was(perf: None) -> None:
    at, error = faults_refused(no_page_faults(), 5)
    assert [f.address // PAGE * PAGE for f in error.where] == [at + i * PAGE for i in range(5)]
    first = error.where[0]
    assert isinstance(first, PageFault)
    assert first.address == at and (first.file, first.line) == (None, None)
    assert "libc" in first.symbol and first.mapping
    assert f"{at:#x} in {first.mapping}, by {first.symbol}" in str(error)


def test_the_first_64_of_more(perf: None) -> None:
    at, error = faults_refused(no_page_faults(), 1000)
    assert error.minor == 1000
    assert [f.address // PAGE * PAGE for f in error.where] == [at + i * PAGE for i in range(64)]
    # And it notes again, after as many faults that were nobody's.
    m = fresh(1000)
    ctypes.memset(address(m), 1, len(m))
    at, error = faults_refused(no_page_faults(), 2)
    assert [f.address // PAGE * PAGE for f in error.where] == [at, at + PAGE]


def test_the_name_of_what_is_mapped_and_the_call_that_faulted_inside_the_kernel(perf: None, tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+b") as file, open("/dev/zero", "rb", buffering=0) as zero:
        file.truncate(4 * PAGE)
        for _ in range(3):
            m = mmap.mmap(file.fileno(), 4 * PAGE, flags=mmap.MAP_PRIVATE)
            view = memoryview(m)[PAGE : PAGE + 10]
            with pytest.raises(PageFaultError) as caught, no_page_faults():
                zero.readinto(view)
    if not caught.value.where:
        pytest.skip("faults inside the kernel may not be sampled here")
    first = caught.value.where[0]
    assert address(m) + PAGE <= first.address < address(m) + PAGE + 10
    assert first.mapping == str(tmp_path / "file")
    assert first.symbol.startswith("read+")


def test_an_outer_block_has_the_addresses_of_the_inner_ones(perf: None) -> None:
    def attempt() -> tuple[list[int], PageFaultError]:
        a, b = address(fresh_kept(1)), address(fresh_kept(1))
        with pytest.raises(PageFaultError) as outer, no_page_faults():  # noqa: PT012
            ctypes.memset(a, 1, 1)
            with no_page_faults(allow_minor=99):
                ctypes.memset(b, 1, 1)
        return [a, b], outer.value

    addresses, error = quietest(attempt)
    assert [f.address for f in error.where] == addresses


def test_populated_inside_a_call_is_counted_and_has_no_address(perf: None) -> None:
    def attempt() -> tuple[None, PageFaultError]:
        m = fresh(4)
        with pytest.raises(PageFaultError) as caught, no_page_faults():
            m.madvise(23)  # MADV_POPULATE_WRITE
        return None, caught.value

    _, error = quietest(attempt)
    assert error.minor == 4
    assert error.where == []
    assert "inside system calls" in str(error)


def test_what_an_arena_has_committed_does_not_fault() -> None:
    with Arena("1GiB") as a:
        a.warm("8MiB")

        def cycle() -> None:
            block = a.alloc("4MiB", grow=False)
            ctypes.memset(block.address, 1, 4 << 20)

        refuses_none_of(cycle)


def test_so_many_minor_ones_may_be_allowed() -> None:
    faults_refused(no_page_faults(allow_minor=4), 5)
    counts = []
    for _ in range(6):
        at = address(fresh_kept(5))
        count = no_page_faults(allow_minor=50)
        with count:
            ctypes.memset(at, 1, 5 * PAGE)
        counts.append(count.minor)
    assert min(counts) == 5 and count.allow_minor == 50


def test_a_major_one_never_is(tmp_path: Path) -> None:
    path = tmp_path / "cold"
    path.write_bytes(b"x" * 64 * PAGE)
    count = no_page_faults(allow_minor=1000)
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        m = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        try:
            with count:
                m[0]
        except PageFaultError as error:
            assert error.major == count.major > 0
        else:
            assert count.major == 0
            pytest.skip(f"what is read of {path} is never read from a disk")


def test_each_thread_has_its_own_even_of_one_object() -> None:
    guard = no_page_faults()
    found: dict[int, list[int]] = {n: [] for n in range(4)}
    start = threading.Barrier(4)

    def work(n: int) -> None:
        for _ in range(50):
            at = address(fresh_kept(n + 1))
            start.wait()
            try:
                with guard:
                    ctypes.memset(at, 1, n * PAGE)
                found[n].append(0)
            except PageFaultError as error:
                found[n].append(error.minor)

    threads = [threading.Thread(target=work, args=(n,)) for n in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {n: sorted(each)[len(each) // 2] for n, each in found.items()} == {0: 0, 1: 1, 2: 2, 3: 3}


def test_what_another_thread_faults_is_its_own_business() -> None:
    go, done, stop = threading.Semaphore(0), threading.Semaphore(0), threading.Event()

    def other() -> None:
        while go.acquire() and not stop.is_set():
            m = fresh(100)
            ctypes.memset(address(m), 1, len(m))
            done.release()

    def together() -> None:
        go.release()
        done.acquire()

    thread = threading.Thread(target=other)
    thread.start()
    refuses_none_of(together)
    stop.set()
    go.release()
    thread.join()


def test_a_block_ends_in_the_thread_where_it_began() -> None:
    guard = no_page_faults()
    guard.__enter__()
    said: list[BaseException] = []

    def elsewhere() -> None:
        try:
            guard.__exit__(None, None, None)
        except RuntimeError as error:
            said.append(error)

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert "ends in the thread where it began" in str(said[0])
    guard.__exit__(KeyError, KeyError(), None)  # here it is still open
    with pytest.raises(RuntimeError, match="in no block of this no_page_faults"):
        guard.__exit__(None, None, None)


@pytest.mark.parametrize("where", GUARDS)
@pytest.mark.parametrize("kind", [KeyError, KeyboardInterrupt, StopIteration, PageFaultError])
def test_an_exception_goes_on_unchanged(kind: type[BaseException], where: Any) -> None:
    raised = kind("mine")
    guard = no_page_faults(where=where)
    m = fresh(3)
    with pytest.raises(kind) as caught, guard:  # noqa: PT012
        ctypes.memset(address(m), 1, len(m))
        raise raised
    assert caught.value is raised
    assert raised.__cause__ is None and raised.__context__ is None
    assert not getattr(raised, "__notes__", None)
    assert guard.minor >= 3


def test_functions_are_decorated_and_may_be_recursive() -> None:
    count = count_page_faults()

    @count
    def write(at: int, deeper: int = 0) -> str:
        """Its own words."""
        ctypes.memset(at, 1, PAGE)
        if deeper:
            write(at + PAGE, deeper - 1)
        return "written"

    counts = []
    for _ in range(6):
        assert write(address(fresh_kept(4)), 3) == "written"
        counts.append(count.minor)
    assert min(counts) == 4
    assert (write.__name__, write.__doc__) == ("write", "Its own words.")
    with pytest.raises(PageFaultError):
        no_page_faults()(lambda: fault(1))()


def test_coroutines_are_decorated_and_may_overlap() -> None:
    count = count_page_faults()
    order: list[str] = []
    seen: list[int] = []

    @count
    async def task(name: str, pages: int, gate: asyncio.Event, opens: asyncio.Event) -> str:
        order.append(f"{name} begins")
        ctypes.memset(address(fresh_kept(pages)), 1, pages * PAGE)
        opens.set()
        await gate.wait()
        order.append(f"{name} ends")
        return name

    async def main() -> None:
        first, second, third = asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def a() -> None:
            # Ends first, and began first: not as blocks nest.
            assert await task("a", 10, second, first) == "a"
            seen.append(count.minor)
            third.set()

        async def b() -> None:
            await first.wait()
            assert await task("b", 20, third, second) == "b"
            seen.append(count.minor)

        await asyncio.gather(a(), b())

    for _ in range(3):
        order.clear()
        seen.clear()
        asyncio.run(main())
    assert order == ["a begins", "b begins", "a ends", "b ends"]
    assert asyncio.iscoroutinefunction(task)
    # What the thread did meanwhile counts for both.
    assert seen[0] >= 30 and 20 <= seen[1] < 30, seen


def test_an_await_in_a_block() -> None:
    async def main() -> None:
        guard = no_page_faults(allow_minor=1 << 20)
        counts: list[int] = []
        for _ in range(300):
            with guard:
                await asyncio.sleep(0)
            counts.append(guard.minor)
        assert min(counts) == 0
        with pytest.raises(PageFaultError):
            await no_page_faults()(faulting)()

    async def faulting() -> None:
        fault(1)

    asyncio.run(main())


def test_generators_are_refused_for_their_consumers_run_in_between() -> None:
    def generator() -> Iterator[None]:
        yield

    async def asynchronous() -> Any:
        yield

    for function in (generator, asynchronous):
        with pytest.raises(TypeError, match="consumer runs in between"):
            no_page_faults()(function)


def test_nonsense() -> None:
    assert no_page_faults(1 << 70).allow_minor == (1 << 63) - 1
    for bad in (-1, -(1 << 70)):
        with pytest.raises(ValueError, match="allow_minor"):
            no_page_faults(bad)
    for worse in ("1", None, 1.5, fault):
        with pytest.raises(TypeError):
            no_page_faults(worse)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="where must be True, False or 'lines'"):
        no_page_faults(where="line")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="decorates functions"):
        no_page_faults()(3)  # type: ignore[type-var]
    with pytest.raises(TypeError):
        count_page_faults(1)  # type: ignore[call-arg]
    for guard in (count_page_faults(), no_page_faults()):
        with pytest.raises(TypeError):
            copy.copy(guard)  # it would count for the other


def test_many_blocks_open_at_once() -> None:
    counts = [count_page_faults() for _ in range(100)]
    for count in counts:
        count.__enter__()
    at = fault(3)
    assert at
    for count in counts:  # and in the order they were opened
        count.__exit__(None, None, None)
    assert all(count.minor >= 3 for count in counts)


def descriptors() -> list[str]:
    """Of perf events, and files in memory that have a stack in them."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return [name for name in found if "perf_event" in name or "memfd:page faults" in name]


def test_a_thread_that_ends_leaves_nothing_behind() -> None:
    def work() -> None:
        with pytest.raises(PageFaultError), no_page_faults():
            fault(1)

    work()
    before = descriptors()
    for _ in range(5):
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    # join() returns a little before the thread is at its end.
    deadline = time.monotonic() + 10
    while descriptors() != before and time.monotonic() < deadline:
        time.sleep(0.01)
    assert descriptors() == before


def test_a_forks_child_begins_anew_and_takes_no_descriptor_along(perf: None) -> None:
    faults_refused(no_page_faults(), 1)
    count, guard = count_page_faults(), no_page_faults()
    m = fresh(9)
    holding, leave = threading.Event(), threading.Event()

    def elsewhere() -> None:  # its watch is not the child's either
        with no_page_faults(allow_minor=10**6):
            holding.set()
            leave.wait()

    thread = threading.Thread(target=elsewhere)
    thread.start()
    holding.wait()
    assert len(descriptors()) == 2

    def child() -> None:
        assert descriptors() == []
        ctypes.memset(address(m), 1, len(m))
        assert 9 <= count.minor < 100_000
        count.__exit__(None, None, None)
        with pytest.raises(PageFaultError) as caught:
            guard.__exit__(None, None, None)
        assert caught.value.minor >= 9 and caught.value.where == []
        at, error = faults_refused(no_page_faults(), 2)
        assert [f.address for f in error.where] == [at, at + PAGE]

    count.__enter__()
    guard.__enter__()
    try:
        in_child(child)
    finally:
        guard.__exit__(KeyError, KeyError(), None)
        count.__exit__(None, None, None)
        leave.set()
        thread.join()
    at, error = faults_refused(no_page_faults(), 2)
    assert [f.address for f in error.where] == [at, at + PAGE]


# The Python line.


def two_lines(at: int) -> None:
    ctypes.memset(at, 1, 1)
    ctypes.memset(at, 1, 1)
    sum(range(3))
    ctypes.memset(at + PAGE, 1, 1)


FIRST = two_lines.__code__.co_firstlineno


def test_the_line_of_python_of_each(perf: None) -> None:
    guard = no_page_faults(where="lines")

    def attempt() -> tuple[int, PageFaultError]:
        at = address(fresh_kept(2))
        with pytest.raises(PageFaultError) as caught, guard:
            two_lines(at)
        assert len(caught.value.where) <= caught.value.minor  # and none of what begins and ends the recording
        return at, caught.value

    at, error = quietest(attempt)
    assert [(f.address, f.file, f.line) for f in error.where] == [
        (at, __file__, FIRST + 1),
        (at + PAGE, __file__, FIRST + 4),
    ]
    assert f"{__file__}:{FIRST + 1}" in str(error)


def test_lines_in_a_thread_and_not_twice_at_once(perf: None) -> None:
    errors: list[PageFaultError] = []

    def attempt() -> tuple[None, PageFaultError]:
        at = address(fresh_kept(2))
        with pytest.raises(PageFaultError) as caught, no_page_faults(where="lines"):
            two_lines(at)
        return None, caught.value

    def work() -> None:
        errors.append(quietest(attempt)[1])

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert [f.line for f in errors[-1].where] == [FIRST + 1, FIRST + 4]
    with no_page_faults(allow_minor=10**6, where="lines"):
        work()
    assert errors[-1].where == [] and "another block records lines" in str(errors[-1])
    before = descriptors()
    work()
    assert [f.line for f in errors[-1].where] == [FIRST + 1, FIRST + 4]
    assert descriptors() == before


def test_the_guards_own_code_does_not_fault(perf: None, run: Callable[..., str]) -> None:
    run(
        """
        from arena import _realtime
        libc = ctypes.CDLL(None)

        def drop_code():
            # As nobody has run any of it: where it was loaded by a parent, for one.
            for line in open("/proc/self/maps"):
                span, rights, *_, path = line.split(maxsplit=5)
                if path.strip() == _realtime.__file__ and "x" in rights:
                    start, end = (int(part, 16) for part in span.split("-"))
                    assert libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), 4) == 0

        def first_block():
            drop_code()
            m = fresh(3)
            error = caught(no_page_faults(), ctypes.memset, address(m), 1, len(m))
            assert not [fault for fault in error.where if fault.mapping == _realtime.__file__], error

        first_block()
        pid = os.fork()
        if pid == 0:
            first_block()
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        """
    )


def test_a_signal_that_comes_late_does_no_harm(perf: None, run: Callable[..., str]) -> None:
    run(
        """
        import signal
        signal.signal(signal.SIGRTMAX, signal.SIG_DFL)
        for _ in range(2):
            m = fresh(1)
            caught(no_page_faults(where="lines"), ctypes.memset, address(m), 1, 1)
            signal.raise_signal(signal.SIGRTMAX)
        """
    )


# Where perf_event_open(2) is refused.


@pytest.mark.parametrize("err", [errno.EACCES, errno.EPERM, errno.ENOSYS, errno.EMFILE])
def test_without_perf_events_it_counts_and_says_why_there_is_no_more(run: Callable[..., str], err: int) -> None:
    said = run(
        f"""
        answer({err}, "perf_event_open")
        for where in (True, "lines"):
            guard = no_page_faults(where=where)
            _, e = quietest(lambda: refused(guard, 3))
            assert (e.minor, e.where) == (3, []), (e, e.where)
            print(e)
        """
    )
    assert said.count(f"perf_event_open(2) says {errno.errorcode[err]}") == 2
    what = {errno.ENOSYS: "no perf events", errno.EMFILE: "RLIMIT_NOFILE"}.get(err, "CAP_PERFMON")
    assert all(what in line for line in said.splitlines())


def test_without_the_right_to_watch_the_kernel_it_watches_this_program(run: Callable[..., str]) -> None:
    """kernel.perf_event_paranoid of 2 and no CAP_PERFMON: anybody on most machines."""
    if int(Path("/proc/sys/kernel/perf_event_paranoid").read_text()) != 2:
        pytest.skip("kernel.perf_event_paranoid is not 2")
    run(
        """
        drop_capabilities(21, 38, 14)  # SYS_ADMIN, PERFMON, IPC_LOCK
        zero = os.open("/dev/zero", os.O_RDONLY)
        def attempt():
            m = fresh(3)
            view = memoryview(m)[2 * mmap.PAGESIZE:]
            def work():
                ctypes.memset(address(m), 1, mmap.PAGESIZE)
                os.readv(zero, [view])
            return m, caught(no_page_faults(), work)
        m, e = quietest(attempt)
        assert e.minor == 2 or e.minor == 3, e
        assert [f.address for f in e.where] == [address(m)], e.where
        """
    )


def test_with_no_descriptor_left_a_block_still_counts(run: Callable[..., str]) -> None:
    run(
        """
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        m = fresh(3)
        for where in (True, "lines"):
            e = caught(no_page_faults(where=where), ctypes.memset, address(m), 1, len(m))
            assert e.minor >= 3 and not e.where and "RLIMIT_NOFILE" in str(e), e
            m = fresh(3)
        """
    )


def test_a_steady_block_makes_no_other_system_call(run: Callable[..., str]) -> None:
    """From here on every perf_event_open and ioctl fails, and nobody notices."""
    run(
        """
        guard = no_page_faults()
        def work():
            with guard:
                pass
        try:
            work()
        except PageFaultError:
            pass
        answer(errno.EPERM, "perf_event_open")
        answer(errno.EPERM, "ioctl")
        for _ in range(1000):
            work()
        m = fresh(1)
        e = caught(guard, ctypes.memset, address(m), 1, 1)
        assert e.minor >= 1
        """
    )
