/* freelist_bins.h: size classes, the bins, and the bits of the committed chunks. Private to the freelist's files. */
#ifndef ARENA_FREELIST_BINS_H
#define ARENA_FREELIST_BINS_H

#include "alloc/freelist.h"

#define NONE UINT32_MAX

enum state {
    UNUSED,
    LIVE,
    PENDING, /* live, and not all of it is committed yet */
    LAST_FREED,  /* freed last: joins its neighbours when something else than the same size is asked for */
    COMMITTED,    /* free and committed from end to end */
    PARTLY_COMMITTED,   /* free and committed in part: has a side record */
    UNCOMMITTED,    /* free and not committed at all */
};
#define STATE_SHIFT 61 /* a size has 41 bits */
#define SIZE_MASK ((1ull << STATE_SHIFT) - 1)

static inline struct freelist_node *node_at(const struct freelist *f, uint32_t id) { return &f->table.node[id]; }
static inline uint64_t size_of(const struct freelist_node *n) { return n->size & SIZE_MASK; }
static inline enum state state_of(const struct freelist_node *n) { return (enum state)(n->size >> STATE_SHIFT); }
static inline bool is_free(const struct freelist_node *n) { return state_of(n) >= COMMITTED; }
static inline uint64_t end_of(const struct freelist_node *n) { return n->offset + size_of(n); }
static inline void set_size(struct freelist_node *n, uint64_t size, enum state state) {
    n->size = size | (uint64_t)state << STATE_SHIFT;
}

/* A leaf in the map: its index, and above that how many blocks are in it. */
#define LEAF_TAG 0x80000000u
#define LEAF_COUNT_SHIFT 24
#define LEAF_INDEX ((1u << LEAF_COUNT_SHIFT) - 1)

static inline uint64_t chunk_granules(const struct freelist *f) { return 1ull << f->layout.chunk_shift; }
static inline uint64_t chunk_below(const struct freelist *f, uint64_t granule) {
    return granule >> f->layout.chunk_shift;
}
static inline uint64_t chunk_above(const struct freelist *f, uint64_t granule) {
    return (granule + chunk_granules(f) - 1) >> f->layout.chunk_shift;
}

static inline struct freelist_side *side_of(const struct freelist *f, uint64_t offset) {
    return &f->table.side[chunk_above(f, offset)];
}

static inline void describe(const struct freelist *f, uint32_t id, struct freelist_block *out) {
    const struct freelist_node *n = node_at(f, id);
    *out = (struct freelist_block){n->serial << 32 | id, n->offset, size_of(n), state_of(n) == LIVE};
}

/* The node of a live block; 0: no live block has this handle. */
static inline uint32_t live_node(const struct freelist *f, uint64_t handle) {
    uint32_t id = (uint32_t)handle;
    if (id == 0 || id >= f->nodes_used) return 0;
    const struct freelist_node *n = node_at(f, id);
    return (state_of(n) == LIVE || state_of(n) == PENDING) && n->serial == handle >> 32 ? id : 0;
}

static inline bool is_short(const struct freelist *f) {
    if (__builtin_expect(f->nodes_free < 3, 0)) return true;
    return __builtin_expect(f->leaves_free < 1, 0) && f->leaves_ready < f->layout.max_leaves;
}

/* --- classes ------------------------------------------------------------------------------------------------------ */

/* 32 steps an octave; exact below 64. */
static inline uint32_t class_down(uint64_t size) {
    if (size < 1u << FREELIST_SUBBITS) return (uint32_t)size;
    uint32_t top = 63u - (uint32_t)__builtin_clzll(size);
    return ((top - FREELIST_SUBBITS + 1) << FREELIST_SUBBITS) +
           ((uint32_t)(size >> (top - FREELIST_SUBBITS)) & ((1u << FREELIST_SUBBITS) - 1));
}

/* The lowest class whose every member has at least this size. */
static inline uint32_t class_up(uint64_t size) {
    if (size >= 2u << FREELIST_SUBBITS) {
        uint32_t top = 63u - (uint32_t)__builtin_clzll(size);
        size += (1ull << (top - FREELIST_SUBBITS)) - 1;
    }
    return class_down(size);
}

/* Whether two sizes are in one class, for less than it takes to compute both. */
static inline bool same_class(uint64_t a, uint64_t b) {
    return (a ^ b) >> (63 - FREELIST_SUBBITS - __builtin_clzll(a | 1u << FREELIST_SUBBITS)) == 0;
}

/* The lowest class in use from this one on. */
static inline uint32_t bin_find(const struct freelist_bins *b, uint32_t class) {
    uint32_t row = class >> FREELIST_SUBBITS;
    if (row >= FREELIST_ROWS) return NONE;
    uint32_t subs = b->sub[row] & (~0u << (class & ((1u << FREELIST_SUBBITS) - 1)));
    if (!subs) {
        uint64_t rows = b->rows & (~0ull << (row + 1));
        if (!rows) return NONE;
        row = (uint32_t)__builtin_ctzll(rows);
        subs = b->sub[row];
    }
    return row << FREELIST_SUBBITS | (uint32_t)__builtin_ctz(subs);
}

/* The highest class in use below this one. */
static inline uint32_t bin_find_down(const struct freelist_bins *b, uint32_t below) {
    for (uint32_t class = below; class --> 0;) {
        uint32_t row = class >> FREELIST_SUBBITS, sub = class & ((1u << FREELIST_SUBBITS) - 1);
        uint32_t subs = b->sub[row] & (uint32_t)((2ull << sub) - 1);
        if (subs) return row << FREELIST_SUBBITS | (31u - (uint32_t)__builtin_clz(subs));
        class = row << FREELIST_SUBBITS;
    }
    return NONE;
}

static inline struct freelist_link *link_of(struct freelist *f, const struct freelist_bins *b, uint32_t id) {
    struct freelist_node *n = node_at(f, id);
    return b == &f->committed && state_of(n) == PARTLY_COMMITTED ? &side_of(f, n->offset)->link : &n->link;
}

static inline void bin_add(struct freelist *f, struct freelist_bins *b, uint32_t id, uint64_t key) {
    uint32_t class = class_down(key), row = class >> FREELIST_SUBBITS;
    struct freelist_link *at = link_of(f, b, id);
    at->prev = 0;
    at->next = b->head[class];
    if (at->next) link_of(f, b, at->next)->prev = id;
    b->head[class] = id;
    b->sub[row] |= 1u << (class & 31);
    b->rows |= 1ull << row;
}

static inline void bin_remove(struct freelist *f, struct freelist_bins *b, uint32_t id, uint64_t key) {
    uint32_t class = class_down(key), row = class >> FREELIST_SUBBITS;
    struct freelist_link at = *link_of(f, b, id);
    if (at.next) link_of(f, b, at.next)->prev = at.prev;
    if (at.prev) {
        link_of(f, b, at.prev)->next = at.next;
        return;
    }
    b->head[class] = at.next;
    if (at.next) return;
    b->sub[row] &= ~(1u << (class & 31));
    if (!b->sub[row]) b->rows &= ~(1ull << row);
}

/* --- committed chunks --------------------------------------------------------------------------------------------- */

static inline uint64_t chunk_count(const struct freelist *f) { return chunk_below(f, f->layout.granules); }
static inline uint64_t summary_words(uint64_t chunks) { return ((chunks + 63) / 64 + 63) / 64; }

static inline uint64_t *not_zero(const struct freelist *f) { return f->table.chunk; }
static inline uint64_t *all_ones(const struct freelist *f) { return f->table.chunk + summary_words(chunk_count(f)); }
static inline uint64_t *chunk_bits(const struct freelist *f) {
    return f->table.chunk + 2 * summary_words(chunk_count(f));
}

/* A word that was never set may not be there to be read. */
static inline uint64_t chunk_word(const struct freelist *f, uint64_t word) {
    return not_zero(f)[word / 64] >> (word % 64) & 1 ? chunk_bits(f)[word] : 0;
}

/* The first chunk in [from, end) that is committed (or is not); end if there is none. */
static inline uint64_t chunk_next(const struct freelist *f, uint64_t from, uint64_t end, bool committed) {
    while (from < end) {
        uint64_t word = from / 64, bits = chunk_word(f, word);
        bits = (committed ? bits : ~bits) & (~0ull << (from % 64));
        if (bits) {
            uint64_t found = word * 64 + (uint64_t)__builtin_ctzll(bits);
            return found < end ? found : end;
        }
        /* On to the next word that can have one. */
        const uint64_t *summary = committed ? not_zero(f) : all_ones(f);
        for (word++; word * 64 < end; word = (word / 64 + 1) * 64) {
            uint64_t candidates = (committed ? summary[word / 64] : ~summary[word / 64]) & (~0ull << (word % 64));
            if (candidates) {
                word = word / 64 * 64 + (uint64_t)__builtin_ctzll(candidates);
                break;
            }
        }
        from = word * 64;
    }
    return end;
}

/* Whether the tables may be touched for these chunks. */
static inline bool is_ready(const struct freelist *f, uint64_t first, uint64_t last) {
    if (!f->index_ready) return true;
    for (uint64_t u = first >> f->index_ready_shift; u <= last >> f->index_ready_shift; u++) {
        if (!(f->index_ready[u / 64] >> (u % 64) & 1)) return false;
    }
    return true;
}

/* The same for a block: its chunks, and the one behind it, where the rest of the range may have its side record. */
static inline bool is_ready_for(const struct freelist *f, uint64_t from, uint64_t end) {
    uint64_t last = chunk_above(f, end), chunks = chunk_count(f);
    return is_ready(f, chunk_below(f, from), last < chunks ? last : chunks - 1);
}

/* How many granules of [from, end) lie in committed chunks. */
static inline uint64_t committed_in(const struct freelist *f, uint64_t from, uint64_t end) {
    uint64_t sum = 0, last = chunk_above(f, end), at = chunk_below(f, from);
    while (at < last) {
        uint64_t start = chunk_next(f, at, last, true);
        at = chunk_next(f, start, last, false);
        if (start == at) break;
        uint64_t low = start << f->layout.chunk_shift, high = at << f->layout.chunk_shift;
        sum += (high < end ? high : end) - (low > from ? low : from);
    }
    return sum;
}

#endif
