"""The sentences that say what to do about an error: by its errno, the step that failed, and the limit that was met."""

from __future__ import annotations

import errno as _errno
import resource as _resource
from collections.abc import Iterable as _Iterable

__all__ = ["cpus", "for_commit", "for_reserve", "memlock", "perf", "rtprio", "stack"]

_DESCRIPTORS = "too many files are open: raise RLIMIT_NOFILE (ulimit -n)"
_EHWPOISON = 133  # in the errno module from Python 3.14 on


def _limit(where: str) -> str:
    """What to do about a limit, by the file or mount point that says so."""
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
    """How a process may lock more memory."""
    return (
        "raise RLIMIT_MEMLOCK (ulimit -l; 'USER - memlock unlimited' in /etc/security/limits.conf; systemd "
        "LimitMEMLOCK=infinity; docker run --ulimit memlock=-1), or give the process CAP_IPC_LOCK (docker run "
        "--cap-add IPC_LOCK; k8s: securityContext.capabilities.add: [IPC_LOCK])"
    )


def rtprio(priority: int) -> str:
    """Why a thread may not have this priority of SCHED_FIFO, and what to do."""
    allowed = _resource.getrlimit(_resource.RLIMIT_RTPRIO)[0]
    return (
        f"SCHED_FIFO with priority {priority} is not permitted: RLIMIT_RTPRIO is {allowed}, and there is no "
        "CAP_SYS_NICE, or the cpu cgroup has no real-time share (cgroup v1: cpu.rt_runtime_us). Raise it (ulimit -r; "
        "'USER - rtprio 95' in /etc/security/limits.conf; systemd LimitRTPRIO=95; docker run --cap-add SYS_NICE "
        "--ulimit rtprio=95). A loop that never sleeps is still stopped for a part of each second: "
        "kernel.sched_rt_runtime_us"
    )


def cpus(allowed: _Iterable[int]) -> str:
    """What to do where a CPU may not be used."""
    return (
        f"it may on {sorted(allowed)} now; the machine, a cpuset (docker run --cpuset-cpus, systemd AllowedCPUs=) or "
        "taskset(1) has no others for it"
    )


def stack() -> str:
    """How a thread gets a larger stack."""
    return (
        "ask for less, raise RLIMIT_STACK before the program starts (ulimit -s) for the main thread, or call "
        "threading.stack_size() before another is started"
    )


def perf(err: int) -> str:
    """How a thread may note the addresses of its page faults."""
    if err in (_errno.EMFILE, _errno.ENFILE):
        return _DESCRIPTORS
    if err in (_errno.ENOSYS, _errno.ENOENT, _errno.EOPNOTSUPP, _errno.ENODEV):
        return "this kernel has no perf events"
    return (
        "sysctl kernel.perf_event_paranoid=2, or give the process CAP_PERFMON (docker run --cap-add PERFMON; systemd "
        "AmbientCapabilities=CAP_PERFMON); with many threads, sysctl kernel.perf_event_mlock_kb=4096 too"
    )


def for_commit(err: int, op: str, where: str, available: int | None) -> str:
    """``where``: the file or mount point that says what was ``available`` (bytes)."""
    if op == "readonly":
        return "it is read-only: commit(populate='read')"
    if op == "mlock":
        return memlock() if where else "the process has too many mappings: raise vm.max_map_count, or use larger chunks"
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
    if op == "discard":
        return "the file was opened for reading only, or cannot be punched (fallocate(2), FALLOC_FL_PUNCH_HOLE)"
    if err in (_errno.ENOSPC, _errno.EDQUOT):
        return _limit(where)
    if err in (_errno.EMFILE, _errno.ENFILE):
        return _DESCRIPTORS + (f", for {where} has to be read before memory may be taken" if where else "")
    if op == "mprotect" and where == "RLIMIT_DATA":
        return "private memory is limited: raise RLIMIT_DATA (ulimit -d), use shared=True, or ask for less"
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
    """``page``: the size in bytes that was insisted on, or 0; ``overcommit``: vm.overcommit_memory."""
    if err in (_errno.EMFILE, _errno.ENFILE):
        return _DESCRIPTORS
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
