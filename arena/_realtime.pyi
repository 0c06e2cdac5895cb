from collections.abc import Callable
from types import TracebackType
from typing import Literal, SupportsIndex, TypeAlias, TypeVar, final, overload

from typing_extensions import Buffer, Self, disjoint_base

from . import Arena

_Size: TypeAlias = SupportsIndex | str
_F = TypeVar("_F", bound=Callable[..., object])

@final
class PoolBlock:
    """A block of a :class:`Pool`: a writable buffer of bytes, handed out by take() again and again."""
    @property
    def index(self) -> int:
        """Which block of the pool it is: ``pool.blocks[block.index] is block``."""
    @property
    def nbytes(self) -> int:
        """Bytes of the block."""
    @property
    def address(self) -> int:
        """The address of the first byte."""
    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, key: SupportsIndex, /) -> int: ...
    @overload
    def __getitem__(self, key: slice, /) -> memoryview: ...
    @overload
    def __setitem__(self, key: SupportsIndex, value: int, /) -> None: ...
    @overload
    def __setitem__(self, key: slice, value: Buffer, /) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...

@final
class Pool:
    """A fixed number of equal blocks of an arena, made in advance and handed out again and again.

    Parameters
    ----------
    arena
        The :class:`arena.Arena` that the memory is of.
    nbytes
        Bytes of each block, or "64KiB".
    count
        How many blocks, from 1 to 16,777,214.
    align
        The alignment of each block in bytes: a power of two, up to the arena's chunk.
    """
    def __new__(cls, arena: Arena, nbytes: _Size, count: SupportsIndex, *, align: _Size = 64) -> Self: ...
    def take(self) -> PoolBlock:
        """Take a free block."""
    def try_take(self) -> PoolBlock | None:
        """Take a free block, or None if all are taken: a loop with a deadline pays for no exception."""
    def put(self, block: PoolBlock, /) -> None:
        """Give a taken block back.

        Parameters
        ----------
        block
            The block.
        """
    def close(self) -> None:
        """Free the memory. Closing twice is fine."""
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...
    @property
    def blocks(self) -> tuple[PoolBlock, ...]:
        """All blocks, taken or not, in the order of their addresses: to make arrays over them once."""
    @property
    def nbytes(self) -> int:
        """Bytes of each block."""
    @property
    def free(self) -> int:
        """How many blocks can be taken."""
    @property
    def closed(self) -> bool:
        """Whether close() was called."""

@final
class Ring:
    """A ring buffer of bytes for one thread that writes and one that reads.

    Parameters
    ----------
    nbytes
        The capacity, or "64KiB"; rounded up to whole pages.
    lock
        Whether the memory is mlocked.
    name
        For /proc/self/maps: up to 79 printable ASCII characters.
    """
    def __new__(cls, nbytes: _Size, *, lock: bool = False, name: str | None = None) -> Self: ...
    def write(self, data: Buffer, /) -> int:
        """Copy as much of a buffer into the ring as there is room for.

        Parameters
        ----------
        data
            A contiguous buffer.
        """
    def readinto(self, buffer: Buffer, /) -> int:
        """Move as much out of the ring as there is and fits.

        Parameters
        ----------
        buffer
            A writable, contiguous buffer.
        """
    def write_view(self, nbytes: SupportsIndex | None = None) -> memoryview:
        """Make a window to write to.

        Parameters
        ----------
        nbytes
            Its length.
        """
    def read_view(self, nbytes: SupportsIndex | None = None) -> memoryview:
        """Make a window to read from.

        Parameters
        ----------
        nbytes
            Its length.
        """
    def produced(self, nbytes: SupportsIndex, /) -> None:
        """Say that the next bytes of the room were written: they can be read from now on.

        Parameters
        ----------
        nbytes
            How many.
        """
    def consumed(self, nbytes: SupportsIndex, /) -> None:
        """Say that the next bytes were read: their room is free from now on.

        Parameters
        ----------
        nbytes
            How many.
        """
    def close(self) -> None:
        """Give the memory back. Closing twice is fine."""
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
    @property
    def nbytes(self) -> int:
        """The capacity in bytes."""
    @property
    def readable(self) -> int:
        """Bytes that can be read. Nobody but the reader makes them fewer."""
    @property
    def writable(self) -> int:
        """Bytes that there is room for. Nobody but the writer makes them fewer."""
    @property
    def write_position(self) -> int:
        """Bytes written since the beginning."""
    @property
    def read_position(self) -> int:
        """Bytes read since the beginning."""
    @property
    def address(self) -> int:
        """The address of the first of the two mappings."""
    @property
    def closed(self) -> bool:
        """Whether close() was called."""

@disjoint_base
class count_page_faults:
    """Count the page faults of this thread in a ``with`` block, or in each call of a function that it decorates."""
    def __init__(self) -> None: ...
    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
    def __call__(self, function: _F) -> _F: ...
    @property
    def minor(self) -> int:
        """Page faults that needed no reading."""
    @property
    def major(self) -> int:
        """Page faults that waited for a disk or for swap."""
    def _fresh(self) -> Self:
        """Make another that does the same, and counts for this one too."""

@disjoint_base
class no_page_faults(count_page_faults):
    """Refuse the page faults of this thread in a ``with`` block, or in each call of a function that it decorates.

    Parameters
    ----------
    allow_minor
        So many minor faults are no error.
    where
        Note the addresses of the first 64 faults for the exception, where perf_event_open(2) is permitted.
    """
    def __init__(self, allow_minor: int = 0, *, where: bool | Literal["lines"] = True) -> None: ...
    @property
    def allow_minor(self) -> int:
        """So many minor faults are no error."""
    @property
    def where(self) -> bool | Literal["lines"]:
        """Whether the addresses of the faults are noted: True, False or "lines"."""

@disjoint_base
class Watch:
    """Notes the faults of this thread while it is armed, with a signal to this thread for each.

    Parameters
    ----------
    signal
        The number of a signal, which the caller handles.
    """
    def __new__(cls, signal: int) -> Self: ...
    def arm(self) -> None:
        """Begin to note faults."""
    def disarm(self) -> None:
        """Note no more faults."""
    def faults(self) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
        """Return (address, instruction) of each fault: a list of those before the block began, and one of its own."""

def ignore(signal: int, /) -> None:
    """Have a signal ignored from now on, where it would have ended the process. By any thread."""

def symbol(address: int, /) -> str:
    """Name the code at an address, as ``"memset+0x20 (libc.so.6)"``."""

def stack_left() -> int:
    """Return how many bytes of this thread's stack can be made present."""

def touch_stack(nbytes: int, /) -> None:
    """Make so many bytes of this thread's stack present. ValueError: that many are not left."""

def keep_heap(wishes: list[int], fewer: bool) -> None:
    """Have malloc keep what is freed, and its heap grow by as much as the largest wish."""

def collect_not(wishes: list[None], fewer: bool) -> None:
    """Turn automatic garbage collection off; without a wish it is as it was before the first."""

def freeze(wishes: list[None], fewer: bool) -> None:
    """Take what there is out of all garbage collections; without a wish it is back."""

def lock(wishes: list[tuple[bool, bool, bool]], fewer: bool) -> None:
    """Lock memory as the strongest of the wishes has it, each (current, future, on_fault)."""

def touch_heap(nbytes: int, /) -> None:
    """Make so many bytes present that malloc then has. MemoryError: there are none."""
