/* Looking at the index without changing it: the blocks in order, and the figures. */
#include "alloc/freelist.h"
#include "alloc/freelist_bins.h"
#include "alloc/freelist_shape.h"

#define SCAN_PAGES 65536u

size_t freelist_scan(const struct freelist *f, uint64_t *cursor, struct freelist_block *out, size_t max) {
    uint64_t page = *cursor, pages = f->layout.granules / FREELIST_PAGE_GRANULES, looked = 0;
    uint64_t per_chunk = chunk_granules(f) / FREELIST_PAGE_GRANULES;
    size_t n = 0;
    while (page < pages && n + FREELIST_PAGE_GRANULES <= max && looked++ < SCAN_PAGES) {
        uint64_t chunk = page / per_chunk, there = chunk_next(f, chunk, chunk_count(f), true);
        if (there != chunk) {
            page = there * per_chunk;
            continue;
        }
        uint32_t entry = f->table.map[page++];
        if (!entry) continue;
        for (uint32_t i = 0; i < (entry & LEAF_TAG ? FREELIST_PAGE_GRANULES : 1); i++) {
            uint32_t id = entry & LEAF_TAG ? f->table.leaf[entry & LEAF_INDEX].node[i] : entry;
            if (id && state_of(node_at(f, id)) == LIVE) describe(f, id, &out[n++]);
        }
    }
    *cursor = page < pages ? page : UINT64_MAX;
    return n;
}

/* The largest key in a set of bins: in its highest class, whose members are not in order. */
static uint64_t largest(struct freelist *f, struct freelist_bins *b) {
    uint32_t class = bin_find_down(b, FREELIST_BINS);
    uint64_t best = 0;
    if (class == NONE) return 0;
    for (uint32_t id = b->head[class]; id; id = link_of(f, b, id)->next) {
        struct shape s = shape_of(f, node_at(f, id));
        uint64_t key = b == &f->total ? size_of(node_at(f, id)) : longest(&s);
        if (key > best) best = key;
        if (class_down(best + 1) != class) break;
    }
    return best;
}

void freelist_stats(struct freelist *f, struct freelist_stats *out) {
    freelist_settle(f);
    uint64_t committed = largest(f, &f->committed), total = largest(f, &f->total);
    *out = (struct freelist_stats){.live = f->live,
                                   .free = f->layout.granules - f->live,
                                   .free_committed = f->free_committed,
                                   .committed = f->committed_granules,
                                   .largest_free = committed > total ? committed : total,
                                   .largest_committed = committed,
                                   .blocks = f->blocks};
}
