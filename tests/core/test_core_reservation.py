"""Reservations in C: what a failure leaves, who waits for whom, and an old kernel."""

from __future__ import annotations

import errno
import faulthandler
import fcntl
import os
import random
import signal
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import machine
import pytest
from conftest import in_child
from core import _core
from core._build import Failed, must, refused
from core._core import (
    EVER,
    GIB,
    HUGE,
    LONG,
    MIB,
    NULL,
    PAGE,
    STOP,
    TIB,
    Range,
    Thread,
    blocking,
    cannot,
    ffi,
    library,
    old_kernel,
    progress_of,
    stop,
)
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

pytestmark = pytest.mark.slow  # the same on every CPython


@pytest.fixture(autouse=True)
def nothing_is_lost_in_a_tick() -> Iterator[None]:
    yield
    if _core.lost:
        raise _core.lost.pop()


@pytest.fixture
def populating() -> None:
    if not library().os_features().populate:
        pytest.skip("a kernel that cannot be asked to populate has no error where it cannot, but a signal")


@pytest.fixture
def reserve() -> Iterator[Callable[..., Range]]:
    made: list[Range] = []

    def new(size: int, **options: Any) -> Range:
        made.append(Range(size, **options))
        return made[-1]

    yield new
    for r in made:
        r.close()


# --- what is committed, and what a failure leaves ---------------------------------------------------------------------


def test_commit_rounds_outward_and_release_inward(reserve: Any) -> None:
    r = reserve(MIB)
    assert r.commit(PAGE - 1, 2) == 2 * PAGE
    assert r.has(0, 2 * PAGE) and not r.has(0, 2 * PAGE + 1)
    assert r.commit(0, PAGE) == 0
    assert r.release(1, 2 * PAGE - 1) == PAGE
    assert r.has(0, PAGE) and not r.has(PAGE, 1)
    assert r.release(0, PAGE - 1) == r.release(3, 0) == 0
    assert r.residency().present == r.committed == PAGE
    assert r.commit(PAGE, 0) == 0
    assert r.committed == PAGE


@pytest.mark.parametrize(("pages", "size", "threads"), [("4K", LONG, 1), ("4K", LONG, 3), ("auto", GIB, 1)])
def test_a_commit_refused_by_its_tick_gives_back_what_it_made_present_and_nothing_else(
    reserve: Any, pages: str, size: int, threads: int
) -> None:
    r = reserve(size, pages=pages)
    islands = [0, 4 * MIB + r.page, 10 * MIB, 130 * MIB, size - r.page]
    for at in islands:
        r.commit(at, r.page)
        r.write(at, b"kept")
    r.commit(16 * MIB, 4 * MIB, write=False)
    before = r.residency(), r.stats()
    refused(STOP, r.commit, 0, size, threads=threads, progress=progress_of(stop))
    after = r.residency(), r.stats()
    assert after[0].present == before[0].present  # what could be read may take memory now: it is not touched
    for name in ("committed", "peak_committed", "commits", "commit_ns"):
        assert getattr(after[1], name) == getattr(before[1], name), name
    assert all(r.read(at, 5) == b"kept\0" for at in islands)
    assert r.error.err == STOP and r.error.committed == r.committed
    assert r.has(16 * MIB, 4 * MIB, write=False) and not r.has(16 * MIB, 1)


@pytest.mark.usefixtures("populating")
def test_a_commit_that_fails_in_the_middle_says_so_and_is_undone(reserve: Any) -> None:
    r = reserve(16 * MIB)
    r.commit(MIB, PAGE)
    r.write(MIB, b"kept")
    must(r.lib.spoil(r.at + 9 * MIB))
    cannot(r.commit, 100, 10 * MIB)
    assert ffi.string(r.error.op) == b"madvise(MADV_POPULATE_WRITE)"
    assert (r.error.offset, r.error.requested, r.error.committed) == (100, 10 * MIB, PAGE)
    assert r.residency().present == r.committed == PAGE
    assert r.read(MIB, 4) == b"kept"
    must(r.lib.repair(r.at + 9 * MIB))
    assert r.commit(100, 10 * MIB) == 10 * MIB


@pytest.mark.usefixtures("populating")
def test_a_failed_commit_for_writing_keeps_what_was_written_to_pages_committed_for_reading(reserve: Any) -> None:
    r = reserve(MIB)
    assert r.commit(0, MIB, write=False) == MIB
    r.write(8 * PAGE, b"by a store")
    must(r.lib.spoil(r.at + MIB - PAGE))
    cannot(r.commit, 0, MIB)
    assert r.read(8 * PAGE, 10) == b"by a store"
    assert r.has(0, MIB, write=False) and not r.has(0, PAGE)
    assert r.residency().present == MIB
    must(r.lib.repair(r.at + MIB - PAGE))


@pytest.mark.parametrize("pages", ["4K", "auto"])
@pytest.mark.parametrize("populate", [True, False])
def test_what_is_committed_does_not_fault_on_an_old_kernel_either(reserve: Any, pages: str, populate: bool) -> None:
    features = ffi.new("struct os_features *", library().os_features()[0])
    features.populate = populate and features.populate
    r = reserve(32 * MIB, pages=pages, features=features)
    assert r.commit(r.page, 8 * MIB) == 8 * MIB
    assert r.residency().present == 8 * MIB
    assert r.lib.faults_of_writing(r.at + r.page, 8 * MIB) == 0
    assert r.commit(16 * MIB, 4 * MIB, write=False) == 4 * MIB
    assert r.residency(16 * MIB, 4 * MIB).present == 4 * MIB
    assert r.commit(16 * MIB, 4 * MIB) == 0
    assert r.lib.faults_of_writing(r.at + 16 * MIB, 4 * MIB) == 0
    assert r.release(0, r.size) == 12 * MIB
    assert r.residency().present == 0


def test_an_old_kernel_can_be_told_to_stop(reserve: Any) -> None:
    r = reserve(LONG, features=old_kernel())
    r.commit(MIB, PAGE)
    r.write(MIB, b"kept")
    refused(STOP, r.commit, 0, LONG, progress=progress_of(stop))
    assert r.residency().present == r.committed == PAGE
    assert r.read(MIB, 4) == b"kept"


def test_copies_go_through_the_kernel(reserve: Any) -> None:
    r = reserve(MIB)
    r.commit(0, MIB)
    data = bytes(range(256)) * 40
    try:
        r.copy(PAGE - 100, data, into=True)
    except Failed as failed:
        assert failed.errno == errno.EPERM
        pytest.skip("process_vm_writev is forbidden here")
    assert r.read(PAGE - 100, len(data)) == data
    back = bytearray(len(data))
    r.copy(PAGE - 100, back, into=False)
    assert back == data
    r.copy(MIB, bytearray(), into=False)
    refused(errno.EINVAL, r.copy, MIB - 9, bytearray(10), into=False)
    refused(errno.EINVAL, r.copy, EVER - 4, bytearray(10), into=True)
    must(r.lib.spoil(r.at + 5 * PAGE))
    refused(errno.EFAULT, r.copy, 5 * PAGE - 3, bytearray(6), into=False)
    refused(errno.EFAULT, r.copy, 5 * PAGE - 3, bytearray(6), into=True)
    must(r.lib.repair(r.at + 5 * PAGE))


@pytest.mark.usefixtures("populating")
def test_verify_populates_again_or_says_why_not(reserve: Any) -> None:
    r = reserve(4 * MIB)
    r.commit(0, MIB)
    r.commit(2 * MIB, MIB, write=False)
    must(r.lib.drop(r.at + 10 * PAGE, 50 * PAGE))
    r.verify(0, 4 * MIB)
    assert r.residency(0, 2 * MIB).present == MIB
    assert r.lib.faults_of_writing(r.at, MIB) == 0
    must(r.lib.spoil(r.at + 20 * PAGE))
    cannot(r.verify, 0, MIB)
    assert ffi.string(r.error.op).startswith(b"madvise")
    r.verify(21 * PAGE, MIB)
    assert r.committed == 2 * MIB  # a diagnosis: nothing is taken back
    must(r.lib.repair(r.at + 20 * PAGE))
    refused(errno.EINVAL, r.verify, 4 * MIB, 1)


def test_ranges_that_are_not_in_the_reservation(reserve: Any) -> None:
    r = reserve(MIB)
    for offset, n in ((MIB, 1), (0, MIB + 1), (MIB + 1, 0), (EVER, 2), (1, EVER), (PAGE, EVER - PAGE + 1)):
        refused(errno.EINVAL, r.commit, offset, n)
        assert ffi.string(r.error.op) == b"range"
        refused(errno.EINVAL, r.release, offset, n)
        refused(errno.EINVAL, r.verify, offset, n)
        assert not r.has(offset, n)
    assert r.committed == 0


def test_reservations_that_cannot_be_had(reserve: Any) -> None:
    refused(errno.EINVAL, reserve, 0)
    for size in (EVER, EVER - HUGE, 1 << 63, (1 << 47) + 1):
        refused(errno.ENOMEM, reserve, size)


@pytest.mark.parametrize("headroom", [1 << 62, EVER])
def test_a_headroom_of_more_than_there_is_leaves_nothing(reserve: Any, headroom: int) -> None:
    r = reserve(MIB, headroom=headroom, headroom_given=True)
    refused(errno.ENOMEM, r.commit, 0, PAGE)
    assert ffi.string(r.error.op) == b"preflight"
    assert r.error.available == 0 and ffi.string(r.error.where)
    assert r.residency().present == 0


def test_64_tib_of_which_little_is_there(reserve: Any) -> None:
    r = reserve(64 * TIB)
    r.commit(0, PAGE)
    r.commit(64 * TIB - PAGE, PAGE)
    r.commit(33 * TIB + 5, 1)
    r.write(33 * TIB, b"here")
    assert r.committed == 3 * PAGE
    refused(STOP, r.commit, 40 * TIB, LONG, progress=progress_of(stop))
    assert r.release(32 * TIB, 2 * TIB) == PAGE
    assert r.committed == 2 * PAGE
    r.commit(33 * TIB, PAGE)
    assert r.read(33 * TIB, 4) == bytes(4)


# --- several at once --------------------------------------------------------------------------------------------------


def test_a_tick_may_do_everything_except_to_its_own_range(reserve: Any) -> None:
    r = reserve(2 * LONG)
    seen = []

    def progress() -> int:
        refused(errno.EDEADLK, r.commit, LONG - PAGE, 2 * PAGE)
        refused(errno.EDEADLK, r.release, 0, PAGE)
        refused(errno.EDEADLK, r.verify, 0, PAGE)
        refused(errno.EBUSY, r.close)
        seen.append((r.commit(LONG, PAGE), r.has(LONG, PAGE), r.release(LONG, PAGE), r.has(0, PAGE), r.committed))
        return 0

    assert r.commit(0, LONG, progress=progress_of(progress)) == LONG
    assert set(seen) == {(PAGE, True, PAGE, False, 0)}


def test_who_waits_for_a_commit_that_fails_takes_over(reserve: Any) -> None:
    r = reserve(LONG)
    entered, leave, waiting = threading.Event(), threading.Event(), threading.Event()
    first = Thread(lambda: r.commit(0, LONG, progress=blocking(entered, leave, -STOP)))
    assert entered.wait(20)

    def wait() -> int:
        waiting.set()
        return 0

    second = Thread(lambda: r.commit(PAGE, PAGE, progress=progress_of(wait)))
    assert waiting.wait(20)
    leave.set()
    refused(STOP, first.wait)
    assert second.wait() == PAGE
    assert r.committed == r.residency().present == PAGE


@pytest.mark.parametrize("what", ["commit", "release", "verify"])
def test_who_waits_is_asked_whether_to_go_on_however_busy_the_others_are(reserve: Any, what: str) -> None:
    r = reserve(LONG + MIB)
    entered, leave, over = threading.Event(), threading.Event(), ffi.new("int *")
    long = Thread(lambda: r.commit(0, LONG, progress=blocking(entered, leave, 0)))
    assert entered.wait(20)
    others = Thread(lambda: must(r.lib.bustle(r.c, LONG, over)))
    waiter = Thread(lambda: getattr(r, what)(PAGE, PAGE, progress=progress_of(stop)))
    waiter.join(2)
    asked = not waiter.is_alive()
    leave.set()
    over[0] = 1
    long.wait()
    others.wait()
    assert asked
    refused(STOP, waiter.wait)


def test_two_who_want_in_their_ticks_what_the_other_commits_do_not_wait_for_ever(reserve: Any) -> None:
    r = reserve(2 * LONG)
    barrier, deadline = threading.Barrier(2), time.monotonic() + 5

    def patience() -> int:
        return -errno.ETIME if time.monotonic() > deadline else 0

    def commit(own: int, other: int) -> list[int]:
        answers: list[int] = []

        def progress() -> int:
            if not answers:
                barrier.wait(20)
                answers.append(
                    r.lib.reservation_commit(r.c, other, PAGE, True, 1, progress_of(patience), NULL, NULL, NULL)
                )
            return 0

        must(r.lib.reservation_commit(r.c, own, LONG, True, 1, progress_of(progress), NULL, NULL, NULL))
        return answers

    one, two = Thread(lambda: commit(0, LONG)), Thread(lambda: commit(LONG, 0))
    answers = one.wait() + two.wait()
    assert -errno.ETIME not in answers
    assert -errno.EDEADLK in answers
    assert r.committed == 2 * LONG


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_commit_in_another_thread_leaves_what_was_written_to_pages_committed_for_reading(reserve: Any) -> None:
    r = reserve(LONG)
    r.commit(0, MIB, write=False)
    r.write(PAGE, b"kept")
    entered, leave = threading.Event(), threading.Event()
    other = Thread(lambda: r.commit(0, LONG, progress=blocking(entered, leave, 0)))
    assert entered.wait(20)

    def look() -> None:
        assert r.read(PAGE, 4) == b"kept"
        assert r.committed == MIB and r.has(0, MIB, write=False)
        assert r.commit(0, 2 * MIB) == MIB
        assert r.read(PAGE, 4) == b"kept"

    try:
        in_child(look)
    finally:
        leave.set()
    other.wait()
    assert r.read(PAGE, 4) == b"kept"


# --- against a model --------------------------------------------------------------------------------------------------


class Pages(RuleBasedStateMachine):
    """The model: for each page whether it is committed for nothing, reading or writing, and what is written in it."""

    N = 10
    places = st.integers(0, N * PAGE)

    @initialize(old=st.booleans())
    def start(self, old: bool) -> None:
        self.r = Range(self.N * PAGE, **({"features": old_kernel()} if old else {}))
        self.can_fail = not old and self.r.lib.os_features().populate
        self.is_for = [0] * self.N
        self.data = [0] * self.N
        self.bad: set[int] = set()
        self.failed = False  # a commit for writing: what could be read may take memory since

    @rule(a=places, b=places, write=st.booleans())
    def commit(self, a: int, b: int, write: bool) -> None:
        start, end = min(a, b), max(a, b)
        pages = range(start // PAGE, -(-end // PAGE))
        lacking = [page for page in pages if self.is_for[page] < 1 + write]
        if self.bad.intersection(lacking):
            cannot(self.r.commit, start, end - start, write=write)
            self.failed |= write
            return
        newly = sum(self.is_for[page] == 0 for page in lacking)
        assert self.r.commit(start, end - start, write=write) == newly * PAGE
        for page in lacking:
            self.is_for[page] = 1 + write

    @rule(a=places, b=places)
    def release(self, a: int, b: int) -> None:
        start, end = min(a, b), max(a, b)
        pages = range(-(-start // PAGE), end // PAGE)
        assert self.r.release(start, end - start) == PAGE * sum(self.is_for[page] > 0 for page in pages)
        for page in pages:
            self.is_for[page] = self.data[page] = 0

    @rule(a=places, b=places)
    def verify(self, a: int, b: int) -> None:
        start, end = min(a, b), max(a, b)
        if any(self.is_for[page] for page in self.bad if start // PAGE <= page < -(-end // PAGE)):
            cannot(self.r.verify, start, end - start)
        else:
            self.r.verify(start, end - start)

    @rule(page=st.integers(0, N - 1))
    def spoil_or_repair(self, page: int) -> None:
        if self.can_fail:
            must((self.r.lib.repair if page in self.bad else self.r.lib.spoil)(self.r.at + page * PAGE))
            self.bad ^= {page}

    @rule(a=places, b=places, byte=st.integers(1, 255))
    def write(self, a: int, b: int, byte: int) -> None:
        """To pages committed for reading that is a fault, and no crime."""
        for page in range(min(a, b) // PAGE, -(-max(a, b) // PAGE)):
            if self.is_for[page] and page not in self.bad:
                self.r.write(page * PAGE + 77, bytes([byte]))
                self.data[page] = byte

    @invariant()
    def agree(self) -> None:
        if not hasattr(self, "r"):
            return
        present = PAGE * sum(level > 0 for level in self.is_for)
        out = ffi.new("unsigned char[]", self.N)
        self.r.lib.pages_of(self.r.c, out, self.N)
        assert list(out) == self.is_for
        residency = self.r.residency()
        assert self.r.committed == residency.present == present
        if self.r.lib.os_features().pagemap_scan:
            unwritten = (1, 0)
            zero = sum(state == unwritten for state in zip(self.is_for, self.data, strict=True))
            assert residency.zero <= PAGE * zero
            assert self.failed or residency.zero == PAGE * zero
        for page, byte in enumerate(self.data):
            if self.is_for[page] and page not in self.bad:
                assert self.r.read(page * PAGE + 77, 1)[0] == byte

    def teardown(self) -> None:
        if hasattr(self, "r"):
            self.r.close()


def test_pages_are_as_a_model_says() -> None:
    run_state_machine_as_test(
        Pages,
        settings=settings(
            max_examples=100,
            stateful_step_count=40,
            deadline=None,
            suppress_health_check=[HealthCheck.too_slow],
            derandomize=True,
            database=None,
        ),
    )


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_pages_are_as_a_model_says_for_long(seed: int) -> None:
    """The same, by chance alone: hypothesis seldom goes far."""
    rng, pages = random.Random(seed), Pages()
    pages.start(old=False)
    for _ in range(5000):
        a, b = rng.randrange(Pages.N * PAGE), rng.randrange(Pages.N * PAGE)
        what = rng.randrange(10)
        if what < 4:
            pages.commit(a, b, rng.choice([False, True]))
        elif what < 6:
            pages.release(a, b)
        elif what < 7:
            pages.verify(a, b)
        elif what < 9:
            pages.write(a, b, rng.randrange(1, 256))
        else:
            pages.spoil_or_repair(a // PAGE)
        pages.agree()
    pages.teardown()


# --- who does not answer ----------------------------------------------------------------------------------------------


def test_a_thread_waits_for_a_stopped_peer_for_a_while_and_then_knows_who_it_is(reserve: Any, tmp_path: Path) -> None:
    path = tmp_path / "ours"
    name = ffi.new("char[]", str(path).encode())
    r = reserve(MIB, path=name, backing=library().ARENA_BACKING_PATH, shared=True)
    r.lib.wait_for_peers(r.c, 20_000_000)
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        fcntl.fcntl(os.open(path, os.O_RDWR), fcntl.F_OFD_SETLK, struct.pack("hhqqi", fcntl.F_WRLCK, 0, 0, 0, 0))
        os.write(write, b"x")
        os.kill(os.getpid(), signal.SIGSTOP)
        os._exit(0)
    os.read(read, 1)
    try:
        Thread(lambda: refused(errno.EBUSY, r.commit, 0, MIB)).wait()
        assert ffi.string(r.error.op) == b"lock of the file"
        assert ffi.string(r.error.where) == b"process %d" % pid
        assert r.committed == r.residency().present == 0
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read)
        os.close(write)
    assert r.commit(0, MIB) == MIB


def test_a_lock_of_a_thread_that_is_no_more_is_no_spin() -> None:
    pid = os.fork()
    if pid == 0:
        faulthandler.disable()  # it is to die, and in silence
        library().take_from_nobody()
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGABRT


def test_a_file_that_is_opened_once_more_is_the_same_file(tmp_path: Path) -> None:
    again = ffi.new("int *")
    with (tmp_path / "file").open("w+b") as file:
        must(library().os_reopen(file.fileno(), again))
        assert os.path.sameopenfile(again[0], file.fileno())
        os.close(again[0])
        # Whoever mounts something there makes /proc lie.
        with machine.mounted("tmpfs", "arena-test", Path(f"/proc/{os.getpid()}/fd"), "size=1M") as lies:
            (lies / str(file.fileno())).write_bytes(b"another")
            lowest = os.dup(file.fileno())
            refused(errno.ESTALE, lambda: must(library().os_reopen(file.fileno(), again)))
            os.close(lowest)
            assert os.dup(file.fileno()) == lowest  # nothing stays open
            os.close(lowest)
