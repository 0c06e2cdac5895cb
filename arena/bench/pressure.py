"""What may disturb a loop: a neighbour's memory, the page cache, forks of the process itself."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator

__all__ = ["PRESSURES", "fork_once", "under"]

# Each pressure is made of other processes, and of forks of this one or not.
PRESSURES: dict[str, tuple[tuple[str, ...], bool]] = {
    "idle": ((), False),
    "neighbour": (("neighbour",), False),
    "page cache": (("cache",), False),
    "forks": ((), True),
    "all": (("neighbour", "cache"), True),
}


@contextlib.contextmanager
def under(pressure: str, nbytes: int) -> Iterator[bool]:
    """Run other processes with ``nbytes`` each beside the block, which is told whether to call fork_once() too."""
    others, forks = PRESSURES[pressure]
    running: list[subprocess.Popen[bytes]] = []
    with contextlib.ExitStack() as stack:
        for kind in others:
            command = [sys.executable, "-m", "arena.bench._disturb", kind, str(nbytes), str(os.getpid())]
            other = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            stack.callback(other.wait)
            stack.callback(other.kill)
            running.append(other)
        yield forks
        for other in running:
            if other.poll() is not None:
                raise ChildProcessError(f"the process that was to disturb ended itself, with status {other.returncode}")


def fork_once() -> None:
    """Fork a child that ends at once, and wait for it."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
