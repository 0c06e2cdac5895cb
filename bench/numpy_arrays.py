"""Arrays that NumPy allocates in an arena (NEP 49), beside NumPy's own: made and dropped, written, in expressions, the
first pass over a large one, and what memory is there afterwards.

NumPy's own allocator is malloc, with a cache below 1 KiB and, from 4 MiB on, madvise(MADV_HUGEPAGE); it is measured as
it comes, and also with 4 KiB pages (NUMPY_MADVISE_HUGEPAGE=0). The arena is warmed, as a program
that runs for a while has it.
"""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import Callable, Iterator
from typing import Any

import _measure as m
import numpy as np

import arena

native = m.load_native()
U1 = np.dtype("u1")
PAGE = 4096
PAGES = {True: "THP", False: "4 KiB pages"}


@contextlib.contextmanager
def numpys_pages(huge: bool) -> Iterator[None]:
    inside: Any = (getattr(np, "_core", None) or np.core)._multiarray_umath
    before = inside._set_madvise_hugepage(huge)
    try:
        yield
    finally:
        inside._set_madvise_hugepage(before)


class Bench:
    def __init__(self, report: m.Report, args: Any) -> None:
        self.report, self.repeat, self.size = report, args.repeat, args.size
        self.pool = arena.Arena("64GiB")
        self.pool.warm(4 * self.size)

    def both(self, work: Callable[[], float]) -> dict[str, m.Case]:
        def ours() -> float:
            with self.pool.numpy_allocations():
                return work()

        return {"NumPy": work, "arena": ours}

    def made(self, n: int, target: m.Target | None) -> None:
        count = 20_000 if n <= 16 * m.MIB else 200

        def work() -> float:
            empty, each = np.empty, range(count)
            start = time.perf_counter_ns()
            for _ in each:
                empty(n, U1)
            return (time.perf_counter_ns() - start) / 1e9 / count

        samples = m.interleave(self.both(work), self.repeat)
        self.report.keep(f"np.empty of {size(n)}", samples)
        self.report.times_cost(f"np.empty of {size(n)}, made and dropped", target, samples["arena"], samples["NumPy"])

    def written(self, n: int, step: int, huge: bool, target: m.Target | None) -> None:
        count = max(1, 4 * self.size // n // 16)

        def work() -> float:
            spent = 0
            for _ in range(count):
                start = time.perf_counter_ns()
                array = np.empty(n, U1)
                array[::step] = 1
                del array
                spent += time.perf_counter_ns() - start
            return spent / 1e9 / count

        with numpys_pages(huge):
            samples = m.interleave(self.both(work), self.repeat, lambda: m.warm_machine(n))
        how = "filled" if step == 1 else "a byte a page written"
        what = f"np.empty of {size(n)}, {how}, and dropped, against NumPy's own with {PAGES[huge]}"
        self.report.keep(what, samples)
        self.report.times_faster(what, target, samples["NumPy"], samples["arena"])

    def expression(self, n: int, huge: bool, target: m.Target | None) -> None:
        rounds, faults = 3, []

        def work() -> float:
            a, b, c = (np.full(n // 8, value) for value in (1.5, 2.0, 3.0))
            total = float((a * b + c).sum())
            before = native.page_faults()
            start = time.perf_counter_ns()
            for _ in range(rounds):
                total = float((a * b + c).sum())
            spent = time.perf_counter_ns() - start
            faults.append(native.page_faults() - before)
            if total != 6.0 * (n // 8):
                raise AssertionError("the sum is wrong")
            return spent / 1e9 / rounds

        with numpys_pages(huge):
            samples = m.interleave(self.both(work), self.repeat)
        what = f"(a * b + c).sum(), {size(n)} each, against NumPy's own with {PAGES[huge]}"
        self.report.keep(what, samples)
        self.report.times_faster(what, target, samples["NumPy"], samples["arena"])
        if huge:
            return
        with self.pool.numpy_allocations():
            faults.clear()
            work()
        what = f"page faults of (a * b + c).sum(), {size(n)} each"
        self.report.value(what, m.at_most(0, "faults"), faults, "faults")

    def first_pass(self, n: int) -> None:
        took = np.ones(n // PAGE, "i8")  # present

        def work() -> float:
            array = np.empty(n, U1)
            native.time_pages(array.ctypes.data, n, took.ctypes.data)
            return float(np.sort(took)[int(len(took) * 0.9999)]) / 1e9

        samples = m.interleave(self.both(work), self.repeat, lambda: m.warm_machine(n))
        what = f"first write to each page of a new {size(n)} array, p99.99"
        self.report.keep(what, samples)
        self.report.value(what, m.at_most(1, "µs"), [1e6 * t for t in samples["arena"]], "µs")
        self.report.value(f"{what}, NumPy's own", None, [1e6 * t for t in samples["NumPy"]], "µs")

    def afterwards(self) -> None:
        left = []
        for _ in range(self.repeat):
            self.pool.trim()
            gc.collect()
            before = m.resident()
            with self.pool.numpy_allocations():
                held = [np.ones(self.size // 64 // 8) for _ in range(64)] + [np.ones(100) for _ in range(10_000)]
            del held
            self.pool.trim()
            left.append((m.resident() - before) / m.MIB)
        what = f"resident memory after {size(self.size)} of arrays, dropped and trimmed"
        self.report.value(what, m.at_most(1, "MiB"), [abs(n) for n in left], "MiB")


def size(n: int) -> str:
    for unit, bytes_ in (("GiB", m.GIB), ("MiB", m.MIB), ("KiB", 1024)):
        if n >= bytes_:
            return f"{n // bytes_} {unit}"
    return f"{n} B"


def main() -> None:
    _, parse = m.arguments(__doc__, repeat=9, size="1GiB")
    args = parse()
    report = m.Report("numpy_arrays")
    bench = Bench(report, args)
    for n in (16, 256, 1024):
        bench.made(n, None)
    for shift in range(11, 25):
        if 1 << shift <= args.size:
            bench.made(1 << shift, m.at_most(1.2))
    for n in (n for n in (64 * m.MIB, 256 * m.MIB, m.GIB) if n <= args.size):
        for huge in (True, False):
            bench.written(n, PAGE, huge, m.at_least(40))
            bench.written(n, 1, huge, m.at_least(2.5))
    for n in (n for n in (32 * m.MIB, 64 * m.MIB, 256 * m.MIB) if n <= args.size):
        bench.expression(n, False, m.at_least(2))
        bench.expression(n, True, m.at_least(1.2))
    bench.first_pass(args.size)
    bench.afterwards()
    report.finish(args.json)


if __name__ == "__main__":
    main()
