# All arenas, by their id, to know them by their addresses.
_arenas = _weakref.WeakValueDictionary()


@cython.final
cdef class Arena:
    """An allocator on a reservation: blocks from memory that is there.

    Memory is committed by chunks as blocks need it, before alloc() returns, and kept when they are freed, so that the
    next alloc() is index work of some 60 ns and no system call. Thread-safe; the GIL is released while memory is
    populated.

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
        Bytes that are to stay available to the rest of the program, and of the memory cgroup or machine: a commit that
        would take them fails. None: 16 MiB and 256 KiB for each thread, but no more than an eighth of the limit; that
        is what printing a traceback, an import and a log line take. With 0 the next allocation of anybody may be the
        one that the kernel answers with SIGKILL.
    path, fd, shared, backing, pages, lock, node, fork, dump, name
        As for :class:`Reservation`. ``chunk`` is at least a page. With fork="share" the child of a fork uses and frees
        the blocks there are, and the parent alone makes new ones. Blocks in a file that was there before hold what the
        file does.

    Raises as :class:`Reservation`.
    """
    def __cinit__(
        self, size, *, chunk="2MiB", populate="write", retain=None, decay=None, headroom=None,
        path=None, fd=None, shared=False, backing=None, readonly=False, pages="auto", lock=False, node=None, fork=None,
        dump=False, name=None,
    ):
        cdef Wanted wanted = Wanted(
            size, headroom, path, fd, shared, backing, readonly, pages, lock, node, fork, dump, name
        )
        cdef arena_config config
        cdef reservation_stats stats
        cdef arena_error e
        cdef int rc
        if wanted.config.readonly:
            raise ValueError("an arena is for writing: map a file read-only with Reservation(readonly=True)")
        memset(&config, 0, sizeof(config))
        config.reservation = wanted.config
        config.chunk = 0 if chunk == "2MiB" else positive(chunk, "chunk")
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
        """A new :class:`Block` of ``nbytes`` that are present: writing them faults on nothing.

        ``align``: a power of two up to the chunk. ``zero``: all bytes are 0 (nothing is cleared that is known to be
        zero); else they may be what an earlier block left. ``grow=False``: from committed memory only, without any
        system call.

        Raises ArenaFullError (a MemoryError) where no free range is that large, CommitError where the machine or
        cgroup has not the memory, ValueError once the arena is closed.
        """
        cdef int overflow = 0
        cdef long long given = PyLong_AsLongLongAndOverflow(nbytes, &overflow) if type(nbytes) is int else 0
        return new_block(
            self, <uint64_t>given if given > 0 else positive(nbytes, "nbytes"), step_of(self, align), zero, grow
        )

    def empty(self, shape, dtype=float, order="C", *, align=64):
        """A new NumPy array, uninitialised. It owns its block, which is freed with the last view of it, in whichever
        thread; as it holds an export, the arena says BufferError to reset() and close() while it lives.

        ``order``: "C" or "F". ``align``: as for alloc(). Arrays of 0 bytes are NumPy's own.

        ValueError for dtypes with Python objects or variable-width strings in them; ImportError without NumPy; else as
        alloc().
        """
        return new_array(self, shape, dtype, order, align, False)

    def zeros(self, shape, dtype=float, order="C", *, align=64):
        """As empty(), of zeros. Memory that is known to be zero is not written."""
        return new_array(self, shape, dtype, order, align, True)

    def full(self, shape, fill_value, dtype=None, order="C", *, align=64):
        """As empty(), of one value, and by default of its dtype."""
        return _arrays.full(self, shape, fill_value, dtype, order, align)

    def empty_like(self, prototype, dtype=None, order="K", *, shape=None, align=64):
        """As empty(), with the shape and dtype of an array unless said otherwise.

        ``order``: also "K", that of the prototype as nearly as can be, and "A", "F" if the prototype is in Fortran's
        order only, else "C".
        """
        return _arrays.empty_like(self, prototype, dtype, order, shape, align)

    def array(self, obj, dtype=None, order="K", *, align=64):
        """A copy of ``obj``, which is an array or anything that NumPy makes one of; subclasses become plain arrays.

        ``order`` as for empty_like(), errors as for empty() and np.array. What is not an array yet, or needs a dtype
        other than a plain number's, becomes one outside of the arena first.
        """
        return _arrays.array(self, obj, dtype, order, align)

    def numpy_allocations(self, *, overflow="raise"):
        """A context manager, or decorator: what NumPy allocates in this context is in the arena (NEP 49), see
        :mod:`arena.nep49`.

        ``overflow``: what the arena cannot give is a MemoryError of NumPy's, whose reason is in :attr:`last_error`
        ("raise"), or memory of malloc, counted in stats() ("malloc"). Arrays live on after the ``with``, and after
        close().
        """
        return _nep49().allocations(self, overflow=overflow)

    @property
    def last_error(self):
        """Why NumPy was last refused memory of this arena, or given malloc's instead: the exception that alloc() would
        have raised. None: it never was."""
        cdef arena_error e
        cdef int rc
        with nogil:
            rc = heap_why(self.c, &e)
        return as_exception(rc, &e) if rc else None

    def warm(self, nbytes, *, threads=None, progress=None):
        """Have ``nbytes`` of free memory committed in one piece, and with it the index that blocks of 4 KiB in it need.

        It is kept, whatever ``retain`` says, until trim(). After a fork this makes all that is committed this
        process's own again. ``threads`` and ``progress`` as for Reservation.commit(); errors as for alloc().
        """
        cdef uint64_t n = positive(nbytes, "nbytes")
        cdef unsigned count = thread_count(threads)
        cdef Ticker ticker = Ticker(progress)
        cdef arena_tick function = ticker.function()
        cdef arena_error e
        cdef int rc
        with nogil:
            rc = arena_warm(self.c, n, count, function, <void *>ticker, &e)
        ticker.finish(rc, n)
        if rc:
            raise as_exception(rc, &e)

    def trim(self, keep=0):
        """Give free committed memory back to the machine now, whole chunks, until at most about ``keep`` bytes of it
        are left. The bytes given back.
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
        if not exports_hold(&self.exports):
            raise BufferError("a view of a block is exported: drop it before reset()")
        try:
            with nogil:
                rc = arena_reset_pinned(self.c)
        finally:
            exports_unhold(&self.exports)
        if rc:
            raise BufferError(
                "a block is being committed by another thread (or further up the stack), or arrays that NumPy "
                "allocated here (numpy_allocations) are alive: reset() later"
            )

    def close(self):
        """No new blocks from now on; the mapping goes with the last block. BufferError while a block is exported (an
        array of empty() holds an export) or a commit is under way. Closing twice is fine.
        """
        cdef int rc
        if self.is_closed:
            return
        if not exports_hold(&self.exports):
            raise BufferError("a view of a block is exported: drop it before close()")
        try:
            with nogil:
                rc = arena_close(self.c)
        finally:
            exports_unhold(&self.exports)
        if rc:
            raise BufferError("another thread is committing or releasing memory of this arena: close it later")
        self.is_closed = True

    def __enter__(self):
        if self.is_closed:
            raise ValueError("the arena is closed")
        return self

    def __exit__(self, *exc):
        try:
            self.close()
        except BufferError:
            # The traceback of an exception in flight may be what holds the views. It is not to be hidden by this one;
            # the mapping goes with the last block anyway.
            if exc[0] is None:
                raise

    def stats(self):
        """The ledger, as :class:`Stats`: exact when no other thread is inside the arena."""
        cdef arena_stats s
        with nogil:
            arena_get(self.c, &s)
        return Stats(
            s.reserved, s.committed, s.live, s.free_committed, s.blocks, s.peak_committed, s.peak_live, s.commits,
            s.releases, s.commit_ns / 1e9, s.release_ns / 1e9, s.largest_free,
            1.0 - s.largest_free / <double>s.free if s.free else 0.0, s.overflows,
        )

    def blocks(self):
        """(offset, nbytes) of every block in address order, nbytes rounded up to 64: a snapshot, in which blocks that
        other threads make or free meanwhile may be or not."""
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
        """4096, or what huge pages have."""
        return self._page

    @property
    def chunk(self):
        """Bytes that are committed and released at a time."""
        return arena_chunk(self.c)

    @property
    def backing(self):
        """As Reservation.backing."""
        return self._backing

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
