# cython: language_level=3, freethreading_compatible=True, embedsignature=False, boundscheck=False
"""Reservation, Arena and Block: the C core as Python types. Thin; the one place where -errno becomes an exception."""

cimport cython
from cpython.buffer cimport PyBUF_CONTIG_RO, PyBUF_FORMAT, PyBUF_ND, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from cpython.pycapsule cimport PyCapsule_New
from libc.stdint cimport INT64_MAX, UINT64_MAX
from libc.string cimport memset

import errno as _errno
import os as _os
import threading as _threading

from . import arrays as _arrays, errors as _errors
from .ledger import Residency, Stats
from .sizes import parse_size


cdef extern from "stdbool.h":
    ctypedef bint c_bool "_Bool"


cdef extern from "arena.h" nogil:
    cdef enum arena_pages:
        ARENA_PAGES_AUTO, ARENA_PAGES_4K, ARENA_PAGES_THP
    cdef enum arena_fork:
        ARENA_FORK_COPY, ARENA_FORK_DROP, ARENA_FORK_WIPE
    enum:
        ARENA_ZERO, ARENA_NO_GROW
    cdef struct reservation_config:
        uint64_t size
        arena_pages pages
        arena_fork fork
        bint dump
        uint64_t headroom
        const char *name
    cdef struct reservation_stats:
        uint64_t size, page_size, committed, peak_committed, commits, releases, commit_ns, release_ns
        uintptr_t address
        bint lazy, dropped
    cdef struct arena_config:
        reservation_config reservation
        uint64_t chunk
        bint read_only_populate
        uint64_t retain
        uint64_t decay_ns
    cdef struct arena_stats:
        uint64_t reserved, committed, live, free_committed, blocks, peak_committed, peak_live, commits, releases
        uint64_t commit_ns, release_ns, largest_free, free
    cdef struct arena_api:
        uint32_t version
        arena_handle *(*of)(void *)
        int (*alloc)(arena_handle *, uint64_t, uint64_t, unsigned, arena_tick, void *, arena_block *, arena_error *)
        int (*attempt)(arena_handle *, uint64_t, uint64_t, arena_block *)
        int (*free)(arena_handle *, uint64_t)
        int (*resize)(arena_handle *, uint64_t, uint64_t, arena_tick, void *, arena_block *, arena_error *)
        int (*find)(arena_handle *, const void *, arena_block *)

    int reservation_create(const reservation_config *, reservation_handle **, arena_error *)
    int reservation_destroy(reservation_handle *)
    void reservation_get(reservation_handle *, reservation_stats *)
    int reservation_commit(reservation_handle *, uint64_t, uint64_t, bint, unsigned, arena_tick, void *, uint64_t *, arena_error *)
    int reservation_release(reservation_handle *, uint64_t, uint64_t, uint64_t *, arena_tick, void *, arena_error *)
    bint reservation_is_committed(reservation_handle *, uint64_t, uint64_t, bint)
    int reservation_verify(reservation_handle *, uint64_t, uint64_t, arena_tick, void *, arena_error *)
    int reservation_copy(reservation_handle *, uint64_t, void *, uint64_t, bint)

    int arena_create(const arena_config *, arena_handle **, arena_error *)
    int arena_close(arena_handle *)
    int arena_destroy(arena_handle *)
    int arena_try(arena_handle *, uint64_t, uint64_t, arena_block *)
    int arena_alloc(arena_handle *, uint64_t, uint64_t, unsigned, arena_tick, void *, arena_block *, arena_error *)
    int arena_give(arena_handle *, uint64_t, c_bool *)
    int arena_collect(arena_handle *)
    int arena_free(arena_handle *, uint64_t)
    int arena_resize(arena_handle *, uint64_t, uint64_t, arena_tick, void *, arena_block *, arena_error *)
    int arena_find(arena_handle *, const void *, arena_block *)
    int arena_warm(arena_handle *, uint64_t, unsigned, arena_tick, void *, arena_error *)
    int arena_trim(arena_handle *, uint64_t, uint64_t *, arena_error *)
    void arena_get(arena_handle *, arena_stats *)
    size_t arena_blocks(arena_handle *, uint64_t *, arena_block *, size_t)
    void *arena_address(arena_handle *)
    uint64_t arena_chunk(arena_handle *)
    reservation_handle *arena_reservation(arena_handle *)
    void arena_zero(void *, uint64_t)


cdef extern from "arena_internal.h" nogil:
    int arena_give_pinned(arena_handle *, uint64_t, c_bool *)
    void arena_unpin(arena_handle *)
    int arena_reset_pinned(arena_handle *)
    uint64_t *arena_epoch(arena_handle *)
    cdef struct os_residency_t "os_residency":
        uint64_t present, huge, zero, swapped
    int os_residency(const void *, size_t, os_residency_t *)
    int os_overcommit_mode()
    cdef struct lock_t "lock":
        uint32_t word
    void lock_take(lock_t *)
    void lock_drop(lock_t *)


cdef extern from "errno.h" nogil:
    enum:
        EBADF, ECANCELED, EDEADLK, EINTR, EINVAL, ENOSPC, ENOTCONN, EPERM, ESHUTDOWN


cdef extern from "exports.h" nogil:
    bint exports_take(uint64_t *)
    void exports_drop(uint64_t *)
    bint exports_close(uint64_t *)
    bint exports_closed(const uint64_t *)
    void exports_reopen(uint64_t *)


cdef extern from *:
    """
    #define arena_load64(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    """
    uint64_t arena_load64(uint64_t *) nogil


def get_include():
    """The folder of ``arena.h``, for C and Cython extensions."""
    return _os.path.join(_os.path.dirname(_os.path.abspath(__file__)), "include")


# --- errors ----------------------------------------------------------------------------------------------------------------

cdef dict numbers_of(arena_error *e):
    return {
        "offset": e.offset,
        "requested": e.requested,
        "committed": e.committed,
        "available": None if e.available == UINT64_MAX else e.available,
    }


cdef object as_exception(int rc, arena_error *e, bint grow=True):
    cdef int err = -rc
    op = e.op.decode() if e.op != NULL else ""
    if err == ENOSPC:
        return _errors.full_error(numbers_of(e), grow=grow)
    if err == ESHUTDOWN:
        return ValueError("the arena is closed")
    if err == ENOTCONN:
        return RuntimeError("this process is a fork's child, and the memory was made with fork='drop': it stays with the parent")
    if err == EDEADLK:
        return RuntimeError(
            "this memory is being committed by the very thread that asks for it, further up its stack "
            "(a progress callback or signal handler): nothing could ever finish"
        )
    if err == ECANCELED:
        return RuntimeError("the arena was reset while this block's memory was being committed")
    if err == EINVAL and op == "range":
        return ValueError(f"the range at offset {e.offset} of {e.requested} bytes is not within the reservation")
    return _errors.commit_error(err, op, e.where.decode("utf-8", "replace"), numbers_of(e))


cdef object as_reserve_exception(int rc, arena_error *e):
    op = e.op.decode() if e.op != NULL else ""
    if rc == -EINVAL and op == "chunk":
        return ValueError(
            "chunk must be a power of two from 4 KiB to 1 GiB, at least 2 MiB with pages='thp', and at least a 2^27th "
            f"of the arena, not {e.requested}"
        )
    if rc == -EINVAL:
        return ValueError(f"{op} must be from 1 byte to 64 TiB, not {e.requested}")
    return _errors.reserve_error(-rc, op, numbers_of(e), os_overcommit_mode())


# --- signals and progress while the GIL is released ------------------------------------------------------------------------------

@cython.final
cdef class Ticker:
    """What happens between the steps of a commit: signals in the main thread, the progress callback, or nothing at all."""

    cdef object progress, caught
    cdef bint signals
    cdef uint64_t total

    def __cinit__(self, progress):
        if progress is not None and not callable(progress):
            raise TypeError(f"progress must be callable as progress(done, total), not {type(progress).__name__}")
        self.progress = progress
        self.signals = _threading.get_ident() == _threading.main_thread().ident

    cdef arena_tick function(self) noexcept:
        # Another thread is not given signals by Python, and is spared the wait for the GIL.
        if self.signals or self.progress is not None:
            return tick
        return NULL

    cdef finish(self, uint64_t newly):
        if self.caught is not None:
            caught, self.caught = self.caught, None
            raise caught
        if self.progress is not None:
            total = self.total or newly
            self.progress(total, total)


cdef int tick(void *arg, uint64_t done, uint64_t total) noexcept with gil:
    cdef Ticker t = <Ticker>arg
    try:
        PyErr_CheckSignals()
        if t.progress is not None and total:
            t.total = total
            t.progress(done, total)
    except BaseException as caught:
        t.caught = caught
        return -EINTR
    return 0


# --- arguments -----------------------------------------------------------------------------------------------------------------

cdef uint64_t positive(size, what) except 0:
    n = parse_size(size, what)
    if n == 0:
        raise ValueError(f"{what} must not be 0")
    return n


cdef unsigned thread_count(threads) except? 0:
    if threads is None:
        return 0
    if not isinstance(threads, int) or threads < 1:
        raise ValueError(f"threads must be a positive int or None, not {threads!r}")
    return min(threads, 1024)


cdef bint for_writing(populate) except -1:
    if populate == "write":
        return True
    if populate == "read":
        return False
    raise ValueError(f"populate must be 'write' or 'read', not {populate!r}")


cdef uint64_t alignment(align) except 0:
    n = parse_size(align, "align")
    if n == 0 or n & (n - 1):
        raise ValueError(f"align must be a power of two, not {n}")
    return n


_PAGES = {"auto": ARENA_PAGES_AUTO, "4K": ARENA_PAGES_4K, "4KiB": ARENA_PAGES_4K, "thp": ARENA_PAGES_THP}
_FORK = {"copy": ARENA_FORK_COPY, "drop": ARENA_FORK_DROP, "wipe": ARENA_FORK_WIPE}


cdef choose(table, value, what):
    try:
        return table[value]
    except (KeyError, TypeError):
        raise ValueError(f"{what} must be one of {', '.join(map(repr, table))}, not {value!r}") from None


cdef bytes name_of(name):
    if name is None:
        return None
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, not {type(name).__name__}")
    # The kernel takes 79 printable characters without these.
    if len(name) > 79 or not name.isascii() or not name.isprintable() or any(c in "[]\\$`" for c in name):
        raise ValueError("name must be up to 79 printable ASCII characters without []\\$`")
    return name.encode()


cdef void configure(reservation_config *c, uint64_t size, pages, fork, dump, bytes name, uint64_t headroom) except *:
    c.size = size
    c.pages = choose(_PAGES, pages, "pages")
    c.fork = choose(_FORK, fork, "fork")
    c.dump = bool(dump)
    c.headroom = headroom
    c.name = <const char *>name if name is not None else NULL


cdef char *BYTES = b"B"


cdef void fill_view(object owner, Py_buffer *view, int flags, void *ptr, Py_ssize_t *size, bint readonly) except *:
    if readonly and flags & PyBUF_WRITABLE:
        raise BufferError("this view is read-only")
    view.obj = owner
    view.buf = ptr
    view.len = size[0]
    view.itemsize = 1
    view.readonly = readonly
    view.ndim = 1
    view.format = BYTES if flags & PyBUF_FORMAT else NULL
    view.shape = size if flags & PyBUF_ND else NULL
    view.strides = &view.itemsize if (flags & PyBUF_STRIDES) == PyBUF_STRIDES else NULL
    view.suboffsets = NULL
    view.internal = NULL


cdef residency_of(uint64_t address, uint64_t length, bint whole):
    cdef os_residency_t r
    cdef int rc
    with nogil:
        rc = os_residency(<void *>address, length, &r)
    if rc:
        raise OSError(-rc, f"cannot read /proc/self/pagemap: {_os.strerror(-rc)}")
    locked = dirty = None
    if whole:
        locked, dirty = _smaps(address, length)
    return Residency(r.present, r.huge, r.zero, r.swapped, locked, dirty)


def _smaps(address, length):
    """Locked and dirty bytes of the mappings within the range, from /proc/self/smaps."""
    locked = dirty = 0
    inside = False
    with open("/proc/self/smaps", encoding="ascii", errors="replace") as lines:
        for line in lines:
            key, _, rest = line.partition(" ")
            if not key.endswith(":"):
                start, end = (int(n, 16) for n in key.split("-"))
                inside = start < address + length and address < end
            elif inside and key == "Locked:":
                locked += int(rest.split()[0]) * 1024
            elif inside and key in ("Shared_Dirty:", "Private_Dirty:"):
                dirty += int(rest.split()[0]) * 1024
    return locked, dirty


# --- Reservation -----------------------------------------------------------------------------------------------------------------

@cython.final
@cython.no_gc
cdef class RangeView:
    """Exports a part of a reservation; the reservation is not released under it."""

    cdef Reservation owner
    cdef view_range range
    cdef char *ptr
    cdef Py_ssize_t size
    cdef bint readonly

    def __getbuffer__(self, Py_buffer *view, int flags):
        fill_view(self, view, flags, self.ptr, &self.size, self.readonly)

    def __dealloc__(self):
        # A view of it holds a reference to this object, so its life is the export's.
        if self.owner is not None:
            self.owner.look_away(&self.range)
            exports_drop(&self.owner.exports)


@cython.final
cdef class Reservation:
    """A sparse range of private anonymous memory: address space that costs nothing, of which parts are committed and released.

    For those who manage offsets themselves; :class:`Arena` is an allocator on top of one. Thread-safe.

    Parameters
    ----------
    size
        Bytes, or "64MiB", "2GiB", "1.5 GB". Rounded up to whole pages.
    pages
        "auto": 2 MiB transparent huge pages where the machine allows them and the size is 2 MiB or more, else 4 KiB.
        "thp", "4K" insist; ReserveError where there are none. What was had is ``page_size``.
    fork
        What the child of a fork gets: "copy" (copy-on-write; commit() again undoes that), "drop" (nothing: zeros, and
        RuntimeError for every call; the parent keeps its pages to itself) or "wipe" (zeros, usable).
    dump
        Include the memory in core dumps. Left out by default: a dump of a sparse terabyte takes for ever.
    name
        Shown in /proc/self/maps where the kernel was built with CONFIG_ANON_VMA_NAME.

    Raises ReserveError (an OSError and a MemoryError) when address space cannot be had, ValueError or TypeError for nonsense.
    """
    def __cinit__(self, size, *, pages="auto", fork="copy", dump=False, name=None):
        cdef reservation_config config
        cdef reservation_stats stats
        cdef arena_error e
        cdef int rc
        cdef bytes label = name_of(name)
        memset(&config, 0, sizeof(config))
        configure(&config, positive(size, "size"), pages, fork, dump, label, 0)
        with nogil:
            rc = reservation_create(&config, &self.c, &e)
        if rc:
            raise as_reserve_exception(rc, &e)
        reservation_get(self.c, &stats)
        self._size, self._page, self._address = stats.size, stats.page_size, stats.address

    def __dealloc__(self):
        if self.c != NULL:
            with nogil:
                reservation_destroy(self.c)

    cdef reservation_handle *open(self) except NULL:
        if exports_closed(&self.exports):
            raise ValueError("the reservation is closed")
        return self.c

    cdef range_of(self, nbytes, offset, uint64_t *start, uint64_t *length):
        start[0] = parse_size(offset, "offset")
        if start[0] > self._size:
            raise ValueError(f"offset {start[0]} is beyond the reservation's {self._size} bytes")
        length[0] = self._size - start[0] if nbytes is None else parse_size(nbytes, "nbytes")
        if length[0] > self._size - start[0]:
            raise ValueError(
                f"{length[0]} bytes at offset {start[0]} reach beyond the end of the reservation ({self._size} bytes)"
            )

    cdef bint look(self, view_range *range) noexcept nogil:
        # A view and a release of the same bytes exclude each other; views share.
        cdef view_range *other
        cdef bint free = True
        lock_take(<lock_t *>&self.views_lock)
        other = self.views
        while other != NULL and free:
            free = not (other.first < range.end and range.first < other.end and (range.is_release or other.is_release))
            other = other.next
        if free:
            range.prev = NULL
            range.next = self.views
            if self.views != NULL:
                self.views.prev = range
            self.views = range
        lock_drop(<lock_t *>&self.views_lock)
        return free

    cdef void look_away(self, view_range *range) noexcept nogil:
        lock_take(<lock_t *>&self.views_lock)
        if range.prev != NULL:
            range.prev.next = range.next
        else:
            self.views = range.next
        if range.next != NULL:
            range.next.prev = range.prev
        lock_drop(<lock_t *>&self.views_lock)

    def commit(self, nbytes=None, *, offset=0, populate="write", threads=None, progress=None):
        """Make ``nbytes`` at ``offset`` (default: all of it), rounded outward to pages, present. The bytes newly present.

        Afterwards a write, or with populate="read" a read, of any of it faults on nothing; read-populated private memory is
        the shared zero page and costs nothing (madvise(2), MADV_POPULATE_WRITE and MADV_POPULATE_READ, Linux 5.14; elsewhere
        each page is touched). After a fork, pages that became copy-on-write are made this process's own again.

        ``threads``: how many, None for min(CPUs, 16, bytes / 64 MiB). ``progress(done, total)`` is called in this thread, at
        most every 10 ms or so, and at the end; what it raises stops the commit, as an exception from a signal handler does.

        Raises CommitError (an OSError and a MemoryError). A commit that fails or is stopped gives back what it made present.
        """
        cdef uint64_t start, length, newly = 0
        cdef bint write = for_writing(populate)
        cdef unsigned count = thread_count(threads)
        cdef Ticker ticker = Ticker(progress)
        cdef arena_tick function = ticker.function()
        cdef arena_error e
        cdef int rc
        self.range_of(nbytes, offset, &start, &length)
        self.enter()
        try:
            with nogil:
                rc = reservation_commit(self.c, start, length, write, count, function, <void *>ticker, &newly, &e)
        finally:
            exports_drop(&self.exports)
        ticker.finish(newly)
        if rc:
            raise as_exception(rc, &e)
        return newly

    cdef enter(self):
        # Whoever is inside keeps close() out.
        self.open()
        if not exports_take(&self.exports):
            raise ValueError("the reservation is closed")

    def release(self, nbytes=None, *, offset=0, discard=False):
        """Give ``nbytes`` at ``offset`` (default: all of it), rounded inward to pages, back to the machine. The bytes given back.

        Released memory is zero when it is committed again. ``discard`` is for files and does nothing here. BufferError while a
        view of the range is exported.
        """
        cdef uint64_t start, length, freed = 0
        cdef Ticker ticker = Ticker(None)
        cdef arena_tick function = ticker.function()
        cdef arena_error e
        cdef view_range range
        cdef int rc
        self.range_of(nbytes, offset, &start, &length)
        self.enter()
        try:
            range.first, range.end, range.is_release = start, start + length, True
            if not self.look(&range):
                raise BufferError("a view of this range is exported (or it is being released): drop the view first")
            try:
                with nogil:
                    rc = reservation_release(self.c, start, length, &freed, function, <void *>ticker, &e)
            finally:
                self.look_away(&range)
        finally:
            exports_drop(&self.exports)
        ticker.finish(freed)
        if rc:
            raise as_exception(rc, &e)
        return freed

    def view(self, nbytes=None, *, offset=0, readonly=False):
        """A memoryview of ``nbytes`` at ``offset``, which must be committed (for writing, unless readonly): else ValueError.

        While it, or anything made from it, lives, its range is not released and the reservation not closed.
        """
        cdef uint64_t start, length
        cdef RangeView v
        self.range_of(nbytes, offset, &start, &length)
        if length == 0:
            raise ValueError("a view of 0 bytes is of no use")
        self.enter()
        try:
            v = RangeView.__new__(RangeView)
            v.range.first, v.range.end, v.range.is_release = start, start + length, False
            if not self.look(&v.range):
                raise BufferError("this range is being released")
            v.owner = self
        except BaseException:
            exports_drop(&self.exports)
            raise
        v.ptr = <char *>self._address + start
        v.size = length
        v.readonly = bool(readonly)
        if not reservation_is_committed(self.c, start, length, not v.readonly):
            raise ValueError(
                f"not all of the {length} bytes at offset {start} are committed"
                f"{'' if v.readonly else ' for writing'}: commit them first"
            )
        return memoryview(v)

    def verify(self, nbytes=None, *, offset=0):
        """See that what is committed of the range is still there: it is populated again, or CommitError says why it cannot be.

        A diagnosis, not a guarantee: the next moment may be different.
        """
        cdef uint64_t start, length
        cdef Ticker ticker = Ticker(None)
        cdef arena_tick function = ticker.function()
        cdef arena_error e
        cdef int rc
        self.range_of(nbytes, offset, &start, &length)
        self.enter()
        try:
            with nogil:
                rc = reservation_verify(self.c, start, length, function, <void *>ticker, &e)
        finally:
            exports_drop(&self.exports)
        ticker.finish(0)
        if rc:
            raise as_exception(rc, &e)

    cdef Py_ssize_t copy(self, buffer, offset, bint into) except -1:
        cdef Py_buffer view
        cdef uint64_t start, length
        cdef int rc
        self.enter()
        try:
            PyObject_GetBuffer(buffer, &view, PyBUF_CONTIG_RO if into else PyBUF_CONTIG_RO | PyBUF_WRITABLE)
            try:
                self.range_of(view.len, offset, &start, &length)
                with nogil:
                    rc = reservation_copy(self.c, start, view.buf, length, into)
            finally:
                PyBuffer_Release(&view)
        finally:
            exports_drop(&self.exports)
        if rc == -EPERM:
            raise PermissionError(_errno.EPERM, "process_vm_readv/writev is forbidden here (seccomp; docker: --cap-add SYS_PTRACE)")
        if rc:
            raise OSError(-rc, f"cannot copy {length} bytes at offset {start}: {_os.strerror(-rc)}")
        return length

    def read_into(self, buffer, *, offset=0):
        """Copy from the reservation into a writable buffer, through the kernel (process_vm_readv(2)). The bytes copied.

        OSError (EFAULT) where a load would end in a signal. PermissionError where seccomp forbids the call.
        """
        return self.copy(buffer, offset, False)

    def write_from(self, buffer, *, offset=0):
        """Copy from a buffer into the reservation, through the kernel (process_vm_writev(2)). The bytes copied.

        Errors as read_into().
        """
        return self.copy(buffer, offset, True)

    def residency(self, nbytes=None, *, offset=0):
        """The kernel's word on the range, as :class:`Residency`: /proc/self/pagemap, PAGEMAP_SCAN where there is one (Linux 6.7).

        ``locked`` and ``dirty`` come from smaps, for the whole reservation only. OSError where /proc is not to be had.
        """
        cdef uint64_t start, length
        self.open()
        self.range_of(nbytes, offset, &start, &length)
        return residency_of(self._address + start, length, length == self._size)

    def close(self):
        """Unmap it. BufferError while a view is exported or a commit under way. Closing twice is fine."""
        cdef reservation_handle *c
        if exports_closed(&self.exports):
            return
        if not exports_close(&self.exports):
            raise BufferError("a view of the reservation is exported, or another thread is committing: close it later")
        c, self.c = self.c, NULL
        with nogil:
            reservation_destroy(c)

    def __enter__(self):
        self.open()
        return self

    def __exit__(self, *exc):
        self.close()

    @property
    def size(self):
        """Bytes reserved."""
        return self._size

    @property
    def address(self):
        """Where it begins."""
        return self._address

    @property
    def page_size(self):
        """The unit of commit and release: 4096, or 2 MiB with huge pages."""
        return self._page

    @property
    def backing(self):
        """"anonymous"."""
        return "anonymous"

    @property
    def closed(self):
        """Whether close() was called."""
        return exports_closed(&self.exports)

    @property
    def committed(self):
        """Bytes committed: the ledger; residency() is the kernel's word."""
        cdef reservation_stats stats
        if not exports_take(&self.exports):
            return 0
        reservation_get(self.c, &stats)
        exports_drop(&self.exports)
        return stats.committed

    def fileno(self):
        """There is none: OSError (EBADF)."""
        raise OSError(EBADF, "anonymous memory has no file descriptor")

    def __repr__(self):
        if self.closed:
            return "<arena.Reservation closed>"
        return (
            f"<arena.Reservation {_errors.amount(self._size)} at {self._address:#x}, {_errors.amount(self.committed)} committed, "
            f"pages of {_errors.amount(self._page)}>"
        )


# --- Arena -------------------------------------------------------------------------------------------------------------------------

@cython.final
cdef class Arena:
    """An allocator on a reservation: blocks from memory that is there.

    Memory is committed by chunks as blocks need it, before alloc() returns, and kept when they are freed, so that the next
    alloc() is index work of some 60 ns and no system call. Thread-safe; the GIL is released while
    memory is populated.

    Parameters
    ----------
    size
        Bytes of address space, or "64GiB". It costs nothing until used, so ask for plenty.
    chunk
        Bytes that are committed and released at a time: a power of two from 4 KiB to 1 GiB. Below 2 MiB no huge pages.
    populate
        "write", or "read": the zero page until a block is first written, which then faults.
    retain, decay
        Free committed bytes to keep: None keeps all until trim(). What is beyond ``retain`` is released when blocks are
        freed, at once or, with ``decay`` seconds, once it was free for that long.
    headroom
        Bytes that are to stay available to the rest of the machine or memory cgroup: a commit that would take them fails.
    pages, fork, dump, name
        As for :class:`Reservation`.

    Raises as :class:`Reservation`.
    """
    def __cinit__(
        self, size, *, chunk="2MiB", populate="write", retain=None, decay=None, headroom=0,
        pages="auto", fork="copy", dump=False, name=None,
    ):
        cdef arena_config config
        cdef reservation_stats stats
        cdef arena_error e
        cdef int rc
        cdef bytes label = name_of(name)
        cdef uint64_t total = positive(size, "size")
        memset(&config, 0, sizeof(config))
        configure(&config.reservation, total, pages, fork, dump, label, parse_size(headroom, "headroom"))
        config.chunk = positive(chunk, "chunk")
        if chunk == "2MiB" and total < config.chunk:
            config.chunk = 0
        config.read_only_populate = not for_writing(populate)
        config.retain = UINT64_MAX if retain is None else parse_size(retain, "retain")
        config.decay_ns = 0
        if decay is not None:
            if not isinstance(decay, (int, float)) or not 0 <= decay < 1e9:
                raise ValueError(f"decay must be a number of seconds or None, not {decay!r}")
            if retain is None:
                raise ValueError("decay says when memory beyond `retain` is released: give retain= too (0 to keep none)")
            config.decay_ns = <uint64_t>(decay * 1e9)
        with nogil:
            rc = arena_create(&config, &self.c, &e)
        if rc:
            raise as_reserve_exception(rc, &e)
        reservation_get(arena_reservation(self.c), &stats)
        self._size, self._page, self._address = stats.size, stats.page_size, stats.address
        self.epoch_at = arena_epoch(self.c)

    def __dealloc__(self):
        # Blocks hold a reference, so there are none.
        if self.c != NULL:
            with nogil:
                arena_destroy(self.c)

    def alloc(self, nbytes, *, align=64, bint zero=False, bint grow=True):
        """A new :class:`Block` of ``nbytes`` that are present: writing them faults on nothing.

        ``align``: a power of two up to the chunk. ``zero``: all bytes are 0 (nothing is cleared that is known to be zero); else
        they may be what an earlier block left. ``grow=False``: from committed memory only, without any system call.

        Raises ArenaFullError (a MemoryError) where no free range is that large, CommitError where the machine or cgroup has not
        the memory, ValueError once the arena is closed.
        """
        cdef arena_block b
        cdef uint64_t n, step = 64
        cdef int rc
        if type(nbytes) is int:
            n = nbytes if 0 < nbytes <= INT64_MAX else positive(nbytes, "nbytes")
        else:
            n = positive(nbytes, "nbytes")
        if align != 64:
            step = alignment(align)
            if step > arena_chunk(self.c):
                raise ValueError(f"align must be at most the arena's chunk ({arena_chunk(self.c)}), not {align!r}")
        rc = arena_try(self.c, n, step, &b)
        if rc:
            return self.slow_alloc(n, step, zero, grow)
        if zero and b.dirty:
            if b.dirty >= 65536:
                with nogil:
                    arena_zero(b.address, b.dirty)
            else:
                arena_zero(b.address, b.dirty)
        return self.wrap(&b, n)

    cdef Block wrap(self, arena_block *b, uint64_t nbytes):
        cdef Block block = Block.__new__(Block)
        block._arena = self
        block.handle = b.handle
        block.ptr = <char *>b.address
        block.size = nbytes
        block.epoch = arena_load64(self.epoch_at)
        return block

    cdef Block slow_alloc(self, uint64_t nbytes, uint64_t align, bint zero, bint grow):
        cdef Ticker ticker = Ticker(None)
        cdef arena_tick function = ticker.function()
        cdef arena_block b
        cdef arena_error e
        cdef unsigned flags = (ARENA_ZERO if zero else 0) | (0 if grow else ARENA_NO_GROW)
        cdef int rc
        if nbytes > self._size:
            e.op, e.offset, e.requested, e.err = b"alloc", 0, nbytes, ENOSPC
            stats = self.stats()
            e.committed, e.available = stats.committed, stats.largest_free
            raise as_exception(-ENOSPC, &e, True)
        with nogil:
            rc = arena_alloc(self.c, nbytes, align, flags, function, <void *>ticker, &b, &e)
        if rc == 0:
            block = self.wrap(&b, nbytes)
            ticker.finish(0)
            return block
        ticker.finish(0)
        raise as_exception(rc, &e, grow)

    def empty(self, shape, dtype=float, order="C", *, align=64):
        """A new NumPy array, uninitialised. It owns its block, which is freed with the last view of it.

        ValueError for object dtypes; ImportError without NumPy; else as alloc().
        """
        return _arrays.empty(self, shape, dtype, order, align, False)

    def zeros(self, shape, dtype=float, order="C", *, align=64):
        """As empty(), of zeros. Memory that is known to be zero is not written."""
        return _arrays.empty(self, shape, dtype, order, align, True)

    def full(self, shape, fill_value, dtype=None, order="C", *, align=64):
        """As empty(), of one value, and by default of its dtype."""
        return _arrays.full(self, shape, fill_value, dtype, order, align)

    def warm(self, nbytes, *, threads=None, progress=None):
        """Have ``nbytes`` of free memory committed in one piece, and with it the index that blocks of 4 KiB in it need.

        It is kept, whatever ``retain`` says, until trim(). After a fork this makes all that is committed this process's own
        again. ``threads`` and ``progress`` as for Reservation.commit(); errors as for alloc().
        """
        cdef uint64_t n = positive(nbytes, "nbytes")
        cdef unsigned count = thread_count(threads)
        cdef Ticker ticker = Ticker(progress)
        cdef arena_tick function = ticker.function()
        cdef arena_error e
        cdef int rc
        with nogil:
            rc = arena_warm(self.c, n, count, function, <void *>ticker, &e)
        ticker.finish(n)
        if rc:
            raise as_exception(rc, &e)

    def trim(self, keep=0):
        """Give free committed memory back to the machine now, whole chunks, until at most about ``keep`` bytes of it are left. The
        bytes given back.
        """
        cdef uint64_t freed = 0, n = parse_size(keep, "keep")
        cdef arena_error e
        cdef int rc
        with nogil:
            rc = arena_trim(self.c, n, &freed, &e)
        if rc:
            raise as_exception(rc, &e)
        return freed

    def reset(self):
        """Free every block at once. BufferError while any of them is exported or being committed."""
        cdef int rc
        if self.is_closed:
            raise ValueError("the arena is closed")
        if not exports_close(&self.exports):
            raise BufferError("a view of a block is exported: drop it before reset()")
        try:
            with nogil:
                rc = arena_reset_pinned(self.c)
        finally:
            exports_reopen(&self.exports)
        if rc:
            raise BufferError("a block is being committed by another thread (or further up the stack): reset() later")

    def close(self):
        """No new blocks from now on; the mapping goes with the last block. BufferError while a block is exported (an array of
        empty() holds an export) or a commit is under way. Closing twice is fine.
        """
        cdef int rc
        if self.is_closed:
            return
        if not exports_close(&self.exports):
            raise BufferError("a view of a block is exported: drop it before close()")
        try:
            with nogil:
                rc = arena_close(self.c)
        finally:
            exports_reopen(&self.exports)
        if rc:
            raise BufferError("another thread is committing or releasing memory of this arena: close it later")
        self.is_closed = True

    def __enter__(self):
        if self.is_closed:
            raise ValueError("the arena is closed")
        return self

    def __exit__(self, *exc):
        self.close()

    def stats(self):
        """The ledger, as :class:`Stats`: exact when no other thread is inside the arena."""
        cdef arena_stats s
        with nogil:
            arena_get(self.c, &s)
        return Stats(
            s.reserved, s.committed, s.live, s.free_committed, s.blocks, s.peak_committed, s.peak_live, s.commits,
            s.releases, s.commit_ns / 1e9, s.release_ns / 1e9, s.largest_free,
            1.0 - s.largest_free / <double>s.free if s.free else 0.0,
        )

    def blocks(self):
        """(offset, nbytes) of every block in address order, nbytes rounded up to 64: a snapshot."""
        cdef uint64_t cursor = 0
        cdef arena_block some[256]
        cdef size_t i, n
        found = []
        while cursor != UINT64_MAX:
            with nogil:
                n = arena_blocks(self.c, &cursor, some, 256)
            for i in range(n):
                found.append((some[i].offset, some[i].bytes))
        return iter(found)

    def residency(self):
        """The kernel's word on the whole arena, as :class:`Residency`."""
        if self.is_closed:
            raise ValueError("the arena is closed")
        return residency_of(self._address, self._size, True)

    @property
    def size(self):
        """Bytes reserved."""
        return self._size

    @property
    def address(self):
        """Where it begins."""
        return self._address

    @property
    def page_size(self):
        """4096, or 2 MiB with huge pages."""
        return self._page

    @property
    def chunk(self):
        """Bytes that are committed and released at a time."""
        return arena_chunk(self.c)

    @property
    def backing(self):
        """"anonymous"."""
        return "anonymous"

    @property
    def closed(self):
        """Whether close() was called."""
        return self.is_closed

    def __repr__(self):
        if self.is_closed:
            return "<arena.Arena closed>"
        s = self.stats()
        return (
            f"<arena.Arena {_errors.amount(s.reserved)} reserved, {_errors.amount(s.committed)} committed, "
            f"{_errors.amount(s.live)} live in {s.blocks} blocks>"
        )


# --- Block -------------------------------------------------------------------------------------------------------------------------

# Not in a cycle, and so spared the garbage collector: a Block refers to an Arena, which refers to nothing, and neither can be
# subclassed or given attributes.
@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class Block:
    """Memory of an arena, as a buffer of bytes (PEP 3118). Made by Arena.alloc(); freed by free(), ``with`` or with the object.

    It keeps its arena mapped. While a buffer of it is exported it cannot be freed. One thing no library can see:
    np.ndarray(buffer=block) keeps the block but no export, so after an explicit free() it reads reused memory.
    """
    def __init__(self):
        raise TypeError("blocks are made by Arena.alloc()")

    def __dealloc__(self):
        cdef c_bool due = False
        if self._arena is None:
            return
        if exports_closed(&self.exports) or arena_give(self._arena.c, self.handle, &due) != 0:
            arena_unpin(self._arena.c)  # freed before, by free() or reset(): the mapping stayed for this object
        elif due:
            with nogil:
                arena_collect(self._arena.c)

    def __getbuffer__(self, Py_buffer *view, int flags):
        # The arena's word first: while it is taken no reset can begin, so the epoch stands still.
        if not exports_take(&self._arena.exports):
            raise BufferError("the arena is being reset or closed")
        if not exports_take(&self.exports):
            exports_drop(&self._arena.exports)
            raise BufferError("the block was freed")
        if self.epoch != arena_load64(self._arena.epoch_at):
            exports_drop(&self.exports)
            exports_drop(&self._arena.exports)
            raise BufferError("the block was freed (its arena was reset)")
        fill_view(self, view, flags, self.ptr, &self.size, False)

    def __releasebuffer__(self, Py_buffer *view):
        exports_drop(&self.exports)
        exports_drop(&self._arena.exports)

    def free(self):
        """Free the memory now. BufferError while it is exported, ValueError if it was freed before."""
        cdef c_bool due = False
        cdef arena_handle *c = self._arena.c
        if not exports_close(&self.exports):
            if exports_closed(&self.exports):
                raise ValueError("the block was freed before")
            raise BufferError("a view of the block is exported: drop it before free()")
        if arena_give_pinned(c, self.handle, &due) != 0:
            raise ValueError("the block was freed before (its arena was reset)")
        if due:
            with nogil:
                arena_collect(c)

    def resize(self, nbytes):
        """Make it larger or smaller where it is. ArenaFullError if what lies behind it is not free, BufferError while it is exported;
        else as Arena.alloc(). New bytes may be what an earlier block left.
        """
        cdef uint64_t n = positive(nbytes, "nbytes")
        cdef Ticker ticker = Ticker(None)
        cdef arena_tick function = ticker.function()
        cdef arena_block b
        cdef arena_error e
        cdef int rc
        if not exports_close(&self.exports):
            if exports_closed(&self.exports):
                raise ValueError("the block was freed before")
            raise BufferError("a view of the block is exported: drop it before resize()")
        try:
            with nogil:
                rc = arena_resize(self._arena.c, self.handle, n, function, <void *>ticker, &b, &e)
            if rc == 0:
                self.size = n
        finally:
            exports_reopen(&self.exports)
        ticker.finish(0)
        if rc == -ENOSPC:
            raise _errors.full_error(
                {"offset": self.offset, "requested": n, "committed": self._arena.stats().committed, "available": None},
                grow=True,
            )
        if rc == -EINVAL:
            raise ValueError("the block was freed before (its arena was reset), or the size is beyond the arena's")
        if rc:
            raise as_exception(rc, &e)

    @property
    def nbytes(self):
        """Bytes asked for."""
        return self.size

    @property
    def address(self):
        """Where it begins."""
        return <uint64_t>self.ptr

    @property
    def offset(self):
        """The same, from the arena's address."""
        return <uint64_t>self.ptr - self._arena._address

    @property
    def arena(self):
        """The arena it is of."""
        return self._arena

    @property
    def freed(self):
        """Whether its memory was freed, by free() or the arena's reset()."""
        return exports_closed(&self.exports) or self.epoch != arena_load64(self._arena.epoch_at)

    def __len__(self):
        return self.size

    def __getitem__(self, key):
        return memoryview(self)[key]

    def __setitem__(self, key, value):
        memoryview(self)[key] = value

    def __enter__(self):
        if self.freed:
            raise ValueError("the block was freed before")
        return self

    def __exit__(self, *exc):
        if not self.freed:
            self.free()

    def __repr__(self):
        if self.freed:
            return "<arena.Block freed>"
        return f"<arena.Block of {self.size} bytes at offset {self.offset}>"


# --- for C and Cython ----------------------------------------------------------------------------------------------------------------

cdef int block_alloc(Arena a, uint64_t nbytes, uint64_t align, arena_block *out) noexcept nogil:
    return arena_alloc(a.c, nbytes, align, 0, NULL, NULL, out, NULL)


cdef int block_attempt(Arena a, uint64_t nbytes, uint64_t align, arena_block *out) noexcept nogil:
    return arena_try(a.c, nbytes, align, out)


cdef int block_free(Arena a, uint64_t handle) noexcept nogil:
    return arena_free(a.c, handle)


cdef arena_handle *checked(o) except NULL:
    if not isinstance(o, Arena):
        raise TypeError(f"an arena.Arena is wanted, not {type(o).__name__}")
    return (<Arena>o).c


# A C caller finds the exception set where NULL is returned.
ctypedef arena_handle *(*of_function)(void *) noexcept


cdef arena_api api
api.version = 1
api.of = <of_function><void *>checked
api.alloc = arena_alloc
api.attempt = arena_try
api.free = arena_free
api.resize = arena_resize
api.find = arena_find
_C_API = PyCapsule_New(&api, "arena._core._C_API", NULL)
