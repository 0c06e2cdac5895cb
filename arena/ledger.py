"""What an arena says of itself (Stats), and what the kernel says of it (Residency) and of a page fault (PageFault).
Bytes, unless said otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["PageFault", "Residency", "Stats"]


@dataclass(frozen=True)
class Stats:
    """An arena's ledger: exact at any moment when no other thread is inside the arena."""

    reserved: int
    committed: int
    live: int
    """In blocks, each rounded up to 64 bytes."""
    free_committed: int
    blocks: int
    """How many."""
    peak_committed: int
    peak_live: int
    commits: int
    """How many commits populated something."""
    releases: int
    commit_seconds: float
    release_seconds: float
    largest_free: int
    """The largest block that could be allocated."""
    fragmentation: float
    """1 - largest_free / free: 0 when all free memory is in one piece."""
    overflows: int
    """How often NumPy was given memory of malloc because the arena could not serve it (``overflow="malloc"``)."""


@dataclass(frozen=True)
class Residency:
    """The kernel's word on a range."""

    present: int
    huge: int | None
    """Of the present: mapped in pages of 2 MiB or more. Before Linux 6.7 known for a whole reservation only."""
    zero: int | None
    """Of the present: the shared zero page, which takes no memory. Before Linux 6.7 not known."""
    swapped: int
    locked: int | None
    """mlocked; known for a whole reservation only."""
    dirty: int | None
    """Modified since mapped; known for a whole reservation only."""


class PageFault(NamedTuple):
    """A page fault: the address, and that of the instruction (of a fault inside a system call, the one that made the
    call). The file and line of Python, None but with ``where="lines"``. The name of what is mapped at the address, and
    the instruction's symbol."""

    address: int
    instruction: int
    file: str | None
    line: int | None
    mapping: str
    symbol: str

    def __str__(self) -> str:
        by = f", by {self.symbol}" if self.symbol else ""
        at = f", {self.file}:{self.line}" if self.file else ""
        return f"{self.address:#x} in {self.mapping}{by}{at}"
