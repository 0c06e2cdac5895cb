"""The facts, as the kernel has them. Sizes are in bytes. None means that a fact cannot be told; Facts.unread says why.

Judging takes facts and reads nothing, so what it makes of a machine can be tested without that machine.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .cgroups import CpuGroup, HugetlbGroup, MemoryGroup
from .place import Place

__all__ = ["CAPABILITIES", "Facts", "Huge", "Limit", "Machine", "Node", "Pool", "Process", "Scheduling", "Shm"]

# Bits of CapEff and CapBnd, linux/capability.h.
CAPABILITIES = {"CAP_IPC_LOCK": 14, "CAP_SYS_ADMIN": 21, "CAP_SYS_NICE": 23, "CAP_SYS_RESOURCE": 24, "CAP_PERFMON": 38}


@dataclass(frozen=True)
class Limit:
    """A resource limit; None is unlimited."""

    soft: int | None = None
    hard: int | None = None


@dataclass(frozen=True)
class Node:
    number: int
    total: int | None
    free: int | None


@dataclass(frozen=True)
class Machine:
    release: str = ""
    """The kernel's release, as uname -r says it."""
    version: str = ""
    """The kernel's version, as uname -v says it."""
    virtual: bool = False
    """Whether a hypervisor is below."""
    total: int | None = None
    available: int | None = None
    """MemAvailable."""
    overcommit: int | None = None
    """vm.overcommit_memory."""
    commit_limit: int | None = None
    committed: int | None = None
    """Committed_AS."""
    swap_total: int | None = None
    swap_free: int | None = None
    swaps: tuple[str, ...] = ()
    swappiness: int | None = None
    max_map_count: int | None = None
    numa_balancing: int | None = None
    compact_unevictable: int | None = None
    nodes: tuple[Node, ...] = ()


@dataclass(frozen=True)
class Process:
    size: int | None = None
    """VmSize: what RLIMIT_AS counts, and what mlockall(MCL_CURRENT) would lock."""
    locked: int | None = None
    """VmLck: what RLIMIT_MEMLOCK counts."""
    data: int | None = None
    """VmData: what RLIMIT_DATA counts."""
    mappings: int | None = None
    effective: int | None = None
    """CapEff."""
    bounding: int | None = None
    """CapBnd."""
    limits: Mapping[str, Limit] = field(default_factory=dict)


@dataclass(frozen=True)
class Pool:
    """A pool of hugetlb pages. Its numbers count pages, not bytes."""

    page: int
    """The size of a page, in bytes."""
    total: int
    free: int
    reserved: int
    """How many are promised to mappings, though they still count as free."""
    overcommit: int
    """How many the kernel may still add by itself."""
    nodes: tuple[tuple[int, int, int], ...] = ()
    """The number of each NUMA node, and its total and free pages."""
    path: str = ""

    @property
    def left(self) -> int:
        return max(self.free - self.reserved, 0) + self.overcommit


@dataclass(frozen=True)
class Huge:
    """Transparent huge pages: the word chosen in each file of /sys/kernel/mm/transparent_hugepage."""

    enabled: str | None = None
    defrag: str | None = None
    shmem: str | None = None
    sizes: Mapping[int, str] = field(default_factory=dict)
    """The word of each size of mTHP, by its bytes."""
    pools: tuple[Pool, ...] = ()


@dataclass(frozen=True)
class Scheduling:
    realtime_kernel: bool = False
    """Whether the kernel was built with PREEMPT_RT."""
    cpus: tuple[int, ...] = ()
    """The CPUs that this thread may run on."""
    online: tuple[int, ...] = ()
    isolated: tuple[int, ...] = ()
    rt_runtime: int | None = None
    rt_period: int | None = None
    perf_paranoid: int | None = None


@dataclass(frozen=True)
class Shm:
    """The bytes of /dev/shm. Both are None where there is no such mount; ``total`` is, where the mount has no limit."""

    total: int | None = None
    free: int | None = None


@dataclass(frozen=True)
class Facts:
    place: Place = field(default_factory=Place)
    answers: Mapping[str, int] = field(default_factory=dict)
    """What _core._probe() says."""
    machine: Machine = Machine()
    process: Process = Process()
    memory_groups: tuple[MemoryGroup, ...] = ()
    hugetlb_groups: tuple[HugetlbGroup, ...] = ()
    cpu_groups: tuple[CpuGroup, ...] = ()
    huge: Huge = Huge()
    scheduling: Scheduling = Scheduling()
    shm: Shm = Shm()
    unread: Mapping[str, str] = field(default_factory=dict)
    """Why a file could not be read, by its path."""

    def has(self, capability: str) -> bool:
        """Whether the process has a capability, where the kernel asks for it."""
        bits = self.process.effective or 0
        return not self.place.user_namespace and bool(bits >> CAPABILITIES[capability] & 1)

    def limit(self, name: str) -> Limit:
        return self.process.limits.get(name, Limit())

    def hard(self, name: str) -> int | None:
        """Return how far this process may raise a limit of its own; None is without end."""
        return None if self.has("CAP_SYS_RESOURCE") else self.limit(name).hard

    @property
    def lockable(self) -> int | None:
        """How many more bytes may be locked; None is no limit."""
        soft = self.limit("RLIMIT_MEMLOCK").soft
        if soft is None or self.has("CAP_IPC_LOCK"):
            return None
        return max(soft - (self.process.locked or 0), 0)
