"""Kernels that are older than this one, or refuse what it allows: each is played in a child, by a seccomp filter or by
a library that answers as they do. Where a test tells the core so: core/test_core_old_kernels.py."""

from __future__ import annotations

import mmap
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import machine
import pytest
from compiled import need_a_compiler
from conftest import SUPPORT, run_child
from machine import MIB

pytestmark = pytest.mark.slow  # the same on every CPython

HERE = f"import sys; sys.path.insert(0, {str(SUPPORT)!r})\n"

# mm/shmem.c up to Linux 6.10: a signal that comes while it allocates undoes what was done. 2.2 GiB/s, as measured.
OLD_TMPFS = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <time.h>

int fallocate(int fd, int mode, off_t offset, off_t length) {
    int (*real)(int, int, off_t, off_t) = (int (*)(int, int, off_t, off_t))dlsym(RTLD_NEXT, "fallocate");
    if (!(mode & FALLOC_FL_PUNCH_HOLE)) {
        struct timespec t = {0, (long)(length / 2.2)};
        sigset_t all, before, came;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        nanosleep(&t, 0);
        sigpending(&came);
        int interrupted = sigismember(&came, SIGALRM) == 1 && !sigismember(&before, SIGALRM);
        pthread_sigmask(SIG_SETMASK, &before, 0);
        if (interrupted) return errno = EINTR, -1;
    }
    return real(fd, mode, offset, length);
}
int fallocate64(int fd, int mode, off_t offset, off_t length) { return fallocate(fd, mode, offset, length); }
"""


@pytest.fixture
def old_tmpfs(tmp_path: Path) -> str:
    need_a_compiler()
    source, library = tmp_path / "old_tmpfs.c", tmp_path / "old_tmpfs.so"
    source.write_text(OLD_TMPFS, encoding="utf-8")
    subprocess.run(["gcc", "-shared", "-fPIC", "-O1", str(source), "-o", str(library), "-ldl"], check=True)
    return str(library)


@pytest.fixture
def populating() -> None:
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        try:
            page.madvise(23)
        except OSError:
            pytest.skip("this kernel has no MADV_POPULATE_WRITE")


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("interval", [0.0035, 0.001, 0.0002])
def test_a_commit_under_a_timer_ends_where_any_signal_ends_fallocate(
    old_tmpfs: str, interval: float, threads: int
) -> None:
    code = f"""
    import signal
    from arena import Reservation
    came = []
    signal.signal(signal.SIGALRM, lambda *_: came.append(1))
    with Reservation("64MiB", shared=True, pages="4K") as r:
        signal.setitimer(signal.ITIMER_REAL, {interval}, {interval})
        assert r.commit(threads={threads}) == 64 << 20
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert r.residency().present == 64 << 20
    assert came  # Python's handler ran meanwhile
    """
    done = run_child(code, timeout=60, LD_PRELOAD=old_tmpfs)
    assert done.returncode == 0, done.stderr


def test_ctrl_c_ends_a_commit_where_any_signal_ends_fallocate(old_tmpfs: str) -> None:
    code = """
    import signal
    from arena import Reservation
    def stop(*_):
        signal.setitimer(signal.ITIMER_REAL, 0)  # one exception is enough
        raise KeyboardInterrupt
    signal.signal(signal.SIGALRM, stop)
    with Reservation("1GiB", shared=True, pages="4K") as r:
        signal.setitimer(signal.ITIMER_REAL, 0.03, 0.0035)
        try:
            r.commit(threads=1)
        except KeyboardInterrupt:
            pass
        else:
            raise SystemExit("it was not heard")
        assert r.committed == r.residency().present == 0
    """
    done = run_child(code, timeout=60, LD_PRELOAD=old_tmpfs)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("options", ["path=PATH, shared=True", "path=PATH", "shared=True", "pages='4K'"])
def test_what_a_foreign_mlockall_has_locked_is_released(
    options: str, tmp_path: Path, child: Callable[..., str]
) -> None:
    """Before Linux 5.18: on a full tmpfs a page that the ledger says is there, and is not, would be a SIGBUS."""
    with machine.tmpfs(128 * MIB)(tmp_path) as place:
        child(
            HERE
            + f"""
import ctypes, errno, os, kernel
kernel.answer(errno.EINVAL, "madvise", arg=2, values=[24])
from arena import CommitError, Reservation
PATH = {str(place.path)!r}
r = Reservation("32MiB", {options})
r.commit()
r.view()[:] = b"x" * (32 << 20)
assert ctypes.CDLL(None).mlockall(1 | 4) == 0
assert r.release("16MiB") == 16 << 20
assert r.committed == r.residency().present == 16 << 20
assert bytes(r.view("16MiB", offset="16MiB")) == b"x" * (16 << 20)
try:
    with open(PATH + "/full", "wb") as file:
        while True:
            file.write(bytes(1 << 20))
except OSError as error:
    assert error.errno == errno.ENOSPC
if "PATH" in {options!r}:
    try:
        r.commit()
    except CommitError as error:
        assert error.errno == errno.ENOSPC, error
    else:
        raise SystemExit("there is no room for that")
    os.unlink(PATH + "/full")
r.commit()
assert bytes(r.view("16MiB")) == bytes(16 << 20)
"""
        )


def test_what_refuses_is_named(populating: None, child: Callable[..., str]) -> None:
    """seccomp, as in a container."""
    says = child(
        HERE
        + """
import errno, os, kernel
from arena import Arena, CommitError, Reservation, ReserveError
def op(call):
    try:
        call()
    except (CommitError, ReserveError) as error:
        print(error.op, errno.errorcode[error.errno])
    else:
        print("nothing")
if os.path.exists("/sys/devices/system/node/node0"):
    Reservation("1MiB", node=0).close()
a = Arena("64MiB", pages="4K", chunk="64KiB")
b = a.alloc(64)
memfd = Reservation("64MiB", shared=True)
memfd.commit("1MiB")
private = Reservation("64MiB", pages="4K")
private.commit("1MiB")
kernel.answer(errno.EPERM, "mbind")
op(lambda: Reservation("1MiB", node=0))
kernel.answer(errno.EPERM, "memfd_create")
op(lambda: Reservation("1MiB", shared=True))
kernel.answer(errno.EPERM, "mlock2")
op(lambda: Reservation("1MiB", lock=True).commit())
kernel.answer(errno.EPERM, "fallocate")
op(memfd.commit)
op(memfd.release)
assert memfd.committed == memfd.residency().present == 1 << 20
kernel.answer(errno.EPERM, "madvise", arg=2, values=[4])
op(private.release)
assert private.committed == private.residency().present == 1 << 20
kernel.answer(errno.EINVAL, "madvise", arg=2, values=[22, 23])
op(lambda: b.resize(32 << 20))
"""
    )
    assert says.split("\n")[:-1] == [
        "mbind EPERM",
        "memfd_create EPERM",
        "mlock EPERM",
        "fallocate EPERM",
        "release EPERM",
        "release EPERM",
        "madvise(MADV_POPULATE_WRITE) EINVAL",
    ]


# --- how many system calls there are ----------------------------------------------------------------------------------

COMMITS = """
import os, sys
from arena import Reservation
kind = sys.argv[1]
if kind == "peer":
    theirs = Reservation("64MiB", shared=True, pages="4K")
    theirs.commit("32MiB")
    r = Reservation("64MiB", fd=theirs.fileno(), shared=True, pages="4K")
elif kind == "anonymous":
    r = Reservation("64MiB", pages="4K")
else:
    r = Reservation("64MiB", shared=True, pages="4K")
if kind == "known":
    r.fileno()
for i in range(20):
    r.commit(4096, offset=4096 * i)
os.write(2, b"begins")
for i in range(20, 40):
    r.commit(4096, offset=4096 * i)
os.write(2, b"ends")
os.write(2, b"begins")
r.release(4096, offset=4096 * 30)
os.write(2, b"ends")
"""


@pytest.mark.parametrize(
    ("kind", "commit", "release"),
    [
        ("anonymous", ["madvise"], ["madvise"]),
        ("memfd", ["madvise"], ["fallocate"]),
        ("known", ["fcntl", "lseek", "madvise", "fcntl"], ["fcntl", "fallocate", "fcntl"]),
        ("peer", ["fcntl", "madvise", "fcntl"], ["fcntl", "madvise", "fcntl"]),
    ],
)
def test_a_commit_of_a_page_takes_few_system_calls(
    populating: None, kind: str, commit: list[str], release: list[str], tmp_path: Path
) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("there is no strace")
    log = tmp_path / "log"
    done = subprocess.run(
        [strace, "-o", str(log), sys.executable, "-c", COMMITS, kind], capture_output=True, text=True, check=False
    )
    if "ptrace" in done.stderr:
        pytest.skip(done.stderr)
    assert done.returncode == 0, done.stderr
    parts = log.read_text(encoding="utf-8", errors="replace").split('write(2, "begins"')[1:]
    calls = [[line.split("(")[0] for line in part.split('write(2, "ends"')[0].splitlines()[1:]] for part in parts]
    ours = [[call for call in part if call in {"madvise", "fallocate", "fcntl", "lseek"}] for part in calls]
    assert ours == [commit * 20, release]
    # The preflight reads a few files, but not for each page; and the interpreter has calls of its own.
    assert len(calls[0]) - len(ours[0]) < 40, calls[0]
