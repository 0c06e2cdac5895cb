"""The demo: real files, read into arena blocks and into ordinary memory, side by side.

Every way does the same: all files are read into one buffer each and worked on (a CRC-32 for each file, and with NumPy a
histogram of all bytes), read and worked on a second time in new buffers, and given back. The ways take turns, round by
round, and each round begins with nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import resource
import stat
import statistics
import sys
import sysconfig
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ._core import Arena
from .draw import ProgressBar, bar, table
from .errors import amount

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "read files into arena blocks and into ordinary memory, work on them, and show both side by side"

Findings = tuple[list[int], list[int]]  # a CRC for each file; how often each byte is in all of them

MIB = 1 << 20
SLICE = 1 << 16  # bytes that a histogram takes at once
AS_GOOD = 1.1  # a ratio of times below this is called the same


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "paths",
        nargs="*",
        metavar="FILE",
        type=Path,
        help="a file, or a folder with all that is in it; by default this Python's standard library",
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="how often (default: 5; times are medians)")


# --- the files --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class File:
    path: Path
    size: int


def standard_library() -> list[File]:
    """Without the packages that are installed into it, and without compiled copies."""
    others = {"site-packages", "dist-packages", "__pycache__"}
    top = Path(sysconfig.get_path("stdlib"))
    return [file for file in find_files([top]) if others.isdisjoint(file.path.relative_to(top).parts)]


def find_files(paths: Sequence[Path]) -> list[File]:
    """The regular files that are not empty. What is named must be readable; what else is not is left out."""
    found: dict[Path, int] = {}
    for path in paths:
        try:
            mode = path.stat().st_mode
            if stat.S_ISDIR(mode):
                os.listdir(path)  # os.walk would say nothing
                inside = [Path(top, name) for top, _, names in os.walk(path) for name in names]
            elif stat.S_ISREG(mode):
                path.open("rb").close()
                inside = [path]
            else:
                raise argparse.ArgumentTypeError(f"{path} is neither a file nor a folder")
        except OSError as error:
            raise argparse.ArgumentTypeError(f"cannot read {path}: {error.strerror}") from None
        for file in inside:
            with contextlib.suppress(OSError):
                status = file.stat()
                if stat.S_ISREG(status.st_mode) and status.st_size and os.access(file, os.R_OK):
                    found[file] = status.st_size
    if not found:
        raise argparse.ArgumentTypeError(f"nothing to read in {', '.join(map(str, paths))}: no file that is not empty")
    return [File(path, size) for path, size in sorted(found.items())]


def fill(buffer: Any, file: File) -> None:
    """Reads the file into the buffer; no copy on the way."""
    with file.path.open("rb", buffering=0) as raw, memoryview(buffer) as view:
        at = 0
        while at < file.size:
            got = raw.readinto(view[at:])
            if not got:
                raise OSError(f"{file.path} became shorter while it was read")
            at += got


# --- the work ---------------------------------------------------------------------------------------------------------


class Work:
    """What is found out about the files: the same by every way, or something is wrong."""

    def __init__(self) -> None:
        try:
            import numpy as np
        except ImportError:
            self.numpy: Any = None
        else:
            self.numpy = np
            # np.bincount would make a temporary eight times as large as what it counts; its faults are not our subject.
            self.wide = np.zeros(SLICE, np.intp)

    def __call__(self, buffers: Sequence[Any], tick: Callable[[int], object]) -> Findings:
        """Without NumPy there is no histogram."""
        crcs = []
        total = self.numpy.zeros(256, self.numpy.int64) if self.numpy else None
        for buffer in buffers:
            crcs.append(zlib.crc32(buffer))
            if total is not None:
                total += self.histogram(buffer)
            tick(len(buffer))
        return crcs, [] if total is None else total.tolist()

    def histogram(self, buffer: Any) -> Any:
        np = self.numpy
        data = np.frombuffer(buffer, np.uint8)
        counts = np.zeros(256, np.int64)
        for at in range(0, len(data), SLICE):
            part = data[at : at + SLICE]
            wide = self.wide[: len(part)]
            np.copyto(wide, part)
            counts += np.bincount(wide, minlength=256)
        return counts


# --- the ways ---------------------------------------------------------------------------------------------------------


class Way:
    """Ordinary memory. What is made is kept in ``buffers``, and nowhere else."""

    def __init__(self, name: str, make: Callable[[int], Any]) -> None:
        self.name = name
        self.make = make
        self.buffers: list[Any] = []

    def begin(self, files: Sequence[File], bar: ProgressBar) -> None:
        pass

    def read(self, files: Sequence[File], tick: Callable[[int], object]) -> None:
        for file in files:
            buffer = self.make(file.size)
            self.buffers.append(buffer)
            fill(buffer, file)
            tick(file.size)

    def drop(self) -> None:
        self.buffers.clear()

    def look(self, when: str) -> None:
        pass

    def end(self) -> None:
        pass

    def close(self) -> None:
        pass


class ArenaWay(Way):
    """One arena; its memory is committed before the first file is read."""

    def __init__(self) -> None:
        super().__init__("arena", lambda nbytes: self.arena.alloc(nbytes))
        self.arena: Arena
        self.picture: list[list[str]] = []

    def begin(self, files: Sequence[File], bar: ProgressBar) -> None:
        need = sum((file.size + 63) // 64 * 64 for file in files)
        self.arena = Arena(2 * need + 64 * MIB)
        self.picture = []
        self.look("reserved")
        self.arena.warm(need, progress=bar)

    def look(self, when: str) -> None:
        """The arena's ledger, and beside it the kernel's."""
        s = self.arena.stats()
        numbers = (s.reserved, s.committed, s.live, self.arena.residency().present)
        self.picture.append([when, *(amount(n) for n in numbers), f"{s.blocks:,}"])

    def end(self) -> None:
        self.arena.trim()

    def close(self) -> None:
        self.arena.close()


# --- one round --------------------------------------------------------------------------------------------------------


@dataclass
class Phase:
    seconds: list[float] = field(default_factory=list)
    faults: list[int] = field(default_factory=list)


@dataclass
class Account:
    """What one way took, round by round."""

    phases: dict[str, Phase] = field(default_factory=dict)
    resident: dict[str, list[int]] = field(default_factory=dict)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        phase = self.phases.setdefault(name, Phase())
        faults = minor_faults()
        start = time.perf_counter()
        yield
        phase.seconds.append(time.perf_counter() - start)
        phase.faults.append(minor_faults() - faults)

    def see(self, when: str) -> None:
        self.resident.setdefault(when, []).append(resident())

    def grown(self, when: str) -> int:
        """Resident bytes more than before."""
        both = zip(self.resident[when], self.resident["before"], strict=True)
        return statistics.median_low([now - before for now, before in both])


def minor_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def resident() -> int:
    """Of this process. From the page tables: the counters in statm lag behind."""
    with contextlib.suppress(OSError), open("/proc/self/smaps_rollup", encoding="ascii") as lines:
        for line in lines:
            if line.startswith("Rss:"):
                return int(line.split()[1]) * 1024
    with open("/proc/self/statm", encoding="ascii") as numbers:
        return int(numbers.read().split()[1]) * resource.getpagesize()


def malloc_trim() -> None:
    """Makes malloc give back what it keeps, so that no round finds the memory of the one before. glibc only."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


COMMIT = "commit up front"
READ, WORK = "read", "work"
AGAIN = ("", ", again")
DROP, RELEASE = "drop the buffers", "give back"


def one_round(way: Way, files: Sequence[File], work: Work, account: Account, meter: Meter) -> Findings:
    """Everything once by one way; what was found out."""
    malloc_trim()
    account.see("before")
    result: Findings = ([], [])
    with account.phase(COMMIT):
        way.begin(files, meter.bar_for_commit())
    way.look("warmed")
    for again in AGAIN:
        with account.phase(READ + again):
            way.read(files, meter)
        with account.phase(WORK + again):
            result = work(way.buffers, meter)
        if not again:
            way.look("all files in blocks")
            account.see("during")
            with account.phase(DROP):
                way.drop()
            way.look("blocks dropped")
    with account.phase(RELEASE):
        way.drop()
        way.end()
    way.look("given back")
    account.see("after")
    way.close()
    return result


class Meter:
    """The progress of the whole demo, in bytes."""

    def __init__(self, bar: ProgressBar, total: int) -> None:
        self.bar = bar
        self.total = total
        self.done = 0

    def __call__(self, nbytes: int) -> None:
        self.done += nbytes
        self.bar(self.done, self.total)

    def bar_for_commit(self) -> ProgressBar:
        """Commits are short and show as a bar of their own, which the next file draws over."""
        own = ProgressBar(self.bar.stream, "committing")
        own.width = self.bar.width
        return own


# --- what is printed --------------------------------------------------------------------------------------------------


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms"


def compare(ways: Sequence[Way], accounts: dict[str, Account]) -> str:
    """Times and page faults, side by side."""
    labels = {
        COMMIT: COMMIT,
        READ: "read all files",
        WORK: "work on them",
        DROP: DROP,
        READ + AGAIN[1]: "read again, into new buffers",
        WORK + AGAIN[1]: "work again",
        RELEASE: RELEASE,
    }
    rows = []
    for phase, label in labels.items():
        row = [label]
        for way in ways:
            of = accounts[way.name].phases[phase]
            if phase == COMMIT and not isinstance(way, ArenaWay):
                row += ["-", "-"]
            else:
                row += [milliseconds(statistics.median(of.seconds)), f"{statistics.median_low(of.faults):,}"]
        rows.append(row)
    total = ["in all"]
    for way in ways:
        phases = accounts[way.name].phases.values()
        total.append(milliseconds(sum(statistics.median(of.seconds) for of in phases)))
        total.append(f"{sum(statistics.median_low(of.faults) for of in phases):,}")
    header = ["time, page faults", *(cell for way in ways for cell in (way.name, "faults"))]
    return table(header, [*rows, total])


def compare_resident(ways: Sequence[Way], accounts: dict[str, Account]) -> str:
    """Resident memory with the first pass's files in it, and at the end, in numbers and bars."""
    values = {(way.name, m): accounts[way.name].grown(m) for way in ways for m in ("during", "after")}
    most = max(values.values())
    rows = [
        [f"{name}, {moment}", f"{value / MIB:+,.1f} MiB", bar(value, most, 30)]
        for (name, moment), value in values.items()
    ]
    before = statistics.median_low(accounts["arena"].resident["before"])
    return table([f"resident memory, beyond the {amount(before)} before", "", ""], rows)


def verdict(ways: Sequence[Way], accounts: dict[str, Account]) -> list[str]:
    """Where the arena is ahead, and where the ordinary way is as good or better."""
    subjects = {
        "A first pass, its commit included": [COMMIT, READ],
        "A second pass, into memory that the arena kept": [READ + AGAIN[1]],
        "Work on bytes that are there": [WORK + AGAIN[1]],
        "Giving back": [DROP, RELEASE],
    }
    ours = accounts["arena"].phases
    lines = []
    for subject, phases in subjects.items():
        mine = sum(statistics.median(ours[p].seconds) for p in phases)
        best, other = min(
            (sum(statistics.median(accounts[way.name].phases[p].seconds) for p in phases), way.name)
            for way in ways
            if way.name != "arena"
        )
        if mine * AS_GOOD < best:
            lines.append(f"{subject}: the arena is {best / mine:.1f} times as fast as {other}.")
        elif best * AS_GOOD < mine:
            lines.append(f"{subject}: {other} is {mine / best:.1f} times as fast; the ordinary way is better.")
        else:
            lines.append(f"{subject}: the same; {other} is as good.")
    kept = max(accounts[way.name].grown("after") for way in ways if way.name != "arena")
    if kept > MIB:
        lines.append(f"malloc keeps up to {amount(kept)} after the end: for this process, which others cannot have.")
    return lines


def describe(crcs: Sequence[int], counts: Sequence[int]) -> str:
    """What was found out about the files, in a line."""
    all_of_them = zlib.crc32(b"".join(crc.to_bytes(4, "little") for crc in crcs))
    said = f"CRC-32 over the files' CRCs: {all_of_them:08x}"
    if counts:
        common = max(range(256), key=counts.__getitem__)
        said += f"; the most frequent byte is {bytes([common])!r}, {100 * counts[common] / sum(counts):.1f}%"
    return said


def run(args: argparse.Namespace) -> int:
    if args.rounds < 1:
        raise argparse.ArgumentTypeError(f"--rounds must be 1 or more, not {args.rounds}")
    files = find_files(args.paths) if args.paths else standard_library()
    where = ", ".join(map(str, args.paths)) or f"the standard library in {sysconfig.get_path('stdlib')}"
    size = sum(file.size for file in files)
    work = Work()
    arena_way = ArenaWay()
    ways = [arena_way, Way("bytearray", bytearray)]
    if work.numpy:
        ways.append(Way("np.empty", lambda nbytes: work.numpy.empty(nbytes, work.numpy.uint8)))
    print(f"{len(files):,} files, {amount(size)}: {where}")
    if not work.numpy:
        print("Without NumPy there is no histogram, only a CRC for each file: pip install 'sparse-arena[numpy]'")

    accounts = {way.name: Account() for way in ways}
    progress = ProgressBar(sys.stderr, "reading")
    # The first round is not counted: it finds files that are not in the page cache, and code that has not run before.
    meter = Meter(progress, (args.rounds + 1) * len(ways) * 2 * 2 * size)
    results = []
    try:
        for i in range(args.rounds + 1):
            for way in ways[i % len(ways) :] + ways[: i % len(ways)] if i else ways:
                results.append(one_round(way, files, work, accounts[way.name] if i else Account(), meter))
    finally:
        progress.clear()
    if any(result != results[0] for result in results):
        print("The ways do not agree on what is in the files: one of them was written to meanwhile.", file=sys.stderr)
        return 1

    print(describe(*results[0]), "- by every way\n", sep=" ")
    print(compare(ways, accounts), end="\n\n")
    print(compare_resident(ways, accounts), end="\n\n")
    print("the arena's own picture, and the kernel's (the last round)")
    print(table(["", "reserved", "committed", "live", "resident", "blocks"], arena_way.picture), end="\n\n")
    print(*verdict(ways, accounts), sep="\n")
    print("The few faults that the arena has while reading are Python's own objects, not the memory of the data.")
    return 0
