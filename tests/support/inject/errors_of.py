"""Which errors a call can fail with, and so which cases a scenario has."""

from __future__ import annotations

import enum
import errno as e
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


class Instead(enum.IntEnum):
    """enum instead of inject.h: the call succeeds, but with something else."""

    NOTHING = 1001
    BINARY = 1002
    ZERO_BYTES = 1003
    MINUS_ONE = 1004
    HALF = 1005
    NINES = 1006
    ENDLESS = 1007
    FEW = 1008


CONTENTS = [*Instead][:-1]
_TRANSFER = [e.EIO, e.EINTR, Instead.NOTHING, Instead.FEW]

# Those that come first are the likely ones: they are the ones that are also injected for ever.
ERRORS: dict[str, list[int]] = {
    "aligned_alloc": [e.ENOMEM],
    "calloc": [e.ENOMEM],
    "close": [e.EINTR, e.EIO],
    "fallocate": [e.ENOSPC, e.EINTR, e.EOPNOTSUPP, e.EIO, e.EPERM, e.ENOSYS],
    "fcntl": [e.EMFILE, e.EINVAL, e.ENOLCK, e.EINTR, e.EPERM, e.EAGAIN],
    "fstat": [e.EIO, e.ENOMEM],
    "fstatfs": [e.ENOSYS, e.EIO],
    "fstatvfs": [e.EIO],
    "ftruncate": [e.EFBIG, e.EINTR, e.ENOSPC, e.EIO],
    "getrlimit": [e.EINVAL],
    "ioctl": [e.ENOTTY, e.ENOMEM, e.EINVAL],
    "linkat": [e.EEXIST, e.EPERM, e.ENOENT],
    "lseek": [e.EINVAL, e.ENXIO],
    "lstat": [e.ENOENT],
    "madvise": [e.ENOMEM, e.EINVAL, e.EIO, e.EPERM, e.EAGAIN],
    "malloc": [e.ENOMEM],
    "memfd_create": [e.EMFILE, e.ENOMEM, e.ENOSYS, e.EINVAL],
    "mincore": [e.ENOMEM, e.EAGAIN, e.ENOSYS],
    "mkostemp": [e.EACCES, e.EMFILE],
    "mlock": [e.ENOMEM, e.EPERM],
    "mlockall": [e.ENOMEM, e.EPERM],
    "mmap": [e.ENOMEM, e.EAGAIN, e.EPERM],
    "mprotect": [e.ENOMEM, e.EACCES],
    "mremap": [e.ENOMEM, e.EAGAIN],
    "msync": [e.EIO, e.ENOSPC],
    "munlock": [e.ENOMEM, e.EPERM],
    "munlockall": [e.EPERM],
    "munmap": [e.ENOMEM],
    "open": [e.EMFILE, e.ENOENT, e.EACCES, e.EINTR],
    "prctl": [e.EINVAL, e.ENOMEM],
    "pread": _TRANSFER,
    "process_vm_readv": [e.EPERM, e.ENOSYS, e.EFAULT, e.EINTR],
    "process_vm_writev": [e.EPERM, e.ENOSYS, e.EFAULT, e.EINTR],
    "pthread_create": [e.EAGAIN],
    "pthread_getattr_np": [e.ENOMEM],
    "pwrite": [e.EIO, e.ENOSPC, e.EINTR, Instead.FEW],
    "pwritev": [e.EIO, e.ENOSPC, e.EINTR, Instead.FEW],
    "read": _TRANSFER,
    "realloc": [e.ENOMEM],
    "sched_getaffinity": [e.EINVAL],
    "sched_setaffinity": [e.EINVAL, e.EPERM],
    "sched_setscheduler": [e.EPERM, e.EINVAL],
    "stat": [e.ENOENT, e.ENOMEM],
    "strdup": [e.ENOMEM],
    "syscall": [e.ENOMEM, e.EAGAIN, e.EPERM, e.ENOSYS, e.EINVAL],
    "unlink": [e.EIO],
    "unlinkat": [e.EIO],
}

FROM_PYTHON = "os."
"""The calls of Python code have it before their names."""
FOR_EVER = 10**9
_MADE_UP = 1
"""The variant of an open of a file in /proc or /sys."""


@dataclass(frozen=True)
class Case:
    scenario: str
    index: int
    name: str
    variant: int
    error: int
    repeat: int

    def __str__(self) -> str:
        error = e.errorcode.get(self.error) or Instead(self.error).name
        often = "once" if self.repeat == 1 else "from then on"
        return f"{self.scenario}: call {self.index}, {self.name}[{self.variant}], {error} {often}"


def errors(name: str, variant: int) -> Sequence[int]:
    if name.startswith(FROM_PYTHON):  # which tries again at EINTR by itself
        return [error for error in ERRORS.get(name.removeprefix(FROM_PYTHON), []) if error != e.EINTR]
    found = ERRORS.get(name, [])
    return [*found, *CONTENTS] if name == "open" and variant == _MADE_UP else found


def _may_last(name: str, rank: int, error: int) -> bool:
    """EINTR and EAGAIN are answered by another try, for as long as it takes: that is no hang."""
    if error == e.EINTR or error >= Instead.NOTHING:
        return False
    return rank < 3 and not (error == e.EAGAIN and name in ("fcntl", "syscall", "madvise"))


def _spread(indices: list[int], most: int) -> list[int]:
    """So many of them, the first and the last included: a loop over pages makes thousands of calls that are alike."""
    if len(indices) <= most:
        return indices
    step = (len(indices) - 1) / max(most - 1, 1)
    return [indices[round(i * step)] for i in range(most)]


def cases(scenario: str, trace: Sequence[tuple[str, int]], most_of_a_kind: int) -> Iterator[Case]:
    """The cases of a scenario that makes these calls, of at most so many calls of each name and variant."""
    kinds: defaultdict[tuple[str, int], list[int]] = defaultdict(list)
    for index, call in enumerate(trace, 1):
        kinds[call].append(index)
    for (name, variant), indices in kinds.items():
        for index in _spread(indices, most_of_a_kind):
            for rank, error in enumerate(errors(name, variant)):
                yield Case(scenario, index, name, variant, error, 1)
                if _may_last(name, rank, error):
                    yield Case(scenario, index, name, variant, error, FOR_EVER)
