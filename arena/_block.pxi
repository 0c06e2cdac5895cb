# Not in a cycle, and so spared the garbage collector: a Block refers to an Arena, which refers to nothing, and
# neither can be subclassed or given attributes.
@cython.final
@cython.no_gc
@cython.freelist(64)
cdef class Block:
    """Memory of an arena, as a buffer of bytes (PEP 3118). Made by Arena.alloc(); freed by free(), ``with`` or with
    the object.

    It keeps its arena mapped. While a buffer of it is exported it cannot be freed. One thing no library can see:
    np.ndarray(buffer=block), torch.frombuffer(block) and torch.asarray(block) keep the block but no export, so after an
    explicit free() they read reused memory. np.frombuffer(block) and torch.from_dlpack(block) hold one.

    Pickle takes it from protocol 5 on. Out of band (``buffer_callback=``) nothing is copied, the PickleBuffer holds an
    export, and loads() gives back the very buffer that the receiver has put into ``buffers=``, such as a Block of its
    own. In band the bytes are copied, and come back as a bytearray. With lower protocols, and in the copy module, it
    is a TypeError.
    """
    cdef Arena _arena
    cdef uint64_t handle
    cdef char *ptr
    cdef Py_ssize_t size
    cdef uint64_t exports
    cdef uint64_t epoch
    cdef bint lent  # for life, to the array whose base it is

    def __dealloc__(self):
        cdef c_bool due = False
        if self._arena is None:
            return
        if self.lent:
            exports_drop(&self.exports)
            exports_drop(&self._arena.exports)
        if exports_closed(&self.exports) or arena_give(self._arena.c, self.handle, &due) != 0:
            arena_unpin(self._arena.c)  # freed before, by free() or reset(): the mapping stayed for this object
        elif due:
            with nogil:
                arena_collect(self._arena.c)

    def __getbuffer__(self, Py_buffer *view, int flags):
        cdef reservation_stats stats
        if not take(self):
            reservation_get(arena_reservation(self._arena.c), &stats)
            if stats.dropped and not exports_closed(&self.exports) and self.freed:
                raise as_exception(-ENOTCONN, NULL)  # not even zero pages could be had in its place
            raise BufferError(
                "the block was freed" if exports_closed(&self.exports)
                else "the block was freed (its arena was reset)" if self.freed
                else "the block is being resized, or its arena reset or closed"
            )
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
            raise BufferError("a view of the block is exported (or it is being resized): drop it before free()")
        if arena_give_pinned(c, self.handle, &due) != 0:
            raise ValueError("the block was freed before (its arena was reset)")
        if due:
            with nogil:
                arena_collect(c)

    def resize(self, nbytes):
        """Make it larger or smaller where it is. ArenaFullError if what lies behind it is not free, BufferError while
        it is exported; else as Arena.alloc(). New bytes may be what an earlier block left.
        """
        cdef uint64_t n = positive(nbytes, "nbytes")
        cdef Ticker ticker = Ticker(None)
        cdef arena_tick function = ticker.function()
        cdef arena_block b
        cdef arena_error e
        cdef int rc
        if not exports_hold(&self.exports):
            if exports_closed(&self.exports):
                raise ValueError("the block was freed before")
            raise BufferError("a view of the block is exported: drop it before resize()")
        try:
            with nogil:
                rc = arena_resize(self._arena.c, self.handle, n, function, <void *>ticker, &b, &e)
            if rc == 0:
                self.size = n
        finally:
            exports_unhold(&self.exports)
        ticker.finish(rc, 0)
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

    def __dlpack__(self, *, stream=None, max_version=None, dl_device=None, copy=None):
        """A DLPack capsule, for from_dlpack() of NumPy, PyTorch and others: a tensor of uint8 on the CPU, versioned
        (1.0) if ``max_version`` says that the consumer can have it so. It holds an export until the consumer is done.

        ``copy=True``: of a new block in the same arena, else of this one.

        Raises BufferError if the block was freed or for a ``dl_device`` that is not the CPU, ValueError for a
        ``stream``; with ``copy=True`` also as Arena.alloc().
        """
        return dlpack_export(self, stream, max_version, dl_device, copy)

    def __dlpack_device__(self):
        """(1, 0): the CPU."""
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
        if not self.freed:
            self.free()

    def __repr__(self):
        if self.freed:
            return "<arena.Block freed>"
        return f"<arena.Block of {self.size} bytes at offset {self.offset}>"


cdef extern from "Python.h":
    object PyPickleBuffer_FromObject(object)


cdef inline bint take(Block self) noexcept:
    """An export. Refused: the block was freed or is being resized, or the arena is being reset or closed."""
    # The arena's word first: while it is taken no reset can begin, so the epoch stands still.
    if exports_take(&self._arena.exports):
        if exports_take(&self.exports):
            if self.epoch == arena_load64(self._arena.epoch_at):
                return True
            exports_drop(&self.exports)
        exports_drop(&self._arena.exports)
    return False


# --- how they are made

cdef clear(Block block, uint64_t nbytes):
    cdef Arena self = block._arena
    # Under an export: after a reset this would be another's memory.
    if not exports_take(&self.exports):
        raise BufferError("the arena is being reset or closed")
    if block.epoch == arena_load64(self.epoch_at):
        if nbytes > 1 << 20:  # 20 µs: below, to give the GIL away and get it back would be much of it
            with nogil:
                arena_zero(block.ptr, nbytes)
        else:
            arena_zero(block.ptr, nbytes)
    exports_drop(&self.exports)


# The object is there before its memory, for there may be no memory for the object.
cdef inline void give(Block block, Arena self, arena_block *b, uint64_t nbytes, uint64_t epoch) noexcept:
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
    # Before the block: a reset between the two frees it, and the epoch of afterwards would say that it lives.
    cdef uint64_t epoch = arena_load64(self.epoch_at)
    cdef Block block = Block.__new__(Block)
    if arena_try(self.c, nbytes, align, &b):
        return slow_alloc(self, nbytes, align, zero, grow)
    give(block, self, &b, nbytes, epoch)
    if zero and b.dirty:
        clear(block, b.dirty)
    return block


cdef Block slow_alloc(Arena self, uint64_t nbytes, uint64_t align, bint zero, bint grow):
    cdef Ticker ticker = Ticker(None)
    cdef arena_tick function = ticker.function()
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
        rc = arena_alloc(self.c, nbytes, align, flags, function, <void *>ticker, &b, &e)
    if rc == 0:
        give(block, self, &b, nbytes, epoch)
        ticker.finish(rc, 0)
        if zero and b.dirty:
            clear(block, b.dirty)
        return block
    ticker.finish(rc, 0)
    raise as_exception(rc, &e, grow)


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
