/* Filling an arena to the first request that fails, with the free-space index of csrc/alloc/freelist.c and with best fit: the
 * smallest range that is large enough, of these the one with the lowest address, merged at once when freed. Best fit
 * keeps its ranges in a treap; it is here to be compared with and not to be fast. Sizes are granules of 64 bytes. */
#include <math.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "alloc/freelist.h"

/* --- best fit ----------------------------------------------------------------------------------------------------- */

struct range {
    uint64_t offset, size;
    uint32_t prev, next; /* by address; 0: none */
    uint32_t low, high; /* the treap of the free ones, by size and then by offset */
    uint32_t priority; /* a spare node links by `next` */
    bool free;
};

struct bestfit {
    struct range *range;
    uint32_t used, spare, root, random;
};

static uint32_t range_new(struct bestfit *b) {
    uint32_t id = b->spare ? b->spare : ++b->used;
    if (b->spare) b->spare = b->range[id].next;
    b->random = b->random * 1664525u + 1013904223u;
    b->range[id] = (struct range){.priority = b->random};
    return id;
}

static bool before(const struct bestfit *b, uint32_t x, uint32_t y) {
    const struct range *p = &b->range[x], *q = &b->range[y];
    return p->size != q->size ? p->size < q->size : p->offset < q->offset;
}

static void insert(struct bestfit *b, uint32_t id) {
    uint32_t *at = &b->root;
    while (*at && b->range[*at].priority >= b->range[id].priority)
        at = before(b, id, *at) ? &b->range[*at].low : &b->range[*at].high;
    /* Takes this place; what was below it is split around the new key. */
    uint32_t rest = *at, *low = &b->range[id].low, *high = &b->range[id].high;
    *at = id;
    while (rest) {
        if (before(b, rest, id)) {
            *low = rest;
            low = &b->range[rest].high;
            rest = *low;
        } else {
            *high = rest;
            high = &b->range[rest].low;
            rest = *high;
        }
    }
    *low = *high = 0;
    b->range[id].free = true;
}

static void drop(struct bestfit *b, uint32_t id) {
    uint32_t *at = &b->root;
    while (*at != id) at = before(b, id, *at) ? &b->range[*at].low : &b->range[*at].high;
    uint32_t low = b->range[id].low, high = b->range[id].high;
    while (low && high) {
        if (b->range[low].priority >= b->range[high].priority) {
            *at = low;
            at = &b->range[low].high;
            low = *at;
        } else {
            *at = high;
            at = &b->range[high].low;
            high = *at;
        }
    }
    *at = low ? low : high;
    b->range[id].free = false;
}

static uint32_t bestfit_alloc(struct bestfit *b, uint64_t size) {
    uint32_t best = 0;
    for (uint32_t at = b->root; at;) {
        if (b->range[at].size >= size) {
            best = at;
            at = b->range[at].low;
        } else {
            at = b->range[at].high;
        }
    }
    if (!best) return 0;
    drop(b, best);
    if (b->range[best].size > size) {
        uint32_t rest = range_new(b), next = b->range[best].next;
        b->range[rest].offset = b->range[best].offset + size;
        b->range[rest].size = b->range[best].size - size;
        b->range[rest].prev = best;
        b->range[rest].next = next;
        if (next) b->range[next].prev = rest;
        b->range[best].next = rest;
        b->range[best].size = size;
        insert(b, rest);
    }
    return best;
}

/* Takes in the range behind. */
static void absorb(struct bestfit *b, uint32_t id) {
    uint32_t gone = b->range[id].next, next = b->range[gone].next;
    b->range[id].size += b->range[gone].size;
    b->range[id].next = next;
    if (next) b->range[next].prev = id;
    b->range[gone].next = b->spare;
    b->spare = gone;
}

static void bestfit_free(struct bestfit *b, uint32_t id) {
    uint32_t prev = b->range[id].prev, next = b->range[id].next;
    if (next && b->range[next].free) {
        drop(b, next);
        absorb(b, id);
    }
    if (prev && b->range[prev].free) {
        drop(b, prev);
        absorb(b, prev);
        id = prev;
    }
    insert(b, id);
}

/* --- either ------------------------------------------------------------------------------------------------------- */

#define CHUNK_SHIFT 15u /* 2 MiB */

struct allocator {
    bool ours;
    uint64_t granules;
    struct bestfit best;
    struct freelist index;
    void *table[5];
};

static bool start(struct allocator *a, bool ours, uint64_t granules) {
    memset(a, 0, sizeof *a);
    a->ours = ours;
    a->granules = granules;
    if (!ours) {
        a->best.range = a->table[0] = calloc(granules + 2, sizeof(struct range));
        if (!a->table[0]) return false;
        uint32_t id = range_new(&a->best);
        a->best.range[id].size = granules;
        insert(&a->best, id);
        return true;
    }
    struct freelist_layout l;
    if (freelist_plan(granules, CHUNK_SHIFT, &l)) return false;
    size_t bytes[5] = {l.node_bytes, l.leaf_bytes, l.map_bytes, l.side_bytes, l.chunk_bytes};
    for (int i = 0; i < 5; i++) {
        if (!(a->table[i] = calloc(bytes[i], 1))) return false;
    }
    struct freelist_tables tables = {a->table[0], a->table[1], a->table[2], a->table[3], a->table[4]};
    freelist_init(&a->index, &l, &tables, l.max_nodes, l.max_leaves, 0);
    freelist_commit(&a->index, 0, granules >> CHUNK_SHIFT, 0);
    return true;
}

static void stop(struct allocator *a) {
    for (int i = 0; i < 5; i++) free(a->table[i]);
}

static uint64_t take(struct allocator *a, uint64_t size) {
    struct freelist_block block;
    if (!a->ours) return bestfit_alloc(&a->best, size);
    return freelist_alloc(&a->index, size, 1, 0, &block) ? 0 : block.handle;
}

static uint64_t give(struct allocator *a, uint64_t handle) {
    if (a->ours) {
        struct freelist_block block;
        (void)freelist_get(&a->index, handle, &block);
        (void)freelist_free(&a->index, handle);
        return block.size;
    }
    uint64_t size = a->best.range[handle].size;
    bestfit_free(&a->best, (uint32_t)handle);
    return size;
}

static uint64_t next_random(uint64_t *state) { /* splitmix64 */
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* Density ~ bytes^-exponent, from least to most bytes. */
static uint64_t draw_size(uint64_t *state, double exponent, double least, double most) {
    double power = 1 - exponent, low = pow(least, power), high = pow(most, power);
    double bytes = pow(low + (double)(next_random(state) >> 11) * 0x1p-53 * (high - low), 1 / power);
    return (uint64_t)ceil(bytes / FREELIST_GRANULE);
}

/* out[0]: which part of the arena is live at the first failure; out[1..rounds]: the same after half of the blocks,
 * drawn at random, were freed, and the arena filled again. Sizes come from a stream of their own, the same for both. */
int utilisation(int ours, uint64_t granules, double exponent, double least, double most, uint64_t seed, uint32_t rounds,
                double *out) {
    struct allocator a;
    uint64_t *handles = malloc(granules * sizeof *handles), count = 0, live = 0, sizes = seed, choices = ~seed;
    if (!start(&a, ours, granules) || !handles) return -1;
    for (uint32_t round = 0; round <= rounds; round++) {
        for (uint64_t left = round ? count / 2 : 0; left; left--) {
            uint64_t which = next_random(&choices) % count;
            live -= give(&a, handles[which]);
            handles[which] = handles[--count];
        }
        for (;;) {
            uint64_t size = draw_size(&sizes, exponent, least, most), handle = take(&a, size);
            if (!handle) break;
            handles[count++] = handle;
            live += size;
        }
        out[round] = (double)live / (double)granules;
    }
    stop(&a);
    free(handles);
    return 0;
}

/* What the index has of its tables in use, in bytes, when it holds this many blocks of this size. */
int64_t index_bytes(uint64_t blocks, uint64_t size) {
    struct allocator a;
    uint64_t chunk = 1u << CHUNK_SHIFT, chunks = (blocks * size + chunk - 1) >> CHUNK_SHIFT;
    if (!start(&a, true, chunks << CHUNK_SHIFT)) return -1;
    for (uint64_t i = 0; i < blocks; i++) {
        if (!take(&a, size)) return -1;
    }
    struct freelist_extent part[3];
    freelist_touch(&a.index.layout, 0, chunks, part);
    size_t bytes = sizeof a.index + a.index.nodes_used * sizeof(struct freelist_node) +
                   a.index.leaves_used * sizeof(struct freelist_leaf) + part[0].bytes + part[1].bytes + part[2].bytes +
                   a.index.layout.summary_bytes;
    stop(&a);
    return (int64_t)bytes;
}
