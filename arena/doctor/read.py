"""Reads the facts from /proc, /sys and by asking the kernel. No side effects; nothing here raises or judges."""

from __future__ import annotations

import os
import re
import resource

from .. import _core
from .cgroups import cpu_groups, hugetlb_groups, memory_groups
from .facts import Facts, Huge, Limit, Machine, Node, Pool, Process, Scheduling, Shm
from .files import Files, cpus_of, fields_of
from .place import place_of, read_signs

__all__ = ["LIMITS", "read_facts"]

LIMITS = ("RLIMIT_MEMLOCK", "RLIMIT_AS", "RLIMIT_DATA", "RLIMIT_FSIZE", "RLIMIT_STACK", "RLIMIT_RTPRIO", "RLIMIT_NICE")

_THP = "/sys/kernel/mm/transparent_hugepage"
_POOLS = "/sys/kernel/mm/hugepages"
_NODES = "/sys/devices/system/node"


def read_facts() -> Facts:
    files = Files()
    huge = _huge(files)
    return Facts(
        place=place_of(read_signs(files)),
        answers=_core._probe(),
        machine=_machine(files),
        process=_process(files),
        memory_groups=memory_groups(files),
        hugetlb_groups=hugetlb_groups(files, tuple(pool.page for pool in huge.pools)),
        cpu_groups=cpu_groups(files),
        huge=huge,
        scheduling=_scheduling(files),
        shm=_shm(files),
        unread=files.unread,
    )


def _kib(fields: dict[str, str], key: str) -> int | None:
    number = fields.get(key, "").partition(" ")[0]
    return int(number) << 10 if number.isdigit() else None


def _machine(files: Files) -> Machine:
    memory = fields_of(files.text("/proc/meminfo"))
    swaps = (files.text("/proc/swaps") or "").splitlines()[1:]
    nodes = []
    for number in cpus_of(files.text(f"{_NODES}/online")):
        text = files.text(f"{_NODES}/node{number}/meminfo") or ""
        of_node = fields_of(re.sub(r"^Node \d+ ", "", text, flags=re.MULTILINE))
        nodes.append(Node(number, _kib(of_node, "MemTotal"), _kib(of_node, "MemFree")))
    kernel = os.uname()
    return Machine(
        release=kernel.release,
        version=kernel.version,
        virtual=re.search(r"^flags\s*:.*\bhypervisor\b", files.text("/proc/cpuinfo") or "", re.MULTILINE) is not None,
        total=_kib(memory, "MemTotal"),
        available=_kib(memory, "MemAvailable"),
        overcommit=files.number("/proc/sys/vm/overcommit_memory"),
        commit_limit=_kib(memory, "CommitLimit"),
        committed=_kib(memory, "Committed_AS"),
        swap_total=_kib(memory, "SwapTotal"),
        swap_free=_kib(memory, "SwapFree"),
        swaps=tuple(line.split()[0] for line in swaps if line.strip()),
        swappiness=files.number("/proc/sys/vm/swappiness"),
        max_map_count=files.number("/proc/sys/vm/max_map_count"),
        numa_balancing=files.number("/proc/sys/kernel/numa_balancing"),
        compact_unevictable=files.number("/proc/sys/vm/compact_unevictable_allowed"),
        nodes=tuple(nodes),
    )


def _process(files: Files) -> Process:
    status = fields_of(files.text("/proc/self/status"))
    maps = files.text("/proc/self/maps")

    def bits(key: str) -> int | None:
        return int(status[key], 16) if re.fullmatch("[0-9a-f]+", status.get(key, "")) else None

    return Process(
        size=_kib(status, "VmSize"),
        locked=_kib(status, "VmLck"),
        data=_kib(status, "VmData"),
        mappings=None if maps is None else maps.count("\n"),
        effective=bits("CapEff"),
        bounding=bits("CapBnd"),
        limits=_limits(files),
    )


def _limits(files: Files) -> dict[str, Limit]:
    found = {}
    for name in LIMITS:
        try:
            soft, hard = resource.getrlimit(getattr(resource, name))
        except OSError as error:
            files.unread[name] = error.strerror or str(error)
        else:
            found[name] = Limit(*(None if n == resource.RLIM_INFINITY else n for n in (soft, hard)))
    return found


def _huge(files: Files) -> Huge:
    sizes = {}
    for name in files.names(_THP):
        size = re.fullmatch(r"hugepages-(\d+)kB", name)
        # Some sizes are for shared memory only.
        if size and "enabled" in files.names(f"{_THP}/{name}"):
            sizes[int(size[1]) << 10] = files.chosen(f"{_THP}/{name}/enabled") or ""
    return Huge(
        enabled=files.chosen(f"{_THP}/enabled"),
        defrag=files.chosen(f"{_THP}/defrag"),
        shmem=files.chosen(f"{_THP}/shmem_enabled"),
        sizes=dict(sorted(sizes.items())),
        pools=_pools(files),
    )


def _pools(files: Files) -> tuple[Pool, ...]:
    found = []
    for name in files.names(_POOLS):
        size = re.fullmatch(r"hugepages-(\d+)kB", name)
        if not size:
            continue
        n = {
            key: files.number(f"{_POOLS}/{name}/{key}") or 0
            for key in (
                "nr_hugepages",
                "free_hugepages",
                "resv_hugepages",
                "surplus_hugepages",
                "nr_overcommit_hugepages",
            )
        }
        nodes = []
        for number in cpus_of(files.text(f"{_NODES}/online")):
            at = f"{_NODES}/node{number}/hugepages/{name}"
            total, free = (files.number(f"{at}/{key}") for key in ("nr_hugepages", "free_hugepages"))
            if total is not None and free is not None:
                nodes.append((number, total, free))
        found.append(
            Pool(
                page=int(size[1]) << 10,
                total=n["nr_hugepages"],
                free=n["free_hugepages"],
                reserved=n["resv_hugepages"],
                overcommit=max(n["nr_overcommit_hugepages"] - n["surplus_hugepages"], 0),
                nodes=tuple(nodes),
                path=f"{_POOLS}/{name}",
            )
        )
    return tuple(sorted(found, key=lambda pool: pool.page))


def _scheduling(files: Files) -> Scheduling:
    try:
        cpus = tuple(sorted(os.sched_getaffinity(0)))
    except OSError:
        cpus = ()
    return Scheduling(
        realtime_kernel=files.number("/sys/kernel/realtime") == 1 or "PREEMPT_RT" in os.uname().version,
        cpus=cpus,
        online=cpus_of(files.text("/sys/devices/system/cpu/online")),
        isolated=cpus_of(files.text("/sys/devices/system/cpu/isolated")),
        rt_runtime=files.number("/proc/sys/kernel/sched_rt_runtime_us"),
        rt_period=files.number("/proc/sys/kernel/sched_rt_period_us"),
        perf_paranoid=files.number("/proc/sys/kernel/perf_event_paranoid"),
    )


def _shm(files: Files) -> Shm:
    try:
        if not os.path.ismount("/dev/shm"):
            raise FileNotFoundError(2, "no file system is mounted there")
        found = os.statvfs("/dev/shm")
    except OSError as error:
        files.unread["/dev/shm"] = error.strerror or str(error)
        return Shm()
    # A tmpfs without a size has no blocks.
    return Shm(found.f_blocks * found.f_frsize or None, found.f_bavail * found.f_frsize)
