# cython: language_level=3, freethreading_compatible=True, embedsignature=False, autotestdict=False
"""The stack and malloc's memory, as csrc/prefault.h has it, and what prepare() and lock_memory() want of the process:
functions for arena._scope.Ledger, in C so that a change is one step to signal handlers."""

import gc as _gc
import os as _os

from .. import _core


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


def keep_heap(list wishes, bint fewer):
    """malloc keeps what is freed, and makes its heap grow by as much as the largest wish; without one it goes back to
    its own way, and gives back what nobody uses. NotImplementedError: this C library's malloc cannot be told."""
    cdef size_t most = 0
    for nbytes in wishes:
        most = max(most, nbytes)
    if not prefault_keep_heap(bool(wishes), most) and wishes:
        raise NotImplementedError("this C library's malloc cannot be told to keep memory")
    if not wishes:
        with nogil:
            prefault_trim_heap()


cdef bint was_on = False
cdef bint others = False


def collect_not(list wishes, bint fewer):
    """Automatic garbage collection is off, or as it was before the first wish."""
    global was_on
    if not fewer and len(wishes) == 1:
        was_on = _gc.isenabled()
        _gc.disable()
    elif not wishes and was_on:
        _gc.enable()


def freeze(list wishes, bint fewer):
    """What there is takes no part in collections. What somebody else has frozen cannot be told from it: then all stays
    frozen in the end."""
    global others
    if not fewer and len(wishes) == 1:
        others = _gc.get_freeze_count() > 0
    if not fewer:
        _gc.freeze()
    elif not wishes and not others:
        _gc.unfreeze()


def lock(list wishes, bint fewer):
    """Memory is locked as the strongest of the wishes has it, each (current, future, on_fault)."""
    cdef bint current = False, future = False, on_fault = True
    for wish in wishes:
        current |= wish[0]
        future |= wish[1]
        on_fault &= wish[2]
    _core.lock_all(current, future, on_fault, fewer)


def touch_heap(size_t nbytes):
    """Makes so many bytes present that malloc then has. MemoryError."""
    cdef int rc
    with nogil:
        rc = prefault_heap(nbytes)
    if rc:
        raise MemoryError(f"malloc has no {nbytes} bytes")

