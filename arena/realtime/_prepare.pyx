# cython: language_level=3, freethreading_compatible=True, embedsignature=False, autotestdict=False
"""The stack and malloc's memory, as csrc/prefault.h has it."""

import os as _os


cdef extern from "prefault.h" nogil:
    long prefault_stack_left()
    void prefault_stack(size_t nbytes)
    bint prefault_keep_heap(bint keep, size_t nbytes)
    int prefault_heap(size_t nbytes)
    void prefault_trim_heap()


cdef size_t left() except? 0:
    cdef long nbytes = prefault_stack_left()
    if nbytes < 0:
        raise OSError(-nbytes, f"pthread_getattr_np: {_os.strerror(-nbytes)}")
    return nbytes


def stack_left():
    """So many bytes of this thread's stack can be made present."""
    return left()


def touch_stack(size_t nbytes):
    """Makes them so. ValueError: that many are not left."""
    if nbytes > left():
        raise ValueError("the stack ends before")
    with nogil:
        prefault_stack(nbytes)


def keep_heap(bint keep, size_t nbytes=0):
    """malloc keeps what is freed, or not. False: it cannot be told."""
    return prefault_keep_heap(keep, nbytes)


def touch_heap(size_t nbytes):
    """Makes so many bytes present that malloc then has. MemoryError."""
    cdef int rc
    with nogil:
        rc = prefault_heap(nbytes)
    if rc:
        raise MemoryError(f"malloc has no {nbytes} bytes")


def trim_heap():
    """Gives back what malloc has and nobody uses."""
    with nogil:
        prefault_trim_heap()
