# A block as a DLPack tensor: one dimension of uint8 on the CPU. The structures are those of dlpack.h 1.0, and of 0.8
# for consumers that do not ask for a version; https://dmlc.github.io/dlpack/latest/python_spec.html says who does what.

cdef struct DLPackVersion:
    uint32_t major, minor

cdef struct DLDevice:
    int32_t device_type  # an enum there
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


# Called on any thread, with the GIL or without. Once there is no interpreter (any more) to attach to, the block is left
# to the end of the process: whoever asks a finalizing interpreter for the GIL never comes back.
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
