"""Commit on every kind of memory, against the best single-threaded method of the MADV_POPULATE patch's table that
leaves it allocated, mapped and writable without a fault; and the faults of writing what was committed.

Needs root for the huge pages, which are added to the pool for the run."""

from __future__ import annotations

import functools
import statistics
import time

import _measure as m
from patch2021 import huge_pages, table
from patch2021.mappings import TYPES, Machine, MappingType, NotHereError

SPARE = 64  # huge pages


def methods(kind: MappingType) -> list[str]:
    """Reading before writing is left out: it does what writing does, and more. A shared file that was only read is
    clean, and its first write faults."""
    found = [name for name in kind.methods if kind.allocates_and_maps(name) and "Read/Write" not in name]
    clean = {"Read", "POPULATE_READ", "FALLOCATE+Read", "FALLOCATE+POPULATE_READ"}
    return [name for name in found if name != "arena" and not (kind.backing == "file" and name in clean)]


def commit(machine: Machine, kind: MappingType, size: int, threads: int) -> float:
    with machine.reservation(kind, size) as memory:
        start = time.perf_counter()
        memory.commit(threads=threads)
        return time.perf_counter() - start


def faults(machine: Machine, kind: MappingType, size: int) -> int:
    """Of writing to every page of a committed range, before the kernel writes any of it back."""
    native = m.load_native()
    with machine.reservation(kind, size) as memory:
        memory.commit()
        with memory.view() as view:
            view[0] = 1
            before = native.page_faults()
            native.touch_pages(memory.address, size, 4096)
            return int(native.page_faults() - before)


def one_kind(report: m.Report, machine: Machine, kind: MappingType, size: int, repeat: int) -> None:
    cases: dict[str, m.Case] = {
        name: functools.partial(lambda name: table.sample(machine, kind, size, name) / 1e3, name)
        for name in methods(kind)
    }
    cases |= {f"{n} threads": functools.partial(commit, machine, kind, size, n) for n in (1, 2)}
    s = m.interleave(cases, repeat, before=lambda: table.warm(machine, kind, size))
    report.keep(str(kind), s)
    best = min(methods(kind), key=lambda name: statistics.median(s[name]))
    quickest = min(min(s[name]) for name in methods(kind))
    for threads, target in ((1, 2.0 if kind.huge else 0.95), (2, 2.0 if kind.huge else 1.5)):
        ours = s[f"{threads} threads"]
        median = statistics.median(s[best]) / statistics.median(ours)
        what = f"commit, {kind}, {threads} thread{'s' * (threads > 1)}, vs {best}"
        report.add(what, m.at_least(target), median, quickest / min(ours))
    report.value(f"faults of writing it, {kind}", m.at_most(0, ""), [faults(machine, kind, size)], "")


def main() -> None:
    parser, parse = m.arguments(__doc__, repeat=5, size="1GiB")
    parser.add_argument("--only", default="", metavar="TYPE", help="kinds whose name has this in it")
    args = parse()
    report = m.Report("backings")
    # A method's mapping, the arena's, and the warming's are not there at the same time; but a release may lag.
    with huge_pages.added(args.size // huge_pages.PAGE + SPARE), Machine() as machine:
        for kind in TYPES:
            if args.only not in str(kind):
                continue
            try:
                one_kind(report, machine, kind, args.size, args.repeat)
            except (NotHereError, OSError) as error:
                report.notes.append(f"{kind}: {error}")
    report.finish(args.json)


if __name__ == "__main__":
    main()
