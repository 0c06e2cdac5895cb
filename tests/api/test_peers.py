"""Who else has the memory: other reservations and users of a file, and the child of a fork. What was found out by
looking for it, and must not come back."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import signal
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path

import machine
import pytest
from compiled import need_a_compiler
from conftest import SUPPORT, in_child, run_child
from machine import HUGE, MIB
from measure import PAGE

from arena import Arena, CommitError, Reservation

pytestmark = pytest.mark.slow  # the same on every CPython


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ours"


def test_the_child_of_a_fork_in_progress_takes_nothing_from_its_parent() -> None:
    r = Reservation("256MiB", shared=True)
    r.fileno()
    child: list[int] = []
    go, gone = os.pipe()

    class Leave(Exception):
        pass

    def progress(done: int, total: int) -> None:
        if not child:
            child.append(os.fork())
            if child[0] == 0:
                os.close(gone)
                os.read(go, 1)  # until the parent has committed
                raise Leave

    try:
        r.commit(progress=progress, threads=1)
    except Leave:
        os._exit(0)
    os.close(gone)
    if child:
        os.waitpid(child[0], 0)
    os.close(go)
    assert r.committed == r.residency().present == 256 * MIB


def test_a_block_does_not_grow_in_a_child_that_shares_it() -> None:
    a = Arena("64MiB", shared=True)
    block = a.alloc(4096)
    a.warm("4MiB")

    def child() -> None:
        with pytest.raises(RuntimeError, match="parent"):
            block.resize(8192)
        block.resize(1024)

    in_child(child)


def test_a_dropped_view_reads_as_zeros_even_without_room_for_data(child: Callable[..., str]) -> None:
    child(
        """
        import os, resource
        from arena import Reservation
        used = int(open("/proc/self/statm").read().split()[5]) * 4096
        resource.setrlimit(resource.RLIMIT_DATA, (used + (128 << 20),) * 2)
        r = Reservation("1GiB", fork="drop", pages="4K")
        r.commit(4096)
        view = r.view(4096)
        view[0] = 1
        pid = os.fork()
        if pid == 0:
            os._exit(view[0])
        assert os.waitpid(pid, 0)[1] == 0
        """
    )


def test_peers_may_have_written_what_a_private_mapping_does_not_show(path: Path) -> None:
    with Reservation("1MiB", path=path) as r:
        r.commit()
        with path.open("r+b") as file:
            file.write(b"theirs")
        assert r.release() == MIB
        assert path.read_bytes()[:6] == b"theirs"
        r.commit(4096)
        assert bytes(r.view(6)) == b"theirs"
        r.release(discard=True)
        assert path.read_bytes() == bytes(MIB)


def test_a_file_that_appends_is_not_made_longer(path: Path) -> None:
    path.write_bytes(b"A" * 8192)
    fd = os.open(path, os.O_RDWR | os.O_APPEND)
    with Reservation(8192, fd=fd, shared=True) as r:
        os.close(fd)
        r.commit()
        r.write_from(b"hello", offset=4096)
        assert bytes(r.view(5, offset=4096)) == b"hello"
    assert path.stat().st_size == 8192


def test_a_device_is_read_by_its_mapping() -> None:
    with open("/dev/zero", "r+b", buffering=0) as device, Reservation(8192, fd=device, shared=True) as r:
        assert r.backing == "device"
        r.commit()
        r.view()[:5] = b"hello"
        into = bytearray(5)
        r.read_into(into)
        assert into == b"hello"
        r.write_from(b"there")
        assert bytes(r.view(5)) == b"there"


def test_discarding_keeps_others_out(path: Path) -> None:
    """Of the whole range, and not only of what was committed of it: a view of the rest is a view."""
    path.write_bytes(b"x" * MIB)
    with Reservation("1MiB", path=path, shared=True) as r:
        r.commit(4096, offset=512 << 10)
        with r.view(4096, offset=512 << 10), pytest.raises(BufferError):
            r.release(discard=True)
        assert path.read_bytes() == b"x" * MIB
        assert r.release("256KiB", discard=True) == 0
        assert path.read_bytes() == bytes(256 << 10) + b"x" * (768 << 10)


def locks(path: Path) -> int:
    return sum(f":{path.stat().st_ino} " in line for line in Path("/proc/locks").read_text().splitlines())


def test_looking_at_nothing_locks_nothing(path: Path) -> None:
    r = Reservation("256MiB", path=path, shared=True)
    seen = []

    def progress(done: int, total: int) -> None:
        seen.append(locks(path))
        r.verify(4096)  # nothing is committed there
        seen.append(locks(path))

    r.commit("128MiB", offset="128MiB", progress=progress)
    assert set(seen[:-2]) <= {1}  # the last is asked when it is over
    assert locks(path) == 0


def test_a_lock_of_the_programs_own_is_no_peer(path: Path) -> None:
    path.write_bytes(b"A" * 8192)

    def too_long(number: int, frame: object) -> None:
        raise TimeoutError

    with path.open("r+b") as file, Reservation(8192, fd=file, shared=True) as r:
        fcntl.lockf(file, fcntl.LOCK_EX)
        before = signal.signal(signal.SIGALRM, too_long)
        signal.alarm(10)
        try:
            assert r.commit() == 8192
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)


def test_two_reservations_of_one_file_do_not_wait_for_each_other_on_one_stack(path: Path) -> None:
    ours = Reservation("512MiB", path=path, shared=True)
    peer = Reservation("512MiB", path=path, shared=True)
    refused = []

    def progress(done: int, total: int) -> None:
        if done < total:
            try:
                peer.commit(4096)
            except RuntimeError as error:
                refused.append(str(error))

    ours.commit(progress=progress)
    assert all("further up its stack" in text for text in refused)
    assert peer.commit(4096) in (0, 4096)


def test_an_arena_that_fails_leaves_no_file(path: Path, child: Callable[..., str]) -> None:
    child(
        f"""
        import resource
        from arena import Arena, ReserveError
        resource.setrlimit(resource.RLIMIT_AS, (66 << 30, 66 << 30))
        try:
            Arena("64GiB", path={str(path)!r}, chunk=4096, pages="4K")
        except ReserveError as error:
            print(error)
        else:
            raise SystemExit("no error")
        """
    )
    assert not path.exists()


def test_a_sealed_file_keeps_what_cannot_be_released() -> None:
    with Reservation("1MiB", backing="memfd") as r:
        r.commit()
        r.view()[:] = b"x" * MIB
        fcntl.fcntl(r.fileno(), fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        # Exposed by fileno(): the copies go, and the file is left alone.
        assert r.release() == MIB
        assert r.residency().present == 0


def test_a_file_that_ends_within_a_huge_page(tmp_path: Path) -> None:
    with machine.mounted("tmpfs", "arena-test", tmp_path / "huge", "size=64M,huge=advise") as place:
        (place / "old").write_bytes(b"x" * (3 * MIB))
        with Reservation(3 * MIB, path=place / "old", shared=True) as r:
            assert r.page_size == 4096 and r.commit() == 3 * MIB
    with (
        machine.mounted("tmpfs", "arena-test", tmp_path / "always", "size=64M,huge=always") as place,
        Reservation("32MiB", path=place, shared=True, pages="4K") as r,
    ):
        r.commit(4096)
        r.release()
        assert os.fstat(r.fileno()).st_blocks * 512 < HUGE


def test_a_peers_huge_page_is_never_taken_for_ours(tmp_path: Path) -> None:
    with machine.hugetlbfs(4)(tmp_path) as place:
        ours = Reservation(8 * HUGE, path=place.path / "ours", shared=True)
        peer = Reservation(8 * HUGE, path=place.path / "ours", shared=True)
        peer.commit(1)
        peer.view(6)[:] = b"theirs"
        with pytest.raises(CommitError):
            ours.commit()
        assert bytes(peer.view(6)) == b"theirs"


def test_what_is_no_descriptor() -> None:
    class Odd:
        def fileno(self) -> str:
            return "0"

    for fd in (True, Odd()):
        with pytest.raises(TypeError, match="fileno"):
            Reservation("8MiB", fd=fd)  # type: ignore[arg-type]


def test_the_limit_on_open_files(tmp_path: Path, child: Callable[..., str]) -> None:
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] > 3
    child(
        f"""
        import resource
        from arena import Reservation, ReserveError
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))
        for options in (dict(shared=True), dict(path={str(tmp_path)!r})):
            try:
                Reservation("8MiB", **options)
            except ReserveError as error:
                assert "RLIMIT_NOFILE" in str(error), error
            else:
                raise SystemExit("no error")
        """
    )


# --- what a commit that is stopped or fails leaves of a peer's data ---


class Stop(Exception):
    pass


def stop(done: int, total: int) -> None:
    raise Stop


def peers(path: Path, at: int, size: int) -> memoryview:
    """A view of a mebibyte that a peer has written."""
    peer = Reservation(size, path=path, shared=True, pages="4K")
    peer.commit(MIB, offset=at)
    view = peer.view(MIB, offset=at)
    view[:] = b"P" * MIB
    return view


@pytest.mark.parametrize("shared", [False, True], ids=["private", "shared"])
@pytest.mark.parametrize("threads", [1, 3])
def test_what_a_stopped_commit_had_not_reached_is_not_touched(tmp_path: Path, shared: bool, threads: int) -> None:
    with machine.tmpfs(700 * MIB)(tmp_path) as place:
        path, size = place.path / "ours", 512 * MIB
        ours = Reservation(size, path=path, shared=shared, pages="4K")
        views = [peers(path, at * MIB, size) for at in (0, 7, 100, 500, 511)]
        before = os.stat(path).st_blocks
        with pytest.raises(Stop):
            ours.commit(progress=stop, threads=threads)
        assert all(view == b"P" * MIB for view in views)
        assert os.stat(path).st_blocks == before
        assert ours.committed == ours.residency().present == 0


def test_a_stopped_warm_keeps_what_peers_have(tmp_path: Path) -> None:
    with machine.tmpfs(700 * MIB)(tmp_path) as place:
        a = Arena("512MiB", path=place.path / "ours", shared=True, pages="4K")
        view = peers(place.path / "ours", 300 * MIB, 512 * MIB)
        with pytest.raises(Stop):
            a.warm("400MiB", progress=stop, threads=1)
        assert view == b"P" * MIB


def test_an_alloc_that_a_full_mount_refuses_keeps_what_peers_have(tmp_path: Path) -> None:
    with machine.tmpfs(32 * MIB)(tmp_path) as place:
        a = Arena("64MiB", path=place.path / "ours", shared=True, pages="4K", chunk="64KiB")
        view = peers(place.path / "ours", 40 * MIB, 64 * MIB)
        for _ in range(3):
            with pytest.raises(CommitError):
                a.alloc("60MiB")
        assert view == b"P" * MIB
        assert os.stat(place.path / "ours").st_blocks * 512 == MIB


def test_a_forks_child_whose_commit_is_stopped_takes_nothing_from_its_parent() -> None:
    r = Reservation("512MiB", shared=True, pages="4K")
    go, gone = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(gone)
        os.read(go, 1)  # until the parent has committed
        try:
            r.commit(progress=stop, threads=1)
        except Stop:
            os._exit(0)
        os._exit(1)
    r.commit(MIB, offset=500 * MIB)
    view = r.view(MIB, offset=500 * MIB)
    view[:] = b"P" * MIB
    os.close(gone)
    assert os.waitpid(pid, 0)[1] == 0
    os.close(go)
    assert view == b"P" * MIB
    assert os.fstat(r.fileno()).st_blocks * 512 == MIB


def test_a_limit_on_locked_memory_costs_no_peer_anything(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    for folder in tmp_path.parents[:2]:
        folder.chmod(0o755)
    with machine.tmpfs(128 * MIB)(tmp_path) as place:
        done = run_child(
            """
            import os, resource
            from arena import CommitError, Reservation
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            resource.setrlimit(resource.RLIMIT_MEMLOCK, (1 << 20, 1 << 20))
            path = os.environ["THERE"]
            ours = Reservation("64MiB", path=path, shared=True, lock=True, pages="4K")
            peer = Reservation("64MiB", path=path, shared=True, pages="4K")
            peer.commit("1MiB", offset="50MiB")
            view = peer.view("1MiB", offset="50MiB")
            view[:] = b"P" * (1 << 20)
            try:
                ours.commit("60MiB")
            except CommitError as error:
                assert error.op == "mlock", error
            else:
                raise SystemExit("no error")
            assert view == b"P" * (1 << 20)
            """,
            THERE=str(place.path / "ours"),
        )
    assert done.returncode == 0, done.stderr


def test_what_is_written_into_pages_of_ours_by_somebody_who_takes_no_locks_stays(tmp_path: Path) -> None:
    with machine.tmpfs(700 * MIB)(tmp_path) as place:
        path = place.path / "ours"
        ours = Reservation("512MiB", path=path, shared=True, pages="4K")

        def write_and_stop(done: int, total: int) -> None:
            with path.open("r+b") as file:
                for at in (0, 5 * PAGE, done - MIB, 500 * MIB):
                    file.seek(at)
                    file.write(b"theirs")
            written.extend((0, 5 * PAGE, done - MIB, 500 * MIB))
            raise Stop

        written: list[int] = []
        with pytest.raises(Stop):
            ours.commit(progress=write_and_stop, threads=1)
        with path.open("rb") as file:
            for at in written:
                file.seek(at)
                assert file.read(6) == b"theirs", at
        assert os.stat(path).st_blocks * 512 == 4 * PAGE


@pytest.mark.parametrize("reached", [False, True])
def test_huge_pages_of_a_file_that_peers_have_part_of(tmp_path: Path, reached: bool) -> None:
    """Only their number can be had: what cannot be told apart stays."""
    with machine.hugetlbfs(6)(tmp_path) as place:
        path = place.path / "ours"
        ours = Reservation(8 * HUGE, path=path, shared=True)
        peer = Reservation(8 * HUGE, path=path, shared=True)
        at = 0 if reached else 7 * HUGE
        peer.commit(HUGE, offset=at)
        peer.view(6, offset=at)[:] = b"theirs"
        with pytest.raises(CommitError):
            ours.commit()
        assert bytes(peer.view(6, offset=at)) == b"theirs"
        peer.release(HUGE, offset=at, discard=True)
        ours.release(discard=True)


# --- the locks that keep peers out ---

BESIDE_A_PEER = """
import errno, os
import kernel
from arena import CommitError, Reservation
path = os.environ["THERE"]
ours = Reservation("256MiB", path=path, shared=True, pages="4K")
peer = Reservation("256MiB", path=path, shared=True, pages="4K")
peer.commit("1MiB", offset="200MiB")
view = peer.view("1MiB", offset="200MiB")
view[:] = b"P" * (1 << 20)
class Stop(Exception):
    pass
def stop(done, total):
    raise Stop
"""


@pytest.mark.parametrize("refused", [errno.EACCES, errno.EIO, errno.EPERM, errno.EAGAIN])
def test_a_lock_that_is_refused_is_an_error(tmp_path: Path, refused: int) -> None:
    done = run_child(
        BESIDE_A_PEER
        + f"""
kernel.without_locks({refused})
for work in (ours.commit, ours.verify, ours.release):
    try:
        work()
    except CommitError as error:
        assert error.errno == {refused} and error.op == "lock of the file", error
    else:
        assert work != ours.commit
assert ours.committed == 0 and view == b"P" * (1 << 20)
""",
        THERE=str(tmp_path / "ours"),
        PYTHONPATH=str(SUPPORT),
    )
    assert done.returncode in (0, 77), done.stderr


@pytest.mark.parametrize("refused", [errno.ENOLCK, errno.EINVAL, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_does_without_and_takes_nothing_for_its_own(tmp_path: Path, refused: int) -> None:
    done = run_child(
        BESIDE_A_PEER
        + f"""
kernel.without_locks({refused})
try:
    ours.commit(progress=stop, threads=1)
except Stop:
    pass
assert ours.residency().present == 0 and view == b"P" * (1 << 20)
assert ours.commit() == 256 << 20
assert view == b"P" * (1 << 20)
""",
        THERE=str(tmp_path / "ours"),
        PYTHONPATH=str(SUPPORT),
    )
    assert done.returncode in (0, 77), done.stderr


@pytest.mark.parametrize("whences", [(3,), (4,), (3, 4)], ids=["data", "hole", "both"])
@pytest.mark.parametrize("refused", [errno.EINVAL, errno.EIO])
@pytest.mark.parametrize("disk", [False, True], ids=["tmpfs", "disk"])
def test_a_file_that_does_not_tell_what_data_it_has(
    tmp_path: Path, refused: int, whences: tuple[int, ...], disk: bool
) -> None:
    done = run_child(
        BESIDE_A_PEER
        + f"""
if {disk}:
    kernel.without_fallocate()
kernel.without_seek({refused}, *{whences})
try:
    ours.commit(progress=stop, threads=1)
except (Stop, CommitError):
    pass
assert view == b"P" * (1 << 20)
try:
    ours.commit()
except CommitError as error:
    assert error.errno == errno.EOPNOTSUPP and {disk}, error
assert view == b"P" * (1 << 20)
""",
        THERE=str(tmp_path / "ours" if disk else f"/dev/shm/arena-test-{os.getpid()}"),
        PYTHONPATH=str(SUPPORT),
    )
    if not disk:
        os.unlink(f"/dev/shm/arena-test-{os.getpid()}")
    assert done.returncode in (0, 77), done.stderr


def test_a_descriptor_for_the_locks_that_cannot_be_had_is_an_error(tmp_path: Path) -> None:
    """And not the end of all locks: the next commit has them."""
    done = run_child(
        BESIDE_A_PEER
        + """
import resource
limits = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (3, limits[1]))
try:
    ours.commit()
except CommitError as error:
    assert error.errno == errno.EMFILE, error
else:
    raise SystemExit("no error")
resource.setrlimit(resource.RLIMIT_NOFILE, limits)
held = []
inode = f":{os.stat(path).st_ino} "
def look(done, total):
    held.append(inode in open("/proc/locks").read())
ours.commit(progress=look, threads=1)
assert held[0]
""",
        THERE=str(tmp_path / "ours"),
        PYTHONPATH=str(SUPPORT),
    )
    assert done.returncode == 0, done.stderr


UNLOCKS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>

int failing = 0;

int fcntl(int fd, int command, ...) {
    static int (*real)(int, int, ...);
    va_list list;
    va_start(list, command);
    void *arg = va_arg(list, void *);
    va_end(list);
    if (!real) real = (int (*)(int, int, ...))dlsym(RTLD_NEXT, "fcntl");
    if (command == F_OFD_SETLK && ((struct flock *)arg)->l_type == F_UNLCK &&
        (failing > 1 || (failing && ((struct flock *)arg)->l_len)))
        return errno = ENOLCK, -1;
    return real(fd, command, arg);
}
int fcntl64(int, int, ...) __attribute__((alias("fcntl")));
"""


@pytest.mark.parametrize("failing", ["1", "2"], ids=["a range", "all of the file"])
def test_a_lock_that_could_not_be_given_up_keeps_nobody_waiting(tmp_path: Path, failing: str) -> None:
    """The kernel needs memory to unlock the middle of a range, and may have none; to unlock all it needs none."""
    need_a_compiler()
    (tmp_path / "unlocks.c").write_text(UNLOCKS)
    subprocess.run(
        ["gcc", "-shared", "-fPIC", str(tmp_path / "unlocks.c"), "-o", str(tmp_path / "unlocks.so"), "-ldl"], check=True
    )
    done = run_child(
        """
        import ctypes, os, threading
        from arena import Reservation
        path = os.environ["THERE"]
        failing = ctypes.c_int.in_dll(ctypes.CDLL(os.environ["LD_PRELOAD"]), "failing")
        failing.value = int(os.environ["FAILING"])
        ours = Reservation("64MiB", path=path, shared=True)
        def locks():
            here = f":{os.stat(path).st_ino} "
            return sum(here in line for line in open("/proc/locks"))
        ours.commit("8MiB")
        assert locks() == 0
        seen = []
        def progress(done, total):
            if not seen:
                ours.commit("8MiB", offset="8MiB")  # its lock cannot be given up while this one is held
                seen.append(locks())
        big = Reservation("512MiB", path=path + "2", shared=True)
        path += "2"
        ours = big
        big.commit(offset="16MiB", nbytes="480MiB", progress=progress)
        assert locks() == 0, open("/proc/locks").read()
        peer = Reservation("64MiB", path=path, shared=True)
        peer.commit()
        """,
        THERE=str(tmp_path / "ours"),
        LD_PRELOAD=str(tmp_path / "unlocks.so"),
        FAILING=failing,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


# --- a path that is missing, and several who want it ---


@pytest.mark.parametrize("without", ["", "kernel.without_tmpfile()"], ids=["O_TMPFILE", "without"])
def test_processes_that_start_at_once_on_one_path_all_have_all_of_it(tmp_path: Path, without: str) -> None:
    done = run_child(
        f"""
        import os
        import kernel
        from arena import Reservation
        {without}
        for turn in range(60):
            path = f"{{os.environ['THERE']}}/{{turn}}"
            go, gone = os.pipe()
            children = []
            for _ in range(4):
                pid = os.fork()
                if pid == 0:
                    os.close(gone)
                    os.read(go, 1)
                    status = 1
                    try:
                        with Reservation("1MiB", path=path, shared=True) as r:
                            status = r.commit() != 1 << 20
                    finally:
                        os._exit(status)
                children.append(pid)
            os.close(gone)
            ends = [os.waitpid(pid, 0)[1] for pid in children]
            assert ends == [0] * 4, (turn, ends)
            os.close(go)
        assert sorted(map(int, os.listdir(os.environ["THERE"]))) == list(range(60))
        """,
        THERE=str(tmp_path),
        PYTHONPATH=str(SUPPORT),
    )
    assert done.returncode in (0, 77), done.stderr


@pytest.mark.parametrize("without", ["kernel.without_links()", "kernel.without_tmpfile(); kernel.without_links()"])
def test_a_file_system_without_links_has_the_file_too(tmp_path: Path, without: str) -> None:
    done = run_child(
        f"""
        import os
        import kernel
        from arena import Reservation, ReserveError
        {without}
        folder = os.environ["THERE"]
        with Reservation("1MiB", path=folder + "/a", shared=True) as r:
            assert r.commit() == 1 << 20
        os.chdir(folder)
        with Reservation("1MiB", path="b", shared=True) as r, Reservation("1MiB", path="b", shared=True):
            assert r.commit() == 1 << 20
        try:
            Reservation("1MiB", path=folder + "/c/d", shared=True)
        except ReserveError as error:
            assert error.errno == 2, error
        else:
            raise SystemExit("no error")
        assert sorted(os.listdir(folder)) == ["a", "b"]
        assert os.stat("a").st_mode & 0o777 == 0o600
        """,
        THERE=str(tmp_path),
        PYTHONPATH=str(SUPPORT),
    )
    assert done.returncode in (0, 77), done.stderr


def test_whoever_waits_for_a_stopped_peer_can_be_interrupted(tmp_path: Path) -> None:
    path = tmp_path / "ours"
    with Reservation("1MiB", path=path, shared=True) as r:
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            fcntl.fcntl(os.open(path, os.O_RDWR), fcntl.F_OFD_SETLK, struct.pack("hhqqi", fcntl.F_WRLCK, 0, 0, 0, 0))
            os.write(write, b"x")
            os.kill(os.getpid(), signal.SIGSTOP)
            os._exit(0)
        os.read(read, 1)

        def enough(number: int, frame: object) -> None:
            raise TimeoutError

        before = signal.signal(signal.SIGALRM, enough)
        signal.setitimer(signal.ITIMER_REAL, 0.2)
        try:
            with pytest.raises(TimeoutError):
                r.commit()
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        assert r.commit() == MIB
