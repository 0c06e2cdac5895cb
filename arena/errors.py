"""The exceptions of this package, and the sentences that say what to do.

Each carries ``errno``, ``op`` (the step that failed), ``offset``, ``requested``, ``committed`` and ``available``
(bytes; None where it is not known) and ``hint``.
"""

from __future__ import annotations

import errno as _errno
import os as _os

from . import advice as _advice
from .ledger import PageFault as _PageFault

__all__ = ["ArenaError", "ArenaFullError", "CommitError", "LockError", "PageFaultError", "ReserveError"]


class ArenaError(Exception):
    """What the errors of this package share. It is not raised by itself.

    Attributes
    ----------
    errno
        The errno of the step that failed; None where none belongs to it. (Of OSErrors, and 28, ENOSPC, of
        ArenaFullError.)
    op
        The step that failed: a system call's name, or "alloc", "take", "page fault".
    offset
        Where the range begins, in bytes from the reservation's start.
    requested
        Bytes that were asked for.
    committed
        Bytes that were committed at that moment.
    available
        Bytes that could have been had.
    hint
        What to do, in words. The message says it too.

    Notes
    -----
    Numbers that are not known are None.

    Examples
    --------
    >>> from arena import Arena, ArenaError
    >>> try:
    ...     Arena("1MiB").alloc("2MiB")
    ... except ArenaError as error:
    ...     print(error.op, error.requested, error.available, error.hint)
    alloc 2097152 1048576 free blocks, or make the arena larger (reserving costs nothing)
    """

    op: str = ""
    offset: int | None = None
    requested: int | None = None
    committed: int | None = None
    available: int | None = None
    hint: str = ""


class CommitError(ArenaError, OSError, MemoryError):
    """The memory could not be made present; what the call had populated was given back.

    A release that the kernel refuses is one too; ``op`` is "release" or "discard" then.
    """


class ReserveError(ArenaError, OSError, MemoryError):
    """Address space, or the right to it, could not be had."""


class ArenaFullError(ArenaError, MemoryError):
    """No free range (``grow=False``: no committed one) is that large; ``available`` is the largest."""

    errno: int = _errno.ENOSPC


class LockError(ArenaError, OSError):
    """Memory may not be locked; ``committed`` bytes are, and ``available`` is all that may be."""


class PageFaultError(ArenaError, RuntimeError):
    """A thread faulted where it was not to.

    Attributes
    ----------
    minor, major
        How often.
    where
        The first of the faults, each a :class:`arena.realtime.PageFault`, as far as they were noted.
    """

    minor: int = 0
    major: int = 0
    where: list[_PageFault]


def _fill(error: ArenaError, op: str, numbers: dict[str, int | None], hint: str) -> None:
    error.op = op
    error.hint = hint
    for name, value in numbers.items():
        setattr(error, name, value)


def amount(n: int | None) -> str:
    """Write a number of bytes for people: ``1536`` is ``"1.5 KiB"``."""
    if n is None:
        return "an unknown amount"
    if n < 1024:
        return f"{n} bytes"
    power = min((n.bit_length() - 1) // 10, 4)
    return f"{n / 1024**power:.4g} {'KMGT'[power - 1]}iB"


def commit_error(err: int, op: str, where: str, numbers: dict[str, int | None]) -> CommitError:
    """Make the exception for a commit that failed with this errno at this step."""
    available = numbers["available"]
    hint = _advice.for_commit(err, op, where, available)
    there = (
        "" if available is None or op == "end of file" else f", {amount(available)} available ({where or 'the kernel'})"
    )
    verb = "release" if op in ("release", "discard") else "commit"
    error = CommitError(
        err,
        f"cannot {verb} {amount(numbers['requested'])} at offset {numbers['offset']}: {op} says "
        f"{_os.strerror(err)}; {amount(numbers['committed'])} committed{there}; {hint}",
    )
    _fill(error, op, numbers, hint)
    return error


def reserve_error(
    err: int, op: str, where: str, path: str | None, page: int, numbers: dict[str, int | None], overcommit: int
) -> ReserveError:
    """Make the exception for a reservation that failed with this errno at this step. ``page`` is the page size that was
    insisted on, or 0."""
    hint = _advice.for_reserve(err, op, where, page, overcommit)
    of = "" if path is None else f" of {path}"
    error = ReserveError(
        err, f"cannot reserve {amount(numbers['requested'])}{of}: {op} says {_os.strerror(err)}; {hint}"
    )
    _fill(error, op, numbers, hint)
    return error


def full_error(numbers: dict[str, int | None], *, grow: bool) -> ArenaFullError:
    """Make the exception for an allocation that no free range is large enough for."""
    if grow:
        what, hint = "free range", "free blocks, or make the arena larger (reserving costs nothing)"
    else:
        what, hint = "committed free range", "warm() more, or let the arena grow (grow=True)"
    error = ArenaFullError(
        f"cannot allocate {amount(numbers['requested'])}: the largest {what} is {amount(numbers['available'])} "
        f"of {amount(numbers['committed'])} committed; {hint}"
    )
    _fill(error, "alloc", numbers, hint)
    return error


def index_error(numbers: dict[str, int | None]) -> ArenaFullError:
    """The exception for an allocation that must not grow anything, where the index has no room for a block more."""
    hint = "warm(nbytes, blocks=...) for as many blocks as there will be, or let the arena grow (grow=True)"
    error = ArenaFullError(
        f"cannot allocate {amount(numbers['requested'])}: the arena's index has no room for one block more; {hint}"
    )
    _fill(error, "index", numbers, hint)
    return error


def lock_error(err: int, requested: int, locked: int, limit: int | None) -> LockError:
    """Make the exception for an mlockall that was refused, at a mapping of ``requested`` bytes (0: at once)."""
    hint = _advice.memlock() if limit is not None else _advice.for_commit(err, "mlock", "", None)
    of = f" {amount(requested)} more" if requested else ""
    allowed = "" if limit is None else f"; {amount(locked)} are locked, and RLIMIT_MEMLOCK allows {amount(limit)}"
    error = LockError(err, f"cannot lock{of or ' memory'}: {_os.strerror(err)}{allowed}; {hint}")
    numbers = {"offset": None, "requested": requested, "committed": locked, "available": limit}
    _fill(error, "mlockall", numbers, hint)
    return error


def page_fault_error(minor: int, major: int, allowed: int, where: list[_PageFault], hint: str) -> PageFaultError:
    """Make the exception for a block in which a thread faulted so often. ``where`` has the faults that are known."""
    n = minor + major
    first = f"; the first: {where[0]}" if where else ""
    error = PageFaultError(
        f"{n} page fault{'s' * (n != 1)} ({minor} minor, {major} major) where {allowed or 'no'} minor "
        f"fault{'s are' if allowed != 1 else ' is'} allowed{first}; {hint}"
    )
    error.minor, error.major, error.where = minor, major, where
    _fill(error, "page fault", {}, hint)
    return error


def prefault_error(op: str, requested: int, available: int | None, hint: str) -> CommitError:
    """Make the exception for stack or heap that cannot be had."""
    there = "" if available is None else f": {amount(available)} are left"
    error = CommitError(_errno.ENOMEM, f"cannot make {amount(requested)} of {op} memory present{there}; {hint}")
    numbers = {"offset": None, "requested": requested, "committed": 0, "available": available}
    _fill(error, op, numbers, hint)
    return error


def pool_empty_error(nbytes: int, count: int) -> ArenaFullError:
    """Make the exception for a pool whose blocks are all taken."""
    hint = "put() blocks back, or make it larger"
    error = ArenaFullError(f"all {count} blocks of the pool, of {amount(nbytes)} each, are taken; {hint}")
    _fill(error, "take", {"requested": nbytes, "available": 0}, hint)
    return error


def alive(blocks: list[tuple[int, int]]) -> str:
    """Say which blocks, as (offset, nbytes), keep an arena from being closed."""
    n = len(blocks)
    which = ", ".join(f"{amount(nbytes)} at offset {offset}" for offset, nbytes in blocks[:8])
    more = "" if n <= 8 else f", and {n - 8} more"
    total = amount(sum(nbytes for _, nbytes in blocks))
    return (
        f"{n} block{'s' * (n != 1)} of {total} in all {'are' if n != 1 else 'is'} alive: {which}{more}; drop what "
        "holds them, or close() without strict: what is alive stays alive"
    )
