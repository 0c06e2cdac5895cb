"""The kernel: where the process is, and which system calls of the last years it has."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

from .. import advice
from .facts import Facts
from .finding import Finding, Use, among

__all__ = ["findings"]


def findings(f: Facts, use: Use | None) -> Iterator[Finding]:
    yield from _place(f, use)
    yield Finding(
        "kernel", "kernel", f"Linux {f.machine.release}", "information", f"It calls itself {f.machine.version}."
    )
    yield _populate(f)
    for name, key, version, without, uses in _FEATURES:
        if f.answers.get(key):
            yield Finding("kernel", name, "yes", "good", f"Linux {version} brought it, and this kernel has it.")
        else:
            yield Finding("kernel", name, "no", among(use, *uses), f"It came with Linux {version}; {without}.")
    for name, key, version, without, uses in _CALLS:
        err = -f.answers.get(key, -errno.ENOSYS)
        if err == 0:
            yield Finding("kernel", name, "yes", "good", f"Linux {version} brought it, and this process may use it.")
        else:
            said = os.strerror(err)
            yield Finding("kernel", name, f"no: {said}", among(use, *uses), f"It came with Linux {version}; {without}.")


# Each line has a feature's name, its name in _probe(), the Linux that brought it, what is missing without it, and the
# uses that this limits.
_FEATURES: tuple[tuple[str, str, str, str, tuple[Use | None, ...]], ...] = (
    (
        "MADV_DONTNEED_LOCKED",
        "dontneed_locked",
        "5.18",
        "without it locked memory has to be unlocked before it is given back",
        ("realtime",),
    ),
    ("PAGEMAP_SCAN", "pagemap_scan", "6.7", "without it residency() knows no zero pages, and reads more for it", ()),
    (
        "PR_SET_VMA_ANON_NAME",
        "vma_names",
        "5.17 and CONFIG_ANON_VMA_NAME",
        "without it arenas have no name in /proc/self/maps",
        (),
    ),
)
_CALLS: tuple[tuple[str, str, str, str, tuple[Use | None, ...]], ...] = (
    ("MADV_GUARD_INSTALL", "guard", "6.13", "without it a guard page is a mapping of its own", ()),
    ("memfd_secret", "memfd_secret", "5.14, where secretmem.enable is on", "arenas do not need it", ()),
)


def _version(release: str) -> tuple[int, int]:
    found = re.match(r"(\d+)\.(\d+)", release)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _populate(f: Facts) -> Finding:
    if f.answers.get("populate"):
        return Finding(
            "kernel", "MADV_POPULATE_WRITE", "yes", "good", "A page was absent before the call and there after."
        )
    if f.place.sandbox == "gVisor":
        why = "gVisor has no such call"
    elif _version(f.machine.release) < (5, 14):
        why = "it came with Linux 5.14"
    else:
        why = "a seccomp filter or a sandbox answers for this kernel, which is new enough"
    reason = f"Pages are touched one by one instead, shared ones at 2 to 4 µs each: {why}."
    return Finding("kernel", "MADV_POPULATE_WRITE", "no", "limits you", reason)


def _place(f: Facts, use: Use | None) -> Iterator[Finding]:
    where = f.place
    name = f"systemd: {where.unit}" if where.unit else where.kind
    reason = (
        f"What says so: {where.sign}." if where.kind != "login" else "There is no sign of a container or of a service."
    )
    yield Finding("place", "runs in", name, "information", reason)
    if where.sandbox == "gVisor":
        yield Finding(
            "place",
            "sandbox",
            "gVisor",
            "blocks you" if use == "realtime" else "limits you",
            "Memory is gVisor's own, not the host's: mlock() and residency() answer, but not for the host.",
            advice.run_with(where, "--runtime=runc"),
        )
    elif where.sandbox == "WSL1":
        reason = "It is not a Linux kernel, but a translation of its calls: use WSL 2."
        yield Finding("place", "sandbox", "WSL1", "blocks you" if use == "realtime" else "limits you", reason)
    elif where.sandbox == "WSL2":
        reason = "It is a virtual machine whose memory and CPUs Windows may take back."
        yield Finding("place", "sandbox", "WSL2", among(use, "realtime"), reason)
    elif f.machine.virtual:
        reason = "The host may take its time and memory away, and no limit here shows it."
        yield Finding("place", "virtual machine", "yes", "information", reason)
    if where.user_namespace:
        reason = "Capabilities count in it only: CAP_IPC_LOCK and CAP_SYS_NICE have to be the host's to lift a limit."
        yield Finding("place", "user namespace", "one of its own", among(use, "realtime"), reason)
