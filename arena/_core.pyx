# cython: language_level=3, freethreading_compatible=True, embedsignature=False, boundscheck=False, auto_pickle=False
"""Reservation, Arena and Block: the C core as Python types. Thin; the one place where -errno becomes an exception."""

cimport cython
from cpython.buffer cimport (
    PyBUF_CONTIG_RO, PyBUF_FORMAT, PyBUF_ND, PyBUF_SIMPLE, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.exc cimport PyErr_CheckSignals, PyErr_Occurred
from cpython.long cimport PyLong_AsLongLongAndOverflow
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport INT64_MAX, UINT64_MAX, int32_t, uint8_t, uint16_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset, strcpy

from arena._capi cimport *

import errno as _errno
import operator as _operator
import os as _os
import threading as _threading
import warnings as _warnings
import weakref as _weakref

from . import arrays as _arrays, errors as _errors
from .ledger import Residency, Stats
from .sizes import parse_size


# --- errors ----------------------------------------------------------------------------------------------------------

# Here -errno and its numbers become an exception.

cdef dict numbers_of(arena_error *e):
    return {
        "offset": e.offset,
        "requested": e.requested,
        "committed": e.committed,
        "available": None if e.available == UINT64_MAX else e.available,
    }


cdef object as_exception(int rc, arena_error *e, bint grow=True):
    cdef int err = -rc
    op = e.op.decode() if e != NULL and e.op != NULL else ""
    if err == ENOSPC and op in ("alloc", "resize"):
        return _errors.full_error(numbers_of(e), grow=grow)
    if err == ENOSPC and op == "index":
        return _errors.index_error(numbers_of(e))
    if err == ESHUTDOWN:
        return ValueError(f"the {'reservation' if op == 'reservation' else 'arena'} is closed")
    if err == ENOTCONN:
        return RuntimeError(
            "this process is a fork's child, and the memory was made with fork='drop' (the default for private hugetlb "
            "pages): it stays with the parent"
        )
    if err == EXDEV:
        return RuntimeError(
            "this process is a fork's child: it shares the arena's blocks with its parent, who alone gives out new ones"
        )
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


cdef object refused(int rc):
    """Of a reservation that is closed or dropped, where the core has no more to say."""
    cdef arena_error e
    e.op = b"reservation"
    return as_exception(rc, &e)


cdef object as_reserve_exception(int rc, arena_error *e, reservation_config *config):
    op = e.op.decode() if e.op != NULL else ""
    if rc == -EINVAL and op == "chunk":
        return ValueError(
            "chunk must be a power of two from 4 KiB to 1 GiB, no smaller than a huge page where pages= asks for them, "
            f"and at least a 2^27th of the arena, not {e.requested}"
        )
    if rc == -EINVAL and op == "size":
        return ValueError(f"{op} must be from 1 byte to 64 TiB, not {e.requested}")
    if rc == -EINVAL and op == "readonly":
        return ValueError("readonly=True is for files that are there: in a directory a new one would be made")
    if rc == -EINVAL and op == "pages":
        return ValueError("a file on hugetlbfs has the pages of its mount: leave pages= out, or give that size")
    if rc == -EINVAL and op == "mbind":
        return ValueError(f"there is no NUMA node {config.node} with memory here (/sys/devices/system/node/has_memory)")
    path = config.path.decode("utf-8", "replace") if config.path != NULL else None
    return _errors.reserve_error(
        -rc, op, e.where.decode("utf-8", "replace"), path, config.page_bytes, numbers_of(e), os_overcommit_mode()
    )


# --- signals and progress --------------------------------------------------------------------------------------------

# While the GIL is released signals are looked for here, and progress is told.

@cython.final
cdef class ProgressCall:
    """What happens between the steps of a commit: signals in the main thread, the progress callback, or nothing."""

    cdef object progress, caught
    cdef bint signals

    def __cinit__(self, progress):
        if progress is not None and not callable(progress):
            raise TypeError(f"progress must be callable as progress(done, total), not {type(progress).__name__}")
        self.progress = progress
        self.signals = _threading.get_ident() == _threading.main_thread().ident

    cdef arena_progress function(self) noexcept:
        # Another thread is not given signals by Python, and is spared the wait for the GIL.
        if self.signals:
            return progress_with_gil
        if self.progress is not None:
            return progress_without_gil
        return NULL

    cdef raise_caught(self):
        """What a signal's handler or ``progress`` has raised, which has stopped the commit."""
        if self.caught is not None:
            caught, self.caught = self.caught, None
            raise caught


cdef int progress_without_gil(void *arg, uint64_t done, uint64_t total) noexcept nogil:
    # Whoever asks a finalizing interpreter for the GIL is ended on the spot, with helpers still at work on its stack.
    return -EINTR if arena_finalizing() else progress_with_gil(arg, done, total)


cdef int progress_with_gil(void *arg, uint64_t done, uint64_t total) noexcept with gil:
    cdef ProgressCall t = <ProgressCall>arg
    try:
        PyErr_CheckSignals()
        if t.progress is not None and total:
            t.progress(done, total)
    except BaseException as caught:
        t.caught = caught
        return -EINTR
    return 0


# --- arguments -------------------------------------------------------------------------------------------------------

# What Python callers say becomes here what the C core takes, and its answers become Python's.

cdef uint64_t positive(size, what) except 0:
    n = parse_size(size, what)
    if n == 0:
        raise ValueError(f"{what} must not be 0")
    return n


cdef uint64_t block_count(blocks) except? 0:
    if blocks is None:
        return 0
    cdef object n = _operator.index(blocks)
    if n < 1:
        raise ValueError(f"blocks must be a positive int or None, not {blocks!r}")
    return min(n, 0xffffffff)


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


_FORK = {
    None: ARENA_FORK_AUTO, "copy": ARENA_FORK_COPY, "share": ARENA_FORK_SHARE, "drop": ARENA_FORK_DROP,
    "wipe": ARENA_FORK_WIPE,
}
_BACKING = {None: ARENA_BACKING_AUTO, "anonymous": ARENA_BACKING_ANONYMOUS, "memfd": ARENA_BACKING_MEMFD}


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


cdef void choose_pages(reservation_config *c, pages) except *:
    c.page_bytes = 0
    if pages == "auto":
        c.pages = ARENA_PAGES_AUTO
    elif pages == "thp":
        c.pages = ARENA_PAGES_THP
    else:
        try:
            nbytes = parse_size(pages, "pages")
        except (TypeError, ValueError):
            nbytes = 0
        if nbytes == 4096:
            c.pages = ARENA_PAGES_4K
        elif nbytes & (nbytes - 1) == 0 and 4096 < nbytes < 2 << 20:
            c.pages, c.page_bytes = ARENA_PAGES_THP, nbytes
        elif nbytes & (nbytes - 1) == 0 and 2 << 20 <= nbytes <= 16 << 30:
            c.pages, c.page_bytes = ARENA_PAGES_HUGETLB, nbytes
        else:
            raise ValueError(
                "pages must be 'auto', '4K', 'thp', or a size: of a hugetlb pool ('2M', '1G') or of mTHP ('64K'), "
                f"not {pages!r}"
            )


cdef class ReservationConfig:
    """What a reservation is to be made of, in C, with what the pointers in it point to."""

    cdef reservation_config config
    cdef bytes name, path

    def __cinit__(
        self, size, *, headroom, path, fd, shared, backing, readonly, pages, lock, node, fork, dump, name,
    ):
        cdef reservation_config *c = &self.config
        memset(c, 0, sizeof(self.config))
        c.size = positive(size, "size")
        if headroom is not None:
            c.headroom, c.headroom_given = parse_size(headroom, "headroom"), True
        c.shared, c.readonly, c.dump, c.lock = bool(shared), bool(readonly), bool(dump), bool(lock)
        choose_pages(c, pages)
        c.fork = choose(_FORK, fork, "fork")
        c.backing = choose(_BACKING, backing, "backing")
        if (path is not None) + (fd is not None) + (backing is not None) > 1:
            raise ValueError("path=, fd= and backing= exclude each other")
        if path is not None:
            self.path = _os.fsencode(path)
            if not self.path or b"\0" in self.path:
                raise ValueError(f"path must name a file or directory, not {path!r}")
            c.backing, c.path = ARENA_BACKING_PATH, self.path
        if fd is not None:
            c.backing, c.fd = ARENA_BACKING_FD, descriptor_of(fd)
        if c.readonly and path is None and fd is None:
            raise ValueError("readonly=True is for files (path= or fd=): memory that is new has nothing to read")
        if node is not None:
            if not isinstance(node, int) or node < 0 or node > 1023:
                raise ValueError(f"node must be the number of a NUMA node, not {node!r}")
            c.bind, c.node = True, node
        if c.shared and c.fork in (ARENA_FORK_COPY, ARENA_FORK_WIPE):
            raise ValueError(f"shared memory cannot be had with fork={fork!r}: 'share' (the default) or 'drop'")
        if not c.shared and c.fork == ARENA_FORK_SHARE:
            raise ValueError("fork='share' needs shared=True")
        if c.fork == ARENA_FORK_WIPE and (c.backing > ARENA_BACKING_ANONYMOUS or c.pages == ARENA_PAGES_HUGETLB):
            raise ValueError("fork='wipe' is for private anonymous memory only")
        self.name = name_of(name)
        c.name = <const char *>self.name if self.name is not None else NULL


cdef int descriptor_of(fd) except -1:
    if hasattr(fd, "fileno"):
        fd = fd.fileno()
    if not isinstance(fd, int) or isinstance(fd, bool):
        raise TypeError(f"fd must be an int or have fileno(), not {type(fd).__name__}")
    if fd < 0 or fd > 0x7fffffff:
        raise ValueError(f"fd must be an open file descriptor, not {fd}")
    return fd


cdef char *BYTES = b"B"


cdef inline int fill_view(
    object owner, Py_buffer *view, int flags, void *ptr, Py_ssize_t *size, bint readonly
) except -1:
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
    return 0


cdef residency_of(uint64_t address, uint64_t length, bint whole):
    cdef os_residency_t r
    cdef int rc
    with nogil:
        rc = os_residency(os_features(), <void *>address, length, &r)
    if rc:
        raise OSError(-rc, f"cannot read /proc/self/pagemap: {_os.strerror(-rc)}")
    huge, zero, locked, dirty = r.huge, r.zero, None, None
    if not os_features().pagemap_scan:
        huge = zero = None
    if whole:
        mapped, locked, dirty = _smaps(address, length)
        if huge is None:
            huge = mapped
    return Residency(r.present, huge, zero, r.swapped, locked, dirty)


_HUGE = ("AnonHugePages:", "ShmemPmdMapped:", "FilePmdMapped:", "Private_Hugetlb:", "Shared_Hugetlb:")


def _smaps(address, length):
    """Huge, locked and dirty bytes of the mappings within the range, from /proc/self/smaps."""
    huge = locked = dirty = 0
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
            elif inside and key in _HUGE:
                huge += int(rest.split()[0]) * 1024
    return huge, locked, dirty


# --- reservation -----------------------------------------------------------------------------------------------------

@cython.final
@cython.no_gc
cdef class RangeView:
    """Exports a part of a reservation, which is not released under it."""

    cdef Reservation owner
    cdef reservation_pin_t pin
    cdef char *ptr
    cdef Py_ssize_t size
    cdef bint readonly

    def __getbuffer__(self, Py_buffer *view, int flags):
        fill_view(self, view, flags, self.ptr, &self.size, self.readonly)

    def flush(self):
        """Have what was written here in the file, on its disk; np.memmap.flush() calls this where it is the base."""
        cdef uint64_t start = <uint64_t>self.ptr & ~<uint64_t>4095
        cdef size_t length = <uint64_t>self.ptr + self.size - start
        cdef int rc
        if self.readonly:
            return
        while True:
            with nogil:
                rc = os_flush(<void *>start, length)
            if rc != -EINTR:
                break
            PyErr_CheckSignals()
        if rc:
            raise OSError(-rc, f"cannot write the mapping back to its file: {_os.strerror(-rc)}")

    def __dealloc__(self):
        # A view of it holds a reference to this object, so its life is the export's.
        if self.owner is not None:
            reservation_unpin(self.owner.c, &self.pin)


@cython.final
cdef class Reservation:
    """A sparse range of memory or of a file, of which parts are committed and released.

    A reservation is address space, which costs nothing until a part of it is committed. It is for those who manage
    offsets themselves; :class:`Arena` is an allocator on top of one. It is thread-safe.

    Parameters
    ----------
    size
        Bytes, or "64MiB", "2GiB", "1.5 GB". The size is rounded up to whole pages.
    path
        What stands behind the memory. A directory: an unnamed file in it, which goes with the reservation. A path where
        nothing is: a file is created (0600), made ``size`` long and kept. An existing file is mapped from its start as
        it is, never resized, and never punched without ``discard``. On tmpfs, a disk, or hugetlbfs.
    fd
        An open file, as int or with fileno(): anything that mmap(2) takes. It is treated as an existing file, and
        duplicated.
    shared
        Writes are seen by others who map the same memory, and get into the file. Without ``path`` and ``fd`` the memory
        is a memfd, sealed against shrinking and growing.
    backing
        "anonymous" or "memfd", to say which without ``path`` and ``fd``. None: a memfd if ``shared``, else anonymous.
    readonly
        The file can be committed and viewed for reading only.
    pages
        The page size. "auto": 2 MiB transparent huge pages where the machine allows them for this kind of memory and
        the size is 2 MiB or more; else the largest mTHP size that is enabled (Linux 6.8), else 4 KiB. "4K", "thp",
        "64K" (an mTHP size) insist. "2M", "1G": from the hugetlb pool of such pages. What was had is ``page_size``.
    lock
        What is committed is mlocked, and what is released is unlocked: locked memory is not swapped or reclaimed, and
        counts against RLIMIT_MEMLOCK by what is committed. (Pages of the hugetlb pool never are, and do not.) A fork's
        child inherits no locks; its next commit() of the range locks.
    node
        The number of the NUMA node that all memory comes from (mbind(2), MPOL_BIND).
    fork
        What the child of a fork gets: "copy" (copy-on-write; commit() again undoes that), "share" (the same memory, for
        both to use and to release: shared only; the child's commit() populates its own page table), "drop" (nothing:
        what it still points to reads as zeros, and every method that would use the memory raises RuntimeError; the
        parent keeps its pages to itself) or "wipe" (zeros, usable; private anonymous only). None: "share" for shared
        memory, "drop" for private hugetlb pages (a write after a copying fork needs a second one, and is a SIGBUS where
        there is none), else "copy".
    dump
        Include the memory in core dumps. It is left out by default: a dump of a sparse terabyte takes for ever.
    name
        Shown in /proc/self/maps where the kernel was built with CONFIG_ANON_VMA_NAME.

    Raises
    ------
    ReserveError
        (An OSError and a MemoryError.) Address space, the file, or pages of that size cannot be had.
    ValueError, TypeError
        The arguments make no sense.

    Examples
    --------
    >>> from arena import Reservation
    >>> with Reservation("1TiB") as r:
    ...     r.commit("4MiB", offset="1GiB")
    ...     r.view(5, offset="1GiB")[:] = b"hello"
    ...     r.release()
    4194304
    4194304
    """
    cdef reservation_handle *c  # it lives as long as this object: the core refuses what is asked of a closed one
    cdef uint64_t _size, _page, _address
    cdef str _backing
    cdef bint _readonly

    def __cinit__(
        self, size, *, path=None, fd=None, shared=False, backing=None, readonly=False, pages="auto", lock=False,
        node=None, fork=None, dump=False, name=None,
    ):
        cdef ReservationConfig wanted = ReservationConfig(
            size, headroom=None, path=path, fd=fd, shared=shared, backing=backing, readonly=readonly, pages=pages,
            lock=lock, node=node, fork=fork, dump=dump, name=name,
        )
        cdef reservation_stats stats
        cdef arena_error e
        cdef int rc
        with nogil:
            rc = reservation_create(&wanted.config, &self.c, &e)
        if rc:
            raise as_reserve_exception(rc, &e, &wanted.config)
        reservation_get(self.c, &stats)
        self._size, self._page, self._address = stats.size, stats.page_size, stats.address
        self._backing, self._readonly = stats.backing.decode(), stats.readonly

    def __dealloc__(self):
        if self.c != NULL:
            with nogil:
                reservation_destroy(self.c)

    cdef check_open(self):
        if self.closed:
            raise ValueError("the reservation is closed")

    cdef range_of(self, nbytes, offset, uint64_t *start, uint64_t *length):
        start[0] = parse_size(offset, "offset")
        if start[0] > self._size:
            raise ValueError(f"offset {start[0]} is beyond the reservation's {self._size} bytes")
        length[0] = self._size - start[0] if nbytes is None else parse_size(nbytes, "nbytes")
        if length[0] > self._size - start[0]:
            raise ValueError(
                f"{length[0]} bytes at offset {start[0]} reach beyond the end of the reservation ({self._size} bytes)"
            )

    def commit(self, nbytes=None, *, offset=0, populate="write", threads=None, progress=None):
        """Make a range present, so that touching it faults on nothing afterwards.

        Parameters
        ----------
        nbytes, offset
            The range, which is rounded outward to pages. By default it is all of the reservation.
        populate
            "write": the range can be written without a fault. "read": it can be read without one; a file's pages are
            mapped without becoming dirty, and private anonymous memory is the zero page, which costs nothing.
        threads
            How many threads populate. None: min(CPUs, 16, bytes / 64 MiB).
        progress
            Called in this thread as ``progress(done, total)`` with bytes, at most every 10 ms or so, and at the end
            with done == total; never where nothing is to be done. What it raises stops the commit, in the last call
            too.

        Returns
        -------
        int
            The bytes that were made present by this call.

        Raises
        ------
        CommitError
            (An OSError and a MemoryError.) The memory cannot be had.
        ValueError
            The range is not within the reservation, which may be closed.
        RuntimeError
            The memory was not given to this child of a fork, or this very thread is committing the range further up its
            stack.

        Notes
        -----
        A commit that fails, or that ``progress`` or a signal handler's exception stops, gives back what it made
        present, and nothing else.

        Pages are populated by madvise(2), MADV_POPULATE_WRITE and MADV_POPULATE_READ (Linux 5.14); before, the kernel
        is made to touch each page. Shared memory and files are allocated first (fallocate(2)), so that it is an error
        and not a signal when they are full. A file on disk is faultless for writing until the kernel writes its pages
        back.

        After a fork, pages that became copy-on-write are made this process's own again, and a child that shares the
        reservation populates its page table.

        Examples
        --------
        >>> from arena import Reservation
        >>> r = Reservation("1GiB", pages="4K")
        >>> r.commit(10_000), r.commit(10_000)
        (12288, 0)
        """
        cdef uint64_t start, length, newly = 0
        cdef bint write = for_writing(populate)
        cdef unsigned count = thread_count(threads)
        cdef ProgressCall call = ProgressCall(progress)
        cdef arena_progress function = call.function()
        cdef arena_error e
        cdef int rc
        self.range_of(nbytes, offset, &start, &length)
        with nogil:
            rc = reservation_commit(self.c, start, length, write, count, function, <void *>call, &newly, &e)
        call.raise_caught()
        if rc:
            raise as_exception(rc, &e)
        return newly

    def release(self, nbytes=None, *, offset=0, discard=False):
        """Give a range back to the machine.

        Parameters
        ----------
        nbytes, offset
            The range, which is rounded inward to pages. By default it is all of the reservation.
        discard
            Punch the range out of a file that was there before, committed or not. Without it such a file keeps its
            data.

        Returns
        -------
        int
            The bytes that the machine got. For a shared mapping of a file that was there before (an existing path, or
            ``fd``) these are 0 without ``discard``: the pages stay the file's. The copies of a private mapping do
            count.

        Raises
        ------
        BufferError
            A view of the range is exported.
        CommitError
            The kernel refuses; what it had taken back before is released.
        ValueError, RuntimeError
            As for :meth:`commit`.

        Notes
        -----
        Released memory is zero when it is committed again; of shared memory that holds for everybody who maps it. In a
        private mapping of a file the file shows through again. What is punched out is free in the file system too.

        Where the file system has large folios (2 MiB; ext4 on Linux 6.x) the kernel drops the page-table entries of a
        whole folio when a part of it is released. Committed neighbours then fault once more at their next touch.
        :meth:`commit` takes them for present and does nothing; :meth:`verify` populates them again.

        Memory is released by madvise(2), MADV_DONTNEED (before Linux 5.18 pages of a hugetlb pool are mapped anew
        instead), and by fallocate(2), FALLOC_FL_PUNCH_HOLE.

        Examples
        --------
        >>> from arena import Reservation
        >>> r = Reservation("1GiB", pages="4K")
        >>> r.commit("1MiB") == r.release(), r.committed
        (True, 0)
        """
        cdef uint64_t start, length, freed = 0
        cdef bint punch = bool(discard)
        cdef ProgressCall call = ProgressCall(None)
        cdef arena_progress function = call.function()
        cdef arena_error e
        cdef int rc
        self.range_of(nbytes, offset, &start, &length)
        with nogil:
            rc = reservation_release(self.c, start, length, punch, &freed, function, <void *>call, &e)
        call.raise_caught()
        if rc == -EBUSY:
            raise BufferError("a view of this range is exported: drop it first")
        if rc:
            raise as_exception(rc, &e)
        return freed

    def view(self, nbytes=None, *, offset=0, readonly=False):
        """Look at a committed range as a memoryview.

        While the view, or anything made from it, lives, its range is not released and the reservation not closed.

        Parameters
        ----------
        nbytes, offset
            The range. By default it is all of the reservation.
        readonly
            The view is for reading, and memory that was committed with populate="read" is enough.

        Returns
        -------
        memoryview
            Of bytes ("B").

        Raises
        ------
        ValueError
            The range is empty, not within the reservation, not committed, or not committed for writing.
        BufferError
            The range is being released.
        RuntimeError
            The memory was not given to this child of a fork.

        Examples
        --------
        >>> from arena import Reservation
        >>> r = Reservation("1GiB")
        >>> _ = r.commit(4096)
        >>> bytes(r.view(4)) == bytes(4)
        True
        """
        cdef uint64_t start, length
        cdef RangeView v
        cdef int rc
        self.range_of(nbytes, offset, &start, &length)
        if length == 0:
            raise ValueError("a view of 0 bytes is of no use")
        if self._readonly and not readonly:
            raise ValueError("the reservation is read-only: view(readonly=True)")
        v = RangeView.__new__(RangeView)
        rc = reservation_pin(self.c, &v.pin, start, length, not readonly)
        if rc == -EBUSY:
            raise BufferError("this range is being released")
        if rc == -ENODATA:
            raise ValueError(
                f"not all of the {length} bytes at offset {start} are committed"
                f"{'' if readonly else ' for writing'}: commit them first"
            )
        if rc:
            raise refused(rc)
        v.owner = self
        v.ptr = <char *>self._address + start
        v.size = length
        v.readonly = bool(readonly)
        return memoryview(v)

    def verify(self, nbytes=None, *, offset=0):
        """See that what is committed of a range is still there, and populate it again.

        Others can take pages of a shared file away: who truncates it or punches a hole in it. A part of the range that
        is not committed is passed over.

        Parameters
        ----------
        nbytes, offset
            The range. By default it is all of the reservation.

        Raises
        ------
        CommitError
            The pages cannot be had again: the file was truncated, or the file system is full now.
        ValueError, RuntimeError
            As for :meth:`commit`.

        Notes
        -----
        This is a diagnosis, not a guarantee: the next moment may be different. :meth:`read_into` is safe at any time.

        Examples
        --------
        >>> from arena import Reservation
        >>> r = Reservation("1GiB", shared=True)
        >>> _ = r.commit("1MiB")
        >>> r.verify()
        """
        cdef uint64_t start, length
        cdef ProgressCall call = ProgressCall(None)
        cdef arena_progress function = call.function()
        cdef arena_error e
        cdef int rc
        self.range_of(nbytes, offset, &start, &length)
        with nogil:
            rc = reservation_verify(self.c, start, length, function, <void *>call, &e)
        call.raise_caught()
        if rc:
            raise as_exception(rc, &e)

    cdef Py_ssize_t copy(self, buffer, offset, bint into) except -1:
        cdef Py_buffer view
        cdef uint64_t start, length
        cdef int rc
        PyObject_GetBuffer(buffer, &view, PyBUF_CONTIG_RO if into else PyBUF_CONTIG_RO | PyBUF_WRITABLE)
        try:
            self.range_of(view.len, offset, &start, &length)
            with nogil:
                rc = reservation_copy(self.c, start, view.buf, length, into)
        finally:
            PyBuffer_Release(&view)
        if rc == -EBUSY:
            raise BufferError("this range is being released")
        if rc == -ENODATA:
            raise ValueError(f"not all of the {length} bytes at offset {start} are committed: commit them first")
        if rc == -ENOTCONN or rc == -ESHUTDOWN:
            raise refused(rc)
        if rc == -EPERM:
            raise PermissionError(
                _errno.EPERM,
                "the file is sealed against writing, or process_vm_readv/writev is forbidden here (seccomp; docker: "
                "--cap-add SYS_PTRACE)",
            )
        if rc == -EACCES:
            raise PermissionError(_errno.EACCES, "the reservation is read-only")
        if rc == -EFAULT:
            raise OSError(
                _errno.EFAULT,
                f"cannot copy {length} bytes at offset {start}: nothing is there (any more), as past a file's end",
            )
        if rc:
            raise OSError(-rc, f"cannot copy {length} bytes at offset {start}: {_os.strerror(-rc)}")
        return length

    def read_into(self, buffer, *, offset=0):
        """Copy from the reservation through the kernel, with an exception where a load would be a signal.

        Parameters
        ----------
        buffer
            A writable, contiguous buffer. Its length says how much is copied.
        offset
            Where in the reservation the bytes begin.

        Returns
        -------
        int
            The bytes copied.

        Raises
        ------
        OSError
            EFAULT: nothing is there, as past a file's end, or where a peer has punched a hole into what is committed
            here, as far as that can be told (of a memfd and on tmpfs).
        ValueError
            The range is not committed, or not within the reservation.
        PermissionError
            A seccomp profile (a container's) forbids process_vm_readv(2).
        BufferError
            The range is being released.

        Notes
        -----
        Shared files are read by pread(2), committed or not; other memory by process_vm_readv(2).

        Examples
        --------
        >>> from arena import Reservation
        >>> r = Reservation("1GiB")
        >>> _ = r.commit(4096)
        >>> r.write_from(b"hello"), r.read_into(found := bytearray(5)), found
        (5, 5, bytearray(b'hello'))
        """
        return self.copy(buffer, offset, False)

    def write_from(self, buffer, *, offset=0):
        """Copy a buffer into a committed range through the kernel.

        Parameters
        ----------
        buffer
            A contiguous buffer. Its length says how much is copied.
        offset
            Where in the reservation the bytes are to be.

        Returns
        -------
        int
            The bytes copied.

        Raises
        ------
        OSError, ValueError, BufferError
            As for :meth:`read_into`.
        PermissionError
            The reservation is read-only, its file is sealed against writing, or a seccomp profile forbids
            process_vm_writev(2).

        Notes
        -----
        Shared files are written by pwrite(2); other memory by process_vm_writev(2).
        """
        return self.copy(buffer, offset, True)

    def residency(self, nbytes=None, *, offset=0):
        """Ask the kernel what of a range is present.

        Parameters
        ----------
        nbytes, offset
            The range. By default it is all of the reservation.

        Returns
        -------
        Residency
            Bytes. ``locked`` and ``dirty`` come from smaps, for the whole reservation only.

        Raises
        ------
        OSError
            /proc cannot be read.
        ValueError
            The reservation is closed, or the range is not within it.

        Notes
        -----
        The sources are /proc/self/pagemap, PAGEMAP_SCAN where there is one (Linux 6.7), and /proc/self/smaps.

        Examples
        --------
        >>> from arena import Reservation
        >>> r = Reservation("1GiB", pages="4K")
        >>> _ = r.commit("1MiB")
        >>> r.residency("2MiB").present
        1048576
        """
        cdef uint64_t start, length
        self.check_open()
        self.range_of(nbytes, offset, &start, &length)
        return residency_of(self._address + start, length, length == self._size)

    def close(self):
        """Unmap the reservation. Closing twice is fine.

        Raises
        ------
        BufferError
            A view is exported, or a commit is under way.
        """
        cdef int rc
        with nogil:
            rc = reservation_close(self.c)
        if rc:
            raise BufferError("a view of the reservation is exported, or another thread is committing: close it later")

    def __enter__(self):
        self.check_open()
        return self

    def __exit__(self, *exc):
        try:
            self.close()
        except BufferError:
            if exc[0] is None:  # an exception in flight is not hidden, as in Arena
                raise

    @property
    def size(self):
        """Bytes reserved."""
        return self._size

    @property
    def address(self):
        """The address of the first byte."""
        return self._address

    @property
    def page_size(self):
        """The unit of commit and release in bytes: 4096, or what huge pages have."""
        return self._page

    @property
    def backing(self):
        """What it is: "anonymous", "memfd", "tmpfs", "hugetlbfs", "file" (of another file system) or "device"."""
        return self._backing

    @property
    def closed(self):
        """Whether close() was called."""
        cdef reservation_stats stats
        reservation_get(self.c, &stats)
        return stats.closed

    @property
    def committed(self):
        """Bytes committed, by the ledger; residency() is the kernel's word."""
        cdef reservation_stats stats
        reservation_get(self.c, &stats)
        return stats.committed

    def fileno(self):
        """Return the descriptor of the file behind the memory, which stays the reservation's.

        Returns
        -------
        int
            The descriptor. Whoever it is passed on to is a peer, whose data a failed commit leaves alone.

        Raises
        ------
        OSError
            EBADF: anonymous memory has none.
        ValueError
            The reservation is closed.

        Examples
        --------
        >>> from arena import Reservation
        >>> import os
        >>> r = Reservation("1MiB", shared=True)
        >>> os.fstat(r.fileno()).st_size == r.size
        True
        """
        cdef int fd
        self.check_open()
        fd = reservation_fd(self.c)
        if fd < 0:
            raise OSError(EBADF, "anonymous memory has no file descriptor")
        return fd

    def __repr__(self):
        if self.closed:
            return "<arena.Reservation closed>"
        return (
            f"<arena.Reservation {self._backing}, {_errors.amount(self._size)} at {self._address:#x}, "
            f"{_errors.amount(self.committed)} committed, pages of {_errors.amount(self._page)}>"
        )


# --- arena -----------------------------------------------------------------------------------------------------------

# All arenas are noted here by their id, so that arena_at() finds one by an address.
_arenas = _weakref.WeakValueDictionary()


@cython.final
cdef class Arena:
    """An allocator on a reservation: it hands out blocks of memory that is there.

    Memory is committed by chunks as blocks need it, before alloc() returns, and kept when they are freed, so that the
    next alloc() is index work of some 60 ns and no system call. An arena is thread-safe; the GIL is released while
    memory is populated.

    Parameters
    ----------
    size
        Bytes of address space, or "64GiB". It costs nothing until used, so ask for plenty.
    chunk
        Bytes that are committed and released at a time: a power of two from 4 KiB to 1 GiB, at least a page. Below 2
        MiB there are no huge pages. None: 2 MiB, less for an arena that is smaller, more where its pages are larger.
    populate
        "write", or "read": the zero page until a block is first written, which then faults.
    retain
        Free committed bytes to keep when blocks are freed. None keeps all until trim().
    decay
        Seconds for which memory beyond ``retain`` has to be free before it is released. None: it is released at once.
    headroom
        Bytes that are to stay available to the rest of the program, and of the memory cgroup or machine: a commit that
        would take them fails. None: 16 MiB and 256 KiB for each thread, which is what printing a traceback, an
        import and a log line take, and what everybody else was seen to take in the last second or so, up to 64 MiB;
        but in all no more than an eighth of the limit. With 0 the next allocation of anybody may be the one that the
        kernel answers with SIGKILL.
    path, fd, shared, backing, pages, lock, node, fork, dump, name
        As for :class:`Reservation`. With fork="share" the child of a fork uses and frees the blocks there are, and the
        parent alone makes new ones. Blocks in a file that was there before hold what the file does.
    readonly
        Must be False: a file is mapped read-only by Reservation(readonly=True).

    Raises
    ------
    ReserveError
        (An OSError and a MemoryError.) Address space, the file, or pages of that size cannot be had.
    ValueError, TypeError
        The arguments make no sense.

    Notes
    -----
    As a context manager the arena is closed at the end: see :meth:`close`. Blocks and arrays that are alive outlive it.

    Examples
    --------
    >>> from arena import Arena
    >>> with Arena("64GiB") as a:
    ...     a.warm("64MiB")
    ...     block = a.alloc("16MiB")
    ...     block[:5] = b"hello"
    >>> bytes(block[:5])
    b'hello'
    """
    def __cinit__(
        self, size, *, chunk=None, populate="write", retain=None, decay=None, headroom=None,
        path=None, fd=None, shared=False, backing=None, readonly=False, pages="auto", lock=False, node=None, fork=None,
        dump=False, name=None,
    ):
        cdef ReservationConfig wanted = ReservationConfig(
            size, headroom=headroom, path=path, fd=fd, shared=shared, backing=backing, readonly=readonly, pages=pages,
            lock=lock, node=node, fork=fork, dump=dump, name=name,
        )
        cdef arena_config config
        cdef reservation_stats stats
        cdef arena_error e
        cdef int rc
        if wanted.config.readonly:
            raise ValueError("an arena is for writing: map a file read-only with Reservation(readonly=True)")
        memset(&config, 0, sizeof(config))
        config.reservation = wanted.config
        config.chunk = 0 if chunk is None else positive(chunk, "chunk")
        config.read_only_populate = not for_writing(populate)
        config.retain = UINT64_MAX if retain is None else parse_size(retain, "retain")
        config.decay_ns = 0
        if decay is not None:
            if not isinstance(decay, (int, float)) or not 0 <= decay < 1e9:
                raise ValueError(f"decay must be a number of seconds or None, not {decay!r}")
            if retain is None:
                raise ValueError("decay says when memory beyond `retain` is released: give retain= too (0: keep none)")
            config.decay_ns = <uint64_t>(decay * 1e9)
        with nogil:
            rc = arena_create(&config, &self.c, &e)
        if rc:
            raise as_reserve_exception(rc, &e, &wanted.config)
        reservation_get(arena_reservation(self.c), &stats)
        self._size, self._page, self._address = stats.size, stats.page_size, stats.address
        self._backing = stats.backing.decode()
        self._is_shared_with_children = stats.shared and wanted.config.fork != ARENA_FORK_DROP
        self.epoch_at = arena_epoch(self.c)
        _arenas[id(self)] = self

    def __dealloc__(self):
        # Blocks hold a reference, so there are none.
        if self.c != NULL:
            with nogil:
                arena_destroy(self.c)

    def alloc(self, nbytes, *, align=64, bint zero=False, bint grow=True):
        """Allocate a block whose bytes are present: writing them faults on nothing.

        Parameters
        ----------
        nbytes
            Bytes, or "64MiB".
        align
            The alignment of its address: a power of two up to the chunk.
        zero
            All bytes are 0; what is known to be zero is not cleared. Without it they may be what an earlier block left.
        grow
            Whether memory may be committed for it. With False the block comes from committed memory, by index work
            alone.

        Returns
        -------
        Block
            It is freed by free(), at the end of a ``with``, or with the object.

        Raises
        ------
        ArenaFullError
            (A MemoryError.) No free range is that large; with grow=False no committed one, or the index has no
            committed room for another block: see ``blocks`` of :meth:`warm`.
        CommitError
            (An OSError and a MemoryError.) The machine or memory cgroup has not the memory.
        ValueError
            The arena is closed, or the arguments make no sense.
        RuntimeError
            This child of a fork may not allocate: ``fork="drop"``, or memory that it shares.

        Examples
        --------
        >>> from arena import Arena
        >>> a = Arena("1GiB")
        >>> with a.alloc("1MiB", align=4096, zero=True) as block:
        ...     len(block), block.address % 4096, block[0]
        (1048576, 0, 0)
        """
        cdef int overflow = 0
        cdef long long given = PyLong_AsLongLongAndOverflow(nbytes, &overflow) if type(nbytes) is int else 0
        return new_block(
            self, <uint64_t>given if given > 0 else positive(nbytes, "nbytes"), step_of(self, align), zero, grow
        )

    def empty(self, shape, dtype=float, order="C", *, align=64):
        """Make a NumPy array, uninitialised, that owns its block.

        The block is freed with the last view of the array, in whichever thread. The array outlives close(), and as it
        holds an export, reset() raises BufferError while it lives. Arrays of 0 bytes are NumPy's own.

        Parameters
        ----------
        shape, dtype
            As for numpy.empty. No Python objects, and no strings of variable width.
        order
            "C" or "F".
        align
            As for :meth:`alloc`.

        Returns
        -------
        numpy.ndarray
            Its memory is present.

        Raises
        ------
        ImportError
            There is no NumPy.
        ValueError
            The dtype cannot be had, or the shape makes no sense.
        ArenaFullError, CommitError, RuntimeError
            As for :meth:`alloc`.

        Examples
        --------
        >>> from arena import Arena
        >>> a = Arena("1GiB")
        >>> a.empty((480, 640, 3), "u1").shape
        (480, 640, 3)
        """
        return new_array(self, shape, dtype, order, align, False)

    def zeros(self, shape, dtype=float, order="C", *, align=64):
        """Make a NumPy array of zeros. Memory that is known to be zero is not written.

        Parameters
        ----------
        shape, dtype, order, align
            As for :meth:`empty`.

        Returns
        -------
        numpy.ndarray
            It owns its block, and raises what :meth:`empty` does.

        Examples
        --------
        >>> from arena import Arena
        >>> Arena("1GiB").zeros(3)
        array([0., 0., 0.])
        """
        return new_array(self, shape, dtype, order, align, True)

    def full(self, shape, fill_value, dtype=None, order="C", *, align=64):
        """Make a NumPy array of one value.

        Parameters
        ----------
        shape, order, align
            As for :meth:`empty`.
        fill_value
            The value, or an array that broadcasts to the shape.
        dtype
            None: that of the value.

        Returns
        -------
        numpy.ndarray
            It owns its block, and raises what :meth:`empty` does.

        Examples
        --------
        >>> from arena import Arena
        >>> Arena("1GiB").full(3, 7)
        array([7, 7, 7])
        """
        return _arrays.full(self, shape, fill_value, dtype, order, align)

    def empty_like(self, prototype, dtype=None, order="K", *, shape=None, align=64):
        """Make a NumPy array, uninitialised, with the shape and dtype of another.

        Parameters
        ----------
        prototype
            An array, or anything that NumPy makes one of. Subclasses do not matter.
        dtype, shape
            None: those of the prototype.
        order
            "C", "F", "K" (that of the prototype as nearly as can be) or "A" ("F" if the prototype is in Fortran's order
            only, else "C").
        align
            As for :meth:`alloc`.

        Returns
        -------
        numpy.ndarray
            It owns its block, and raises what :meth:`empty` does.

        Examples
        --------
        >>> from arena import Arena
        >>> a = Arena("1GiB")
        >>> a.empty_like(a.zeros((2, 3), "f4")).dtype
        dtype('float32')
        """
        return _arrays.empty_like(self, prototype, dtype, order, shape, align)

    def array(self, obj, dtype=None, order="K", *, align=64):
        """Copy an array into the arena.

        Parameters
        ----------
        obj
            An array, or anything that NumPy makes one of. Subclasses become plain arrays.
        dtype
            None: that of the object.
        order, align
            As for :meth:`empty_like`.

        Returns
        -------
        numpy.ndarray
            It owns its block, and raises what :meth:`empty` and numpy.array do.

        Notes
        -----
        What is not an array yet, or needs a dtype other than a plain number's, becomes one outside of the arena first.

        Examples
        --------
        >>> from arena import Arena
        >>> Arena("1GiB").array([1, 2, 3])
        array([1, 2, 3])
        """
        return _arrays.array(self, obj, dtype, order, align)

    def numpy_allocations(self, *, overflow="raise"):
        """Have what NumPy allocates in this context come from the arena (NEP 49).

        Parameters
        ----------
        overflow
            What the arena cannot give is a MemoryError of NumPy's, whose reason is in :attr:`last_error` ("raise"), or
            memory of malloc, counted in stats() ("malloc").

        Returns
        -------
        arena.nep49.allocations
            A context manager, and a decorator. Arrays live on after the ``with``, and after close().

        Raises
        ------
        ImportError
            There is no NumPy, or one before 1.22. This and the following are raised when the ``with`` is entered.
        ValueError
            The arena is closed, or the arguments make no sense.
        MemoryError
            malloc has no memory for the handler; in the block, the arena has none for an array.

        Notes
        -----
        In a context whose arena was closed NumPy allocates by malloc, and one RuntimeWarning says so. See
        :mod:`arena.nep49`.

        Examples
        --------
        >>> import numpy as np
        >>> from arena import Arena, nep49
        >>> a = Arena("1GiB")
        >>> with a.numpy_allocations():
        ...     x = np.ones(1000) * 2
        >>> nep49.arena_of(x) is a
        True
        """
        from . import nep49  # which imports this module

        return nep49.allocations(self, overflow=overflow)

    @property
    def last_error(self):
        """Why NumPy was last refused memory of this arena, or given malloc's instead; None if it never was.

        The value is the exception that alloc() would have raised.
        """
        cdef arena_error e
        cdef int rc
        with nogil:
            rc = adapter_why(self.c, &e)
        return as_exception(rc, &e) if rc else None

    def warm(self, nbytes, *, blocks=None, threads=None, progress=None):
        """Have so much free memory committed, in one piece, that later blocks need no system call.

        The memory is kept, whatever ``retain`` says, until trim().

        Parameters
        ----------
        nbytes
            Bytes, or "64MiB".
        blocks
            For how many blocks the bookkeeping is populated, of any sizes and in whichever order they come and go, so
            that they take no page fault of the index. None: as many as blocks of 4 KiB fit into ``nbytes``.
        threads, progress
            As for :meth:`Reservation.commit`.

        Raises
        ------
        ArenaFullError, CommitError, ValueError, RuntimeError
            As for :meth:`alloc`.

        Notes
        -----
        After a fork this makes all that is committed this process's own again.

        Examples
        --------
        >>> from arena import Arena
        >>> a = Arena("1GiB")
        >>> a.warm("8MiB")
        >>> block = a.alloc("8MiB", grow=False)
        """
        cdef uint64_t n = positive(nbytes, "nbytes")
        cdef uint64_t count_of_blocks = block_count(blocks)
        cdef unsigned count = thread_count(threads)
        cdef ProgressCall call = ProgressCall(progress)
        cdef arena_progress function = call.function()
        cdef arena_error e
        cdef int rc
        with nogil:
            rc = arena_warm(self.c, n, count_of_blocks, count, function, <void *>call, &e)
        call.raise_caught()
        if rc:
            raise as_exception(rc, &e)

    def trim(self, keep=0):
        """Give free committed memory back to the machine now.

        Parameters
        ----------
        keep
            Free committed bytes that may stay, about: whole chunks go.

        Returns
        -------
        int
            The bytes that the machine got: 0 in a shared file that was there before, whose pages stay the file's.

        Raises
        ------
        CommitError
            The kernel refuses; what it had taken back before is released.

        Examples
        --------
        >>> from arena import Arena
        >>> a = Arena("1GiB")
        >>> a.warm("8MiB")
        >>> a.trim() == 8 << 20, a.stats().committed
        (True, 0)
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
        """Free every block at once.

        Raises
        ------
        BufferError
            A block is exported or being committed, or an array that NumPy allocated here is alive.
        ValueError
            The arena is closed.

        Examples
        --------
        >>> from arena import Arena
        >>> a = Arena("1GiB")
        >>> block = a.alloc(100)
        >>> a.reset()
        >>> block.freed
        True
        """
        cdef int rc
        if arena_is_closed(self.c):
            raise ValueError("the arena is closed")
        cdef uint32_t forks = fork_generation
        if not users_hold(&self.users, forks):
            raise BufferError("a view of a block is exported: drop it before reset()")
        try:
            with nogil:
                rc = arena_reset_pinned(self.c)
        finally:
            users_let_go(&self.users, forks, fork_generation)
        if rc:
            raise BufferError(
                "a block is being committed by another thread (or further up the stack), or arrays that NumPy "
                "allocated here (numpy_allocations) are alive: reset() later"
            )

    def close(self, *, bint strict=False):
        """Close the arena to new work, and give its free memory back at once. Closing twice is fine.

        Blocks and arrays that are alive stay so. Their memory goes back when they are freed, and the mapping with the
        last of them.

        Parameters
        ----------
        strict
            Refuse while any block is alive.

        Raises
        ------
        BufferError
            With ``strict``, and nothing happens: blocks are alive; the message says how many, which, and how large. In
            any case: another thread commits or releases memory, or a callback further up the stack does.

        Examples
        --------
        >>> from arena import Arena
        >>> a = Arena("1GiB")
        >>> block = a.alloc(100)
        >>> a.close(strict=True)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        BufferError: 1 block of 128 bytes in all is alive: 128 bytes at offset 0; ...
        >>> a.close()
        >>> block[:5] = b"alive"
        """
        cdef int rc
        if arena_is_closed(self.c) and not strict:
            return
        with nogil:
            rc = arena_close(self.c, strict)
        if rc == -ENOTEMPTY:
            raise BufferError(_errors.alive(list(self.blocks())))
        if rc:
            raise BufferError("another thread is committing or releasing memory of this arena: close it later")

    def __enter__(self):
        if arena_is_closed(self.c):
            raise ValueError("the arena is closed")
        return self

    def __exit__(self, *exc):
        try:
            self.close()
        except BufferError:
            if exc[0] is None:  # an exception in flight is not hidden
                raise

    def stats(self):
        """Return the ledger.

        Returns
        -------
        Stats
            Exact when no other thread is inside the arena.

        Examples
        --------
        >>> from arena import Arena
        >>> a = Arena("1GiB")
        >>> block = a.alloc(100)
        >>> a.stats().live, a.stats().blocks
        (128, 1)
        """
        cdef arena_stats s
        with nogil:
            arena_get(self.c, &s)
        return Stats(
            s.reserved, s.committed, s.live, s.free_committed, s.blocks, s.peak_committed, s.peak_live, s.commits,
            s.releases, s.commit_ns / 1e9, s.release_ns / 1e9, s.largest_free,
            1.0 - s.largest_free / <double>s.free if s.free else 0.0, s.overflows,
        )

    def blocks(self):
        """Iterate over all blocks in the order of their addresses.

        Returns
        -------
        Iterator[tuple[int, int]]
            (offset, nbytes) of each, nbytes rounded up to 64: a snapshot, in which blocks that other threads make or
            free meanwhile may be or not.

        Examples
        --------
        >>> from arena import Arena
        >>> a = Arena("1GiB")
        >>> first, second = a.alloc(100), a.alloc(10)
        >>> list(a.blocks())
        [(0, 128), (128, 64)]
        """
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
        """Ask the kernel what of the whole arena is present.

        Returns
        -------
        Residency
            Bytes.

        Raises
        ------
        OSError
            /proc cannot be read.
        ValueError
            The arena is closed.
        """
        if arena_is_closed(self.c):
            raise ValueError("the arena is closed")
        return residency_of(self._address, self._size, True)

    @property
    def size(self):
        """Bytes reserved."""
        return self._size

    @property
    def address(self):
        """The address of the first byte."""
        return self._address

    @property
    def page_size(self):
        """The page size in bytes: 4096, or what huge pages have."""
        return self._page

    @property
    def chunk(self):
        """Bytes that are committed and released at a time."""
        return arena_chunk(self.c)

    @property
    def backing(self):
        """What it is: "anonymous", "memfd", "tmpfs", "hugetlbfs", "file" (of another file system) or "device"."""
        return self._backing

    @property
    def closed(self):
        """Whether close() was called."""
        return arena_is_closed(self.c)

    def __repr__(self):
        if arena_is_closed(self.c):
            return "<arena.Arena closed>"
        s = self.stats()
        return (
            f"<arena.Arena {_errors.amount(s.reserved)} reserved, {_errors.amount(s.committed)} committed, "
            f"{_errors.amount(s.live)} live in {s.blocks} blocks>"
        )


# --- block -----------------------------------------------------------------------------------------------------------

# The garbage collector is spared blocks and arenas, which are in no cycle: a Block refers to an Arena, which refers to
# nothing, and neither can be subclassed or given attributes.
@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class Block:
    """Memory of an arena, as a buffer of bytes (PEP 3118), made by Arena.alloc().

    A block is freed by free(), at the end of a ``with``, or with the object. It keeps its arena mapped. While a buffer
    of it is exported it cannot be freed.

    Notes
    -----
    One thing no library can see: np.ndarray(buffer=block), torch.frombuffer(block) and torch.asarray(block) keep the
    block but no export, so after an explicit free() they read reused memory. np.frombuffer(block) and
    torch.from_dlpack(block) hold an export.

    When an exception leaves the ``with`` while a view is exported (its traceback may be what holds the view) the
    exception goes on, and the memory goes with the last view. Without an exception that is a BufferError.

    Pickle takes a block from protocol 5 on. Out of band (``buffer_callback=``) nothing is copied, the PickleBuffer
    holds an export, and loads() gives back the very buffer that the receiver has put into ``buffers=``, such as a Block
    of its own. In band the bytes are copied, and come back as a bytearray. With lower protocols, and in the copy
    module, pickling is a TypeError.

    Examples
    --------
    >>> from arena import Arena
    >>> a = Arena("1GiB")
    >>> with a.alloc(5) as block:
    ...     block[:] = b"hello"
    ...     bytes(block), block.nbytes
    (b'hello', 5)
    >>> block.freed
    True
    """
    cdef Arena _arena
    cdef uint64_t handle
    cdef char *ptr
    cdef Py_ssize_t size
    cdef uint64_t users  # csrc/memory/users.h: its exports, and resize()
    cdef uint64_t epoch
    cdef bint lent  # it belongs for life to the array whose base it is

    def __dealloc__(self):
        cdef c_bool due = False
        if self._arena is None:
            return
        if self.lent:
            unpin(self)
        if users_closed(&self.users) or arena_free_deferred(self._arena.c, self.handle, &due) != 0:
            due = arena_unpin(self._arena.c)  # freed before, by free() or reset(): the mapping stayed for this object
        if due:
            with nogil:
                arena_purge(self._arena.c)

    def __getbuffer__(self, Py_buffer *view, int flags):
        cdef reservation_stats stats
        if not pin(self):
            reservation_get(arena_reservation(self._arena.c), &stats)
            if stats.dropped and not users_closed(&self.users) and self.freed:
                raise as_exception(-ENOTCONN, NULL)  # the child could not even map zero pages in its place
            raise BufferError(
                "the block was freed" if users_closed(&self.users)
                else "the block was freed (its arena was reset)" if self.freed
                else "the block is being resized, or its arena reset"
            )
        fill_view(self, view, flags, self.ptr, &self.size, False)

    def __releasebuffer__(self, Py_buffer *view):
        unpin(self)

    def free(self):
        """Free the memory now.

        Raises
        ------
        BufferError
            A view of the block is exported, or the block is being resized.
        ValueError
            The block was freed before.
        """
        cdef c_bool due = False
        cdef arena_handle *c = self._arena.c
        if not users_close(&self.users, fork_generation):
            if users_closed(&self.users):
                raise ValueError("the block was freed before")
            raise BufferError("a view of the block is exported (or it is being resized): drop it before free()")
        if arena_free_deferred_pinned(c, self.handle, &due) != 0:
            raise ValueError("the block was freed before (its arena was reset)")
        if due:
            with nogil:
                arena_purge(c)

    def resize(self, nbytes):
        """Make the block larger or smaller where it is.

        Parameters
        ----------
        nbytes
            Bytes, or "64MiB". New bytes may be what an earlier block left.

        Raises
        ------
        ArenaFullError
            What lies behind the block is not free: a block never moves.
        BufferError
            A view of the block is exported.
        ValueError
            The block was freed before, or the size is beyond the arena's.
        CommitError, RuntimeError
            As for :meth:`Arena.alloc`.

        Examples
        --------
        >>> from arena import Arena
        >>> a = Arena("1GiB")
        >>> block = a.alloc(100)
        >>> block.resize("1MiB")
        >>> len(block)
        1048576
        """
        cdef uint64_t n = positive(nbytes, "nbytes")
        cdef ProgressCall call = ProgressCall(None)
        cdef arena_progress function = call.function()
        cdef arena_block b
        cdef arena_error e
        cdef int rc
        cdef uint32_t forks = fork_generation
        if not users_hold(&self.users, forks):
            if users_closed(&self.users):
                raise ValueError("the block was freed before")
            raise BufferError("a view of the block is exported: drop it before resize()")
        try:
            with nogil:
                rc = arena_resize(self._arena.c, self.handle, n, function, <void *>call, &b, &e)
            if rc == 0:
                self.size = n
        finally:
            users_let_go(&self.users, forks, fork_generation)
        call.raise_caught()
        if rc == -ENOSPC and (<bytes>e.op) == b"resize":
            raise _errors.full_error(
                {"offset": self.offset, "requested": n, "committed": self._arena.stats().committed, "available": None},
                grow=True,
            )
        if rc == -EINVAL and (<bytes>e.op) == b"resize":
            raise ValueError("the block was freed before (its arena was reset), or the size is beyond the arena's")
        if rc:
            raise as_exception(rc, &e)

    @property
    def nbytes(self):
        """Bytes asked for."""
        return self.size

    @property
    def address(self):
        """The address of the first byte."""
        return <uint64_t>self.ptr

    @property
    def offset(self):
        """Bytes from the arena's address to the block's."""
        return <uint64_t>self.ptr - self._arena._address

    @property
    def arena(self):
        """The arena that the memory is of."""
        return self._arena

    @property
    def freed(self):
        """Whether the memory was freed, by free() or by the arena's reset()."""
        return users_closed(&self.users) or self.epoch != arena_load64(self._arena.epoch_at)

    def __len__(self):
        return self.size

    def __getitem__(self, key):
        return memoryview(self)[key]

    def __setitem__(self, key, value):
        memoryview(self)[key] = value

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        """Make a DLPack capsule, for from_dlpack() of NumPy, PyTorch and others: a tensor of uint8 on the CPU.

        The capsule holds an export until the consumer is done.

        Parameters
        ----------
        stream
            Must be None.
        max_version
            The highest version of DLPack that the consumer takes. From (1, 0) on the capsule is versioned (1.0).
        dl_device
            None, or the CPU's (1, 0).
        copy
            True: the capsule is of a new block in the same arena.

        Returns
        -------
        capsule
            "dltensor", or "dltensor_versioned".

        Raises
        ------
        BufferError
            The block was freed, or ``dl_device`` is not the CPU.
        ValueError
            There is a ``stream``.
        ArenaFullError, CommitError
            With copy=True, as for :meth:`Arena.alloc`.

        Notes
        -----
        https://dmlc.github.io/dlpack/latest/python_spec.html

        Examples
        --------
        >>> import numpy as np
        >>> from arena import Arena
        >>> np.from_dlpack(Arena("1GiB").alloc(3, zero=True))
        array([0, 0, 0], dtype=uint8)
        """
        return dlpack_export(self, stream, max_version, dl_device, copy)

    def __dlpack_device__(self):
        """Return (1, 0), which is the CPU."""
        return DL_CPU, 0

    def __reduce_ex__(self, protocol):
        if protocol < 5:
            raise TypeError(
                "a Block goes through pickle with protocol 5 or later (pickle.dumps(block, protocol=5)), and not "
                "through the copy module. multiprocessing and concurrent.futures use an earlier one: send them "
                "bytes(block), which is a copy, or let processes that you fork use the same memory, of "
                "Arena(size, shared=True)"
            )
        # What comes out is what went in: a callable of the standard library, so that a receiver needs no arena.
        return _operator.getitem, ((PyPickleBuffer_FromObject(self),), 0)

    def __enter__(self):
        if self.freed:
            raise ValueError("the block was freed before")
        return self

    def __exit__(self, *exc):
        if self.freed:
            return
        try:
            self.free()
        except BufferError:
            # The traceback of an exception in flight may be what holds the views: it is not hidden by this one, and the
            # memory goes with the last of them.
            if exc[0] is None:
                raise

    def __repr__(self):
        if self.freed:
            return "<arena.Block freed>"
        return f"<arena.Block of {self.size} bytes at offset {self.offset}>"


cdef inline bint pin(Block self) noexcept:
    """An export. Refused: the block was freed or is being resized, or its arena is being reset."""
    # The arena is pinned first: until it is unpinned no reset can begin, so the epoch stands still.
    if users_pin(&self._arena.users, fork_generation):
        if users_pin(&self.users, fork_generation):
            if self.epoch == arena_load64(self._arena.epoch_at):
                return True
            users_unpin(&self.users)
        users_unpin(&self._arena.users)
    return False


cdef inline void unpin(Block self) noexcept:
    users_unpin(&self.users)
    users_unpin(&self._arena.users)


# --- how blocks are made

cdef clear(Block block, uint64_t nbytes):
    cdef Arena self = block._arena
    cdef uint32_t forks = fork_generation
    # While we are inside there is no reset, after which this would be another's memory.
    if not users_enter(&self.users, forks):
        raise BufferError("the arena is being reset")
    if block.epoch == arena_load64(self.epoch_at):
        if nbytes > 1 << 20:  # copying less takes under 20 µs, of which giving the GIL away would be much
            with nogil:
                arena_zero(block.ptr, nbytes)
        else:
            arena_zero(block.ptr, nbytes)
    users_leave(&self.users, forks, fork_generation)


# The object is there before its memory, for there may be no memory for the object.
cdef inline void fill_in(Block block, Arena self, arena_block *b, uint64_t nbytes, uint64_t epoch) noexcept:
    block._arena = self
    block.handle = b.handle
    block.ptr = <char *>b.address
    block.size = nbytes
    block.epoch = epoch


cdef inline uint64_t step_of(Arena self, align) except 0:
    cdef uint64_t step = 64
    if align != 64:
        step = alignment(align)
        if step > arena_chunk(self.c):
            raise ValueError(f"align must be at most the arena's chunk ({arena_chunk(self.c)}), not {align!r}")
    return step


cdef Block new_block(Arena self, uint64_t nbytes, uint64_t align, bint zero, bint grow):
    cdef arena_block b
    # The epoch is read before the block is made: a reset between the two frees it, and the epoch of afterwards would
    # say that it lives.
    cdef uint64_t epoch = arena_load64(self.epoch_at)
    cdef Block block = Block.__new__(Block)
    if arena_alloc_committed(self.c, nbytes, align, &b):
        return slow_alloc(self, nbytes, align, zero, grow)
    fill_in(block, self, &b, nbytes, epoch)
    if zero and b.dirty:
        clear(block, b.dirty)
    return block


cdef Block slow_alloc(Arena self, uint64_t nbytes, uint64_t align, bint zero, bint grow):
    cdef ProgressCall call = ProgressCall(None)
    cdef arena_progress function = call.function()
    cdef arena_block b
    cdef arena_error e
    cdef uint64_t epoch = arena_load64(self.epoch_at)
    cdef unsigned flags = 0 if grow else ARENA_NO_GROW
    cdef Block block = Block.__new__(Block)
    cdef int rc
    if nbytes > self._size:
        e.op, e.offset, e.requested, e.err = b"alloc", 0, nbytes, ENOSPC
        stats = self.stats()
        e.committed, e.available = stats.committed, stats.largest_free
        raise as_exception(-ENOSPC, &e, True)
    with nogil:
        rc = arena_alloc(self.c, nbytes, align, flags, function, <void *>call, &b, &e)
    if rc == 0:
        fill_in(block, self, &b, nbytes, epoch)
    call.raise_caught()
    if rc:
        raise as_exception(rc, &e, grow)
    if zero and b.dirty:
        clear(block, b.dirty)
    return block


cdef extern from *:
    """
    /* Py_TPFLAGS_DISALLOW_INSTANTIATION, for a type that Cython has made: neither Type() nor Type.__new__(Type). */
    static int arena_only_made_by_us(PyTypeObject *type) {
    #if PY_VERSION_HEX >= 0x030C0000
        PyObject *dict = PyType_GetDict(type);
    #else
        PyObject *dict = Py_NewRef(type->tp_dict);
    #endif
        int rc = PyDict_DelItemString(dict, "__new__");
        Py_DECREF(dict);
        type->tp_new = NULL;
        type->tp_vectorcall = NULL;
        type->tp_flags |= Py_TPFLAGS_DISALLOW_INSTANTIATION;
        PyType_Modified(type);
        return rc;
    }
    """
    int arena_only_made_by_us(type) except -1

arena_only_made_by_us(Block)
arena_only_made_by_us(RangeView)


# --- DLPack ----------------------------------------------------------------------------------------------------------

# A block as a DLPack tensor: one dimension of uint8 on the CPU. The structures are those of dlpack.h 1.0, and of 0.8
# for consumers that do not ask for a version; https://dmlc.github.io/dlpack/latest/python_spec.html says who does what.

cdef struct DLPackVersion:
    uint32_t major, minor

cdef struct DLDevice:
    int32_t device_type  # dlpack.h has an enum here
    int32_t device_id

cdef struct DLDataType:
    uint8_t code, bits
    uint16_t lanes

cdef struct DLTensor:
    void *data
    DLDevice device
    int32_t ndim
    DLDataType dtype
    int64_t *shape
    int64_t *strides
    uint64_t byte_offset

cdef struct DLManagedTensor:
    DLTensor dl_tensor
    void *manager_ctx
    void (*deleter)(DLManagedTensor *) noexcept nogil

cdef struct DLManagedTensorVersioned:
    DLPackVersion version
    void *manager_ctx
    void (*deleter)(DLManagedTensorVersioned *) noexcept nogil
    uint64_t flags
    DLTensor dl_tensor

cdef enum:
    DL_CPU = 1
    DL_UINT = 1
    DL_IS_COPIED = 1 << 1

# What a consumer holds: one piece of malloc's memory, which needs no interpreter to be freed.
cdef struct Lent:
    Py_buffer view  # the export, and a reference to the block
    int64_t shape, stride
    DLManagedTensor plain
    DLManagedTensorVersioned versioned


cdef void dlpack_return(Lent *lent) noexcept:
    PyBuffer_Release(&lent.view)
    free(lent)


cdef void dlpack_return_with_gil(Lent *lent) noexcept with gil:
    dlpack_return(lent)


# A consumer calls this on any thread, with the GIL or without. Once there is no interpreter to attach to, the block is
# left to the end of the process: whoever asks a finalizing interpreter for the GIL never comes back.
cdef void dlpack_return_from_anywhere(void *lent) noexcept nogil:
    if Py_IsInitialized() and not arena_finalizing():
        dlpack_return_with_gil(<Lent *>lent)


cdef void dlpack_delete(DLManagedTensor *tensor) noexcept nogil:
    dlpack_return_from_anywhere(tensor.manager_ctx)


cdef void dlpack_delete_versioned(DLManagedTensorVersioned *tensor) noexcept nogil:
    dlpack_return_from_anywhere(tensor.manager_ctx)


# The capsule's reference count is 0 here, so it must not become an object of Cython's. A consumer that takes the tensor
# renames the capsule, and calls the deleter when it is done.
cdef void dlpack_drop_capsule(PyObject *capsule) noexcept:
    if PyCapsule_IsValid(capsule, "dltensor") or PyCapsule_IsValid(capsule, "dltensor_versioned"):
        dlpack_return(<Lent *>PyCapsule_GetContext(capsule))


cdef dlpack_capsule(Block block, bint versioned, bint copied):
    cdef Lent *lent = <Lent *>calloc(1, sizeof(Lent))
    cdef DLTensor *tensor
    if lent == NULL:
        raise MemoryError("no memory for a DLPack capsule")
    try:
        PyObject_GetBuffer(block, &lent.view, PyBUF_WRITABLE)
    except BaseException:
        free(lent)
        raise
    lent.shape, lent.stride = lent.view.len, 1
    tensor = &lent.versioned.dl_tensor if versioned else &lent.plain.dl_tensor
    tensor.data = lent.view.buf
    tensor.device.device_type = DL_CPU
    tensor.ndim = 1
    tensor.dtype.code, tensor.dtype.bits, tensor.dtype.lanes = DL_UINT, 8, 1
    tensor.shape, tensor.strides = &lent.shape, &lent.stride
    lent.plain.manager_ctx = lent.versioned.manager_ctx = lent
    lent.plain.deleter, lent.versioned.deleter = dlpack_delete, dlpack_delete_versioned
    lent.versioned.version.major = 1
    lent.versioned.flags = DL_IS_COPIED if copied else 0
    try:
        if versioned:
            capsule = PyCapsule_New(&lent.versioned, "dltensor_versioned", dlpack_drop_capsule)
        else:
            capsule = PyCapsule_New(&lent.plain, "dltensor", dlpack_drop_capsule)
    except BaseException:
        dlpack_return(lent)
        raise
    PyCapsule_SetContext(capsule, lent)
    return capsule


cdef pair_of_ints(value, what):
    """(int, int), or a TypeError."""
    if isinstance(value, tuple) and len(value) == 2:
        return _operator.index(value[0]), _operator.index(value[1])
    raise TypeError(f"{what} must be a tuple of two ints or None, not {value!r}")


cdef dlpack_export(Block block, stream, max_version, dl_device, copy):
    versioned = max_version is not None and pair_of_ints(max_version, "max_version") >= (1, 0)
    if stream is not None:
        raise ValueError(f"stream must be None for memory of the CPU, not {stream!r}")
    if dl_device is not None and pair_of_ints(dl_device, "dl_device") != (DL_CPU, 0):
        raise BufferError(f"a block is memory of the CPU, DLPack device ({DL_CPU}, 0), and not of {dl_device!r}")
    if copy is None or copy is False:
        return dlpack_capsule(block, versioned, False)
    if copy is not True:
        raise TypeError(f"copy must be True, False or None, not {copy!r}")
    return dlpack_capsule(copy_of(block), versioned, True)


cdef Block copy_of(Block block):
    """A new block of the same arena that holds the same."""
    cdef Py_buffer source
    cdef Block copied
    PyObject_GetBuffer(block, &source, PyBUF_SIMPLE)
    try:
        copied = block._arena.alloc(source.len)
        # The export of the one keeps the arena from being reset, and so the other's memory its own.
        with nogil:
            memcpy(copied.ptr, source.buf, source.len)
    finally:
        PyBuffer_Release(&source)
    return copied


# --- NumPy's own allocations ------------------------------------------------------------------------------------------

# A PyDataMem_Handler whose functions are those of csrc/alloc/malloc_adapter.c. What of NumPy's
# C interface this needs is declared here, so that one build works with every NumPy from 1.22 on, and without any.

cdef extern from *:
    """
    /* NumPy calls its data handler with the GIL and without it (sorts and other loops have let go of it). As
     * PyGILState_Check(), which says yes to everything once there was a subinterpreter. */
    static void *arena_leave_gil(void) {
    #if PY_VERSION_HEX >= 0x030D0000
        PyThreadState *held = PyThreadState_GetUnchecked();
    #else
        PyThreadState *held = _PyThreadState_UncheckedGet();
    #if PY_VERSION_HEX < 0x030C0000
        if (held != PyGILState_GetThisThreadState()) held = NULL; /* whoever holds it: another thread */
    #endif
    #endif
        /* Whoever asks a finalizing interpreter for the GIL is ended on the spot. */
        return held && !arena_finalizing() ? PyEval_SaveThread() : NULL;
    }
    static void arena_come_back(void *held) { PyEval_RestoreThread(held); }

    #include <sys/syscall.h>
    #include <unistd.h>
    static int arena_in_first_thread(void) { return syscall(SYS_gettid) == getpid(); }

    typedef PyObject *(*arena_numpy_set)(PyObject *);
    typedef PyObject *(*arena_numpy_get)(void);
    """
    void *arena_leave_gil() noexcept nogil
    void arena_come_back(void *) noexcept nogil
    bint arena_in_first_thread() noexcept nogil
    ctypedef object (*arena_numpy_set)(PyObject *)
    ctypedef object (*arena_numpy_get)()
    int Py_AddPendingCall(int (*)(void *) noexcept, void *)


# numpy/ndarraytypes.h: PyDataMem_Handler, version 1
cdef struct data_handler:
    char name[127]
    uint8_t version
    void *ctx
    void *(*malloc)(void *, size_t) noexcept nogil
    void *(*calloc)(void *, size_t, size_t) noexcept nogil
    void *(*realloc)(void *, void *, size_t) noexcept nogil
    void (*free)(void *, void *, size_t) noexcept nogil


cdef struct handler:
    data_handler face  # it comes first, for NumPy's capsules hold its address
    malloc_adapter memory
    bint warned  # the warning that the arena is closed has been given
    PyObject *owner  # the Arena: it lives as long as the capsule, which every array that was allocated by it holds


cdef enum:
    SET_HANDLER = 304  # PyDataMem_SetHandler and PyDataMem_GetHandler in NumPy's table of functions
    GET_HANDLER = 305
    SINCE = 0x0F  # PyArray_GetNDArrayCFeatureVersion of NumPy 1.22
    FEATURE_VERSION = 211

cdef const char *CAPSULE = "mem_handler"
cdef void **numpy_table = NULL


cdef void **numpy_functions() except NULL:
    global numpy_table
    if numpy_table == NULL:
        numpy = _arrays.numpy()
        inside = getattr(numpy, "_core", None) or numpy.core
        api = inside._multiarray_umath._ARRAY_API
        table = <void **>PyCapsule_GetPointer(<PyObject *>api, NULL)
        if (<unsigned (*)() noexcept>table[FEATURE_VERSION])() < SINCE:
            raise ImportError(f"NumPy {numpy.__version__} has no data handlers (NEP 49): 1.22 and later have")
        numpy_table = table
    return numpy_table


cdef int raise_later(void *caught) except -1 with gil:
    error = <object>caught
    Py_DECREF(error)
    raise error


cdef int adapter_progress(void *arg, uint64_t done, uint64_t total) noexcept nogil:
    return 0 if not arena_in_first_thread() else -EINTR if arena_finalizing() else adapter_progress_with_gil()


cdef int adapter_progress_with_gil() noexcept with gil:
    if PyErr_Occurred() != NULL:
        return 0
    try:
        PyErr_CheckSignals()
    except BaseException as caught:
        # NumPy knows no other answer than MemoryError. What the signal's handler raised follows at the next bytecode.
        Py_INCREF(caught)
        if Py_AddPendingCall(<int (*)(void *) noexcept>raise_later, <void *>caught) != 0:
            Py_DECREF(caught)
        return -EINTR
    return 0


cdef void adapter_closed(void *arg) noexcept nogil:
    adapter_closed_with_gil(<handler *>arg)


cdef void adapter_closed_with_gil(handler *h) noexcept with gil:
    if h.warned or PyErr_Occurred() != NULL:
        return
    h.warned = True
    cdef Arena arena = <Arena>h.owner
    try:
        _warnings.warn(
            f"the arena of {_errors.amount(arena._size)} at {arena._address:#x} is closed, and NumPy allocates by "
            "malloc in this context: leave the block of numpy_allocations() before, or call nep49.uninstall()",
            RuntimeWarning,
        )
    except BaseException as caught:  # a filter makes it an error: it follows at the next bytecode
        Py_INCREF(caught)
        if Py_AddPendingCall(<int (*)(void *) noexcept>raise_later, <void *>caught) != 0:
            Py_DECREF(caught)


cdef void forget(PyObject *capsule) noexcept:
    cdef handler *h = <handler *>PyCapsule_GetPointer(capsule, CAPSULE)
    Py_DECREF(<object>h.owner)
    free(h)


def numpy_handler(Arena arena not None, bint overflow):
    """Make a handler of NumPy's that allocates in the arena. For arena.nep49, as the next four are."""
    cdef handler *h
    if arena._is_shared_with_children:
        raise ValueError(
            "NumPy does not say which arrays are of Python objects, and a fork's child would share their pointers: use "
            "a.empty() in a shared arena, or fork='drop'"
        )
    h = <handler *>calloc(1, sizeof(handler))
    if h == NULL:
        raise MemoryError("malloc has no memory for a handler of NumPy's")
    strcpy(h.face.name, "arena")
    h.face.version = 1
    h.face.ctx = &h.memory
    h.face.malloc, h.face.calloc = adapter_malloc, adapter_calloc
    h.face.realloc, h.face.free = adapter_realloc, adapter_free
    h.memory.arena, h.memory.overflow = arena.c, overflow
    h.memory.leave, h.memory.come_back, h.memory.progress = arena_leave_gil, arena_come_back, adapter_progress
    h.memory.closed, h.memory.arg = adapter_closed, h
    try:
        capsule = PyCapsule_New(h, CAPSULE, forget)
    except BaseException:
        free(h)
        raise
    h.owner = <PyObject *>arena
    Py_INCREF(arena)
    return capsule


def numpy_handler_of_now():
    """Return the handler of the current context."""
    return (<arena_numpy_get>numpy_functions()[GET_HANDLER])()


def swap_numpy_handler(capsule):
    """Install a handler in the current context, or NumPy's own for None, and return the one before."""
    if capsule is not None and not PyCapsule_IsValid(<PyObject *>capsule, CAPSULE):
        raise TypeError(f"a handler of NumPy's is wanted, not {type(capsule).__name__}")
    cdef arena_numpy_set set_handler = <arena_numpy_set>numpy_functions()[SET_HANDLER]
    before = numpy_handler_of_now()
    try:
        return set_handler(NULL if capsule is None else <PyObject *>capsule)
    except MemoryError:
        # Up to CPython 3.13 PyContextVar_Set() may have set it, and have had no memory for its answer.
        if numpy_handler_of_now() is not before:
            set_handler(<PyObject *>before)
        raise


def arena_of_numpy_handler(capsule):
    """Return the arena that a handler allocates in; None where the handler is not of ours."""
    cdef data_handler *face
    if capsule is None or not PyCapsule_IsValid(<PyObject *>capsule, CAPSULE):
        return None
    face = <data_handler *>PyCapsule_GetPointer(<PyObject *>capsule, CAPSULE)
    return <object>(<handler *>face).owner if face.malloc == adapter_malloc else None


def arena_at(uintptr_t address):
    """Return the arena whose memory is at an address, or None."""
    cdef Arena a
    for reference in _arenas.valuerefs():
        a = reference()
        if a is not None and a._address <= address < a._address + a._size:
            if a.stats().reserved:  # once it is closed and its last block gone, its addresses are anybody's
                return a
    return None


# --- arrays on blocks -------------------------------------------------------------------------------------------------
# NumPy's table of functions makes them, as above: what this needs of its C interface is the same in NumPy 1 and 2.

cdef enum:
    ARRAY_TYPE = 2  # PyArray_Type, PyArray_NewFromDescr, PyArray_DescrConverter, PyArray_SetBaseObject
    NEW_FROM_DESCR = 94
    DESCR_CONVERTER = 174
    SET_BASE_OBJECT = 282
    C_CONTIGUOUS = 0x0001
    F_CONTIGUOUS = 0x0002
    WRITEABLE = 0x0400
    MOST_DIMENSIONS = 64  # NumPy 1 has 32, and says so itself

# The dtype's reference is NumPy's from then on, and so is the base's, even when they fail.
ctypedef object (*new_from_descr)(
    PyObject *, PyObject *, int, const Py_ssize_t *, const Py_ssize_t *, void *, int, PyObject *
)
ctypedef int (*descr_converter)(PyObject *, PyObject **) except 0
ctypedef int (*set_base_object)(PyObject *, PyObject *) except -1


cdef int dimensions(shape, Py_ssize_t *dims) except -1:
    """How many."""
    cdef int nd = 0
    if type(shape) is not int and type(shape) is not tuple:
        shape = _arrays.dimensions(shape)
    try:
        if type(shape) is int:
            dims[0], nd = shape, 1
        else:
            for n in <tuple>shape:
                if nd == MOST_DIMENSIONS:
                    raise ValueError(f"an array of NumPy's has at most {MOST_DIMENSIONS} dimensions")
                dims[nd] = n
                nd += 1
    except OverflowError:
        raise ValueError("the array is too big: a dimension is more than 2^63 - 1") from None
    return nd


cdef object new_array(Arena a, shape, dtype, order, align, bint zero):
    """The array holds an export of its block and of its arena for as long as it lives: the block does it, being its
    base."""
    cdef void **numpy = numpy_functions()
    cdef Py_ssize_t dims[MOST_DIMENSIONS]
    cdef Py_ssize_t nbytes
    cdef PyObject *found = NULL
    cdef bint empty = False, fortran = order == "F"
    cdef Block block
    cdef int i, nd
    (<descr_converter>numpy[DESCR_CONVERTER])(<PyObject *>dtype, &found)
    dt = <object>found
    Py_DECREF(dt)
    if dt.hasobject:
        raise _arrays.refusal(dt)
    nd = dimensions(shape, dims)
    if not fortran and order != "C":
        raise ValueError(f"order must be 'C' or 'F', not {order!r}")
    nbytes = dt.itemsize
    if nbytes == 0:  # "U" and "S" become "U1" and "S1"; "V" stays what it is
        dt = _arrays.numpy().empty(0, dt).dtype
        nbytes = dt.itemsize
        empty = nbytes == 0
    for i in range(nd):
        if dims[i] < 0:
            raise ValueError("negative dimensions are not allowed")
        if dims[i] == 0:
            empty = True
        elif nbytes > INT64_MAX // dims[i]:
            raise ValueError("the array is too big: more than 2^63 - 1 bytes")
        else:
            nbytes *= dims[i]
    if empty:
        return _arrays.numpy().empty(shape, dt, order)
    block = new_block(a, nbytes, step_of(a, align), zero, True)
    if not pin(block):
        raise BufferError("the arena is being reset")
    block.lent = True
    Py_INCREF(dt)
    array = (<new_from_descr>numpy[NEW_FROM_DESCR])(
        <PyObject *>numpy[ARRAY_TYPE], <PyObject *>dt, nd, dims, NULL, block.ptr,
        (F_CONTIGUOUS if fortran else C_CONTIGUOUS) | WRITEABLE, NULL,
    )
    Py_INCREF(block)
    (<set_base_object>numpy[SET_BASE_OBJECT])(<PyObject *>array, <PyObject *>block)
    return array


# --- module ----------------------------------------------------------------------------------------------------------


def get_include():
    """Return the folder of ``arena.h``, for C and Cython extensions.

    Returns
    -------
    str
        For ``include_dirs``.

    Examples
    --------
    >>> import os, arena
    >>> os.path.exists(os.path.join(arena.get_include(), "arena.h"))
    True
    """
    return _os.path.join(_os.path.dirname(_os.path.abspath(__file__)), "include")


def lock_all(bint current, bint future, bint on_fault, bint afresh):
    """Lock all memory of the process, for arena.realtime: csrc/memory/mlockall.h.

    With ``afresh`` what was locked is unlocked first. All of it is one step to signal handlers.
    """
    cdef arena_error e
    cdef int rc = 0
    memset(&e, 0, sizeof(e))
    with nogil:
        if afresh:
            rc = munlockall_sparse()
        if rc == 0 and (current or future):
            rc = mlockall_sparse(current, future, on_fault, &e)
    if rc:
        raise _errors.lock_error(-rc, e.requested, e.committed, None if e.available == UINT64_MAX else e.available)


def _probe():
    """Return what the kernel answers to this process, for arena.doctor.

    The names and numbers are those of csrc/sys/probe.h.
    """
    cdef os_probe_t p
    with nogil:
        os_probe(&p)
    return {**p, **os_features()[0], "thp": huge_pages_allowed(2 << 20, False) > 0,
            "thp_shared": huge_pages_allowed(2 << 20, True) > 0}


# These are for _realtime.pyx, which links none of the core.

cdef const uint32_t *fork_generation_at() noexcept nogil:
    return &fork_generation


cdef int ring_memory(
    uint64_t nbytes, bint lock, const char *name, arena_progress progress, void *arg, void *out, arena_error *e
) noexcept nogil:
    return mirror_create(os_features(), nbytes, lock, name, progress, arg, <mirror *>out, e)


cdef void ring_memory_destroy(void *m) noexcept nogil:
    mirror_destroy(<mirror *>m)


def overcommit_mode():
    """Return vm.overcommit_memory."""
    return os_overcommit_mode()


cdef int block_alloc(Arena a, uint64_t nbytes, uint64_t align, arena_block *out) noexcept nogil:
    return arena_alloc(a.c, nbytes, align, 0, NULL, NULL, out, NULL) if a is not None else -EINVAL


cdef int block_alloc_committed(Arena a, uint64_t nbytes, uint64_t align, arena_block *out) noexcept nogil:
    return arena_alloc_committed(a.c, nbytes, align, out) if a is not None else -EINVAL


cdef int block_free(Arena a, uint64_t handle) noexcept nogil:
    return arena_free(a.c, handle) if a is not None else -EINVAL


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
api.alloc_committed = arena_alloc_committed
api.free = arena_free
api.resize = arena_resize
api.find = arena_find
_C_API = PyCapsule_New(&api, "arena._core._C_API", NULL)


# arena.doctor gets the cgroups of this process as csrc/memory/machine.c finds them for commits.

cdef c_bool add_cgroup(void *to, const char *path, c_bool v1) noexcept with gil:
    try:
        (<list>to).append((_os.fsdecode(path), bool(v1)))
    except BaseException:  # there is no memory for it
        return False
    return True


cdef c_bool add_memory_cgroup(void *to, const machine_level *level) noexcept with gil:
    try:
        (<list>to).append((
            _os.fsdecode(level.path), bool(level.v1), bool(level.seen),
            None if level.limit == UINT64_MAX else level.limit, None if level.high == UINT64_MAX else level.high,
            level.usage, level.cache,
        ))
    except BaseException:
        return False
    return True


cdef c_bool add_hugetlb_cgroup(void *to, const machine_hugetlb_t *limit) noexcept with gil:
    try:
        (<list>to).append((_os.fsdecode(limit.path), limit.limit, limit.usage))
    except BaseException:
        return False
    return True


def _cgroups(controller, uint64_t page=0):
    """Return ``answer, folders``: the cgroups of this process for a controller, its own first. For arena.doctor.

    For "memory" a folder is a tuple of path, v1, seen, limit, high, usage and cache; for "hugetlb", with the size of a
    page, of file, limit and usage, and there are only those that have a limit; for another controller of path and v1.
    The answer is 0, 1 (the process is in a cgroup that cannot be seen) or -errno.
    """
    cdef list found = []
    cdef void *to = <void *>found
    cdef bytes name = controller.encode()
    cdef const char *c_name = name
    cdef int rc
    cdef bint memory = controller == "memory"
    with nogil:
        if memory:
            rc = machine_levels(add_memory_cgroup, to)
        elif page:
            rc = machine_hugetlb(page, add_hugetlb_cgroup, to)
        else:
            rc = cgroups_walk(c_name, add_cgroup, to)
    return rc, found
