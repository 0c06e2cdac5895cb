"""How much memory and address space there is, and who counts it."""

from __future__ import annotations

from collections.abc import Iterator

from .. import advice
from ..errors import amount
from .facts import Facts
from .finding import Finding, Use, Verdict, among, limited, unknown

__all__ = ["CHUNK", "findings"]

CHUNK = 2 << 20
"""Bytes that an arena commits at once. Where not even those can be had, every use is blocked."""

_SPACE = 16 << 20
"""Address space for a small arena and its index."""


def findings(f: Facts, use: Use | None) -> Iterator[Finding]:
    yield _available(f)
    yield from _cgroup(f)
    yield _overcommit(f)
    yield _address_space(f, "RLIMIT_AS", f.process.size, "A reservation is address space, and counts whole")
    yield _address_space(f, "RLIMIT_DATA", f.process.data, "Committed private memory counts")
    yield _mappings(f)
    yield _swap(f, use)
    yield from _numa(f, use)


def _level(left: int, enough: int = CHUNK) -> Verdict:
    return "blocks you" if left < enough else "limits you"


def _available(f: Facts) -> Finding:
    m = f.machine
    if m.available is None or m.total is None:
        return unknown("memory", "MemAvailable", f.unread, "/proc/meminfo")
    value = f"{amount(m.available)} of {amount(m.total)}"
    if m.available < max(m.total // 20, CHUNK):
        reason = "The machine is nearly full; memory past this is the OOM killer's, so a commit of more is refused."
        return Finding("memory", "MemAvailable", value, _level(m.available), reason)
    return Finding("memory", "MemAvailable", value, "good", "A commit of more is refused before the OOM killer is met.")


def _cgroup(f: Facts) -> Iterator[Finding]:
    limits = [group for group in f.memory_groups if group.limit is not None]
    hard = [group for group in limits if not group.path.endswith("memory.high")]
    for name, groups in (("memory cgroup", hard), ("memory.high", [g for g in limits if g not in hard])):
        tight = min(groups, key=lambda group: group.left or 0, default=None)
        if name == "memory cgroup" and name in f.unread:
            reason = (
                f"A limit of it cannot be seen ({f.unread[name]}), and memory past it is a SIGKILL and no error: mount "
                "the cgroup file system at /sys/fs/cgroup, or commit no more than what is known to be the limit."
            )
            yield Finding("memory", name, "cannot be seen", "limits you", reason)
            name = "memory cgroup above"
        if tight is None:
            if name == "memory cgroup":
                yield Finding("memory", name, "no limit", "good", "No memory cgroup of this process has a limit.")
            continue
        limit, left = tight.limit or 0, tight.left or 0
        value = f"{amount(left)} left of {amount(limit)}"
        wanted = max(2 * limit, 1 << 30)
        if name == "memory.high":
            reason = f"Past it threads are stopped to reclaim memory, so a commit of more is refused ({tight.path})."
            line = advice.memory(f.place, tight.path, wanted)
            yield Finding("memory", name, value, _level(left), reason, line)
        elif f.machine.total is not None and limit >= f.machine.total and left >= CHUNK:
            yield Finding("memory", name, value, "good", f"It is no tighter than the machine ({tight.path}).")
        else:
            reason = f"Memory past it is a SIGKILL, so a commit of more is refused ({tight.path})."
            yield Finding("memory", name, value, _level(left), reason, advice.memory(f.place, tight.path, wanted))


def _overcommit(f: Facts) -> Finding:
    m, name = f.machine, "vm.overcommit_memory"
    if m.overcommit is None:
        return unknown("memory", name, f.unread, "/proc/sys/vm/overcommit_memory")
    if m.overcommit != 2:
        meaning = "0 (heuristic)" if m.overcommit == 0 else "1 (always)"
        return Finding("memory", name, meaning, "good", "Reservations are not charged for, whatever their size.")
    if m.commit_limit is None or m.committed is None:
        return unknown("memory", name, f.unread, "/proc/meminfo")
    left = max(m.commit_limit - m.committed, 0)
    value = f"2 (never): {amount(left)} left of {amount(m.commit_limit)}"
    reason = "Commits are charged against CommitLimit, as is a fork's copy of all private memory, and refused past it."
    return Finding("memory", name, value, _level(left), reason, advice.sysctl(f.place, name, 0))


def _address_space(f: Facts, name: str, used: int | None, counts: str) -> Finding:
    if name in f.unread:
        return unknown("memory", name, f.unread, name)
    soft = f.limit(name).soft
    if soft is None:
        return Finding("memory", name, "unlimited", "good", f"{counts}, and may be as large as it likes.")
    if used is None:
        return unknown("memory", name, f.unread, "/proc/self/status")
    left = max(soft - used, 0)
    enough = _SPACE if name == "RLIMIT_AS" else CHUNK
    value, line = f"{amount(left)} left of {limited(soft)}", advice.rlimit(f.place, name, f.hard(name))
    return Finding("memory", name, value, _level(left, enough), f"{counts}, and is refused past this.", line)


def _mappings(f: Facts) -> Finding:
    name, most, now = "vm.max_map_count", f.machine.max_map_count, f.process.mappings
    if most is None or now is None:
        path = "/proc/sys/vm/max_map_count" if most is None else "/proc/self/maps"
        return unknown("memory", name, f.unread, path)
    value = f"{now:,} mappings of {most:,}"
    if most - now < max(most // 10, 16):
        verdict: Verdict = "blocks you" if most - now < 16 else "limits you"
        reason = "Each reservation is at least one mapping, and mmap() and madvise() fail when there are no more."
        return Finding("memory", name, value, verdict, reason, advice.sysctl(f.place, name, max(4 * most, 262144)))
    return Finding("memory", name, value, "good", "There is room for more mappings.")


def _swap(f: Facts, use: Use | None) -> Finding:
    m = f.machine
    if m.swap_total is None or m.swap_free is None:
        return unknown("memory", "swap", f.unread, "/proc/meminfo")
    if m.swap_total == 0:
        return Finding("memory", "swap", "none", "good", "Private memory that is present stays present.")
    used, devices = m.swap_total - m.swap_free, ", ".join(m.swaps)
    value = f"{amount(m.swap_total)} ({devices or 'of the host'}), {amount(used)} used, swappiness {m.swappiness}"
    if any("zram" in device for device in m.swaps):
        value += ", compressed in memory"
    if f.lockable is None:
        return Finding(
            "memory", "swap", value, "information", "Locked memory is never swapped, and it may be locked here."
        )
    reason = (
        "Committed memory that lies idle may be swapped out, and faults when it is next touched, unless it is locked."
    )
    line = advice.sysctl(f.place, "vm.swappiness", 1) if (m.swappiness or 0) > 1 else None
    return Finding("memory", "swap", value, among(use, "realtime"), reason, line if use == "realtime" else None)


def _numa(f: Facts, use: Use | None) -> Iterator[Finding]:
    nodes = f.machine.nodes
    if not nodes:
        yield unknown("memory", "NUMA", f.unread, "/sys/devices/system/node/online")
        return
    free = ", ".join(f"node {n.number}: {limited(n.free) if n.free is not None else '?'} free" for n in nodes)
    reason = (
        "With one node all memory is equally near." if len(nodes) == 1 else "node= says which node memory comes from."
    )
    yield Finding("memory", "NUMA", f"{len(nodes)} node{'s' * (len(nodes) > 1)}; {free}", "information", reason)
    if len(nodes) > 1 and f.answers.get("mbind"):
        reason = "mbind() is refused to this process, so node= cannot be had."
        yield Finding(
            "memory",
            "mbind",
            "no",
            among(use, None, "realtime", "numpy"),
            reason,
            advice.run_with(f.place, "", "SYS_NICE"),
        )
    if len(nodes) > 1 and f.machine.numa_balancing:
        name = "kernel.numa_balancing"
        reason = "Pages are unmapped now and then to see who uses them: faults in memory that is there, locked or not."
        line = advice.sysctl(f.place, name, 0) if use == "realtime" else None
        yield Finding("memory", name, "on", among(use, "realtime"), reason, line)
