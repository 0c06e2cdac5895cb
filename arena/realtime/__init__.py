"""For loops that must not wait for memory: locked memory that goes round without an allocation, and the proof that
nothing faults."""

from __future__ import annotations

from .._realtime import Pool, PoolBlock, Ring, count_page_faults, no_page_faults
from ..errors import LockError, PageFaultError
from ..ledger import PageFault
from . import _where as _where  # now: when a block refuses its faults there may be no descriptor left to import it with
from .locking import MemoryLock, lock_memory, unlock_memory
from .preparing import Prepared, prepare, restore

__all__ = [
    "LockError",
    "MemoryLock",
    "PageFault",
    "PageFaultError",
    "Pool",
    "PoolBlock",
    "Prepared",
    "Ring",
    "count_page_faults",
    "lock_memory",
    "no_page_faults",
    "prepare",
    "restore",
    "unlock_memory",
]
