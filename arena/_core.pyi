from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ContextDecorator
from os import PathLike
from typing import Any, Literal, Protocol, SupportsIndex, TypeAlias, TypeVar, final, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike, NDArray
from typing_extensions import Buffer, CapsuleType, Self

from .ledger import Residency, Stats

_Size: TypeAlias = SupportsIndex | str
_Progress: TypeAlias = Callable[[int, int], object]
_Populate: TypeAlias = Literal["write", "read"]
_Path: TypeAlias = str | bytes | PathLike[str] | PathLike[bytes]
_Backing: TypeAlias = Literal["anonymous", "memfd"]
_Fork: TypeAlias = Literal["copy", "share", "drop", "wipe"]
_Shape: TypeAlias = SupportsIndex | Sequence[SupportsIndex]
_Order: TypeAlias = Literal["C", "F"]
_OrderLike: TypeAlias = Literal["C", "F", "A", "K"]
_Scalar = TypeVar("_Scalar", bound=np.generic)
_DType: TypeAlias = type[_Scalar] | np.dtype[_Scalar]

class _Allocations(AbstractContextManager[Arena, None], ContextDecorator):
    def __exit__(self, *exc: object) -> None: ...

class _HasFileno(Protocol):
    def fileno(self) -> int: ...

def get_include() -> str:
    """Return the folder of ``arena.h``, for C and Cython extensions."""

def overcommit_mode() -> int:
    """Return vm.overcommit_memory."""

def _probe() -> dict[str, int]:
    """Return what the kernel answers to this process, for arena.doctor."""

def _cgroups(controller: str, page: int = 0) -> tuple[int, list[tuple[Any, ...]]]:
    """Return ``answer, folders``: the cgroups of this process for a controller, its own first. For arena.doctor."""

# For arena.realtime.
def lock_all(current: bool, future: bool, on_fault: bool, afresh: bool) -> None:
    """Lock all memory of the process, for arena.realtime: csrc/memory/mlockall.h."""

# For arena.nep49: NumPy's data handlers are capsules.
def numpy_handler(arena: Arena, overflow: bool) -> object:
    """Make a handler of NumPy's that allocates in the arena. For arena.nep49, as the next four are."""

def numpy_handler_of_now() -> object:
    """Return the handler of the current context."""

def swap_numpy_handler(capsule: object | None) -> object:
    """Install a handler in the current context, or NumPy's own for None, and return the one before."""

def arena_of_numpy_handler(capsule: object) -> Arena | None:
    """Return the arena that a handler allocates in; None where the handler is not of ours."""

def arena_at(address: int) -> Arena | None:
    """Return the arena whose memory is at an address, or None."""

@final
class Reservation:
    """A sparse range of memory or of a file, of which parts are committed and released.

    Parameters
    ----------
    size
        Bytes, or "64MiB", "2GiB", "1.5 GB".
    path
        What stands behind the memory.
    fd
        An open file, as int or with fileno(): anything that mmap(2) takes.
    shared
        Writes are seen by others who map the same memory, and get into the file.
    backing
        "anonymous" or "memfd", to say which without ``path`` and ``fd``.
    readonly
        The file can be committed and viewed for reading only.
    pages
        The page size.
    lock
        What is committed is mlocked, and what is released is unlocked: locked memory is not swapped or reclaimed,
        and counts against RLIMIT_MEMLOCK by what is committed.
    node
        The number of the NUMA node that all memory comes from (mbind(2), MPOL_BIND).
    fork
        What the child of a fork gets: "copy" (copy-on-write; commit() again undoes that), "share" (the same
        memory, for both to use and to release: shared only; the child's commit() populates its own page table),
        "drop" (nothing: what it still points to reads as zeros, and every method that would use the memory raises
        RuntimeError; the parent keeps its pages to itself) or "wipe" (zeros, usable; private anonymous only).
    dump
        Include the memory in core dumps.
    name
        Shown in /proc/self/maps where the kernel was built with CONFIG_ANON_VMA_NAME.
    """
    def __new__(
        cls,
        size: _Size,
        *,
        path: _Path | None = None,
        fd: int | _HasFileno | None = None,
        shared: bool = False,
        backing: _Backing | None = None,
        readonly: bool = False,
        pages: _Size = "auto",
        lock: bool = False,
        node: int | None = None,
        fork: _Fork | None = None,
        dump: bool = False,
        name: str | None = None,
    ) -> Self: ...
    def commit(
        self,
        nbytes: _Size | None = None,
        *,
        offset: _Size = 0,
        populate: _Populate = "write",
        threads: int | None = None,
        progress: _Progress | None = None,
    ) -> int:
        """Make a range present, so that touching it faults on nothing afterwards.

        Parameters
        ----------
        nbytes, offset
            The range, which is rounded outward to pages.
        populate
            "write": the range can be written without a fault.
        threads
            How many threads populate.
        progress
            Called in this thread as ``progress(done, total)`` with bytes, at most every 10 ms or so, and at the
            end with done == total; never where nothing is to be done.
        """
    def release(self, nbytes: _Size | None = None, *, offset: _Size = 0, discard: bool = False) -> int:
        """Give a range back to the machine.

        Parameters
        ----------
        nbytes, offset
            The range, which is rounded inward to pages.
        discard
            Punch the range out of a file that was there before, committed or not.
        """
    def view(self, nbytes: _Size | None = None, *, offset: _Size = 0, readonly: bool = False) -> memoryview:
        """Look at a committed range as a memoryview.

        Parameters
        ----------
        nbytes, offset
            The range.
        readonly
            The view is for reading, and memory that was committed with populate="read" is enough.
        """
    def verify(self, nbytes: _Size | None = None, *, offset: _Size = 0) -> None:
        """See that what is committed of a range is still there, and populate it again.

        Parameters
        ----------
        nbytes, offset
            The range.
        """
    def read_into(self, buffer: Buffer, *, offset: _Size = 0) -> int:
        """Copy from the reservation through the kernel, with an exception where a load would be a signal.

        Parameters
        ----------
        buffer
            A writable, contiguous buffer.
        offset
            Where in the reservation the bytes begin.
        """
    def write_from(self, buffer: Buffer, *, offset: _Size = 0) -> int:
        """Copy a buffer into a committed range through the kernel.

        Parameters
        ----------
        buffer
            A contiguous buffer.
        offset
            Where in the reservation the bytes are to be.
        """
    def residency(self, nbytes: _Size | None = None, *, offset: _Size = 0) -> Residency:
        """Ask the kernel what of a range is present.

        Parameters
        ----------
        nbytes, offset
            The range.
        """
    def close(self) -> None:
        """Unmap the reservation. Closing twice is fine."""
    def fileno(self) -> int:
        """Return the descriptor of the file behind the memory, which stays the reservation's."""
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...
    @property
    def size(self) -> int:
        """Bytes reserved."""
    @property
    def address(self) -> int:
        """The address of the first byte."""
    @property
    def page_size(self) -> int:
        """The unit of commit and release in bytes: 4096, or what huge pages have."""
    @property
    def committed(self) -> int:
        """Bytes committed, by the ledger; residency() is the kernel's word."""
    @property
    def backing(self) -> str:
        """What it is: "anonymous", "memfd", "tmpfs", "hugetlbfs", "file" (of another file system) or "device"."""
    @property
    def closed(self) -> bool:
        """Whether close() was called."""

@final
class Arena:
    """An allocator on a reservation: it hands out blocks of memory that is there.

    Parameters
    ----------
    size
        Bytes of address space, or "64GiB".
    chunk
        Bytes that are committed and released at a time: a power of two from 4 KiB to 1 GiB, at least a page.
    populate
        "write", or "read": the zero page until a block is first written, which then faults.
    retain
        Free committed bytes to keep when blocks are freed.
    decay
        Seconds for which memory beyond ``retain`` has to be free before it is released.
    headroom
        Bytes that are to stay available to the rest of the program, and of the memory cgroup or machine: a commit
        that would take them fails.
    path, fd, shared, backing, pages, lock, node, fork, dump, name
        As for :class:`Reservation`.
    readonly
        Must be False: a file is mapped read-only by Reservation(readonly=True).
    """
    def __new__(
        cls,
        size: _Size,
        *,
        chunk: _Size | None = None,
        populate: _Populate = "write",
        retain: _Size | None = None,
        decay: float | None = None,
        headroom: _Size | None = None,
        path: _Path | None = None,
        fd: int | _HasFileno | None = None,
        shared: bool = False,
        backing: _Backing | None = None,
        readonly: bool = False,
        pages: _Size = "auto",
        lock: bool = False,
        node: int | None = None,
        fork: _Fork | None = None,
        dump: bool = False,
        name: str | None = None,
    ) -> Self: ...
    def alloc(self, nbytes: _Size, *, align: _Size = 64, zero: bool = False, grow: bool = True) -> Block:
        """Allocate a block whose bytes are present: writing them faults on nothing.

        Parameters
        ----------
        nbytes
            Bytes, or "64MiB".
        align
            The alignment of its address: a power of two up to the chunk.
        zero
            All bytes are 0; what is known to be zero is not cleared.
        grow
            Whether memory may be committed for it.
        """
    @overload
    def empty(self, shape: _Shape, *, order: _Order = "C", align: _Size = 64) -> NDArray[np.float64]:
        """Make a NumPy array, uninitialised, that owns its block.

        Parameters
        ----------
        shape, dtype
            As for numpy.empty.
        order
            "C" or "F".
        align
            As for :meth:`alloc`.
        """
    @overload
    def empty(
        self, shape: _Shape, dtype: _DType[_Scalar], order: _Order = "C", *, align: _Size = 64
    ) -> NDArray[_Scalar]: ...
    @overload
    def empty(
        self, shape: _Shape, dtype: DTypeLike | None = ..., order: _Order = "C", *, align: _Size = 64
    ) -> NDArray[Any]: ...
    @overload
    def zeros(self, shape: _Shape, *, order: _Order = "C", align: _Size = 64) -> NDArray[np.float64]:
        """Make a NumPy array of zeros. Memory that is known to be zero is not written.

        Parameters
        ----------
        shape, dtype, order, align
            As for :meth:`empty`.
        """
    @overload
    def zeros(
        self, shape: _Shape, dtype: _DType[_Scalar], order: _Order = "C", *, align: _Size = 64
    ) -> NDArray[_Scalar]: ...
    @overload
    def zeros(
        self, shape: _Shape, dtype: DTypeLike | None = ..., order: _Order = "C", *, align: _Size = 64
    ) -> NDArray[Any]: ...
    @overload
    def full(
        self, shape: _Shape, fill_value: _Scalar, dtype: None = None, order: _Order = "C", *, align: _Size = 64
    ) -> NDArray[_Scalar]:
        """Make a NumPy array of one value.

        Parameters
        ----------
        shape, order, align
            As for :meth:`empty`.
        fill_value
            The value, or an array that broadcasts to the shape.
        dtype
            None: that of the value.
        """
    @overload
    def full(
        self, shape: _Shape, fill_value: Any, dtype: _DType[_Scalar], order: _Order = "C", *, align: _Size = 64
    ) -> NDArray[_Scalar]: ...
    @overload
    def full(
        self, shape: _Shape, fill_value: Any, dtype: DTypeLike | None = None, order: _Order = "C", *, align: _Size = 64
    ) -> NDArray[Any]: ...
    @overload
    def empty_like(
        self,
        prototype: NDArray[_Scalar],
        dtype: None = None,
        order: _OrderLike = "K",
        *,
        shape: _Shape | None = None,
        align: _Size = 64,
    ) -> NDArray[_Scalar]:
        """Make a NumPy array, uninitialised, with the shape and dtype of another.

        Parameters
        ----------
        prototype
            An array, or anything that NumPy makes one of.
        dtype, shape
            None: those of the prototype.
        order
            "C", "F", "K" (that of the prototype as nearly as can be) or "A" ("F" if the prototype is in Fortran's
            order only, else "C").
        align
            As for :meth:`alloc`.
        """
    @overload
    def empty_like(
        self,
        prototype: ArrayLike,
        dtype: _DType[_Scalar],
        order: _OrderLike = "K",
        *,
        shape: _Shape | None = None,
        align: _Size = 64,
    ) -> NDArray[_Scalar]: ...
    @overload
    def empty_like(
        self,
        prototype: ArrayLike,
        dtype: DTypeLike | None = None,
        order: _OrderLike = "K",
        *,
        shape: _Shape | None = None,
        align: _Size = 64,
    ) -> NDArray[Any]: ...
    @overload
    def array(
        self, obj: NDArray[_Scalar], dtype: None = None, order: _OrderLike = "K", *, align: _Size = 64
    ) -> NDArray[_Scalar]:
        """Copy an array into the arena.

        Parameters
        ----------
        obj
            An array, or anything that NumPy makes one of.
        dtype
            None: that of the object.
        order, align
            As for :meth:`empty_like`.
        """
    @overload
    def array(
        self, obj: ArrayLike, dtype: _DType[_Scalar], order: _OrderLike = "K", *, align: _Size = 64
    ) -> NDArray[_Scalar]: ...
    @overload
    def array(
        self, obj: ArrayLike, dtype: DTypeLike | None = None, order: _OrderLike = "K", *, align: _Size = 64
    ) -> NDArray[Any]: ...
    def numpy_allocations(self, *, overflow: Literal["raise", "malloc"] = "raise") -> _Allocations:
        """Have what NumPy allocates in this context come from the arena (NEP 49).

        Parameters
        ----------
        overflow
            What the arena cannot give is a MemoryError of NumPy's, whose reason is in :attr:`last_error`
            ("raise"), or memory of malloc, counted in stats() ("malloc").
        """
    @property
    def last_error(self) -> Exception | None:
        """Why NumPy was last refused memory of this arena, or given malloc's instead; None if it never was."""
    def warm(
        self,
        nbytes: _Size,
        *,
        blocks: SupportsIndex | None = None,
        threads: int | None = None,
        progress: _Progress | None = None,
    ) -> None:
        """Have so much free memory committed, in one piece, that later blocks need no system call.

        Parameters
        ----------
        nbytes
            Bytes, or "64MiB".
        blocks
            For how many blocks the bookkeeping is populated, so that they take no page fault of the index.
        threads, progress
            As for :meth:`Reservation.commit`.
        """
    def trim(self, keep: _Size = 0) -> int:
        """Give free committed memory back to the machine now.

        Parameters
        ----------
        keep
            Free committed bytes that may stay, about: whole chunks go.
        """
    def reset(self) -> None:
        """Free every block at once."""
    def close(self, *, strict: bool = False) -> None:
        """Close the arena to new work, and give its free memory back at once. Closing twice is fine.

        Parameters
        ----------
        strict
            Refuse while any block is alive.
        """
    def stats(self) -> Stats:
        """Return the ledger."""
    def blocks(self) -> Iterator[tuple[int, int]]:
        """Iterate over all blocks in the order of their addresses."""
    def residency(self) -> Residency:
        """Ask the kernel what of the whole arena is present."""
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...
    @property
    def size(self) -> int:
        """Bytes reserved."""
    @property
    def address(self) -> int:
        """The address of the first byte."""
    @property
    def page_size(self) -> int:
        """The page size in bytes: 4096, or what huge pages have."""
    @property
    def chunk(self) -> int:
        """Bytes that are committed and released at a time."""
    @property
    def backing(self) -> str:
        """What it is: "anonymous", "memfd", "tmpfs", "hugetlbfs", "file" (of another file system) or "device"."""
    @property
    def closed(self) -> bool:
        """Whether close() was called."""

@final
class Block:
    """Memory of an arena, as a buffer of bytes (PEP 3118), made by Arena.alloc()."""
    def free(self) -> None:
        """Free the memory now."""
    def resize(self, nbytes: _Size) -> None:
        """Make the block larger or smaller where it is.

        Parameters
        ----------
        nbytes
            Bytes, or "64MiB".
        """
    @property
    def nbytes(self) -> int:
        """Bytes asked for."""
    @property
    def address(self) -> int:
        """The address of the first byte."""
    @property
    def offset(self) -> int:
        """Bytes from the arena's address to the block's."""
    @property
    def arena(self) -> Arena:
        """The arena that the memory is of."""
    @property
    def freed(self) -> bool:
        """Whether the memory was freed, by free() or by the arena's reset()."""
    def __len__(self) -> int: ...
    @overload
    def __getitem__(self, key: SupportsIndex, /) -> int: ...
    @overload
    def __getitem__(self, key: slice, /) -> memoryview: ...
    @overload
    def __setitem__(self, key: SupportsIndex, value: int, /) -> None: ...
    @overload
    def __setitem__(self, key: slice, value: Buffer, /) -> None: ...
    def __dlpack__(
        self,
        *,
        stream: None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> CapsuleType:
        """Make a DLPack capsule, for from_dlpack() of NumPy, PyTorch and others: a tensor of uint8 on the CPU.

        Parameters
        ----------
        stream
            Must be None.
        max_version
            The highest version of DLPack that the consumer takes.
        dl_device
            None, or the CPU's (1, 0).
        copy
            True: the capsule is of a new block in the same arena.
        """
    def __dlpack_device__(self) -> tuple[int, int]:
        """Return (1, 0), which is the CPU."""
    def __enter__(self) -> Self: ...
    def __exit__(self, *exc: object) -> None: ...
    def __buffer__(self, flags: int, /) -> memoryview: ...
