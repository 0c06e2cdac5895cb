# cython: language_level=3, boundscheck=False, wraparound=False, freethreading_compatible=True
"""Merge sort, whose scratch memory is a block of an arena: had and given back without the GIL, by all threads at once.

Compiled with include_dirs=[arena.get_include()]; nothing is linked.
"""
from libc.stdint cimport uint64_t
from libc.string cimport memcpy

from arena cimport Arena, arena_block, block_alloc, block_alloc_committed, block_free

import os


cdef void merge_sort(double *values, double *scratch, size_t n) noexcept nogil:
    cdef size_t half = n // 2, i = 0, k = 0, j = half
    if n < 2:
        return
    merge_sort(values, scratch, half)
    merge_sort(values + half, scratch, n - half)
    memcpy(scratch, values, half * sizeof(double))
    while i < half:
        if j < n and values[j] < scratch[i]:
            values[k] = values[j]
            j += 1
        else:
            values[k] = scratch[i]
            i += 1
        k += 1


# `not None`: Arena arguments may be None in Cython, and block_alloc() cannot raise.
def sort(double[::1] values, Arena arena not None):
    """In place. The caller's reference to the arena keeps it alive for as long as the block needs it."""
    cdef arena_block scratch
    cdef int rc
    if values.shape[0] < 2:
        return
    with nogil:
        rc = block_alloc(arena, (values.shape[0] // 2) * sizeof(double), 64, &scratch)
        if rc == 0:
            merge_sort(&values[0], <double *>scratch.address, values.shape[0])
            block_free(arena, scratch.handle)
    if rc:
        raise OSError(-rc, os.strerror(-rc))


cdef class Scratch:
    """The same block for many calls. It owns a reference to the arena, for block_free() at the end."""
    cdef Arena arena
    cdef arena_block block

    def __cinit__(self, Arena arena not None, uint64_t nbytes):
        # From committed memory if it can be, which is index work of 50 ns and never a system call.
        cdef int rc = block_alloc_committed(arena, nbytes, 64, &self.block)
        if rc:
            with nogil:
                rc = block_alloc(arena, nbytes, 64, &self.block)
        if rc:
            raise OSError(-rc, os.strerror(-rc))
        self.arena = arena

    def __dealloc__(self):
        if self.arena is not None:
            block_free(self.arena, self.block.handle)

    def sort(self, double[::1] values):
        if <size_t>values.shape[0] // 2 * sizeof(double) > self.block.bytes:
            raise ValueError("more values than the scratch memory is for")
        if values.shape[0]:
            with nogil:
                merge_sort(&values[0], <double *>self.block.address, values.shape[0])
