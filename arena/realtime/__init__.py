"""For loops that must not wait for memory: locked memory, and the proof that nothing faults."""

from __future__ import annotations

from .locking import MemoryLock, lock_memory, unlock_memory

__all__ = ["MemoryLock", "lock_memory", "unlock_memory"]
