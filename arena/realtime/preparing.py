"""The known recipe before a loop that must not wait: stack and heap present and kept, garbage collection out of the
way, and, if asked for, a real-time priority and CPUs of one's own."""

from __future__ import annotations

import errno
import functools
import gc as _gc
import operator
import os
import threading
import warnings
from collections.abc import Iterable
from typing import Literal, SupportsIndex

from .. import _core, _realtime, advice
from .._scope import Ledger, OwnerInThread, Scope, unwind
from ..errors import prefault_error
from ..sizes import parse_size

__all__ = ["Prepared", "prepare", "restore"]


# These are settings of the process, each in force as long as any prepare() asks for it.
_off: Ledger[None] = Ledger(_realtime.collect_not)
_frozen: Ledger[None] = Ledger(_realtime.freeze)
_heaps: Ledger[int] = Ledger(_realtime.keep_heap)


class _Mine(threading.local):
    def __init__(self) -> None:
        self.prepared: list[Scope] = []


_mine = _Mine()


class Prepared(OwnerInThread):
    """What :func:`prepare` returns: a context manager that restores at its end.

    What was prepared inside of it and is still in force ends with it.

    Attributes
    ----------
    stack, heap
        The bytes that were made present.
    """

    def __init__(self, scope: Scope, stack: int, heap: int) -> None:
        super().__init__(scope)
        self.stack = stack
        self.heap = heap


def prepare(
    stack: SupportsIndex | str = "512KiB",
    heap: SupportsIndex | str = "64MiB",
    gc: Literal["freeze", "off", "leave"] = "freeze",
    sched: SupportsIndex | None = None,
    affinity: SupportsIndex | Iterable[SupportsIndex] | None = None,
) -> Prepared:
    """Prepare this thread, and the process, for a loop that must not wait; all of it, or an exception and nothing.

    Calls nest: restore() in the same thread, or the end of the ``with``, ends the last. Stack and heap are not locked:
    lock_memory() does that. An exception from a signal handler finds all of it in force, or nothing.

    Parameters
    ----------
    stack
        So many bytes of this thread's stack are made present. 0: leave it as it is.
    heap
        So many bytes of malloc's memory are made present, and from then on malloc keeps what is freed, and maps nothing
        by mmap(2). 0: leave it as it is.
    gc
        "freeze" collects, takes what there is out of all later collections, and turns automatic ones off; "off" only
        turns them off; "leave" leaves them.
    sched
        SCHED_FIFO with this priority, for this thread and for those that it starts.
    affinity
        The CPU, or CPUs, that this thread is to run on.

    Returns
    -------
    Prepared
        A context manager that restores at its end. Without a ``with`` all stays in force until restore().

    Raises
    ------
    CommitError
        There is no such memory, or the stack may not be that large.
    OSError
        No such priority is permitted, or there is no such CPU. Both errors say what to do.
    ValueError, TypeError
        Nonsense.

    Notes
    -----
    Malloc is told by mallopt(3): in glibc alone, elsewhere a RuntimeWarning says so. Threads but the main one may have
    heaps of their own in glibc, unless MALLOC_ARENA_MAX=1 is in the environment; and Python's small objects are
    elsewhere, unless PYTHONMALLOC=malloc is. A fork's child has what the thread that forked had prepared, but for its
    stack and heap being present.

    Examples
    --------
    >>> from arena.realtime import prepare
    >>> with prepare(stack="64KiB", heap="1MiB", gc="off") as prepared:
    ...     prepared.stack, prepared.heap
    (65536, 1048576)
    """
    nbytes = parse_size(stack, "stack"), parse_size(heap, "heap")
    if gc not in ("freeze", "off", "leave"):
        raise ValueError(f"gc must be 'freeze', 'off' or 'leave', not {gc!r}")
    priority = None if sched is None else operator.index(sched)
    low, high = os.sched_get_priority_min(os.SCHED_FIFO), os.sched_get_priority_max(os.SCHED_FIFO)
    if priority is not None and not low <= priority <= high:
        raise ValueError(f"sched must be a priority of SCHED_FIFO, from {low} to {high}, not {priority}")
    cpus = _cpus(affinity)
    with Scope() as scope:
        if cpus is not None:
            _run_on(cpus, scope)
        if nbytes[0]:
            _touch_stack(nbytes[0])
        kept = _keep_heap(nbytes[1], scope) if nbytes[1] else 0
        if gc != "leave":
            _off.enter(scope, None)
        if gc == "freeze":
            _gc.collect()
            _frozen.enter(scope, None)
        if priority is not None:
            _schedule(priority, scope)
        mine = _mine.prepared
        scope.do(functools.partial(unwind, mine, scope), mine.append, scope)
        return Prepared(scope, nbytes[0], kept)


def restore() -> None:
    """End this thread's last prepare().

    Its scheduler and CPUs are as they were. With the last prepare() of the process, garbage collection is too, and
    malloc is told glibc's own numbers, and gives back what is free.

    Raises
    ------
    RuntimeError
        This thread has no prepare() in force.

    Notes
    -----
    malloc does not choose its thresholds as it goes again: any mallopt(3) ends that.

    Examples
    --------
    >>> from arena.realtime import prepare, restore
    >>> prepared = prepare(stack="64KiB", heap=0, gc="off")
    >>> restore()
    """
    if not _mine.prepared:
        raise RuntimeError("this thread has called no prepare() that is in force")
    _mine.prepared[-1].end()


def _can_be_had(nbytes: int) -> None:
    """Raise CommitError where there is no such memory: in stack and heap the OOM killer would say so."""
    with _core.Reservation(nbytes) as there:
        there.commit()


def _touch_stack(nbytes: int) -> None:
    left = _realtime.stack_left()
    if left < nbytes:
        raise prefault_error("stack", nbytes, left, advice.stack())
    _can_be_had(nbytes)
    _realtime.touch_stack(nbytes)


def _keep_heap(nbytes: int, scope: Scope) -> int:
    _can_be_had(nbytes)
    try:
        _heaps.enter(scope, nbytes)
    except NotImplementedError as error:
        warnings.warn(f"{error}: heap= does nothing", stacklevel=3)
        return 0
    try:
        _realtime.touch_heap(nbytes)
    except MemoryError:
        raise prefault_error("malloc", nbytes, None, advice.for_reserve(errno.ENOMEM, "malloc", "", 0, 0)) from None
    return nbytes


def _cpus(affinity: SupportsIndex | Iterable[SupportsIndex] | None) -> set[int] | None:
    if affinity is None:
        return None
    if isinstance(affinity, SupportsIndex):
        affinity = [affinity]
    cpus = {operator.index(cpu) for cpu in affinity}
    if not cpus or min(cpus) < 0:
        raise ValueError(f"affinity must be one CPU or more, by numbers from 0 on, not {sorted(cpus)}")
    return cpus


def _run_on(cpus: set[int], scope: Scope) -> None:
    before = os.sched_getaffinity(0)
    try:
        scope.do(functools.partial(os.sched_setaffinity, 0, before), os.sched_setaffinity, 0, cpus)
        refused = os.sched_getaffinity(0) != cpus
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        refused = True
    except OverflowError:
        refused = True
    if refused:
        raise OSError(errno.EINVAL, f"this thread may not run on CPUs {sorted(cpus)}: {advice.cpus(before)}")


def _schedule(priority: int, scope: Scope) -> None:
    undo = functools.partial(os.sched_setscheduler, 0, os.sched_getscheduler(0), os.sched_getparam(0))
    try:
        scope.do(undo, os.sched_setscheduler, 0, os.SCHED_FIFO, os.sched_param(priority))
    except PermissionError:
        raise PermissionError(errno.EPERM, advice.rtprio(priority)) from None
