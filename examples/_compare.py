"""What the examples share: how they end, and how they compare their ways and show what came of it."""

from __future__ import annotations

import functools
import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import TypeVar, final

__all__ = ["Spent", "command", "mib", "milliseconds", "show", "take_turns"]

T = TypeVar("T")


def command(main: Callable[[], int]) -> Callable[[], int]:
    """A main() that ends with a line, and not with a traceback, when Ctrl-C comes or the machine says no."""

    @functools.wraps(main)
    def guarded() -> int:
        try:
            return main()
        except KeyboardInterrupt:
            print("stopped", file=sys.stderr)
            return 130
        except (OSError, MemoryError) as error:
            print(error, file=sys.stderr)
            return 1

    return guarded


@final
class Spent:
    """Seconds and page faults of a ``with`` block: of all threads, the kernel's own populating included."""

    faults = 0
    seconds = 0.0

    def begin(self) -> None:
        self.faults = -_faults()
        self.seconds = -time.perf_counter()

    def end(self) -> None:
        self.seconds += time.perf_counter()
        self.faults += _faults()

    def __enter__(self) -> Spent:
        self.begin()
        return self

    def __exit__(self, *exc: object) -> None:
        self.end()


def _faults() -> int:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_minflt + usage.ru_majflt


def take_turns(ways: dict[str, Callable[[], T]], rounds: int) -> dict[str, list[T]]:
    """Every way so many times, one after the other, and another first in each round."""
    names = list(ways)
    results: dict[str, list[T]] = {name: [] for name in names}
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            results[name].append(ways[name]())
    return results


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.2f} ms"


def mib(nbytes: int) -> str:
    return f"{nbytes / 2**20:.1f} MiB"


def show(lines: Sequence[Sequence[str]]) -> None:
    """A table: its first column to the left, all others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *others in lines:
        cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
        print("  ".join([first.ljust(widths[0]), *cells]).rstrip())
