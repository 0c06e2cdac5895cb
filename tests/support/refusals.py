"""The table of test_errors.py: commits and reservations that cannot be had, each on a machine where that is really so.

A row is a name, the machine (machine.py), and what a child does on it. Rows that ask for more than there is say so in a
line: how the reservation is made, what is asked and what fits, the errnos, and the words that help. The child is this
file as a program: `python refusals.py NAME DIRECTORY`.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Collection
from errno import (
    EACCES,
    EBADF,
    EEXIST,
    EFAULT,
    EFBIG,
    EINVAL,
    EIO,
    EISDIR,
    EMFILE,
    ENAMETOOLONG,
    ENODEV,
    ENOENT,
    ENOMEM,
    ENOSPC,
    ENOTDIR,
    ENOTSUP,
    ENXIO,
    EPERM,
    EROFS,
)
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import kernel
import machine
from commits import PIECE, Populate, error_of, facts, pattern, refused, still_there, works
from kernel import PAGE
from machine import HUGE, MIB, Machine, free_huge_pages
from measure import faults_writing, resident

from arena import Arena, CommitError, Reservation

EHWPOISON = 133
MAP_NORESERVE = 0x4000

METADATA = 64 << 10
"""What a disk may keep for its own use."""

Body = Callable[[Path], object]
Make = Callable[[Path], Reservation]


class Case(NamedTuple):
    name: str
    machine: Machine
    body: Body


CASES: list[Case] = []


def case(name: str, on: Machine | None = None) -> Callable[[Body], Body]:
    def add(body: Body) -> Body:
        CASES.append(Case(name, on or machine.ordinary(), body))
        return body

    return add


BOTH: tuple[Populate, ...] = ("write", "read")
WRITE: tuple[Populate, ...] = ("write",)
"""Where reading costs less: the zero page, a hole of a disk, one page and not two."""


def too_much(
    name: str,
    on: Machine,
    make: Make,
    *,
    fits: int,
    errnos: Collection[int],
    says: str,
    first: Callable[[], object] | None = None,
    populate: tuple[Populate, ...] = BOTH,
    disk: bool = False,
    gives_back: bool = True,
    pool: bool = False,
) -> None:
    """A row: all of the reservation is more than there is, `fits` is not.

    gives_back: False where what a failed commit has put into the file cannot be taken out of it again.
    """

    def body(at: Path) -> None:
        if first is not None:
            first()
        metadata = METADATA if disk else 0
        refuse = partial(refused, errnos=errnos, says=says, metadata=metadata, ours=gives_back, pool=pool)
        with make(at) as r:
            half = max(fits // 2, r.page_size)
            middle = r.size // 2 // r.page_size * r.page_size if gives_back else half
            for how in populate:
                for threads in (1, 4):
                    refuse(r, r.size, populate=how, threads=threads)
            works(r, half, disk=disk)
            works(r, r.page_size, offset=middle, disk=disk)
            for how in populate:
                refuse(r, r.size, populate=how)
                refuse(r, r.size - half, offset=half, populate=how)
            still_there(r, half)
            still_there(r, r.page_size, offset=middle)
            if gives_back:
                works(r, half, offset=r.size - half, disk=disk)
            still_there(r, half)
            assert r.release() > half or not gives_back
            there = facts(r)
            assert there.committed == 0 and there.resident == 0, there
            assert not gives_back or there.blocks <= metadata, there

    CASES.append(Case(name, on, body))


# tmpfs: the size= of the mount.

SHM = r"size=|--shm-size"


def a_file(size: int, *, shared: bool, name: str = "") -> Make:
    """In the directory: unnamed, or a new one of this name."""
    return lambda at: Reservation(size, path=at / name, shared=shared)


for _shared in (True, False):
    _kind = "shared" if _shared else "private"
    for _name, _first in (
        ("tmpfs too small", None),
        ("tmpfs too small, no fallocate", kernel.without_fallocate),
        ("tmpfs too small, no populate", kernel.without_populate),
    ):
        too_much(
            f"{_name}, {_kind}",
            machine.tmpfs(16 * MIB),
            a_file(64 * MIB, shared=_shared),
            fits=8 * MIB,
            errnos={ENOSPC},
            says=SHM,
            first=_first,
            gives_back=_first != kernel.without_fallocate,
        )
    too_much(
        f"tmpfs too small, a new file, {_kind}",
        machine.tmpfs(16 * MIB),
        a_file(64 * MIB, shared=_shared, name="new"),
        fits=8 * MIB,
        errnos={ENOSPC},
        says=SHM,
        # A private mapping leaves what is in a file with a name to those who know the name.
        gives_back=_shared,
    )


@case("tmpfs too small, an arena", machine.tmpfs(16 * MIB))
def _(at: Path) -> None:
    with Arena(64 * MIB, path=at, shared=True) as a:
        kept = a.alloc(4 * MIB)
        kept[:3] = b"abc"
        before = a.stats()
        error = error_of(lambda: a.alloc(32 * MIB), errnos={ENOSPC}, says=SHM, kinds=CommitError)
        assert isinstance(error, CommitError) and error.available is not None and error.available <= 12 * MIB
        after = a.stats()
        assert (after.committed, after.live, after.blocks) == (before.committed, before.live, before.blocks)
        assert os.statvfs(at).f_bfree * PAGE == 16 * MIB - after.committed
        b = a.alloc(4 * MIB)
        b[0] = b[len(b) - 1] = 1
        assert bytes(kept[:3]) == b"abc"


def holey_file(at: Path, size: int = 8 * MIB) -> tuple[Path, bytes]:
    """A file with data in every other 64 KiB, and what it reads as."""
    path, run = at / "theirs", 64 << 10
    expected = b""
    with path.open("wb") as file:
        file.truncate(size)
        for start in range(0, size, 2 * run):
            data = bytes([start // run % 255 + 1]) * run
            file.seek(start)
            file.write(data)
            expected += data + bytes(run)
    return path, expected


def fill(at: Path, leave: int) -> None:
    """The file system has this much room left."""
    there = os.statvfs(at)
    with (at / "filler").open("wb") as file:
        file.write(bytes(there.f_bavail * there.f_frsize - leave))


for _shared in (True, False):

    @case(
        f"a foreign file with data and holes on a full tmpfs, {'shared' if _shared else 'private'}",
        machine.tmpfs(16 * MIB),
    )
    def _(at: Path, shared: bool = _shared) -> None:
        path, expected = holey_file(at)
        fill(at, MIB)
        blocks = path.stat().st_blocks
        with Reservation(8 * MIB, path=path, shared=shared, pages="4K") as r:
            for _ in range(3):
                refused(r, 8 * MIB, errnos={ENOSPC}, says=SHM, ours=False)
                assert path.read_bytes() == expected
                assert path.stat().st_blocks >= blocks
            refused(r, 4 * MIB, offset=MIB, errnos={ENOSPC}, says=SHM, ours=False)
            assert path.read_bytes() == expected
            r.commit(64 << 10, offset=128 << 10)  # data: needs no room in the file
            view = r.view(64 << 10, offset=128 << 10)
            assert bytes(view) == expected[128 << 10 : 192 << 10]
            assert faults_writing(view) == 0
            view[:] = expected[128 << 10 : 192 << 10]
            view.release()
            assert r.release() == (0 if shared else 64 << 10)  # what the machine gets
            assert r.committed == 0 and resident(r.address, r.size) == 0
            assert path.read_bytes() == expected
            assert path.stat().st_blocks >= blocks
            r.commit(64 << 10, offset=128 << 10)
            now = bytearray(expected)
            try:
                r.release(64 << 10, offset=128 << 10, discard=True)
            except OSError as error:
                assert not shared and error.errno in {EACCES, EBADF}, error  # a private mapping needs no right to write
            else:
                now[128 << 10 : 192 << 10] = bytes(64 << 10)
            assert path.read_bytes() == now
            assert path.stat().st_size == 8 * MIB
        assert path.read_bytes() == now


# Pages of the hugetlb pool.

NR = r"nr_hugepages"


def beyond_the_pool() -> int:
    """More than is free, whoever else put pages there."""
    return (free_huge_pages() + 4) * HUGE


def of_the_pool(size: int | None = None, **options: Any) -> Make:
    """Of this size, or of more than there is; in a new file where there is a path."""

    def make(at: Path) -> Reservation:
        where = {"path": at / options["path"]} if "path" in options else {"pages": "2M"}
        return Reservation(size or beyond_the_pool(), **{**options, **where})

    return make


HUGETLB: dict[str, dict[str, Any]] = {
    "anonymous private": {},
    "anonymous shared": {"backing": "anonymous", "shared": True},
    "memfd private": {"backing": "memfd"},
    "memfd shared": {"backing": "memfd", "shared": True},
    "hugetlbfs private": {"path": ""},
    "hugetlbfs shared": {"path": "", "shared": True},
    "hugetlbfs, a new file, shared": {"path": "new", "shared": True},
}

for _name, _options in HUGETLB.items():
    _mount = machine.hugetlbfs if "path" in _options else machine.pool
    for _label, _first in (("", None), (", no populate", kernel.without_populate)):
        too_much(
            f"pool too small, {_name}{_label}",
            _mount(4),
            of_the_pool(**_options),
            fits=2 * HUGE,
            errnos={ENOSPC},
            says=NR,
            first=_first,
            pool=True,
        )
    too_much(
        f"a hugetlb cgroup's limit, {_name}",
        machine.hugetlb_limit(4 * HUGE, _mount(8)),
        of_the_pool(6 * HUGE, **_options),
        fits=2 * HUGE,
        errnos={ENOSPC, ENOMEM},
        says=r"hugetlb.*(limit_in_bytes|\.max|cgroup)",
        pool=True,
    )
for _shared in (True, False):
    too_much(
        f"hugetlbfs with a size, {'shared' if _shared else 'private'}",
        machine.hugetlbfs(8, 4 * HUGE),
        a_file(6 * HUGE, shared=_shared),
        fits=2 * HUGE,
        errnos={ENOSPC},
        says=r"size=|mount",
        pool=True,
    )


@case("pool too small, an arena", machine.pool(4))
def _(at: Path) -> None:
    with Arena(beyond_the_pool(), pages="2M") as a:
        before = a.stats()
        error_of(lambda: a.alloc(a.stats().reserved - HUGE), errnos={ENOSPC}, says=NR, kinds=CommitError)
        assert a.stats().committed == before.committed
        b = a.alloc(100)
        b[0] = 1
        assert a.stats().committed == HUGE


# Disks.

FULL = r"full|room|space"

for _kind in ("ext4", "ext2"):
    too_much(
        f"full disk, {_kind}, shared",
        machine.disk(24 * MIB, _kind),
        a_file(64 * MIB, shared=True),
        fits=8 * MIB,
        errnos={ENOSPC},
        says=FULL,
        populate=WRITE,
        disk=True,
    )

    @case(f"full disk, {_kind}, private", machine.disk(24 * MIB, _kind))
    def _(at: Path) -> None:
        # Holes that are only read need no blocks, so there may be no error. If there is: the usual one.
        with Reservation(64 * MIB, path=at) as r:
            try:
                works(r, 64 * MIB)
            except CommitError as error:
                assert error.errno == ENOSPC, error
                assert r.committed == 0 and resident(r.address, r.size) == 0
                works(r, 8 * MIB)

    @case(f"a small disk with room, {_kind}", machine.disk(24 * MIB, _kind))
    def _(at: Path) -> None:
        with Reservation(8 * MIB, path=at, shared=True) as r:
            works(r, 4 * MIB, disk=True)
            r.release()
            assert r.committed == 0 and resident(r.address, r.size) == 0
            works(r, 8 * MIB, disk=True)


# Rollback and peers.

PEERS: dict[str, tuple[Machine, Make, str, Callable[[], None] | None]] = {
    "tmpfs": (machine.tmpfs(16 * MIB), a_file(64 * MIB, shared=True, name="new"), SHM, None),
    "tmpfs, private": (machine.tmpfs(16 * MIB), a_file(64 * MIB, shared=False, name="new"), SHM, None),
    "tmpfs, no fallocate": (
        machine.tmpfs(16 * MIB),
        a_file(64 * MIB, shared=True, name="new"),
        SHM,
        kernel.without_fallocate,
    ),
    "a disk": (machine.disk(24 * MIB), a_file(64 * MIB, shared=True, name="new"), FULL, None),
    "the pool": (machine.pool(4), of_the_pool(backing="memfd", shared=True), NR, None),
}

for _name, (_machine, _make, _says, _first) in PEERS.items():

    @case(f"what a peer wrote survives a rollback, {_name}", _machine)
    def _(at: Path, make: Make = _make, says: str = _says, first: Callable[[], None] | None = _first) -> None:
        if first is not None:
            first()
        with make(at) as r:
            # hugetlbfs does not tell what is data; and where no hole can be punched, blocks stay.
            tells = says != NR and first is None
            peer = mmap.mmap(r.fileno(), r.size, mmap.MAP_SHARED | MAP_NORESERVE)
            spots = [r.page_size * n for n in (1, 3)]
            for spot in spots:
                peer[spot : spot + 5] = b"peer!"
            for threads in (1, 4):
                refused(r, r.size, errnos={ENOSPC}, says=says, threads=threads, metadata=METADATA, ours=tells)
                for spot in spots:
                    assert peer[spot : spot + 5] == b"peer!"
            peer.close()


# Files that end too early, or change.

BEYOND = r"end of the file|short|only"

for _shared in (True, False):
    for _no_populate in (False, True):

        @case(
            f"a file shorter than the mapping, {'shared' if _shared else 'private'}"
            + (", no populate" if _no_populate else "")
        )
        def _(at: Path, shared: bool = _shared, no_populate: bool = _no_populate) -> None:
            if no_populate:
                kernel.without_populate()
            path = at / "short"
            path.write_bytes(b"x" * (MIB + 100))
            with Reservation(4 * MIB, path=path, shared=shared, pages="4K") as r:
                for populate in ("write", "read"):
                    refused(r, 4 * MIB, errnos={EFAULT}, says=BEYOND, ours=False, known=False, populate=populate)
                    refused(
                        r,
                        MIB,
                        offset=2 * MIB,
                        errnos={EFAULT},
                        says=BEYOND,
                        ours=False,
                        known=False,
                        populate=populate,
                    )
                assert path.stat().st_size == MIB + 100
                assert path.read_bytes() == b"x" * (MIB + 100)
                works(r, MIB)
                r.commit(100, offset=MIB)
                assert bytes(r.view(100, offset=MIB)) == b"x" * 100
            assert path.stat().st_size == MIB + 100

    @case(f"a file truncated under us, {'shared' if _shared else 'private'}")
    def _(at: Path, shared: bool = _shared) -> None:
        path = at / "theirs"
        path.write_bytes(b"x" * (4 * MIB))
        with Reservation(4 * MIB, path=path, shared=shared, pages="4K") as r:
            r.commit(2 * MIB, populate="read")
            into = bytearray(MIB)
            assert r.read_into(into, offset=MIB) == MIB and into == b"x" * MIB
            os.truncate(path, MIB)
            refused(r, MIB, offset=3 * MIB, errnos={EFAULT}, says=BEYOND, ours=False, known=False)
            error_of(r.verify, errnos={EFAULT}, says=BEYOND, kinds=CommitError)
            error_of(lambda: r.verify(PAGE, offset=MIB), errnos={EFAULT}, says=BEYOND, kinds=CommitError)
            r.verify(MIB)
            error_of(lambda: r.read_into(into, offset=MIB), errnos={EFAULT}, says=r"cannot copy|end of the file")
            assert r.read_into(into, offset=0) == MIB and into == b"x" * MIB
            # A copy that begins well and ends beyond the end is an error too, never a short count that looks like one.
            error_of(lambda: r.read_into(into, offset=MIB // 2), errnos={EFAULT})
            os.truncate(path, 4 * MIB)
            r.verify()
            assert r.read_into(into, offset=MIB) == MIB and into == bytes(MIB)
            r.commit()
            assert r.write_from(b"y" * MIB, offset=3 * MIB) == MIB
            os.truncate(path, 2 * MIB)
            if shared:
                error_of(lambda: r.write_from(b"z" * 2 * PAGE, offset=3 * MIB), errnos={EFAULT})
            r.release()
            assert r.committed == 0
        assert path.stat().st_size == 2 * MIB


OURS: dict[str, Make] = {
    "memfd": lambda at: Reservation(4 * MIB, shared=True, pages="4K"),
    "tmpfs": lambda at: Reservation(4 * MIB, path=at, shared=True, pages="4K"),
    "a foreign file": lambda at: Reservation(4 * MIB, path=holey_file(at, 4 * MIB)[0], shared=True, pages="4K"),
}

for _name, _make in OURS.items():

    @case(f"a hole punched by someone else, {_name}", machine.tmpfs(64 * MIB))
    def _(at: Path, make: Make = _make) -> None:
        with make(at) as r:
            works(r, 4 * MIB)
            full = facts(r)
            peer = os.dup(r.fileno())
            kernel.punch_hole(peer, MIB, MIB)
            assert facts(r).resident == 3 * MIB
            assert os.fstat(peer).st_blocks * 512 == full.blocks - MIB
            r.verify()
            assert facts(r)._replace(rss=0) == full._replace(rss=0)
            view = r.view(MIB, offset=MIB)
            assert faults_writing(view) == 0
            del view
            still_there(r, MIB)
            kernel.punch_hole(peer, 0, 4 * MIB)
            error_of(partial(r.read_into, bytearray(PAGE), offset=0), errnos={EFAULT}, says="nothing is there")


@case("a hole punched by someone else, and no room any more", machine.tmpfs(16 * MIB))
def _(at: Path) -> None:
    with Reservation(8 * MIB, path=at, shared=True, pages="4K") as r:
        works(r, 8 * MIB)
        kernel.punch_hole(r.fileno(), MIB, 4 * MIB)
        fill(at, MIB)
        error_of(r.verify, errnos={ENOSPC}, says=SHM, kinds=CommitError)
        still_there_in(r, MIB)
        (at / "filler").unlink()
        r.verify()
        still_there_in(r, MIB)


@case("a huge page punched by someone else, and none left", machine.hugetlb_limit(2 * HUGE, machine.pool(4)))
def _(at: Path) -> None:
    with Reservation(2 * HUGE, pages="2M", shared=True) as r:
        works(r, 2 * HUGE)
        kernel.punch_hole(r.fileno(), HUGE, HUGE)
        with Reservation(HUGE, pages="2M") as taken:
            works(taken, HUGE)
            error_of(r.verify, errnos={ENOSPC, ENOMEM}, says="hugetlb", kinds=CommitError)
            still_there_in(r, HUGE)
        r.verify()
        still_there_in(r, HUGE)


def still_there_in(r: Reservation, nbytes: int) -> None:
    """The first bytes of what works() wrote at offset 0."""
    into = bytearray(nbytes)
    r.read_into(into, offset=0)
    assert into == pattern(0) * (nbytes // PIECE)


def make_and_commit(size: int = MIB, **options: Any) -> None:
    """For an error that may come at either."""
    Reservation(size, **options).commit()


# What cannot be populated.

POISON = r"hardware|poison"
SPECIAL = {EINVAL, ENOTSUP, EFAULT, ENODEV, EACCES, EPERM}


def cannot_be_populated(fd: int, nbytes: int, says: str) -> None:
    """Refused when it is made or when it is committed, and in either case nothing ends in a signal."""
    for populate in ("write", "read"):
        try:
            r = Reservation(nbytes, fd=fd, shared=True, pages="4K")
        except (OSError, ValueError) as error:
            assert isinstance(error, ValueError) or error.errno in SPECIAL, error
            continue
        with r:
            refused(r, nbytes, errnos=SPECIAL, says=says, ours=False, known=False, populate=populate)
            error_of(r.view, kinds=ValueError)
    os.fstat(fd)  # not closed: it is not ours


@case("a perf event's buffer: VM_PFNMAP")
def _(at: Path) -> None:
    fd, nbytes = kernel.perf_buffer()
    cannot_be_populated(fd, nbytes, r"populate|end of the file|short|device")


@case("memfd_secret")
def _(at: Path) -> None:
    cannot_be_populated(kernel.secret_memory(4 * PAGE), 4 * PAGE, r"populate|secret")


for _pages in ("4K", "thp"):

    @case(f"a poisoned page, {_pages}")
    def _(at: Path, pages: Any = _pages) -> None:
        r = Reservation(16 * MIB, pages=pages)
        bad = 8 * MIB - PAGE  # the last of a huge page
        kernel.poison(r.address + bad)
        refused(r, 16 * MIB, errnos={EHWPOISON}, says=POISON, known=False)
        kernel.poison(r.address + bad)  # rolled back with the rest, perhaps
        refused(r, 4 * MIB, offset=6 * MIB, errnos={EHWPOISON}, says=POISON, known=False)
        works(r, 4 * MIB)
        works(r, 8 * MIB, offset=8 * MIB)


for _pages in ("4K", "thp"):

    @case(f"a page that is poisoned after it was committed, {_pages}")
    def _(at: Path, pages: Any = _pages) -> None:
        r = Reservation(8 * MIB, pages=pages)
        works(r, 8 * MIB)
        for bad in (4 * MIB - PAGE, 5 * MIB):
            kernel.drop(r.address + bad, PAGE)
            kernel.poison(r.address + bad)
            error_of(r.verify, errnos={EHWPOISON}, says=POISON, kinds=CommitError)
            error_of(partial(r.read_into, bytearray(8), offset=bad), errnos={EFAULT, EHWPOISON, EIO})
            still_there_in(r, MIB)
            r.verify(MIB)
            # Released and committed again it is another page.
            r.release()
            works(r, 8 * MIB)
            r.verify()


@case("a poisoned page, memfd")
def _(at: Path) -> None:
    r = Reservation(16 * MIB, shared=True, pages="4K")
    kernel.poison(r.address + 8 * MIB)
    refused(r, 16 * MIB, errnos={EHWPOISON}, says=POISON, known=False)
    works(r, 8 * MIB)
    works(r, 4 * MIB, offset=12 * MIB)


# What the descriptor or the file does not allow.

READ_ONLY = r"readonly=True|read.only|open(ed)? (only )?for reading|not (open )?for writing"


@case("a descriptor for reading only")
def _(at: Path) -> None:
    path = at / "file"
    path.write_bytes(b"x" * MIB)
    fd = os.open(path, os.O_RDONLY)
    error_of(
        lambda: Reservation(MIB, fd=fd, shared=True).commit(populate="write"),
        errnos={EACCES, EPERM, EBADF, EROFS},
        says=READ_ONLY,
        kinds=(OSError, ValueError),
    )
    with Reservation(MIB, fd=fd, shared=True, readonly=True) as r:
        assert r.commit(populate="read") == MIB
        view = r.view(readonly=True)
        assert bytes(view) == b"x" * MIB
        view.release()
        error_of(r.view, says=READ_ONLY, kinds=(ValueError, OSError, TypeError))
        error_of(lambda: r.write_from(b"y"), kinds=(ValueError, OSError, TypeError))
        error_of(lambda: r.commit(populate="write"), says=READ_ONLY, kinds=(ValueError, OSError))
        assert r.committed == MIB
    with Reservation(MIB, fd=fd) as r:  # private: writes stay here
        r.commit()
        view = r.view()
        assert faults_writing(view) == 0
        view.release()
    assert path.read_bytes() == b"x" * MIB
    os.fstat(fd)


@case("a memfd that is sealed")
def _(at: Path) -> None:
    fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.write(fd, b"x" * MIB)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    error_of(
        partial(make_and_commit, fd=fd, shared=True),
        errnos={EPERM, EACCES},
        says=rf"seal|{READ_ONLY}",
        kinds=(OSError, ValueError),
    )
    with Reservation(MIB, fd=fd, shared=True, readonly=True) as r:
        assert r.commit(populate="read") == MIB
        assert bytes(r.view(readonly=True)[:4]) == b"xxxx"
        error_of(partial(r.release, discard=True), errnos={EPERM, EACCES, EBADF}, kinds=(OSError, ValueError))
        assert bytes(os.pread(fd, 4, 0)) == b"xxxx"
    with Reservation(MIB, fd=fd) as r:
        works(r, MIB)
        r.release()
        r.commit()
        assert bytes(r.view()[:4]) == b"xxxx"


@case("a file that may only be read")
def _(at: Path) -> None:
    if os.geteuid() == 0:
        at.chmod(0o755)
        os.chdir(at)
        path = Path("file")  # nobody may not enter the directories above
        path.write_bytes(b"x" * MIB)
        os.seteuid(65534)
    else:
        path = at / "file"
        path.write_bytes(b"x" * MIB)
        path.chmod(0o444)
    error_of(
        lambda: Reservation(MIB, path=path, shared=True).commit(populate="write"),
        errnos={EACCES, EPERM},
        says=READ_ONLY,
        kinds=(OSError, ValueError),
    )
    with Reservation(MIB, path=path, shared=True, readonly=True) as r:
        assert r.commit(populate="read") == MIB
        assert bytes(r.view(readonly=True)[:4]) == b"xxxx"


@case("readonly, to be populated for writing")
def _(at: Path) -> None:
    path = at / "file"
    path.write_bytes(b"x" * MIB)
    for shared in (True, False):
        with Reservation(MIB, path=path, shared=shared, readonly=True) as r:
            error_of(partial(r.commit, populate="write"), says=READ_ONLY, kinds=(ValueError, OSError))
            assert r.committed == 0 and resident(r.address, r.size) == 0
            assert r.commit(populate="read") == MIB
            assert bytes(r.view(readonly=True)[:4]) == b"xxxx"
            assert r.release() == 0 and r.committed == 0  # its pages are the file's, as before
    assert path.read_bytes() == b"x" * MIB


@case("a descriptor for writing only")
def _(at: Path) -> None:
    path = at / "file"
    path.write_bytes(b"x" * MIB)
    fd = os.open(path, os.O_WRONLY)
    for shared in (True, False):
        error_of(
            partial(make_and_commit, fd=fd, shared=shared),
            errnos={EACCES, EBADF, EINVAL, EPERM},
            says=r"read",
            kinds=(OSError, ValueError),
        )
    assert path.read_bytes() == b"x" * MIB


@case("no such descriptor")
def _(at: Path) -> None:
    for fd in (1023, -1):
        error_of(partial(make_and_commit, fd=fd), errnos={EBADF}, kinds=(OSError, ValueError))


# Paths.


@case("a directory that does not exist")
def _(at: Path) -> None:
    error_of(lambda: Reservation(MIB, path=at / "no" / "such" / "place"), errnos={ENOENT}, says=r"place")
    (at / "file").write_bytes(b"x")
    error_of(lambda: Reservation(MIB, path=at / "file" / "below"), errnos={ENOTDIR}, says=r"below")
    (at / "dangling").symlink_to(at / "nowhere")
    try:
        Reservation(MIB, path=at / "dangling", shared=True).commit()
    except OSError as error:
        assert error.errno in {EEXIST, ENOENT}, error


@case("a directory where no file can be made")
def _(at: Path) -> None:
    error_of(lambda: Reservation(MIB, path="/proc/self", shared=True), says="/proc/self")


@case("no inodes left", machine.tmpfs(16 * MIB, "nr_inodes=1"))
def _(at: Path) -> None:
    for path in (at, at / "new"):
        error_of(partial(Reservation, MIB, path=path, shared=True), errnos={ENOSPC}, says=str(path))
        assert list(at.iterdir()) == []


@case("a mount that is read-only", machine.tmpfs(16 * MIB, "ro"))
def _(at: Path) -> None:
    for path in (at, at / "new"):
        error_of(partial(Reservation, MIB, path=path, shared=True), errnos={EROFS}, says=str(path))


@case("a name that is too long")
def _(at: Path) -> None:
    error_of(partial(Reservation, MIB, path=at / ("n" * 300), shared=True), errnos={ENAMETOOLONG})
    error_of(partial(Reservation, MIB, path="/" + "n/" * 3000, shared=True), errnos={ENAMETOOLONG, ENOENT})


@case("no descriptors left")
def _(at: Path) -> None:
    (at / "theirs").write_bytes(b"x" * MIB)
    used = len(os.listdir("/proc/self/fd"))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (used - 1, most))
    everywhere: list[dict[str, Any]] = [{}, {"path": at}, {"path": at / "new"}, {"path": at / "theirs"}]
    for options in everywhere:
        error_of(partial(Reservation, MIB, shared=True, **options), errnos={EMFILE}, says=r"open files|ulimit -n")
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    assert sorted(path.name for path in at.iterdir()) == ["theirs"]
    for options in everywhere:
        with Reservation(MIB, shared=True, **options) as r:
            works(r, MIB)


@case("a directory without O_TMPFILE", machine.tmpfs(16 * MIB))
def _(at: Path) -> None:
    kernel.without_tmpfile()
    with Reservation(4 * MIB, path=at, shared=True) as r:
        assert list(at.iterdir()) == []
        assert os.fstat(r.fileno()).st_nlink == 0
        works(r, 4 * MIB)
    assert os.statvfs(at).f_bfree * PAGE == 16 * MIB


@case("paths that are no files")
def _(at: Path) -> None:
    os.mkfifo(at / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        here = os.getcwd()
        os.chdir(at)  # the path of a socket is short
        listener.bind("socket")
        os.chdir(here)
        for path in (at / "fifo", at / "socket", Path("/dev/null"), Path("/dev/tty")):
            for shared in (True, False):
                error_of(
                    partial(make_and_commit, path=path, shared=shared),
                    errnos={ENODEV, ENXIO, EINVAL, EACCES, EIO, ENOTSUP, EFAULT},
                    says=path.name,
                    kinds=(OSError, ValueError),
                )


@case("descriptors that are no files")
def _(at: Path) -> None:
    read, write = os.pipe()
    directory = os.open(at, os.O_RDONLY)
    ours, theirs = socket.socketpair()
    null = os.open("/dev/null", os.O_RDWR)
    path = os.open(at, os.O_PATH)
    for fd in (read, write, directory, ours.fileno(), null, path):
        error_of(
            partial(make_and_commit, fd=fd),
            errnos={ENODEV, EACCES, EINVAL, EBADF, EISDIR, ENOTSUP, EFAULT},
            kinds=(OSError, ValueError),
        )
        os.fstat(fd)
    theirs.close()


# Limits of the process and of its cgroups.


@case("RLIMIT_FSIZE", machine.tmpfs(64 * MIB))
def _(at: Path) -> None:
    theirs, expected = holey_file(at)
    resource.setrlimit(resource.RLIMIT_FSIZE, (MIB, resource.RLIM_INFINITY))
    signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    files: list[dict[str, Any]] = [
        {"shared": True},
        {"backing": "memfd"},
        {"path": at, "shared": True},
        {"path": at},
        {"path": at / "new", "shared": True},
    ]
    for options in files:
        error_of(partial(make_and_commit, 32 * MIB, **options), errnos={EFBIG}, says=r"RLIMIT_FSIZE|ulimit -f")
        assert [path.name for path in at.iterdir()] == ["theirs"]
    for options in files:
        with Reservation(512 << 10, **options) as r:
            works(r, 512 << 10)
    # A file that is longer than the limit already may be written in all its length.
    with Reservation(8 * MIB, path=theirs, shared=True, pages="4K") as r:
        try:
            r.commit()
        except CommitError as error:
            assert error.errno == EFBIG, error
    assert theirs.read_bytes() == expected


MEMCG = r"(limit_in_bytes|memory\.max)"


def foreign_memfd(size: int) -> Reservation:
    fd = os.memfd_create("theirs")
    os.ftruncate(fd, size)
    return Reservation(size, fd=fd, shared=True)


LIMITED: dict[str, tuple[Make, tuple[Populate, ...], Machine]] = {
    "private anonymous": (lambda at: Reservation(256 * MIB), WRITE, machine.ordinary()),
    "private anonymous, 4K": (lambda at: Reservation(256 * MIB, pages="4K"), WRITE, machine.ordinary()),
    "shared anonymous": (
        lambda at: Reservation(256 * MIB, backing="anonymous", shared=True),
        BOTH,
        machine.ordinary(),
    ),
    "memfd": (lambda at: Reservation(256 * MIB, shared=True), BOTH, machine.ordinary()),
    # A private mapping of a file in memory costs twice: the page of the file, and the copy.
    "private memfd": (lambda at: Reservation(72 * MIB, backing="memfd"), WRITE, machine.ordinary()),
    "tmpfs": (a_file(256 * MIB, shared=True), BOTH, machine.tmpfs(512 * MIB)),
    "private tmpfs": (a_file(72 * MIB, shared=False), WRITE, machine.tmpfs(512 * MIB)),
    "a private file on a disk": (a_file(256 * MIB, shared=False), WRITE, machine.disk(64 * MIB)),
    "a foreign memfd": (lambda at: foreign_memfd(256 * MIB), BOTH, machine.ordinary()),
}

for _name, (_make, _populate, _inside) in LIMITED.items():
    too_much(
        f"a memory cgroup's limit, {_name}",
        machine.memory_limit(96 * MIB, _inside),
        _make,
        fits=16 * MIB,
        errnos={ENOMEM},
        says=MEMCG,
        populate=_populate,
        gives_back="foreign" not in _name,
        disk="disk" in _name,
    )


too_much(
    "a memory cgroup's limit, many mounts",
    machine.memory_limit(96 * MIB),
    lambda at: Reservation(256 * MIB),
    fits=16 * MIB,
    errnos={ENOMEM},
    says=MEMCG,
    first=kernel.many_mounts,
    populate=WRITE,
)


def with_a_child(work: Callable[[], object]) -> None:
    """While the child of a fork has all of the memory too."""
    hold, release = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(release)
        os.read(hold, 1)
        os._exit(0)
    try:
        work()
    finally:
        os.close(release)
        assert os.waitpid(pid, 0)[1] == 0
        os.close(hold)


def ours_again(r: Reservation) -> None:
    """The child is gone: what it shared is to be had without another page."""
    r.commit()
    assert faults_writing(r.view()) == 0


@case("no memory for the copies after a fork", machine.memory_limit(96 * MIB))
def _(at: Path) -> None:
    r = Reservation(60 * MIB)
    works(r, 60 * MIB)
    with_a_child(lambda: refused(r, 60 * MIB, errnos={ENOMEM}, says=MEMCG, known=False))
    still_there(r, 60 * MIB)
    ours_again(r)


@case("no huge pages for the copies after a fork", machine.hugetlb_limit(2 * HUGE, machine.pool(4)))
def _(at: Path) -> None:
    r = Reservation(2 * HUGE, pages="2M", fork="copy")
    works(r, 2 * HUGE)
    with_a_child(lambda: refused(r, 2 * HUGE, errnos={ENOSPC, ENOMEM}, says="hugetlb", known=False))
    still_there(r, 2 * HUGE)
    ours_again(r)


@case("a memory cgroup's limit, a file on a disk", machine.memory_limit(64 * MIB, machine.disk(192 * MIB)))
def _(at: Path) -> None:
    # Its pages can be written back and dropped, so there may be no error; but never a kill.
    with Reservation(128 * MIB, path=at, shared=True) as r:
        try:
            r.commit()
        except CommitError as error:
            assert error.errno in {ENOMEM, ENOSPC}, error
            assert r.committed == 0 and resident(r.address, r.size) == 0
        works(r, 8 * MIB, disk=True)


# Signals.

STORMS: dict[str, Make] = {
    "private anonymous": lambda at: Reservation(128 * MIB, pages="4K"),
    "shared anonymous": lambda at: Reservation(128 * MIB, backing="anonymous", shared=True),
    "memfd": lambda at: Reservation(128 * MIB, shared=True),
    "private memfd": lambda at: Reservation(128 * MIB, backing="memfd"),
    "tmpfs": lambda at: Reservation(128 * MIB, path=at, shared=True),
}


class Enough(Exception):
    pass


for _name, _make in STORMS.items():

    @case(f"a storm of signals, {_name}", machine.tmpfs(256 * MIB))
    def _(at: Path, make: Make = _make) -> None:
        storm(make(at))


@case("a storm of signals, a file on a disk", machine.disk(128 * MIB))
def _(at: Path) -> None:
    storm(Reservation(64 * MIB, path=at, shared=True), metadata=METADATA)


def storm(r: Reservation, metadata: int = 0) -> None:
    signals = 0
    limit: int | None = None

    def handler(number: int, frame: object) -> None:
        nonlocal signals
        signals += 1
        if limit is not None and signals >= limit:
            signal.setitimer(signal.ITIMER_REAL, 0)
            raise Enough

    signal.signal(signal.SIGALRM, handler)
    for every in (0.001, 0.0002):
        before = facts(r)
        signals, limit = 0, None
        signal.setitimer(signal.ITIMER_REAL, every, every)
        assert r.commit(threads=1) == r.size
        signal.setitimer(signal.ITIMER_REAL, 0)
        assert signals, "no signal came"
        assert r.committed == r.size
        assert r.residency().present >= r.size or metadata
        assert r.release() == r.size
        for enough in (1, 3, 10):
            signals, limit = 0, enough
            try:
                signal.setitimer(signal.ITIMER_REAL, every, every)
                r.commit(threads=2)
                assert signals < enough, "the handler's exception was lost"
                limit = None
            except Enough:
                assert r.committed in (0, r.size)  # the last signal may have come when it was done
            else:
                assert r.committed == r.size
            signal.setitimer(signal.ITIMER_REAL, 0)
            if r.committed:
                r.release()
            after = facts(r)
            assert after.committed == after.resident == 0, after
            assert after.blocks <= before.blocks + metadata and after.free >= before.free - metadata, (before, after)
    works(r, 16 * MIB, disk=bool(metadata))


# seccomp.


@case("process_vm_readv and process_vm_writev are forbidden", machine.tmpfs(16 * MIB))
def _(at: Path) -> None:
    kernel.answer(EPERM, "process_vm_readv")
    kernel.answer(EPERM, "process_vm_writev")
    path, _ = holey_file(at, MIB)
    for r in (Reservation(MIB), Reservation(MIB, shared=True, backing="anonymous"), Reservation(MIB, path=path)):
        r.commit()
        for copy in (partial(r.read_into, bytearray(10)), partial(r.write_from, b"1")):
            error_of(copy, errnos={EPERM}, says=r"seccomp|SYS_PTRACE", kinds=PermissionError)
        r.verify()
        r.view()[:1] = b"1"
    # Of a shared file, pread(2) and pwrite(2) do as well.
    for r in (Reservation(MIB, shared=True), Reservation(MIB, path=path, shared=True)):
        works(r, MIB)
        assert r.write_from(b"hello", offset=5) == 5
        assert bytes(r.view()[5:10]) == b"hello"


for _name, _make in STORMS.items():
    for _without in (kernel.without_fallocate, kernel.without_populate):

        @case(f"{_without.__name__.replace('_', ' ')}, {_name}", machine.tmpfs(256 * MIB))
        def _(at: Path, make: Make = _make, without: Callable[[], None] = _without) -> None:
            without()
            with make(at) as r:
                before = facts(r)
                works(r, 8 * MIB, offset=2 * MIB)
                with r.view(8 * MIB, offset=2 * MIB) as view:
                    view[:] = b"\xff" * (8 * MIB)
                assert r.release() == 8 * MIB
                after = facts(r)
                assert after.resident == 0, (before, after)
                assert after.blocks == before.blocks or without is kernel.without_fallocate, (before, after)
                works(r, 16 * MIB)
                r.release()
                r.commit(16 * MIB)
                assert not any(bytes(r.view(16 * MIB)))


@case("without fallocate, a commit that is stopped", machine.tmpfs(256 * MIB))
def _(at: Path) -> None:
    kernel.without_fallocate()
    with Reservation(192 * MIB, path=at, shared=True) as r:
        reached = 0

        def stop(done: int, total: int) -> None:
            nonlocal reached
            reached = done
            if done < total:
                raise Enough

        try:
            r.commit(threads=1, progress=stop)
        except Enough:
            after = facts(r)
            assert after.committed == after.resident == 0, after
            # What it had made stays, for no hole can be punched; but nothing comes on top.
            assert after.blocks <= reached + 16 * MIB, (after, reached)


# What a sandbox forbids, and what is used up that is no memory: each has a sentence of its own.


@case("mbind is forbidden")
def _(at: Path) -> None:
    kernel.answer(EPERM, "mbind")
    error_of(lambda: Reservation(MIB, node=0), errnos={EPERM}, says=r"mbind.*SYS_NICE.*seccomp.*leave node= out")


@case("memfd_create is forbidden")
def _(at: Path) -> None:
    kernel.answer(EPERM, "memfd_create")
    error_of(lambda: Reservation(MIB, shared=True), errnos={EPERM}, says=r"memfd_create.*seccomp.*path='/dev/shm'")
    with Reservation(MIB, shared=True, path="/dev/shm") as r:
        works(r, MIB)


@case("no inodes", machine.tmpfs(16 * MIB, "mode=1777,nr_inodes=2"))
def _(at: Path) -> None:
    (at / "the last one").touch()
    for path in (at, at / "new"):
        error_of(partial(Reservation, MIB, path=path, shared=True), errnos={ENOSPC}, says=r"inodes.*df -i.*nr_inodes=")


@case("mlock is not permitted at all")
def _(at: Path) -> None:
    resource.setrlimit(resource.RLIMIT_MEMLOCK, (0, 0))
    kernel.drop_capabilities(14)  # IPC_LOCK
    with Reservation(MIB, lock=True) as r:
        error_of(r.commit, errnos={EPERM, ENOMEM}, says=r"RLIMIT_MEMLOCK.*CAP_IPC_LOCK", kinds=CommitError)
        assert r.committed == 0


@case("a memfd that was sealed meanwhile is not punched")
def _(at: Path) -> None:
    fd = os.memfd_create("sealed", os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, MIB)
    r = Reservation(MIB, fd=fd, shared=True)
    r.commit()
    fcntl.fcntl(fd, 1033, 0x10)  # F_ADD_SEALS, F_SEAL_FUTURE_WRITE
    error_of(partial(r.release, discard=True), errnos={EPERM}, says=r"F_SEAL_FUTURE_WRITE", kinds=CommitError)


if __name__ == "__main__":
    {each.name: each.body for each in CASES}[sys.argv[1]](Path(sys.argv[2]))
