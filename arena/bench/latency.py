"""A loop as cyclictest's, with memory: how late it wakes up, what a buffer costs it, and its page faults.

Each cycle takes a buffer, writes it and gives it back, while up to three more are live: from a locked arena, and from
ordinary memory, beside memset of memory that is always there. The ways take turns, idle and under pressure. A second
part does the same without pauses, for larger buffers.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import sys
import time
from pathlib import Path

from ..draw import ProgressBar
from ..errors import amount
from . import latency_report as report
from .cycles import LIVE, Samples, quiet, turn
from .latency_report import Row
from .pressure import PRESSURES, under
from .report import machine
from .ways import ways

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "wake-up latency, buffers and page faults of a real-time loop"

MIB = 1 << 20
PAGE = 4096
FRAME = MIB  # of the paced loop
DISTURB = 128 * MIB  # of each other process
TURN = 100  # cycles of the paced loop before the next way's turn
SPARE = 256 * MIB  # to be left alone


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seconds", type=float, default=2, help="of each way in each case (default: %(default)s)")
    parser.add_argument("--hz", type=int, default=1000, help="cycles a second (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="0.2 seconds each, and buffers of 1 MiB only")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows, the figures and all samples to FILE")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the rows to FILE")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw the histograms, as FILE.png or FILE.svg")


def available() -> int:
    with open("/proc/meminfo", encoding="ascii") as lines:
        return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)


def check(args: argparse.Namespace, largest: int) -> None:
    if not 0 < args.seconds <= 3600:
        raise argparse.ArgumentTypeError(f"--seconds must be above 0, and 3600 or less, not {args.seconds}")
    if not 1 <= args.hz <= 10000:
        raise argparse.ArgumentTypeError(f"--hz must be 1 to 10000, not {args.hz}")
    for path in (args.json, args.csv, args.picture):
        if path is not None and not path.absolute().parent.is_dir():
            raise argparse.ArgumentTypeError(f"cannot write {path}: there is no folder {path.absolute().parent}")
    if args.picture is not None and args.picture.suffix not in (".png", ".svg"):
        raise argparse.ArgumentTypeError(f"--picture {args.picture}: a name that ends in .png or .svg is wanted")
    # The arena with its floor and room for alignment, ordinary buffers, and the others.
    need = (2 * LIVE + 2) * largest + 2 * DISTURB + SPARE
    if (there := available()) < need:
        raise OSError(f"this takes up to {amount(need)}, and {amount(there)} are available: use --quick, or free some")


def run(args: argparse.Namespace) -> int:
    sizes = [MIB] if args.quick else [MIB, 8 * MIB, 64 * MIB]
    check(args, sizes[-1])
    seconds = min(args.seconds, 0.2) if args.quick else args.seconds
    about = machine()
    print(f"{about['cpu']}, Linux {about['kernel']}, {about['cpus']} CPUs; {seconds:g} s each, interleaved")
    rows: list[Row] = []
    bar = ProgressBar(sys.stderr, "measuring")
    # Paced: one frame under each pressure. Without pauses: every size, under all pressures at once.
    cases = [(FRAME, 0, pressure, 10**9 // args.hz) for pressure in PRESSURES if pressure != "all"]
    cases += [(size, page, "all", 0) for size in sizes for page in (0, PAGE)]
    with contextlib.ExitStack() as stack:
        stack.callback(bar.clear)
        for done, (size, page, pressure, period) in enumerate(cases):
            bar(done, len(cases))
            found, locked = measure(size, page, pressure, period, seconds)
            rows += found
    print(locked, report.as_text(rows), sep="\n\n")
    if args.csv is not None:
        args.csv.write_text(report.as_csv(rows), encoding="utf-8")
    if args.json is not None:
        args.json.write_text(report.as_json(rows, about, locked), encoding="utf-8")
    if args.picture is not None:
        draw_picture(rows, args.picture, f"{about['cpu']}, Linux {about['kernel']}")
    return 0


def measure(size: int, page: int, pressure: str, period: int, seconds: float) -> tuple[list[Row], str]:
    """Every way's row: in turns, another one first each time, each until it has had its seconds."""
    with contextlib.ExitStack() as stack:
        found, locked = ways(stack, size, LIVE)
        forks = stack.enter_context(under(pressure, DISTURB))
        stack.enter_context(quiet())
        cycles = TURN if period else max(12, min(TURN, 400 * MIB // size))
        samples = {way.name: Samples() for way in found}
        spent = dict.fromkeys(samples, 0.0)
        for first in itertools.count():
            if min(spent.values()) >= seconds:
                break
            for way in (*found[first % len(found) :], *found[: first % len(found)]):
                if spent[way.name] < seconds:
                    start = time.monotonic()
                    turn(way, size, page, cycles, period, forks, samples[way.name])
                    spent[way.name] += time.monotonic() - start
    return [Row(size, page, pressure, period > 0, name, one) for name, one in samples.items()], locked


def draw_picture(rows: list[Row], path: Path, title: str) -> None:
    try:
        from . import latency_picture
    except ImportError as error:
        if error.name is None or error.name.partition(".")[0] != "matplotlib":
            raise
        print(f"\nno picture: Matplotlib is not installed (pip install 'sparse-arena[bench]'), so there is no {path}")
        return
    latency_picture.draw(rows, path, title)
