"""mlockall(2) that works with sparse memory.

mlockall(MCL_CURRENT) populates every reservation whole, and under RLIMIT_MEMLOCK each counts whole. :func:`lock_memory`
locks every other mapping of the process, and of reservations and arenas what is committed now and (``future``) later:
their bookkeeping too.
"""

from __future__ import annotations

from .. import _realtime
from .._scope import Ledger, Owner, Scope

__all__ = ["MemoryLock", "lock_memory", "unlock_memory"]

# A fork's child inherits no locks from its parent.
_in_force: Ledger[tuple[bool, bool, bool]] = Ledger(_realtime.lock, inherited=False)


class MemoryLock(Owner):
    """What :func:`lock_memory` returns: a context manager at whose end this lock is no longer in force.

    Raises
    ------
    RuntimeError
        When it is entered: the lock is not in force any more.
    """

    def _begin(self) -> MemoryLock:
        if self.scope not in _in_force:
            raise RuntimeError("this lock is not in force any more: call lock_memory() again")
        return self


def lock_memory(current: bool = True, future: bool = True, on_fault: bool = False) -> MemoryLock:
    """Lock this process's memory, so that none of it is paged out, and no loop waits for it.

    Reservations and arenas are locked where they are committed, now and later: an mlockall(2) by somebody else
    populates them whole. Calls nest: unlock_memory() ends the last, and the end of a ``with`` its own. An exception
    from a signal handler finds the lock in force and owned by whoever called this, or not in force.

    Parameters
    ----------
    current
        What is mapped now.
    future
        What will be mapped, or committed.
    on_fault
        Pages that are not there yet are locked when they come, and not populated now.

    Returns
    -------
    MemoryLock
        A context manager that ends this lock. Without a ``with`` it stays in force until unlock_memory().

    Raises
    ------
    LockError
        (An OSError.) RLIMIT_MEMLOCK forbids it; the error says what it allows, and how to raise it. Nothing of this
        call is locked then.
    ValueError
        Neither `current` nor `future`.

    Notes
    -----
    Against RLIMIT_MEMLOCK (getrlimit(2)) what is committed counts; only pages of the hugetlb pool count whole when they
    are reserved under `future` without CAP_IPC_LOCK: reserve those before.

    Free-threaded CPython's own allocator, mimalloc, maps 1 GiB at its start, and all of that is present and locked
    then, but with `on_fault`. Set ``MIMALLOC_ARENA_EAGER_COMMIT=0`` in the environment, and it is what Python uses.

    A fork's child inherits no locks (mlockall(2)), and in the parent a fork makes each private page fault at the next
    write: another call without `on_fault`, a nested one too, makes them its own again (but for what arenas have
    committed, see ``fork=``).

    Examples
    --------
    >>> from arena.realtime import lock_memory
    >>> with lock_memory(current=False, on_fault=True):
    ...     pass  # what is mapped in here is locked
    """
    if not (current or future):
        raise ValueError("neither what is there nor what will be: lock_memory(current=True) or (future=True)")
    with Scope() as scope:
        _in_force.enter(scope, (bool(current), bool(future), bool(on_fault)))
        return MemoryLock(scope)


def unlock_memory() -> None:
    """End the last lock_memory().

    With the outermost all memory is unlocked, but for what ``lock=True`` has locked (rings too); what another's
    mlockall(2) had locked is unlocked as well.

    Raises
    ------
    LockError
        What is still to be locked cannot be, for RLIMIT_MEMLOCK was lowered: no memory is locked now. The lock has
        ended all the same.
    RuntimeError
        No lock is in force, or the parent of this child of a fork made it.

    Examples
    --------
    >>> from arena.realtime import lock_memory, unlock_memory
    >>> lock = lock_memory(current=False, on_fault=True)
    >>> unlock_memory()
    """
    scope = _in_force.last
    if scope is None:
        raise RuntimeError(
            "this is the child of a fork, which inherits no locks: call lock_memory() here"
            if _in_force.lost
            else "no lock_memory() is in force"
        )
    scope.end()
