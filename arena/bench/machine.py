"""What figures depend on: the machine that they were measured on."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from .. import __version__

__all__ = ["machine", "resident"]


def machine() -> dict[str, Any]:
    """Return the processor, the kernel and the versions, for a JSON object."""

    def read(path: str) -> str:
        try:
            return Path(path).read_text(encoding="utf-8")
        except OSError:
            return ""

    names = [line.partition(":")[2].strip() for line in read("/proc/cpuinfo").splitlines() if "model name" in line]
    return {
        "cpu": names[0] if names else platform.machine(),
        "cpus": len(os.sched_getaffinity(0)),
        "virtual": "hypervisor" in read("/proc/cpuinfo"),
        "kernel": platform.release(),
        "transparent_hugepage": read("/sys/kernel/mm/transparent_hugepage/enabled").strip(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "python": platform.python_version(),
        "arena": __version__,
    }


def resident() -> int:
    """Return the bytes of this process that are in memory, from the page tables: the counters in statm lag behind."""
    with open("/proc/self/smaps_rollup", encoding="ascii") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Rss:"))
