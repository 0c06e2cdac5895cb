"""The real things: mounts, pools of huge pages, cgroups. Each is a context manager that puts everything back, and skips
the test, saying why, where this machine cannot have it.

Mounts are made in a mount namespace of this process's own, so that even a SIGKILL to it leaves none behind.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

MIB = 1 << 20
HUGE = 2 * MIB

MAP_HUGETLB = 0x40000
CLONE_NEWNS = 0x20000
MS_REC_PRIVATE = 0x44000

POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
HUGETLB_V1 = "hugetlb.2MB.limit_in_bytes"
HUGETLB_V2 = "hugetlb.2MB.max"

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Place:
    """What a child finds: a directory to put files in, and the cgroups that it begins in."""

    path: Path
    cgroups: tuple[Path, ...] = ()

    def enter(self) -> None:
        """For the child, before exec."""
        for group in self.cgroups:
            (group / "cgroup.procs").write_text(str(os.getpid()))


Machine = Callable[[Path], AbstractContextManager[Place]]
"""Takes an empty directory."""


def skip(reason: str) -> NoReturn:
    import pytest  # not at the top: children import this module too, and have no use for pytest

    pytest.skip(reason)


def ordinary() -> Machine:
    """The machine as it is, and a directory."""

    @contextlib.contextmanager
    def machine(at: Path) -> Iterator[Place]:
        yield Place(at)

    return machine


# Mounts.

_namespace: list[int] = []


def _own_namespace() -> None:
    """From the first mount on, this process has its own list of mounts."""
    if os.getpid() in _namespace:
        return
    if os.geteuid() != 0:
        skip("mounts need root")
    if _libc.unshare(CLONE_NEWNS) or _libc.mount(b"none", b"/", None, MS_REC_PRIVATE, None):
        skip(f"no mount namespace of our own: {os.strerror(ctypes.get_errno())}")
    _namespace.append(os.getpid())


@contextlib.contextmanager
def mounted(kind: str, source: str, at: Path, options: str) -> Iterator[Path]:
    _own_namespace()
    at.mkdir(exist_ok=True)
    done = subprocess.run(
        ["mount", "-t", kind, "-o", options, source, str(at)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        skip(f"cannot mount {kind} ({options}): {done.stderr.strip()}")
    try:
        yield at
    finally:
        # Lazily: what still holds a file of it, such as a frame of a failed test, does not keep it.
        subprocess.run(["umount", "-l", str(at)], check=True)


def tmpfs(size: int, options: str = "mode=1777") -> Machine:
    """A tmpfs as small as a container's /dev/shm."""

    @contextlib.contextmanager
    def machine(at: Path) -> Iterator[Place]:
        with mounted("tmpfs", "arena-test", at / "tmpfs", f"size={size},{options}") as path:
            yield Place(path)

    return machine


def disk(size: int, kind: str = "ext4") -> Machine:
    """A small disk. ext2 has holes to punch, but allocates nothing ahead: EOPNOTSUPP."""

    @contextlib.contextmanager
    def machine(at: Path) -> Iterator[Place]:
        mkfs = shutil.which(f"mkfs.{kind}", path=f"{os.environ['PATH']}:/sbin:/usr/sbin")
        if mkfs is None:
            skip(f"no mkfs.{kind}")
        image = at / "image"
        with image.open("wb") as file:
            file.truncate(size)
        # Without a journal (ext2 has none), freed blocks are free at once.
        without = ["-O", "^has_journal"] if kind == "ext4" else []
        subprocess.run([mkfs, "-q", "-F", "-m", "0", "-b", "4096", *without, str(image)], check=True)
        with mounted(kind, str(image), at / "disk", "loop") as path:
            yield Place(path)

    return machine


# The hugetlb pool.


def free_huge_pages() -> int:
    if not POOL.is_dir():
        return 0
    return int((POOL / "free_hugepages").read_text()) - int((POOL / "resv_hugepages").read_text())


def _change_pool(by: int) -> int:
    """What was really added: others change the pool as well, so it is changed by a difference."""
    knob = POOL / "nr_hugepages"
    before = int(knob.read_text())
    knob.write_text(str(max(before + by, 0)))
    return int(knob.read_text()) - before


@contextlib.contextmanager
def huge_pages(n: int) -> Iterator[None]:
    """n more pages of 2 MiB in the pool, which other runs of these tests leave alone for as long."""
    if os.geteuid() != 0:
        skip("the hugetlb pool needs root")
    if not POOL.is_dir():
        skip("no hugetlb pages of 2 MiB here")
    if int((POOL / "nr_overcommit_hugepages").read_text()):
        skip("the hugetlb pool grows by itself here (nr_overcommit_hugepages)")
    with (POOL / "nr_hugepages").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        added = _change_pool(n)
        try:
            if added < n:
                skip(f"{added} huge pages of {n} to be had: memory is fragmented")
            yield
        finally:
            _change_pool(-added)


@contextlib.contextmanager
def pool_of_others(n: int) -> Iterator[None]:
    """So many pages of the pool are somebody else's."""
    if n <= 0:
        yield
        return
    with mmap.mmap(-1, n * HUGE, flags=mmap.MAP_SHARED | mmap.MAP_ANONYMOUS | MAP_HUGETLB):
        yield


def pool(n: int) -> Machine:
    @contextlib.contextmanager
    def machine(at: Path) -> Iterator[Place]:
        with huge_pages(n):
            yield Place(at)

    return machine


def hugetlbfs(n: int, size: int | None = None) -> Machine:
    """A pool of n pages and a mount of it, of which no more than `size` bytes can be had."""

    @contextlib.contextmanager
    def machine(at: Path) -> Iterator[Place]:
        options = "pagesize=2M" if size is None else f"pagesize=2M,size={size}"
        with huge_pages(n), mounted("hugetlbfs", "arena-test", at / "huge", options) as path:
            yield Place(path)

    return machine


# Cgroups, v1 or v2.


@contextlib.contextmanager
def _group(parent: Path, name: str) -> Iterator[Path]:
    path = parent / f"arena-test-{name}-{os.getpid()}"
    try:
        path.mkdir(exist_ok=True)
    except OSError as error:
        skip(f"cannot make a cgroup: {error}")
    try:
        yield path
    finally:
        # A child that was killed may be in it for a moment longer.
        for _ in range(200):
            try:
                path.rmdir()
                break
            except OSError:
                time.sleep(0.01)
        else:
            path.rmdir()


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


@contextlib.contextmanager
def memory_cgroup() -> Iterator[MemoryCgroup]:
    if os.geteuid() != 0:
        skip("a memory cgroup needs root")
    parent, limit = Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes"
    try:
        if not (parent / limit).exists() and not (parent / "cgroup.procs").exists():
            parent, limit = Path("/sys/fs/cgroup"), "memory.max"
            if "memory" not in (parent / "cgroup.controllers").read_text():
                skip("the memory controller is in no cgroup hierarchy here")
            (parent / "cgroup.subtree_control").write_text("+memory")
    except OSError as error:
        skip(f"no memory cgroup: {error}")
    with _group(parent, "memory") as path:
        yield MemoryCgroup(path, limit)


@contextlib.contextmanager
def cpu_cgroup() -> Iterator[Path]:
    """A CPU cgroup of our own, of v1."""
    if os.geteuid() != 0:
        skip("a CPU cgroup needs root")
    parent = Path("/sys/fs/cgroup/cpu")
    if not (parent / "cpu.cfs_quota_us").exists():
        skip("no CPU controller of cgroup v1 here")
    with _group(parent, "cpu") as path:
        yield path


def memory_limit(nbytes: int, inside: Machine | None = None) -> Machine:
    """A memory cgroup with this limit, for a child on another machine of these."""

    @contextlib.contextmanager
    def machine(at: Path) -> Iterator[Place]:
        with (inside or ordinary())(at) as place, memory_cgroup() as group:
            group.limit(nbytes)
            yield Place(place.path, (*place.cgroups, group.path))

    return machine


def hugetlb_limit(nbytes: int, inside: Machine, reserved: bool = False) -> Machine:
    """A hugetlb cgroup with this limit, for a child on another machine of these. Where no hierarchy has the controller,
    it is mounted. `reserved`: the limit on reservations, which runc sets, and which pages without one count for too."""

    @contextlib.contextmanager
    def machine(at: Path) -> Iterator[Place]:
        with contextlib.ExitStack() as stack:
            place = stack.enter_context(inside(at))
            controllers = Path("/sys/fs/cgroup/cgroup.controllers")
            mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
            v1 = [Path(mount[1]) for mount in mounts if mount[2] == "cgroup" and "hugetlb" in mount[3].split(",")]
            if controllers.exists() and "hugetlb" in controllers.read_text().split():
                (controllers.parent / "cgroup.subtree_control").write_text("+hugetlb")
                parent, limit = controllers.parent, HUGETLB_V2
            elif v1:
                parent, limit = v1[0], HUGETLB_V1
            elif "\nhugetlb\t" in Path("/proc/cgroups").read_text():
                parent = stack.enter_context(mounted("cgroup", "arena-test", at / "cgroup", "hugetlb"))
                limit = HUGETLB_V1
            else:
                skip("a kernel without the hugetlb cgroup")
            group = stack.enter_context(_group(parent, "hugetlb"))
            file = group / (limit.replace(".2MB.", ".2MB.rsvd.") if reserved else limit)
            if not file.exists():
                skip(f"a kernel without {file.name}")
            file.write_text(str(nbytes))
            yield Place(place.path, (*place.cgroups, group))

    return machine
