"""alloc(zero=True) on memory that was used before and has left the cache, beside memset and streaming stores.

All three clear the same memory of an arena, in the same state: huge pages that are present, written once, and evicted
from the cache by a walk through a larger buffer. The walk evicts the interpreter too, so all three get their block by
an alloc() that is timed with them: a cold call costs 5-10 µs, which would be a third of what clearing 1 MiB does.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable

import _measure as m

import arena

native = m.load_native()
EVICTOR = 256 * m.MIB
SIZES = tuple(m.MIB << i for i in range(9))


class Bench:
    def __init__(self, largest: int) -> None:
        self.arena = arena.Arena(2 * largest)
        self.arena.warm(largest)
        self.evictor = native.range_new(EVICTOR, 1)
        native.fill_bytes(self.evictor, 1, EVICTOR)

    def cold(self, size: int) -> int:
        """Where the next block of this size will be: dirty, and out of the cache."""
        block = self.arena.alloc(size)
        address = block.address
        native.fill_bytes(address, 255, size)
        block.free()
        native.walk_lines(self.evictor, EVICTOR)
        return address

    def ours(self, size: int) -> float:
        address = self.cold(size)
        start = time.perf_counter_ns()
        block = self.arena.alloc(size, zero=True)
        spent = time.perf_counter_ns() - start
        if block.address != address or native.not_zero(block.address, size):
            raise AssertionError("not the memory that was dirtied, or not zero")
        return spent / 1e9

    def other(self, clear: Callable[[int, int], int], size: int) -> float:
        address = self.cold(size)
        start = time.perf_counter_ns()
        block = self.arena.alloc(size)
        spent = time.perf_counter_ns() - start
        if block.address != address:
            raise AssertionError("not the memory that was dirtied")
        return spent / 1e9 + m.checked(clear(address, size))

    def memset(self, size: int) -> float:
        return self.other(lambda address, n: int(native.fill_bytes(address, 0, n)), size)

    def stream(self, size: int) -> float:
        return self.other(lambda address, n: int(native.stream_zero(address, n)), size)


def main() -> None:
    _, parse = m.arguments(__doc__, size="256MiB")
    args = parse()
    report = m.Report("zero")
    bench = Bench(args.size)
    for size in (n for n in SIZES if n <= args.size):
        names = {"zero=True": bench.ours, "memset": bench.memset, "streaming stores": bench.stream}
        cases = {name: functools.partial(function, size) for name, function in names.items()}
        s = m.interleave(cases, args.repeat)
        report.keep(f"{size // m.MIB} MiB", s)
        faster = min(("memset", "streaming stores"), key=lambda name: statistics.median(s[name]))
        what = f"zero=True, {size // m.MIB} MiB, cold, vs the faster of memset and streaming stores ({faster})"
        report.times_faster(what, m.at_least(0.9), s[faster], s["zero=True"])
    report.finish(args.json)


if __name__ == "__main__":
    main()
