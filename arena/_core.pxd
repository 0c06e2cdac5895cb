# cython: language_level=3
from libc.stdint cimport int64_t, uint32_t, uint64_t, uintptr_t


cdef extern from "arena.h" nogil:
    ctypedef struct arena_handle "arena":
        pass
    ctypedef struct reservation_handle "reservation":
        pass
    ctypedef int (*arena_progress)(void *arg, uint64_t done, uint64_t total) noexcept
    cdef struct arena_error:
        int err
        const char *op
        uint64_t offset
        uint64_t requested
        uint64_t committed
        uint64_t available
        char where[512]
    cdef struct arena_block:
        uint64_t handle
        uint64_t offset
        uint64_t bytes
        void *address
        uint64_t dirty


# A later version may add fields at the end: what was compiled against this one goes on working with it.
cdef public class Arena [object ArenaArenaObject, type ArenaArenaType, check_size ignore]:
    cdef arena_handle *c
    cdef uint64_t users  # csrc/memory/users.h: the blocks that are exported, and reset()
    cdef uint64_t *epoch_at
    cdef uint64_t _size, _page, _address
    cdef object __weakref__
    cdef str _backing
    cdef bint _is_shared_with_children


# For other Cython modules, without the GIL: memory of a Python Arena's arena. A block that was had this way keeps
# nothing alive; free it before the Arena goes. -errno as in arena.h.
cdef int block_alloc(Arena a, uint64_t nbytes, uint64_t align, arena_block *out) noexcept nogil
cdef int block_alloc_committed(Arena a, uint64_t nbytes, uint64_t align, arena_block *out) noexcept nogil
cdef int block_free(Arena a, uint64_t handle) noexcept nogil


# For arena's own modules, and different in the next version: the core's count of the forks that made this process, and
# csrc/memory/mirror.h, where `out` and `m` are a struct mirror.
cdef const uint32_t *fork_generation_at() noexcept nogil
cdef int ring_memory(
    uint64_t nbytes, bint lock, const char *name, arena_progress progress, void *arg, void *out, arena_error *e
) noexcept nogil
cdef void ring_memory_destroy(void *m) noexcept nogil
