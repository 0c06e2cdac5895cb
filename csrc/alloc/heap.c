#define _GNU_SOURCE
#include "alloc/heap.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "alloc/arena_internal.h"

#define LONG_CLEAR (1u << 20) /* 20 µs: below, to let go of a lock and get it back would be much of it */

static void *leave(struct heap *h) { return h->leave ? h->leave() : NULL; }

static void come_back(struct heap *h, void *held) {
    if (held) h->come_back(held);
}

int heap_why(arena *a, struct arena_error *out) {
    mutex_lock(&a->lock);
    int rc = a->last_rc;
    *out = a->last_error;
    mutex_unlock(&a->lock);
    return rc;
}

/* The arena could not. Whoever asks is told NULL and nothing else, so the reason is kept. */
static void *elsewhere(struct heap *h, int rc, const struct arena_error *why, size_t bytes, bool zero) {
    struct arena *a = h->arena;
    void *got = NULL;
    /* Who was stopped is not to go on with other memory. */
    if ((h->overflow && rc != -EINTR) || rc == -ESHUTDOWN) got = zero ? calloc(1, bytes) : malloc(bytes);
    mutex_lock(&a->lock);
    a->last_rc = rc;
    a->last_error = *why;
    a->overflows += got != NULL;
    mutex_unlock(&a->lock);
    if (!got) errno = ENOMEM;
    return got;
}

static void *alloc(struct heap *h, size_t bytes, bool zero) {
    struct arena_block b;
    if (bytes == 0) bytes = 1;
    if (__builtin_expect(arena_try_heap(h->arena, bytes, &b) == 0, 1)) {
        if (zero && b.dirty) {
            void *held = b.dirty > LONG_CLEAR ? leave(h) : NULL;
            arena_zero(b.address, b.dirty);
            come_back(h, held);
        }
        return b.address;
    }
    struct arena_error why = {0};
    void *held = leave(h);
    int rc = arena_alloc(h->arena, bytes, FREELIST_GRANULE, ARENA_HEAP | (zero ? ARENA_ZERO : 0u),
                         held ? h->progress : NULL, h->arg, &b, &why);
    come_back(h, held);
    if (rc == 0) return b.address;
    void *got = elsewhere(h, rc, &why, bytes, zero);
    if (rc == -ESHUTDOWN && held && h->closed) h->closed(h->arg);
    return got;
}

void *heap_malloc(void *heap, size_t bytes) { return alloc(heap, bytes, false); }

void *heap_calloc(void *heap, size_t count, size_t bytes) {
    struct heap *h = heap;
    size_t all;
    if (__builtin_mul_overflow(count, bytes, &all)) {
        struct arena_error why = {0};
        return elsewhere(h, arena_explain(&why, -ENOSPC, "alloc", SIZE_MAX, UINT64_MAX), &why, SIZE_MAX, true);
    }
    return alloc(h, all, true);
}

/* Whoever is told NULL finds the reason. */
static void *refuse(struct heap *h, int rc, struct arena_error *why, size_t bytes) {
    arena_explain(why, rc, "realloc", bytes, UINT64_MAX);
    struct heap strict = {.arena = h->arena};
    return elsewhere(&strict, rc, why, bytes, false);
}

/* Answers whether free memory is due to be released. */
static bool give(struct heap *h, void *address, uint64_t handle) {
    bool due;
    uintptr_t offset = (uintptr_t)address - (uintptr_t)arena_address(h->arena);
    int rc = offset < bytes_of(h->arena->index.layout.granules) ? arena_give_heap(h->arena, address, handle, &due)
                                                                : -ENODEV;
    if (rc == -ENODEV) free(address); /* once the arena is unmapped, malloc may have its addresses */
    return rc == 0 && due;
}

static void collect(struct heap *h) {
    void *held = leave(h);
    (void)arena_collect(h->arena);
    come_back(h, held);
}

void heap_free(void *heap, void *address, size_t unused) {
    struct heap *h = heap;
    (void)unused;
    if (address && give(h, address, 0)) collect(h);
}

static bool is_still(struct heap *h, void *address, uint64_t handle, uint64_t bytes) {
    struct arena_block b;
    return arena_find(h->arena, address, &b) == 0 && b.handle == handle && b.bytes == bytes;
}

/* While the caller's lock was let go of somebody else may have reallocated the same memory: NumPy's resize() is one step to
 * others only as long as the GIL is held. So what was found is looked at again, and copied and freed with the lock held. */
void *heap_realloc(void *heap, void *old, size_t bytes) {
    struct heap *h = heap;
    struct arena_block b, now;
    struct arena_error why = {0};
    if (!old) return alloc(h, bytes, false);
    if (bytes == 0) bytes = 1;
    if (arena_find(h->arena, old, &b) != 0) {
        void *moved = realloc(old, bytes);
        return moved ? moved : refuse(h, -ENOMEM, &why, bytes);
    }
    uint64_t size = bytes_of(granules_of(bytes));
    void *held = size > b.bytes ? leave(h) : NULL;
    int rc = arena_resize(h->arena, b.handle, bytes, held ? h->progress : NULL, h->arg, &now, &why);
    come_back(h, held);
    if (rc == 0 && is_still(h, old, b.handle, size)) return old;
    if (rc == 0 || rc == -ECANCELED || rc == -EINVAL) return refuse(h, -ECANCELED, &why, bytes);
    if (rc == -EINTR) return refuse(h, rc, &why, bytes);
    void *moved = alloc(h, bytes, false);
    if (!moved) return NULL;
    if (!is_still(h, old, b.handle, b.bytes)) {
        heap_free(h, moved, 0);
        return refuse(h, -ECANCELED, &why, bytes);
    }
    memcpy(moved, old, b.bytes < bytes ? b.bytes : bytes);
    if (give(h, old, b.handle)) collect(h);
    return moved;
}
