"""The exceptions of this package, and the sentences that say what to do.

Each carries ``errno``, ``op`` (the step that failed), ``offset``, ``requested``, ``committed`` and ``available``
(bytes; None where it is not known) and ``hint``.
"""

from __future__ import annotations

import errno as _errno
import os as _os

__all__ = ["ArenaError", "ArenaFullError", "CommitError", "ReserveError"]

_EHWPOISON = 133  # in the errno module from Python 3.14 on


class ArenaError(Exception):
    """What the errors of this package share. Not raised by itself."""

    op: str = ""
    offset: int | None = None
    requested: int | None = None
    committed: int | None = None
    available: int | None = None
    hint: str = ""


class CommitError(ArenaError, OSError, MemoryError):
    """The memory could not be made present; what the call had populated was given back."""


class ReserveError(ArenaError, OSError, MemoryError):
    """Address space, or the right to it, could not be had."""


class ArenaFullError(ArenaError, MemoryError):
    """No free range (``grow=False``: no committed one) is that large; ``available`` is the largest."""

    errno: int = _errno.ENOSPC


def _fill(error: ArenaError, op: str, numbers: dict[str, int | None], hint: str) -> None:
    error.op = op
    error.hint = hint
    for name, value in numbers.items():
        setattr(error, name, value)


def amount(n: int | None) -> str:
    """``1536`` as ``"1.5 KiB"``."""
    if n is None:
        return "an unknown amount"
    if n < 1024:
        return f"{n} bytes"
    power = min((n.bit_length() - 1) // 10, 4)
    return f"{n / 1024**power:.4g} {'KMGT'[power - 1]}iB"


def _commit_hint(err: int, op: str, where: str) -> str:
    if op == "preflight" or (err == _errno.ENOMEM and where and "MADV" in op):
        if "meminfo" in where:
            return "the machine has no more memory: ask for less, lower `headroom`, or free memory elsewhere"
        return f"raise the memory cgroup's limit ({where}; docker run --memory, systemd MemoryMax=) or ask for less"
    if op == "mprotect":
        return (
            "the commit charge was refused: vm.overcommit_memory=2 (raise vm.overcommit_ratio or _kbytes) "
            "or RLIMIT_DATA (ulimit -d)"
        )
    if err == _errno.ENOMEM:
        return "the kernel has no memory for it (or vm.max_map_count is reached): ask for less or free memory elsewhere"
    if err == _errno.EINTR:
        return "this is the child of a fork that was made in the middle of it: commit again"
    if err == _errno.EFAULT:
        return "the memory behind the range cannot be had"
    if err == _EHWPOISON:
        return "a page of it has a hardware error: do not use this range, and see the kernel's log"
    return "see the errno"


def _reserve_hint(err: int, op: str, overcommit: int) -> str:
    if err == _errno.ENOTSUP:
        return "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled (as root), or pages='4K'"
    if err == _errno.EAGAIN:
        return "mlockall(MCL_FUTURE) is on and RLIMIT_MEMLOCK is smaller than the reservation: raise it (ulimit -l)"
    if err == _errno.ENOMEM and overcommit == 2:
        return "vm.overcommit_memory=2 refuses it: raise vm.overcommit_ratio, or reserve less"
    if err == _errno.ENOMEM:
        return "address space is limited: raise RLIMIT_AS (ulimit -v) or vm.max_map_count, or reserve less"
    return f"{op} failed"


def commit_error(err: int, op: str, where: str, numbers: dict[str, int | None]) -> CommitError:
    """The exception for a commit that failed with this errno at this step."""
    hint = _commit_hint(err, op, where)
    available = numbers["available"]
    there = "" if available is None else f", {amount(available)} available ({where or 'the kernel'})"
    error = CommitError(
        err,
        f"cannot commit {amount(numbers['requested'])} at offset {numbers['offset']}: {op} says "
        f"{_os.strerror(err)}; {amount(numbers['committed'])} committed{there}; {hint}",
    )
    _fill(error, op, numbers, hint)
    return error


def reserve_error(err: int, op: str, numbers: dict[str, int | None], overcommit: int) -> ReserveError:
    """The exception for a reservation that failed with this errno at this step."""
    hint = _reserve_hint(err, op, overcommit)
    error = ReserveError(err, f"cannot reserve {amount(numbers['requested'])}: {op} says {_os.strerror(err)}; {hint}")
    _fill(error, op, numbers, hint)
    return error


def full_error(numbers: dict[str, int | None], *, grow: bool) -> ArenaFullError:
    """The exception for an allocation that no free range is large enough for."""
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
