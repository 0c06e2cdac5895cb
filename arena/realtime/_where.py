"""Where a thread faulted: what is mapped there, whose instruction it was, and, of a recording, the line of Python.

Perf events know no Python frames. For the line the kernel sends the thread a signal at each fault, before the
instruction goes on, and faulthandler, which is made to run in a signal handler, writes the stack to a file in memory.
"""

from __future__ import annotations

import errno
import faulthandler
import functools
import os
import re
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from .. import advice
from .._scope import Ledger, Owner, Scope
from ..errors import PageFaultError, page_fault_error
from ..ledger import PageFault

if TYPE_CHECKING:
    from .._realtime import Watch

_FRAME = re.compile(r'^  File "(.*)", line (\d+) in ', re.MULTILINE)


class Recording(NamedTuple):
    """What was noted of a block: (address, instruction) of each fault, its line of Python where that was asked for, and
    why there is no more."""

    faults: list[tuple[int, int]]
    lines: list[tuple[str, int] | None]
    why_not: str

    @classmethod
    def of_watch(cls, faults: list[tuple[int, int]], err: int, asked: bool) -> Recording:
        """Make it of what the thread's watch has noted. ``err`` says why there is no watch, or is 0."""
        return cls(faults, [], _refused(err) if err else "" if asked else "no_page_faults(where=True) says where")


def _one_at_a_time(wishes: list[None], fewer: bool) -> None:
    if len(wishes) > 1:
        raise BlockingIOError


# One thread at a time records lines, for the signal and its handler are the process's.
_recording: Ledger[None] = Ledger(_one_at_a_time)


class Recorder(Owner):
    """Records this thread's faults with their lines until its scope ends."""

    def __init__(self, scope: Scope, text: int, watch: Watch) -> None:
        super().__init__(scope)
        self._text = text
        self.watch = watch

    def recording(self) -> Recording:
        """Stop, and return what was recorded."""
        self.watch.disarm()
        text = os.pread(self._text, os.fstat(self._text).st_size, 0).decode("utf-8", "replace")
        before, faults = self.watch.faults()
        return Recording(faults, _innermost(text)[len(before) :], "")


def record(watch: Callable[[int], Watch], ignore: Callable[[int], object]) -> Recorder | str:
    """Begin to record this thread's faults, or say why that cannot be.

    ``watch(signal)`` notes faults, and sends that signal for each; it raises OSError where perf_event_open(2) is
    refused. ``ignore(signal)`` makes the signal do nothing by itself from then on.
    """
    number = _free_signal()
    if number is None:
        return "where is not known, for no real-time signal is free"
    try:
        with Scope() as scope:
            _recording.enter(scope, None)
            text = scope.get(os.close, os.memfd_create, "page faults")
            # faulthandler puts this back at the end. A machine that is late with a signal may deliver it after that.
            ignore(number)
            scope.do(
                functools.partial(faulthandler.unregister, number),
                functools.partial(faulthandler.register, number, file=text, all_threads=False, chain=False),
            )
            noted = watch(number)
            scope.at_end(noted.disarm)
            # The handler's own first faults are not the block's.
            for _ in range(2):
                signal.raise_signal(number)
            os.ftruncate(text, 0)
            os.lseek(text, 0, os.SEEK_SET)
            noted.arm()
            return Recorder(scope, text, noted)
    except BlockingIOError:
        return "where is not known, for another block records lines at the same time"
    except OSError as error:
        return _refused(error.errno or 0)


def _free_signal() -> int | None:
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    for number in range(signal.SIGRTMAX, signal.SIGRTMIN - 1, -1):
        if number not in blocked and signal.getsignal(number) in (signal.SIG_DFL, signal.SIG_IGN):
            return number
    return None


def _innermost(text: str) -> list[tuple[str, int] | None]:
    """Return the first frame of each stack that faulthandler has written."""
    found: list[tuple[str, int] | None] = []
    for stack in text.split("(most recent call first):")[1:]:
        frame = _FRAME.search(stack)
        found.append((frame[1], int(frame[2])) if frame else None)
    return found


def _refused(err: int) -> str:
    return f"where is not known, for perf_event_open(2) says {errno.errorcode.get(err, err)}: {advice.perf_event(err)}"


def _mappings() -> list[tuple[int, int, str]]:
    found = []
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            span, _, _, _, _, *name = line.rstrip("\n").split(maxsplit=5)
            start, _, end = span.partition("-")
            found.append((int(start, 16), int(end, 16), name[0] if name else "anonymous memory"))
    return found


def error(minor: int, major: int, allowed: int, recording: Recording, symbol: Callable[[int], str]) -> PageFaultError:
    """Make the exception for a block with so many faults. ``symbol`` names the code at an address."""
    mappings = _mappings() if recording.faults else []
    where = []
    for i, (address, instruction) in enumerate(recording.faults):
        file, line = (recording.lines[i] if i < len(recording.lines) else None) or (None, None)
        gone = "memory that is not mapped any more"
        mapping = next((name for start, end, name in mappings if start <= address < end), gone)
        where.append(PageFault(address, instruction, file, line, mapping, symbol(instruction)))
    hint = recording.why_not or (
        "make the memory present first: warm() an arena, prepare() stack and heap, and run the block some times before"
    )
    if not where and not recording.why_not:
        hint = f"the kernel took them inside system calls that map, populate or pin; {hint}"
    return page_fault_error(minor, major, allowed, where, hint)
