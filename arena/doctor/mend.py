"""The lines that mend things, each right for where the process is. Errors of this package quote them too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from .files import Files
from .place import Place, place_of, read_signs

How: TypeAlias = Literal[
    "sysctl", "shell", "docker", "podman", "kubernetes", "lxc", "systemd", "limits.conf", "boot", "python"
]


@dataclass(frozen=True)
class Mend:
    how: How
    """What takes the line: a shell ("sysctl" and "shell"; the options of "docker run" and "podman run" come in a whole
    command), a container's spec in YAML ("kubernetes"), a configuration file ("lxc", "systemd", "limits.conf"), the
    kernel's command line ("boot"), or this process ("python")."""
    line: str
    where: str
    """Where the line goes, and who may."""

    def __str__(self) -> str:
        return f"{self.line}  ({self.where})"


def _as_root(where: Place) -> str:
    return "as root on the host: a container has no such setting of its own" if where.contained else "as root"


def sysctl(where: Place, name: str, value: object) -> Mend:
    return Mend("sysctl", f"sysctl -w {name}={value}", _as_root(where))


def sysfs(where: Place, path: str, word: object) -> Mend:
    return Mend("shell", f"echo {word} > {path}", _as_root(where))


def boot(line: str) -> Mend:
    return Mend("boot", line, "on the kernel's command line: GRUB_CMDLINE_LINUX in /etc/default/grub, then update-grub")


def cgroup_file(path: str, value: object) -> Mend:
    return Mend("shell", f"echo {value} > {path}", "as root")


def _unit(where: Place, line: str) -> Mend:
    return Mend("systemd", line, f"below [Service], by systemctl edit {where.unit}; then restart it")


def run_with(where: Place, options: str, capability: str = "") -> Mend | None:
    """How a container is started with these options and this capability; None: this is no container."""
    if where.kind == "kubernetes" and capability:
        return Mend(
            "kubernetes",
            f"securityContext: {{capabilities: {{add: [{capability}]}}}}",
            "in the container's spec; it counts for root in the container",
        )
    if where.kind in ("docker", "container", "podman"):
        tool: Literal["docker", "podman"] = "podman" if where.kind == "podman" else "docker"
        words = [options] if options else []
        # In a user namespace of its own the capability would be one of the container's, and no help.
        if capability and not where.user_namespace:
            words.append(f"--cap-add {capability}")
        if words:
            engine = "" if where.kind == tool else " (by docker, or what its engine calls that)"
            return Mend(tool, f"{tool} run {' '.join(words)}", f"when the container is started{engine}")
    return None


# What the tools call a limit: systemd, docker and limits.conf, LXC, the shell's ulimit.
_LIMITS = {
    "RLIMIT_MEMLOCK": ("MEMLOCK", "memlock", "l"),
    "RLIMIT_RTPRIO": ("RTPRIO", "rtprio", "r"),
    "RLIMIT_AS": ("AS", "as", "v"),
    "RLIMIT_DATA": ("DATA", "data", "d"),
    "RLIMIT_FSIZE": ("FSIZE", "fsize", "f"),
}
_DOCKER_CANNOT = ("as",)


def rlimit(where: Place, name: str, hard: int | None, *, value: str = "unlimited", capability: str = "") -> Mend:
    """``hard``: how far this process itself may raise it; None: as far as it likes."""
    unit, tool, flag = _LIMITS[name]
    if hard is None:
        return Mend("shell", f"ulimit -{flag} {value}", "in the shell that starts it, which may")
    started = run_with(
        where,
        "" if tool in _DOCKER_CANNOT else f"--ulimit {tool}={'-1' if value == 'unlimited' else value}",
        capability,
    )
    if started is not None:
        return started
    if where.kind == "lxc":
        return Mend("lxc", f"lxc.prlimit.{tool} = {value}", "in the container's configuration")
    if where.kind == "systemd":
        size = "infinity" if value == "unlimited" else value
        return _unit(where, f"Limit{unit}={size}")
    if where.contained:
        return Mend("shell", f"prlimit --pid PID --{tool}={value}", "as root on the host, PID being the process there")
    return Mend(
        "limits.conf", f"* - {tool} {value}", "in /etc/security/limits.d/arena.conf, as root; then log in again"
    )


def memlock(where: Place, hard: int | None) -> Mend:
    """To lock memory without a limit."""
    return rlimit(where, "RLIMIT_MEMLOCK", hard, capability="IPC_LOCK")


def rtprio(where: Place, hard: int | None) -> Mend:
    """To run under SCHED_FIFO."""
    if hard:
        return Mend("shell", f"ulimit -S -r {hard}", "in the shell that starts it, which may")
    return rlimit(where, "RLIMIT_RTPRIO", hard, value="99", capability="SYS_NICE")


def perf(where: Place, paranoid: int | None) -> Mend | None:
    """To count and sample this process's own events. None: it is not known what is in the way."""
    started = run_with(where, "", "PERFMON")
    if started is not None:
        return started
    if paranoid is not None and paranoid > 2:
        return sysctl(where, "kernel.perf_event_paranoid", 2)
    if where.kind == "systemd":
        return _unit(where, "AmbientCapabilities=CAP_PERFMON")
    return None


def _gib(nbytes: int) -> int:
    return max(-(-nbytes >> 30), 1)


def memory(where: Place, path: str, wanted: int) -> Mend:
    """A memory cgroup with room for so many bytes. ``path``: the file that says the limit."""
    n, high = _gib(wanted), path.endswith("high")
    if where.kind == "kubernetes" and not high:
        return Mend("kubernetes", f"resources: {{limits: {{memory: {n}Gi}}}}", "in the container's spec")
    started = None if high else run_with(where, f"--memory {n}g")
    if started is not None:
        return started
    if where.kind == "systemd":
        line = "MemoryHigh=infinity" if high else f"MemoryMax={n}G"
        return _unit(where, line)
    return cgroup_file(path, "max" if path.endswith((".max", "high")) else n << 30)


def cpu_quota(where: Place, path: str, cpus: int) -> Mend:
    """As much time as there are CPUs. ``path``: the file that says the quota."""
    if where.kind == "kubernetes":
        return Mend(
            "kubernetes", f"resources: {{limits: {{cpu: {cpus}}}}}", "in the container's spec, or no limit at all"
        )
    started = run_with(where, f"--cpus {cpus}")
    if started is not None:
        return started
    if where.kind == "systemd":
        return _unit(where, "CPUQuota=")
    return cgroup_file(path, "max" if path.endswith("cpu.max") else -1)


def shm_size(where: Place, wanted: int) -> Mend:
    """A /dev/shm of so many bytes."""
    n = _gib(wanted)
    if where.kind == "kubernetes":
        return Mend(
            "kubernetes",
            f"emptyDir: {{medium: Memory, sizeLimit: {n}Gi}}",
            "a volume of the pod, mounted at /dev/shm",
        )
    return run_with(where, f"--shm-size={n}g") or Mend("shell", f"mount -o remount,size={n}G /dev/shm", "as root")


def place() -> Place:
    """Where this process is now."""
    return place_of(read_signs(Files()))


def memlock_hint(hard: int | None) -> str:
    """For an error about locked memory: the line, and where it goes."""
    return str(memlock(place(), hard))
