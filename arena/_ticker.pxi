# Signals and progress while the GIL is released.

@cython.final
cdef class Ticker:
    """What happens between the steps of a commit: signals in the main thread, the progress callback, or nothing at
    all."""

    cdef object progress, caught
    cdef bint signals
    cdef uint64_t total

    def __cinit__(self, progress):
        if progress is not None and not callable(progress):
            raise TypeError(f"progress must be callable as progress(done, total), not {type(progress).__name__}")
        self.progress = progress
        self.signals = _threading.get_ident() == _threading.main_thread().ident

    cdef arena_tick function(self) noexcept:
        # Another thread is not given signals by Python, and is spared the wait for the GIL.
        if self.signals:
            return tick_with_gil
        if self.progress is not None:
            return tick
        return NULL

    cdef finish(self, int rc, uint64_t newly):
        if self.caught is not None:
            caught, self.caught = self.caught, None
            raise caught
        if rc == 0 and self.progress is not None:
            total = self.total or newly
            self.progress(total, total)


cdef extern from *:
    """
    #if PY_VERSION_HEX >= 0x030D0000
    #define arena_finalizing() Py_IsFinalizing()
    #else
    #define arena_finalizing() _Py_IsFinalizing()
    #endif
    """
    bint arena_finalizing() nogil


cdef int tick(void *arg, uint64_t done, uint64_t total) noexcept nogil:
    # Whoever asks a finalizing interpreter for the GIL is ended on the spot, with helpers still at work on its stack.
    return -EINTR if arena_finalizing() else tick_with_gil(arg, done, total)


cdef int tick_with_gil(void *arg, uint64_t done, uint64_t total) noexcept with gil:
    cdef Ticker t = <Ticker>arg
    try:
        PyErr_CheckSignals()
        if t.progress is not None and total:
            t.total = total
            t.progress(done, total)
    except BaseException as caught:
        t.caught = caught
        return -EINTR
    return 0
