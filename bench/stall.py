"""What other threads feel while one commits.

A populate holds the mmap_lock, and so a neighbour's mmap or munmap waits for it. Here the neighbour is a C thread, so
that neither the GIL nor the interpreter is measured: it maps and unmaps a page over and over, or allocates from what
is committed of an arena and frees again, while the main thread commits (more of the same arena). What counts is what
the neighbour did while the commit ran, or had under way when it began or ended.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable

import _measure as m

import arena
from arena.bench.latency_report import percentile

native = m.load_native()
ROOM = 4_000_000
MAP_UNMAP, ALLOC_FREE = 0, 1
samples_of_neighbour = (ctypes.c_int64 * ROOM)()
native.fill_bytes(ctypes.addressof(samples_of_neighbour), 0, ctypes.sizeof(samples_of_neighbour))


def beside(what: int, other: arena.Arena | None, work: Callable[[], float]) -> tuple[float, list[float]]:
    """What work() returns, and the neighbour's seconds meanwhile, sorted."""
    api = m.c_api() if other is not None else None
    rc = native.neighbour_start(what, api, other, 4096, ctypes.addressof(samples_of_neighbour), ROOM)
    m.checked(rc)
    first = native.neighbour_count()
    value = work()
    last = native.neighbour_count() + 1  # the one under way ends after the commit, and belongs to it
    last = min(native.neighbour_stop(), last)
    if native.neighbour_failed():
        raise OSError(native.neighbour_failed(), "the neighbour could not go on")
    first = max(first, last - ROOM)
    return value, sorted(samples_of_neighbour[i % ROOM] / 1e9 for i in range(first, last))


def bare(size: int, huge: bool) -> float:
    at = native.range_new(size, huge)
    spent = native.bare_populate(at, size)
    native.range_drop(at, size)
    return m.checked(spent)


def commit(size: int, pages: m.Pages) -> float:
    # Unmapping what was committed would be felt too: released first, the way close() does it.
    reservation = arena.Reservation(size, pages=pages)
    start = time.perf_counter()
    reservation.commit(threads=1)
    spent = time.perf_counter() - start
    kept.append(reservation)
    return spent


kept: list[arena.Reservation] = []  # closed once the neighbour has stopped


def idle() -> float:
    time.sleep(0.1)
    return 0.1


class Felt:
    """The neighbour's percentiles, round by round."""

    def __init__(self) -> None:
        self.values: dict[str, list[float]] = {"p50": [], "p99": [], "p99.9": [], "worst": []}

    def add(self, ordered: list[float]) -> None:
        for name, values in self.values.items():
            values.append(ordered[-1] if name == "worst" else percentile(ordered, float(name[1:])))


def case(felt: Felt, what: int, other: arena.Arena | None, work: Callable[[], float]) -> m.Case:
    def measured() -> float:
        value, ordered = beside(what, other, work)
        for reservation in kept:
            reservation.close()
        kept.clear()
        felt.add(ordered)
        return value

    return measured


def mappings(report: m.Report, size: int, repeat: int) -> None:
    works: dict[str, Callable[[], float]] = {
        "bare madvise, 4K": lambda: bare(size, False),
        "commit, 4K": lambda: commit(size, "4K"),
        "bare madvise, THP": lambda: bare(size, True),
        "commit, THP": lambda: commit(size, "thp"),
        "nobody": idle,
    }
    felt = {name: Felt() for name in works}
    cases = {name: case(felt[name], MAP_UNMAP, None, work) for name, work in works.items()}
    s = m.interleave(cases, repeat, before=lambda: m.warm_machine(size + size // 4))
    report.keep("how long the commit took, beside a thread that maps and unmaps", s)
    for name, one in felt.items():
        report.keep(f"mmap + munmap beside: {name}", one.values)
    for pages, p50, p99 in (("4K", 20, 1500), ("THP", 10, 50)):
        for percent, limit in (("p50", p50), ("p99", p99)):
            ours, theirs = felt[f"commit, {pages}"].values[percent], felt[f"bare madvise, {pages}"].values[percent]
            what = f"mmap+munmap {percent} while 1 GiB of {pages} is committed"
            report.value(what.replace("1 GiB", f"{size / m.GIB:g} GiB"), m.below(limit, "µs"), micro(ours[1:]), "µs")
            report.value("  beside a bare madvise", None, micro(theirs[1:]), "µs")
    report.times_faster("speed of that commit, 4K, vs bare", m.at_least(0.85), s["bare madvise, 4K"], s["commit, 4K"])
    report.times_faster("speed of that commit, THP, vs bare", m.at_least(1.0), s["bare madvise, THP"], s["commit, THP"])


PIECE = 32 * m.MIB  # what one thread commits by itself; a larger alloc would start a second one


def prepared(size: int, pages: m.Pages) -> tuple[arena.Arena, arena.Block]:
    """An arena with 4 MiB that are committed and free, and behind them the block that is returned: what is committed
    later lies behind that block, so nobody takes the 4 MiB from the neighbour."""
    one = arena.Arena(size * 2, chunk="2MiB", pages=pages)
    one.warm("6MiB")
    free = one.alloc("4MiB")
    fence = one.alloc("2MiB")
    free.free()
    return one, fence


def allocations(report: m.Report, size: int, repeat: int) -> None:
    """The neighbour allocates from what is committed of the same arena in which the main thread commits more."""
    kinds: tuple[m.Pages, ...] = ("4K", "thp")
    felt = {name: Felt() for name in (*kinds, "nobody")}
    arenas = {pages: prepared(size, pages) for pages in kinds}

    def work(one: arena.Arena) -> float:
        start = time.perf_counter()
        blocks = [one.alloc(PIECE) for _ in range(size // PIECE)]
        spent = time.perf_counter() - start
        grown.append(blocks)
        return spent

    grown: list[list[arena.Block]] = []

    def growing(pages: m.Pages) -> m.Case:
        one = arenas[pages][0]
        measured = case(felt[pages], ALLOC_FREE, one, lambda: work(one))

        def grow() -> float:
            spent = measured()
            grown.clear()
            one.trim("6MiB")
            if one.stats().committed > 16 * m.MIB:
                raise AssertionError("the next round would commit nothing")
            return spent

        return grow

    cases: dict[str, m.Case] = {name: growing(name) for name in kinds}
    cases["nobody"] = case(felt["nobody"], ALLOC_FREE, arenas["thp"][0], idle)
    s = m.interleave(cases, repeat, before=lambda: m.warm_machine(size + size // 4))
    report.keep("how long the commit took, beside a thread that allocates", s)
    for name, one in felt.items():
        report.keep(f"alloc + free beside: {name}", one.values)
    for name in kinds:
        report.times_cost(
            f"alloc+free p99.9 while another commits {name}, vs nobody",
            m.below(2.0),
            felt[name].values["p99.9"][1:],
            felt["nobody"].values["p99.9"][1:],
        )


def micro(seconds: list[float]) -> list[float]:
    return [s * 1e6 for s in seconds]


def main() -> None:
    _, parse = m.arguments(__doc__, size="1GiB")
    args = parse()
    report = m.Report("stall")
    mappings(report, args.size, args.repeat)
    allocations(report, args.size, args.repeat)
    report.finish(args.json)


if __name__ == "__main__":
    main()
