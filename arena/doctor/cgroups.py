"""The cgroups of this process, v1 and v2: its own, and those above it, as csrc/preflight.c finds them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .files import Files, fields_of

__all__ = ["CpuGroup", "HugetlbGroup", "MemoryGroup", "cpu_groups", "hugetlb_groups", "memory_groups"]


@dataclass(frozen=True)
class MemoryGroup:
    """Bytes; None: no limit."""

    path: str
    """The file that says the limit."""
    limit: int | None
    usage: int
    cache: int
    """Of the usage: file pages, which are given back when they are needed."""

    @property
    def left(self) -> int | None:
        return None if self.limit is None else max(self.limit - max(self.usage - self.cache, 0), 0)


@dataclass(frozen=True)
class HugetlbGroup:
    path: str
    page: int
    limit: int | None
    usage: int


@dataclass(frozen=True)
class CpuGroup:
    path: str
    """The file that says the quota."""
    quota: int | None
    """Microseconds of CPU time in each period; None: no limit."""
    period: int
    rt_runtime: int | None = None
    """v1: microseconds for real-time tasks in each period; None: there is no such limit."""


def _unescape(word: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), word)


def _folders(files: Files, controller: str) -> Iterator[tuple[str, bool]]:
    """Each folder, the process's own first, and whether it is of v1."""
    own: dict[str, str] = {}
    for line in (files.text("/proc/self/cgroup") or "").splitlines():
        _, names, path = [*line.split(":", 2), "", ""][:3]
        own.update(dict.fromkeys(names.split(","), path))
    for line in (files.text("/proc/self/mountinfo") or "").splitlines():
        before, _, after = line.partition(" - ")
        left, right = before.split(), after.split()
        if len(left) < 5 or not right or right[0] not in ("cgroup", "cgroup2"):
            continue
        v1 = right[0] == "cgroup"
        if v1 and controller not in right[-1].split(","):
            continue
        key = controller if v1 else ""
        if key not in own:
            continue
        # In a container the mount shows a subtree, and the path may begin above it.
        path, root, mount = own[key], _unescape(left[3]), _unescape(left[4]).rstrip("/")
        if root != "/":
            path = path[len(root) :] if path.startswith(root) else ""
        parts = [part for part in path.split("/") if part]
        for n in range(len(parts), -1, -1):
            yield "/".join([mount, *parts[:n]]), v1


def _limit(files: Files, path: str) -> int | None:
    n = files.number(path)
    return None if n is None or n >= 1 << 62 else n  # v1's way to say that there is none


def memory_groups(files: Files) -> tuple[MemoryGroup, ...]:
    """Those that have a limit; one with both memory.max and memory.high is there twice."""
    found: list[MemoryGroup] = []
    for folder, v1 in _folders(files, "memory"):
        names = ("memory.limit_in_bytes",) if v1 else ("memory.max", "memory.high")
        limits = {name: _limit(files, f"{folder}/{name}") for name in names}
        usage = files.number(f"{folder}/{'memory.usage_in_bytes' if v1 else 'memory.current'}")
        if usage is None or all(limit is None for limit in limits.values()):
            continue
        stat = fields_of(files.text(f"{folder}/memory.stat"))
        prefix = "total_" if v1 else ""
        cache = sum(int(stat.get(f"{prefix}{kind}_file", 0)) for kind in ("active", "inactive"))
        found += [MemoryGroup(f"{folder}/{name}", n, usage, cache) for name, n in limits.items() if n is not None]
    return tuple(found)


def _size(page: int) -> str:
    kib = page >> 10
    return f"{kib}KB" if kib < 1024 else f"{kib >> 10}MB" if kib < 1 << 20 else f"{kib >> 20}GB"


def hugetlb_groups(files: Files, pages: tuple[int, ...]) -> tuple[HugetlbGroup, ...]:
    """Those that have a limit, for huge pages of these sizes."""
    found: list[HugetlbGroup] = []
    for folder, v1 in _folders(files, "hugetlb"):
        for page in pages:
            name = f"{folder}/hugetlb.{_size(page)}"
            path = f"{name}.{'limit_in_bytes' if v1 else 'max'}"
            limit = _limit(files, path)
            usage = files.number(f"{name}.{'usage_in_bytes' if v1 else 'current'}")
            if limit is not None and usage is not None:
                found.append(HugetlbGroup(path, page, limit, usage))
    return tuple(found)


def cpu_groups(files: Files) -> tuple[CpuGroup, ...]:
    found: list[CpuGroup] = []
    for folder, v1 in _folders(files, "cpu"):
        if v1:
            path = f"{folder}/cpu.cfs_quota_us"
            quota, period = files.number(path), files.number(f"{folder}/cpu.cfs_period_us")
            rt = files.number(f"{folder}/cpu.rt_runtime_us")
        else:
            path, rt = f"{folder}/cpu.max", None
            words = (files.word(path) or "").split()
            quota, period = (int(word) if word.isdigit() else None for word in (words if len(words) == 2 else "--"))
        if period:
            found.append(CpuGroup(path, quota if quota is not None and quota > 0 else None, period, rt))
    return tuple(found)
