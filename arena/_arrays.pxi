# NumPy arrays on blocks, by NumPy's table of functions as in _handler.pxi: what of its C interface this needs is
# declared here, and is the same in NumPy 1 and 2.

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
        return _arrays.numpy().empty(tuple([dims[i] for i in range(nd)]), dt, order)
    block = new_block(a, nbytes, step_of(a, align), zero, True)
    if not take(block):
        raise BufferError("the arena is being reset or closed")
    block.lent = True
    Py_INCREF(dt)
    array = (<new_from_descr>numpy[NEW_FROM_DESCR])(
        <PyObject *>numpy[ARRAY_TYPE], <PyObject *>dt, nd, dims, NULL, block.ptr,
        (F_CONTIGUOUS if fortran else C_CONTIGUOUS) | WRITEABLE, NULL,
    )
    Py_INCREF(block)
    (<set_base_object>numpy[SET_BASE_OBJECT])(<PyObject *>array, <PyObject *>block)
    return array
