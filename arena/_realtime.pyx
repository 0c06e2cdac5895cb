# cython: language_level=3, freethreading_compatible=True, embedsignature=False, auto_pickle=False, autotestdict=False
# cython: binding=False, always_allow_keywords=False
# So methods are METH_NOARGS and METH_O, which the interpreter just calls: take() and put() are little more than that.
"""What arena.realtime is made of that has to be fast, or in C: Pool, Ring, the guards against page faults, and the
stack's and malloc's memory."""

cimport cython
from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.exc cimport PyErr_CheckSignals
from cpython.object cimport PyObject
from libc.errno cimport EINTR
from libc.signal cimport SIG_IGN, signal as set_handler
from libc.stdint cimport INT64_MAX, UINT64_MAX, int64_t, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free
from libc.string cimport memmove

from arena._core cimport arena_error, arena_progress, fork_generation_at, ring_memory, ring_memory_destroy

import gc as _gc
import operator as _operator
import os as _os
import sys as _sys
import threading as _threading

from . import _core, errors as _errors
from .sizes import parse_size


cdef extern from "memory/users.h" nogil:
    bint users_pin(uint64_t *, uint32_t)
    void users_unpin(uint64_t *)
    bint users_enter(uint64_t *, uint32_t)
    void users_leave(uint64_t *, uint32_t, uint32_t)
    bint users_close(uint64_t *, uint32_t)
    bint users_closed(const uint64_t *)


# This points to the number of forks that made this process.
cdef const uint32_t *fork_generation = fork_generation_at()


# --- Pool ------------------------------------------------------------------------------------------------------------

cdef extern from "realtime/pool.h" nogil:
    cdef struct pool:
        uint32_t count
    const uint32_t POOL_NONE, POOL_MAX
    uint64_t pool_bytes(uint32_t count)
    void pool_init(pool *, uint32_t count, uint32_t forks)
    bint pool_whole(const pool *, uint32_t forks)
    void pool_adopt(pool *, uint32_t forks)
    uint32_t pool_take(pool *)
    bint pool_put(pool *, uint32_t index)
    uint32_t pool_free(const pool *)
    uint32_t pool_close(pool *)
    void pool_reopen(pool *, uint32_t first)


cdef extern from "Python.h":
    PyObject *PyTuple_GET_ITEM(tuple, Py_ssize_t)  # borrowed


cdef extern from "stdlib.h" nogil:
    void *aligned_alloc(size_t align, size_t nbytes)


# A Pool and its blocks share this. They refer to it and it to neither, so there is no cycle for the garbage collector.
@cython.final
@cython.no_gc
cdef class _Memory:
    cdef pool *c
    cdef uint64_t users
    cdef object arena, block
    cdef Py_buffer view
    cdef Py_ssize_t nbytes, stride

    def __cinit__(self, arena, nbytes, count, align):
        if not isinstance(arena, _core.Arena):
            raise TypeError(f"an arena.Arena is wanted, not {type(arena).__name__}")
        try:
            number = _operator.index(count)
        except TypeError:
            raise TypeError(f"count must be an int, not {type(count).__name__}") from None
        if not 0 < number <= POOL_MAX:
            raise ValueError(f"count must be from 1 to {POOL_MAX}, not {number}")
        size, step = parse_size(nbytes, "nbytes"), parse_size(align, "align")
        if size == 0:
            raise ValueError("nbytes must not be 0")
        if step == 0 or step & (step - 1):
            raise ValueError(f"align must be a power of two, not {step}")
        stride = -(-size // step) * step
        self.arena, self.nbytes = arena, size
        self.block = arena.alloc(stride * number, align=max(step, 64))
        # While it is exported the block cannot be freed, nor the arena reset or closed.
        PyObject_GetBuffer(self.block, &self.view, PyBUF_WRITABLE)
        self.stride = stride
        self.c = <pool *>aligned_alloc(64, pool_bytes(number))
        if self.c == NULL:
            raise MemoryError()
        pool_init(self.c, number, fork_generation[0])

    def __dealloc__(self):
        PyBuffer_Release(&self.view)
        free(self.c)

    cdef int adopt(self) except -1:
        """In the child of a fork: make the pool the child's own; RuntimeError where its memory is not."""
        try:
            self.arena.alloc(1, grow=False)  # this says why
        except MemoryError:
            pass
        pool_adopt(self.c, fork_generation[0])
        return 0

    cdef int put(self, uint32_t index) except -1:
        if pool_whole(self.c, fork_generation[0]) and pool_put(self.c, index):
            return 0
        if users_closed(&self.users):
            raise ValueError("the pool is closed")
        if not pool_whole(self.c, fork_generation[0]):
            self.adopt()
            if pool_put(self.c, index):
                return 0
        raise ValueError(f"block {index} is not taken: it was put back before")

    cdef close(self):
        cdef uint32_t first = POOL_NONE
        cdef bint lost = False
        if users_closed(&self.users):
            return
        if not pool_whole(self.c, fork_generation[0]):
            try:
                self.adopt()
            except RuntimeError:
                lost = True
        if not lost:
            first = pool_close(self.c)
            if first == POOL_NONE:
                raise BufferError("some blocks are taken: put() them back before close()")
        if not users_close(&self.users, fork_generation[0]):
            if not lost:
                pool_reopen(self.c, first)
            raise BufferError("a view of a block is exported: drop it before close()")
        PyBuffer_Release(&self.view)
        self.block.free()


@cython.final
@cython.no_gc
cdef class PoolBlock:
    """A block of a :class:`Pool`: a writable buffer of bytes, handed out by take() again and again.

    At the end of a ``with`` the block is put back. Views of it may be made once and kept: an array over a block is good
    whenever the block is taken. What somebody reads or writes through a view after put() is the next taker's, which no
    pool can see.

    Examples
    --------
    >>> from arena import Arena
    >>> from arena.realtime import Pool
    >>> pool = Pool(Arena("64MiB"), "64KiB", 2)
    >>> with pool.take() as block:
    ...     block[:5] = b"hello"
    ...     block.index, len(block)
    (0, 65536)
    """
    cdef _Memory memory
    cdef char *ptr
    cdef readonly uint32_t index
    """Which block of the pool it is: ``pool.blocks[block.index] is block``."""

    def __cinit__(self, _Memory memory not None, uint32_t index):
        if index >= memory.c.count:
            raise IndexError(index)
        self.memory, self.index = memory, index
        self.ptr = <char *>memory.view.buf + index * memory.stride

    def __getbuffer__(self, Py_buffer *view, int flags):
        if not users_pin(&self.memory.users, fork_generation[0]):
            raise BufferError("the pool is closed")
        try:
            PyBuffer_FillInfo(view, self, self.ptr, self.memory.nbytes, False, flags)
        except BaseException:
            users_unpin(&self.memory.users)
            raise

    def __releasebuffer__(self, Py_buffer *view):
        users_unpin(&self.memory.users)

    @property
    def nbytes(self):
        """Bytes of the block."""
        return self.memory.nbytes

    @property
    def address(self):
        """The address of the first byte."""
        return <uint64_t>self.ptr

    def __len__(self):
        return self.memory.nbytes

    def __getitem__(self, key):
        return memoryview(self)[key]

    def __setitem__(self, key, value):
        memoryview(self)[key] = value

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self.memory.put(self.index)

    def __repr__(self):
        return f"<arena.realtime.PoolBlock {self.index} of {self.memory.nbytes} bytes>"


@cython.final
@cython.no_gc
cdef class Pool:
    """A fixed number of equal blocks of an arena, made in advance and handed out again and again.

    take() and put() allocate nothing, make no system call, and take no lock: with one thread that takes and one that
    puts both are wait-free, with more of either lock-free, also on free-threaded CPython. (Elsewhere the GIL is a lock
    by itself.) The block put back last is taken first. A block that is dropped and not put back stays taken.

    Parameters
    ----------
    arena
        The :class:`arena.Arena` that the memory is of. It gives the memory in one piece.
    nbytes
        Bytes of each block, or "64KiB".
    count
        How many blocks, from 1 to 16,777,214.
    align
        The alignment of each block in bytes: a power of two, up to the arena's chunk. By default it is a cache line, so
        that no two blocks share one.

    Raises
    ------
    ArenaFullError, CommitError, ValueError, RuntimeError
        As for :meth:`arena.Arena.alloc`.

    Notes
    -----
    The memory is as present, locked, huge and aligned as the arena makes it, and the arena cannot be reset before the
    pool is closed or gone.

    In the child of a fork the pool is a copy, as the arena's memory is; with fork="share" or "drop" it remains the
    parent's, and using it is a RuntimeError.

    Examples
    --------
    >>> from arena import Arena
    >>> from arena.realtime import Pool
    >>> with Pool(Arena("64MiB"), "64KiB", count=2) as pool:
    ...     block = pool.take()
    ...     pool.free
    ...     pool.put(block)
    1
    """
    cdef pool *c
    cdef _Memory memory
    cdef readonly tuple blocks
    """All blocks, taken or not, in the order of their addresses: to make arrays over them once."""

    def __cinit__(self, arena, nbytes, count, *, align=64):
        cdef uint32_t i
        self.memory = _Memory(arena, nbytes, count, align)
        # A comprehension would crash: where the list cannot grow, Cython 3.3.1's gives a reference back twice.
        blocks = []
        for i in range(self.memory.c.count):
            blocks.append(PoolBlock(self.memory, i))
        self.blocks = tuple(blocks)
        self.c = self.memory.c

    def take(self):
        """Take a free block.

        Returns
        -------
        PoolBlock
            The one that was put back last.

        Raises
        ------
        ArenaFullError
            (A MemoryError.) All blocks are taken.
        ValueError
            The pool is closed.
        RuntimeError
            The pool is the parent's of this child of a fork.

        Examples
        --------
        >>> from arena import Arena
        >>> from arena.realtime import Pool
        >>> pool = Pool(Arena("64MiB"), 4096, 1)
        >>> pool.take()
        <arena.realtime.PoolBlock 0 of 4096 bytes>
        """
        cdef uint32_t i
        if pool_whole(self.c, fork_generation[0]):
            i = pool_take(self.c)
            if i != POOL_NONE:
                return <object>PyTuple_GET_ITEM(self.blocks, i)
        return self.slow_take(True)

    def try_take(self):
        """Take a free block, or None if all are taken: a loop with a deadline pays for no exception.

        Returns
        -------
        PoolBlock or None
            The one that was put back last.

        Raises
        ------
        ValueError, RuntimeError
            As for :meth:`take`.

        Examples
        --------
        >>> from arena import Arena
        >>> from arena.realtime import Pool
        >>> pool = Pool(Arena("64MiB"), 4096, 1)
        >>> block = pool.take()
        >>> pool.try_take() is None
        True
        """
        cdef uint32_t i
        if pool_whole(self.c, fork_generation[0]):
            i = pool_take(self.c)
            if i != POOL_NONE:
                return <object>PyTuple_GET_ITEM(self.blocks, i)
        return self.slow_take(False)

    cdef slow_take(self, bint insist):
        cdef uint32_t i = POOL_NONE
        if users_closed(&self.memory.users):
            raise ValueError("the pool is closed")
        if not pool_whole(self.c, fork_generation[0]):
            self.memory.adopt()
            i = pool_take(self.c)
        if i != POOL_NONE:
            return <object>PyTuple_GET_ITEM(self.blocks, i)
        if insist:
            raise _errors.pool_empty_error(self.memory.nbytes, self.c.count)
        return None

    def put(self, PoolBlock block not None):
        """Give a taken block back.

        Parameters
        ----------
        block
            The block. It is the next one to be taken.

        Raises
        ------
        ValueError
            It is another pool's, or was put back before. (That it was put back, and has been taken by somebody else
            since, cannot be told.)
        RuntimeError
            The pool is the parent's of this child of a fork.

        Examples
        --------
        >>> from arena import Arena
        >>> from arena.realtime import Pool
        >>> pool = Pool(Arena("64MiB"), 4096, 1)
        >>> pool.put(pool.take())
        >>> pool.free
        1
        """
        if block.memory is not self.memory:
            raise ValueError("the block is another pool's")
        self.memory.put(block.index)

    def close(self):
        """Free the memory. Closing twice is fine.

        Raises
        ------
        BufferError
            A block is taken or exported.
        """
        self.memory.close()

    @property
    def nbytes(self):
        """Bytes of each block."""
        return self.memory.nbytes

    @property
    def free(self):
        """How many blocks can be taken.

        They are counted, which takes a nanosecond each, and other threads go on meanwhile.
        """
        if users_closed(&self.memory.users):
            return 0
        if not pool_whole(self.c, fork_generation[0]):
            try:
                self.memory.adopt()
            except RuntimeError:
                return 0
        return pool_free(self.c)

    @property
    def closed(self):
        """Whether close() was called."""
        return users_closed(&self.memory.users)

    def __enter__(self):
        if self.closed:
            raise ValueError("the pool is closed")
        return self

    def __exit__(self, *exc):
        try:
            self.close()
        except BufferError:
            if exc[0] is None:  # an exception in flight is not hidden, as in Arena
                raise

    def __repr__(self):
        if self.closed:
            return "<arena.realtime.Pool closed>"
        return f"<arena.realtime.Pool of {self.c.count} blocks of {_errors.amount(self.nbytes)}, {self.free} free>"


# --- Ring ------------------------------------------------------------------------------------------------------------

cdef extern from "memory/mirror.h" nogil:
    cdef struct mirror:
        char *base
        uint64_t bytes


cdef extern from "sys/page.h" nogil:
    const size_t OS_PAGE


cdef extern from "realtime/ring.h" nogil:
    cdef struct ring:
        pass
    uint64_t ring_readable(const ring *, uint64_t)
    uint64_t ring_writable(const ring *, uint64_t)
    uint64_t ring_written(const ring *)
    uint64_t ring_read(const ring *)
    bint ring_produce(ring *, uint64_t, uint64_t)
    bint ring_consume(ring *, uint64_t, uint64_t)


cdef extern from "Python.h":
    Py_ssize_t PyNumber_AsSsize_t(object, void *) except? -1


# From so many bytes on the GIL is given away while they are copied: that takes some 50 µs, of which giving it away and
# getting it back is little.
cdef uint64_t MANY = 1 << 20


cdef void copy(char *to, const char *start, uint64_t nbytes) noexcept:
    if nbytes > MANY:
        with nogil:
            memmove(to, start, nbytes)
    else:
        memmove(to, start, nbytes)


cdef uint64_t amount_of(nbytes) except? 0:
    cdef Py_ssize_t n = PyNumber_AsSsize_t(nbytes, NULL)  # what is too large becomes the nearest that is not
    if n < 0:
        raise ValueError(f"nbytes must not be negative, but is {n}")
    return n


cdef bytes name_of(name):
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, not {type(name).__name__}")
    if len(name) > 79 or not name.isascii() or not name.isprintable():
        raise ValueError("name must be up to 79 printable ASCII characters")
    return name.encode()


cdef int signals(void *arg, uint64_t done, uint64_t total) noexcept with gil:
    try:
        PyErr_CheckSignals()
    except BaseException as caught:
        (<list>arg).append(caught)
        return -EINTR
    return 0


cdef ring_exception(int rc, arena_error *e):
    op, where = e.op.decode(), e.where.decode("utf-8", "replace")
    numbers = {
        "offset": e.offset, "requested": e.requested, "committed": e.committed,
        "available": None if e.available == UINT64_MAX else e.available,
    }
    if op == "size":
        return ValueError(f"nbytes must be from 1 byte to 64 TiB, not {e.requested}")
    if op in ("memfd_create", "ftruncate", "fcntl(F_ADD_SEALS)", "mmap"):
        return _errors.reserve_error(-rc, op, where, None, 0, numbers, _core.overcommit_mode())
    return _errors.commit_error(-rc, op, where, numbers)


@cython.final
@cython.no_gc
cdef class Ring:
    """A ring buffer of bytes for one thread that writes and one that reads.

    Its memory is mapped twice, one time after the other, so that every window is contiguous: nothing is ever split at
    the end. All of it is present, in both mappings, before the constructor returns. Reading and writing is wait-free
    and makes no system call; copies of more than 1 MiB give the GIL away meanwhile. Each side has to be one thread at a
    time; two that write at once spoil the data, and nothing else.

    Parameters
    ----------
    nbytes
        The capacity, or "64KiB"; rounded up to whole pages. Address space of twice that, and a page, is taken.
    lock
        Whether the memory is mlocked. RLIMIT_MEMLOCK counts ``nbytes`` and a page, under lock_memory() too: one of
        the two mappings, which is enough.
    name
        For /proc/self/maps: up to 79 printable ASCII characters.

    Raises
    ------
    CommitError
        (An OSError and a MemoryError.) The memory is not there or may not be locked.
    ReserveError
        (An OSError and a MemoryError.) The memory cannot be mapped.
    ValueError, TypeError
        The arguments make no sense.

    Notes
    -----
    The ring is a buffer by itself, of ``2 * nbytes``: make a view or array of it once (``memoryview(ring)``,
    ``np.frombuffer(ring)``), and the next window begins at ``write_position % nbytes``, or ``read_position % nbytes``.

    The memory is shared with the child of a fork, positions included: one process may write and the other read. (The
    child's first touch of each page is a fault, and locks are not inherited.)

    Examples
    --------
    >>> from arena.realtime import Ring
    >>> with Ring("64KiB") as ring:
    ...     ring.write(b"some bytes")
    ...     ring.readinto(found := bytearray(4)), found, ring.readable
    10
    (4, bytearray(b'some'), 6)
    """
    cdef mirror m
    cdef ring *c
    cdef char *data
    cdef uint64_t users

    def __cinit__(self, nbytes, *, lock=False, name=None):
        cdef uint64_t n = parse_size(nbytes, "nbytes")
        cdef bytes named = b"arena-ring" if name is None else name_of(name)
        cdef const char *called = named
        cdef bint locked = bool(lock)
        cdef arena_error e
        cdef int rc
        cdef list caught = []
        cdef arena_progress progress = NULL
        if _threading.get_ident() == _threading.main_thread().ident:  # Python gives signals to no other thread
            progress = signals
        with nogil:
            rc = ring_memory(n, locked, called, progress, <void *>caught, &self.m, &e)
        if caught:
            raise caught[0]
        if rc:
            raise ring_exception(rc, &e)
        self.c = <ring *>self.m.base
        self.data = self.m.base + OS_PAGE

    def __dealloc__(self):
        with nogil:  # to unmap gigabytes takes long
            ring_memory_destroy(&self.m)

    # What is mapped stays so from here to leave(), which is given the answer, whoever calls close() meanwhile.

    cdef inline uint32_t enter(self) except? 0xffffffff:
        cdef uint32_t forks = fork_generation[0]
        if not users_enter(&self.users, forks):
            raise ValueError("the ring is closed")
        return forks

    cdef inline void leave(self, uint32_t forks) noexcept:
        users_leave(&self.users, forks, fork_generation[0])

    def __getbuffer__(self, Py_buffer *view, int flags):
        if not users_pin(&self.users, fork_generation[0]):
            raise BufferError("the ring is closed")
        try:
            PyBuffer_FillInfo(view, self, self.data, 2 * self.m.bytes, False, flags)
        except BaseException:
            users_unpin(&self.users)
            raise

    def __releasebuffer__(self, Py_buffer *view):
        users_unpin(&self.users)

    def write(self, data):
        """Copy as much of a buffer into the ring as there is room for.

        Parameters
        ----------
        data
            A contiguous buffer.

        Returns
        -------
        int
            The bytes copied.

        Raises
        ------
        ValueError
            The ring is closed.

        Examples
        --------
        >>> from arena.realtime import Ring
        >>> Ring(4096).write(bytes(5000))
        4096
        """
        cdef Py_buffer view
        cdef uint64_t n
        cdef uint32_t forks
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            forks = self.enter()
            n = min(<uint64_t>view.len, ring_writable(self.c, self.m.bytes))
            copy(self.data + ring_written(self.c) % self.m.bytes, <char *>view.buf, n)
            ring_produce(self.c, n, self.m.bytes)
            self.leave(forks)
        finally:
            PyBuffer_Release(&view)
        return n

    def readinto(self, buffer):
        """Move as much out of the ring as there is and fits.

        Parameters
        ----------
        buffer
            A writable, contiguous buffer.

        Returns
        -------
        int
            The bytes moved.

        Raises
        ------
        ValueError
            The ring is closed.

        Examples
        --------
        >>> from arena.realtime import Ring
        >>> Ring(4096).readinto(bytearray(10))
        0
        """
        cdef Py_buffer view
        cdef uint64_t n
        cdef uint32_t forks
        PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
        try:
            forks = self.enter()
            n = min(<uint64_t>view.len, ring_readable(self.c, self.m.bytes))
            copy(<char *>view.buf, self.data + ring_read(self.c) % self.m.bytes, n)
            ring_consume(self.c, n, self.m.bytes)
            self.leave(forks)
        finally:
            PyBuffer_Release(&view)
        return n

    def write_view(self, nbytes=None):
        """Make a window to write to.

        Parameters
        ----------
        nbytes
            Its length. None: all that is free.

        Returns
        -------
        memoryview
            A window; produced() says how much of it was written.

        Raises
        ------
        ValueError
            Not that many bytes are free, or the ring is closed.

        Examples
        --------
        >>> from arena.realtime import Ring
        >>> ring = Ring(4096)
        >>> ring.write_view(5)[:] = b"hello"
        >>> ring.produced(5)
        >>> bytes(ring.read_view())
        b'hello'
        """
        cdef uint64_t room = self.writable
        return self.window(self.write_position, nbytes, room, "free")

    def read_view(self, nbytes=None):
        """Make a window to read from.

        Parameters
        ----------
        nbytes
            Its length. None: all that can be read.

        Returns
        -------
        memoryview
            A window, which consumed() makes stale.

        Raises
        ------
        ValueError
            There are not that many bytes, or the ring is closed.

        Examples
        --------
        >>> from arena.realtime import Ring
        >>> ring = Ring(4096)
        >>> ring.write(b"hello")
        5
        >>> bytes(ring.read_view(2))
        b'he'
        >>> ring.consumed(2)
        """
        cdef uint64_t there = self.readable
        return self.window(self.read_position, nbytes, there, "to read")

    cdef window(self, uint64_t position, nbytes, uint64_t most, what):
        cdef uint64_t n = most if nbytes is None else amount_of(nbytes)
        if n > most:
            raise ValueError(f"{n} bytes are not {what}: {most} are")
        return memoryview(self)[position % self.m.bytes:position % self.m.bytes + n]

    def produced(self, nbytes):
        """Say that the next bytes of the room were written: they can be read from now on.

        Parameters
        ----------
        nbytes
            How many.

        Raises
        ------
        ValueError
            Not that many were free, or the ring is closed.
        """
        cdef uint64_t n = amount_of(nbytes)
        cdef uint32_t forks = self.enter()
        cdef bint done = ring_produce(self.c, n, self.m.bytes)
        self.leave(forks)
        if not done:
            raise ValueError(f"{n} bytes were not free: {self.writable} are")

    def consumed(self, nbytes):
        """Say that the next bytes were read: their room is free from now on.

        Parameters
        ----------
        nbytes
            How many.

        Raises
        ------
        ValueError
            There were not that many, or the ring is closed.
        """
        cdef uint64_t n = amount_of(nbytes)
        cdef uint32_t forks = self.enter()
        cdef bint done = ring_consume(self.c, n, self.m.bytes)
        self.leave(forks)
        if not done:
            raise ValueError(f"{n} bytes were not to read: {self.readable} are")

    def close(self):
        """Give the memory back. Closing twice is fine.

        Raises
        ------
        BufferError
            A view of the ring is exported, or another thread uses it.
        """
        if users_closed(&self.users):
            return
        if not users_close(&self.users, fork_generation[0]):
            if users_closed(&self.users):
                return
            raise BufferError("a view of the ring is exported, or another thread uses it: drop it before close()")
        with nogil:
            ring_memory_destroy(&self.m)

    @property
    def nbytes(self):
        """The capacity in bytes."""
        return self.m.bytes

    @property
    def readable(self):
        """Bytes that can be read. Nobody but the reader makes them fewer."""
        cdef uint32_t forks = self.enter()
        cdef uint64_t n = ring_readable(self.c, self.m.bytes)
        self.leave(forks)
        return n

    @property
    def writable(self):
        """Bytes that there is room for. Nobody but the writer makes them fewer."""
        cdef uint32_t forks = self.enter()
        cdef uint64_t n = ring_writable(self.c, self.m.bytes)
        self.leave(forks)
        return n

    @property
    def write_position(self):
        """Bytes written since the beginning."""
        cdef uint32_t forks = self.enter()
        cdef uint64_t n = ring_written(self.c)
        self.leave(forks)
        return n

    @property
    def read_position(self):
        """Bytes read since the beginning."""
        cdef uint32_t forks = self.enter()
        cdef uint64_t n = ring_read(self.c)
        self.leave(forks)
        return n

    @property
    def address(self):
        """The address of the first of the two mappings."""
        return <uint64_t>self.data

    @property
    def closed(self):
        """Whether close() was called."""
        return users_closed(&self.users)

    def __enter__(self):
        if self.closed:
            raise ValueError("the ring is closed")
        return self

    def __exit__(self, *exc):
        try:
            self.close()
        except BufferError:
            if exc[0] is None:  # an exception in flight is not hidden, as in Arena
                raise

    def __repr__(self):
        if self.closed:
            return "<arena.realtime.Ring closed>"
        return f"<arena.realtime.Ring of {_errors.amount(self.nbytes)}, {_errors.amount(self.readable)} to read>"


# --- page faults -----------------------------------------------------------------------------------------------------

cdef extern from "realtime/page_faults.h" nogil:
    const size_t FAULT_WATCH_RECORDS

    struct page_faults:
        int64_t minor, major
        uint64_t tag
        int unwatched
    uint64_t page_faults_owner()
    int page_faults_ready()
    int page_faults_open(uint64_t owner, bint watch, uint64_t tag)
    int page_faults_so_far(uint64_t owner, page_faults *out)
    int page_faults_close(uint64_t owner, page_faults *out)
    size_t page_faults_where(const page_faults *span, fault_record *out, size_t n)

    struct fault_record:
        uint64_t address, instruction
    struct fault_watch:
        pass
    int fault_watch_open(int signal, fault_watch **out)
    void fault_watch_close(fault_watch *watch)
    void fault_watch_arm(fault_watch *watch)
    void fault_watch_disarm(fault_watch *watch)
    uint64_t fault_watch_position(const fault_watch *watch)
    size_t fault_watch_read(const fault_watch *watch, uint64_t start, uint64_t end, fault_record *out, size_t n)


cdef extern from "dlfcn.h" nogil:
    ctypedef struct Dl_info:
        const char *dli_fname
        void *dli_fbase
        const char *dli_sname
        void *dli_saddr
    int dladdr(const void *address, Dl_info *info)


cdef list pairs(fault_record *records, size_t n):
    cdef size_t i
    found = []
    for i in range(n):
        found.append((records[i].address, records[i].instruction))
    return found


def symbol(uintptr_t address):
    """Name the code at an address, as ``"memset+0x20 (libc.so.6)"``.

    There is no name of a function where it is none that the object exports, and ``""`` where there is no object.
    """
    cdef Dl_info info
    if not dladdr(<void *>address, &info):
        return ""
    file = info.dli_fname.decode("utf-8", "replace").rpartition("/")[2]
    if info.dli_sname == NULL:
        return f"{file}+{address - <uintptr_t>info.dli_fbase:#x}"
    return f"{info.dli_sname.decode('utf-8', 'replace')}+{address - <uintptr_t>info.dli_saddr:#x} ({file})"


def ignore(int signal):
    """Have a signal ignored from now on, where it would have ended the process. By any thread."""
    set_handler(signal, SIG_IGN)


cdef class Watch:
    """Notes the faults of this thread while it is armed, with a signal to this thread for each.

    Parameters
    ----------
    signal
        The number of a signal, which the caller handles.

    Raises
    ------
    OSError
        perf_event_open(2) is refused.
    """
    cdef fault_watch *watch
    cdef uint64_t begin, end  # between these places are the notes of a block; end: 0, it has not ended

    def __cinit__(self, int signal):
        cdef int rc = fault_watch_open(signal, &self.watch)
        if rc:
            raise OSError(-rc, "perf_event_open")

    def __dealloc__(self):
        fault_watch_close(self.watch)

    def arm(self):
        """Begin to note faults."""
        fault_watch_arm(self.watch)

    def disarm(self):
        """Note no more faults."""
        fault_watch_disarm(self.watch)

    def faults(self):
        """Return (address, instruction) of each fault: a list of those before the block began, and one of its own."""
        cdef fault_record records[FAULT_WATCH_RECORDS]
        cdef uint64_t end = self.end if self.end else fault_watch_position(self.watch)
        before = pairs(records, fault_watch_read(self.watch, 0, self.begin, records, FAULT_WATCH_RECORDS))
        return before, pairs(
            records, fault_watch_read(self.watch, self.begin, end, records, FAULT_WATCH_RECORDS)
        )


cdef class count_page_faults:
    """Count the page faults of this thread in a ``with`` block, or in each call of a function that it decorates.

    Inside a block ``minor`` and ``major`` are this thread's so far; after it, those of the block that ended last, in
    whatever thread.

    Notes
    -----
    What a system call faults or populates on the thread's behalf counts, as in getrusage(2); what other threads do does
    not.

    One object can be used again and again, in blocks within each other, and in several threads. On ``async def``
    functions, and around an ``await``, the faults of the other tasks that this thread runs meanwhile count too; tasks
    whose blocks overlap need an object each (a decorator sees to that).

    Examples
    --------
    >>> from arena import Arena
    >>> from arena.realtime import count_page_faults
    >>> a = Arena("64MiB", pages="4K")
    >>> with count_page_faults() as faults:
    ...     a.warm("1MiB")
    >>> faults.minor >= 256, faults.major
    (True, 0)
    """
    cdef uint64_t owner
    cdef int64_t _minor, _major
    cdef count_page_faults total  # afterwards what is counted here is counted there as well
    cdef bint watch

    def __cinit__(self):
        self.owner = page_faults_owner()

    def __init__(self):
        pass

    cdef int ended(self, page_faults *span) except -1:
        if page_faults_close(self.owner, span):
            raise RuntimeError(
                f"this thread is in no block of this {type(self).__name__}: a block ends in the thread where it began"
            )
        cdef count_page_faults each = self
        while each is not None:
            each._minor = span.minor
            each._major = span.major
            each = each.total
        return 0

    def __enter__(self):
        if page_faults_open(self.owner, self.watch, 0):
            raise MemoryError
        return self

    def __exit__(self, kind, value, traceback):
        cdef page_faults span
        self.ended(&span)

    @property
    def minor(self):
        """Page faults that needed no reading."""
        cdef page_faults span
        return self._minor if page_faults_so_far(self.owner, &span) else span.minor

    @property
    def major(self):
        """Page faults that waited for a disk or for swap."""
        cdef page_faults span
        return self._major if page_faults_so_far(self.owner, &span) else span.major

    def __call__(self, function):
        from .realtime import _guarded

        return _guarded.guarded(self, function)

    def _fresh(self):
        """Make another that does the same, and counts for this one too."""
        cdef count_page_faults fresh = count_page_faults()
        fresh.total = self
        return fresh


# This tells by the tag of a block who records its lines, or why nobody does.
cdef dict recorders = {}


cdef stop(tag):
    cdef Watch watch
    from .realtime import _where

    recorder = recorders.pop(tag)
    if isinstance(recorder, str):
        return _where.Recording([], [], recorder)
    watch = recorder.watch
    watch.end = fault_watch_position(watch.watch)
    with recorder:
        return recorder.recording()


cdef class no_page_faults(count_page_faults):
    """Refuse the page faults of this thread in a ``with`` block, or in each call of a function that it decorates.

    The exception comes when the block ends. An exception inside the block goes on unchanged.

    Parameters
    ----------
    allow_minor
        So many minor faults are no error. A major one always is.
    where
        Note the addresses of the first 64 faults for the exception, where perf_event_open(2) is permitted. This costs a
        file descriptor, 8 KiB and 0.2 ms once for each thread, nothing in a block, and 1 µs for a fault or a switch of
        threads. With "lines" the Python line is noted too, found by a signal for each fault, which the thread handles
        before it goes on: to find out, not for production (0.5 ms a block, and for one block in the process at a time).

    Raises
    ------
    PageFaultError
        At the end of the block: there was a major fault, or more than ``allow_minor`` minor ones.
    ValueError, TypeError
        The arguments make no sense.

    Notes
    -----
    For the rest it is as :class:`count_page_faults`.

    Examples
    --------
    >>> from arena import Arena
    >>> from arena.realtime import no_page_faults
    >>> a = Arena("64MiB")
    >>> block = a.alloc("1MiB")
    >>> with no_page_faults(allow_minor=20):  # the interpreter's own
    ...     block[-1] = 1
    """
    cdef readonly int64_t allow_minor
    """So many minor faults are no error."""
    cdef readonly object where
    """Whether the addresses of the faults are noted: True, False or "lines"."""
    cdef bint lines

    def __init__(self, allow_minor=0, *, where=True):
        if not (where is True or where is False or where == "lines"):
            raise ValueError(f"where must be True, False or 'lines', not {where!r}")
        allowed = _operator.index(allow_minor)
        if allowed < 0:
            raise ValueError(f"allow_minor must be a number of faults from 0 on, not {allowed}")
        self.allow_minor = min(allowed, INT64_MAX)
        self.where = where
        self.watch = where is True
        self.lines = where == "lines"

    def __enter__(self):
        cdef uint64_t tag
        cdef Watch watch
        if self.lines:
            from .realtime import _where

            if page_faults_ready():
                raise MemoryError
            tag = page_faults_owner()
            recorder = recorders[tag] = _where.record(Watch, ignore)
            if not isinstance(recorder, str):
                # What was noted until now is not counted.
                watch = recorder.watch
                watch.begin = fault_watch_position(watch.watch)
            if page_faults_open(self.owner, False, tag):
                stop(tag)
                raise MemoryError
        elif page_faults_open(self.owner, self.watch, 0):
            raise MemoryError
        return self

    def __exit__(self, kind, value, traceback):
        cdef page_faults span
        self.ended(&span)
        recording = stop(span.tag) if self.lines else None
        if kind is None and (span.major > 0 or span.minor > self.allow_minor):
            self.refuse(&span, recording)

    cdef refuse(self, page_faults *span, recording):
        cdef fault_record records[FAULT_WATCH_RECORDS]
        from .realtime import _where

        if recording is None:
            noted = pairs(records, page_faults_where(span, records, FAULT_WATCH_RECORDS))
            recording = _where.Recording.of_watch(noted, span.unwatched, self.watch)
        raise _where.error(span.minor, span.major, self.allow_minor, recording, symbol)

    def _fresh(self):
        """Make another that does the same, and counts for this one too."""
        cdef no_page_faults fresh = no_page_faults(self.allow_minor, where=self.where)
        fresh.total = self
        return fresh


# --- stack and heap --------------------------------------------------------------------------------------------------

cdef extern from "realtime/prefault.h" nogil:
    long prefault_stack_left()
    void prefault_stack(size_t nbytes)
    bint prefault_keep_heap(bint keep, size_t nbytes)
    int prefault_heap(size_t nbytes)
    void prefault_trim_heap()


cdef size_t left() except? 0:
    cdef long nbytes = prefault_stack_left()
    if nbytes < 0:
        raise OSError(-nbytes, f"pthread_getattr_np: {_os.strerror(-nbytes)}")
    return nbytes


def stack_left():
    """Return how many bytes of this thread's stack can be made present."""
    return left()


def touch_stack(size_t nbytes):
    """Make so many bytes of this thread's stack present. ValueError: that many are not left."""
    if nbytes > left():
        raise ValueError("the stack ends before")
    with nogil:
        prefault_stack(nbytes)


def keep_heap(list wishes, bint fewer):
    """Have malloc keep what is freed, and its heap grow by as much as the largest wish.

    Without a wish malloc goes back to its own way, and gives back what nobody uses. NotImplementedError: this C
    library's malloc cannot be told.
    """
    cdef size_t most = 0
    for nbytes in wishes:
        most = max(most, nbytes)
    if not prefault_keep_heap(bool(wishes), most) and wishes:
        raise NotImplementedError("this C library's malloc cannot be told to keep memory")
    if not wishes:
        with nogil:
            prefault_trim_heap()


cdef bint was_on = False
cdef bint others = False
# CPython 3.12 has some hundred immortal objects of its own among the frozen ones; whoever freezes all has thousands.
cdef int OF_PYTHON = 2000 if _sys.version_info[:2] == (3, 12) else 0


def collect_not(list wishes, bint fewer):
    """Turn automatic garbage collection off; without a wish it is as it was before the first."""
    global was_on
    if not fewer and len(wishes) == 1:
        was_on = _gc.isenabled()
        _gc.disable()
    elif not wishes and was_on:
        _gc.enable()


def freeze(list wishes, bint fewer):
    """Take what there is out of all garbage collections; without a wish it is back.

    What somebody else has frozen cannot be told from it: then all stays frozen in the end.
    """
    global others
    if not fewer and len(wishes) == 1:
        others = _gc.get_freeze_count() > OF_PYTHON
    if not fewer:
        _gc.freeze()
    elif not wishes and not others:
        _gc.unfreeze()


def lock(list wishes, bint fewer):
    """Lock memory as the strongest of the wishes has it, each (current, future, on_fault)."""
    cdef bint current = False, future = False, on_fault = True
    for wish in wishes:
        current |= wish[0]
        future |= wish[1]
        on_fault &= wish[2]
    _core.lock_all(current, future, on_fault, fewer)


def touch_heap(size_t nbytes):
    """Make so many bytes present that malloc then has. MemoryError: there are none."""
    cdef int rc
    with nogil:
        rc = prefault_heap(nbytes)
    if rc:
        raise MemoryError(f"malloc has no {nbytes} bytes")
