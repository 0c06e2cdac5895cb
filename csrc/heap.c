#define _GNU_SOURCE
#include "heap.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "arena_internal.h"

#define LONG_CLEAR (1u << 20) /* 20 µs: below, to let go of a lock and get it back would be much of it */

static void *leave(struct heap *h) { return h->leave ? h->leave() : NULL; }

static void come_back(struct heap *h, void *held) {
    if (held) h->come_back(held);
}

int heap_why(arena *a, struct arena_error *out) {
    lock_take(&a->lock);
    int rc = a->last_rc;
    *out = a->last_error;
    lock_drop(&a->lock);
    return rc;
}

/* The arena could not. Whoever asks is told NULL and nothing else, so the reason is kept. */
static void *elsewhere(struct heap *h, int rc, const struct arena_error *why, size_t bytes, bool zero) {
    struct arena *a = h->arena;
    /* Who was stopped is not to go on with other memory. */
    void *got = h->overflow && rc != -EINTR ? (zero ? calloc(1, bytes) : malloc(bytes)) : NULL;
    lock_take(&a->lock);
    a->last_rc = rc;
    a->last_error = *why;
    a->overflows += got != NULL;
    lock_drop(&a->lock);
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
                         held ? h->tick : NULL, h->arg, &b, &why);
    come_back(h, held);
    return rc ? elsewhere(h, rc, &why, bytes, zero) : b.address;
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

static void give(struct heap *h, void *address, uint64_t handle) {
    bool due;
    uintptr_t offset = (uintptr_t)address - (uintptr_t)arena_address(h->arena);
    int rc = offset < bytes_of(h->arena->index.layout.granules) ? arena_give_heap(h->arena, address, handle, &due)
                                                                : -ENODEV;
    if (rc == -ENODEV) free(address); /* once the arena is unmapped, malloc may have its addresses */
    if (rc || !due) return;
    void *held = leave(h);
    (void)arena_collect(h->arena);
    come_back(h, held);
}

void heap_free(void *heap, void *address, size_t unused) {
    (void)unused;
    if (address) give(heap, address, 0);
}

void *heap_realloc(void *heap, void *old, size_t bytes) {
    struct heap *h = heap;
    struct arena_block b, now;
    struct arena_error why = {0};
    if (!old) return alloc(h, bytes, false);
    if (bytes == 0) bytes = 1;
    if (arena_find(h->arena, old, &b) != 0) return realloc(old, bytes);
    void *held = leave(h);
    int rc = arena_resize(h->arena, b.handle, bytes, held ? h->tick : NULL, h->arg, &now, &why);
    come_back(h, held);
    if (rc == 0) return old;
    if (rc == -EINTR) return elsewhere(h, rc, &why, bytes, false);
    void *moved = alloc(h, bytes, false);
    if (!moved) return NULL;
    held = leave(h);
    memcpy(moved, old, b.bytes < bytes ? b.bytes : bytes);
    come_back(h, held);
    give(h, old, b.handle); /* by its handle: a signal handler may have freed it and somebody else got its place */
    return moved;
}
