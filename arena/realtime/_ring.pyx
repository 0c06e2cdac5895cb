# cython: language_level=3, freethreading_compatible=True, embedsignature=False, auto_pickle=False, autotestdict=False
# cython: binding=False, always_allow_keywords=False
"""Ring: a ring buffer in which every window is contiguous."""

cimport cython
from cpython.buffer cimport (
    PyBUF_SIMPLE, PyBUF_WRITABLE, PyBuffer_FillInfo, PyBuffer_Release, PyObject_GetBuffer,
)
from cpython.exc cimport PyErr_CheckSignals
from libc.errno cimport EINTR
from libc.stdint cimport UINT64_MAX, uint64_t
from libc.string cimport memmove

import threading as _threading

from .. import errors as _errors
from ..sizes import parse_size


cdef extern from "arena.h":
    ctypedef int (*arena_tick)(void *arg, uint64_t done, uint64_t total) noexcept nogil
    cdef struct arena_error:
        const char *op
        uint64_t offset, requested, committed, available
        char where[512]


cdef extern from "mirror.h" nogil:
    cdef struct mirror:
        char *base
        uint64_t bytes
    int mirror_create(uint64_t, bint lock, const char *name, arena_tick, void *arg, mirror *, arena_error *)
    void mirror_destroy(mirror *)


cdef extern from "os.h" nogil:
    const size_t OS_PAGE
    int os_overcommit_mode()


cdef extern from "ring.h" nogil:
    cdef struct ring:
        pass
    uint64_t ring_readable(const ring *, uint64_t)
    uint64_t ring_writable(const ring *, uint64_t)
    uint64_t ring_written(const ring *)
    uint64_t ring_read(const ring *)
    bint ring_produce(ring *, uint64_t, uint64_t)
    bint ring_consume(ring *, uint64_t, uint64_t)


cdef extern from "exports.h" nogil:
    bint exports_take(uint64_t *)
    void exports_drop(uint64_t *)
    bint exports_close(uint64_t *)
    bint exports_closed(const uint64_t *)


cdef extern from "Python.h":
    Py_ssize_t PyNumber_AsSsize_t(object, void *) except? -1


# Bytes from which on others may run while they are copied: some 50 µs, of which giving the GIL away and getting it back
# is little.
cdef uint64_t MANY = 1 << 20


cdef void copy(char *to, const char *start, uint64_t nbytes) noexcept:
    if nbytes > MANY:
        with nogil:
            memmove(to, start, nbytes)
    else:
        memmove(to, start, nbytes)


cdef uint64_t amount_of(nbytes) except? 0:
    cdef Py_ssize_t n = PyNumber_AsSsize_t(nbytes, NULL)  # the nearest, of what is too large
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


cdef as_exception(int rc, arena_error *e):
    op, where = e.op.decode(), e.where.decode("utf-8", "replace")
    numbers = {
        "offset": e.offset, "requested": e.requested, "committed": e.committed,
        "available": None if e.available == UINT64_MAX else e.available,
    }
    if op == "size":
        return ValueError(f"nbytes must be from 1 byte to 64 TiB, not {e.requested}")
    if op in ("memfd_create", "ftruncate", "fcntl(F_ADD_SEALS)", "mmap"):
        return _errors.reserve_error(-rc, op, where, None, 0, numbers, os_overcommit_mode())
    return _errors.commit_error(-rc, op, where, numbers)


@cython.final
@cython.no_gc
cdef class Ring:
    """A ring buffer of bytes for one thread that writes and one that reads, in memory that is mapped twice, one time
    after the other, so that every window is contiguous: nothing is ever split at the end.

    All of it is present, in both mappings, before the constructor returns. Reading and writing is wait-free and makes
    no system call; copies of more than 1 MiB give the GIL away meanwhile. Each side has to be one thread at a time; two
    that write at once spoil the data, and nothing else.

    The ring is a buffer by itself, of ``2 * nbytes``: make a view or array of it once (``memoryview(ring)``,
    ``np.frombuffer(ring)``), and the next window begins at ``write_position % nbytes``, or ``read_position % nbytes``.

    The memory is shared with the child of a fork, positions included: one process may write and the other read. (The
    child's first touch of each page is a fault, and locks are not inherited.)

    Parameters
    ----------
    nbytes
        The capacity, or "64KiB"; rounded up to whole pages. Address space of twice that, and a page, is taken.
    lock
        Whether it is mlocked. RLIMIT_MEMLOCK counts ``nbytes`` and a page: one of the two mappings, which is enough.
    name
        For /proc/self/maps: up to 79 printable ASCII characters.

    Raises CommitError where the memory is not there or may not be locked, ReserveError where it cannot be mapped; both
    are OSErrors and MemoryErrors. Nothing is left then.
    """
    cdef mirror m
    cdef ring *c
    cdef char *data
    cdef uint64_t exports

    def __cinit__(self, nbytes, *, lock=False, name=None):
        cdef uint64_t n = parse_size(nbytes, "nbytes")
        cdef bytes named = b"arena-ring" if name is None else name_of(name)
        cdef const char *called = named
        cdef bint locked = bool(lock)
        cdef arena_error e
        cdef int rc
        cdef list caught = []
        cdef arena_tick tick = NULL
        if _threading.get_ident() == _threading.main_thread().ident:  # others are not given signals by Python
            tick = signals
        with nogil:
            rc = mirror_create(n, locked, called, tick, <void *>caught, &self.m, &e)
        if caught:
            mirror_destroy(&self.m)  # if the last step was done already
            raise caught[0]
        if rc:
            raise as_exception(rc, &e)
        self.c = <ring *>self.m.base
        self.data = self.m.base + OS_PAGE

    def __dealloc__(self):
        mirror_destroy(&self.m)

    # What is mapped stays so between the two, whoever calls close() meanwhile.

    cdef inline int enter(self) except -1:
        if not exports_take(&self.exports):
            raise ValueError("the ring is closed")
        return 0

    cdef inline void leave(self) noexcept:
        exports_drop(&self.exports)

    def __getbuffer__(self, Py_buffer *view, int flags):
        if not exports_take(&self.exports):
            raise BufferError("the ring is closed")
        try:
            PyBuffer_FillInfo(view, self, self.data, 2 * self.m.bytes, False, flags)
        except BaseException:
            exports_drop(&self.exports)
            raise

    def __releasebuffer__(self, Py_buffer *view):
        exports_drop(&self.exports)

    def write(self, data):
        """Copy as much of the buffer ``data`` into the ring as there is room for. The number of bytes."""
        cdef Py_buffer view
        cdef uint64_t n
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            self.enter()
            n = min(<uint64_t>view.len, ring_writable(self.c, self.m.bytes))
            copy(self.data + ring_written(self.c) % self.m.bytes, <char *>view.buf, n)
            ring_produce(self.c, n, self.m.bytes)
            self.leave()
        finally:
            PyBuffer_Release(&view)
        return n

    def readinto(self, buffer):
        """Move as much out of the ring as there is and fits into ``buffer``, which is writable. The number of bytes."""
        cdef Py_buffer view
        cdef uint64_t n
        PyObject_GetBuffer(buffer, &view, PyBUF_WRITABLE)
        try:
            self.enter()
            n = min(<uint64_t>view.len, ring_readable(self.c, self.m.bytes))
            copy(<char *>view.buf, self.data + ring_read(self.c) % self.m.bytes, n)
            ring_consume(self.c, n, self.m.bytes)
            self.leave()
        finally:
            PyBuffer_Release(&view)
        return n

    def write_view(self, nbytes=None):
        """A window of ``nbytes`` to write to (by default all that are free): a new memoryview. produced() says how much
        of it was written. ValueError if not that many are free."""
        cdef uint64_t room = self.writable
        return self.window(self.write_position, nbytes, room, "free")

    def read_view(self, nbytes=None):
        """A window of ``nbytes`` to read (by default all there are): a new memoryview, which consumed() makes stale.
        ValueError if there are not that many."""
        cdef uint64_t there = self.readable
        return self.window(self.read_position, nbytes, there, "to read")

    cdef window(self, uint64_t position, nbytes, uint64_t most, what):
        cdef uint64_t n = most if nbytes is None else amount_of(nbytes)
        if n > most:
            raise ValueError(f"{n} bytes are not {what}: {most} are")
        return memoryview(self)[position % self.m.bytes:position % self.m.bytes + n]

    def produced(self, nbytes):
        """The next ``nbytes`` of the room were written: they can be read from now on. ValueError if not that many were
        free."""
        cdef uint64_t n = amount_of(nbytes)
        self.enter()
        cdef bint done = ring_produce(self.c, n, self.m.bytes)
        self.leave()
        if not done:
            raise ValueError(f"{n} bytes were not free: {self.writable} are")

    def consumed(self, nbytes):
        """The next ``nbytes`` were read: their room is free from now on. ValueError if there were not that many."""
        cdef uint64_t n = amount_of(nbytes)
        self.enter()
        cdef bint done = ring_consume(self.c, n, self.m.bytes)
        self.leave()
        if not done:
            raise ValueError(f"{n} bytes were not to read: {self.readable} are")

    def close(self):
        """Give the memory back. BufferError while a view of it is exported. Closing twice is fine."""
        if exports_closed(&self.exports):
            return
        if not exports_close(&self.exports):
            if exports_closed(&self.exports):
                return
            raise BufferError("a view of the ring is exported, or another thread uses it: drop it before close()")
        mirror_destroy(&self.m)

    @property
    def nbytes(self):
        """The capacity, in bytes."""
        return self.m.bytes

    @property
    def readable(self):
        """Bytes that can be read. Nobody but the reader makes them fewer."""
        self.enter()
        cdef uint64_t n = ring_readable(self.c, self.m.bytes)
        self.leave()
        return n

    @property
    def writable(self):
        """Bytes that there is room for. Nobody but the writer makes them fewer."""
        self.enter()
        cdef uint64_t n = ring_writable(self.c, self.m.bytes)
        self.leave()
        return n

    @property
    def write_position(self):
        """Bytes written since the beginning."""
        self.enter()
        cdef uint64_t n = ring_written(self.c)
        self.leave()
        return n

    @property
    def read_position(self):
        """Bytes read since the beginning."""
        self.enter()
        cdef uint64_t n = ring_read(self.c)
        self.leave()
        return n

    @property
    def address(self):
        """Where the first of the two mappings begins."""
        return <uint64_t>self.data

    @property
    def closed(self):
        """Whether close() was called."""
        return exports_closed(&self.exports)

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
