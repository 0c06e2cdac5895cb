# NumPy's own allocations in an arena (NEP 49): a PyDataMem_Handler whose functions are those of heap.c. What of NumPy's
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
    data_handler face  # first: NumPy's capsules hold its address
    heap memory
    bint warned  # that the arena is closed
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


cdef int heap_tick(void *arg, uint64_t done, uint64_t total) noexcept nogil:
    return 0 if not arena_in_first_thread() else -EINTR if arena_finalizing() else heap_tick_with_gil()


cdef int heap_tick_with_gil() noexcept with gil:
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


cdef void heap_closed(void *arg) noexcept nogil:
    heap_closed_with_gil(<handler *>arg)


cdef void heap_closed_with_gil(handler *h) noexcept with gil:
    if h.warned or PyErr_Occurred() != NULL:
        return
    h.warned = True
    cdef Arena arena = <Arena>h.owner
    try:
        _warnings.warn(
            f"the arena of {_errors.amount(arena._size)} at {arena._address:#x} is closed, and NumPy allocates by malloc in this context: leave the block of "
            "numpy_allocations() before, or call nep49.uninstall()",
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
    """A new handler of NumPy's that allocates in the arena."""
    cdef handler *h
    if arena._is_shared_with_children:
        raise ValueError(
            "NumPy does not say which arrays are of Python objects, and a fork's child would share their pointers: use "
            "a.empty() in a shared arena, or fork='drop'"
        )
    h = <handler *>calloc(1, sizeof(handler))
    if h == NULL:
        raise MemoryError
    strcpy(h.face.name, "arena")
    h.face.version = 1
    h.face.ctx = &h.memory
    h.face.malloc, h.face.calloc, h.face.realloc, h.face.free = heap_malloc, heap_calloc, heap_realloc, heap_free
    h.memory.arena, h.memory.overflow = arena.c, overflow
    h.memory.leave, h.memory.come_back, h.memory.tick = arena_leave_gil, arena_come_back, heap_tick
    h.memory.closed, h.memory.arg = heap_closed, h
    try:
        capsule = PyCapsule_New(h, CAPSULE, forget)
    except BaseException:
        free(h)
        raise
    h.owner = <PyObject *>arena
    Py_INCREF(arena)
    return capsule


def numpy_handler_of_now():
    """The handler of the current context."""
    return (<arena_numpy_get>numpy_functions()[GET_HANDLER])()


def swap_numpy_handler(capsule):
    """Installs a handler in the current context, or NumPy's own for None. The one before."""
    if capsule is not None and not PyCapsule_IsValid(<PyObject *>capsule, CAPSULE):
        raise TypeError(f"a handler of NumPy's is wanted, not {type(capsule).__name__}")
    return (<arena_numpy_set>numpy_functions()[SET_HANDLER])(NULL if capsule is None else <PyObject *>capsule)


def arena_of_numpy_handler(capsule):
    """The arena that it allocates in; None where it is not of ours."""
    cdef data_handler *face
    if capsule is None or not PyCapsule_IsValid(<PyObject *>capsule, CAPSULE):
        return None
    face = <data_handler *>PyCapsule_GetPointer(<PyObject *>capsule, CAPSULE)
    return <object>(<handler *>face).owner if face.malloc == heap_malloc else None


def arena_at(uintptr_t address):
    """The arena whose memory this is."""
    cdef Arena a
    cdef arena_stats stats
    for reference in _arenas.valuerefs():
        a = reference()
        if a is not None and a._address <= address < a._address + a._size:
            arena_get(a.c, &stats)
            if stats.reserved:  # once it is closed and its last block gone, its addresses are anybody's
                return a
    return None


def _nep49():
    from . import nep49  # which imports this module

    return nep49
