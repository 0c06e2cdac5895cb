# cython: language_level=3, freethreading_compatible=True, embedsignature=False, autotestdict=False
"""What the table measures, timed around nothing else, and what it needs of Linux that Python has not."""

from cpython.buffer cimport PyBUF_WRITABLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.exc cimport PyErr_CheckSignals
from libc.stdint cimport int64_t

import errno as _errno
import os as _os


cdef extern from * nogil:
    """
    #include <errno.h>
    #include <fcntl.h>
    #include <stdbool.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/mman.h>
    #include <sys/resource.h>
    #include <sys/syscall.h>
    #include <time.h>
    #include <unistd.h>

    #ifndef MADV_POPULATE_READ
    #define MADV_POPULATE_READ 22
    #define MADV_POPULATE_WRITE 23
    #endif
    #define HUGE_2_MIB (MAP_HUGETLB | 21 << 26)

    /* The same numbers on every architecture; glibc has functions from 2.36 on only. */
    #ifndef SYS_fsopen
    #define SYS_fsopen 430
    #define SYS_fsconfig 431
    #define SYS_fsmount 432
    #endif
    enum { CLOSE_ON_EXEC = 1, SET_STRING = 1, CREATE = 6 };

    static int64_t nanoseconds(void)
    {
        struct timespec t;
        clock_gettime(CLOCK_MONOTONIC, &t);
        return t.tv_sec * INT64_C(1000000000) + t.tv_nsec;
    }

    /* Each of these: nanoseconds, or -errno. */

    static int64_t timed_touch(volatile unsigned char *at, size_t nbytes, size_t page, bool reading, bool writing)
    {
        int64_t start = nanoseconds();
        if (reading && writing)
            for (size_t i = 0; i < nbytes; i += page)
                at[i] = at[i];
        else if (writing)
            for (size_t i = 0; i < nbytes; i += page)
                at[i] = 0;
        else
            for (size_t i = 0; i < nbytes; i += page)
                (void)at[i];
        return nanoseconds() - start;
    }

    static int64_t timed_populate(void *at, size_t nbytes, bool writing)
    {
        int64_t start = nanoseconds();
        int rc = madvise(at, nbytes, writing ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
        return rc ? -errno : nanoseconds() - start;
    }

    static int64_t timed_fallocate(int fd, int64_t nbytes)
    {
        int64_t start = nanoseconds();
        int rc = fallocate(fd, 0, 0, nbytes);
        return rc ? -errno : nanoseconds() - start;
    }

    static int64_t thread_faults(void)
    {
        struct rusage usage;
        return getrusage(RUSAGE_THREAD, &usage) ? -errno : usage.ru_minflt + usage.ru_majflt;
    }

    /* The faults of this thread, or -errno. A page of 0: all of it. */
    static int64_t counted_write(unsigned char *at, size_t nbytes, size_t page, int value)
    {
        int64_t before = thread_faults();
        if (page == 0)
            memset(at, value, nbytes);
        else
            for (size_t i = 0; i < nbytes; i += page)
                ((volatile unsigned char *)at)[i] = (unsigned char)value;
        return before < 0 ? before : thread_faults() - before;
    }

    static int sleep_to(int64_t deadline)
    {
        struct timespec t = {.tv_sec = deadline / 1000000000, .tv_nsec = deadline % 1000000000};
        return clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
    }

    static int fs_open(const char *kind) { return (int)syscall(SYS_fsopen, kind, CLOSE_ON_EXEC); }
    static int fs_set(int fd, const char *key, const char *value)
    {
        return (int)syscall(SYS_fsconfig, fd, SET_STRING, key, value, 0);
    }
    static int fs_create(int fd) { return (int)syscall(SYS_fsconfig, fd, CREATE, NULL, NULL, 0); }
    static int fs_mount(int fd) { return (int)syscall(SYS_fsmount, fd, CLOSE_ON_EXEC, 0); }
    """
    const int HUGE_2_MIB
    int64_t timed_touch(unsigned char *at, size_t nbytes, size_t page, bint reading, bint writing)
    int64_t timed_populate(void *at, size_t nbytes, bint writing)
    int64_t timed_fallocate(int fd, int64_t nbytes)
    int64_t counted_write(unsigned char *at, size_t nbytes, size_t page, int value)
    int sleep_to(int64_t deadline)
    int fs_open(const char *kind)
    int fs_set(int fd, const char *key, const char *value)
    int fs_create(int fd)
    int fs_mount(int fd)

MAP_HUGE_2_MIB = HUGE_2_MIB


cdef checked(int64_t result, what):
    if result < 0:
        if result == -_errno.EINTR:
            PyErr_CheckSignals()
        raise OSError(-result, f"{what}: {_os.strerror(-result)}")
    return result


def touch(memory, size_t page, *, bint reading, bint writing):
    """Read, write, or read and write back the first byte of each ``page`` bytes; the nanoseconds it took.

    A page that cannot be had is a SIGBUS: whoever calls has looked whether there is room.
    """
    cdef Py_buffer view
    cdef int64_t result
    if page == 0:
        raise ValueError("a page has more than 0 bytes")
    PyObject_GetBuffer(memory, &view, PyBUF_WRITABLE)
    try:
        with nogil:
            result = timed_touch(<unsigned char *>view.buf, view.len, page, reading, writing)
    finally:
        PyBuffer_Release(&view)
    return result


def populate(memory, *, bint writing):
    """MADV_POPULATE_WRITE, or MADV_POPULATE_READ, over all of it; the nanoseconds it took. OSError as madvise(2) has
    it."""
    cdef Py_buffer view
    cdef int64_t result
    PyObject_GetBuffer(memory, &view, PyBUF_WRITABLE)
    try:
        with nogil:
            result = timed_populate(view.buf, view.len, writing)
    finally:
        PyBuffer_Release(&view)
    return checked(result, "MADV_POPULATE_WRITE" if writing else "MADV_POPULATE_READ")


def write(memory, size_t page, unsigned char value):
    """``value`` into the first byte of each ``page`` bytes, or with 0 into all of them; this thread's page faults."""
    cdef Py_buffer view
    cdef int64_t result
    PyObject_GetBuffer(memory, &view, PyBUF_WRITABLE)
    try:
        with nogil:
            result = counted_write(<unsigned char *>view.buf, view.len, page, value)
    finally:
        PyBuffer_Release(&view)
    return checked(result, "getrusage")


def sleep_until(int64_t deadline):
    """Until time.monotonic_ns() is ``deadline``. Signal handlers run, and what they raise is raised."""
    cdef int failed
    if deadline < 0:
        raise ValueError("the clock never was below 0")
    while True:
        with nogil:
            failed = sleep_to(deadline)
        if failed != _errno.EINTR:
            break
        PyErr_CheckSignals()
    checked(-failed, "clock_nanosleep")


def allocate(int fd, int64_t nbytes):
    """fallocate(2) of the file's first ``nbytes``; the nanoseconds it took. OSError as fallocate(2) has it."""
    cdef int64_t result
    with nogil:
        result = timed_fallocate(fd, nbytes)
    return checked(result, "fallocate")


def mount_detached(str kind, dict options):
    """A new file system that is mounted nowhere: a descriptor of its root, and the file system is gone with the last
    descriptor in it. OSError where that is not allowed (EPERM) or not known (ENOSYS, before Linux 5.2)."""
    cdef int fd = fs_open(kind.encode())
    cdef int root = -1
    if fd < 0:
        raise OSError(_errno_now(), f"fsopen {kind}")
    try:
        for key, value in options.items():
            if fs_set(fd, key.encode(), value.encode()):
                raise OSError(_errno_now(), f"{kind} with {key}={value}")
        if fs_create(fd) == 0:
            root = fs_mount(fd)
        if root < 0:
            raise OSError(_errno_now(), f"fsmount {kind}")
    finally:
        _os.close(fd)
    return root


cdef extern from "errno.h" nogil:
    int errno


cdef int _errno_now():
    return errno
