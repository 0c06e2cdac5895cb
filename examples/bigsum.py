"""Sums a file that is larger than the memory it may have: O_DIRECT into aligned blocks, read ahead while we add.

O_DIRECT wants addresses, offsets and lengths in multiples of the device's block, which ``alloc(n, align=4096)`` gives;
the data does not go through the page cache, and does not push out what other programs have there. Beside it are
np.fromfile and np.memmap, by pieces of the same size. Nothing of the file is in the page cache at first; with --cached
all of it is, and then the ordinary ways need no disk and should win: use O_DIRECT for what is read once.

    python examples/bigsum.py                     a file of its own, 512 MiB
    python examples/bigsum.py FILE --dtype f4
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import functools
import math
import mmap
import os
import statistics
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from _compare import Spent, command, mib, milliseconds, show, take_turns

from arena import Arena, Block
from arena.sizes import parse_size

try:
    import numpy as np
except ImportError:
    sys.exit("this example needs NumPy: pip install 'sparse-arena[numpy]'")

PIECE = 4 << 20  # bytes that are read, and added, at a time
ALIGN = 4096  # what O_DIRECT wants: 512 on some devices, and this on all but the oddest
READERS = 2  # a device is faster with two requests than with one after the other
BLOCKS = READERS + 2  # one is added, and one lies between


Pieces = Generator[Any, None, None]  # arrays


@dataclass
class File:
    path: str
    size: int
    dtype: Any

    def became_shorter(self, at: int) -> OSError:
        return OSError(f"{self.path} became shorter while it was read: nothing is at byte {at:,} of {self.size:,}")


# --- the arena's way --------------------------------------------------------------------------------------------------


def open_direct(path: str) -> tuple[int, bool]:
    """A descriptor, and whether it is O_DIRECT: not every file system has that, and some say so when they are read."""
    fd = -1
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
        os.preadv(fd, [mmap.mmap(-1, ALIGN)], 0)
        return fd, True
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        if error.errno != errno.EINVAL:
            raise
        return os.open(path, os.O_RDONLY), False


def read_piece(fd: int, block: Block, offset: int, file: File) -> tuple[Block, int]:
    """Reads what there is of the file at this offset, up to a whole block. (EINTR: Python reads again by itself.)"""
    want = min(block.nbytes, file.size - offset)
    got = 0
    with memoryview(block) as view:
        while got < want:
            # Lengths are whole pages at the file's end too. After a short read the page that was begun is read again.
            at = got // ALIGN * ALIGN
            now = at + os.preadv(fd, [view[at : -(-want // ALIGN) * ALIGN]], offset + at)
            if now <= got:
                raise file.became_shorter(offset + now)
            got = now
    return block, want


def by_arena(file: File) -> Pieces:
    """Blocks go round: while one is added, threads read into the others. A piece is there until the next is asked
    for."""
    arena = Arena(64 << 20, fork="drop", name="bigsum")
    arena.warm(BLOCKS * PIECE)
    free = deque(arena.alloc(PIECE, align=ALIGN, grow=False) for _ in range(BLOCKS))
    offsets = iter(range(0, file.size, PIECE))
    ahead: deque[Future[tuple[Block, int]]] = deque()
    pool = ThreadPoolExecutor(READERS, "reader")
    fd, _ = open_direct(file.path)
    try:
        while True:
            while free and (offset := next(offsets, None)) is not None:
                ahead.append(pool.submit(read_piece, fd, free.popleft(), offset, file))
            if not ahead:
                return
            block, nbytes = ahead.popleft().result()  # raises what the reader has raised
            yield np.frombuffer(memoryview(block), file.dtype, nbytes // file.dtype.itemsize)
            free.append(block)
    finally:
        # Before the descriptor is closed, and its number somebody else's.
        pool.shutdown(cancel_futures=True)
        os.close(fd)


# --- the ordinary ways ------------------------------------------------------------------------------------------------


def by_fromfile(file: File) -> Pieces:
    with open(file.path, "rb", buffering=0) as raw:
        for offset in range(0, file.size, PIECE):
            count = min(PIECE, file.size - offset) // file.dtype.itemsize
            piece = np.fromfile(raw, file.dtype, count)
            if len(piece) < count:
                raise file.became_shorter(offset + piece.nbytes)
            yield piece


def by_memmap(file: File) -> Pieces:
    """If somebody truncates the file meanwhile this is a SIGBUS, not an exception."""
    whole = np.memmap(file.path, file.dtype, "r", shape=(file.size // file.dtype.itemsize,))
    step = PIECE // file.dtype.itemsize
    for at in range(0, len(whole), step):
        yield whole[at : at + step]


# --- what is measured -------------------------------------------------------------------------------------------------


def resident(which: str = "VmRSS") -> int:
    """Resident bytes of this process; as VmHWM, the most there were since reset_peak()."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which + ":"))


def reset_peak() -> None:
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w", encoding="ascii") as knob:
        knob.write("5")


def page_cache(path: str, *, fill: bool) -> None:
    """All of the file is in the page cache then, or none of it that was written to the disk and is not mapped."""
    with open(path, "rb", buffering=0) as raw:
        if fill:
            scratch = bytearray(1 << 20)
            while raw.readinto(scratch):
                pass
        else:
            os.fsync(raw)
            os.posix_fadvise(raw.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def in_page_cache(path: str) -> int | None:
    """Bytes of the file in the page cache, by mincore(2). None: it tells only those who might write to the file."""
    if not os.access(path, os.W_OK):
        return None
    with open(path, "rb") as raw, mmap.mmap(raw.fileno(), 0, mmap.MAP_PRIVATE) as pages:
        present = bytearray(-(-len(pages) // mmap.PAGESIZE))
        start = ctypes.c_char.from_buffer(pages)
        vector = ctypes.c_char.from_buffer(present)
        failed = ctypes.CDLL(None).mincore(ctypes.byref(start), ctypes.c_size_t(len(pages)), ctypes.byref(vector))
        del start
    return None if failed else sum(byte & 1 for byte in present) * mmap.PAGESIZE


@dataclass
class Total:
    count: int = 0
    sum: float = 0.0
    min: float = math.inf
    max: float = -math.inf

    def add(self, piece: Any) -> None:
        self.count += len(piece)
        self.sum += float(piece.sum(dtype="f8"))
        self.min = min(self.min, float(piece.min()))
        self.max = max(self.max, float(piece.max()))

    def __str__(self) -> str:
        return f"sum {self.sum:.17g}, mean {self.sum / self.count:.17g}, min {self.min:g}, max {self.max:g}"


@dataclass
class Result:
    total: Total
    spent: Spent
    steady: int  # page faults after the first piece
    peak: int  # resident bytes, at most, more than before
    cached: int | None  # bytes of the file in the page cache afterwards


def measure(pieces: Callable[[File], Pieces], file: File, cached: bool) -> Result:
    page_cache(file.path, fill=cached)
    total, spent, steady = Total(), Spent(), Spent()
    before = resident()
    reset_peak()
    with spent, contextlib.closing(pieces(file)) as some:
        for number, piece in enumerate(some):
            total.add(piece)
            if number == 0:
                steady.begin()
        steady.end()
        peak = resident("VmHWM") - before
        del piece
    return Result(total, spent, steady.faults, max(peak, 0), in_page_cache(file.path))


@contextlib.contextmanager
def made(nbytes: int, directory: str | None, dtype: Any) -> Iterator[str]:
    """A file of random numbers, which goes at the end."""
    rng = np.random.default_rng(1)
    with tempfile.NamedTemporaryFile(dir=directory, prefix="bigsum-") as file:
        for at in range(0, nbytes, PIECE):
            file.write(rng.random(min(PIECE, nbytes - at) // dtype.itemsize, dtype))
        file.flush()
        yield file.name


@command
def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("file", nargs="?", help="numbers, nothing else (default: one is made, and removed)")
    parser.add_argument("--dtype", choices=("f4", "f8"), default="f8", help="of a number (default: %(default)s)")
    parser.add_argument("--size", default="512MiB", help="of the file that is made (default: %(default)s)")
    parser.add_argument("--dir", help="where it is made (default: where temporary files are)")
    parser.add_argument("--rounds", type=int, default=3, help="the ways take turns (default: %(default)s)")
    parser.add_argument("--cached", action="store_true", help="begin with the file in the page cache, not without")
    args = parser.parse_args()
    dtype = np.dtype(args.dtype)
    if args.rounds < 1:
        parser.error("--rounds must be 1 or more")
    try:
        size = parse_size(args.size)
    except ValueError as error:
        parser.error(str(error))
    with contextlib.nullcontext(args.file) if args.file else made(size, args.dir, dtype) as path:
        file = File(path, os.stat(path).st_size, dtype)
        if not file.size or file.size % dtype.itemsize:
            parser.error(f"{path} has {file.size:,} bytes: not one or more numbers of {dtype.itemsize}")
        fd, direct = open_direct(path)
        os.close(fd)
        print(f"{file.size // dtype.itemsize:,} numbers, {mib(file.size)}, in pieces of {mib(PIECE)}", flush=True)
        if not direct:
            print(f"The file system of {path} has no O_DIRECT: the arena reads through the page cache too.")
        ways = {
            f"arena, {'O_DIRECT' if direct else 'preadv'}": by_arena,
            "np.fromfile": by_fromfile,
            "np.memmap": by_memmap,
        }
        results = take_turns(
            {name: functools.partial(measure, way, file, args.cached) for name, way in ways.items()}, args.rounds
        )
    totals = {str(result.total) for some in results.values() for result in some}
    if len(totals) != 1:
        sys.exit("the ways do not agree: somebody writes to the file")
    print(totals.pop())
    times = [statistics.median(result.spent.seconds for result in some) for some in results.values()]
    last = [some[-1] for some in results.values()]
    rows = [
        ["", *ways],
        ["time", *map(milliseconds, times)],
        ["GiB/s", *(f"{file.size / seconds / 2**30:.2f}" for seconds in times)],
        ["page faults", *(f"{statistics.median_low(r.spent.faults for r in some):,}" for some in results.values())],
        ["after the first piece", *(f"{statistics.median_low(r.steady for r in some):,}" for some in results.values())],
        ["resident memory, at most", *(f"+{mib(result.peak)}" for result in last)],
        ["of the file in the page cache", *("unknown" if r.cached is None else mib(r.cached) for r in last)],
        ["time, to the arena's", *(f"{seconds / times[0]:.2f} x" for seconds in times)],
    ]
    show(rows)
    return 0


if __name__ == "__main__":
    sys.exit(main())
