"""lock=True: what is committed is mlocked, and what is released is not. VmLck against the ledger."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
from collections.abc import Callable
from typing import Any

import machine
import pytest
from conftest import GIB, MIB, in_child, run_child
from measure import locked

from arena import Arena, CommitError, Reservation

KINDS: list[dict[str, Any]] = [
    {},
    {"pages": "4K"},
    {"backing": "memfd"},
    {"shared": True},
    {"shared": True, "backing": "anonymous"},
    {"path": "."},
    {"path": ".", "shared": True},
]
PR_CAPBSET_DROP, CAP_IPC_LOCK = 24, 14

libc = ctypes.CDLL(None, use_errno=True)


def limited(memlock: int) -> Callable[[], None]:
    """For a child, before exec: it may lock so much, and has no CAP_IPC_LOCK to lock more."""

    def preexec() -> None:
        if os.geteuid() == 0 and libc.prctl(PR_CAPBSET_DROP, CAP_IPC_LOCK, 0, 0, 0):
            raise OSError(ctypes.get_errno(), "PR_CAPBSET_DROP")
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (memlock, memlock))

    return preexec


@pytest.fixture(autouse=True)
def may_lock() -> None:
    with Reservation("1MiB", lock=True) as r:
        try:
            r.commit()
        except CommitError as error:
            pytest.skip(f"this process may not lock a MiB: {error}")


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_what_is_locked_is_what_is_committed(kind: dict[str, Any], tmp_path: Any) -> None:
    if "path" in kind:
        kind = {**kind, "path": tmp_path}
    before = locked()
    with Reservation("1GiB", lock=True, **kind) as r:
        assert locked() == before
        r.commit("20MiB")
        r.commit("2MiB", offset="512MiB")
        assert locked() - before == r.committed == 22 * MIB
        assert r.residency().locked == 22 * MIB
        r.commit("30MiB", offset="4MiB")
        assert locked() - before == r.committed == 36 * MIB
        r.release("10MiB", offset="2MiB")
        assert locked() - before == r.committed == r.residency().present == 26 * MIB
        r.release()
        assert locked() - before == r.committed == r.residency().present == 0
        r.commit("2MiB")
    assert locked() == before


def test_committed_for_reading_and_then_for_writing() -> None:
    before = locked()
    with Reservation("64MiB", lock=True, pages="4K") as r:
        r.commit("8MiB", populate="read")
        assert locked() - before == 8 * MIB
        r.commit("4MiB", offset="2MiB")
        assert locked() - before == 8 * MIB
        r.release("4MiB")
        assert locked() - before == 4 * MIB


def test_pages_of_the_pool_need_no_lock() -> None:
    with machine.huge_pages(2), Reservation("4MiB", lock=True, pages="2M") as r:
        before = locked()
        r.commit()
        assert locked() == before
        assert r.release() == 4 * MIB


def test_an_arena_locks_by_chunks_and_gives_back() -> None:
    before = locked()
    with Arena("64GiB", lock=True) as a:
        blocks = [a.alloc("3MiB") for _ in range(10)]
        assert locked() - before == a.stats().committed == 30 * MIB
        del blocks
        assert locked() - before == a.stats().committed == 30 * MIB
        a.trim()
        assert locked() - before == a.stats().committed == 0
    with Arena("64GiB", lock=True, retain=0) as a:
        a.alloc("3MiB").free()
        assert locked() == before


def test_a_commit_that_fails_leaves_nothing_locked() -> None:
    before = locked()
    with Reservation("1GiB", lock=True) as r:
        r.commit("2MiB", offset="6MiB")
        assert libc.munmap(ctypes.c_void_p(r.address + 12 * MIB), 4096) == 0
        with pytest.raises(CommitError):
            r.commit("20MiB")
        assert locked() - before == r.committed == 2 * MIB
        assert r.residency("12MiB").present == 2 * MIB


def test_a_small_limit_is_enough_for_what_is_committed() -> None:
    """60 of 64 MiB; fewer where the limit is lower and may not be raised."""
    _, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    memlock = 64 * MIB if hard == resource.RLIM_INFINITY else min(64 * MIB, hard)
    if memlock < 8 * MIB:
        pytest.skip(f"RLIMIT_MEMLOCK is {hard} bytes")
    done = run_child(
        f"""
        from arena import Arena, CommitError
        {indented(LOCKED)}
        a = Arena("64GiB", lock=True)
        blocks = [a.alloc("2MiB") for _ in range({memlock // MIB // 2 - 2})]
        assert locked() == a.stats().committed == {memlock - 4 * MIB}, locked()
        try:
            a.alloc("8MiB")
        except CommitError as error:
            print(error.op, error.errno, error.available >> 20, error)
        else:
            raise SystemExit("8 MiB more were locked")
        assert locked() == a.stats().committed == a.residency().present == {memlock - 4 * MIB}
        a.alloc("4MiB")
        del blocks
        a.trim()
        assert locked() == a.stats().committed == a.residency().present == 0
        """,
        preexec=limited(memlock),
    )
    assert done.returncode == 0, done.stderr
    said = done.stdout
    assert said.startswith(f"mlock {errno.ENOMEM} 4 ")
    for word in ("RLIMIT_MEMLOCK", "limits.conf", "LimitMEMLOCK=", "--ulimit memlock", "CAP_IPC_LOCK", "8 MiB"):
        assert word in said


LOCKED = """
def locked():
    return next(int(line.split()[1]) << 10 for line in open("/proc/self/status") if line.startswith("VmLck:"))
"""


def indented(code: str) -> str:
    return code.strip().replace("\n", "\n        ")


@pytest.mark.parametrize("memlock", [0, 64 * 1024])
def test_hardly_anything_may_be_locked(memlock: int) -> None:
    done = run_child(
        """
        from arena import CommitError, Reservation
        r = Reservation("64GiB", lock=True)
        try:
            r.commit("2MiB")
        except CommitError as error:
            assert "RLIMIT_MEMLOCK" in str(error), error
        else:
            raise SystemExit("it was locked")
        assert r.committed == r.residency().present == 0
        """,
        preexec=limited(memlock),
    )
    assert done.returncode == 0, done.stderr


# --- mlockall ---------------------------------------------------------------------------------------------------------

MLOCKALL = """
    import ctypes, os, sys
    from arena import Arena, Reservation
    CURRENT, FUTURE, ONFAULT = 1, 2, 4
    libc = ctypes.CDLL(None, use_errno=True)
    def mlockall(flags):
        assert libc.mlockall(flags) == 0, os.strerror(ctypes.get_errno())
    def rss():
        lines = open("/proc/self/smaps_rollup")
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Rss:"))
"""


@pytest.mark.parametrize("lock", [False, True])
@pytest.mark.parametrize("flags", ["FUTURE", "CURRENT | FUTURE", "CURRENT | FUTURE | ONFAULT"])
def test_made_under_mlockall(flags: str, lock: bool, child: Callable[..., str]) -> None:
    child(
        MLOCKALL
        + f"""
    Arena("1MiB").close()
    mlockall({flags})
    before = rss()
    a = Arena("64GiB", lock={lock})
    r = Reservation("64GiB", lock={lock}, shared=True)
    assert rss() - before < 1 << 20, rss() - before
    block = a.alloc("8MiB")
    r.commit("8MiB")
    assert a.residency().present == r.residency().present == 8 << 20
    assert (a.residency().locked, r.residency().locked) == ((8 << 20,) * 2 if {lock} else (0, 0))
    del block
    a.trim()
    r.release()
    assert a.residency().present == r.residency().present == a.residency().locked == r.residency().locked == 0
    """
    )


@pytest.mark.parametrize("kind", ['pages="4K"', "shared=True", 'shared=True, backing="anonymous"'])
@pytest.mark.parametrize("lock", [False, True])
def test_a_foreign_mlockall_afterwards(lock: bool, kind: str, child: Callable[..., str]) -> None:
    """It makes all of the reservation present, which we cannot prevent; what is released is given back all the same."""
    child(
        MLOCKALL
        + f"""
    r = Reservation("64MiB", lock={lock}, {kind})
    r.commit("8MiB")
    mlockall(CURRENT)
    assert r.residency().present == 64 << 20
    r.commit("16MiB")
    r.release("16MiB")
    assert r.residency("16MiB").present == 0
    r.commit("4MiB")
    assert r.residency("4MiB").present == 4 << 20
    """
    )


# --- forks ------------------------------------------------------------------------------------------------------------


def test_a_forks_child_inherits_no_locks_and_may_make_its_own() -> None:
    before = locked()
    with Reservation("1GiB", lock=True) as r:
        r.commit("8MiB")

        def child() -> None:
            assert locked() == 0
            r.commit("8MiB")
            assert locked() == r.residency().locked == 8 * MIB
            r.release()
            assert locked() == 0 == r.residency().present

        in_child(child)
        assert locked() - before == r.committed == 8 * MIB


def test_dropped() -> None:
    with Arena("1GiB", lock=True, fork="drop") as a:
        a.alloc("8MiB")

        def child() -> None:
            assert locked() == 0

        in_child(child)
        assert a.size == GIB
