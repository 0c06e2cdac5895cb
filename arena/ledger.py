"""What an arena says of itself (Stats), and what the kernel says of it (Residency) and of a page fault (PageFault).

All sizes are in bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["PageFault", "Residency", "Stats"]


@dataclass(frozen=True)
class Stats:
    """An arena's ledger: exact at any moment when no other thread is inside the arena.

    Sizes are in bytes. A closed arena whose last block is gone has ``reserved == 0``.

    Examples
    --------
    >>> from arena import Arena
    >>> a = Arena("1GiB")
    >>> block = a.alloc("1MiB")
    >>> a.stats().live, a.stats().blocks, a.stats().fragmentation
    (1048576, 1, 0.0)
    """

    reserved: int
    """Address space: the arena's size."""
    committed: int
    """Bytes that are present."""
    live: int
    """Bytes in blocks, each rounded up to 64."""
    free_committed: int
    """Bytes that are present and in no block."""
    blocks: int
    """How many blocks are alive."""
    peak_committed: int
    """The most that ``committed`` ever was."""
    peak_live: int
    """The most that ``live`` ever was."""
    commits: int
    """How many commits populated something."""
    releases: int
    """How many releases gave something back."""
    commit_seconds: float
    """How long all commits took together."""
    release_seconds: float
    """How long all releases took together."""
    largest_free: int
    """The largest block that could be allocated."""
    fragmentation: float
    """1 - largest_free / free: 0 when all free memory is in one piece."""
    overflows: int
    """How often NumPy was given memory of malloc because the arena could not serve it (``overflow="malloc"``)."""


@dataclass(frozen=True)
class Residency:
    """The kernel's word on a range: how many of its bytes are present, and how.

    Notes
    -----
    The sources are /proc/self/pagemap, PAGEMAP_SCAN (Linux 6.7) and /proc/self/smaps; see proc(5).
    """

    present: int
    """Bytes that a load does not fault on."""
    huge: int | None
    """Bytes of ``present`` in pages of 2 MiB or more. Before Linux 6.7 this is known for a whole reservation only."""
    zero: int | None
    """Bytes of ``present`` that are the shared zero page, which takes no memory. Before Linux 6.7 this is not known."""
    swapped: int
    """Bytes that are in swap."""
    locked: int | None
    """Bytes that are mlocked; this is known for a whole reservation only."""
    dirty: int | None
    """Bytes that were modified since they were mapped; this is known for a whole reservation only."""


class PageFault(NamedTuple):
    """A page fault of a thread, as no_page_faults() notes it.

    Attributes
    ----------
    address
        The address that was touched.
    instruction
        The address of the instruction; of a fault inside a system call, that of the one that made the call.
    file, line
        The line of Python; None without ``where="lines"``.
    mapping
        The name of what is mapped at the address.
    symbol
        The instruction's function and file.
    """

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
