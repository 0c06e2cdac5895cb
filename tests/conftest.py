"""What the tests share: child processes, this process's faults, and the real things that need root."""

from __future__ import annotations

import ctypes
import os
import resource
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

MIB = 1 << 20
GIB = 1 << 30


def run_child(
    code: str, *, timeout: float = 120, preexec: Callable[[], object] | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """Runs Python code in a child of its own."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=timeout,
        preexec_fn=preexec,
        env={**os.environ, **env},
        check=False,
    )


@pytest.fixture
def child() -> Callable[..., str]:
    """Runs code in a child that has to exit with 0, and gives what it printed."""

    def run(code: str, **options: object) -> str:
        done = run_child(code, **options)  # type: ignore[arg-type]
        assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    return run


def in_child(work: Callable[[], object]) -> None:
    """Runs work in a fork; what it raises fails the test."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException as error:
            os.write(write, repr(error).encode()[:4000])
        finally:
            os._exit(status)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        said = pipe.read().decode()
    _, status = os.waitpid(pid, 0)
    assert status == 0, f"the child ended with {status}: {said}"


def minor_faults() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt


def faults_writing(view: memoryview, byte: int = 1) -> int:
    """The faults of writing all of it. By a call that was rehearsed and allocates next to nothing, for the memory of
    the interpreter may fault too: after a fork, for instance."""
    rehearsal = bytearray(8)
    count = -1
    for target in (memoryview(rehearsal), view):
        at = ctypes.addressof(ctypes.c_char.from_buffer(target))
        before = minor_faults()
        ctypes.memset(at, byte, len(target))
        count = minor_faults() - before
    return count


def rss() -> int:
    """Resident bytes of this process, from the page tables: statm's counters lag by a batch for each CPU and thread."""
    with open("/proc/self/smaps_rollup", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("Rss:"):
                return int(line.split()[1]) * 1024
    raise AssertionError("no Rss in smaps_rollup")


class MemoryCgroup:
    """A memory cgroup of our own, v1 or v2."""

    def __init__(self, path: Path, limit_file: str) -> None:
        self.path = path
        self.limit_file = limit_file

    def limit(self, nbytes: int) -> None:
        (self.path / self.limit_file).write_text(str(nbytes))

    def enter(self) -> None:
        """For a child, before exec."""
        (self.path / "cgroup.procs").write_text(str(os.getpid()))


@pytest.fixture
def cgroup() -> Iterator[MemoryCgroup]:
    if os.geteuid() != 0:
        pytest.skip("a memory cgroup needs root")
    name = f"arena-test-{os.getpid()}"
    v1, v2 = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    try:
        if (v1 / "memory.limit_in_bytes").exists() or (v1 / "cgroup.procs").exists():
            group = MemoryCgroup(v1 / name, "memory.limit_in_bytes")
        elif "memory" in (v2 / "cgroup.controllers").read_text():
            (v2 / "cgroup.subtree_control").write_text("+memory")
            group = MemoryCgroup(v2 / name, "memory.max")
        else:
            pytest.skip("the memory controller is in no cgroup hierarchy here")
        group.path.mkdir()
    except OSError as error:
        pytest.skip(f"cannot make a memory cgroup: {error}")
    try:
        yield group
    finally:
        group.path.rmdir()


@pytest.fixture
def overcommit() -> Iterator[Callable[[int], object]]:
    """Sets vm.overcommit_memory, and restores it."""
    knob = Path("/proc/sys/vm/overcommit_memory")
    before = knob.read_text()
    if not os.access(knob, os.W_OK) or os.geteuid() != 0:
        pytest.skip("vm.overcommit_memory may not be set here")
    try:
        yield lambda mode: knob.write_text(str(mode))
    finally:
        knob.write_text(before)
