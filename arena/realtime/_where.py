"""Where a thread faulted: what is mapped there, whose instruction it was, and, of a recording, the line of Python.

Perf events know no Python frames. For the line the kernel sends the thread a signal at each fault, before the
instruction goes on, and faulthandler, which is made to run in a signal handler, writes the stack to a file in memory.
"""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import os
import re
import signal
import threading
from typing import NamedTuple

from .. import _realtime, hints
from ..errors import PageFaultError, page_fault_error

_FRAME = re.compile(r'^  File "(.*)", line (\d+) in ', re.MULTILINE)


class PageFault(NamedTuple):
    """A page fault: the address, and that of the instruction (of a fault inside a system call, the one that made the
    call). The file and line of Python, None but with ``where="lines"``. The name of what is mapped at the address, and
    the instruction's symbol."""

    address: int
    instruction: int
    file: str | None
    line: int | None
    mapping: str
    symbol: str

    def __str__(self) -> str:
        by = f", by {self.symbol}" if self.symbol else ""
        at = f", {self.file}:{self.line}" if self.file else ""
        return f"{self.address:#x} in {self.mapping}{by}{at}"


class Recording(NamedTuple):
    """What was noted of a block: (address, instruction) of each fault, its line of Python where that was asked for, and
    why there is no more."""

    faults: list[tuple[int, int]]
    lines: list[tuple[str, int] | None]
    why_not: str

    @classmethod
    def of_watch(cls, faults: list[tuple[int, int]], err: int, asked: bool) -> Recording:
        """As the thread's watch has it. ``err``: why there is none, or 0."""
        return cls(faults, [], _refused(err) if err else "" if asked else "no_page_faults(where=True) says where")


class Recorder:
    """Records this thread's faults with their lines until it is stopped. OSError: perf_event_open(2) is refused."""

    def __init__(self, number: int) -> None:
        with contextlib.ExitStack() as undo:
            self._text = os.memfd_create("page faults")
            undo.callback(os.close, self._text)
            # What faulthandler puts back: on a machine that is late with a signal, it may come after the end.
            _realtime.ignore(number)
            faulthandler.register(number, file=self._text, all_threads=False, chain=False)
            undo.callback(faulthandler.unregister, number)
            self._watch = _realtime.Watch(number)
            # The handler's own first faults are not the block's.
            for _ in range(2):
                signal.raise_signal(number)
            os.ftruncate(self._text, 0)
            os.lseek(self._text, 0, os.SEEK_SET)
            self._undo = undo.pop_all()
        self._watch.arm()

    def stop(self) -> Recording:
        self._watch.disarm()
        with self._undo:
            text = os.pread(self._text, os.fstat(self._text).st_size, 0).decode("utf-8", "replace")
            return Recording(self._watch.faults(), _innermost(text), "")


def _free_signal() -> int | None:
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    for number in range(signal.SIGRTMAX, signal.SIGRTMIN - 1, -1):
        if number not in blocked and signal.getsignal(number) in (signal.SIG_DFL, signal.SIG_IGN):
            return number
    return None


def _innermost(text: str) -> list[tuple[str, int] | None]:
    """The first frame of each stack that faulthandler has written."""
    found: list[tuple[str, int] | None] = []
    for stack in text.split("(most recent call first):")[1:]:
        frame = _FRAME.search(stack)
        found.append((frame[1], int(frame[2])) if frame else None)
    return found


_ANOTHER = "where is not known, for another block records lines at the same time"

# Those that run, by the tag of their block: one in the process, for the signal and its handler are the process's.
_one = threading.Lock()
_running: dict[int, Recorder | str] = {}


def start(tag: int) -> None:
    """Record this thread's faults. That it cannot be is no error: stop() says why."""
    number = _free_signal()
    if number is None or not _one.acquire(blocking=False):
        _running[tag] = "where is not known, for no real-time signal is free" if number is None else _ANOTHER
        return
    try:
        _running[tag] = Recorder(number)
    except OSError as error:
        _one.release()
        _running[tag] = _refused(error.errno or 0)
    except BaseException:
        _one.release()
        raise


def stop(tag: int) -> Recording:
    recorder = _running.pop(tag)
    if isinstance(recorder, str):
        return Recording([], [], recorder)
    try:
        return recorder.stop()
    finally:
        _one.release()


def _refused(err: int) -> str:
    return f"where is not known, for perf_event_open(2) says {errno.errorcode.get(err, err)}: {hints.perf(err)}"


def _mappings() -> list[tuple[int, int, str]]:
    found = []
    with open("/proc/self/maps", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            span, _, _, _, _, *name = line.rstrip("\n").split(maxsplit=5)
            start, _, end = span.partition("-")
            found.append((int(start, 16), int(end, 16), name[0] if name else "anonymous memory"))
    return found


def error(minor: int, major: int, allowed: int, recording: Recording) -> PageFaultError:
    """The exception for a block with so many faults."""
    mappings = _mappings() if recording.faults else []
    where = []
    for i, (address, instruction) in enumerate(recording.faults):
        file, line = (recording.lines[i] if i < len(recording.lines) else None) or (None, None)
        gone = "memory that is not mapped any more"
        mapping = next((name for start, end, name in mappings if start <= address < end), gone)
        where.append(PageFault(address, instruction, file, line, mapping, _realtime.symbol(instruction)))
    hint = recording.why_not or (
        "make the memory present first: warm() an arena, prepare() stack and heap, and run the block some times before"
    )
    if not where and not recording.why_not:
        hint = f"the kernel took them inside system calls that map, populate or pin; {hint}"
    return page_fault_error(minor, major, allowed, where, hint)
