"""What this machine, container and process can do, and what stands in the way: ``python -m arena doctor``.

Each finding has a verdict for the use that was named, and the line that mends it. Without a use, what counts is the
core itself: whether an arena can be made, and a chunk of 2 MiB be committed. The exit status is 1 where something
blocks, else 0.

What blocks:

- always: no chunk's worth of memory left (the machine's, a memory cgroup's, RLIMIT_DATA, the charge of overcommit
  mode 2); no address space (RLIMIT_AS, vm.max_map_count); MCL_FUTURE with no chunk's worth of RLIMIT_MEMLOCK left;
- realtime: also that this process cannot be locked as it is, or not even a chunk, and a sandbox whose memory is not the
  kernel's;
- sharing: also that there is no memfd, or that it may not be as long as a chunk.

Nothing is changed by looking, no right is needed for it, and what cannot be read is a finding that says so.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys

from ..advice import Mend
from .finding import USES, Finding, Use, Verdict
from .judge import blocked, judge
from .read import read_facts
from .render import as_json, as_text

__all__ = ["SUMMARY", "Finding", "Mend", "Use", "Verdict", "add_arguments", "examine", "report", "run"]

SUMMARY = "say what this machine, container and process can do, and what stands in the way"


def examine(use: Use | None = None) -> list[Finding]:
    """Look at this machine, container and process.

    Parameters
    ----------
    use
        What they are to be good for: "realtime", "numpy", "sharing". None: the core itself.

    Returns
    -------
    list of Finding
        The worst first.

    Raises
    ------
    ValueError
        There is no such use. Nothing else is raised.

    Examples
    --------
    >>> from arena import doctor
    >>> {finding.verdict for finding in doctor.examine("numpy")} <= {"blocks you", "limits you", "good", "information"}
    True
    """
    return judge(read_facts(), use)


def report(use: Use | None = None) -> str:
    """Return what :func:`examine` finds as text for a terminal.

    Parameters
    ----------
    use
        As for :func:`examine`.

    Returns
    -------
    str
        Lines of up to 100 characters.

    Examples
    --------
    >>> from arena import doctor
    >>> doctor.report("realtime").startswith("For realtime, blocks you: ")
    True
    """
    return as_text(examine(use), use)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``python -m arena doctor`` to its parser."""
    parser.add_argument("--for", dest="use", choices=USES, help="what it is to be good for")
    parser.add_argument(
        "--json", action="store_true", help="findings for programs; the schema is in help(arena.doctor.render)"
    )
    parser.epilog = "The exit status is 1 where something blocks that use (without --for: the core itself), else 0."


def run(args: argparse.Namespace) -> int:
    """Print the findings. The exit status is returned: 1 where something blocks the use, else 0."""
    findings = examine(args.use)
    if args.json:
        print(as_json(findings, args.use))
    elif sys.stdout.isatty():
        width = min(shutil.get_terminal_size().columns - 1, 120)
        print(as_text(findings, args.use, width=max(width, 60), bold="NO_COLOR" not in os.environ), end="")
    else:
        print(as_text(findings, args.use), end="")
    return int(blocked(findings))
