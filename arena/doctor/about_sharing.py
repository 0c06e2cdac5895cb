"""Memory that processes share: memfd, /dev/shm, and how large a file may be."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from .. import advice
from ..errors import amount
from .about_memory import CHUNK
from .facts import Facts
from .finding import Finding, Use, Verdict, among, unknown

__all__ = ["findings"]


def findings(f: Facts, use: Use | None) -> Iterator[Finding]:
    yield _memfd(f, use)
    yield _shm(f, use)
    yield _file_size(f, use)


def _memfd(f: Facts, use: Use | None) -> Finding:
    err = -f.answers.get("memfd", -errno.ENOSYS)
    if err == 0:
        return Finding("sharing", "memfd_create", "yes", "good", "shared=True needs no mount, and cannot be truncated.")
    verdict: Verdict = "blocks you" if use == "sharing" else "information"
    reason = "shared=True has no memfd; backing='anonymous' shares with forked children only, path= needs a tmpfs."
    return Finding("sharing", "memfd_create", f"no: {os.strerror(err)}", verdict, reason)


def _shm(f: Facts, use: Use | None) -> Finding:
    total, free, name = f.shm.total, f.shm.free, "/dev/shm"
    if free is None and name not in f.unread:
        return unknown("sharing", name, f.unread, name)
    if free is None:
        reason = "Without it path='/dev/shm/…' and multiprocessing.shared_memory fail; a memfd does not."
        return Finding("sharing", name, f"no: {f.unread[name]}", among(use, "sharing"), reason)
    if total is None:
        return Finding("sharing", name, "no limit of its own", "good", "It may be as large as memory.")
    value = f"{amount(free)} free of {amount(total)}"
    wanted = max(f.machine.total or 0, 2 << 30) // 2
    small = total < wanted // 4
    if free >= CHUNK and not small:
        return Finding("sharing", name, value, "good", "Shared memory with a name may have that much.")
    reason = "Shared memory with a name has that much room; past it those who do not allocate first get a SIGBUS."
    line = advice.shm_size(f.place, wanted) if use == "sharing" else None
    return Finding("sharing", name, value, among(use, "sharing"), reason, line)


def _file_size(f: Facts, use: Use | None) -> Finding:
    name = "RLIMIT_FSIZE"
    if name in f.unread:
        return unknown("sharing", name, f.unread, name)
    soft = f.limit(name).soft
    if soft is None:
        return Finding("sharing", name, "unlimited", "good", "Files, memfds among them, may be as long as they like.")
    verdict: Verdict = "blocks you" if use == "sharing" and soft < CHUNK else among(use, "sharing")
    reason = "No file, a memfd included, may be made longer than this: EFBIG."
    line = advice.rlimit(f.place, name, f.hard(name)) if use == "sharing" else None
    return Finding("sharing", name, amount(soft), verdict, reason, line)
