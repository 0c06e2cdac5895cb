"""The same on other machines: where the kernel promises no memory that it does not have, and where it lacks a call."""

from __future__ import annotations

import errno

from .arenas import arena_4k, arena_lock, arena_memfd, arena_thp, warm
from .files import ext4, tmpfs, tmpfs_private
from .forks import fork
from .realtime import ring
from .reservations import progress, threads
from .scenario import Run, scenario

STRICT = ("/proc/sys/vm/overcommit_memory", "2")
POPULATE_READ, POPULATE_WRITE = 22, 23
FALLOC_PUNCH_HOLE_KEEP_SIZE = 3

# vm.overcommit_memory=2: a reservation may not be charged for whole, and is made writable piece by piece.
for name, run in {
    "strict_4k": arena_4k,
    "strict_warm": warm,
    "strict_lock": arena_lock,
    "strict_fork": fork("copy"),
    "strict_private_file": tmpfs_private,
    "strict_progress": progress,
}.items():
    scenario(name, plays=STRICT)(run)

# Before Linux 5.14 there is no populating, and each page is touched. What the kernel can is found out once, so these
# are the first in their process.
BEFORE_5_14 = (("madvise", POPULATE_READ, errno.EINVAL), ("madvise", POPULATE_WRITE, errno.EINVAL))
old: dict[str, Run] = {
    "old_4k": arena_4k,
    "old_thp": arena_thp,
    "old_memfd": arena_memfd,
    "old_tmpfs": tmpfs,
    "old_ext4": ext4,
    "old_lock": arena_lock,
    "old_fork": fork("copy"),
    "old_progress": progress,
    "old_threads": threads,
    "old_ring": ring,
}
for name, run in old.items():
    scenario(name, cold=True, always_fail=BEFORE_5_14)(run)

# A file system without holes.
scenario("no_holes", cold=True, always_fail=(("fallocate", FALLOC_PUNCH_HOLE_KEEP_SIZE, errno.EOPNOTSUPP),))(ext4)
# A file system that allocates nothing ahead.
scenario(
    "no_allocation", cold=True, always_fail=(("fallocate", 0, errno.EOPNOTSUPP), ("fallocate", 1, errno.EOPNOTSUPP))
)(tmpfs)
# First use: what is made and found out once.
scenario("first_4k", cold=True)(arena_4k)
scenario("first_memfd", cold=True)(arena_memfd)
scenario("first_warm", cold=True)(warm)
scenario("first_ring", cold=True)(ring)
