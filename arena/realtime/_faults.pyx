# cython: language_level=3, freethreading_compatible=True, embedsignature=False, autotestdict=False
# cython: binding=False, auto_pickle=False
"""The page faults of the calling thread, counted around a block and refused in one."""

from libc.signal cimport SIG_IGN, signal as set_handler
from libc.stdint cimport INT64_MAX, int64_t, uint64_t, uintptr_t

import operator as _operator

from . import _guarded, _where


cdef extern from "page_faults.h" nogil:
    const size_t FAULT_WATCH_RECORDS

    struct page_faults:
        int64_t minor, major
        uint64_t tag
        int unwatched
    uint64_t page_faults_owner()
    int page_faults_ready()
    int page_faults_open(uint64_t owner, bint watch, uint64_t tag)
    int page_faults_so_far(uint64_t owner, page_faults *out)
    int page_faults_close(uint64_t owner, page_faults *out)
    size_t page_faults_where(const page_faults *span, fault_record *out, size_t n)

    struct fault_record:
        uint64_t address, instruction
    struct fault_watch:
        pass
    int fault_watch_open(int signal, fault_watch **out)
    void fault_watch_close(fault_watch *watch)
    void fault_watch_arm(fault_watch *watch)
    void fault_watch_disarm(fault_watch *watch)
    uint64_t fault_watch_position(const fault_watch *watch)
    size_t fault_watch_read(const fault_watch *watch, uint64_t start, uint64_t end, fault_record *out, size_t n)


cdef extern from "dlfcn.h" nogil:
    ctypedef struct Dl_info:
        const char *dli_fname
        void *dli_fbase
        const char *dli_sname
        void *dli_saddr
    int dladdr(const void *address, Dl_info *info)


cdef list pairs(fault_record *records, size_t n):
    return [(records[i].address, records[i].instruction) for i in range(n)]


def symbol(uintptr_t address):
    """The code there as ``"memset+0x20 (libc.so.6)"``; without the name of a function where it is none that the object
    exports, and ``""`` where there is no object."""
    cdef Dl_info info
    if not dladdr(<void *>address, &info):
        return ""
    file = info.dli_fname.decode("utf-8", "replace").rpartition("/")[2]
    if info.dli_sname == NULL:
        return f"{file}+{address - <uintptr_t>info.dli_fbase:#x}"
    return f"{info.dli_sname.decode('utf-8', 'replace')}+{address - <uintptr_t>info.dli_saddr:#x} ({file})"


def ignore(int signal):
    """From now on the signal is ignored, where it would have ended the process. By any thread."""
    set_handler(signal, SIG_IGN)


cdef class Watch:
    """The faults of this thread while it is armed, with a signal to this thread for each. OSError: perf_event_open(2)
    is refused."""
    cdef fault_watch *watch

    def __cinit__(self, int signal):
        cdef int rc = fault_watch_open(signal, &self.watch)
        if rc:
            raise OSError(-rc, "perf_event_open")

    def __dealloc__(self):
        fault_watch_close(self.watch)

    def arm(self):
        fault_watch_arm(self.watch)

    def disarm(self):
        fault_watch_disarm(self.watch)

    def faults(self):
        """(address, instruction) of each."""
        cdef fault_record records[FAULT_WATCH_RECORDS]
        return pairs(
            records, fault_watch_read(self.watch, 0, fault_watch_position(self.watch), records, FAULT_WATCH_RECORDS)
        )


cdef class count_page_faults:
    """Counts the page faults of this thread in a ``with`` block, or in each call of a function that it decorates.

    ``minor`` and ``major``: inside a block, this thread's so far; after it, those of the block that ended last, in
    whatever thread. What a system call faults or populates on the thread's behalf counts, as in getrusage(2); what
    other threads do does not.

    One object can be used again and again, in blocks within each other, and in several threads. On ``async def``
    functions, and around an ``await``, the faults of the other tasks that this thread runs meanwhile count too; tasks
    whose blocks overlap need an object each (a decorator sees to that).
    """
    cdef uint64_t owner
    cdef int64_t _minor, _major
    cdef count_page_faults total  # what is counted here is also there, afterwards
    cdef bint watch

    def __cinit__(self):
        self.owner = page_faults_owner()

    def __init__(self):
        pass

    cdef int ended(self, page_faults *span) except -1:
        if page_faults_close(self.owner, span):
            raise RuntimeError(
                f"this thread is in no block of this {type(self).__name__}: a block ends in the thread where it began"
            )
        cdef count_page_faults each = self
        while each is not None:
            each._minor = span.minor
            each._major = span.major
            each = each.total
        return 0

    def __enter__(self):
        if page_faults_open(self.owner, self.watch, 0):
            raise MemoryError
        return self

    def __exit__(self, kind, value, traceback):
        cdef page_faults span
        self.ended(&span)

    @property
    def minor(self):
        cdef page_faults span
        return self._minor if page_faults_so_far(self.owner, &span) else span.minor

    @property
    def major(self):
        cdef page_faults span
        return self._major if page_faults_so_far(self.owner, &span) else span.major

    def __call__(self, function):
        return _guarded.guarded(self, function)

    def _fresh(self):
        """Another that does the same, and counts for this one too."""
        cdef count_page_faults fresh = count_page_faults()
        fresh.total = self
        return fresh


# By the tag of their block: who records its lines, or why nobody does.
cdef dict recorders = {}


cdef stop(tag):
    recorder = recorders.pop(tag)
    if isinstance(recorder, str):
        return _where.Recording([], [], recorder)
    with recorder:
        return recorder.recording()


cdef class no_page_faults(count_page_faults):
    """Refuses the page faults of this thread in a ``with`` block, or in each call of a function that it decorates: when
    it ends, PageFaultError if there was a major fault, or more than ``allow_minor`` minor ones. An exception inside
    goes on unchanged.

    ``where``: note the addresses of the first 64, for the exception, where perf_event_open(2) is permitted. This costs
    a file descriptor, 8 KiB and 0.2 ms once for each thread, nothing in a block, and 1 µs for a fault or a switch of
    threads. With ``"lines"`` the Python line too, found by a signal for each fault, which the thread handles before it
    goes on: to find out, not for production (0.5 ms a block, and for one block in the process at a time).

    For the rest it is as count_page_faults. ValueError, TypeError: nonsense.
    """
    cdef readonly int64_t allow_minor
    cdef readonly object where
    cdef bint lines

    def __init__(self, allow_minor=0, *, where=True):
        if not (where is True or where is False or where == "lines"):
            raise ValueError(f"where must be True, False or 'lines', not {where!r}")
        allowed = _operator.index(allow_minor)
        if allowed < 0:
            raise ValueError(f"allow_minor must be a number of faults from 0 on, not {allowed}")
        self.allow_minor = min(allowed, INT64_MAX)
        self.where = where
        self.watch = where is True
        self.lines = where == "lines"

    def __enter__(self):
        cdef uint64_t tag
        if self.lines:
            # What is recorded begins before what is counted does.
            if page_faults_ready():
                raise MemoryError
            tag = page_faults_owner()
            recorders[tag] = _where.record(Watch, ignore)
            if page_faults_open(self.owner, False, tag):
                stop(tag)
                raise MemoryError
        elif page_faults_open(self.owner, self.watch, 0):
            raise MemoryError
        return self

    def __exit__(self, kind, value, traceback):
        cdef page_faults span
        self.ended(&span)
        recording = stop(span.tag) if self.lines else None
        if kind is None and (span.major > 0 or span.minor > self.allow_minor):
            self.refuse(&span, recording)

    cdef refuse(self, page_faults *span, recording):
        cdef fault_record records[FAULT_WATCH_RECORDS]
        if recording is None:
            noted = pairs(records, page_faults_where(span, records, FAULT_WATCH_RECORDS))
            recording = _where.Recording.of_watch(noted, span.unwatched, self.watch)
        raise _where.error(span.minor, span.major, self.allow_minor, recording, symbol)

    def _fresh(self):
        cdef no_page_faults fresh = no_page_faults(self.allow_minor, where=self.where)
        fresh.total = self
        return fresh
