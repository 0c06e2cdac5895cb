"""arena.realtime.prepare: the recipe before a loop, each ingredient by its effect, and all of it put back."""

from __future__ import annotations

import os
import resource
import textwrap
from collections.abc import Callable
from typing import Any

import pytest
from conftest import SUPPORT, run_child

from arena import CommitError
from arena.realtime import prepare, restore

PRELUDE = """
import ctypes, errno, gc, os, resource, threading, warnings
from kernel import drop_capabilities
from arena import CommitError
from arena.realtime import count_page_faults, no_page_faults, prepare, restore

libc = ctypes.CDLL(None)
libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
libc.free.argtypes = [ctypes.c_void_p]
libc.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
MIB = 1 << 20

class Mallinfo(ctypes.Structure):
    _fields_ = [(n, ctypes.c_size_t) for n in ("arena", "ordblks", "smblks", "hblks", *"abcdef")]

libc.mallinfo2.restype = Mallinfo

def churn(nbytes):
    at = libc.malloc(nbytes)
    libc.memset(at, 1, nbytes)
    libc.free(at)

def maps_large_blocks(n=40 * MIB):  # as malloc does by itself
    before = libc.mallinfo2().hblks
    at = libc.malloc(n)
    after = libc.mallinfo2().hblks
    libc.free(at)
    return after == before + 1

def faults(work, *args):
    count = count_page_faults()
    with count:
        pass
    work(*args)  # what the first call of all needs is not counted
    counts = []
    for _ in range(3):  # a page of the interpreter's own faults in one or another
        with count:
            work(*args)
        counts.append(count.minor)
    return min(counts)

def rss():
    return int(open("/proc/self/statm").read().split()[1]) << 12

def state():
    return (gc.isenabled(), gc.get_freeze_count() > 1000, os.sched_getscheduler(0), os.sched_getparam(0).sched_priority,
            os.sched_getaffinity(0))
"""
PATHS: dict[str, Any] = {"PYTHONPATH": str(SUPPORT)}


@pytest.fixture
def run(child: Callable[..., str]) -> Callable[..., str]:
    """In a child: malloc and the collector would be prepared for the tests that follow."""
    return lambda code, **options: child(PRELUDE + textwrap.dedent(code), **PATHS, **options)


glibc = pytest.mark.skipif(os.confstr("CS_GNU_LIBC_VERSION") is None, reason="malloc cannot be told here: not glibc")


@pytest.fixture
def may_schedule() -> None:
    done = run_child(PRELUDE + "prepare(stack=0, heap=0, gc='leave', sched=1)", **PATHS)
    if done.returncode:
        pytest.skip(f"no SCHED_FIFO here: {done.stderr.strip().splitlines()[-1]}")


@glibc
def test_what_malloc_gives_is_present_and_kept(run: Callable[..., str]) -> None:
    run(
        """
        assert faults(churn, 40 * MIB) > 10  # mapped anew each time, huge pages or not
        before = rss()
        with prepare(stack=0, heap="64MiB", gc="leave") as prepared:
            assert prepared.heap == 64 * MIB
            assert rss() - before > 60 * MIB
            count = count_page_faults()
            with count:
                churn(40 * MIB)
            assert count.minor < 5, count.minor  # the first touch of all
            assert faults(churn, 40 * MIB) == 0
            blocks = [libc.malloc(MIB // 4) for _ in range(200)]
            for at in blocks:
                libc.free(at)
            assert faults(churn, 60 * MIB) == 0
            # More than was asked for comes once, and is kept too.
            assert faults(churn, 100 * MIB) == 0
            assert not maps_large_blocks()
        assert rss() - before < 20 * MIB, rss() - before
        assert maps_large_blocks(400 * MIB)  # more than the heap has address space for by now
        """
    )


def test_the_stack_is_there(run: Callable[..., str]) -> None:
    run(
        """
        def main_stack():
            for line in open("/proc/self/smaps"):
                if "[stack]" in line:
                    inside = True
                elif line.startswith("Rss:") and "inside" in locals():
                    return int(line.split()[1]) << 10

        before = main_stack()
        assert before < MIB, before
        p = prepare(stack="2MiB", heap=0, gc="leave")
        assert p.stack == 2 * MIB
        assert main_stack() >= 2 * MIB
        """
    )


def test_the_stack_of_another_thread(run: Callable[..., str]) -> None:
    said = run(
        """
        threading.stack_size(4 * MIB)
        def work():
            before = rss()
            prepare(stack="3MiB", heap=0, gc="leave")
            grown = rss() - before
            assert grown > 2.5 * MIB, grown
            try:
                prepare(stack="4MiB", heap=0, gc="leave")
            except CommitError as error:
                assert error.op == "stack" and error.requested == 4 * MIB, error.__dict__
                assert 3 * MIB < error.available < 4 * MIB
                assert "threading.stack_size()" in str(error)
                print("refused")
            # As much as is left, and no more: the guard page is not touched.
            prepare(stack=error_available(), heap=0, gc="leave")
            print("all")
        def error_available():
            try:
                prepare(stack="1GiB", heap=0, gc="leave")
            except CommitError as error:
                return error.available - 16384
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
        print("done")
        """
    )
    assert said.split() == ["refused", "all", "done"]


@pytest.mark.parametrize("limit", [256 << 10, 1 << 20, 8 << 20, resource.RLIM_INFINITY])
def test_the_main_stack_within_its_limit(run: Callable[..., str], limit: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    said = run(
        """
        try:
            prepare(stack="1TiB", heap=0, gc="leave")
        except CommitError as error:
            left = error.available
            # Without a limit, it is the machine that has no such memory.
            assert "RLIMIT_STACK" in str(error) or resource.getrlimit(resource.RLIMIT_STACK)[0] == -1, error
        print(left)
        prepare(stack=min(left - 16384, 64 * MIB), heap=0, gc="leave")
        """,
        preexec=lambda: resource.setrlimit(resource.RLIMIT_STACK, (limit, hard)),
    )
    if limit != resource.RLIM_INFINITY:
        assert limit // 4 < int(said) < limit


def test_collection_is_off_and_what_there_is_frozen(run: Callable[..., str]) -> None:
    run(
        """
        with prepare(stack=0, heap=0):
            assert not gc.isenabled() and gc.get_freeze_count() > 1000
        assert gc.isenabled() and gc.get_freeze_count() < 1000
        with prepare(stack=0, heap=0, gc="off"):
            assert not gc.isenabled() and gc.get_freeze_count() < 1000
        with prepare(stack=0, heap=0, gc="leave"):
            assert gc.isenabled()
        # What was off, or frozen by others, stays so.
        gc.disable()
        gc.freeze()
        with prepare(stack=0, heap=0):
            pass
        assert not gc.isenabled() and gc.get_freeze_count() > 1000
        """
    )


def test_priority_and_cpus(run: Callable[..., str], may_schedule: None) -> None:
    run(
        """
        before = state()
        cpu = min(before[-1])
        with prepare(stack=0, heap=0, gc="leave", sched=7, affinity=cpu):
            assert state()[2:] == (os.SCHED_FIFO, 7, {cpu})
        assert state() == before
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(3))
        before = state()
        with prepare(stack=0, heap=0, gc="leave", sched=9, affinity=before[-1]):
            assert state()[2:4] == (os.SCHED_FIFO, 9)
        assert state() == before
        """
    )


def test_calls_nest_and_the_last_of_the_process_ends_what_is_the_processs(
    run: Callable[..., str], may_schedule: None
) -> None:
    run(
        """
        before = state()
        prepare(heap="1MiB", sched=2)
        middle = state()
        prepare(heap="2MiB", sched=4, gc="off")
        assert os.sched_getparam(0).sched_priority == 4
        inside = threading.Event(), threading.Event()
        def other():
            with prepare(stack="64KiB", heap="1MiB", gc="off"):
                inside[0].set()
                inside[1].wait()
        thread = threading.Thread(target=other)
        thread.start()
        inside[0].wait()
        restore()
        assert state() == middle
        restore()
        assert not gc.isenabled() and gc.get_freeze_count() < 1000 and state()[2:] == before[2:]
        inside[1].set()
        thread.join()
        assert state() == before
        # A block after whose beginning another was made ends that too; one that was ended inside is not ended again.
        with prepare(stack=0, heap=0):
            prepare(stack=0, heap=0)
        assert state() == before
        with prepare(stack=0, heap=0, gc="leave"):
            restore()
        assert state() == before
        """
    )


def test_restore_without_prepare(run: Callable[..., str]) -> None:
    with pytest.raises(RuntimeError, match="no prepare"):
        restore()
    said = run(
        """
        p = prepare(stack=0, heap=0)
        def other():
            for end in (restore, lambda: p.__exit__(None, None, None)):
                try:
                    end()
                except RuntimeError as error:
                    print(error)
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
        assert not gc.isenabled()
        p.__exit__(None, None, None)
        assert gc.isenabled()
        """
    )
    assert said.splitlines() == [
        "this thread has called no prepare() that is in force",
        "this block is a thread's own, and ends in another than it began in",
    ]


def test_a_forks_child_can_restore(run: Callable[..., str]) -> None:
    run(
        """
        before = state()
        prepare(stack=0, heap="1MiB")
        pid = os.fork()
        if pid == 0:
            restore()
            os._exit(0 if state() == before else 1)
        assert os.waitpid(pid, 0)[1] == 0
        assert not gc.isenabled()
        restore()
        assert state() == before
        """
    )


# Refusals: what to do is said, and nothing is half prepared.


def test_a_priority_without_the_right_to_it(run: Callable[..., str]) -> None:
    said = run(
        """
        drop_capabilities(23)  # SYS_NICE
        before = state()
        try:
            prepare(sched=50, affinity=min(before[-1]))
        except PermissionError as error:
            assert error.errno == errno.EPERM
            print(error)
        assert state() == before
        # malloc maps large blocks again: nothing of it was left.
        assert maps_large_blocks()
        try:
            restore()
        except RuntimeError:
            print("nothing to restore")
        """,
        preexec=lambda: resource.setrlimit(resource.RLIMIT_RTPRIO, (0, 0)),
    )
    for words in (
        "priority 50",
        "RLIMIT_RTPRIO is 0",
        "CAP_SYS_NICE",
        "limits.conf",
        "LimitRTPRIO=95",
        "--cap-add SYS_NICE --ulimit rtprio=95",
        "sched_rt_runtime_us",
        "nothing to restore",
    ):
        assert words in said


def test_a_priority_that_rlimit_rtprio_allows(run: Callable[..., str], may_schedule: None) -> None:
    said = run(
        """
        try:
            resource.setrlimit(resource.RLIMIT_RTPRIO, (10, 10))
        except (ValueError, OSError) as error:
            print("skip", error)
            raise SystemExit
        drop_capabilities(23)
        before = state()
        with prepare(stack=0, heap=0, gc="leave", sched=10):
            assert state()[3] == 10
        assert state() == before
        try:
            prepare(stack=0, heap=0, gc="leave", sched=11)
        except PermissionError as error:
            print(error)
        """
    )
    if said.startswith("skip"):
        pytest.skip(f"RLIMIT_RTPRIO may not be raised here: {said[5:].strip()}")
    assert "RLIMIT_RTPRIO is 10" in said


def test_cpus_that_are_not_there() -> None:
    before = os.sched_getaffinity(0)
    for cpus in ({1023}, before | {1023}, [1 << 20], 1 << 40):
        with pytest.raises(OSError, match="may not run on CPUs") as caught:
            prepare(stack=0, heap=0, gc="leave", affinity=cpus)
        assert str(sorted(before)) in str(caught.value)
        assert os.sched_getaffinity(0) == before


def test_a_heap_that_is_not_to_be_had(run: Callable[..., str]) -> None:
    run(
        """
        before = state()
        for heap in ("64TiB", "1EiB", os.sysconf("SC_PHYS_PAGES") * 4096 * 2):
            try:
                prepare(heap=heap)
            except (CommitError, MemoryError, ValueError) as error:
                print(error)
            else:
                raise AssertionError(heap)
            assert state() == before
        """
    )


@glibc
def test_a_heap_beyond_rlimit_as(run: Callable[..., str]) -> None:
    said = run(
        """
        used = int(open("/proc/self/statm").read().split()[0]) << 12
        resource.setrlimit(resource.RLIMIT_AS, (used + 300 * MIB, resource.RLIM_INFINITY))
        before = state()
        try:
            prepare(heap="400MiB")
        except MemoryError as error:
            print(error)
        assert state() == before
        assert maps_large_blocks()
        """
    )
    assert "RLIMIT_AS" in said


@pytest.mark.parametrize(
    ("wrong", "kind"),
    [
        ({"stack": -1}, ValueError),
        ({"heap": "much"}, ValueError),
        ({"gc": "on"}, ValueError),
        ({"sched": 0}, ValueError),
        ({"sched": 100}, ValueError),
        ({"affinity": []}, ValueError),
        ({"affinity": -1}, ValueError),
        ({"affinity": {-1}}, ValueError),
        ({"stack": 1.5}, TypeError),
        ({"sched": "fifo"}, TypeError),
        ({"affinity": ["0"]}, TypeError),
        ({"affinity": 1.5}, TypeError),
        ({"stack": "1TiB", "heap": 0, "gc": "leave"}, CommitError),
    ],
)
def test_nonsense(wrong: dict[str, Any], kind: type[Exception]) -> None:
    with pytest.raises(kind):
        prepare(**wrong)
