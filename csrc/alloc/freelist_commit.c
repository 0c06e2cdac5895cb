/* What is committed of the ranges: chunks that were committed, and chunks that are picked to be released. */
#include <errno.h>

#include "alloc/freelist.h"
#include "alloc/freelist_bins.h"
#include "alloc/freelist_shape.h"

#define PICK_SCAN 16384u /* how many ranges without a whole chunk in them a pick looks at */

static uint64_t set_chunks(struct freelist *f, uint64_t first, uint64_t count, bool committed) {
    uint64_t changed = 0;
    for (uint64_t at = first, end = first + count; at < end;) {
        uint64_t word = at / 64, n = 64 - at % 64;
        if (n > end - at) n = end - at;
        uint64_t mask = (n == 64 ? ~0ull : (1ull << n) - 1) << (at % 64), bit = 1ull << (word % 64);
        uint64_t old = chunk_word(f, word), new = committed ? old | mask : old & ~mask;
        chunk_bits(f)[word] = new;
        changed += (uint64_t)__builtin_popcountll(old ^ new);
        not_zero(f)[word / 64] = new ? not_zero(f)[word / 64] | bit : not_zero(f)[word / 64] & ~bit;
        all_ones(f)[word / 64] = new == ~0ull ? all_ones(f)[word / 64] | bit : all_ones(f)[word / 64] & ~bit;
        at += n;
    }
    return changed << f->layout.chunk_shift;
}

static void refresh(struct freelist *f, uint32_t id) {
    struct freelist_node *n = node_at(f, id);
    struct shape s = shape_measure(f, n->offset, size_of(n));
    freelist_range_change(f, id, n->offset, size_of(n), &s);
}

/* The block or free range in which a granule lies, by way of the map: the last block that begins before it is that, or is
 * followed by it. */
static uint32_t range_at(const struct freelist *f, uint64_t granule) {
    uint64_t per_chunk = chunk_granules(f) / FREELIST_PAGE_GRANULES, page = granule / FREELIST_PAGE_GRANULES;
    uint32_t found = 0;
    for (uint64_t c = chunk_below(f, granule) + 1; c-- > 0 && !found; page = c * per_chunk - 1) {
        if (!is_ready(f, c, c)) continue; /* no block can begin there */
        for (uint64_t p = page + 1; p-- > c * per_chunk && !found;) {
            uint32_t entry = f->table.map[p];
            if (!(entry & LEAF_TAG)) {
                if (entry && node_at(f, entry)->offset <= granule) found = entry;
                continue;
            }
            const struct freelist_leaf *leaf = &f->table.leaf[entry & LEAF_INDEX];
            for (uint32_t i = FREELIST_PAGE_GRANULES; i-- > 0 && !found;) {
                if (leaf->node[i] && node_at(f, leaf->node[i])->offset <= granule) found = leaf->node[i];
            }
        }
    }
    if (!found) found = f->first;
    while (end_of(node_at(f, found)) <= granule) found = node_at(f, found)->next;
    return found;
}

/* `left`: a block or range that begins in these chunks or reaches into them, or lies a little above. */
static void commit_from(struct freelist *f, uint64_t first, uint64_t count, uint32_t left) {
    uint64_t from = first << f->layout.chunk_shift, end = (first + count) << f->layout.chunk_shift;
    while (node_at(f, left)->prev && node_at(f, left)->offset > from) left = node_at(f, left)->prev;
    for (uint32_t id = left; id && node_at(f, id)->offset < end; id = node_at(f, id)->next) {
        const struct freelist_node *n = node_at(f, id);
        if (!is_free(n)) continue;
        uint64_t low = n->offset > from ? n->offset : from, high = end_of(n) < end ? end_of(n) : end;
        if (low < high) f->free_committed += high - low - committed_in(f, low, high);
    }
    f->committed_granules += set_chunks(f, first, count, true);
    for (uint32_t id = left; id && node_at(f, id)->offset < end; id = node_at(f, id)->next) {
        struct freelist_node *n = node_at(f, id);
        if (is_free(n))
            refresh(f, id);
        else if (state_of(n) == PENDING && committed_in(f, n->offset, end_of(n)) == size_of(n))
            set_size(n, size_of(n), LIVE);
    }
}

void freelist_commit(struct freelist *f, uint64_t first, uint64_t count, uint64_t near) {
    uint32_t id = live_node(f, near);
    commit_from(f, first, count, id ? id : range_at(f, first << f->layout.chunk_shift));
}

uint64_t freelist_committed_in(const struct freelist *f, uint64_t offset, uint64_t size) {
    return committed_in(f, offset, offset + size);
}

/* The whole chunks in a run; false: none. */
static bool whole(const struct freelist *f, uint64_t at, uint64_t run, struct freelist_span *out) {
    uint64_t first = chunk_above(f, at), end = chunk_below(f, at + run);
    if (first >= end) return false;
    *out = (struct freelist_span){first, end - first, 0};
    return true;
}

/* The longest row of whole chunks that are free and committed in a range; 0 chunks: none. */
static struct freelist_span longest_row(const struct freelist *f, const struct freelist_node *n) {
    struct shape s = shape_of(f, n);
    struct freelist_span best = {0, 0, 0}, one;
    if (whole(f, n->offset, s.head, &one)) best = one;
    if (s.state == PARTLY_COMMITTED && whole(f, end_of(n) - s.tail, s.tail, &one) && one.count > best.count) best = one;
    if (s.inner && whole(f, s.inner_at, s.inner, &one) && one.count > best.count) best = one;
    return best;
}

int freelist_pick(struct freelist *f, uint64_t max_chunks, struct freelist_span *out) {
    freelist_settle(f);
    uint32_t class = bin_find_down(&f->committed, FREELIST_BINS), lowest = class_down(chunk_granules(f)), looked = 0;
    for (; class != NONE && class >= lowest && max_chunks; class = bin_find_down(&f->committed, class)) {
        for (uint32_t id = f->committed.head[class]; id; id = link_of(f, &f->committed, id)->next) {
            struct freelist_span best = longest_row(f, node_at(f, id));
            if (!best.count) { /* shorter than two chunks, and across a boundary */
                if (++looked == PICK_SCAN) return -ENOENT;
                continue;
            }
            uint64_t count = best.count < max_chunks ? best.count : max_chunks;
            *out = (struct freelist_span){best.first + best.count - count, count, id};
            uint64_t gone = set_chunks(f, out->first, count, false);
            f->committed_granules -= gone;
            f->free_committed -= gone;
            refresh(f, id);
            return 0;
        }
    }
    return -ENOENT;
}

void freelist_unpick(struct freelist *f, const struct freelist_span *span) {
    commit_from(f, span->first, span->count, span->range);
}
