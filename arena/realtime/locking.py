"""mlockall(2) that works with sparse memory.

mlockall(MCL_CURRENT) populates every reservation whole, and under RLIMIT_MEMLOCK each counts whole. :func:`lock_memory`
locks every other mapping of the process, and of reservations and arenas what is committed now and (``future``) later:
their bookkeeping too.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from .. import _core

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["MemoryLock", "lock_memory", "unlock_memory"]


class MemoryLock:
    """What :func:`lock_memory` returns: a context manager at whose end this lock is no longer in force."""

    def __init__(self, current: bool, future: bool, on_fault: bool) -> None:
        self._current, self._future, self._on_fault = current, future, on_fault

    def __enter__(self) -> Self:
        if self not in _in_force:
            raise RuntimeError("this lock is not in force any more: call lock_memory() again")
        return self

    def __exit__(self, *exc: object) -> None:
        with _mutex:
            if self in _in_force:  # and not ended by unlock_memory(), or lost to a fork
                _end(self)


# The innermost last. What a signal handler raises in the middle of a change comes right after the call into C: so the
# list is changed before it, and says what is so.
_mutex = threading.RLock()
_in_force: list[MemoryLock] = []
_inherited = False  # this is a fork's child, whose parent had locks


def _after_fork() -> None:
    global _mutex, _inherited
    _mutex = threading.RLock()
    _inherited = bool(_in_force)
    _in_force.clear()


os.register_at_fork(after_in_child=_after_fork)


def _apply(afresh: bool) -> None:
    """What is in force, as the strongest of it."""
    _core.lock_all(
        any(lock._current for lock in _in_force),
        any(lock._future for lock in _in_force),
        all(lock._on_fault for lock in _in_force),
        afresh,
    )


def _end(lock: MemoryLock) -> None:
    _in_force.remove(lock)
    try:
        _apply(True)
    except OSError:  # the limit was lowered: nothing is locked now
        _in_force.clear()
        raise


def lock_memory(current: bool = True, future: bool = True, on_fault: bool = False) -> MemoryLock:
    """Lock this process's memory: what is mapped now (``current``), and what will be mapped or committed (``future``).
    With ``on_fault`` pages that are not there yet are locked when they come, and not populated now.

    Calls nest: unlock_memory() ends the last, and the end of a ``with`` its own. A fork's child inherits no locks, and
    in the parent it makes each private page fault at the next write: another call without ``on_fault``, a nested one
    too, makes them its own again (but for what arenas have committed, see ``fork=``).

    An mlockall(2) by somebody else populates reservations whole; ours does not, neither those that are there nor those
    made later. Against RLIMIT_MEMLOCK what is committed counts; only pages of the hugetlb pool count whole when they
    are reserved under ``future`` without CAP_IPC_LOCK: reserve those before.

    Raises LockError (an OSError), which says what RLIMIT_MEMLOCK allows and how to raise it; then nothing of this call
    is locked.
    """
    if not (current or future):
        raise ValueError("neither what is there nor what will be: lock_memory(current=True) or (future=True)")
    lock = MemoryLock(bool(current), bool(future), bool(on_fault))
    with _mutex:
        _in_force.append(lock)
        try:
            _apply(False)
        except BaseException:
            if lock in _in_force:
                _end(lock)
            raise
    return lock


def unlock_memory() -> None:
    """End the last lock_memory(). With the outermost all is unlocked, but for what ``lock=True`` has locked; what
    another's mlockall(2) had locked is unlocked too. RuntimeError: there is none, or it was made by the parent of this
    fork's child."""
    with _mutex:
        if not _in_force:
            raise RuntimeError(
                "this is the child of a fork, which inherits no locks: call lock_memory() here"
                if _inherited
                else "no lock_memory() is in force"
            )
        _end(_in_force[-1])
