"""The known recipe before a loop that must not wait: stack and heap present and kept, garbage collection out of the
way, and, if asked for, a real-time priority and CPUs of one's own."""

from __future__ import annotations

import contextlib
import errno
import gc as _gc
import operator
import os
import threading
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Literal, SupportsIndex

from .. import _core, _realtime, hints
from ..errors import prefault_error
from ..sizes import parse_size

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["Prepared", "prepare", "restore"]


class _Shared:
    """What is the process's, and stays as long as any prepare() asks for it. ``begin`` gives what ends it."""

    def __init__(self, begin: Callable[[], Callable[[], object]]) -> None:
        self._begin = begin
        self._users = 0
        self._end: Callable[[], object] | None = None

    def enter(self, undo: contextlib.ExitStack) -> None:
        if self._users == 0:
            self._end = self._begin()
        self._users += 1
        undo.callback(self._leave)

    def _leave(self) -> None:
        self._users -= 1
        if self._users == 0 and self._end is not None:
            self._end()


def _collection_off() -> Callable[[], object]:
    was_on = _gc.isenabled()
    _gc.disable()
    return _gc.enable if was_on else _gc.isenabled


def _frozen() -> Callable[[], object]:
    # What somebody else has frozen cannot be told from ours: then all stays frozen.
    others = _gc.get_freeze_count()
    _gc.collect()
    _gc.freeze()
    return _gc.isenabled if others else _gc.unfreeze


_off = _Shared(_collection_off)
_freeze = _Shared(_frozen)
# The sizes that malloc keeps, of every prepare() in force.
_heaps: list[int] = []
_mutex = threading.RLock()


class _Mine(threading.local):
    def __init__(self) -> None:
        self.prepared: list[Prepared] = []


_mine = _Mine()


def _in_child() -> None:
    global _mutex
    _mutex = threading.RLock()


os.register_at_fork(after_in_child=_in_child)


class Prepared:
    """What :func:`prepare` returns: a context manager that restores at its end. ``stack`` and ``heap``: the bytes made
    present."""

    def __init__(self, undo: contextlib.ExitStack, stack: int, heap: int) -> None:
        self._undo = undo
        self._thread = threading.get_ident()
        self.stack = stack
        self.heap = heap

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        if self._thread != threading.get_ident():
            raise RuntimeError("prepare() is a thread's own: this block ends in another than it began in")
        # A restore() inside the block was before us.
        while self in _mine.prepared:
            restore()


def prepare(
    stack: SupportsIndex | str = "512KiB",
    heap: SupportsIndex | str = "64MiB",
    gc: Literal["freeze", "off", "leave"] = "freeze",
    sched: SupportsIndex | None = None,
    affinity: SupportsIndex | Iterable[SupportsIndex] | None = None,
) -> Prepared:
    """Prepare this thread, and the process, for a loop that must not wait; all of it, or an exception and nothing.

    ``stack``: so many bytes of this thread's stack are made present. ``heap``: so many bytes of malloc's memory, and
    from then on malloc keeps what is freed, and maps nothing by mmap(2) (mallopt(3); in glibc alone, elsewhere a
    RuntimeWarning says so). Threads but the main one may have heaps of their own in glibc, unless MALLOC_ARENA_MAX=1 is
    in the environment; and Python's small objects are elsewhere, unless PYTHONMALLOC=malloc is. 0: leave it as it is.

    ``gc``: ``"freeze"`` collects, takes what there is out of all later collections, and turns automatic ones off;
    ``"off"`` only turns them off; ``"leave"``. ``sched``: SCHED_FIFO with this priority for this thread, and for those
    that it starts. ``affinity``: the CPU, or CPUs, that this thread is to run on.

    Calls nest: restore() in the same thread, or the end of the ``with``, ends the last. Stack and heap are not locked:
    lock_memory() does that.

    Raises CommitError: there is no such memory, or the stack may not be that large; OSError: no such priority is
    permitted, or no such CPU; each says what to do.
    """
    nbytes = parse_size(stack, "stack"), parse_size(heap, "heap")
    if gc not in ("freeze", "off", "leave"):
        raise ValueError(f"gc must be 'freeze', 'off' or 'leave', not {gc!r}")
    priority = None if sched is None else operator.index(sched)
    low, high = os.sched_get_priority_min(os.SCHED_FIFO), os.sched_get_priority_max(os.SCHED_FIFO)
    if priority is not None and not low <= priority <= high:
        raise ValueError(f"sched must be a priority of SCHED_FIFO, from {low} to {high}, not {priority}")
    cpus = _cpus(affinity)
    with _mutex, contextlib.ExitStack() as undo:
        if cpus is not None:
            _run_on(cpus, undo)
        if nbytes[0]:
            _touch_stack(nbytes[0])
        kept = _keep_heap(nbytes[1], undo) if nbytes[1] else 0
        if gc != "leave":
            _off.enter(undo)
        if gc == "freeze":
            _freeze.enter(undo)
        if priority is not None:
            _schedule(priority, undo)
        prepared = Prepared(undo.pop_all(), nbytes[0], kept)
        _mine.prepared.append(prepared)
        return prepared


def restore() -> None:
    """End this thread's last prepare(): its scheduler and CPUs are as they were. With the last of the process, garbage
    collection is too, and malloc is told glibc's own numbers, and gives back what is free. (It does not choose its
    thresholds as it goes again: any mallopt(3) ends that.) RuntimeError: this thread has none."""
    if not _mine.prepared:
        raise RuntimeError("this thread has called no prepare() that is in force")
    with _mutex:
        _mine.prepared.pop()._undo.close()


def _can_be_had(nbytes: int) -> None:
    """CommitError where it is not: in the stack and in malloc's memory the OOM killer would say so."""
    with _core.Reservation(nbytes) as there:
        there.commit()


def _touch_stack(nbytes: int) -> None:
    left = _realtime.stack_left()
    if left < nbytes:
        raise prefault_error("stack", nbytes, left, hints.stack())
    _can_be_had(nbytes)
    _realtime.touch_stack(nbytes)


def _keep_heap(nbytes: int, undo: contextlib.ExitStack) -> int:
    _can_be_had(nbytes)
    _heaps.append(nbytes)
    undo.callback(_let_heap_go, nbytes)
    if not _realtime.keep_heap(True, max(_heaps)):
        warnings.warn("this C library's malloc cannot be told to keep memory: heap= does nothing", stacklevel=3)
        return 0
    try:
        _realtime.touch_heap(nbytes)
    except MemoryError:
        raise prefault_error("malloc", nbytes, None, hints.for_reserve(errno.ENOMEM, "malloc", "", 0, 0)) from None
    return nbytes


def _let_heap_go(nbytes: int) -> None:
    _heaps.remove(nbytes)
    if _heaps:
        _realtime.keep_heap(True, max(_heaps))
    else:
        _realtime.keep_heap(False)
        _realtime.trim_heap()


def _cpus(affinity: SupportsIndex | Iterable[SupportsIndex] | None) -> set[int] | None:
    if affinity is None:
        return None
    if isinstance(affinity, SupportsIndex):
        affinity = [affinity]
    cpus = {operator.index(cpu) for cpu in affinity}
    if not cpus or min(cpus) < 0:
        raise ValueError(f"affinity must be one CPU or more, by numbers from 0 on, not {sorted(cpus)}")
    return cpus


def _run_on(cpus: set[int], undo: contextlib.ExitStack) -> None:
    before = os.sched_getaffinity(0)
    undo.callback(os.sched_setaffinity, 0, before)
    try:
        os.sched_setaffinity(0, cpus)
        refused = os.sched_getaffinity(0) != cpus
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        refused = True
    except OverflowError:
        refused = True
    if refused:
        raise OSError(errno.EINVAL, f"this thread may not run on CPUs {sorted(cpus)}: {hints.cpus(before)}")


def _schedule(priority: int, undo: contextlib.ExitStack) -> None:
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except PermissionError:
        raise PermissionError(errno.EPERM, hints.rtprio(priority)) from None
    undo.callback(os.sched_setscheduler, 0, *before)
