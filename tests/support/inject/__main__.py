"""The whole of it, by hand. As root, in the folder tests/support, with a Python that has the package (and NumPy):

    python -m inject                        every case of every scenario, in an hour or two
    python -m inject --only arena_4k,fork   of the scenarios whose names begin so
    python -m inject --part 0/2 --out A     half of the cases; the other half is --part 1/2
    python -m inject --most 1               of the first call of each kind (a name, and a flag or the like)
    python -m inject --most 1 --sample 3    one case of three of these
    python -m inject --only ring --index 7  the cases of one call
    python -m inject --only ring --trace    what the calls are

It prints what was violated and the counts, and ends with 1 if anything was.
"""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack

import pytest

from .report import Report
from .scenarios import all_scenarios, chosen_scenarios
from .session import session
from .worker import Job


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m inject", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--list", action="store_true", help="the scenarios")
    parser.add_argument("--only", default="", metavar="NAME,…", help="scenarios, by the beginning of their names")
    parser.add_argument("--calls", default="", metavar="NAME,…", help="calls to fail, such as madvise")
    parser.add_argument("--part", default="0/1", metavar="I/N", help="one of n parts of the cases, to run side by side")
    parser.add_argument("--most", type=int, default=100, metavar="N", help="calls of a kind, if there are more (100)")
    parser.add_argument("--sample", type=int, default=1, metavar="N", help="one case of n")
    parser.add_argument(
        "--cold", action="store_true", help="nothing was run before, so that what is made once is made now"
    )
    parser.add_argument("--index", type=int, default=0, metavar="K", help="the k-th call only")
    parser.add_argument("--trace", action="store_true", help="print the calls of a scenario, and run no case")
    parser.add_argument("--out", metavar="FILE", help="violations, a JSON object a line")
    options = parser.parse_args()
    if options.list:
        for scenario in all_scenarios():
            print(f"{scenario.name:24} {scenario.summary}")
        return 0
    only = options.only.split(",") if options.only else []
    if not chosen_scenarios(only):
        parser.error(f"no such scenario: {options.only} (see --list)")
    part, parts = map(int, options.part.split("/"))
    with ExitStack() as stack:
        report = Report(progress=lambda text: print(text, file=sys.stderr, flush=True))
        if options.out:
            report.out = stack.enter_context(open(options.out, "a", encoding="utf-8"))
        try:
            at = stack.enter_context(session())
        except pytest.skip.Exception as reason:
            print(reason, file=sys.stderr)
            return 77
        job = Job(
            disk=str(at.disk),
            tmpfs=str(at.tmpfs),
            only=only,
            part=part,
            parts=parts,
            sample=options.sample,
            most=options.most,
            calls=options.calls.split(",") if options.calls else [],
            cold=options.cold,
            index=options.index,
            trace=options.trace,
        )
        try:
            at.run(job, report=report)
        except KeyboardInterrupt:
            print("interrupted: what was tried until then")
    print(report.summary())
    return 1 if report.violations else 0


sys.exit(main())
