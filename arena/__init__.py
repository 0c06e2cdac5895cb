"""A memory allocator that hands out memory which is really there, or an exception that says why not."""

from __future__ import annotations

import sys as _sys

if not _sys.platform.startswith("linux"):
    raise ImportError("arena works on Linux only: it is built on madvise(MADV_POPULATE_WRITE)")

from ._core import Arena, Block, Reservation, get_include
from .errors import ArenaError, ArenaFullError, CommitError, LockError, PageFaultError, ReserveError
from .ledger import Residency, Stats
from .mapped import memmap

__version__ = "0.1.0"

__all__ = [
    "Arena",
    "ArenaError",
    "ArenaFullError",
    "Block",
    "CommitError",
    "LockError",
    "PageFaultError",
    "Reservation",
    "ReserveError",
    "Residency",
    "Stats",
    "__version__",
    "get_include",
    "memmap",
]
