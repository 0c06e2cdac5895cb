# cython: language_level=3, freethreading_compatible=True, embedsignature=False, boundscheck=False, auto_pickle=False
"""NumPy on arenas: its own allocations (NEP 49), and arrays that own a block."""

from cpython.exc cimport PyErr_CheckSignals, PyErr_Occurred
from cpython.object cimport PyObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport INT64_MAX, uint8_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport strcpy

from arena._core cimport (
    Arena, Block, arena_handle, arena_tick, heap_interface, new_block, pin, set_array_maker, step_of,
)

from . import _core, arrays as _arrays


cdef extern from "Python.h":
    # With PyObject *, for Cython's own declarations count references of what is being deallocated.
    object PyCapsule_New(void *, const char *, void (*)(PyObject *) noexcept)
    bint PyCapsule_IsValid(PyObject *, const char *)
    void *PyCapsule_GetPointer(PyObject *, const char *)


cdef extern from "stdbool.h":
    ctypedef bint c_bool "_Bool"


cdef extern from "errno.h" nogil:
    enum:
        EINTR


cdef extern from "heap.h" nogil:
    cdef struct heap:
        arena_handle *arena
        c_bool overflow
        void *(*leave)() noexcept
        void (*come_back)(void *) noexcept
        arena_tick tick
        void *arg
    cdef struct heap_functions:
        void *(*malloc)(void *, size_t) noexcept nogil
        void *(*calloc)(void *, size_t, size_t) noexcept nogil
        void *(*realloc)(void *, void *, size_t) noexcept nogil
        void (*free)(void *, void *, size_t) noexcept nogil


cdef extern from *:
    """
    #if PY_VERSION_HEX >= 0x030D0000
    #define arena_finalizing() Py_IsFinalizing()
    #else
    #define arena_finalizing() _Py_IsFinalizing()
    #endif
    """
    bint arena_finalizing() nogil


# --- NumPy's own allocations ------------------------------------------------------------------------------------------

# A PyDataMem_Handler whose functions are those of csrc/heap.c. What of NumPy's
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


cdef void forget(PyObject *capsule) noexcept:
    cdef handler *h = <handler *>PyCapsule_GetPointer(capsule, CAPSULE)
    Py_DECREF(<object>h.owner)
    free(h)


def numpy_handler(Arena arena not None, bint overflow):
    """A new handler of NumPy's that allocates in the arena."""
    cdef handler *h
    cdef const heap_functions *heaps = <const heap_functions *>heap_interface()
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
    h.face.malloc, h.face.calloc, h.face.realloc, h.face.free = heaps.malloc, heaps.calloc, heaps.realloc, heaps.free
    h.memory.arena, h.memory.overflow = arena.c, overflow
    h.memory.leave, h.memory.come_back, h.memory.tick = arena_leave_gil, arena_come_back, heap_tick
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
    if face.malloc != (<const heap_functions *>heap_interface()).malloc:
        return None
    return <object>(<handler *>face).owner


def arena_at(uintptr_t address):
    """The arena whose memory this is."""
    cdef Arena a
    for reference in _core._arenas.valuerefs():
        a = reference()
        if a is not None and a._address <= address < a._address + a._size:
            if a.stats().reserved:  # once it is closed and its last block gone, its addresses are anybody's
                return a
    return None


# --- arrays on blocks -------------------------------------------------------------------------------------------------
# By NumPy's table of functions, as above: what of its C interface this needs is the same in NumPy 1 and 2.

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


set_array_maker(new_array)
