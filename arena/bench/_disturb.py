"""The other process that pressure.py starts: ``python -m arena.bench._disturb neighbour|cache BYTES PARENT``.

It ends with its parent, and what it has on a disk never had a name.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
import tempfile
from collections.abc import Iterator

PIECE = 1 << 20


def neighbour(nbytes: int) -> Iterator[None]:
    """Allocates memory, touches it and frees it, again and again."""
    while True:
        with mmap.mmap(-1, nbytes) as memory:
            for at in range(0, nbytes, mmap.PAGESIZE):
                memory[at] = 1
                if at % PIECE == 0:
                    yield


def cache(nbytes: int) -> Iterator[None]:
    """Writes a file, reads it, and drops it from the page cache."""
    piece = bytearray(PIECE)
    with tempfile.TemporaryFile(buffering=0) as file:
        while True:
            for at in range(0, nbytes, PIECE):
                os.pwrite(file.fileno(), piece, at)
                yield
            for at in range(0, nbytes, PIECE):
                os.preadv(file.fileno(), [piece], at)
                yield
            os.fdatasync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def main(kind: str, nbytes: int, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C
    for _ in {"neighbour": neighbour, "cache": cache}[kind](nbytes):
        if os.getppid() != parent:
            return


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
