"""The sentences and lines that say what to do: in errors, by errno, by the step that failed and the limit that was met;
and in the doctor's findings, as the one line that is right for where the process is."""

from __future__ import annotations

import errno as _errno
import resource as _resource
from collections.abc import Iterable as _Iterable
from dataclasses import dataclass as _dataclass
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Literal as _Literal
from typing import TypeAlias as _TypeAlias

if _TYPE_CHECKING:
    from .doctor.place import Place

_EHWPOISON = 133  # the errno module has it from Python 3.14 on

# What the tools call a limit: systemd, docker and limits.conf, LXC, the shell's ulimit.
_LIMITS = {
    "RLIMIT_MEMLOCK": ("MEMLOCK", "memlock", "l"),
    "RLIMIT_RTPRIO": ("RTPRIO", "rtprio", "r"),
    "RLIMIT_AS": ("AS", "as", "v"),
    "RLIMIT_DATA": ("DATA", "data", "d"),
    "RLIMIT_FSIZE": ("FSIZE", "fsize", "f"),
    "RLIMIT_NOFILE": ("NOFILE", "nofile", "n"),
}
_DOCKER_CANNOT = ("as",)


def _raise(name: str) -> str:
    """Say how to raise a limit in the shell."""
    return f"raise {name} (ulimit -{_LIMITS[name][2]})"


def _raise_anywhere(name: str, value: str, capability: str) -> str:
    """Say how to raise a limit, wherever the process was started from."""
    unit, tool, flag = _LIMITS[name]
    size, number = ("infinity", "-1") if value == "unlimited" else (value, value)
    return (
        f"raise {name} (ulimit -{flag}; 'USER - {tool} {value}' in /etc/security/limits.conf; systemd "
        f"Limit{unit}={size}; docker run --ulimit {tool}={number}), or give the process CAP_{capability} (docker run "
        f"--cap-add {capability} --ulimit {tool}={number}; systemd AmbientCapabilities=CAP_{capability}; k8s: "
        f"securityContext.capabilities.add: [{capability}])"
    )


def _limit(where: str) -> str:
    """Say what to do about a limit, by the file or mount point that says it."""
    if "meminfo" in where:
        return "the machine has no more memory: ask for less, lower `headroom`, or free memory elsewhere"
    if "hugetlb." in where:
        return f"raise the hugetlb cgroup's limit ({where}) or ask for less"
    if "hugepages-" in where:
        return (
            f"the pool has no more huge pages ({where}): raise vm.nr_hugepages (for 1 GiB pages nr_hugepages in that "
            "folder, or hugepagesz=1G hugepages=N at boot), or ask for less"
        )
    if "/memory." in where:
        return f"raise the memory cgroup's limit ({where}; docker run --memory, systemd MemoryMax=) or ask for less"
    if where == "/dev/shm" or where.endswith("/shm"):
        return f"{where} is full: make it larger (docker run --shm-size, mount -o remount,size=), or free space in it"
    if where:
        return (
            f"the file system at {where} is full: free space in it, make it larger (tmpfs, hugetlbfs: mount -o "
            "remount,size=), or ask for less"
        )
    return (
        "there is no more room for it (with vm.overcommit_memory=2: no more commit charge): ask for less, or free some"
    )


def memlock() -> str:
    """Say how a process may lock more memory."""
    return _raise_anywhere("RLIMIT_MEMLOCK", "unlimited", "IPC_LOCK")


def rtprio(priority: int) -> str:
    """Say why a thread may not have this priority of SCHED_FIFO, and what to do."""
    allowed = _resource.getrlimit(_resource.RLIMIT_RTPRIO)[0]
    return (
        f"SCHED_FIFO with priority {priority} is not permitted: RLIMIT_RTPRIO is {allowed}, and there is no "
        "CAP_SYS_NICE, or the cpu cgroup has no real-time share (cgroup v1: cpu.rt_runtime_us); "
        f"{_raise_anywhere('RLIMIT_RTPRIO', '95', 'SYS_NICE')}. A loop that never sleeps is still stopped for a part "
        "of each second: kernel.sched_rt_runtime_us"
    )


def cpus(allowed: _Iterable[int]) -> str:
    """Say what to do where a CPU may not be used."""
    return (
        f"it may on {sorted(allowed)} now; the machine, a cpuset (docker run --cpuset-cpus, systemd AllowedCPUs=) or "
        "taskset(1) has no others for it"
    )


def stack() -> str:
    """Say how a thread gets a larger stack."""
    return (
        "ask for less, raise RLIMIT_STACK before the program starts (ulimit -s) for the main thread, or call "
        "threading.stack_size() before another is started"
    )


def _files() -> str:
    return f"too many files are open: {_raise('RLIMIT_NOFILE')}"


def perf_event(err: int) -> str:
    """Say how a thread may note the addresses of its page faults."""
    if err in (_errno.EMFILE, _errno.ENFILE):
        return _files()
    if err in (_errno.ENOSYS, _errno.ENOENT, _errno.EOPNOTSUPP, _errno.ENODEV):
        return "this kernel has no perf events"
    return (
        "sysctl kernel.perf_event_paranoid=2, or give the process CAP_PERFMON (docker run --cap-add PERFMON; systemd "
        "AmbientCapabilities=CAP_PERFMON); with many threads, sysctl kernel.perf_event_mlock_kb=4096 too"
    )


def for_commit(err: int, op: str, where: str, available: int | None) -> str:
    """Say what to do about a commit that failed. ``where`` is the file or mount point that says what was ``available``,
    in bytes."""
    if op == "readonly":
        return "it is read-only: commit(populate='read')"
    if op == "mlock":
        # EPERM: the limit is 0.
        if where or err == _errno.EPERM:
            return memlock()
        return "the process has too many mappings: raise vm.max_map_count, or use larger chunks"
    if op == "end of file":
        return (
            f"the file is only {available} bytes long, or has been truncated: commit within it, or make it longer "
            "first (read_into() reads what may go away without a signal)"
        )
    if op == "lock of the file":
        if err == _errno.EBUSY:
            return (
                f"{where or 'another process'} has been committing or releasing there for a minute, or is stopped: end "
                "it or let it go on, then try again"
            )
        return "the lock that keeps other processes out (fcntl(2), F_OFD_SETLK) was refused"
    if op in ("release", "discard") and err == _errno.EPERM:
        return (
            "the file is sealed against being written, holes too (F_SEAL_WRITE, F_SEAL_FUTURE_WRITE): its memory goes "
            "when the last who has it open closes it"
        )
    if op == "discard":
        return "the file was opened for reading only, or cannot be punched (fallocate(2), FALLOC_FL_PUNCH_HOLE)"
    if op == "release" and err == _errno.EINVAL:
        return (
            "the memory is locked by somebody else's mlock(2) or mlockall(2), or is of huge pages of the pool before "
            "Linux 5.18: munlock it first, or close the reservation"
        )
    if op == "release" and err in (_errno.EAGAIN, _errno.ENOMEM):
        return "the kernel had no memory to do it with: what was given back is booked; release the rest again later"
    if err in (_errno.ENOSPC, _errno.EDQUOT):
        return _limit(where)
    if err in (_errno.EMFILE, _errno.ENFILE):
        return _files() + (f", for {where} has to be read before memory may be taken" if where else "")
    if op == "mprotect" and where == "RLIMIT_DATA":
        return f"private memory is limited: {_raise('RLIMIT_DATA')}, use shared=True, or ask for less"
    if op == "mprotect" and where:
        return "the commit charge was refused: vm.overcommit_memory=2 (raise vm.overcommit_ratio or _kbytes)"
    if op == "preflight" or (err == _errno.ENOMEM and where and "MADV" in op):
        return _limit(where)
    if op == "mprotect":
        return (
            "the commit charge was refused: vm.overcommit_memory=2 (raise vm.overcommit_ratio or _kbytes) "
            "or RLIMIT_DATA (ulimit -d)"
        )
    if err == _errno.EOPNOTSUPP:
        return (
            "this file system cannot allocate ahead (fallocate), and a hole in a file that is not ours is not written "
            "to: use another file system, or fill the file first (dd, posix_fallocate)"
        )
    if err == _errno.EFBIG:
        return "the file may not be that long: raise RLIMIT_FSIZE (ulimit -f), or ask for less"
    if err == _errno.EPERM:
        return "the file is sealed (F_SEAL_WRITE), or a security module forbids it"
    if err == _errno.ENOMEM:
        return "the kernel has no memory for it (or vm.max_map_count is reached): ask for less or free memory elsewhere"
    if err == _errno.EINTR:
        return "this is the child of a fork that was made in the middle of it: commit again"
    if err == _errno.EFAULT:
        return "there is nothing behind the range, or nothing that may be populated (memfd_secret, a guard page)"
    if err == _errno.EINVAL:
        return (
            "the kernel cannot populate such a mapping: a device's or other special memory (VM_PFNMAP, VM_IO), or one "
            "whose protection forbids it"
        )
    if err == _EHWPOISON:
        return "a page of it has a hardware error: do not use this range, and see the kernel's log"
    return "see the errno"


def for_reserve(err: int, op: str, where: str, page: int, overcommit: int) -> str:
    """Say what to do about a reservation that failed. ``page`` is the page size in bytes that was insisted on, or 0;
    ``overcommit`` is vm.overcommit_memory."""
    if err in (_errno.EMFILE, _errno.ENFILE):
        return _files()
    if op == "end of file":
        return "the file has less than one chunk: make it longer, or give a smaller chunk="
    if op == "hugetlb pool":
        knob = where.replace("free_hugepages", "nr_hugepages")
        size = knob.rpartition("hugepages-")[2].partition("B")[0].upper()
        return (
            f"the pool has no huge pages: echo 512 > {knob} (as root; at boot: hugepagesz={size} hugepages=512), or "
            "pages='auto'"
        )
    if op == "hugetlbfs":
        return "hugetlb pages are for files on hugetlbfs (mount -t hugetlbfs none DIR), memfd and anonymous memory"
    if op == "huge pages of shared memory":
        return (
            "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled (as root), for a tmpfs mount -o remount,"
            "huge=advise, or pages='auto'; files on disk and private mappings of files have none"
        )
    if err == _errno.ENOTSUP and 0 < page < 2 << 20:
        return (
            f"echo madvise > /sys/kernel/mm/transparent_hugepage/hugepages-{page >> 10}kB/enabled (as root), with all "
            "larger sizes at never, or pages='auto'"
        )
    if err == _errno.ENOTSUP:
        return "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled (as root), or pages='4K'"
    if op == "mbind" and err in (_errno.EPERM, _errno.ENOSYS):
        return (
            "a sandbox forbids mbind(2) (docker run --cap-add SYS_NICE allows it under its default seccomp profile; "
            "--security-opt seccomp=FILE with one that does), or the kernel is without NUMA: leave node= out, and "
            "start the process under numactl --membind"
        )
    if op == "memfd_create" and err in (_errno.EPERM, _errno.EACCES, _errno.ENOSYS):
        return (
            "a sandbox's seccomp profile forbids memfd_create(2), or the kernel has none: start the container with one "
            "that allows it (docker run --security-opt seccomp=FILE), or give path='/dev/shm'"
        )
    if op == "open" and err == _errno.ENOSPC:
        return (
            "no file can be made there: the file system is full, or, if df says that there is space, has no inodes "
            "left (df -i; tmpfs: mount -o remount,nr_inodes=): remove files there, or give another path="
        )
    if op == "open" and err == _errno.EDQUOT:
        return "the quota of files or blocks is used up (quota(1)): remove files there, or give another path="
    if op == "ftruncate" and err == _errno.EFBIG:
        return "a file may not be that long here: raise RLIMIT_FSIZE (ulimit -f), or reserve less"
    if op in ("ftruncate", "memfd_create") and err in (_errno.ENOSPC, _errno.EDQUOT):
        return _limit(where)
    if op in ("open", "fd", "fstat"):
        if err == _errno.EBADF:
            return "fd= is no open file descriptor"
        if err == _errno.ENOENT:
            return "there is no such file, or no folder to make it in"
        if err in (_errno.EACCES, _errno.EPERM, _errno.EROFS):
            return "it may not be written: readonly=True, or shared=False, needs the right to read only"
        if err == _errno.EEXIST:
            return "it is a symbolic link to nothing, or somebody else makes and removes it at this moment"
        return "it has to be a folder, a file, or missing in a folder that is there"
    if err in (_errno.EACCES, _errno.EPERM) and op == "mmap":
        return (
            "the file is open or sealed against this: shared=True needs a descriptor open for reading and writing, "
            "readonly=True one for reading"
        )
    if err == _errno.ENODEV:
        return "files of this kind cannot be mapped (a folder, pipe or socket, or a file system without mmap)"
    if err == _errno.EAGAIN:
        return (
            "memfd_secret, and pages of the hugetlb pool under mlockall(MCL_FUTURE), count whole for RLIMIT_MEMLOCK: "
            "raise it (ulimit -l), reserve before the lock, or reserve less"
        )
    if err == _errno.ENOMEM and overcommit == 2:
        return "vm.overcommit_memory=2 refuses it: raise vm.overcommit_ratio, or reserve less"
    if err == _errno.ENOMEM:
        return "address space is limited: raise RLIMIT_AS (ulimit -v) or vm.max_map_count, or reserve less"
    return f"{op} failed"


# What follows is for the doctor: one line that mends a thing, for the place where the process is.

How: _TypeAlias = _Literal[
    "sysctl", "shell", "docker", "podman", "kubernetes", "lxc", "systemd", "limits.conf", "boot", "python"
]


@_dataclass(frozen=True)
class Mend:
    """The line that mends a finding of the doctor's, and where it goes."""

    how: How
    """What takes the line: a shell ("sysctl" and "shell"; the options of "docker run" and "podman run" come in a whole
    command), a container's spec in YAML ("kubernetes"), a configuration file ("lxc", "systemd", "limits.conf"), the
    kernel's command line ("boot"), or this process ("python")."""
    line: str
    """The line itself, to be copied."""
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
    """Say how a container is started with these options and this capability; None if this is no container."""
    if where.kind == "kubernetes" and capability:
        return Mend(
            "kubernetes",
            f"securityContext: {{capabilities: {{add: [{capability}]}}}}",
            "in the container's spec; it counts for root in the container",
        )
    if where.kind in ("docker", "container", "podman"):
        tool: _Literal["docker", "podman"] = "podman" if where.kind == "podman" else "docker"
        words = [options] if options else []
        # In a user namespace of its own the capability would be one of the container's, and no help.
        if capability and not where.user_namespace:
            words.append(f"--cap-add {capability}")
        if words:
            engine = "" if where.kind == tool else " (by docker, or what its engine calls that)"
            return Mend(tool, f"{tool} run {' '.join(words)}", f"when the container is started{engine}")
    return None


def rlimit(where: Place, name: str, hard: int | None, *, value: str = "unlimited", capability: str = "") -> Mend:
    """Say how to raise a resource limit. ``hard`` is how far this process itself may raise it; None: without end."""
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


def lift_memlock(where: Place, hard: int | None) -> Mend:
    """Say how to lock memory without a limit."""
    return rlimit(where, "RLIMIT_MEMLOCK", hard, capability="IPC_LOCK")


def lift_rtprio(where: Place, hard: int | None) -> Mend:
    """Say how to run under SCHED_FIFO."""
    if hard:
        return Mend("shell", f"ulimit -S -r {hard}", "in the shell that starts it, which may")
    return rlimit(where, "RLIMIT_RTPRIO", hard, value="99", capability="SYS_NICE")


def allow_perf(where: Place, paranoid: int | None) -> Mend | None:
    """Say how to count and sample this process's own events; None if it is not known what is in the way."""
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
    """Say how to get a memory cgroup with room for so many bytes. ``path`` is the file that says the limit."""
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
    """Say how to get as much time as there are CPUs. ``path`` is the file that says the quota."""
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
    """Say how to get a /dev/shm of so many bytes."""
    n = _gib(wanted)
    if where.kind == "kubernetes":
        return Mend(
            "kubernetes",
            f"emptyDir: {{medium: Memory, sizeLimit: {n}Gi}}",
            "a volume of the pod, mounted at /dev/shm",
        )
    return run_with(where, f"--shm-size={n}g") or Mend("shell", f"mount -o remount,size={n}G /dev/shm", "as root")
