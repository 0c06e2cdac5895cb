"""What has to hold after a fault, once nothing fails any more."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
import re
from dataclasses import dataclass
from pathlib import Path

from arena import Arena

from .scenarios import Scenario
from .steps import KIB, MIB, Steps, Violation, must_be_present, must_be_zero, present

POOL = Path("/sys/kernel/mm/hugepages/hugepages-2048kB")
# The interpreter's own memory grows by whole pools, and thread stacks have guards.
INTERPRETER = 9 * MIB
GUARDS = 6 * 4096

_libc = ctypes.CDLL(None)


def check_ledger(steps: Steps, exact: bool = True) -> None:
    """What the package says, against what the kernel says."""
    for arena in steps.arenas:
        if arena.closed:
            continue
        stats, there = arena.stats(), present(arena.address, arena.size)
        if exact and there != stats.committed:
            raise Violation(f"an arena says {stats.committed} committed, {there} are present ({arena.backing})")
        if steps.all_locked and (locked := _locked()) != stats.committed:
            raise Violation(f"{stats.committed} committed, {locked} locked ({arena.backing})")
    for reservation in steps.reservations:
        if reservation.closed or not exact:
            continue
        there = present(reservation.address, reservation.size)
        # A file's page that was read around a fault is present without having been committed.
        if there < reservation.committed or (there > reservation.committed and reservation.backing != "file"):
            raise Violation(
                f"a reservation says {reservation.committed} committed, {there} are present ({reservation.backing})"
            )


def check_what_comes_next(steps: Steps, exact: bool = True) -> None:
    """All that was made still works, and goes."""
    steps.check_blocks()
    check_ledger(steps, exact)
    for arena in steps.arenas:
        if not arena.closed:
            _use_arena(arena)
    for reservation in steps.reservations:
        if not reservation.closed:
            try:
                reservation.commit(256 * KIB, populate="read" if reservation in steps.readonly else "write")
            except Exception as error:
                raise Violation(f"the next commit fails: {type(error).__name__}: {error}") from None
            must_be_present(reservation.address, 256 * KIB, "the next commit")
    steps.check_blocks()
    check_ledger(steps, exact)
    _close_all(steps, exact)


def _use_arena(arena: Arena) -> None:
    for nbytes in (5000, 700 * KIB, 3 * MIB):
        try:
            block = arena.alloc(nbytes, zero=True)
        except Exception as error:
            raise Violation(f"the next alloc({nbytes}) fails: {type(error).__name__}: {error}") from None
        must_be_present(block.address, nbytes, "the next alloc")
        must_be_zero("the next alloc(zero=True)", block)
        block[:] = b"\x55" * nbytes
        block.free()
    arena.alloc(100)


def _close_all(steps: Steps, exact: bool) -> None:
    steps.held.clear()
    gc.collect()
    for arena in steps.arenas:
        _empty_and_close(arena, exact)
    for reservation in steps.reservations:
        try:
            reservation.release()
            left = reservation.committed
            reservation.close()
        except Exception as error:
            raise Violation(f"a reservation does not go: {type(error).__name__}: {error}") from None
        if left:
            raise Violation(f"release() left {left} bytes committed")
    for path in steps.files:
        with contextlib.suppress(OSError):
            path.unlink()
    steps.arenas.clear()
    steps.reservations.clear()
    steps.readonly.clear()
    gc.collect()


def _empty_and_close(arena: Arena, exact: bool) -> None:
    if arena.closed:
        return
    try:
        arena.trim()
        stats, there = arena.stats(), present(arena.address, arena.size)
        arena.close()
    except Exception as error:
        raise Violation(f"an arena does not go: {type(error).__name__}: {error}") from None
    if stats.blocks or stats.live:
        raise Violation(f"{stats.blocks} blocks of {stats.live} bytes are left, and nobody has them")
    if stats.committed:
        raise Violation(f"trim() of an arena without blocks left {stats.committed} bytes committed")
    if exact and there:
        raise Violation(f"trim() of an arena without blocks left {there} bytes present")


def _status(field: str) -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as lines:
        for line in lines:
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024
    raise AssertionError(f"no {field} in /proc/self/status")


def _locked() -> int:
    return _status("VmLck")


def _pool() -> int:
    if not POOL.is_dir():
        return 0
    return int((POOL / "free_hugepages").read_text()) - int((POOL / "resv_hugepages").read_text())


def _kind(permissions: str, name: str) -> str:
    if permissions.endswith("s"):
        return "shared"
    if name:
        return "of files"
    if permissions.startswith("---"):
        return "inaccessible"
    return "anonymous" if "w" in permissions else "read-only anonymous"


def _says_limits(path: str) -> bool:
    return (
        re.match(r"/proc/(\d+/cgroup|meminfo)$|/sys/fs/cgroup/|/sys/devices/system/node/|/memfd:instead", path)
        is not None
    )


@dataclass(frozen=True)
class Belongings:
    """What a process has that it could have left."""

    descriptors: dict[int, str]
    mappings: dict[tuple[int, int], str]
    locked: int
    resident: int
    pool: int

    @classmethod
    def now(cls) -> Belongings:
        gc.collect()
        _libc.malloc_trim(0)
        descriptors = {}
        for fd in map(int, os.listdir("/proc/self/fd")):
            with contextlib.suppress(OSError):
                descriptors[fd] = os.readlink(f"/proc/self/fd/{fd}")
        mappings = {}
        with open("/proc/self/maps", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                span, permissions, _, _, _, *name = line.split(maxsplit=5)
                begin, end = (int(address, 16) for address in span.split("-"))
                mappings[begin, end] = _kind(permissions, name[0].strip() if name else "")
        return cls(descriptors, mappings, _locked(), _status("RssAnon"), _pool())

    def mapped(self, kind: str) -> int:
        return sum(end - begin for (begin, end), of in self.mappings.items() if of == kind)

    def left_since(self, before: Belongings, scenario: Scenario) -> list[str]:
        """What there is more of than before."""
        left = []
        kept, kept_bytes = scenario.keeps or ("", 0)
        opened = sorted(to for fd, to in self.descriptors.items() if fd not in before.descriptors)
        # The files that say the limits stay open for the life of the process, each of them once.
        # (library.py puts a memfd in the place of one of them whose text is to be another.)
        for path in {kept, *(to for to in opened if _says_limits(to) and to not in before.descriptors.values())}:
            if path in opened:
                opened.remove(path)
        if opened:
            left.append(f"descriptors left open: {opened}")
        closed = sorted(to for fd, to in before.descriptors.items() if fd not in self.descriptors)
        if closed := [to for to in closed if not _says_limits(to)]:
            left.append(f"descriptors of others closed: {closed}")
        slack = {"anonymous": INTERPRETER, "inaccessible": GUARDS, "shared": kept_bytes, "read-only anonymous": 0}
        for kind, allowed in slack.items():
            if (more := self.mapped(kind) - before.mapped(kind)) > allowed:
                left.append(f"mappings left, {kind}: {more} bytes")
        if self.locked > before.locked:
            left.append(f"locked memory left: {self.locked - before.locked} bytes")
        if self.resident > before.resident + INTERPRETER:
            left.append(f"memory left: {self.resident - before.resident} bytes")
        if scenario.huge_pages and self.pool < before.pool:
            left.append(f"huge pages left: {before.pool - self.pool}")
        return left
