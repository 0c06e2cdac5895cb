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

# One extension module, for its types share their insides; one file for each.
include "_errors.pxi"
include "_ticker.pxi"
include "_arguments.pxi"
include "_reservation.pxi"
include "_arena.pxi"
include "_block.pxi"
include "_dlpack.pxi"
include "_handler.pxi"
include "_arrays.pxi"


def get_include():
    """The folder of ``arena.h``, for C and Cython extensions."""
    return _os.path.join(_os.path.dirname(_os.path.abspath(__file__)), "include")


def lock_all(bint current, bint future, bint on_fault, bint afresh):
    """For arena.realtime: csrc/lockall.h. ``afresh``: what was locked is unlocked first; all of it is one step to
    signal handlers."""
    cdef arena_error e
    cdef int rc = 0
    memset(&e, 0, sizeof(e))
    with nogil:
        if afresh:
            rc = unlockall()
        if rc == 0 and (current or future):
            rc = lockall(current, future, on_fault, &e)
    if rc:
        raise _errors.lock_error(-rc, e.requested, e.committed, None if e.available == UINT64_MAX else e.available)


def _probe():
    """What the kernel answers to this process, for arena.doctor: names and numbers as in csrc/os_probe.h and os.h."""
    cdef os_probe_t p
    with nogil:
        os_probe(&p)
    return {**p, **os_features()[0], "thp": os_thp_allowed(2 << 20, False), "thp_shared": os_thp_allowed(2 << 20, True)}


cdef int block_alloc(Arena a, uint64_t nbytes, uint64_t align, arena_block *out) noexcept nogil:
    return arena_alloc(a.c, nbytes, align, 0, NULL, NULL, out, NULL) if a is not None else -EINVAL


cdef int block_attempt(Arena a, uint64_t nbytes, uint64_t align, arena_block *out) noexcept nogil:
    return arena_try(a.c, nbytes, align, out) if a is not None else -EINVAL


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
api.attempt = arena_try
api.free = arena_free
api.resize = arena_resize
api.find = arena_find
_C_API = PyCapsule_New(&api, "arena._core._C_API", NULL)
