"""What scenarios are made of: operations that may fail in the ways that the documentation names, and claims that have
to hold whatever failed."""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from arena import Arena, ArenaFullError, Block, CommitError, LockError, Reservation, ReserveError

from .library import Library

P = ParamSpec("P")
R = TypeVar("R")

KIB, MIB = 1 << 10, 1 << 20
PAGE = mmap.PAGESIZE
DOCUMENTED = (CommitError, ReserveError, ArenaFullError, LockError, OSError, MemoryError)

_TOP_BIT = bytes(byte >> 7 for byte in range(256))


class Violation(Exception):
    """What must hold does not."""


def present(address: int, nbytes: int) -> int:
    """Bytes of this range that are in the page table. Fast, for it is asked often."""
    first = address // PAGE
    n = (address + nbytes + PAGE - 1) // PAGE - first
    fd = os.open("/proc/self/pagemap", os.O_RDONLY)
    try:
        entries = os.pread(fd, n * 8, first * 8)
    finally:
        os.close(fd)
    return entries[7::8].translate(_TOP_BIT).count(1) * PAGE


def must_be_present(address: int, nbytes: int, what: str) -> None:
    first, last = address // PAGE, (address + nbytes + PAGE - 1) // PAGE
    there, wanted = present(address, nbytes), (last - first) * PAGE
    if there < wanted:
        raise Violation(f"{what} of {nbytes} bytes succeeded, but {there} of {wanted} are present")


def must_be_zero(what: str, data: Block | memoryview) -> None:
    if bytes(data).strip(b"\0"):
        raise Violation(f"{what} gave bytes that are not 0")


@dataclass
class Held:
    """A block that is in use, and the byte that it is full of."""

    block: Block
    byte: int
    nbytes: int

    def check(self) -> None:
        with memoryview(self.block) as view:
            data = bytes(view[: self.nbytes])
        if data != bytes([self.byte]) * self.nbytes:
            first = next(i for i in range(self.nbytes) if data[i] != self.byte)
            raise Violation(f"a block of {self.nbytes} bytes has lost its bytes from {first} on")

    def fill(self) -> None:
        self.nbytes = self.block.nbytes
        with memoryview(self.block) as view:
            view[:] = bytes([self.byte]) * self.nbytes


@dataclass
class Places:
    disk: Path
    tmpfs: Path


@dataclass
class Steps:
    """A run of a scenario: what it has made, and what was refused."""

    library: Library
    places: Places
    arenas: list[Arena] = field(default_factory=list)
    reservations: list[Reservation] = field(default_factory=list)
    readonly: list[Reservation] = field(default_factory=list)
    """Those of the reservations that are for reading only."""
    held: list[Held] = field(default_factory=list)
    files: list[Path] = field(default_factory=list)
    refusals: list[str] = field(default_factory=list)
    all_locked: bool = False
    """Each committed byte, and no other, is locked."""
    has_peers: bool = False
    """Pages come and go by others too, so that the ledger need not be what is present."""

    def refused(self, error: BaseException) -> None:
        self.refusals.append(f"{type(error).__name__}: {error}")
        error.__traceback__ = None  # its frames hold blocks

    def attempt(self, operation: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R | None:
        """What the operation gave, or None where it was refused."""
        try:
            return operation(*args, **kwargs)
        except DOCUMENTED as error:
            self.refused(error)
            return None

    def succeeds(self, operation: Callable[P, object], *args: P.args, **kwargs: P.kwargs) -> bool:
        try:
            operation(*args, **kwargs)
        except DOCUMENTED as error:
            self.refused(error)
            return False
        return True

    def file(self, name: str, on: Path) -> Path:
        """A path on a disk or tmpfs, that goes with the scenario."""
        path = on / f"{name}-{os.getpid()}"
        self.files.append(path)
        return path

    # Arenas.

    def arena(self, size: str, **options: Any) -> Arena | None:
        arena = self.attempt(Arena, size, **options)
        if arena is not None:
            self.arenas.append(arena)
        return arena

    def alloc(self, arena: Arena | None, nbytes: int, **options: Any) -> Block | None:
        """A block, present and full of a byte of its own."""
        block = None if arena is None else self.attempt(arena.alloc, nbytes, **options)
        if block is None:
            return None
        must_be_present(block.address, nbytes, "alloc")
        if options.get("zero"):
            must_be_zero("alloc(zero=True)", block)
        held = Held(block, len(self.held) * 37 % 255 + 1, nbytes)
        held.fill()
        self.held.append(held)
        return block

    def free(self, block: Block | None) -> None:
        for held in [held for held in self.held if held.block is block]:
            held.check()
            self.held.remove(held)
        if block is not None:
            self.attempt(block.free)

    def resize(self, block: Block | None, nbytes: int) -> None:
        """In place, or not at all."""
        if block is None:
            return
        (held,) = (held for held in self.held if held.block is block)
        before = block.nbytes
        if not self.succeeds(block.resize, nbytes):
            if block.nbytes != before:
                raise Violation("a resize() that failed has changed the size")
        elif block.nbytes != nbytes:
            raise Violation(f"resize({nbytes}) gave {block.nbytes} bytes")
        held.nbytes = min(before, block.nbytes)
        held.check()
        must_be_present(block.address, block.nbytes, "resize")
        held.fill()

    def trim(self, arena: Arena | None) -> None:
        if arena is not None:
            self.attempt(arena.trim)

    def check_blocks(self) -> None:
        for held in self.held:
            held.check()

    # Reservations.

    def reservation(self, size: str, **options: Any) -> Reservation | None:
        reservation = self.attempt(Reservation, size, **options)
        if reservation is not None:
            self.reservations.append(reservation)
            if options.get("readonly"):
                self.readonly.append(reservation)
        return reservation

    def commit(self, reservation: Reservation | None, nbytes: int, offset: int = 0, **options: Any) -> bool:
        if reservation is None or not self.succeeds(reservation.commit, nbytes, offset=offset, **options):
            return False
        must_be_present(reservation.address + offset, nbytes, "commit")
        return True

    def release(
        self, reservation: Reservation | None, nbytes: int | None = None, offset: int = 0, **options: Any
    ) -> None:
        if reservation is not None:
            self.attempt(reservation.release, nbytes, offset=offset, **options)
