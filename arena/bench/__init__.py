"""Benchmarks that a reader runs: ``python -m arena bench NAME``. Each is a module, as a command is."""

from __future__ import annotations

import argparse

from . import latency, populate

__all__ = ["SUMMARY", "add_arguments", "run"]

SUMMARY = "measure this machine"

BENCHMARKS = {"latency": latency, "populate": populate}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    benchmarks = parser.add_subparsers(metavar="BENCHMARK", required=True)
    for name, benchmark in BENCHMARKS.items():
        one = benchmarks.add_parser(name, help=benchmark.SUMMARY, description=benchmark.__doc__)
        benchmark.add_arguments(one)
        one.set_defaults(benchmark=benchmark, parser=one)


def run(args: argparse.Namespace) -> int:
    status: int = args.benchmark.run(args)
    return status
