"""Committing fresh memory, and giving it back, beside the other ways to have memory that is there.

First the commit alone: `Reservation.commit` against one bare madvise(MADV_POPULATE_WRITE) over the same kind of
range, against mmap(MAP_POPULATE), np.empty and a touch per page, and memset. Then what a Python programmer sees: a
new array of that size with every page of it written once, the making of its arena included.
"""

from __future__ import annotations

import functools
import mmap
import time
from collections.abc import Callable

import _measure as m
import numpy as np

import arena

native = m.load_native()


def bare(size: int, huge: bool) -> float:
    at = native.range_new(size, huge)
    spent = native.bare_populate(at, size)
    native.range_drop(at, size)
    return m.checked(spent)


def commit(size: int, pages: m.Pages, threads: int) -> float:
    with arena.Reservation(size, pages=pages) as reservation:
        start = time.perf_counter()
        reservation.commit(threads=threads)
        return time.perf_counter() - start


def fill_fresh(size: int) -> float:
    at = native.range_new(size, 1)
    spent = native.fill_bytes(at, 0, size)
    native.range_drop(at, size)
    return m.checked(spent)


def map_populate(size: int) -> float:
    return m.checked(native.bare_map_populate(size))


def release(size: int) -> tuple[float, int]:
    """The time, and by how much the resident memory differs from before the commit."""
    with arena.Reservation(size, pages="thp") as reservation:
        before = m.resident()
        reservation.commit()
        start = time.perf_counter()
        reservation.release()
        spent = time.perf_counter() - start
        return spent, m.resident() - before


def bare_release(size: int) -> float:
    at = native.range_new(size, 1)
    native.bare_populate(at, size)
    spent = native.bare_release(at, size)
    native.range_drop(at, size)
    return m.checked(spent)


# Each makes a buffer of the size and gives it back as an array of bytes with what keeps it alive.


def from_arena(size: int) -> np.ndarray:
    return arena.Arena(size).empty(size, np.uint8)


def from_empty(size: int) -> np.ndarray:
    return np.empty(size, np.uint8)


def from_zeros(size: int) -> np.ndarray:
    return np.zeros(size, np.uint8)


def from_mmap(size: int) -> np.ndarray:
    populate = getattr(mmap, "MAP_POPULATE", 0x8000)
    return np.frombuffer(mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | populate), np.uint8)


def from_bytearray(size: int) -> np.ndarray:
    return np.frombuffer(bytearray(size), np.uint8)


def obtained_and_written(make: Callable[[int], np.ndarray], size: int) -> float:
    start = time.perf_counter()
    array = make(size)
    native.touch_pages(array.ctypes.data, size, 4096)
    return time.perf_counter() - start


def commits(report: m.Report, size: int, repeat: int) -> None:
    case = functools.partial
    cases: dict[str, m.Case] = {
        "bare madvise, THP": case(bare, size, True),
        "commit, THP, 1 thread": case(commit, size, "thp", 1),
        "commit, THP, 2 threads": case(commit, size, "thp", 2),
        "bare madvise, 4K": case(bare, size, False),
        "commit, 4K, 1 thread": case(commit, size, "4K", 1),
        "commit, 4K, 2 threads": case(commit, size, "4K", 2),
        "mmap(MAP_POPULATE)": case(map_populate, size),
        "np.empty + touch": case(obtained_and_written, from_empty, size),
        "memset of fresh THP": case(fill_fresh, size),
    }
    s = m.interleave(cases, repeat, before=lambda: m.warm_machine(size + size // 4))
    report.keep("commit", s)
    for pages, one, two in (("THP", 2.0, 2.5), ("4K", 0.95, 1.6)):
        for threads, target in ((1, one), (2, two)):
            what = f"commit, {pages}, {threads} thread{'s' * (threads > 1)}"
            report.times_faster(f"{what}, vs bare madvise", m.at_least(target), s[f"bare madvise, {pages}"], s[what])
    for other in ("mmap(MAP_POPULATE)", "np.empty + touch", "memset of fresh THP"):
        report.times_faster(f"commit, THP, 1 thread, vs {other}", None, s[other], s["commit, THP, 1 thread"])
    best = min(s["bare madvise, THP"]) / min(s["commit, THP, 2 threads"])
    report.add("the same with THP and 2 threads, shortest times", m.at_least(3.0), best, best)


def releases(report: m.Report, size: int, repeat: int) -> None:
    left: list[float] = []

    def ours() -> float:
        spent, difference = release(size)
        left.append(abs(difference) / m.MIB)
        return spent

    s = m.interleave({"bare": lambda: bare_release(size), "release": ours}, repeat)
    report.keep("release, THP", s)
    report.times_cost("release, THP, vs bare madvise(DONTNEED)", m.at_most(1.2), s["release"], s["bare"])
    report.value("resident memory after it, off by", m.at_most(1, "MiB"), left, "MiB")


def arrays(report: m.Report, size: int, repeat: int) -> None:
    makers: dict[str, Callable[[int], np.ndarray]] = {
        "arena": from_arena,
        "np.empty": from_empty,
        "np.zeros": from_zeros,
        "mmap(MAP_POPULATE)": from_mmap,
        "bytearray": from_bytearray,
    }
    cases = {name: functools.partial(obtained_and_written, make, size) for name, make in makers.items()}
    s = m.interleave(cases, repeat, before=lambda: m.warm_machine(size + size // 4))
    report.keep("new array, every page written", s)
    targets = {"np.empty": 2.0, "np.zeros": 1.8, "mmap(MAP_POPULATE)": 6.0, "bytearray": 12.0}
    for name, target in targets.items():
        report.times_faster(f"new array, pages written, vs {name}", m.at_least(target), s[name], s["arena"])


def main() -> None:
    _, parse = m.arguments(__doc__, size="1GiB")
    args = parse()
    report = m.Report("populate")
    commits(report, args.size, args.repeat)
    releases(report, args.size, args.repeat)
    arrays(report, args.size, args.repeat)
    report.finish(args.json)


if __name__ == "__main__":
    main()
