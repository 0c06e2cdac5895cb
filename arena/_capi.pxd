# cython: language_level=3
# What the Python types use of csrc/, beyond the declarations of _core.pxd.
from cpython.object cimport PyObject
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t

from arena._core cimport arena_block, arena_error, arena_handle, arena_progress, reservation_handle


cdef extern from "Python.h":
    # With PyObject *, for Cython's own declarations count references of what is being deallocated.
    object PyCapsule_New(void *, const char *, void (*)(PyObject *) noexcept)
    bint PyCapsule_IsValid(PyObject *, const char *)
    void *PyCapsule_GetPointer(PyObject *, const char *)
    void *PyCapsule_GetContext(PyObject *)
    int PyCapsule_SetContext(object, void *) except -1
    bint Py_IsInitialized() nogil
    object PyPickleBuffer_FromObject(object)


cdef extern from "stdbool.h":
    ctypedef bint c_bool "_Bool"


cdef extern from "arena.h" nogil:
    cdef enum arena_pages:
        ARENA_PAGES_AUTO, ARENA_PAGES_4K, ARENA_PAGES_THP, ARENA_PAGES_HUGETLB
    cdef enum arena_fork:
        ARENA_FORK_AUTO, ARENA_FORK_COPY, ARENA_FORK_SHARE, ARENA_FORK_DROP, ARENA_FORK_WIPE
    cdef enum arena_backing:
        ARENA_BACKING_AUTO, ARENA_BACKING_ANONYMOUS, ARENA_BACKING_MEMFD, ARENA_BACKING_PATH, ARENA_BACKING_FD
    enum:
        ARENA_ZERO, ARENA_NO_GROW
    cdef struct reservation_config:
        uint64_t size
        arena_pages pages
        uint64_t page_bytes
        arena_backing backing
        const char *path
        int fd
        bint shared, readonly, bind
        unsigned node
        arena_fork fork
        bint dump, lock
        uint64_t headroom
        bint headroom_given
        const char *name
    cdef struct reservation_stats:
        uint64_t size, page_size, committed, peak_committed, commits, releases, commit_ns, release_ns
        uintptr_t address
        const char *backing
        bint lazy, dropped, closed, shared, readonly
    cdef struct arena_config:
        reservation_config reservation
        uint64_t chunk
        bint read_only_populate
        uint64_t retain
        uint64_t decay_ns
    cdef struct arena_stats:
        uint64_t reserved, committed, live, free_committed, blocks, peak_committed, peak_live, commits, releases
        uint64_t commit_ns, release_ns, largest_free, free, overflows
    cdef struct arena_api:
        uint32_t version
        arena_handle *(*of)(void *)
        int (*alloc)(arena_handle *, uint64_t, uint64_t, unsigned, arena_progress, void *, arena_block *, arena_error *)
        int (*alloc_committed)(arena_handle *, uint64_t, uint64_t, arena_block *)
        int (*free)(arena_handle *, uint64_t)
        int (*resize)(arena_handle *, uint64_t, uint64_t, arena_progress, void *, arena_block *, arena_error *)
        int (*find)(arena_handle *, const void *, arena_block *)

    int reservation_create(const reservation_config *, reservation_handle **, arena_error *)
    int reservation_close(reservation_handle *)
    int reservation_destroy(reservation_handle *)
    void reservation_get(reservation_handle *, reservation_stats *)
    int reservation_fd(reservation_handle *)
    int reservation_commit(
        reservation_handle *, uint64_t, uint64_t, bint, unsigned, arena_progress, void *, uint64_t *, arena_error *
    )
    int reservation_release(
        reservation_handle *, uint64_t, uint64_t, bint, uint64_t *, arena_progress, void *, arena_error *
    )
    bint reservation_is_committed(reservation_handle *, uint64_t, uint64_t, bint)
    int reservation_verify(reservation_handle *, uint64_t, uint64_t, arena_progress, void *, arena_error *)
    int reservation_copy(reservation_handle *, uint64_t, void *, uint64_t, bint)

    int arena_create(const arena_config *, arena_handle **, arena_error *)
    int arena_close(arena_handle *, bint)
    bint arena_is_closed(const arena_handle *)
    int arena_destroy(arena_handle *)
    int arena_alloc_committed(arena_handle *, uint64_t, uint64_t, arena_block *)
    int arena_alloc(arena_handle *, uint64_t, uint64_t, unsigned, arena_progress, void *, arena_block *, arena_error *)
    int arena_free_deferred(arena_handle *, uint64_t, c_bool *)
    int arena_purge(arena_handle *)
    int arena_free(arena_handle *, uint64_t)
    int arena_resize(arena_handle *, uint64_t, uint64_t, arena_progress, void *, arena_block *, arena_error *)
    int arena_find(arena_handle *, const void *, arena_block *)
    int arena_warm(arena_handle *, uint64_t, uint64_t, unsigned, arena_progress, void *, arena_error *)
    int arena_trim(arena_handle *, uint64_t, uint64_t *, arena_error *)
    void arena_get(arena_handle *, arena_stats *)
    size_t arena_blocks(arena_handle *, uint64_t *, arena_block *, size_t)
    void *arena_address(arena_handle *)
    uint64_t arena_chunk(arena_handle *)
    reservation_handle *arena_reservation(arena_handle *)
    void arena_zero(void *, uint64_t)


cdef extern from "alloc/arena_pinned.h" nogil:
    int arena_free_deferred_pinned(arena_handle *, uint64_t, c_bool *)
    bint arena_unpin(arena_handle *)
    int arena_reset_pinned(arena_handle *)
    uint64_t *arena_epoch(arena_handle *)


cdef extern from "memory/reservation.h" nogil:
    cdef struct reservation_pin_t "reservation_pin":
        pass
    int reservation_pin(reservation_handle *, reservation_pin_t *, uint64_t, uint64_t, bint)
    void reservation_unpin(reservation_handle *, reservation_pin_t *)


cdef extern from "alloc/malloc_adapter.h" nogil:
    cdef struct malloc_adapter:
        arena_handle *arena
        c_bool overflow
        void *(*leave)() noexcept
        void (*come_back)(void *) noexcept
        arena_progress progress
        void (*closed)(void *) noexcept
        void *arg
    void *adapter_malloc(void *, size_t)
    void *adapter_calloc(void *, size_t, size_t)
    void *adapter_realloc(void *, void *, size_t)
    void adapter_free(void *, void *, size_t)
    int adapter_why(arena_handle *, arena_error *)


cdef extern from "memory/mlockall.h" nogil:
    int mlockall_sparse(bint, bint, bint, arena_error *)
    int munlockall_sparse()


cdef extern from "memory/huge_pages.h" nogil:
    int huge_pages_allowed(uint64_t, bint)


cdef extern from "sys/features.h" nogil:
    cdef struct os_features_t "os_features":
        bint populate, dontneed_locked, pagemap_scan, vma_names
    const os_features_t *os_features()


cdef extern from "sys/residency.h" nogil:
    cdef struct os_residency_t "os_residency":
        uint64_t present, huge, zero, swapped
    int os_residency(const os_features_t *, const void *, size_t, os_residency_t *)


cdef extern from "sys/proc.h" nogil:
    int os_overcommit_mode()


cdef extern from "sys/mapping.h" nogil:
    int os_flush(void *, size_t)


cdef extern from "sys/probe.h" nogil:
    cdef struct os_probe_t "os_probe":
        int guard, memfd, memfd_secret, mlock, mbind, perf_event_open, thp_disabled, lock_future
    void os_probe(os_probe_t *)


cdef extern from "errno.h" nogil:
    enum:
        EACCES, EBADF, EBUSY, ECANCELED, EDEADLK, EFAULT, EINTR, EINVAL, ENODATA, ENOSPC, ENOTCONN, ENOTEMPTY
        EPERM, ESHUTDOWN, EXDEV


cdef extern from "memory/registry.h" nogil:
    const uint32_t fork_generation


cdef extern from "memory/users.h" nogil:
    bint users_pin(uint64_t *, uint32_t)
    void users_unpin(uint64_t *)
    bint users_enter(uint64_t *, uint32_t)
    void users_leave(uint64_t *, uint32_t, uint32_t)
    bint users_close(uint64_t *, uint32_t)
    bint users_closed(const uint64_t *)
    bint users_hold(uint64_t *, uint32_t)
    void users_let_go(uint64_t *, uint32_t, uint32_t)


cdef extern from "memory/mirror.h" nogil:
    cdef struct mirror:
        pass
    int mirror_create(
        const os_features_t *, uint64_t, bint, const char *, arena_progress, void *, mirror *, arena_error *
    )
    void mirror_destroy(mirror *)


cdef extern from *:
    """
    #define arena_load64(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)

    #if PY_VERSION_HEX >= 0x030D0000
    #define arena_finalizing() Py_IsFinalizing()
    #else
    #define arena_finalizing() _Py_IsFinalizing()
    #endif
    """
    uint64_t arena_load64(uint64_t *) nogil
    bint arena_finalizing() nogil


cdef extern from "memory/cgroups.h" nogil:
    int cgroups_walk(const char *, c_bool (*)(void *, const char *, c_bool) noexcept nogil, void *)


cdef extern from "memory/machine.h" nogil:
    cdef struct machine_level:
        const char *path
        c_bool v1, seen
        uint64_t limit, high, usage, cache
    cdef struct machine_hugetlb_t "machine_hugetlb":
        const char *path
        uint64_t limit, usage
    int machine_levels(c_bool (*)(void *, const machine_level *) noexcept nogil, void *)
    int machine_hugetlb(uint64_t, c_bool (*)(void *, const machine_hugetlb_t *) noexcept nogil, void *)
