"""mlockall(2) that works with sparse memory.

mlockall(MCL_CURRENT) populates every reservation whole, and under RLIMIT_MEMLOCK each counts whole. :func:`lock_memory`
locks every other mapping of the process, and of reservations and arenas what is committed now and (``future``) later:
their bookkeeping too.
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, NamedTuple

from .. import _core

if TYPE_CHECKING:
    from typing_extensions import Self

__all__ = ["MemoryLock", "lock_memory", "unlock_memory"]


class _Flags(NamedTuple):
    current: bool
    future: bool
    on_fault: bool


# The locks in force, the innermost last; and in which process, for a fork's child inherits none.
_mutex = threading.RLock()
_nested: list[_Flags] = []
_process = os.getpid()


def _in_force() -> list[_Flags]:
    global _process
    if _process != os.getpid():
        _process = os.getpid()
        _nested.clear()
    return _nested


def _apply(flags: list[_Flags]) -> None:
    """As the strongest of them."""
    _core.lock_all(any(f.current for f in flags), any(f.future for f in flags), all(f.on_fault for f in flags))


class MemoryLock:
    """What :func:`lock_memory` returns: a context manager that unlocks at its end."""

    def __init__(self, depth: int) -> None:
        self._depth = depth

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        with _mutex:
            # An unlock_memory() inside the block, or a fork of which this is the child, was before us.
            while len(_in_force()) >= self._depth:
                unlock_memory()


def lock_memory(current: bool = True, future: bool = True, on_fault: bool = False) -> MemoryLock:
    """Lock this process's memory: what is mapped now (``current``), and what will be mapped or committed (``future``).
    With ``on_fault`` pages that are not there yet are locked when they come, and not populated now.

    Calls nest: unlock_memory(), or the end of the ``with``, ends the last. A fork's child inherits no locks. An
    mlockall(2) by somebody else populates reservations whole; ours does not.

    Raises LockError (an OSError), which says what RLIMIT_MEMLOCK allows and how to raise it; then nothing of this call
    is locked.
    """
    if not (current or future):
        raise ValueError("neither what is there nor what will be: lock_memory(current=True) or (future=True)")
    with _mutex:
        nested = _in_force()
        before = list(nested)
        flags = _Flags(bool(current), bool(future), bool(on_fault))
        try:
            _apply([*before, flags])
        except OSError:
            if before:
                _apply(before)
            raise
        nested.append(flags)
        return MemoryLock(len(nested))


def unlock_memory() -> None:
    """End the last lock_memory(). With the outermost all is unlocked, but for what ``lock=True`` has locked, and what
    another's mlockall(2) had locked is unlocked too. RuntimeError: there is none, or it was made by the parent of this
    fork's child."""
    with _mutex:
        child = _process != os.getpid()
        nested = _in_force()
        if not nested:
            raise RuntimeError(
                "this is the child of a fork, which inherits no locks: call lock_memory() here"
                if child
                else "no lock_memory() is in force"
            )
        nested.pop()
        _core.unlock_all()
        if nested:
            _apply(nested)
