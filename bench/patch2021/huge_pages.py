"""The pool of 2 MiB huge pages: what is free in it, and pages added for as long as a ``with`` lasts.

Pages are added and taken away by a process of their own, which does so when its standard input ends: when the ``with``
does, or when whoever started it is gone, killed or not. It subtracts what it added, for somebody else may have changed
the pool in between. (This file is that process's program too, so it imports nothing of the package.)
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["PAGE", "added", "free", "how_to_add"]

PAGE = 2 << 20
POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
SIZE = POOL / "nr_hugepages"


def free() -> int:
    """How many pages can still be had; OSError where the kernel has no 2 MiB huge pages."""
    there, promised = (int((POOL / name).read_text()) for name in ("free_hugepages", "resv_hugepages"))
    return there - promised


def how_to_add(pages: int) -> str:
    return f"run it as root with --reserve-hugepages, or first: echo {pages} > {SIZE}"


@contextlib.contextmanager
def added(pages: int) -> Iterator[int]:
    """``pages`` more in the pool, or as many as the machine has; yields how many. OSError without permission."""
    SIZE.open("r+").close()
    keeper = subprocess.Popen(
        [sys.executable, "-I", "-S", __file__, str(pages)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # a Ctrl-C is for us
    )
    with keeper:
        assert keeper.stdin and keeper.stdout
        try:
            yield int(keeper.stdout.readline() or 0)
        finally:
            keeper.stdin.close()
            keeper.wait()


def keep(pages: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    before = int(SIZE.read_text())
    SIZE.write_text(str(before + pages))
    more = max(int(SIZE.read_text()) - before, 0)
    with contextlib.suppress(OSError):
        print(more, flush=True)
    sys.stdin.read()
    SIZE.write_text(str(max(int(SIZE.read_text()) - more, 0)))


if __name__ == "__main__":
    keep(int(sys.argv[1]))
