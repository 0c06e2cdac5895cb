"""Benchmarks that a reader runs: ``python -m arena bench NAME``. Each is a module, as a command is."""

from __future__ import annotations

import argparse

from . import latency

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "measure this machine"

BENCHMARKS = {"latency": latency}
MOVED = "populate"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    benchmarks = parser.add_subparsers(metavar="BENCHMARK", required=True)
    for name, benchmark in BENCHMARKS.items():
        one = benchmarks.add_parser(name, help=benchmark.SUMMARY, description=benchmark.__doc__)
        benchmark.add_arguments(one)
        one.set_defaults(benchmark=benchmark.run, parser=one)
    # This parser takes every option that it is called with for a word, and the help does not mention it.
    moved = benchmarks.add_parser(MOVED, prefix_chars="\0", add_help=False)
    moved.add_argument("ignored", nargs="*")
    moved.set_defaults(benchmark=has_moved, parser=moved)


def has_moved(args: argparse.Namespace) -> int:
    raise argparse.ArgumentTypeError(
        "the table of the MADV_POPULATE patch is made by `python bench/patch2021` in a checkout of the sources"
    )


def run(args: argparse.Namespace) -> int:
    status: int = args.benchmark(args)
    return status
