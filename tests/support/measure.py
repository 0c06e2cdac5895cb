"""What the kernel says of this process: its faults, and which pages are present."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import mmap
import os
import resource
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from arena import PageFaultError, _realtime

T = TypeVar("T")
PAGE = mmap.PAGESIZE


def minor_faults() -> int:
    return resource.getrusage(resource.RUSAGE_THREAD).ru_minflt


WATCHED = 64
"""What the kernel notes of a watch: FAULT_WATCH_RECORDS of fault_watch.h."""


def faults_at(address: int, nbytes: int, work: Callable[[], object], rehearse: Callable[[], object]) -> int:
    """The faults of work() in this memory, and not those of the interpreter's own, which faults too: after a fork each
    of its pages, and a new one now and then. Where no perf event says where they are, all count, and `rehearse` does
    the same to other memory often enough for the interpreter's pages to be there."""
    try:
        watch = _realtime.Watch(0)
    except OSError:
        for _ in range(500):
            rehearse()
        before = minor_faults()
        work()
        return minor_faults() - before
    watch.arm()
    work()
    watch.disarm()
    found = [at for at, _ in watch.faults()[1]]
    here = sum(address <= at < address + nbytes for at in found)
    assert here or len(found) < WATCHED, "so many faults elsewhere that those after them were not noted"
    return here


def faults_writing(view: memoryview, byte: int = 1) -> int:
    """The faults of writing all of it."""
    other = bytearray(1 << 16)
    at, elsewhere = (ctypes.addressof(ctypes.c_char.from_buffer(target)) for target in (view, other))
    return faults_at(
        at, len(view), lambda: ctypes.memset(at, byte, len(view)), lambda: ctypes.memset(elsewhere, byte, len(other))
    )


def steady_faults(cycle: Callable[[], object], rounds: int = 6) -> int:
    """The fewest faults of a round but the first: what is measured faults in each if it does, and the interpreter's own
    memory in one or another."""
    counts = []
    for _ in range(rounds):
        before = minor_faults()
        cycle()
        counts.append(minor_faults() - before)
    return min(counts[1:])


def quietest(attempt: Callable[[], tuple[T, PageFaultError]], rounds: int = 6) -> tuple[T, PageFaultError]:
    """The last attempt with the fewest faults: pages of the interpreter's own fault in the first, while what records
    them is made ready, and one of them now and then."""
    return min([attempt() for _ in range(rounds)][::-1], key=lambda found: found[1].minor)


def rss() -> int:
    """Resident bytes of this process, from the page tables: statm's counters lag by a batch for each CPU and thread."""
    with open("/proc/self/smaps_rollup", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("Rss:"):
                return int(line.split()[1]) * 1024
    raise AssertionError("no Rss in smaps_rollup")


FS_IOC_FIEMAP, FIEMAP_FLAG_SYNC, EXTENTS = 0xC020660B, 1, 512


def allocated(file: int | Path) -> int:
    """Bytes of a file's data that have blocks. On a disk st_blocks counts what the file system takes for itself too:
    ext4 takes a block for a list of more than four extents, and how many a file has depends on how full the disk is."""
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return allocated(opened.fileno())
    request = bytearray(struct.pack("=QQIIII", 0, 2**64 - 1, FIEMAP_FLAG_SYNC, 0, EXTENTS, 0) + bytes(56 * EXTENTS))
    try:
        fcntl.ioctl(file, FS_IOC_FIEMAP, request)
    except OSError:  # nothing but a disk has extents
        return os.fstat(file).st_blocks * 512
    (count,) = struct.unpack_from("=I", request, 20)
    assert count < EXTENTS, "a file of so many parts that they were not all told"
    return sum(struct.unpack_from("=Q", request, 32 + 56 * i + 16)[0] for i in range(count))


PRESENT, SOFT_DIRTY = 1 << 63, 1 << 55


def pagemap(address: int, nbytes: int) -> list[int]:
    """/proc/self/pagemap: an entry for each page."""
    with open("/proc/self/pagemap", "rb", buffering=0) as file:
        file.seek(address // PAGE * 8)
        raw = file.read(nbytes // PAGE * 8)
    return list(struct.unpack(f"{len(raw) // 8}Q", raw))


def resident(address: int, nbytes: int) -> int:
    """The bytes present of this range, by smaps, pages of the hugetlb pool included."""
    total, inside = 0, False
    with open("/proc/self/smaps", encoding="ascii", errors="replace") as lines:
        for line in lines:
            first = line.split(maxsplit=1)[0]
            if not first.endswith(":"):
                start, _, end = first.partition("-")
                inside = int(start, 16) >= address and int(end, 16) <= address + nbytes
            elif inside and first in ("Rss:", "Shared_Hugetlb:", "Private_Hugetlb:"):
                total += int(line.split()[1]) * 1024
    return total


def descriptor_behind(address: int) -> int | None:
    """A descriptor, somebody's, of the file that is mapped there. None: there is none."""
    with open("/proc/self/maps", encoding="ascii", errors="replace") as lines:
        for line in lines:
            span, _, _, device, inode = line.split()[:5]
            if int(span.partition("-")[0], 16) == address:
                break
        else:
            return None
    if inode == "0":
        return None
    major, minor = (int(part, 16) for part in device.split(":"))
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):
            there = os.fstat(fd)
            if (there.st_dev, there.st_ino) == (os.makedev(major, minor), int(inode)):
                return fd
    return None


def locked() -> int:
    """Bytes that are mlocked."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmLck:"))
