@cython.final
@cython.no_gc
cdef class RangeView:
    """Exports a part of a reservation; the reservation is not released under it."""

    cdef Reservation owner
    cdef reservation_view look
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
            reservation_look_away(self.owner.c, &self.look)
            exports_drop(&self.owner.exports)


@cython.final
cdef class Reservation:
    """A sparse range of memory or of a file: address space that costs nothing, of which parts are committed and
    released.

    For those who manage offsets themselves; :class:`Arena` is an allocator on top of one. Thread-safe.

    Parameters
    ----------
    size
        Bytes, or "64MiB", "2GiB", "1.5 GB". Rounded up to whole pages.
    path
        A directory: an unnamed file in it, which goes with the reservation. A path where nothing is: a file is created
        (0600), made ``size`` long and kept. An existing file is mapped from its start as it is, never resized, and
        never punched without ``discard``. On tmpfs, a disk, or hugetlbfs.
    fd
        As an existing file: anything that mmap(2) takes, as int or with fileno(). It is duplicated.
    shared
        Writes are seen by others who map the same memory, and get into the file. Without path and fd: a memfd, sealed
        against shrinking and growing.
    backing
        "anonymous" or "memfd", to say which without path and fd; default: a memfd if shared, else anonymous.
    readonly
        The file can be committed and viewed for reading only.
    pages
        "auto": 2 MiB transparent huge pages where the machine allows them for this kind of memory and the size is 2 MiB
        or more; else the largest mTHP size that is enabled (Linux 6.8), else 4 KiB. "4K", "thp", "64K" (an mTHP size)
        insist. "2M", "1G": from the hugetlb pool of such pages. What cannot be had raises ReserveError here; what was
        had is ``page_size``.
    lock
        What is committed is mlocked, and what is released unlocked: it is not swapped or reclaimed, and counts against
        RLIMIT_MEMLOCK by what is committed. (Pages of the hugetlb pool never are, and do not.) A fork's child inherits
        no locks; its next commit() of the range locks.
    node
        Memory comes from this NUMA node alone (mbind(2), MPOL_BIND).
    fork
        What the child of a fork gets: "copy" (copy-on-write; commit() again undoes that), "share" (the same memory, for
        both to use and to release: shared only), "drop" (nothing: zeros, and RuntimeError for every call; the parent
        keeps its pages to itself) or "wipe" (zeros, usable; private anonymous only). By default "share" for shared
        memory, "drop" for private hugetlb pages (a write after a copying fork needs a second one, and is a SIGBUS where
        there is none), else "copy".
    dump
        Include the memory in core dumps. Left out by default: a dump of a sparse terabyte takes for ever.
    name
        Shown in /proc/self/maps where the kernel was built with CONFIG_ANON_VMA_NAME.

    Raises ReserveError (an OSError and a MemoryError) when address space, the file or such pages cannot be had,
    ValueError or TypeError for nonsense.
    """
    cdef reservation_handle *c
    cdef uint64_t _size, _page, _address
    cdef uint64_t exports
    cdef str _backing
    cdef bint _readonly

    def __cinit__(
        self, size, *, path=None, fd=None, shared=False, backing=None, readonly=False, pages="auto", lock=False,
        node=None, fork=None, dump=False, name=None,
    ):
        cdef Wanted wanted = Wanted(size, None, path, fd, shared, backing, readonly, pages, lock, node, fork, dump, name)
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

    def commit(self, nbytes=None, *, offset=0, populate="write", threads=None, progress=None):
        """Make ``nbytes`` at ``offset`` (default: all of it), rounded outward to pages, present. The bytes newly
        present.

        Afterwards a write, or with populate="read" a read, of any of it faults on nothing (madvise(2),
        MADV_POPULATE_WRITE and MADV_POPULATE_READ, Linux 5.14; elsewhere the kernel is made to touch each page). Shared
        memory and files are allocated first (fallocate(2)), so that it is an error and not a signal when they are full.
        A file on disk is faultless for writing until the kernel writes its pages back. populate="read" maps a file's
        pages without making them dirty, and for private anonymous memory the zero page, which costs nothing. After a
        fork, pages that became copy-on-write are made this process's own again.

        ``threads``: how many, None for min(CPUs, 16, bytes / 64 MiB). ``progress(done, total)`` is called in this
        thread, at most every 10 ms or so, and at the end; what it raises stops the commit, as an exception from a
        signal handler does.

        Raises CommitError (an OSError and a MemoryError). A commit that fails or is stopped gives back what it made
        present.
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
        ticker.finish(rc, newly)
        if rc:
            raise as_exception(rc, &e)
        return newly

    cdef enter(self):
        # Whoever is inside keeps close() out.
        self.open()
        if not exports_take(&self.exports):
            raise ValueError("the reservation is closed")

    def release(self, nbytes=None, *, offset=0, discard=False):
        """Give ``nbytes`` at ``offset`` (default: all of it), rounded inward to pages, back to the machine. The bytes
        given back.

        Released memory is zero when it is committed again; of shared memory that holds for everybody who maps it. In a
        private mapping of a file the file shows through again. A file that was there before (an existing path, a fd)
        keeps its data, unless ``discard``: then the range is punched out of it, committed or not, and what the file
        system had for it is free. BufferError while a view of the range is exported.
        """
        cdef uint64_t start, length, freed = 0
        cdef bint punch = bool(discard)
        cdef Ticker ticker = Ticker(None)
        cdef arena_tick function = ticker.function()
        cdef arena_error e
        cdef int rc
        self.range_of(nbytes, offset, &start, &length)
        self.enter()
        try:
            with nogil:
                rc = reservation_release(self.c, start, length, punch, &freed, function, <void *>ticker, &e)
        finally:
            exports_drop(&self.exports)
        ticker.finish(rc, freed)
        if rc == -EBUSY:
            raise BufferError("a view of this range is exported: drop it first")
        if rc:
            raise as_exception(rc, &e)
        return freed

    def view(self, nbytes=None, *, offset=0, readonly=False):
        """A memoryview of ``nbytes`` at ``offset``, which must be committed (for writing, unless readonly): else
        ValueError.

        While it, or anything made from it, lives, its range is not released and the reservation not closed.
        """
        cdef uint64_t start, length
        cdef RangeView v
        cdef int rc
        self.range_of(nbytes, offset, &start, &length)
        if length == 0:
            raise ValueError("a view of 0 bytes is of no use")
        if self._readonly and not readonly:
            raise ValueError("the reservation is read-only: view(readonly=True)")
        self.enter()
        try:
            v = RangeView.__new__(RangeView)
            rc = reservation_look(self.c, &v.look, start, length, not readonly)
            if rc == -EBUSY:
                raise BufferError("this range is being released")
            if rc:
                raise ValueError(
                    f"not all of the {length} bytes at offset {start} are committed"
                    f"{'' if readonly else ' for writing'}: commit them first"
                )
        except BaseException:
            exports_drop(&self.exports)
            raise
        v.owner = self
        v.ptr = <char *>self._address + start
        v.size = length
        v.readonly = bool(readonly)
        return memoryview(v)

    def verify(self, nbytes=None, *, offset=0):
        """See that what is committed of the range is still there: it is populated again, or CommitError says why it
        cannot be: the file was truncated, a hole was punched in it and the file system is full now.

        A diagnosis, not a guarantee: the next moment may be different. read_into() is safe at any time.
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
        ticker.finish(rc, 0)
        if rc:
            raise as_exception(rc, &e)

    cdef Py_ssize_t copy(self, buffer, offset, bint into) except -1:
        cdef Py_buffer view
        cdef arena_error e
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
        if rc == -EBUSY:
            raise BufferError("this range is being released")
        if rc == -ENODATA:
            raise ValueError(f"not all of the {length} bytes at offset {start} are committed: commit them first")
        if rc == -ENOTCONN:
            e.op = NULL
            raise as_exception(rc, &e)
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
        """Copy from the reservation into a writable buffer, through the kernel: pread(2) for shared files, committed or
        not, else process_vm_readv(2). The bytes copied.

        OSError (EFAULT) where a load would end in a signal, ValueError where it is not committed, PermissionError where
        a container's seccomp profile forbids process_vm_readv.
        """
        return self.copy(buffer, offset, False)

    def write_from(self, buffer, *, offset=0):
        """Copy from a buffer into the reservation, which has to be committed, through the kernel: pwrite(2) for shared
        files, else process_vm_writev(2). The bytes copied. Errors as for read_into().
        """
        return self.copy(buffer, offset, True)

    def residency(self, nbytes=None, *, offset=0):
        """The kernel's word on the range, as :class:`Residency`: /proc/self/pagemap, PAGEMAP_SCAN where there is one
        (Linux 6.7).

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
        """Where it begins."""
        return self._address

    @property
    def page_size(self):
        """The unit of commit and release: 4096, or what huge pages have."""
        return self._page

    @property
    def backing(self):
        """"anonymous", "memfd", "tmpfs", "hugetlbfs", "file" (on any other file system) or "device"."""
        return self._backing

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
        """The descriptor of its file, which stays the reservation's. OSError (EBADF) where there is none."""
        cdef int fd
        self.enter()
        fd = reservation_fd(self.c)
        exports_drop(&self.exports)
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
