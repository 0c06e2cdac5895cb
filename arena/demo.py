"""The demo: large buffers that come and go, from an arena and from ordinary memory, side by side.

Frames are filled one after the other, each in a buffer of its own, while the two before it are still in use: as video,
batches and read buffers are. The ways take turns, round by round, and each turn begins with nothing.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ._core import Arena
from .bench.machine import resident
from .draw import ProgressBar, table
from .errors import amount
from .sizes import parse_size

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "fill large buffers from an arena and from ordinary memory, and show both side by side"

MIB = 1 << 20
IN_USE = 3  # frames at a time
LARGE, MANY = MIB, 64 * MIB  # a mean frame, and all of them, on which there is a verdict
FRAME, IN_ALL, FAULTS = "a frame, median, ms", "all frames, and the commit, ms", "page faults a frame"
FIGURES = {
    "commit, before the first, ms": "{:,.1f}",
    FRAME: "{:,.1f}",
    "a frame, the slowest, ms": "{:,.1f}",
    IN_ALL: "{:,.1f}",
    FAULTS: "{:,.1f}",
    "resident memory, in use, MiB": "{:+,.1f}",
    "resident memory, afterwards, MiB": "{:+,.1f}",
}

Frames = Sequence[tuple[int, Callable[[Any], object]]]  # the bytes of each, and what fills its buffer
Make = Callable[[int], Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE", help="each is a frame (default: they are made)")
    parser.add_argument("--size", default="64MiB", help="of a frame that is made (default: %(default)s)")
    parser.add_argument("--frames", type=int, default=16, metavar="N", help="that are made (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="each way's turns (default: %(default)s)")


def made(size: int, count: int) -> Frames:
    camera = memoryview(os.urandom(MIB))  # in pieces that a processor's cache holds

    def fill(buffer: Any) -> None:
        with memoryview(buffer) as view:
            for at in range(0, size, MIB):
                view[at : at + MIB] = camera[: size - at]

    return [(size, fill)] * count


def read(path: Path) -> tuple[int, Callable[[Any], object]]:
    def fill(buffer: Any) -> None:
        with path.open("rb", buffering=0) as file, memoryview(buffer) as view:
            at = 0
            while at < len(view):
                got = file.readinto(view[at:])
                if not got:
                    raise OSError(f"{path} became shorter while it was read")
                at += got

    size = path.stat().st_size if path.is_file() else 0
    if not size:
        raise argparse.ArgumentTypeError(f"there is no file {path}, or it is empty")
    return size, fill


@contextlib.contextmanager
def from_arena(need: int) -> Iterator[Make]:
    with Arena(2 * need + 64 * MIB) as arena:
        arena.warm(need)
        yield arena.alloc


@dataclass(frozen=True)
class Way:
    """Where buffers come from, and what was measured, turn by turn."""

    name: str
    begin: Callable[[int], contextlib.AbstractContextManager[Make]]
    turns: list[dict[str, float]] = field(default_factory=list)

    def turn(self, frames: Frames, need: int, tick: Callable[[int], object]) -> None:
        """Fill all frames once."""
        before, start, took = resident(), time.perf_counter(), []
        in_use: deque[Any] = deque(maxlen=IN_USE)
        with self.begin(need) as make:
            commit, faults = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_minflt
            for size, fill in frames:
                start = time.perf_counter()
                if len(in_use) == IN_USE:
                    in_use.popleft()
                in_use.append(make(size))
                fill(in_use[-1])
                took.append(time.perf_counter() - start)
                tick(size)
            faults = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
            most, start = resident(), time.perf_counter()
            in_use.clear()
        del make
        in_all = commit + sum(took) + time.perf_counter() - start
        times = [1e3 * seconds for seconds in (commit, statistics.median(took), max(took), in_all)]
        grown = [(nbytes - before) / MIB for nbytes in (most, resident())]
        self.turns.append(dict(zip(FIGURES, [*times, faults / len(frames), *grown], strict=True)))

    def median(self, figure: str) -> float:
        return statistics.median(turn[figure] for turn in self.turns)


def ordinary() -> Iterator[Way]:
    yield Way("bytearray", lambda need: contextlib.nullcontext(bytearray))
    with contextlib.suppress(ImportError):
        import numpy as np

        yield Way("np.empty", lambda need: contextlib.nullcontext(lambda nbytes: np.empty(nbytes, "u1")))


def verdict(ours: Way, others: Sequence[Way], sizes: Sequence[int]) -> str:
    """Say what was measured, and what it means."""
    if sum(sizes) < MANY or sum(sizes) < LARGE * len(sizes):
        return f"No verdict on so little ({amount(sum(sizes))}): an arena is for buffers of some MiB, many times."

    def ratios(figure: str) -> str:
        all_of_them = [f"{w.median(figure) / ours.median(figure):.1f} times as fast as with {w.name}" for w in others]
        return ", ".join(all_of_them)

    new = min(way.median(FAULTS) for way in others) >= 1
    means = (
        "is new each time, and found page by page when written"
        if new
        else "is kept by malloc too, for how long it likes"
    )
    return (
        f"A frame from the arena: {ratios(FRAME)}.\nAll of them, the commit included: {ratios(IN_ALL)}.\n"
        f"That means: ordinary memory of this size {means};\n"
        "the arena's is found once, before the first frame, and goes round."
    )


def run(args: argparse.Namespace) -> int:
    if args.rounds < 1 or args.frames < 1:
        raise argparse.ArgumentTypeError("--rounds and --frames must be 1 or more")
    try:
        frames = [read(path) for path in args.files] or made(parse_size(args.size, "--size"), args.frames)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None
    sizes = [size for size, _ in frames]
    if not 0 < max(sizes) <= 1 << 40:
        raise argparse.ArgumentTypeError("--size must be from 1 byte to 1 TiB")
    need = sum(sorted(sizes)[-IN_USE:]) + IN_USE * 4096
    ways = [Way("arena", from_arena), *ordinary()]
    print(f"{len(frames)} frames, {amount(sum(sizes))}, {IN_USE} of them in use at a time", flush=True)
    bar, done, total = ProgressBar(sys.stderr, "filling"), 0, (args.rounds + 1) * len(ways) * sum(sizes)

    def tick(nbytes: int) -> None:
        nonlocal done
        done += nbytes
        bar(done, total)

    try:
        # The first round does not count: it finds files that are not cached, and memory that a host has taken back.
        for i in range(args.rounds + 1):
            for way in ways[i % len(ways) :] + ways[: i % len(ways)]:
                way.turn(frames, need, tick)
                if i == 0:
                    way.turns.clear()
    finally:
        bar.clear()
    rows = [[figure, *(form.format(way.median(figure)) for way in ways)] for figure, form in FIGURES.items()]
    print(table(["", *(way.name for way in ways)], rows), verdict(ways[0], ways[1:], sizes), sep="\n\n")
    return 0
