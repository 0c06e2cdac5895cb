"""The cgroups of this process, v1 and v2: its own, and those above it, as the core finds them for its commits."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from .. import _core
from .files import Files

__all__ = ["CpuGroup", "HugetlbGroup", "MemoryGroup", "cpu_groups", "hugetlb_groups", "memory_groups"]


@dataclass(frozen=True)
class MemoryGroup:
    """A memory cgroup, in bytes. A limit of None is no limit."""

    path: str
    """The file that says the limit."""
    limit: int | None
    usage: int
    cache: int
    """Bytes of ``usage`` that are file pages: the kernel takes them back when they are needed."""

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
    """Microseconds of CPU time in each period; None is no limit."""
    period: int
    rt_runtime: int | None = None
    """Microseconds for real-time tasks in each period (cgroups v1); None is no limit."""


def _ask(files: Files, controller: str, page: int = 0) -> list[tuple[Any, ...]]:
    """Ask the core for cgroups. Where not all can be seen, ``files.unread`` says so under the controller's name."""
    answer, found = _core._cgroups(controller, page)
    if answer > 0:
        files.unread[f"{controller} cgroup"] = (
            "no mount shows the cgroup of this process (/proc/self/cgroup, /proc/self/mountinfo)"
        )
    elif answer < 0:
        files.unread[f"{controller} cgroup"] = os.strerror(-answer)
    return found


def memory_groups(files: Files) -> tuple[MemoryGroup, ...]:
    """Return all memory cgroups, the process's own first. One with both memory.max and memory.high is there twice."""
    found: list[MemoryGroup] = []
    for path, v1, seen, limit, high, usage, cache in _ask(files, "memory"):
        name = "memory.limit_in_bytes" if v1 else "memory.max"
        if seen:
            found.append(MemoryGroup(f"{path}/{name}", limit, usage, cache))
        if seen and high is not None:
            found.append(MemoryGroup(f"{path}/memory.high", high, usage, cache))
    return tuple(found)


def hugetlb_groups(files: Files, pages: tuple[int, ...]) -> tuple[HugetlbGroup, ...]:
    """Return the cgroups that limit huge pages of these sizes: the pages that are used, or those that are reserved."""
    return tuple(
        HugetlbGroup(path, page, limit, usage) for page in pages for path, limit, usage in _ask(files, "hugetlb", page)
    )


def cpu_groups(files: Files) -> tuple[CpuGroup, ...]:
    found: list[CpuGroup] = []
    for folder, v1 in _ask(files, "cpu"):
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
