"""What the tests of the examples share."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"

# glibc's malloc adapts what it keeps to what was freed before. So it keeps nothing of this size, and each run is alike.
KEEP_NOTHING = "131072"


def run_example(name: str, *arguments: object, **env: object) -> tuple[int, str, str]:
    """In a child: the exit status, and what it printed and complained of."""
    done = subprocess.run(
        [sys.executable, EXAMPLES / f"{name}.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": KEEP_NOTHING, **{name: str(value) for name, value in env.items()}},
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def row(said: str, label: str) -> list[float]:
    """The numbers of a line of the table. What has a unit is in that unit; amounts are in bytes."""
    line = next(line for line in said.splitlines() if line.startswith(label + " "))
    units = {"bytes": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}
    cells = re.split(r"  +", line)[1:]
    return [float(cell.split()[0].replace(",", "")) * units.get(cell.split()[-1], 1) for cell in cells]


@contextmanager
def no_thread_is_left() -> Iterator[None]:
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before
