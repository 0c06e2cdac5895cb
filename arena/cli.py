"""The command line: ``python -m arena COMMAND``. A command is a module with SUMMARY, add_arguments and run."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Protocol

from . import __version__, bench, demo, doctor
from .errors import ArenaError

__all__ = ["carry_out", "main"]


class Command(Protocol):
    """What a command's module has. run() returns the exit status, or raises argparse.ArgumentTypeError where the
    arguments make no sense."""

    @property
    def SUMMARY(self) -> str: ...

    def add_arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


COMMANDS: dict[str, Command] = {"demo": demo, "doctor": doctor, "bench": bench}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv
        The arguments. None: those of the process.

    Returns
    -------
    int
        The exit status: 0, 1 for what went wrong, 130 for Ctrl-C.

    Raises
    ------
    SystemExit
        2, for arguments that make no sense; 0, for ``--help`` and ``--version``.

    Examples
    --------
    >>> from arena.cli import main
    >>> main(["demo", "no such file"])
    Traceback (most recent call last):
    SystemExit: 2
    """
    parser = argparse.ArgumentParser(
        prog="python -m arena", description="Memory that is there, or an error that says why not."
    )
    parser.add_argument("--version", action="version", version=f"sparse-arena {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, command in COMMANDS.items():
        one = commands.add_parser(name, help=command.SUMMARY, description=command.SUMMARY)
        command.add_arguments(one)
        one.set_defaults(command=command, parser=one)
    args = parser.parse_args(argv)
    return carry_out(args.command.run, args, args.parser)


def carry_out(
    run: Callable[[argparse.Namespace], int], args: argparse.Namespace, parser: argparse.ArgumentParser
) -> int:
    """Run a command that ends with a line, and not with a traceback, for whatever is not a bug.

    Parameters
    ----------
    run
        The command.
    args
        What it is called with.
    parser
        Whose ``prog`` begins the line.

    Returns
    -------
    int
        The exit status: what ``run(args)`` returns, 1 for an error, 130 for Ctrl-C.

    Raises
    ------
    SystemExit
        2, where ``run`` raises argparse.ArgumentTypeError.
    """
    try:
        status = run(args)
        sys.stdout.flush()
    except argparse.ArgumentTypeError as error:
        parser.error(str(error))
    except (ArenaError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            # Whoever read the output has closed the pipe. What is still buffered must not fail again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status
