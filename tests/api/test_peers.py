"""Who else has the memory: other reservations and users of a file, and the child of a fork. What was found out by
looking for it, and must not come back."""

from __future__ import annotations

import fcntl
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import machine
import pytest
from conftest import in_child
from machine import HUGE, MIB

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
