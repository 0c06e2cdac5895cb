"""Each kind of memory: present when it is committed, gone when it is released, and whose data is whose."""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import machine
import pytest
from conftest import SUPPORT, in_child
from machine import HUGE, MIB
from measure import allocated, descriptor_behind, faults_at, faults_writing, rss

from arena import Arena, CommitError, Reservation, ReserveError

pytestmark = pytest.mark.slow  # the same on every CPython

PAGE = mmap.PAGESIZE

# What is asked for; DISK, SHM and HUGETLBFS stand for directories.
KINDS: dict[str, dict[str, Any]] = {
    "private anonymous 4K": {"pages": "4K"},
    "private anonymous thp": {"pages": "auto"},
    "private anonymous 2M": {"pages": "2M"},
    "shared anonymous": {"shared": True, "backing": "anonymous"},
    "shared anonymous 2M": {"shared": True, "backing": "anonymous", "pages": "2M"},
    "private memfd": {"backing": "memfd"},
    "shared memfd": {"shared": True},
    "private memfd 2M": {"backing": "memfd", "pages": "2M"},
    "shared memfd 2M": {"shared": True, "pages": "2M"},
    "private tmpfs": {"path": "SHM"},
    "shared tmpfs": {"path": "SHM", "shared": True},
    "private file": {"path": "DISK"},
    "shared file": {"path": "DISK", "shared": True},
    "private hugetlbfs": {"path": "HUGETLBFS"},
    "shared hugetlbfs": {"path": "HUGETLBFS", "shared": True},
}


@pytest.fixture(params=KINDS, ids=lambda name: name.replace(" ", "-"))
def kind(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[dict[str, Any]]:
    """The keywords of a reservation of each kind; huge pages enough for 32 MiB."""
    keywords = dict(KINDS[request.param])
    if keywords.get("path") == "HUGETLBFS":
        with machine.hugetlbfs(20)(tmp_path) as place:
            yield {**keywords, "path": place.path}
        return
    if keywords.get("path") == "SHM":
        with machine.tmpfs(128 * MIB)(tmp_path) as place:
            yield {**keywords, "path": place.path}
        return
    if keywords.get("path") == "DISK":
        keywords["path"] = tmp_path
    if keywords.get("pages") == "2M":
        with machine.huge_pages(20):
            yield keywords
        return
    yield keywords


def in_file(r: Reservation) -> int:
    """Bytes that its file takes; 0 where there is none. Not by fileno(), after which others may know the file."""
    fd = descriptor_behind(r.address)
    return 0 if fd is None or r.backing == "anonymous" else allocated(fd)


def test_committed_memory_is_there_and_released_memory_is_gone(kind: dict[str, Any]) -> None:
    with Reservation("64MiB", **kind) as r:
        here: dict[str, Any] = {"offset": "16MiB"}
        assert r.committed == r.residency().present == in_file(r) == 0
        assert r.commit("20MiB", **here) == r.committed == 20 * MIB
        assert r.residency().present == 20 * MIB
        if r.page_size >= HUGE:
            assert r.residency().huge == 20 * MIB
        view = r.view("20MiB", **here)
        assert view[0] == view[20 * MIB - 1] == 0
        assert faults_writing(view, 7) == 0
        view.release()
        assert r.release("2MiB", offset="18MiB") == 2 * MIB
        assert r.residency().present == r.committed == 18 * MIB
        assert r.release() == 18 * MIB
        assert r.residency().present == in_file(r) == 0
        assert r.commit("4MiB", **here) == 4 * MIB
        assert bytes(r.view("4MiB", **here)) == bytes(4 * MIB)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_with_threads(kind: dict[str, Any], threads: int) -> None:
    with Reservation("32MiB", **kind) as r:
        assert r.commit(threads=threads) == r.residency().present == 32 * MIB
        assert faults_writing(r.view()) == 0


def test_in_an_arena(kind: dict[str, Any]) -> None:
    a = Arena("32MiB", **kind)
    assert a.chunk == 2 * MIB
    block = a.alloc("10MiB")
    assert faults_writing(memoryview(block), 7) == 0
    block.free()
    again = a.alloc("10MiB", zero=True)
    assert bytes(again) == bytes(10 * MIB)
    again[:] = b"x" * (10 * MIB)
    again.free()
    assert a.trim() == 10 * MIB
    assert a.stats().committed == a.residency().present == 0
    assert bytes(a.alloc("10MiB")) == bytes(10 * MIB)
    a.reset()
    a.warm("16MiB")
    assert faults_writing(memoryview(a.alloc("16MiB", grow=False))) == 0


def test_for_reading_it_can_be_read_without_a_fault(kind: dict[str, Any]) -> None:
    with Reservation("32MiB", **kind) as r:
        assert r.commit("8MiB", populate="read") == r.residency("8MiB").present == 8 * MIB
        assert r.residency().dirty in (0, 8 * MIB)  # what is in memory only counts as dirty
        with pytest.raises(ValueError, match="for writing"):
            r.view("8MiB")
        view = r.view("8MiB", readonly=True)

        def read(target: memoryview) -> None:
            assert target[0] == target[PAGE] == target[5 * MIB] == target[8 * MIB - 1] == 0

        other = memoryview(bytes(8 * MIB))
        count = faults_at(r.address, 8 * MIB, lambda: read(view), lambda: read(other))
        assert count == 0
        view.release()
        assert r.commit("8MiB") == 0  # present already; now for writing too
        assert faults_writing(r.view("8MiB")) == 0


def test_a_commit_that_is_stopped_leaves_nothing(kind: dict[str, Any]) -> None:
    with Reservation("32MiB", **kind) as r:
        r.commit("2MiB", offset="4MiB")
        r.view("2MiB", offset="4MiB")[:] = b"k" * (2 * MIB)
        resident, file = rss(), in_file(r)

        def stop(done: int, total: int) -> None:
            raise InterruptedError("enough")

        with pytest.raises(InterruptedError):
            r.commit(progress=stop)
        # A quick commit was done before it asked.
        assert r.committed == r.residency().present
        if r.committed == 2 * MIB:
            assert abs(rss() - resident) < MIB and in_file(r) == file
        assert bytes(r.view("2MiB", offset="4MiB")) == b"k" * (2 * MIB)


def test_verify_and_copies(kind: dict[str, Any]) -> None:
    with Reservation("32MiB", **kind) as r:
        r.commit("8MiB", offset="8MiB")
        r.commit("2MiB", offset="24MiB", populate="read")
        assert r.write_from(b"hello", offset=8 * MIB + 100) == 5
        r.verify()
        into = bytearray(5)
        assert r.read_into(into, offset=8 * MIB + 100) == 5
        assert into == b"hello"
        assert bytes(r.view(5, offset=8 * MIB + 100)) == b"hello"
        with pytest.raises(ValueError, match="committed"):
            r.write_from(b"hello", offset=0)


def test_a_fork(kind: dict[str, Any]) -> None:
    r = Reservation("32MiB", **kind)
    r.commit("4MiB")
    view = r.view("4MiB")
    view[:1] = b"p"

    def child() -> None:
        if kind.get("shared"):
            view[1:2] = b"c"
            r.commit("2MiB", offset="8MiB")
            r.view("2MiB", offset="8MiB")[:3] = b"new"
        elif kind.get("pages") == "2M" or r.backing == "hugetlbfs":
            with pytest.raises(RuntimeError, match="fork"):
                r.commit("2MiB", offset="8MiB")
        else:
            assert view[0] == ord("p")
            view[0] = ord("c")
            r.commit("2MiB", offset="8MiB")
            assert r.release("2MiB", offset="8MiB") == 2 * MIB

    in_child(child)
    if kind.get("shared"):
        assert bytes(view[:2]) == b"pc"
        r.commit("2MiB", offset="8MiB")
        assert bytes(r.view(3, offset="8MiB")) == b"new"
    assert view[0] == ord("p")
    r.commit()
    assert faults_writing(view) == 0


def test_a_child_that_has_nothing_of_it_keeps_nothing_of_it() -> None:
    r = Reservation("8MiB", shared=True, fork="drop", name="dropped")
    r.commit()
    fd = r.fileno()

    def child() -> None:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)
        with pytest.raises(OSError, match="no file descriptor"):
            r.fileno()
        with pytest.raises(RuntimeError, match="fork"):
            r.commit()
        assert "dropped" not in Path("/proc/self/maps").read_text()

    in_child(child)
    assert bytes(r.view(8)) == bytes(8)


def test_an_arena_that_a_child_shares_is_the_parents_to_grow() -> None:
    a = Arena("64MiB", shared=True)
    block, other = a.alloc("1MiB"), a.alloc("1MiB")

    def child() -> None:
        block[:5] = b"child"
        with pytest.raises(RuntimeError, match="parent"):
            a.alloc(100)
        with pytest.raises(RuntimeError, match="parent"):
            a.warm("4MiB")
        other.free()
        assert a.trim() == 0
        a.close()

    in_child(child)
    assert bytes(block[:5]) == b"child"
    other[:4] = b"here"
    assert a.residency().present == a.stats().committed
    a.alloc("8MiB")[:] = b"x" * (8 * MIB)


def test_locked_memory_is_given_back_too(kind: dict[str, Any]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mlock.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    with Reservation("32MiB", **kind) as r:
        r.commit("8MiB")
        if libc.mlock(r.address, 8 * MIB):
            pytest.skip(f"mlock: {os.strerror(ctypes.get_errno())}")
        assert r.release("8MiB") == 8 * MIB
        assert r.residency().present == r.committed == 0


# Files.


def test_a_file_is_made_where_there_is_none_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "new"
    with Reservation("8MiB", path=path, shared=True) as r:
        assert r.backing in ("file", "tmpfs")
        assert stat.S_IMODE(path.stat().st_mode) == 0o600 and path.stat().st_size == 8 * MIB
        assert allocated(path) == 0
        r.commit("1MiB", offset="1MiB")
        r.view("1MiB", offset="1MiB")[:5] = b"hello"
    content = path.read_bytes()
    assert len(content) == 8 * MIB and content[MIB : MIB + 5] == b"hello"


def test_what_was_made_in_vain_is_gone(tmp_path: Path, child: Callable[..., str]) -> None:
    child(
        f"""
        import resource
        from arena import Reservation, ReserveError
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
        try:
            Reservation("8MiB", path={str(tmp_path / "new")!r}, shared=True)
        except ReserveError as error:
            assert "RLIMIT_FSIZE" in str(error)
        """
    )
    assert list(tmp_path.iterdir()) == []


def test_in_a_directory_the_file_has_no_name(tmp_path: Path) -> None:
    with Reservation("8MiB", path=tmp_path, shared=True) as r:
        r.commit()
        assert list(tmp_path.iterdir()) == []
        assert os.fstat(r.fileno()).st_nlink == 0
        assert not os.get_inheritable(r.fileno())


@pytest.mark.parametrize("shared", [False, True])
def test_an_existing_file_is_mapped_as_it_is(tmp_path: Path, shared: bool) -> None:
    path = tmp_path / "old"
    data = os.urandom(3 * MIB + 100)
    path.write_bytes(data)
    with Reservation("8MiB", path=path, shared=shared) as r:
        assert r.commit(len(data)) == 3 * MIB + PAGE
        view = r.view(len(data))
        assert view == data
        view[:5] = b"hello"
        view.release()
        assert path.read_bytes() == ((b"hello" + data[5:]) if shared else data)
        with pytest.raises(CommitError, match=f"only {len(data)} bytes") as info:
            r.commit("4MiB")
        assert info.value.available == len(data)
        r.release()
        r.commit(MIB)
        # Private copies are gone, and the file shows through again.
        assert bytes(r.view(8)) == ((b"hello" + data[5:8]) if shared else data[:8])
    assert path.stat().st_size == len(data)


@pytest.mark.parametrize("shared", [False, True])
def test_reading_a_file_leaves_it_clean(tmp_path: Path, shared: bool) -> None:
    path = tmp_path / "weights"
    data = os.urandom(8 * MIB)
    with path.open("wb") as file:
        file.write(data)
        os.fsync(file.fileno())
    path.chmod(0o400)
    with Reservation(len(data), path=path, shared=shared, readonly=True) as r:
        assert r.commit(populate="read") == len(data)
        there = r.residency()
        assert there.present == len(data) and there.dirty == 0

        def read(target: memoryview) -> None:
            assert sum(target[::PAGE]) == sum(data[::PAGE])

        view = r.view(readonly=True)
        assert faults_at(r.address, len(data), lambda: read(view), lambda: read(memoryview(data))) == 0
        view.release()
        with pytest.raises(CommitError, match="read-only"):
            r.commit()
        with pytest.raises(PermissionError):
            r.write_from(b"x")
        into = bytearray(10)
        assert r.read_into(into, offset=5) == 10 and into == data[5:15]
        assert r.release() == 0 and r.committed == r.residency().present == 0  # its pages are the file's, as before
        with pytest.raises(CommitError, match="reading only"):
            r.release(discard=True)


def test_a_file_of_somebody_else_is_punched_only_on_demand(tmp_path: Path) -> None:
    path = tmp_path / "old"
    data = os.urandom(8 * MIB)
    path.write_bytes(data)
    os.sync()
    with Reservation("8MiB", path=path, shared=True) as r:
        r.commit("4MiB")
        assert r.release("4MiB") == 0  # what the machine gets: its pages are the file's
        assert r.committed == r.residency().present == 0 and path.read_bytes() == data
        r.commit("4MiB")
        before = allocated(path)
        # All of the range goes, committed or not.
        assert r.release("4MiB", offset="2MiB", discard=True) == 2 * MIB
        assert path.read_bytes() == data[: 2 * MIB] + bytes(4 * MIB) + data[6 * MIB :]
        assert before - allocated(path) == 4 * MIB
    with path.open("r+b") as file, Reservation("8MiB", fd=file, shared=True) as r:
        file.seek(5)
        r.commit()
        r.release()
        assert file.tell() == 5
    assert path.read_bytes() == data[: 2 * MIB] + bytes(4 * MIB) + data[6 * MIB :]


@pytest.mark.parametrize("ours", [True, False])
def test_what_a_peer_has_punched_out_is_no_zeros_to_read_into(ours: bool) -> None:
    """A load there may be a SIGBUS. What was never committed here is read as zeros, as of any file."""
    fd = os.memfd_create("theirs")
    os.ftruncate(fd, 4 * MIB)
    with Reservation("4MiB", shared=True, pages="4K") if ours else Reservation("4MiB", fd=fd, shared=True) as r:
        r.commit("2MiB")
        r.view("2MiB")[:] = b"x" * (2 * MIB)
        into = bytearray(3 * MIB)
        assert r.read_into(into) == len(into) and into == b"x" * (2 * MIB) + bytes(MIB)
        with Reservation("4MiB", fd=r.fileno(), shared=True) as peer:
            position = os.lseek(fd, 12345, os.SEEK_SET)
            peer.release(PAGE, offset=MIB, discard=True)
            with pytest.raises(OSError, match="nothing is there"):
                r.read_into(into)
            with pytest.raises(OSError, match="nothing is there"):
                r.read_into(bytearray(1), offset=MIB + PAGE - 1)
            assert r.read_into(bytearray(MIB)) == r.read_into(bytearray(MIB), offset=MIB + PAGE) == MIB
            r.verify()
            assert r.read_into(into) == len(into) and into[MIB : MIB + PAGE] == bytes(PAGE)
            r.release(PAGE)
            assert r.read_into(bytearray(PAGE)) == PAGE
            assert os.lseek(fd, 0, os.SEEK_CUR) == position
    os.close(fd)


def test_a_trim_says_what_the_machine_got() -> None:
    with open("/dev/zero", "rb") as zero:
        fd = os.memfd_create("theirs")
        os.ftruncate(fd, 16 * MIB)
        for shared, got in ((True, 0), (False, 8 * MIB)):
            with Arena("16MiB", fd=fd, shared=shared, chunk="64KiB", pages="4K") as a:
                a.alloc(8 * MIB).free()
                assert a.stats().committed == 8 * MIB
                before = rss()
                assert a.trim() == got
                assert a.stats().committed == 0
                assert before - rss() > 7 * MIB  # of this process; shared, the pages are the file's as before
        os.close(fd)
        with Arena("16MiB", fd=zero, chunk="64KiB") as a:  # /dev/zero: as private anonymous memory
            a.alloc(8 * MIB).free()
            assert a.trim() == 8 * MIB


@pytest.mark.parametrize("retain", ["1MiB", 0])
def test_a_foreign_file_is_retained_as_far_as_was_asked(retain: Any) -> None:
    fd = os.memfd_create("theirs")
    os.ftruncate(fd, 16 * MIB)
    with Arena("16MiB", fd=fd, shared=True, chunk="64KiB", pages="4K", retain=retain) as a:
        blocks = [a.alloc("64KiB") for _ in range(64)]
        for block in blocks[::2] + blocks[1::2]:
            block.free()
        assert a.stats().free_committed == a.stats().committed == (MIB if retain else 0)
    os.close(fd)


def test_a_descriptor_is_duplicated(tmp_path: Path) -> None:
    path = tmp_path / "old"
    path.write_bytes(b"hello" * 1000)
    fd = os.open(path, os.O_RDWR)
    r = Reservation(5000, fd=fd, shared=True)
    os.close(fd)
    r.commit(5000)
    assert bytes(r.view(5)) == b"hello"
    r.close()
    with Reservation("1MiB", fd=os.memfd_create("other"), shared=True) as r, pytest.raises(CommitError, match="only 0"):
        r.commit()


def test_an_arena_in_a_file_that_was_there(tmp_path: Path) -> None:
    path = tmp_path / "old"
    path.write_bytes(b"x" * (5 * MIB))
    a = Arena("8MiB", path=path, shared=True)
    block = a.alloc("4MiB")
    assert bytes(block) == b"x" * (4 * MIB)
    block.free()
    with pytest.raises(MemoryError):
        a.alloc("5MiB")  # whole chunks of it
    a.trim()
    assert bytes(a.alloc("1MiB", zero=True)) == bytes(MIB)
    small = tmp_path / "small"
    small.write_bytes(b"x")
    with pytest.raises(ReserveError, match="one chunk"):
        Arena("8MiB", path=small, shared=True)


def test_a_memfd_keeps_its_size(tmp_path: Path) -> None:
    with Reservation("8MiB", shared=True, name="a-name") as r:
        for size in (MIB, 16 * MIB):
            with pytest.raises(PermissionError):
                os.ftruncate(r.fileno(), size)
        r.commit(PAGE)
        assert "memfd:a-name" in Path("/proc/self/maps").read_text()
        assert not os.get_inheritable(r.fileno())
    with pytest.raises(OSError, match="no file descriptor"):
        Reservation("1MiB").fileno()


# Peers.


def test_a_peers_data_survives_our_rollback(tmp_path: Path) -> None:
    """Somebody else has put data into a file of ours; then a commit of ours over it fails."""
    with machine.tmpfs(16 * MIB)(tmp_path) as place:
        path = place.path / "ours"
        ours = Reservation("64MiB", path=path, shared=True)
        ours.commit("2MiB")
        peer = Reservation("64MiB", path=path, shared=True)
        peer.commit("1MiB", offset="5MiB")
        peer.view("1MiB", offset="5MiB")[:] = b"p" * MIB
        before = allocated(path)
        with pytest.raises(CommitError):
            ours.commit("32MiB")
        assert allocated(path) == before
        assert bytes(peer.view("1MiB", offset="5MiB")) == b"p" * MIB
        assert ours.committed == ours.residency().present == 2 * MIB
        ours.commit("6MiB")
        assert bytes(ours.view("1MiB", offset="5MiB")) == b"p" * MIB
        # Who did not make the file gives nothing of it back.
        peer.release()
        assert bytes(ours.view("1MiB", offset="5MiB")) == b"p" * MIB
        ours.view("1MiB", offset="5MiB").release()
        ours.release()
        assert allocated(path) == 0


def test_peers_in_the_same_range_wait_for_each_other(tmp_path: Path) -> None:
    path = tmp_path / "ours"
    ours = Reservation("1GiB", path=path, shared=True)
    peer = Reservation("1GiB", path=path, shared=True)
    inside, leave = threading.Event(), threading.Event()

    def progress(done: int, total: int) -> None:
        inside.set()
        leave.wait(20)

    def commit() -> None:
        ours.commit("256MiB", progress=progress)

    first = threading.Thread(target=commit)
    first.start()
    assert inside.wait(20)
    second = threading.Thread(target=peer.commit, args=("1MiB",))
    second.start()
    peer.commit("1MiB", offset="512MiB")  # elsewhere nobody is in the way
    second.join(0.2)
    waited = second.is_alive()
    leave.set()
    first.join()
    second.join()
    assert waited or ours.committed  # a quick machine is done before it asks
    assert peer.committed == 2 * MIB


def test_a_waiting_peer_hears_signals(tmp_path: Path) -> None:
    path = tmp_path / "ours"
    ours = Reservation("64MiB", path=path, shared=True)
    import fcntl
    import struct

    fd = os.open(path, os.O_RDWR)
    # struct flock: a write lock on everything, by an open file description that is not arena's.
    fcntl.fcntl(fd, 37, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))

    class Enough(Exception):
        pass

    def handler(number: int, frame: object) -> None:
        raise Enough

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        start = time.monotonic()
        with pytest.raises(Enough):
            ours.commit()
        assert time.monotonic() - start < 5
    finally:
        signal.signal(signal.SIGALRM, before)
    assert ours.committed == 0 and allocated(path) == 0
    os.close(fd)
    assert ours.commit() == 64 * MIB


# Pages, nodes, options.


@pytest.fixture
def thp_settings() -> Iterator[Callable[[str, str], object]]:
    """Sets files of /sys/kernel/mm/transparent_hugepage, and restores them."""
    root = Path("/sys/kernel/mm/transparent_hugepage")
    before: dict[Path, str] = {}

    def write(name: str, value: str) -> None:
        path = root / name
        if os.geteuid() != 0 or not os.access(path, os.W_OK):
            pytest.skip(f"{path} cannot be set here")
        before.setdefault(path, path.read_text().partition("[")[2].partition("]")[0])
        path.write_text(value)

    try:
        yield write
    finally:
        for path, value in before.items():
            path.write_text(value)


def test_mthp_where_it_is_enabled(thp_settings: Callable[[str, str], object]) -> None:
    thp_settings("hugepages-64kB/enabled", "madvise")
    thp_settings("hugepages-2048kB/enabled", "never")
    made = Path("/sys/kernel/mm/transparent_hugepage/hugepages-64kB/stats/anon_fault_alloc")
    for pages in ("auto", "64K"):
        before = int(made.read_text())
        with Reservation("8MiB", pages=pages) as r:
            assert r.page_size == 64 << 10
            assert r.commit(1) == r.residency().present == 64 << 10
            r.commit()
            assert int(made.read_text()) - before > 100
            assert faults_writing(r.view()) == 0
    assert Arena("8MiB", chunk="64KiB").page_size == 64 << 10
    assert Arena("8MiB", chunk="16KiB").page_size == 4 << 10
    with pytest.raises(ReserveError, match="hugepages-32kB/enabled"):
        Reservation("8MiB", pages="32K")
    with pytest.raises(ReserveError, match="transparent_hugepage"):
        Reservation("8MiB", pages="thp")


def test_huge_pages_of_shared_memory(thp_settings: Callable[[str, str], object], tmp_path: Path) -> None:
    thp_settings("shmem_enabled", "never")
    with pytest.raises(ReserveError, match="shmem_enabled"):
        Reservation("8MiB", shared=True, pages="thp")
    thp_settings("shmem_enabled", "advise")
    for backing in ("memfd", "anonymous"):
        with Reservation("32MiB", shared=True, pages="thp", backing=backing) as r:
            assert r.page_size == HUGE
            assert r.commit("16MiB") == r.residency().present == 16 * MIB
            assert r.residency().huge == 16 * MIB
            assert faults_writing(r.view("16MiB")) == 0
            assert r.release() == 16 * MIB and r.residency().present == 0
    with machine.mounted("tmpfs", "arena-test", tmp_path / "huge", "size=32M,huge=advise") as path:
        with Reservation("64MiB", path=path, shared=True) as r:
            assert r.page_size == HUGE
            r.commit("16MiB")
            assert r.residency().huge == 16 * MIB
            with pytest.raises(CommitError) as info:
                r.commit("34MiB")
            assert info.value.errno == 28 and info.value.available == 16 * MIB
            assert in_file(r) == 16 * MIB == r.residency().present
        with pytest.raises(ReserveError):
            Reservation("64MiB", path=path, pages="thp")  # private copies are small


def test_gigantic_pages(tmp_path: Path) -> None:
    knob = Path("/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages")
    if os.geteuid() != 0 or not knob.exists():
        pytest.skip("pages of 1 GiB need root and a CPU that has them")
    if int(knob.read_text()):
        pytest.skip("there are pages of 1 GiB in use here")
    with pytest.raises(ReserveError, match="hugepages-1048576kB"):
        Reservation("1GiB", pages="1G")
    knob.write_text("1")
    try:
        if int(knob.read_text()) != 1:
            pytest.skip("no page of 1 GiB is to be had")
        for keywords in ({}, {"shared": True}):
            with Reservation("4GiB", pages="1G", **keywords) as r:  # type: ignore[arg-type]
                assert r.page_size == 1 << 30
                assert r.commit(1, offset="1GiB") == 1 << 30 == r.residency().huge
                view = r.view("1GiB", offset="1GiB")
                assert view[0] == 0 and faults_writing(view[: 8 * MIB]) == 0
                view.release()
                with pytest.raises(CommitError, match="hugepages-1048576kB"):
                    r.commit(1, offset="2GiB")
                assert r.release() == 1 << 30
                assert r.commit(1, offset="3GiB") == 1 << 30
        a = Arena("2GiB", pages="1G")
        assert a.chunk == 1 << 30
        assert len(a.alloc("100MiB")) == 100 * MIB
        a.reset()
        assert a.trim() == 1 << 30
    finally:
        knob.write_text("0")


def test_memory_of_a_node() -> None:
    with Reservation("8MiB", node=0) as r:
        r.commit()
        line = next(x for x in Path("/proc/self/numa_maps").read_text().splitlines() if x.startswith(f"{r.address:x}"))
        assert "bind:0" in line and "N0=" in line
    with pytest.raises(ValueError, match="no NUMA node 1023"):
        Reservation("8MiB", node=1023)
    with Reservation("8MiB", node=0, shared=True) as r:
        assert r.commit() == 8 * MIB


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"path": "/tmp", "fd": 0}, "exclude"),
        ({"path": "/tmp", "backing": "memfd"}, "exclude"),
        ({"path": ""}, "path must name"),
        ({"path": "a\0b"}, "path must name"),
        ({"fd": -1}, "open file descriptor"),
        ({"backing": "disk"}, "backing must be"),
        ({"readonly": True}, "for files"),
        ({"shared": True, "readonly": True}, "for files"),
        ({"path": "/tmp", "readonly": True}, "for files that are there"),
        ({"shared": True, "fork": "copy"}, "fork="),
        ({"shared": True, "fork": "wipe"}, "fork="),
        ({"fork": "share"}, "shared=True"),
        ({"backing": "memfd", "fork": "wipe"}, "anonymous memory only"),
        ({"pages": "3M"}, "pages must be"),
        ({"pages": ""}, "pages must be"),
        ({"pages": None}, "pages must be"),
        ({"node": -1}, "NUMA node"),
        ({"node": "0"}, "NUMA node"),
    ],
)
def test_what_makes_no_sense(options: dict[str, Any], error: str) -> None:
    for make in (Reservation, Arena) if "readonly" not in options else (Reservation,):
        with pytest.raises(ValueError, match=error):
            make("8MiB", **options)


def test_what_is_no_file_at_all(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        Reservation("8MiB", fd="0")  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Reservation("8MiB", path=5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="Reservation"):
        Arena("8MiB", path=tmp_path, readonly=True)
    with pytest.raises(ReserveError, match="no open file"):
        Reservation("8MiB", fd=12345)


def test_residency_without_pagemap_scan(child: Callable[..., str]) -> None:
    child(
        """
        import sys
        sys.path.insert(0, HERE)
        from kernel import answer
        answer(22, "ioctl", arg=1, values=(0xC0606610,))
        from arena import Reservation
        for pages in ("4K", "auto"):
            with Reservation("8MiB", pages=pages) as r:
                r.commit("4MiB")
                whole, part = r.residency(), r.residency("2MiB")
                assert whole.present == 4 << 20 and part.present == 2 << 20
                assert part.huge is None and whole.zero is None
                assert whole.huge == (0 if r.page_size == 4096 else 4 << 20), whole
        """.replace("HERE", repr(str(SUPPORT)))
    )
