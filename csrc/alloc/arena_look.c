/* Looking at an arena: its figures, and its blocks. */
#include "alloc/arena_private.h"

int arena_find(arena *a, const void *address, struct arena_block *out) {
    struct freelist_block b;
    mutex_lock(&a->lock);
    int rc = arena_find_locked(a, address, &b);
    mutex_unlock(&a->lock);
    if (rc == 0) arena_describe(a, &b, out);
    return rc;
}

size_t arena_blocks(arena *a, uint64_t *cursor, struct arena_block *out, size_t max) {
    struct freelist_block b[256];
    if (max > sizeof b / sizeof *b) max = sizeof b / sizeof *b;
    mutex_lock(&a->lock);
    size_t n = freelist_scan(&a->index.list, cursor, b, max);
    mutex_unlock(&a->lock);
    for (size_t i = 0; i < n; i++) arena_describe(a, &b[i], &out[i]);
    return n;
}

void arena_get(arena *a, struct arena_stats *out) {
    struct freelist_stats s;
    struct reservation_stats r = {0};
    mutex_lock(&a->lock);
    freelist_stats(&a->index.list, &s);
    if (arena_is_mapped(a)) reservation_get(&a->reservation, &r);
    *out = (struct arena_stats){.reserved = r.size,
                                .committed = r.committed,
                                .live = granule_bytes(s.live),
                                .free_committed = arena_is_mapped(a) ? granule_bytes(s.free_committed) : 0,
                                .blocks = s.blocks,
                                .peak_committed = r.peak_committed,
                                .peak_live = granule_bytes(a->peak_live),
                                .commits = r.commits,
                                .releases = r.releases,
                                .commit_ns = r.commit_ns,
                                .release_ns = r.release_ns,
                                .largest_free = granule_bytes(s.largest_free),
                                .free = granule_bytes(s.free),
                                .overflows = a->overflows};
    mutex_unlock(&a->lock);
}

void *arena_address(arena *a) { return a->base; }
uint64_t arena_chunk(arena *a) { return (uint64_t)1 << a->chunk_shift; }
reservation *arena_reservation(arena *a) { return &a->reservation; }
uint64_t *arena_epoch(arena *a) { return &a->epoch; }
