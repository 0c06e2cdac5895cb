"""A loop as cyclictest's, with memory: how late it wakes up, what a buffer costs it, and its page faults.

Each cycle takes a buffer, writes it and gives it back, while up to three more are live: from a locked arena, and from
ordinary memory, beside memset of as many buffers that are always there. The ways take turns, idle and under pressure,
with a real-time priority where that is permitted. A second part does the same as fast as it goes, for larger buffers.
"""

from __future__ import annotations

import argparse
import contextlib
import sys

from .. import Arena
from ..draw import ProgressBar
from ..realtime import prepare
from . import files
from . import latency_report as report
from .cycles import LIVE, PAGE, Samples, turn
from .latency_report import Row
from .machine import machine
from .pressure import PRESSURES, under
from .ways import OURS, ways

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "wake-up latency, buffers and page faults of a real-time loop"

MIB = 1 << 20
FRAME = MIB  # of the paced loop
DISTURB = 128 * MIB  # of each other process
SPARE = 256 * MIB  # to be left alone
TURN = 0.1  # seconds, before the next way's turn
FEWEST, MOST = 2 * LIVE, 1000  # cycles of a turn
ENOUGH = 20_000  # cycles of those whose tails are compared: two are above p99.99
PATIENCE = 4  # times as long, at most, for them to have as many


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seconds",
        type=float,
        default=1,
        help="of each way in each case (default: %(default)s, two minutes in all; p99.99 of 64 MiB needs 15)",
    )
    parser.add_argument("--hz", type=int, default=1000, help="cycles a second (default: %(default)s)")
    parser.add_argument("--priority", type=int, default=80, help="of SCHED_FIFO, or 0 (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="0.2 seconds each, and buffers of 1 MiB only")
    files.add_arguments(parser)


def check(args: argparse.Namespace, largest: int) -> None:
    if not 0 < args.seconds <= 3600:
        raise argparse.ArgumentTypeError(f"--seconds must be above 0, and 3600 or less, not {args.seconds}")
    if not 1 <= args.hz <= 10000:
        raise argparse.ArgumentTypeError(f"--hz must be 1 to 10000, not {args.hz}")
    if not 0 <= args.priority <= 99:
        raise argparse.ArgumentTypeError(f"--priority must be 0 to 99, not {args.priority}")
    files.check(args)
    # The arena with its floor and room for alignment, ordinary buffers, and the others: where a memory cgroup or the
    # machine has less, this says so, and the OOM killer does not.
    need = (3 * LIVE + 1) * largest + 2 * DISTURB
    with Arena(need, headroom=SPARE) as room:
        room.warm(need)


def run(args: argparse.Namespace) -> int:
    sizes = [MIB] if args.quick else [MIB, 8 * MIB, 64 * MIB]
    check(args, sizes[-1])
    seconds = min(args.seconds, 0.2) if args.quick else args.seconds
    about = machine()
    print(f"{about['cpu']}, Linux {about['kernel']}, {about['cpus']} CPUs; {seconds:g} s each, interleaved")
    priority, said = permitted(args.priority)
    rows: list[Row] = []
    locked = ""
    bar = ProgressBar(sys.stderr, "measuring")
    # Paced: one frame under each pressure. As fast as it goes: every size, under all pressures at once.
    cases = [(FRAME, 0, pressure, 10**9 // args.hz) for pressure in PRESSURES]
    cases += [(size, page, "all", 0) for size in sizes for page in (0, PAGE)]
    with contextlib.ExitStack() as stack:
        stack.callback(bar.clear)
        for done, (size, page, pressure, period) in enumerate(cases):
            bar(done, len(cases))
            found, locked = measure(size, page, pressure, period, seconds, priority)
            rows += found
    said = f"{locked}; {said}"
    print(said, report.as_text(rows), sep="\n\n")
    if args.csv is not None:
        args.csv.write_text(report.as_csv(rows), encoding="utf-8")
    if args.json is not None:
        args.json.write_text(report.as_json(rows, about, said), encoding="utf-8")
    if args.picture is not None:
        files.draw("arena.bench.latency_picture", args.picture, rows, f"{about['cpu']}, Linux {about['kernel']}")
    return 0


def permitted(priority: int) -> tuple[int | None, str]:
    """Return the priority to ask for, and what to say of it."""
    if not priority:
        return None, "the scheduler is the ordinary one"
    try:
        prepare(stack=0, heap=0, gc="leave", sched=priority).__exit__()
    except PermissionError as error:
        return None, f"the scheduler is the ordinary one, so tails are those of others' time slices: {error.strerror}"
    return priority, f"SCHED_FIFO, priority {priority}"


def measure(
    size: int, page: int, pressure: str, period: int, seconds: float, priority: int | None
) -> tuple[list[Row], str]:
    """Measure every way. They take turns, another one first each time, each until it has had its seconds."""
    with contextlib.ExitStack() as stack:
        found, locked = ways(stack, size, LIVE)
        forks = stack.enter_context(under(pressure, DISTURB))
        # The other processes were started before, and have no priority. heap=0: ordinary memory stays as it is.
        stack.enter_context(prepare(heap=0, sched=priority))
        samples = {way.name: Samples() for way in found}
        spent, cycles = dict.fromkeys(samples, 0.0), dict.fromkeys(samples, FEWEST)
        waiting = list(found)
        while waiting:
            for way in tuple(waiting):
                name = way.name
                took = turn(way, size, page, cycles[name], period, forks, samples[name])
                spent[name] += took
                many = len(samples[name].memory) >= ENOUGH or period or name not in OURS
                if spent[name] >= seconds * (1 if many else PATIENCE):
                    waiting.remove(way)
                cycles[name] = min(max(int(cycles[name] * TURN / took), FEWEST), MOST)
            waiting = waiting[1:] + waiting[:1]
    return [Row(size, page, pressure, period > 0, way.name, samples[way.name], way.lock) for way in found], locked
