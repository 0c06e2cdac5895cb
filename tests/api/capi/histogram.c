/* histogram.c: counts of values in an arena's memory: what C has to know to use a Python Arena.
 *
 * Compiled with -I$(python -c 'import arena; print(arena.get_include())') and linked with nothing: the functions come in a
 * table, from the PyCapsule "arena._core._C_API". `of` alone needs Python (and the GIL): it asks an object whether it is an
 * Arena. All the others may be called from any thread, with the GIL or without. */
#include <arena.h>
#include <string.h>

struct histogram {
    const struct arena_api *api;
    arena *memory; /* borrowed: the Arena has to outlive its blocks, which keep nothing alive */
    uint64_t handle;
    uint64_t *counts, buckets;
    struct arena_error why; /* of the last failure; its `err` alone is always set */
};

/* 0 or -errno, as all that follows. No count ever faults: the memory is there, or this fails. */
int histogram_open(struct histogram *h, const struct arena_api *api, arena *memory, uint64_t buckets) {
    struct arena_block block;
    *h = (struct histogram){.api = api, .memory = memory, .buckets = buckets};
    int rc = api->alloc(memory, buckets * sizeof *h->counts, 64, ARENA_ZERO, NULL, NULL, &block, &h->why);
    if (rc) return rc;
    h->handle = block.handle;
    h->counts = block.address;
    return 0;
}

/* One that is there already, such as a Block of Python's, by its bare address. -ENOENT if no block begins there. */
int histogram_at(struct histogram *h, const struct arena_api *api, arena *memory, const void *address) {
    struct arena_block block;
    int rc = api->find(memory, address, &block);
    if (rc) return rc;
    *h = (struct histogram){.api = api, .memory = memory, .handle = block.handle, .counts = block.address};
    h->buckets = block.bytes / sizeof *h->counts;
    return 0;
}

/* In place, so that pointers into the counts stay good. -ENOSPC where a neighbour is in the way. */
static int grow(struct histogram *h, uint64_t buckets) {
    struct arena_block block;
    uint64_t had = h->buckets * sizeof *h->counts;
    int rc = h->api->resize(h->memory, h->handle, buckets * sizeof *h->counts, NULL, NULL, &block, &h->why);
    if (rc) return rc;
    /* Of the new part only what may have been another's before: the rest is zero already. */
    if (block.dirty > had) memset(h->counts + h->buckets, 0, block.dirty - had);
    h->buckets = buckets;
    return 0;
}

int histogram_add(struct histogram *h, const uint32_t *values, size_t n) {
    for (size_t i = 0; i < n; i++) {
        int rc = values[i] < h->buckets ? 0 : grow(h, (uint64_t)values[i] + 1);
        if (rc) return rc;
        h->counts[values[i]]++;
    }
    return 0;
}

/* Twice is -EINVAL and harms nobody, whoever has the memory by then: a handle is never used again. */
int histogram_close(struct histogram *h) { return h->api->free(h->memory, h->handle); }
