"""What the table measures, and what it needs of Linux that Python has not."""

from __future__ import annotations

import ctypes
import functools
import mmap
import os
from collections.abc import Callable

import _measure

__all__ = ["MAP_HUGE_2_MIB", "allocate", "mount_detached", "populate", "touch"]

MAP_HUGE_2_MIB = 0x40000 | 21 << 26  # MAP_HUGETLB, and log2 of the size

# The same numbers on every architecture; glibc has functions from 2.36 on only.
FSOPEN, FSCONFIG, FSMOUNT = 430, 431, 432
CLOSE_ON_EXEC, SET_STRING, CREATE = 1, 1, 6

_libc = ctypes.CDLL(None, use_errno=True)


@functools.cache
def _native() -> ctypes.CDLL:
    """_calls.c; its calls release the GIL."""
    size, flag = ctypes.c_size_t, ctypes.c_bool
    return _measure.load(
        "patch2021/_calls.c",
        {
            "timed_touch": (ctypes.c_int64, [ctypes.c_void_p, size, size, flag, flag]),
            "timed_populate": (ctypes.c_int64, [ctypes.c_void_p, size, flag]),
            "timed_fallocate": (ctypes.c_int64, [ctypes.c_int, ctypes.c_int64]),
        },
    )


def _checked(result: int, what: str) -> int:
    if result < 0:
        raise OSError(-result, f"{what}: {os.strerror(-result)}")
    return result


def _on(memory: mmap.mmap, call: Callable[..., int], *arguments: object) -> int:
    """A call on all of the memory, which is not exported any more afterwards: the traceback of a Ctrl-C keeps this
    frame, and the mapping is closed while it does."""
    first = ctypes.c_char.from_buffer(memory)
    try:
        return int(call(ctypes.addressof(first), len(memory), *arguments))
    finally:
        del first


def touch(memory: mmap.mmap, page: int, *, reading: bool, writing: bool) -> int:
    """Read, write, or read and write back the first byte of each ``page`` bytes; the nanoseconds it took.

    A page that cannot be had is a SIGBUS: whoever calls has looked whether there is room.
    """
    if page < 1:
        raise ValueError("a page has more than 0 bytes")
    return _on(memory, _native().timed_touch, page, reading, writing)


def populate(memory: mmap.mmap, *, writing: bool) -> int:
    """MADV_POPULATE_WRITE, or MADV_POPULATE_READ, over all of it; the nanoseconds it took. OSError as madvise(2) has
    it."""
    took = _on(memory, _native().timed_populate, writing)
    return _checked(took, "MADV_POPULATE_WRITE" if writing else "MADV_POPULATE_READ")


def allocate(fd: int, nbytes: int) -> int:
    """fallocate(2) of the file's first ``nbytes``; the nanoseconds it took. OSError as fallocate(2) has it."""
    return _checked(_native().timed_fallocate(fd, nbytes), "fallocate")


def mount_detached(kind: str, options: dict[str, str]) -> int:
    """A new file system that is mounted nowhere: a descriptor of its root, and the file system is gone with the last
    descriptor in it. OSError where that is not allowed (EPERM) or not known (ENOSYS, before Linux 5.2)."""
    fd = _system_call(f"fsopen {kind}", FSOPEN, kind.encode(), CLOSE_ON_EXEC)
    try:
        for key, value in options.items():
            _system_call(f"{kind} with {key}={value}", FSCONFIG, fd, SET_STRING, key.encode(), value.encode(), 0)
        _system_call(f"fsconfig {kind}", FSCONFIG, fd, CREATE, None, None, 0)
        return _system_call(f"fsmount {kind}", FSMOUNT, fd, CLOSE_ON_EXEC, 0)
    finally:
        os.close(fd)


def _system_call(what: str, number: int, *arguments: int | bytes | None) -> int:
    """As syscall(2): ints are longs there, whatever their size here."""
    longs = [ctypes.c_long(a) if isinstance(a, int) else ctypes.c_char_p(a) for a in arguments]
    result = int(_libc.syscall(ctypes.c_long(number), *longs))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return result
