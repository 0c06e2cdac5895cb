"""Real limits of memory cgroups: past one there is SIGKILL, and here an exception is to come instead."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import machine
import pytest
from conftest import MIB, run_child
from machine import MemoryCgroup

RACE = """
import sys, threading
from arena import Arena
a = Arena("1GiB", **{options})
kept = []
def go():
    try:
        while True:
            kept.append(a.alloc("{size}"))
    except MemoryError:
        pass
threads = [threading.Thread(target=go) for _ in range(8)]
for t in threads: t.start()
for t in threads: t.join()
print(sum(map(len, kept)) >> 20)
"""


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"shared": True}, "8MiB"),
        ({"shared": True, "headroom": 0}, "8MiB"),
        ({"pages": "4K"}, "4MiB"),
        ({"headroom": 0}, "4MiB"),
    ],
)
def test_threads_do_not_race_past_the_limit(cgroup: MemoryCgroup, options: dict[str, object], size: str) -> None:
    cgroup.limit(128 * MIB)
    for _ in range(4):
        done = run_child(RACE.format(options=options, size=size), preexec=cgroup.enter)
        assert done.returncode == 0, done.stderr
        assert 64 <= int(done.stdout) <= 128


@pytest.mark.parametrize("threads", [2, 8])
def test_helpers_do_not_race_past_the_limit(cgroup: MemoryCgroup, threads: int) -> None:
    cgroup.limit(128 * MIB)
    code = f"""
    from arena import Arena
    for options in ({{}}, {{"shared": True}}, {{"pages": "4K", "headroom": 0}}):
        a = Arena("1GiB", **options)
        for mib in (100, 20, 10, 5, 4, 3, 2):
            for call in (a.alloc, lambda n: a.warm(n, threads={threads})):
                try:
                    call(mib << 20)
                except MemoryError:
                    pass
        a.trim()
    """
    for _ in range(3):
        done = run_child(code, preexec=cgroup.enter)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("options", [{}, {"shared": True}, {"pages": "4K", "headroom": 0}])
def test_processes_do_not_race_past_the_limit(cgroup: MemoryCgroup, options: dict[str, object]) -> None:
    cgroup.limit(512 * MIB)
    code = f"""
    import sys
    from arena import Arena, CommitError
    a = Arena("1GiB", **{options})
    print("ready", flush=True)
    sys.stdin.read(1)
    try:
        b = a.alloc("200MiB")
    except CommitError:
        assert a.stats().committed == a.residency().present == 0
    print("done", flush=True)
    sys.stdin.read()
    """
    for _ in range(2):
        ranks = [
            subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(code)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                preexec_fn=cgroup.enter,
            )
            for _ in range(4)
        ]
        for said in (b"ready\n", b"done\n"):
            for rank in ranks:
                assert rank.stdout and rank.stdout.readline() == said
            for rank in ranks:
                assert rank.stdin
                if said == b"ready\n":
                    rank.stdin.write(b"x")
                    rank.stdin.flush()
        for rank in ranks:
            rank.communicate(timeout=60)
        assert [rank.returncode for rank in ranks] == [0] * 4


def test_nobody_waits_for_ever_for_a_peer_that_has_the_lock_and_stopped(cgroup: MemoryCgroup) -> None:
    cgroup.limit(64 * MIB)
    folder = os.open(cgroup.path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        done = run_child(
            """
            import signal, time
            from arena import Arena, CommitError
            a = Arena("1GiB")
            class Stop(Exception): pass
            def stop(*_): raise Stop
            signal.signal(signal.SIGALRM, stop)
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            try:
                a.alloc("20MiB")      # waits for the lock, and listens to signals
            except Stop:
                assert a.stats().committed == 0
            else:
                raise SystemExit("it did not wait")
            kept = a.alloc("20MiB")   # goes on without it
            try:
                a.alloc("40MiB")
            except CommitError:
                print("refused")
            """,
            preexec=cgroup.enter,
        )
    finally:
        os.close(folder)
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr


HOLDER = """
import os, time
from arena import Arena
a = Arena("1GiB")
kept = a.alloc("20MiB")
if os.fork() == 0:
    print(os.getpid(), flush=True)
time.sleep(60)
"""


def test_the_lock_goes_with_its_process_and_not_to_the_child_of_a_fork(cgroup: MemoryCgroup) -> None:
    cgroup.limit(64 * MIB)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            HOLDER,
        ],
        stdout=subprocess.PIPE,
        preexec_fn=cgroup.enter,
    )
    assert holder.stdout
    child = int(holder.stdout.readline())
    holder.stdout.close()
    holder.kill()
    holder.wait()
    folder = os.open(cgroup.path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        links = [os.readlink(f"/proc/{child}/fd/{fd}") for fd in os.listdir(f"/proc/{child}/fd")]
        assert str(cgroup.path) not in links
    finally:
        os.close(folder)
        os.kill(child, 9)


# Descriptors.

NONE_LEFT = """
import os, resource
from arena import Arena, CommitError, ReserveError, Reservation
def none_left():
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
    kept = []
    try:
        while True:
            kept.append(os.open("/dev/null", 0))
    except OSError:
        return kept
"""


@pytest.mark.parametrize("options", [{}, {"shared": True}])
def test_without_descriptors_the_limit_is_still_seen(cgroup: MemoryCgroup, options: dict[str, object]) -> None:
    cgroup.limit(256 * MIB)
    done = run_child(
        NONE_LEFT
        + f"""
a = Arena("64GiB", **{options})
none_left()
for call in (lambda: a.warm("1GiB"), lambda: [a.alloc("4MiB") for _ in range(300)]):
    try:
        call()
    except CommitError as error:
        assert "memory.limit_in_bytes" in str(error) or "memory.max" in str(error), error
    else:
        raise SystemExit("no error")
print("survived")
""",
        preexec=cgroup.enter,
    )
    assert (done.returncode, done.stdout) == (0, "survived\n"), done.stderr


def test_without_descriptors_a_new_arena_is_an_error_and_no_worse_arena(child: Callable[..., str]) -> None:
    child(
        NONE_LEFT
        + """
import errno
kept = none_left()
for options in ({}, {"pages": "thp"}, {"shared": True}, {"pages": "2M"}):
    try:
        Arena("1GiB", **options)
    except ReserveError as error:
        assert error.errno == errno.EMFILE, error
        assert "RLIMIT_NOFILE" in error.hint
    else:
        raise SystemExit("no error")
for fd in kept:
    os.close(fd)
Arena("1GiB").alloc("4MiB")
"""
    )


def test_a_program_that_closes_descriptors_it_does_not_know(cgroup: MemoryCgroup) -> None:
    """Their numbers are other files then: these are left alone, and not read as limits."""
    cgroup.limit(256 * MIB)
    done = run_child(
        NONE_LEFT
        + """
import errno, tempfile
a = Arena("64GiB")
os.closerange(3, 64)
with tempfile.TemporaryFile() as file:
    file.write(b"9" * 15)
    file.flush()
    others = [os.dup(file.fileno()) for _ in range(30)]
    for limit in (errno.ENOMEM, errno.EMFILE):
        if limit == errno.EMFILE:
            os.closerange(40, 64)
            resource.setrlimit(resource.RLIMIT_NOFILE, (34, 34))
            for fd in range(3, 34):
                if fd not in others and fd != file.fileno():
                    os.dup2(file.fileno(), fd)
        try:
            a.alloc("1GiB")
        except CommitError as error:
            assert error.errno == limit, error
            assert limit == errno.ENOMEM or "/" in error.hint, error.hint
        else:
            raise SystemExit("no error")
    for fd in others:
        os.fstat(fd)
print("survived")
""",
        preexec=cgroup.enter,
    )
    assert (done.returncode, done.stdout) == (0, "survived\n"), done.stderr


# Forks, and other cgroups.


def test_warm_after_a_fork_looks_ahead(cgroup: MemoryCgroup) -> None:
    cgroup.limit(256 * MIB)
    usage = cgroup.path / ("memory.usage_in_bytes" if "limit_in" in cgroup.limit_file else "memory.current")
    done = run_child(
        f"""
        import os
        from arena import Arena, CommitError
        def used(): return int(open({str(usage)!r}).read())
        a = Arena("1GiB")
        b = a.alloc("150MiB")
        view = memoryview(b)
        for at in range(0, len(view), 1 << 20):
            view[at : at + (1 << 20)] = b"x" * (1 << 20)
        if os.fork() == 0:
            before = used()
            try:
                a.warm("1MiB")
            except CommitError as error:
                assert error.op == "preflight", error
                assert used() - before < 8 << 20
                assert bytes(view[:10]) == b"x" * 10
                os._exit(7)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.wait()[1]) == 7
        """,
        preexec=cgroup.enter,
    )
    assert done.returncode == 0, done.stderr


def test_verify_needs_no_room_for_what_is_there(cgroup: MemoryCgroup) -> None:
    cgroup.limit(64 * MIB)
    done = run_child(
        """
        from arena import Arena, Reservation
        a, r, kept = Arena("1GiB"), Reservation("8MiB"), []
        r.commit()
        try:
            while True:
                kept.append(a.alloc("1MiB"))
        except MemoryError:
            r.verify()
        """,
        preexec=cgroup.enter,
    )
    assert done.returncode == 0, done.stderr


def test_a_process_that_is_moved_to_another_cgroup(cgroup: MemoryCgroup) -> None:
    cgroup.limit(256 * MIB)
    inner = cgroup.path / "inner"
    done = run_child(
        f"""
        import os
        from arena import Arena, CommitError
        a = Arena("64GiB")
        a.alloc("2MiB")
        os.mkdir({str(inner)!r})
        try:
            open({str(inner / cgroup.limit_file)!r}, "w").write(str(64 << 20))
            pid = os.fork()
            if pid == 0:
                open({str(inner / "cgroup.procs")!r}, "w").write(str(os.getpid()))
                try:
                    a.warm("100MiB")
                except CommitError as error:
                    assert "/inner/" in str(error), error
                    os._exit(7)
                os._exit(1)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
        finally:
            os.rmdir({str(inner)!r})
        """,
        preexec=cgroup.enter,
    )
    if "Operation not supported" in done.stderr:
        pytest.skip("cgroup v2 has no processes beside folders")
    assert done.returncode == 0, done.stderr


IN_A_NAMESPACE = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x02000000):
    print(os.strerror(ctypes.get_errno()))
    sys.exit(77)
"""


def test_a_cgroup_namespace_that_sees_the_mount_of_outside(cgroup: MemoryCgroup) -> None:
    cgroup.limit(128 * MIB)
    done = run_child(
        IN_A_NAMESPACE
        + f"""
from arena import Arena, CommitError, doctor
assert open("/proc/self/cgroup").read().count({cgroup.path.name!r}) == 0
a = Arena("1GiB")
try:
    a.alloc("300MiB")
except CommitError as error:
    assert {cgroup.path.name!r} in str(error), error
else:
    raise SystemExit("no error")
found = {{finding.name: finding for finding in doctor.examine()}}["memory cgroup"]
assert "of 128 MiB" in found.value, found
""",
        preexec=cgroup.enter,
    )
    if done.returncode == 77:
        pytest.skip(f"no cgroup namespace here: {done.stdout}")
    assert done.returncode == 0, done.stderr


def test_where_the_cgroup_cannot_be_seen_the_doctor_says_so(cgroup: MemoryCgroup) -> None:
    cgroup.limit(128 * MIB)
    done = run_child(
        """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x20000) or libc.mount(b"none", b"/", None, 0x44000, None):
    sys.exit(77)
for line in reversed(open("/proc/self/mountinfo").readlines()):
    if " - cgroup" in line or line.split()[4] == "/sys/fs/cgroup":
        libc.umount2(line.split()[4].encode(), 2)
from arena import Arena, doctor
found = {finding.name: finding for finding in doctor.examine()}["memory cgroup"]
assert found.value == "cannot be seen" and found.verdict == "limits you", found
Arena("1GiB").alloc("16MiB")
""",
        preexec=cgroup.enter,
    )
    if done.returncode == 77:
        pytest.skip("no mount namespace of our own")
    assert done.returncode == 0, done.stderr


def test_the_end_of_a_long_path_is_told(cgroup: MemoryCgroup) -> None:
    cgroup.limit(256 * MIB)
    inner = cgroup.path / ("ä" * 60) / ("b" * 120)
    inner.mkdir(parents=True)
    try:
        if not (inner / cgroup.limit_file).exists():
            pytest.skip("the controller is not enabled below a cgroup of v2")
        (inner / cgroup.limit_file).write_text(str(64 * MIB))
        done = run_child(
            f"""
            from arena import Arena, CommitError
            try:
                Arena("1GiB").alloc("100MiB")
            except CommitError as error:
                assert "b" * 60 + "/{cgroup.limit_file}" in str(error), error
                assert "\\ufffd" not in str(error), error
            else:
                raise SystemExit("no error")
            """,
            preexec=lambda: (inner / "cgroup.procs").write_text(str(os.getpid())),
        )
        assert done.returncode == 0, done.stderr
    finally:
        inner.rmdir()
        inner.parent.rmdir()


# What is left, and what counts.


@pytest.mark.parametrize("limit", [64, 512])
@pytest.mark.parametrize("options", [{}, {"shared": True}, {"chunk": "4KiB"}])
def test_by_default_the_program_can_go_on(cgroup: MemoryCgroup, limit: int, options: dict[str, object]) -> None:
    cgroup.limit(limit * MIB)
    done = run_child(
        f"""
        import threading, traceback
        from arena import Arena
        a = Arena("1GiB", **{options})
        kept = []
        def fill():
            for size in ("16MiB", "2MiB", "64KiB", "4KiB"):
                while True:
                    kept.append(a.alloc(size))
        try:
            fill()
        except MemoryError:
            try:
                while True:
                    kept.append(a.alloc("4KiB"))
            except MemoryError:
                text = traceback.format_exc()
        import decimal, email.message, http.client, logging, sqlite3, unittest
        logging.error(text)
        threads = [threading.Thread(target=lambda: sum(range(10000))) for _ in range(4)]
        for t in threads: t.start()
        for t in threads: t.join()
        data = [bytes(1000) for _ in range(3000)]
        if {limit} == 512:
            data += [bytes(1000) for _ in range(5000)]
        kept.clear()
        a.trim()
        a.alloc("16MiB")
        print(len(data))
        """,
        preexec=cgroup.enter,
    )
    assert done.returncode == 0, done.stderr
    assert "CommitError" in done.stderr


def test_locked_pages_of_a_file_cost_memory(cgroup: MemoryCgroup, tmp_path: Path) -> None:
    """On a disk of its own: the pages of a tmpfs are memory in any case."""
    path = tmp_path / "weights"
    with machine.disk(300 * MIB)(tmp_path) as place:
        path = place.path / "weights"
        with path.open("wb") as file:
            for i in range(160):
                file.write(bytes([i]) * MIB)
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        cgroup.limit(96 * MIB)
        for options in ("readonly=True, shared=True", "readonly=True", "shared=True"):
            done = run_child(
                f"""
                from arena import CommitError, Reservation
                r = Reservation(160 << 20, path={str(path)!r}, lock=True, {options})
                populate = "read" if "readonly" in {options!r} else "write"
                try:
                    r.commit(populate=populate)
                except CommitError as error:
                    assert error.op == "preflight" and "cgroup" in str(error), error
                else:
                    raise SystemExit("no error")
                assert r.committed == 0
                assert r.commit("16MiB", populate=populate) == 16 << 20
                free = Reservation(160 << 20, path={str(path)!r}, readonly=True, shared=True)
                free.commit(populate="read")
                """,
                preexec=cgroup.enter,
            )
            assert done.returncode == 0, f"{options}: {done.stderr}"


@pytest.mark.parametrize("reserved", [False, True])
def test_the_limit_of_a_hugetlb_cgroup_is_told_apart_from_an_empty_pool(tmp_path: Path, reserved: bool) -> None:
    with machine.hugetlb_limit(4 * MIB, machine.pool(4), reserved)(tmp_path) as place:
        done = run_child(
            f"""
            from arena import CommitError, Reservation, doctor
            for shared in (False, True):
                r = Reservation("8MiB", pages="2M", shared=shared)
                assert r.commit("2MiB") == 2 << 20
                try:
                    r.commit("4MiB", offset="2MiB")
                except CommitError as error:
                    assert "hugetlb cgroup's limit" in error.hint, error
                    assert ("rsvd" in error.hint) == {reserved}, error
                    assert error.available == 2 << 20, error
                else:
                    raise SystemExit("no error")
                r.close()
            found = {{finding.name: finding for finding in doctor.examine()}}["hugetlb cgroup 2 MiB"]
            assert found.value == "4 MiB left of 4 MiB", found
            """,
            preexec=place.enter,
        )
    assert done.returncode == 0, done.stderr
