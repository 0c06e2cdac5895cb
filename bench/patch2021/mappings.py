"""The fourteen types of mapping in the patch's table: a fresh, empty one of each, and why one cannot be had here."""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from arena import Reservation
from arena.errors import amount

from . import huge_pages
from .calls import MAP_HUGE_2_MIB, mount_detached

__all__ = ["TYPES", "Machine", "MappingType", "NotHereError"]

MIB = 1 << 20
MADV_NOHUGEPAGE = 15
MARGIN = 64 * MIB  # what is to stay free in a file system

TOUCHES = ("Read", "Write", "Read/Write", "POPULATE_READ", "POPULATE_WRITE")
WRITES = ("Write", "Read/Write", "POPULATE_WRITE")
ARENA = "arena"


class NotHereError(Exception):
    """This machine has not what is wanted; a sentence that says how to get it."""


@dataclass(frozen=True)
class MappingType:
    """``sharing`` is "private" or "shared"; ``backing`` has the name that the published table gives it."""

    sharing: str
    backing: str

    def __str__(self) -> str:
        return f"{self.sharing} {self.backing}"

    @property
    def huge(self) -> bool:
        """On pages of 2 MiB from the hugetlb pool."""
        return self.backing.endswith("2 MiB") or self.backing == "hugetlbfs"

    @property
    def page(self) -> int:
        return huge_pages.PAGE if self.huge else mmap.PAGESIZE

    @property
    def has_file(self) -> bool:
        return not self.backing.startswith("Anon")

    @property
    def methods(self) -> list[str]:
        """In the order of the patch; fallocate is of no use to a private mapping."""
        allocating = ["FALLOCATE", *(f"FALLOCATE+{name}" for name in TOUCHES)] if self.allocates_apart else []
        return [*TOUCHES, *allocating, ARENA]

    @property
    def allocates_apart(self) -> bool:
        return self.sharing == "shared" and self.has_file

    def allocates_and_maps(self, method: str) -> bool:
        """Whether all of it is afterwards. Reading allocates shared memory, but of a shared file nothing."""
        if method == "FALLOCATE":
            return False
        if self.sharing == "private":
            return method in (*WRITES, ARENA)
        return self.backing != "file" or method in (*WRITES, ARENA) or method.startswith("FALLOCATE+")

    @property
    def footprint(self) -> int:
        """How many bytes of memory a byte of it takes at most: a private copy has a page of the file behind it."""
        return 2 if self.sharing == "private" and self.has_file else 1


BACKINGS = ("Anon 4 KiB", "Anon 2 MiB", "Memfd 4 KiB", "Memfd 2 MiB", "tmpfs", "file", "hugetlbfs")
TYPES = [MappingType(sharing, backing) for sharing in ("private", "shared") for backing in BACKINGS]


class Machine(contextlib.ExitStack):
    """Where files of each kind can be made: a tmpfs and a hugetlbfs of our own that are mounted nowhere, or else what
    is mounted already; and a folder on a disk. Every file is unnamed, so nothing stays, whatever ends us."""

    def __init__(self, folder: Path | None = None) -> None:
        super().__init__()
        self.folder = folder
        self.places: dict[str, str | NotHereError] = {}

    def place(self, backing: str) -> str:
        """The folder for "tmpfs", "file" or "hugetlbfs"; NotHereError."""
        if backing not in self.places:
            find = {"tmpfs": self.find_tmpfs, "file": self.find_disk, "hugetlbfs": self.find_hugetlbfs}[backing]
            try:
                self.places[backing] = find()
            except NotHereError as error:
                self.places[backing] = error
        found = self.places[backing]
        if isinstance(found, NotHereError):
            raise found
        return found

    def mount(self, kind: str, options: dict[str, str]) -> str | None:
        try:
            root = mount_detached(kind, options)
        except OSError:
            return None
        self.callback(os.close, root)
        return f"/proc/self/fd/{root}"

    def find_tmpfs(self) -> str:
        # Without a limit: what there is of memory is looked at before each sample.
        own = self.mount("tmpfs", {"size": "0", "huge": "never"}) or self.mount("tmpfs", {"size": "0"})
        if own:
            return own
        if mounted_at("/dev/shm").kind == "tmpfs" and os.access("/dev/shm", os.W_OK):
            return "/dev/shm"
        raise NotHereError("there is no tmpfs at /dev/shm and none may be mounted: run it as root")

    def find_hugetlbfs(self) -> str:
        own = self.mount("hugetlbfs", {"pagesize": "2M"})
        if own:
            return own
        for mount in mounts():
            usable = mount.kind == "hugetlbfs" and os.access(mount.path, os.W_OK)
            if usable and os.statvfs(mount.path).f_bsize == huge_pages.PAGE:
                return mount.path
        raise NotHereError(
            "no hugetlbfs with 2 MiB pages that may be written to is mounted, and none may be mounted: run it as root, "
            "or as root first: mount -t hugetlbfs -o pagesize=2M,mode=1777 none /mnt"
        )

    def find_disk(self) -> str:
        if self.folder is not None:
            return on_disk(self.folder)
        for folder in (Path.cwd(), Path(tempfile.gettempdir()), Path("/var/tmp")):
            with contextlib.suppress(NotHereError):
                return on_disk(folder)
        raise NotHereError("neither this folder nor the ones for temporary files are on a disk: name one with --dir")

    def describe(self, backing: str) -> str:
        """A few words on where the files are; "" where there can be none."""
        try:
            place = self.place(backing)
        except NotHereError:
            return ""
        if place.startswith("/proc/self/fd/"):
            return f"a {backing} of its own"
        return f"{mounted_at(place).kind} at {place}"

    def check(self, kind: MappingType, size: int) -> None:
        """NotHereError where there is no room for it, as far as can be known before: a touch would be a SIGBUS."""
        place = self.place(kind.backing) if kind.backing in ("tmpfs", "file", "hugetlbfs") else None
        if kind.huge:
            want = size // huge_pages.PAGE
            try:
                free = huge_pages.free()
            except OSError:
                raise NotHereError("this kernel has no huge pages of 2 MiB") from None
            if free < want:
                how = huge_pages.how_to_add(want)
                raise NotHereError(f"{want} huge pages of 2 MiB are wanted and {free} are free: {how}")
        elif place and not place.startswith("/proc/self/fd/"):
            status = os.statvfs(place)
            room = status.f_bavail * status.f_frsize
            if room < size + MARGIN:
                other = "run it as root" if kind.backing == "tmpfs" else "name another folder with --dir"
                raise NotHereError(f"{amount(room)} are free at {place}, too little for {amount(size)}: {other}")

    def open(self, kind: MappingType, size: int) -> int:
        """A descriptor of a new file of that size that has no blocks."""
        if kind.backing.startswith("Memfd"):
            fd = os.memfd_create("arena bench", os.MFD_CLOEXEC | (os.MFD_HUGETLB | os.MFD_HUGE_2MB if kind.huge else 0))
        else:
            fd = unnamed_file(self.place(kind.backing))
        try:
            os.ftruncate(fd, size)
        except BaseException:
            os.close(fd)
            raise
        return fd

    @contextlib.contextmanager
    def fresh(self, kind: MappingType, size: int) -> Iterator[tuple[mmap.mmap, int]]:
        """An empty mapping, and the descriptor of its file or -1. OSError, NotHereError."""
        flags = mmap.MAP_SHARED if kind.sharing == "shared" else mmap.MAP_PRIVATE
        with contextlib.ExitStack() as stack:
            fd = -1
            if kind.has_file:
                fd = self.open(kind, size)
                stack.callback(os.close, fd)
            else:
                flags |= mmap.MAP_ANONYMOUS | (MAP_HUGE_2_MIB if kind.huge else 0)
            # Not MAP_NORESERVE: mmap promises huge pages or fails, and a touch would not fail but kill.
            memory = stack.enter_context(mmap.mmap(fd, size, flags))
            if not kind.huge and kind.backing != "file":  # whose large folios are the file system's, and help
                with contextlib.suppress(OSError):  # a kernel without transparent huge pages
                    memory.madvise(MADV_NOHUGEPAGE)
            yield memory, fd

    def reservation(self, kind: MappingType, size: int) -> Reservation:
        """The same as an arena.Reservation; NotHereError where this one cannot be made so."""
        options: dict[str, Any] = {}
        if kind.sharing == "shared":
            options["shared"] = True
        if kind.backing in ("tmpfs", "file", "hugetlbfs"):
            options["path"] = self.place(kind.backing)
        else:
            options["pages"] = "2M" if kind.huge else "4K"
            if kind.has_file:
                options["backing"] = "memfd"
            elif kind.sharing == "shared":
                options["backing"] = "anonymous"
        try:
            return Reservation(size, **options)
        except (TypeError, ValueError) as error:
            raise NotHereError(f"not available: {error}") from None


def unnamed_file(folder: str) -> int:
    """A new file in the folder, open to read and write, that goes with its last descriptor."""
    try:
        return os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL):
            raise
    fd, name = tempfile.mkstemp(dir=folder)
    os.unlink(name)
    return fd


@dataclass(frozen=True)
class Mount:
    path: str
    kind: str


def mounts() -> list[Mount]:
    found = []
    for line in os.fsdecode(Path("/proc/self/mountinfo").read_bytes()).splitlines():
        left, _, right = line.partition(" - ")
        path = re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), left.split(" ")[4])
        found.append(Mount(path, right.split(" ")[0]))
    return found


def mounted_at(path: str | Path) -> Mount:
    """What the path is on: of the mounts above it the deepest, and of these the last."""
    real = os.path.realpath(path)
    above = [mount for mount in mounts() if os.path.commonpath([mount.path, real]) == mount.path]
    return max(reversed(above), key=lambda mount: len(mount.path), default=Mount("/", "an unknown file system"))


def on_disk(folder: Path) -> str:
    """The folder, if files can be made in it and are on a disk; NotHereError."""
    if not folder.is_dir():
        raise NotHereError(f"{folder} is not a folder")
    kind = mounted_at(folder).kind
    if kind in ("tmpfs", "ramfs", "hugetlbfs", "devtmpfs"):
        raise NotHereError(f"{folder} is on {kind}, which is memory: name a folder on a disk with --dir")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise NotHereError(f"no file can be made in {folder}: name another folder with --dir")
    return str(folder)
