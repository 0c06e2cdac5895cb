"""Huge pages: transparent ones, and the hugetlb pools."""

from __future__ import annotations

from collections.abc import Iterator

from .. import advice
from ..errors import amount
from .facts import Facts, Pool
from .finding import Finding, Use, among, unknown

__all__ = ["findings"]

_THP = "/sys/kernel/mm/transparent_hugepage"


def findings(f: Facts, use: Use | None) -> Iterator[Finding]:
    yield from _thp(f, use)
    yield from _of_this_process(f, use)
    yield _shared(f, use)
    for pool in f.huge.pools:
        yield _pool(f, pool)
    yield from _cgroup(f)


def _thp(f: Facts, use: Use | None) -> Iterator[Finding]:
    enabled = f.huge.enabled
    if enabled is None:
        yield unknown("pages", "THP", f.unread, f"{_THP}/enabled")
        return
    value = f"{enabled}, defrag {f.huge.defrag}"
    if not f.answers.get("thp"):
        yield Finding(
            "pages",
            "THP",
            value,
            among(use, None, "numpy"),
            "Memory comes in pages of 4 KiB, which take several times as long to commit, and miss the TLB more often.",
            advice.sysfs(f.place, f"{_THP}/enabled", "madvise"),
        )
    elif enabled == "always" and use == "realtime":
        reason = "khugepaged may move the pages of everything in this process, and the loop faults or waits meanwhile."
        yield Finding("pages", "THP", value, "limits you", reason, advice.sysfs(f.place, f"{_THP}/enabled", "madvise"))
    else:
        yield Finding("pages", "THP", value, "good", "Arenas ask for huge pages (MADV_HUGEPAGE) and may have them.")
    sizes = [f"{amount(size)} {word}" for size, word in f.huge.sizes.items() if word not in ("never", "")]
    if f.huge.sizes:
        reason = "These sizes of transparent huge pages are switched on; pages= asks for one of them."
        yield Finding("pages", "mTHP", ", ".join(sizes) or "all sizes never", "information", reason)


def _of_this_process(f: Facts, use: Use | None) -> Iterator[Finding]:
    off = f.answers.get("thp_disabled", 0)
    if off == 1:
        yield Finding(
            "pages",
            "PR_SET_THP_DISABLE",
            "on",
            among(use, None, "numpy"),
            "This process, or the one that started it, asked for no transparent huge pages, so it gets none.",
            advice.Mend(
                "python", "ctypes.CDLL(None).prctl(41, 0, 0, 0, 0)", "in this process, before the arena is made"
            ),
        )
    elif off > 1:
        reason = "Transparent huge pages are for memory that asks for them only, and arenas do."
        yield Finding("pages", "PR_SET_THP_DISABLE", "on, except where advised", "good", reason)


def _shared(f: Facts, use: Use | None) -> Finding:
    shmem = f.huge.shmem
    if shmem is None:
        return unknown("pages", "THP of shared memory", f.unread, f"{_THP}/shmem_enabled")
    if f.answers.get("thp_shared"):
        return Finding("pages", "THP of shared memory", shmem, "good", "Shared memory may have huge pages.")
    line = advice.sysfs(f.place, f"{_THP}/shmem_enabled", "advise") if use == "sharing" else None
    reason = "Shared memory comes in pages of 4 KiB, but for pages='2M' of the hugetlb pool."
    return Finding("pages", "THP of shared memory", shmem, among(use, "sharing"), reason, line)


def _pool(f: Facts, pool: Pool) -> Finding:
    name = f"hugetlb {amount(pool.page)}"
    value = f"{pool.free} free of {pool.total}, {pool.reserved} of them promised"
    if pool.overcommit:
        value += f", and {pool.overcommit} that may be added"
    if len(pool.nodes) > 1:
        value += " (" + ", ".join(f"node {n}: {free} of {total}" for n, total, free in pool.nodes) + ")"
    if pool.left:
        return Finding("pages", name, value, "good", f"pages={amount(pool.page).replace(' ', '')!r} takes from it.")
    if pool.page == 2 << 20:
        line = advice.sysctl(f.place, "vm.nr_hugepages", pool.total + 512)
    elif pool.page >= 1 << 30:
        line = advice.boot(f"hugepagesz={pool.page >> 30}G hugepages={pool.total + 4}")
    else:
        line = advice.sysfs(f.place, f"{pool.path}/nr_hugepages", pool.total + 512)
    if pool.total:
        return Finding("pages", name, value, "limits you", "All pages of the pool are taken.", line)
    reason = "The pool is empty, as it is unless somebody fills it; arenas take transparent huge pages."
    return Finding("pages", name, "no pages in the pool", "information", reason, line)


def _cgroup(f: Facts) -> Iterator[Finding]:
    for pool in f.huge.pools:
        groups = [group for group in f.hugetlb_groups if group.page == pool.page and group.limit is not None]
        tight = min(groups, key=lambda group: (group.limit or 0) - group.usage, default=None)
        if tight is None or tight.limit is None:
            continue
        left = max(tight.limit - tight.usage, 0)
        yield Finding(
            "pages",
            f"hugetlb cgroup {amount(pool.page)}",
            f"{amount(left)} left of {amount(tight.limit)}",
            "limits you" if left < pool.left * pool.page else "good",
            f"Huge pages past it are refused when they are committed ({tight.path}).",
            advice.cgroup_file(tight.path, pool.total * pool.page) if left < pool.left * pool.page else None,
        )
