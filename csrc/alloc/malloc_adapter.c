#define _GNU_SOURCE
#include "alloc/malloc_adapter.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "alloc/arena_private.h"

#define LONG_CLEAR (1u << 20) /* 20 µs: below, to let go of a lock and get it back would be much of it */

static void *leave(struct malloc_adapter *m) { return m->leave ? m->leave() : NULL; }

static void come_back(struct malloc_adapter *m, void *held) {
    if (held) m->come_back(held);
}

int adapter_why(arena *a, struct arena_error *out) {
    mutex_lock(&a->lock);
    int rc = a->last_rc;
    *out = a->last_error;
    mutex_unlock(&a->lock);
    return rc;
}

/* The arena could not. Whoever asks is told NULL and nothing else, so the reason is kept. */
static void *from_malloc(struct malloc_adapter *m, int rc, const struct arena_error *why, size_t bytes, bool zero) {
    struct arena *a = m->arena;
    void *got = NULL;
    /* Who was stopped is not to go on with other memory. */
    if ((m->overflow && rc != -EINTR) || rc == -ESHUTDOWN) got = zero ? calloc(1, bytes) : malloc(bytes);
    mutex_lock(&a->lock);
    a->last_rc = rc;
    a->last_error = *why;
    a->overflows += got != NULL;
    mutex_unlock(&a->lock);
    if (!got) errno = ENOMEM;
    return got;
}

static void *alloc(struct malloc_adapter *m, size_t bytes, bool zero) {
    struct arena_block b;
    if (bytes == 0) bytes = 1;
    if (__builtin_expect(arena_alloc_committed_adapter(m->arena, bytes, &b) == 0, 1)) {
        if (zero && b.dirty) {
            void *held = b.dirty > LONG_CLEAR ? leave(m) : NULL;
            arena_zero(b.address, b.dirty);
            come_back(m, held);
        }
        return b.address;
    }
    struct arena_error why = {0};
    void *held = leave(m);
    int rc = arena_alloc(m->arena, bytes, FREELIST_GRANULE, ARENA_ADAPTER | (zero ? ARENA_ZERO : 0u),
                         held ? m->progress : NULL, m->arg, &b, &why);
    come_back(m, held);
    if (rc == 0) return b.address;
    void *got = from_malloc(m, rc, &why, bytes, zero);
    if (rc == -ESHUTDOWN && held && m->closed) m->closed(m->arg);
    return got;
}

void *adapter_malloc(void *adapter, size_t bytes) { return alloc(adapter, bytes, false); }

void *adapter_calloc(void *adapter, size_t count, size_t bytes) {
    struct malloc_adapter *m = adapter;
    size_t all;
    if (__builtin_mul_overflow(count, bytes, &all)) {
        struct arena_error why = {0};
        return from_malloc(m, arena_explain(&why, -ENOSPC, "alloc", SIZE_MAX, UINT64_MAX), &why, SIZE_MAX, true);
    }
    return alloc(m, all, true);
}

/* Whoever is told NULL finds the reason. */
static void *refuse(struct malloc_adapter *m, int rc, struct arena_error *why, size_t bytes) {
    arena_explain(why, rc, "realloc", bytes, UINT64_MAX);
    struct malloc_adapter strict = {.arena = m->arena};
    return from_malloc(&strict, rc, why, bytes, false);
}

/* Answers whether free memory is due to be released. */
static bool free_by_address(struct malloc_adapter *m, void *address, uint64_t handle) {
    bool due;
    uintptr_t offset = (uintptr_t)address - (uintptr_t)arena_address(m->arena);
    int rc = offset < granule_bytes(m->arena->index.list.layout.granules)
                 ? arena_free_by_address(m->arena, address, handle, &due)
                 : -ENODEV;
    if (rc == -ENODEV) free(address); /* once the arena is unmapped, malloc may have its addresses */
    return rc == 0 && due;
}

static void purge(struct malloc_adapter *m) {
    void *held = leave(m);
    (void)arena_purge(m->arena);
    come_back(m, held);
}

void adapter_free(void *adapter, void *address, size_t unused) {
    struct malloc_adapter *m = adapter;
    (void)unused;
    if (address && free_by_address(m, address, 0)) purge(m);
}

static bool is_still(struct malloc_adapter *m, void *address, uint64_t handle, uint64_t bytes) {
    struct arena_block b;
    return arena_find(m->arena, address, &b) == 0 && b.handle == handle && b.bytes == bytes;
}

/* While the caller's lock was let go of somebody else may have reallocated the same memory: NumPy's resize() is one step to
 * others only as long as the GIL is held. So what was found is looked at again, and copied and freed with the lock held. */
void *adapter_realloc(void *adapter, void *old, size_t bytes) {
    struct malloc_adapter *m = adapter;
    struct arena_block b, now;
    struct arena_error why = {0};
    if (!old) return alloc(m, bytes, false);
    if (bytes == 0) bytes = 1;
    if (arena_find(m->arena, old, &b) != 0) {
        void *moved = realloc(old, bytes);
        return moved ? moved : refuse(m, -ENOMEM, &why, bytes);
    }
    uint64_t size = granule_bytes(granules_of(bytes));
    void *held = size > b.bytes ? leave(m) : NULL;
    int rc = arena_resize(m->arena, b.handle, bytes, held ? m->progress : NULL, m->arg, &now, &why);
    come_back(m, held);
    if (rc == 0 && is_still(m, old, b.handle, size)) return old;
    if (rc == 0 || rc == -ECANCELED || rc == -EINVAL) return refuse(m, -ECANCELED, &why, bytes);
    if (rc == -EINTR) return refuse(m, rc, &why, bytes);
    void *moved = alloc(m, bytes, false);
    if (!moved) return NULL;
    if (!is_still(m, old, b.handle, b.bytes)) {
        adapter_free(m, moved, 0);
        return refuse(m, -ECANCELED, &why, bytes);
    }
    memcpy(moved, old, b.bytes < bytes ? b.bytes : bytes);
    if (free_by_address(m, old, b.handle)) purge(m);
    return moved;
}
