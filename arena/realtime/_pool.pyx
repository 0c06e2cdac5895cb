# cython: language_level=3, freethreading_compatible=True, embedsignature=False, auto_pickle=False, autotestdict=False
# cython: binding=False, always_allow_keywords=False
# Methods as METH_NOARGS and METH_O, which the interpreter just calls: take() and put() are little more than that.
"""Pool: equal blocks of an arena, made in advance."""

cimport cython
from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer
from cpython.object cimport PyObject
from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free

import operator as _operator

from .. import _core, errors as _errors
from ..sizes import parse_size


cdef extern from "pool.h" nogil:
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


cdef extern from "exports.h" nogil:
    bint exports_take(uint64_t *)
    void exports_drop(uint64_t *)
    bint exports_closed(const uint64_t *)
    bint exports_close(uint64_t *)


cdef extern from "Python.h":
    PyObject *PyTuple_GET_ITEM(tuple, Py_ssize_t)  # borrowed


cdef extern from "stdlib.h" nogil:
    void *aligned_alloc(size_t align, size_t nbytes)


cdef extern from *:
    """
    #include <pthread.h>

    static uint32_t forks; /* how many made this process */
    static void forked(void) { forks = (forks + 1) & (UINT32_MAX >> 1); }
    static int watch_forks(void) { return pthread_atfork(NULL, NULL, forked); }
    """
    uint32_t forks
    int watch_forks()

if watch_forks():
    raise MemoryError("pthread_atfork")


# What a Pool and its blocks share. They refer to it and it to neither, so there is no cycle for the garbage collector.
@cython.final
@cython.no_gc
cdef class _Memory:
    cdef pool *c
    cdef uint64_t exports
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
        pool_init(self.c, number, forks)

    def __dealloc__(self):
        PyBuffer_Release(&self.view)
        free(self.c)

    cdef int adopt(self) except -1:
        """In the child of a fork: make the pool the child's own; RuntimeError where its memory is not."""
        try:
            self.arena.alloc(1, grow=False)  # which says so
        except MemoryError:
            pass
        pool_adopt(self.c, forks)
        return 0

    cdef int put(self, uint32_t index) except -1:
        if pool_whole(self.c, forks) and pool_put(self.c, index):
            return 0
        if exports_closed(&self.exports):
            raise ValueError("the pool is closed")
        if not pool_whole(self.c, forks):
            self.adopt()
            if pool_put(self.c, index):
                return 0
        raise ValueError(f"block {index} is not taken: it was put back before")

    cdef close(self):
        cdef uint32_t first = POOL_NONE
        cdef bint lost = False
        if exports_closed(&self.exports):
            return
        if not pool_whole(self.c, forks):
            try:
                self.adopt()
            except RuntimeError:
                lost = True
        if not lost:
            first = pool_close(self.c)
            if first == POOL_NONE:
                raise BufferError("some blocks are taken: put() them back before close()")
        if not exports_close(&self.exports):
            if not lost:
                pool_reopen(self.c, first)
            raise BufferError("a view of a block is exported: drop it before close()")
        PyBuffer_Release(&self.view)
        self.block.free()


@cython.final
@cython.no_gc
cdef class PoolBlock:
    """A block of a :class:`Pool`: a writable buffer of bytes, handed out by take() again and again. ``with`` puts it
    back.

    Views of it may be made once and kept: an array over a block is good whenever the block is taken. What somebody
    reads or writes through a view after put() is the next taker's, which no pool can see.
    """
    cdef _Memory memory
    cdef char *ptr
    cdef readonly uint32_t index
    """Which one it is: ``pool.blocks[block.index] is block``."""

    def __cinit__(self, _Memory memory not None, uint32_t index):
        if index >= memory.c.count:
            raise IndexError(index)
        self.memory, self.index = memory, index
        self.ptr = <char *>memory.view.buf + index * memory.stride

    def __getbuffer__(self, Py_buffer *view, int flags):
        if not exports_take(&self.memory.exports):
            raise BufferError("the pool is closed")
        try:
            PyBuffer_FillInfo(view, self, self.ptr, self.memory.nbytes, False, flags)
        except BaseException:
            exports_drop(&self.memory.exports)
            raise

    def __releasebuffer__(self, Py_buffer *view):
        exports_drop(&self.memory.exports)

    @property
    def nbytes(self):
        """Bytes of it."""
        return self.memory.nbytes

    @property
    def address(self):
        """Where it begins."""
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

    The memory is as present, locked, huge and aligned as the arena makes it, and the arena cannot be closed or reset
    before the pool is closed or gone. In the child of a fork the pool is a copy, as the arena's memory is; with
    fork="share" or "drop" it remains the parent's, and using it is a RuntimeError.

    Parameters
    ----------
    arena
        The :class:`arena.Arena` that the memory is of.
    nbytes
        Bytes of each block, or "64KiB".
    count
        How many, from 1 to 16,777,214.
    align
        The alignment of each block in bytes: a power of two, up to the arena's chunk. By default a cache line, so that
        no two blocks share one.

    Raises as Arena.alloc(), which gives the memory in one piece.
    """
    cdef pool *c
    cdef _Memory memory
    cdef readonly tuple blocks
    """All blocks, taken or not, in the order of their addresses: to make arrays over them once."""

    def __cinit__(self, arena, nbytes, count, *, align=64):
        cdef uint32_t i
        self.memory = _Memory(arena, nbytes, count, align)
        self.blocks = tuple([PoolBlock(self.memory, i) for i in range(self.memory.c.count)])
        self.c = self.memory.c

    def take(self):
        """A free block. ArenaFullError (a MemoryError) if all are taken, ValueError once the pool is closed."""
        cdef uint32_t i
        if pool_whole(self.c, forks):
            i = pool_take(self.c)
            if i != POOL_NONE:
                return <object>PyTuple_GET_ITEM(self.blocks, i)
        return self.seldom(True)

    def try_take(self):
        """A free block, or None if all are taken: what a loop with a deadline does not pay for an exception."""
        cdef uint32_t i
        if pool_whole(self.c, forks):
            i = pool_take(self.c)
            if i != POOL_NONE:
                return <object>PyTuple_GET_ITEM(self.blocks, i)
        return self.seldom(False)

    cdef seldom(self, bint insist):
        cdef uint32_t i = POOL_NONE
        if exports_closed(&self.memory.exports):
            raise ValueError("the pool is closed")
        if not pool_whole(self.c, forks):
            self.memory.adopt()
            i = pool_take(self.c)
        if i != POOL_NONE:
            return <object>PyTuple_GET_ITEM(self.blocks, i)
        if insist:
            raise _errors.pool_empty_error(self.memory.nbytes, self.c.count)
        return None

    def put(self, PoolBlock block not None):
        """Give a taken block back. ValueError if it is another pool's, or was put back before. (That it was put back,
        and has been taken by somebody else since, cannot be told.)"""
        if block.memory is not self.memory:
            raise ValueError("the block is another pool's")
        self.memory.put(block.index)

    def close(self):
        """Free the memory. BufferError while a block is taken or exported. Closing twice is fine."""
        self.memory.close()

    @property
    def nbytes(self):
        """Bytes of each block."""
        return self.memory.nbytes

    @property
    def free(self):
        """How many blocks can be taken: they are counted, which takes a nanosecond each, and others go on meanwhile."""
        if exports_closed(&self.memory.exports):
            return 0
        if not pool_whole(self.c, forks):
            try:
                self.memory.adopt()
            except RuntimeError:
                return 0
        return pool_free(self.c)

    @property
    def closed(self):
        """Whether close() was called."""
        return exports_closed(&self.memory.exports)

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
