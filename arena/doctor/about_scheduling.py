"""Who runs when: what a loop with a deadline needs beside memory."""

from __future__ import annotations

import os
from collections.abc import Iterator

from .. import advice
from .facts import Facts
from .finding import Finding, Use, among, unknown

__all__ = ["findings"]


def findings(f: Facts, use: Use | None) -> Iterator[Finding]:
    yield _preemption(f)
    yield _fifo(f, use)
    yield _nice(f)
    yield _throttling(f)
    yield from _quota(f, use)
    yield _cpus(f, use)
    yield _perf(f, use)


def _ranges(cpus: tuple[int, ...]) -> str:
    parts: list[list[int]] = []
    for cpu in cpus:
        if parts and parts[-1][1] == cpu - 1:
            parts[-1][1] = cpu
        else:
            parts.append([cpu, cpu])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in parts)


def _preemption(f: Facts) -> Finding:
    if f.scheduling.realtime_kernel:
        return Finding("scheduling", "PREEMPT_RT", "yes", "good", "Almost all of the kernel can be preempted.")
    reason = "The kernel does not bound how long it keeps a real-time thread waiting; most cycles do not notice."
    if "PREEMPT_DYNAMIC" in f.machine.version:
        return Finding("scheduling", "PREEMPT_RT", "no", "information", reason, advice.boot("preempt=full"))
    return Finding("scheduling", "PREEMPT_RT", "no", "information", reason)


def _fifo(f: Facts, use: Use | None) -> Finding:
    name = "SCHED_FIFO"
    none = next((group for group in f.cpu_groups if group.rt_runtime == 0), None)
    if none is not None:
        path = f"{none.path.rpartition('/')[0]}/cpu.rt_runtime_us"
        reason = f"The cgroup has no time for real-time threads ({path})."
        return Finding("scheduling", name, "no", among(use, "realtime"), reason, advice.cgroup_file(path, 950000))
    if f.has("CAP_SYS_NICE"):
        return Finding(
            "scheduling", name, "any priority, by CAP_SYS_NICE", "good", "The loop may run before all others."
        )
    if "RLIMIT_RTPRIO" in f.unread:
        return unknown("scheduling", name, f.unread, "RLIMIT_RTPRIO")
    limit = f.limit("RLIMIT_RTPRIO")
    if limit.soft is None or limit.soft > 0:
        value = "any priority" if limit.soft is None else f"priorities up to {limit.soft}"
        return Finding("scheduling", name, value, "good", "RLIMIT_RTPRIO allows it.")
    reason = "RLIMIT_RTPRIO is 0 and there is no CAP_SYS_NICE: the loop waits its turn like any other thread."
    line = advice.lift_rtprio(f.place, limit.hard) if use == "realtime" else None
    return Finding("scheduling", name, "no", among(use, "realtime"), reason, line)


def _nice(f: Facts) -> Finding:
    if "RLIMIT_NICE" in f.unread:
        return unknown("scheduling", "RLIMIT_NICE", f.unread, "RLIMIT_NICE")
    soft = f.limit("RLIMIT_NICE").soft
    lowest = -20 if soft is None or f.has("CAP_SYS_NICE") else max(20 - soft, -20)
    value = f"nice {lowest} at best" if lowest < 20 else "nice may not be lowered"
    return Finding("scheduling", "RLIMIT_NICE", value, "information", "It is for ordinary threads, not for SCHED_FIFO.")


def _throttling(f: Facts) -> Finding:
    name, s = "kernel.sched_rt_runtime_us", f.scheduling
    if s.rt_runtime is None or s.rt_period is None:
        return unknown("scheduling", name, f.unread, f"/proc/sys/{name.replace('.', '/')}")
    if s.rt_runtime < 0:
        return Finding(
            "scheduling", name, "-1", "good", "Real-time threads are never stopped; one that spins takes its CPU."
        )
    reason = "Real-time threads that never sleep are stopped for the rest of each period; a loop that sleeps is not."
    return Finding("scheduling", name, f"{s.rt_runtime} of {s.rt_period} µs", "information", reason)


def _quota(f: Facts, use: Use | None) -> Iterator[Finding]:
    groups = [group for group in f.cpu_groups if group.quota is not None]
    tight = min(groups, key=lambda group: (group.quota or 0) / group.period, default=None)
    if tight is None or tight.quota is None:
        if f.cpu_groups:
            yield Finding(
                "scheduling", "cpu cgroup", "no quota", "good", "No cgroup of this process has a quota of CPU time."
            )
        return
    value = f"{tight.quota / tight.period:.4g} CPUs ({tight.quota} of {tight.period} µs)"
    reason = f"When the quota is used up, all threads stop until the period ends ({tight.path})."
    line = advice.cpu_quota(f.place, tight.path, len(f.scheduling.online) or 1)
    yield Finding(
        "scheduling", "cpu cgroup", value, among(use, "realtime"), reason, line if use == "realtime" else None
    )


def _cpus(f: Facts, use: Use | None) -> Finding:
    s = f.scheduling
    if not s.cpus:
        return Finding("scheduling", "CPUs", "cannot be read", "information", "sched_getaffinity() is refused.")
    value = f"{_ranges(s.cpus)} of {_ranges(s.online)}, isolated: {_ranges(s.isolated) or 'none'}"
    if set(s.isolated) & set(s.cpus):
        return Finding(
            "scheduling", "CPUs", value, "good", "The loop may run on a CPU that the scheduler leaves alone."
        )
    reason = "Whatever runs on the machine may run on the same CPUs."
    last = s.online[-1] if len(s.online) > 1 else None
    line = advice.boot(f"isolcpus={last} nohz_full={last} rcu_nocbs={last}") if last and use == "realtime" else None
    return Finding("scheduling", "CPUs", value, "information", reason, line)


def _perf(f: Facts, use: Use | None) -> Finding:
    err, paranoid = -f.answers.get("perf_event_open", 0), f.scheduling.perf_paranoid
    value = f"kernel.perf_event_paranoid is {'unknown' if paranoid is None else paranoid}"
    if err == 0:
        reason = "Page faults can be sampled with their addresses."
        return Finding("scheduling", "perf_event_open", f"yes, {value}", "good", reason)
    reason = f"Page faults can be counted, but not where they are: {os.strerror(err)}."
    line = advice.allow_perf(f.place, paranoid) if use == "realtime" else None
    return Finding("scheduling", "perf_event_open", f"no, {value}", among(use, "realtime"), reason, line)
