"""What a child does to itself: seccomp filters, poisoned pages, odd file descriptors, foreign changes to its files and
mappings. No pytest here: children import it, and exit with 77 and a reason where the kernel cannot do it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import platform
import struct
import sys
import tempfile
from collections.abc import Iterable
from typing import NoReturn

PAGE = mmap.PAGESIZE
CANNOT = 77

PROT_NONE, PROT_READ, PROT_WRITE = 0, 1, 2
FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE = 1, 2
O_TMPFILE_BIT = 0o20000000

_NUMBERS = {
    "x86_64": {
        "lseek": 8,
        "mmap": 9,
        "mprotect": 10,
        "munmap": 11,
        "mremap": 25,
        "ioctl": 16,
        "madvise": 28,
        "mlock": 149,
        "mbind": 237,
        "fcntl": 72,
        "ftruncate": 77,
        "openat": 257,
        "linkat": 265,
        "fallocate": 285,
        "perf_event_open": 298,
        "process_vm_readv": 310,
        "process_vm_writev": 311,
        "futex": 202,
        "memfd_create": 319,
        "userfaultfd": 323,
        "mlock2": 325,
        "memfd_secret": 447,
    },
    "aarch64": {
        "fcntl": 25,
        "ioctl": 29,
        "linkat": 37,
        "ftruncate": 46,
        "lseek": 62,
        "munmap": 215,
        "mremap": 216,
        "mmap": 222,
        "mprotect": 226,
        "madvise": 233,
        "mlock": 228,
        "mbind": 235,
        "openat": 56,
        "fallocate": 47,
        "perf_event_open": 241,
        "process_vm_readv": 270,
        "process_vm_writev": 271,
        "futex": 98,
        "memfd_create": 279,
        "userfaultfd": 282,
        "mlock2": 284,
        "memfd_secret": 447,
    },
}

libc = ctypes.CDLL(None, use_errno=True)
libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_long, ctypes.c_long]
libc.syscall.restype = ctypes.c_long


def cannot(reason: str) -> NoReturn:
    print(reason, flush=True)
    sys.exit(CANNOT)


def number(syscall: str) -> int:
    numbers = _NUMBERS.get(platform.machine())
    if numbers is None:
        cannot(f"no table of system calls for {platform.machine()}")
    return numbers[syscall]


def check(rc: int, what: str) -> int:
    if rc == -1:
        error = ctypes.get_errno()
        raise OSError(error, f"{what}: {os.strerror(error)}")
    return rc


# seccomp: the kernel that answers so.


def answer(err: int, syscall: str, *, arg: int = 0, values: Iterable[int] = (), bit: int = 0) -> None:
    """From now on the call fails with err: always, or where its argument is one of the values, or has the bit."""

    def statement(code: int, k: int) -> bytes:
        return struct.pack("HBBI", code, 0, 0, k)

    def jump(code: int, k: int, true: int, false: int) -> bytes:
        return struct.pack("HBBI", code, true, false, k)

    load, equal, any_bit, give = 0x20, 0x15, 0x45, 0x06
    tests = [(equal, value) for value in values] or ([(any_bit, bit)] if bit else [])
    code = [statement(load, 0), jump(equal, number(syscall), 0, len(tests) + 1 + bool(tests))]
    if tests:
        code.append(statement(load, 16 + 8 * arg))
    for i, (test, k) in enumerate(tests):
        last = i == len(tests) - 1
        code.append(jump(test, k, len(tests) - 1 - i, 1 if last else 0))
    code += [statement(give, 0x00050000 | err), statement(give, 0x7FFF0000)]
    text = ctypes.create_string_buffer(b"".join(code))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(code), ctypes.addressof(text)))
    check(libc.prctl(38, 1, 0, 0, 0), "PR_SET_NO_NEW_PRIVS")
    if libc.prctl(22, 2, program, 0, 0):
        cannot(f"no seccomp filter: {os.strerror(ctypes.get_errno())}")


def without_populate() -> None:
    """A kernel before 5.14, as far as we can see."""
    answer(errno.EINVAL, "madvise", arg=2, values=(22, 23))


def without_fallocate() -> None:
    """A file system that cannot."""
    answer(errno.EOPNOTSUPP, "fallocate")


def without_tmpfile() -> None:
    """A file system that has no O_TMPFILE."""
    answer(errno.EOPNOTSUPP, "openat", arg=2, bit=O_TMPFILE_BIT)


def without_links() -> None:
    """A file system in which a file has one name."""
    answer(errno.EPERM, "linkat")


MAP_FIXED_NOREPLACE = 0x100000


def without_exact_places() -> None:
    """Nothing more can be mapped where it is wanted."""
    answer(errno.ENOMEM, "mmap", arg=3, bit=MAP_FIXED_NOREPLACE)


def without_wake_op() -> None:
    """futex(2) does no FUTEX_WAKE_OP and says that it is to be tried again."""
    answer(errno.EAGAIN, "futex", arg=1, values=(5 | 128,))


F_OFD_SETLK = 37


def without_locks(err: int) -> None:
    """Locks of open file descriptions are refused so."""
    answer(err, "fcntl", arg=1, values=(F_OFD_SETLK,))


def without_seek(err: int, *whences: int) -> None:
    """SEEK_DATA (3), SEEK_HOLE (4) or both are refused so."""
    answer(err, "lseek", arg=2, values=whences)


# Rights.


def drop_capabilities(*bits: int) -> None:
    """These are neither effective nor to be had again, from now on."""
    mask = sum(1 << bit for bit in bits)
    for bit in bits:
        check(libc.prctl(24, bit, 0, 0, 0), "PR_CAPBSET_DROP")
    header = ctypes.create_string_buffer(struct.pack("II", 0x20080522, 0))
    sets = ctypes.create_string_buffer(24)
    check(libc.capget(header, sets), "capget")
    words = list(struct.unpack("6I", sets.raw))
    for i in range(6):
        words[i] &= ~(mask >> (0 if i < 3 else 32)) & 0xFFFFFFFF
    check(libc.capset(header, ctypes.create_string_buffer(struct.pack("6I", *words))), "capset")


# Mounts.


def own_mounts() -> None:
    """From now on this process has mounts of its own."""
    if libc.unshare(0x20000) or libc.mount(b"none", b"/", None, 0x44000, None):
        cannot(f"no mount namespace of our own: {os.strerror(ctypes.get_errno())}")


def lay_over(path: str, text: str) -> None:
    """A file, such as one of /proc, has this in it. Needs own_mounts()."""
    with tempfile.NamedTemporaryFile("w", dir="/dev/shm", delete=False) as file:
        file.write(text)
    libc.umount2(
        path.encode(), 2
    )  # what was laid there before: it has no name any more, and nothing can be put over it
    check(libc.mount(file.name.encode(), path.encode(), None, 0x1000, None), f"mount over {path}")
    os.unlink(file.name)


def mount_tmpfs(at: str, options: str) -> None:
    """Needs own_mounts()."""
    check(libc.mount(b"none", at.encode(), b"tmpfs", 0, options.encode()), f"mount on {at}")


def root_without(*names: str) -> None:
    """The same files below /, but for these. Needs own_mounts()."""
    mount_tmpfs("/mnt", "size=1M")
    for entry in os.scandir("/"):
        there = f"/mnt/{entry.name}"
        if entry.is_symlink():
            os.symlink(os.readlink(entry.path), there)
        elif entry.is_dir() and entry.name != "mnt":
            os.mkdir(there)
            check(libc.mount(entry.path.encode(), there.encode(), None, 0x5000, None), f"mount {there}")
        elif entry.is_file() and entry.path not in names:
            open(there, "w").close()
    os.chroot("/mnt")
    os.chdir("/")


def many_mounts() -> None:
    """A list of mounts of some 100 KB, as a host of many containers has, in which the cgroups come last."""
    with open("/proc/self/mounts", encoding="utf-8", errors="replace") as lines:
        mounts = [line.split() for line in lines]
    cgroups = [mount for mount in mounts if mount[2] in ("cgroup", "cgroup2")]
    own_mounts()
    for _, at, *_ in cgroups:
        libc.umount2(at.encode(), 2)
    check(libc.mount(b"none", b"/mnt", b"tmpfs", 0, b"size=1M"), "mount")
    for i in range(500):
        at = f"/mnt/{i}-{'n' * 150}"
        os.mkdir(at)
        check(libc.mount(b"none", at.encode(), b"tmpfs", 0, b"size=1M"), "mount")
    for _, at, kind, options, *_ in cgroups:
        controllers = ",".join(option for option in options.split(",") if option not in ("rw", "ro", "relatime"))
        libc.mount(b"none", at.encode(), kind.encode(), 0, controllers.encode() or None)


# Pages.


def poison(address: int) -> None:
    """The page there becomes one that answers EHWPOISON, or SIGBUS to a touch."""
    fd = libc.syscall(number("userfaultfd"), os.O_CLOEXEC | 1)
    if fd < 0:
        cannot(f"no userfaultfd: {os.strerror(ctypes.get_errno())}")
    api, register, poisoned = 0xC018AA3F, 0xC020AA00, 0xC020AA08
    try:
        try:
            fcntl.ioctl(fd, api, struct.pack("QQQ", 0xAA, 1 << 14, 0))
        except OSError as error:
            cannot(f"no UFFDIO_POISON (Linux 6.6): {error}")
        fcntl.ioctl(fd, register, struct.pack("QQQQ", address, PAGE, 1, 0))
        fcntl.ioctl(fd, poisoned, struct.pack("QQQq", address, PAGE, 0, 0))
    finally:
        os.close(fd)


def drop(address: int, nbytes: int) -> None:
    check(libc.madvise(address, nbytes, 4), "MADV_DONTNEED")


def punch_hole(fd: int, offset: int, nbytes: int) -> None:
    check(libc.fallocate(fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, offset, nbytes), "PUNCH_HOLE")


def protect(address: int, nbytes: int, protection: int) -> None:
    check(libc.mprotect(address, nbytes, protection), "mprotect")


def unmap(address: int, nbytes: int) -> None:
    check(libc.munmap(address, nbytes), "munmap")


# File descriptors of memory that cannot be populated.


def perf_buffer() -> tuple[int, int]:
    """The ring buffer of a perf event: a VM_PFNMAP mapping, to be had wherever perf_event_open is allowed. The
    descriptor, and the one size that it can be mapped in."""
    size, software, dummy = 112, 1, 9
    attributes = ctypes.create_string_buffer(struct.pack("IIQ", software, size, dummy).ljust(size, b"\0"))
    fd = libc.syscall(number("perf_event_open"), attributes, 0, -1, -1, 0)
    if fd < 0:
        cannot(f"no perf_event_open: {os.strerror(ctypes.get_errno())}")
    nbytes = 2 * PAGE
    with mmap.mmap(fd, nbytes) as m:
        try:
            m.madvise(23)
        except OSError as error:
            assert error.errno == errno.EINVAL, error
        else:
            cannot("MADV_POPULATE_WRITE populates a perf event's buffer here")
    return fd, nbytes


def secret_memory(nbytes: int) -> int:
    """A memfd_secret: memory that the kernel itself does not map, and does not populate."""
    fd = libc.syscall(number("memfd_secret"), 0)
    if fd < 0:
        cannot(f"no memfd_secret: {os.strerror(ctypes.get_errno())}")
    os.ftruncate(fd, nbytes)
    return int(fd)
