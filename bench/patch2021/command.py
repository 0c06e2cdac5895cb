"""The table of the kernel patch "mm/madvise: introduce MADV_POPULATE_(READ|WRITE)", made again on this machine.

Every way to prefault memory, on private and shared mappings of every type, single-threaded and on fresh, empty
mappings; the shortest of the runs as in the patch, the median, and the ratio to plain writing beside that of 2021.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path

from arena.bench import files
from arena.bench.machine import machine as about_machine
from arena.cli import carry_out
from arena.draw import ProgressBar
from arena.errors import amount
from arena.sizes import parse_size

from . import huge_pages, report, table
from .mappings import TYPES, Machine, MappingType

__all__ = ["main", "sizes_of"]

ALWAYS = 2 << 20  # the patch's small size
SPARE_PAGES = 16  # beside what a mapping takes: for what an arena tries out


def main(argv: Sequence[str] | None = None) -> int:
    """The exit status: 0, 1 for what went wrong, 2 for arguments that make no sense."""
    parser = argparse.ArgumentParser(prog="python bench/patch2021", description=__doc__)
    add_arguments(parser)
    return carry_out(run, parser.parse_args(argv), parser)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--size",
        action="append",
        metavar="SIZE",
        help="of the mappings, beside 2 MiB (default: 256MiB; the patch has 4GiB; may be repeated)",
    )
    parser.add_argument("--runs", type=int, default=3, metavar="N", help="of each method (default: 3; the patch: 10)")
    parser.add_argument(
        "--only",
        action="append",
        metavar="TYPE",
        help="mappings whose name has this in it, such as 'private' or 'shared memfd' (may be repeated)",
    )
    parser.add_argument("--dir", type=Path, metavar="FOLDER", help="on a disk, for the rows called 'file'")
    parser.add_argument(
        "--reserve-hugepages", action="store_true", help="as root: add 2 MiB huge pages to the pool for the run"
    )
    files.add_arguments(parser)


def sizes_of(args: argparse.Namespace) -> list[int]:
    sizes = {ALWAYS}
    for text in args.size or ["256MiB"]:
        try:
            size = parse_size(text, "--size")
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None
        if size == 0 or size % huge_pages.PAGE:
            raise argparse.ArgumentTypeError(f"--size must be a multiple of 2 MiB, not {amount(size)}")
        sizes.add(size)
    return sorted(sizes)


def kinds_of(args: argparse.Namespace) -> list[MappingType]:
    for text in args.only or []:
        if not any(text.lower() in str(kind).lower() for kind in TYPES):
            names = ", ".join(map(str, TYPES))
            raise argparse.ArgumentTypeError(f"--only {text}: there is no such mapping, but {names}")
    return [kind for kind in TYPES if not args.only or any(t.lower() in str(kind).lower() for t in args.only)]


def run(args: argparse.Namespace) -> int:
    if args.runs < 1:
        raise argparse.ArgumentTypeError(f"--runs must be 1 or more, not {args.runs}")
    sizes, kinds = sizes_of(args), kinds_of(args)
    files.check(args)
    about = about_machine()
    where = "in a virtual machine, " if about["virtual"] else ""
    print(f"{about['cpu']}, {where}Linux {about['kernel']}; {args.runs} runs, interleaved")
    bar = ProgressBar(sys.stderr, "prefaulting")
    with contextlib.ExitStack() as stack:
        if args.reserve_hugepages and any(kind.huge for kind in kinds):
            print(add_huge_pages(stack, sizes[-1]))
        machine = stack.enter_context(Machine(args.dir))
        backings = [b for b in ("tmpfs", "file", "hugetlbfs") if any(kind.backing == b for kind in kinds)]
        places = [f"{backing}: {said}" for backing in backings if (said := machine.describe(backing))]
        if places:
            print("; ".join(places))
        stack.callback(bar.clear)
        here = table.measure(machine, kinds, sizes, args.runs, bar)
    then = table.published()
    print("", report.as_text(here, then), sep="\n")
    if args.csv is not None:
        args.csv.write_text(report.as_csv(here, then), encoding="utf-8")
    if args.json is not None:
        args.json.write_text(report.as_json(here, then, about), encoding="utf-8")
    if args.picture is not None:
        files.draw("patch2021.picture", args.picture, here, then, f"{about['cpu']}, {where}Linux {about['kernel']}")
    return 0


def add_huge_pages(stack: contextlib.ExitStack, largest: int) -> str:
    """What has become of it; rows on huge pages say for themselves what they lack."""
    want = largest // huge_pages.PAGE + SPARE_PAGES
    try:
        got = stack.enter_context(huge_pages.added(want))
    except OSError as error:
        return f"no huge pages could be added ({error.strerror}: {error.filename}): that needs root"
    if got < want:
        return (
            f"{got} huge pages added for this run, of {want}: memory is scattered (or short); after a reboot it is not"
        )
    return f"{got} huge pages added for this run"
