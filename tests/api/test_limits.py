"""Real limits: a memory cgroup, RLIMIT_AS and RLIMIT_DATA, overcommit mode 2, a kernel without MADV_POPULATE."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import GIB, MIB, SUPPORT, run_child
from machine import MemoryCgroup


def test_a_memory_cgroup_limit_is_an_error_and_not_a_kill(cgroup: MemoryCgroup) -> None:
    cgroup.limit(256 * MIB)
    done = run_child(
        """
        from arena import Arena, CommitError
        a = Arena("4GiB")
        for pages_worth in ("1GiB", "300MiB"):
            try:
                a.alloc(pages_worth)
            except CommitError as error:
                assert "cgroup" in str(error), error
                assert error.available < 256 << 20, error.available
                assert error.requested >= 300 << 20
            else:
                raise SystemExit("no error")
            assert a.stats().committed == 0 and a.residency().present == 0
        b = a.alloc("100MiB")
        b[0] = 1
        kept = []
        try:
            while True:
                kept.append(a.alloc("2MiB"))
        except CommitError:
            pass
        assert 50 < len(kept) < 78, len(kept)
        print("alive")
        """,
        preexec=cgroup.enter,
    )
    assert done.returncode == 0, done.stderr
    assert "alive" in done.stdout


def test_headroom_is_left(cgroup: MemoryCgroup) -> None:
    cgroup.limit(256 * MIB)
    done = run_child(
        """
        from arena import Arena, CommitError
        a = Arena("4GiB", headroom="128MiB")
        try:
            a.alloc("150MiB")
        except CommitError as error:
            assert error.available <= 128 << 20
        else:
            raise SystemExit("no error")
        a.alloc("64MiB")
        """,
        preexec=cgroup.enter,
    )
    assert done.returncode == 0, done.stderr


def test_more_is_left_where_neighbours_grow(cgroup: MemoryCgroup) -> None:
    cgroup.limit(512 * MIB)
    done = run_child(
        """
        import subprocess, sys
        from arena import Arena, CommitError
        grow = "kept = []\\nwhile input(): kept.append(bytearray(b'x') * (16 << 20)); print(flush=True)"
        neighbour = subprocess.Popen([sys.executable, "-c", grow], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        a, kept = Arena("4GiB", pages="4K", chunk="64KiB"), []
        try:
            while True:
                kept.append(a.alloc("4MiB"))
                neighbour.stdin.write(b"more\\n")
                neighbour.stdin.flush()
                neighbour.stdout.readline()
        except CommitError:
            pass
        assert len(kept) > 10
        # Without neighbours 17 to 37 MiB were left, and this were too much.
        Arena("4GiB", headroom=0, pages="4K").alloc("40MiB")
        neighbour.kill()
        """,
        preexec=cgroup.enter,
    )
    assert done.returncode == 0, done.stderr


UNDER_CGROUP_V2 = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def must(rc):
    if rc:
        print(os.strerror(ctypes.get_errno()))
        sys.exit(77)
must(libc.unshare(0x20000))
must(libc.mount(b"none", b"/", None, 0x44000, None))
for name in (b"cgroup", b"mountinfo"):
    below = os.environb[b"FILES"] + b"/" + name
    must(libc.mount(below, b"/proc/%d/%s" % (os.getpid(), name), None, 0x1000, None))
from arena import Arena, CommitError
a = Arena("4GiB", headroom=0)
try:
    a.alloc("1GiB")
except CommitError as error:
    # box: 700 - (650 - 200); app: 900 - (600 - 200); and 1 MiB is left to the kernel
    assert error.available == (250 - 1) << 20, error
    assert "box/memory.max" in str(error), error
a.alloc("100MiB")
"""


def test_cgroup_v2_the_tightest_limit_up_to_the_root(tmp_path: Path) -> None:
    """The memory controller is in one hierarchy at a time, and where that is v1 this cannot be had for real: the files
    of v2 are laid beneath the child."""
    if os.geteuid() != 0:
        pytest.skip("mounts need root")
    group = tmp_path / "box" / "app"
    group.mkdir(parents=True)
    for folder, limit, high, usage in ((group, 3000, 900, 600), (group.parent, 700, None, 650)):
        for name, mib in (("max", limit), ("high", high), ("current", usage)):
            (folder / f"memory.{name}").write_text("max\n" if mib is None else f"{mib * MIB}\n")
        cache = 100 * MIB
        (folder / "memory.stat").write_text(f"anon 12345\nfile 7\ninactive_file {cache}\nactive_file {cache}\n")
    (tmp_path / "cgroup").write_text("9:name=systemd:/\n0::/box/app\n")
    (tmp_path / "mountinfo").write_text(f"30 23 0:26 / {tmp_path} rw,nosuid - cgroup2 cgroup2 rw\n")
    done = run_child(UNDER_CGROUP_V2, FILES=str(tmp_path))
    if done.returncode == 77:
        pytest.skip(f"no mounts here: {done.stdout}")
    assert done.returncode == 0, done.stderr


def test_address_space_limit(child: Callable[..., str]) -> None:
    child(
        """
        import resource
        from arena import Arena, Reservation, ReserveError
        resource.setrlimit(resource.RLIMIT_AS, (4 << 30, 4 << 30))
        for make in (Arena, Reservation):
            try:
                make("8GiB")
            except ReserveError as error:
                assert "RLIMIT_AS" in str(error), error
                assert error.requested >= 8 << 30 or make is Arena
                assert isinstance(error, MemoryError)
            else:
                raise SystemExit("no error")
        a = Arena("256MiB")
        a.alloc("10MiB")[0] = 1
        """
    )


def test_data_limit_is_met_when_committing(child: Callable[..., str]) -> None:
    # RLIMIT_DATA counts writable private memory, so such a range is opened by mprotect when it is committed.
    child(
        """
        import resource
        from arena import CommitError, Reservation
        used = int(open("/proc/self/statm").read().split()[5]) * 4096
        limit = used + (64 << 20)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        r = Reservation("1GiB", pages="4K")
        assert r.commit("10MiB") == 10 << 20
        r.view("10MiB")[:] = b"1" * (10 << 20)
        try:
            r.commit("512MiB")
        except CommitError as error:
            assert "RLIMIT_DATA" in str(error), error
        else:
            raise SystemExit("no error")
        assert r.committed == 10 << 20
        assert r.residency("10MiB").present == 10 << 20
        assert r.release() == 10 << 20
        assert r.commit("40MiB") == 40 << 20
        assert bytes(r.view("10MiB")) == bytes(10 << 20)
        """
    )


@pytest.mark.parametrize("where", ["memfd", "directory"])
def test_what_is_released_of_a_file_under_a_data_limit_stays_when_it_cannot_be_mapped_anew(
    where: str, tmp_path: Path
) -> None:
    done = run_child(
        """
        import errno, os, resource
        import kernel
        from arena import CommitError, Reservation
        used = int(open("/proc/self/statm").read().split()[5]) * 4096
        limit = used + (64 << 20)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        where = os.environ["WHERE"]
        r = Reservation("1GiB", pages="4K", **({"backing": "memfd"} if where == "memfd" else {"path": where}))
        for _ in range(2):
            assert r.commit("10MiB", offset="1MiB") == 10 << 20
            view = r.view("10MiB", offset="1MiB")
            assert view == bytes(10 << 20)
            view[:] = b"1" * (10 << 20)
            view.release()
            assert r.release("10MiB", offset="1MiB") == 10 << 20
            assert r.residency().present == 0
        r.commit("10MiB")
        r.view("10MiB")[:] = b"2" * (10 << 20)
        kernel.answer(errno.ENOMEM, "mremap")
        try:
            r.release()
        except CommitError as error:
            assert error.op == "release" and error.errno == errno.ENOMEM, error
        else:
            raise SystemExit("no error")
        assert r.committed == 10 << 20
        assert r.view("10MiB") == b"2" * (10 << 20)
        """,
        WHERE=where if where == "memfd" else str(tmp_path),
        PYTHONPATH=str(SUPPORT),
    )
    assert done.returncode in (0, 77), done.stderr


def test_overcommit_mode_2(overcommit: Callable[[int], object], child: Callable[..., str]) -> None:
    overcommit(2)
    child(
        """
        def charged():
            # Of the arena alone: Committed_AS is the machine's, and the whole of it moves.
            total, inside = 0, False
            for line in open("/proc/self/smaps"):
                first = line.split(maxsplit=1)[0]
                if not first.endswith(":"):
                    start, end = (int(at, 16) for at in first.split("-"))
                    inside = a.address <= start < a.address + a.size
                elif inside and first == "VmFlags:" and "ac" in line.split():
                    total += end - start
            return total

        from arena import Arena
        a = Arena("1TiB")
        assert charged() == 0
        b = a.alloc("64MiB")
        b[0] = 1
        assert charged() == 64 << 20
        b.free()
        del b
        assert a.trim() == 64 << 20
        assert charged() == 0
        kept = [a.alloc(n) for n in (100, 5000, 3 << 20, 64)]
        for k in kept:
            k[0] = k[len(k) - 1] = 1
        freed = a.alloc("8MiB")
        view_like = freed
        freed.free()
        a.trim()             # must not take the pages from under an object that is freed but alive
        assert a.stats().free_committed >= 8 << 20
        del freed, view_like
        assert a.trim() >= 8 << 20
        """
    )


NO_POPULATE = """
import ctypes, struct, sys

# A seccomp filter that answers EINVAL to madvise(…, 22) and madvise(…, 23): a kernel before 5.14, as far as we can see.
def old_kernel():
    def stmt(code, k): return struct.pack("HBBI", code, 0, 0, k)
    def jump(k, t, f): return struct.pack("HBBI", 0x15, t, f, k)
    madvise = {"x86_64": 28, "aarch64": 233}[__import__("platform").machine()]
    code = [stmt(0x20, 0), jump(madvise, 0, 4), stmt(0x20, 32), jump(22, 1, 0), jump(23, 0, 1),
            stmt(0x06, 0x00050000 | 22), stmt(0x06, 0x7FFF0000)]
    text = b"".join(code)
    buffer = ctypes.create_string_buffer(text)
    program = struct.pack("HxxxxxxP", len(code), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, program, 0, 0) == 0, ctypes.get_errno()

old_kernel()
"""


def test_a_kernel_without_populate(child: Callable[..., str]) -> None:
    child(
        NO_POPULATE
        + """
import mmap, resource
m = mmap.mmap(-1, 4096)
try:
    m.madvise(23)
except OSError as error:
    assert error.errno == 22
else:
    raise SystemExit("the filter does not work")
from arena import Arena, Reservation
def faults():
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
for pages in ("4K", "thp"):
    r = Reservation("64MiB", pages=pages)
    assert r.commit(threads=2) == 64 << 20
    assert r.residency().present == 64 << 20
    view = r.view()
    before = faults()
    for at in range(0, 64 << 20, 4096):
        view[at] = 1
    assert faults() - before < 10  # the interpreter's own
    view.release()
    assert r.release() == 64 << 20
    assert r.commit(populate="read") == 64 << 20
    assert bytes(r.view(readonly=True)[:4096]) == bytes(4096)
a = Arena("1GiB")
a.warm("64MiB")
b = a.alloc("50MiB", zero=True)
before = faults()
for at in range(0, 50 << 20, 4096):
    b[at] = 1
assert faults() - before < 10
"""
    )


def test_a_bounded_number_of_threads(child: Callable[..., str]) -> None:
    # Helper threads that cannot be had are done without.
    child(
        """
        import os, resource
        from arena import Reservation
        os.setuid(65534)
        resource.setrlimit(resource.RLIMIT_NPROC, (1, 1))
        r = Reservation("256MiB")
        assert r.commit(threads=8) == 256 << 20
        """
    )


def test_errors_carry_their_numbers() -> None:
    from arena import CommitError, Reservation

    r = Reservation("8TiB")
    r.commit("2MiB")
    try:
        r.commit("4TiB", offset="1TiB")
    except CommitError as error:
        numbers: list[Any] = [error.errno, error.op, error.offset, error.requested, error.committed, error.available]
        assert numbers[1:5] == ["preflight", 1 << 40, 4 << 40, 2 * MIB]
        assert 0 < numbers[5] < 4096 * GIB
        assert error.hint
    else:
        raise AssertionError("no error")


def test_under_rlimit_data_what_is_available_is_what_it_leaves(child: Callable[..., str]) -> None:
    child(
        """
        import resource
        from arena import Arena, CommitError
        def used(): return int(open("/proc/self/status").read().split("VmData:")[1].split()[0]) << 10
        limit = used() + (64 << 20)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        a = Arena("1GiB", pages="4K")
        try:
            a.alloc("512MiB")
        except CommitError as error:
            assert abs(error.available - (limit - used())) < 4 << 20, error
            assert "RLIMIT_DATA" in error.hint and "(RLIMIT_DATA)" in str(error), error
        else:
            raise SystemExit("no error")
        """
    )


def test_overcommit_mode_2_says_what_is_left_of_the_charge(
    overcommit: Callable[[int], object], child: Callable[..., str]
) -> None:
    overcommit(2)
    child(
        """
        from arena import Arena, CommitError
        import os
        memory = os.sysconf("SC_PHYS_PAGES") * 4096
        text = open("/proc/meminfo").read()
        limit, charged = (int(text.split(key)[1].split()[0]) << 10 for key in ("CommitLimit:", "Committed_AS:"))
        free = int(text.split("MemAvailable:")[1].split()[0]) << 10
        want = limit - charged + (2 << 30)  # whatever others give up meanwhile
        if want > free - (1 << 30):
            raise SystemExit(0)  # the machine's memory is the tighter limit
        try:
            Arena("1TiB").alloc(want)
        except CommitError as error:
            assert "CommitLimit" in str(error) and error.available < want, error
        else:
            raise SystemExit("no error")
        """
    )
