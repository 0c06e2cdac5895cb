"""Memory that stays: what may be locked, and what is."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from .. import advice
from ..errors import amount
from .about_memory import CHUNK
from .facts import CAPABILITIES, Facts
from .finding import Finding, Use, Verdict, among, limited, unknown

__all__ = ["findings"]

# csrc/sys/probe.h
_ON, _ON_FAULT, _FULL = 1, 2, 3


def findings(f: Facts, use: Use | None) -> Iterator[Finding]:
    yield _memlock(f, use)
    yield from _refused(f, use)
    yield _mlockall(f)
    yield _capabilities(f)
    yield from _compaction(f, use)
    yield _stack(f, use)


def _memlock(f: Facts, use: Use | None) -> Finding:
    name, locked, whole = "RLIMIT_MEMLOCK", f.process.locked, f.process.size
    if name in f.unread:
        return unknown("locking", name, f.unread, name)
    soft = f.limit(name).soft
    if f.lockable is None:
        value = "unlimited" if soft is None else f"{amount(soft)}, lifted by CAP_IPC_LOCK"
        return Finding("locking", name, value, "good", "As much memory may be locked as there is.")
    if locked is None or whole is None or soft is None:
        return unknown("locking", name, f.unread, "/proc/self/status")
    value = f"{amount(f.lockable)} left of {amount(soft)}, without CAP_IPC_LOCK"
    line = advice.lift_memlock(f.place, f.hard(name))
    if use != "realtime":
        reason = "It counts for mlock() and memfd_secret; arenas that lock nothing do not meet it."
        return Finding("locking", name, value, "information", reason)
    if f.lockable < CHUNK:
        return Finding(
            "locking", name, value, "blocks you", f"Not even one chunk of {amount(CHUNK)} can be locked.", line
        )
    if whole > soft:
        reason = f"mlockall() of this process as it is takes {amount(whole)}, and is refused."
        return Finding("locking", name, value, "blocks you", reason, line)
    reason = f"mlockall() of this process as it is takes {amount(whole)}; what is locked past the limit is refused."
    return Finding("locking", name, value, "limits you", reason, line)


def _refused(f: Facts, use: Use | None) -> Iterator[Finding]:
    """Make the finding for an mlock() of one page that was refused although the limit allows it."""
    err = -f.answers.get("mlock", 0)
    if err and (f.lockable is None or f.lockable >= 4096):
        verdict: Verdict = "blocks you" if use == "realtime" else "information"
        reason = "A seccomp filter or a security module forbids what the limit allows."
        yield Finding(
            "locking", "mlock", f"no: {os.strerror(err)}", verdict, reason, advice.run_with(f.place, "", "IPC_LOCK")
        )


def _mlockall(f: Facts) -> Finding:
    state, name = f.answers.get("lock_future", -errno.ENOSYS), "mlockall"
    locked = f.process.locked
    held = "nothing locked" if locked == 0 else f"{limited(locked)} locked" if locked is not None else "VmLck unknown"
    if state < 0:
        reason = f"Whether MCL_FUTURE is on cannot be told: {os.strerror(-state)}."
        return Finding("locking", name, held, "information", reason)
    if state == _FULL:
        reason = "MCL_FUTURE is on and RLIMIT_MEMLOCK is used up: this process can map nothing more."
        line = advice.lift_memlock(f.place, f.hard("RLIMIT_MEMLOCK"))
        return Finding("locking", name, f"MCL_FUTURE, {held}", "blocks you", reason, line)
    if state in (_ON, _ON_FAULT):
        value = f"MCL_FUTURE{' with MCL_ONFAULT' if state == _ON_FAULT else ''}, {held}"
        if f.lockable is None:
            reason = (
                "New reservations are kept from being populated whole; a later mlockall(MCL_CURRENT) that is not ours "
                "does populate them."
            )
            return Finding("locking", name, value, "good", reason)
        reason = "What is mapped counts whole against RLIMIT_MEMLOCK; of an arena only what it commits does."
        verdict: Verdict = "blocks you" if f.lockable < CHUNK else "limits you"
        return Finding("locking", name, value, verdict, reason, advice.lift_memlock(f.place, f.hard("RLIMIT_MEMLOCK")))
    if locked and f.process.size and locked * 10 >= f.process.size * 9:
        reason = "Nearly all that is mapped is locked, as after mlockall(MCL_CURRENT); new mappings are not."
        return Finding("locking", name, f"MCL_CURRENT, {held}", "information", reason)
    reason = "A page mapped now is not locked by itself, so MCL_FUTURE is off."
    return Finding("locking", name, f"off, {held}", "information", reason)


def _capabilities(f: Facts) -> Finding:
    name, have = "capabilities", f.process.effective
    if have is None:
        return unknown("locking", name, f.unread, "/proc/self/status")
    wanted = ("CAP_IPC_LOCK", "CAP_SYS_NICE", "CAP_SYS_RESOURCE")
    value = ", ".join(cap for cap in wanted if have >> CAPABILITIES[cap] & 1) or f"none of {', '.join(wanted)}"
    bounding = f.process.bounding
    never = [cap for cap in wanted if bounding is not None and not bounding >> CAPABILITIES[cap] & 1]
    reason = "They lift RLIMIT_MEMLOCK, allow SCHED_FIFO, and raise hard limits."
    if never:
        reason = f"{', '.join(never)} cannot be had by anybody here, root included: outside the bounding set."
    return Finding("locking", name, value, "information", reason)


def _compaction(f: Facts, use: Use | None) -> Iterator[Finding]:
    if f.machine.compact_unevictable is None:
        return
    name, on = "vm.compact_unevictable_allowed", f.machine.compact_unevictable != 0
    if not on:
        yield Finding("locking", name, "0", "good", "Locked pages stay where they are.")
        return
    reason = "The kernel may move locked pages to make huge ones, and a touch waits for as long: a minor fault."
    line = advice.sysctl(f.place, name, 0) if use == "realtime" else None
    yield Finding("locking", name, "1", among(use, "realtime"), reason, line)


def _stack(f: Facts, use: Use | None) -> Finding:
    name = "RLIMIT_STACK"
    if name in f.unread:
        return unknown("locking", name, f.unread, name)
    reason = "A new thread's stack is that large (2 MiB where unlimited), and all of it is locked under MCL_FUTURE."
    return Finding("locking", name, limited(f.limit(name).soft), "information", reason)
