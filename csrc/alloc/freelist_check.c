/* The invariants of the index, for tests. */
#include <errno.h>

#include "alloc/freelist.h"
#include "alloc/freelist_bins.h"
#include "alloc/freelist_shape.h"

#define HOLDS(x)                   \
    do {                           \
        if (!(x)) return __LINE__; \
    } while (0)

static int check_range(const struct freelist *f, const struct freelist_node *n) {
    struct shape has = shape_of(f, n), is = shape_measure(f, n->offset, size_of(n));
    HOLDS(has.state == is.state && has.head == is.head && has.tail == is.tail);
    HOLDS(has.inner == is.inner && has.inner_runs == is.inner_runs);
    if (has.inner) {
        uint64_t end = has.inner_at + has.inner;
        HOLDS(has.inner_at > n->offset && end < end_of(n));
        HOLDS(committed_in(f, has.inner_at, end) == has.inner);
        HOLDS(committed_in(f, has.inner_at - 1, end + 1) == has.inner);
    }
    return 0;
}

static int check_block(const struct freelist *f, uint32_t id) {
    const struct freelist_node *n = node_at(f, id);
    struct freelist_block found;
    HOLDS(n->serial && n->serial <= UINT32_MAX);
    HOLDS((committed_in(f, n->offset, end_of(n)) == size_of(n)) == (state_of(n) != PENDING));
    HOLDS((id == f->last_freed) == (state_of(n) == LAST_FREED));
    if (id == f->last_freed)
        HOLDS(freelist_find(f, n->offset, &found) == -ENOENT);
    else
        HOLDS(freelist_find(f, n->offset, &found) == 0 && found.handle == (n->serial << 32 | id));
    return 0;
}

/* Every page that a block begins in: its entry, and the leaf if it has one. *leaves: how many there are. */
static int check_map(const struct freelist *f, uint64_t *leaves) {
    uint64_t pages = f->layout.granules / FREELIST_PAGE_GRANULES, entries = 0, used = 0;
    for (uint32_t id = f->first; id;) {
        uint64_t page = node_at(f, id)->offset / FREELIST_PAGE_GRANULES, blocks = 0, in_leaf = 0;
        for (; id && node_at(f, id)->offset / FREELIST_PAGE_GRANULES == page; id = node_at(f, id)->next) {
            blocks += !is_free(node_at(f, id));
        }
        uint64_t chunk = chunk_below(f, page * FREELIST_PAGE_GRANULES);
        uint32_t entry = is_ready(f, chunk, chunk) ? f->table.map[page] : 0;
        HOLDS((entry != 0) == (blocks != 0));
        entries += entry != 0;
        if (!(entry & LEAF_TAG)) {
            HOLDS(blocks <= 1);
            continue;
        }
        for (uint32_t i = 0; i < FREELIST_PAGE_GRANULES; i++) in_leaf += f->table.leaf[entry & LEAF_INDEX].node[i] != 0;
        HOLDS(in_leaf == blocks && (entry & ~LEAF_TAG) >> LEAF_COUNT_SHIFT == blocks);
        used++;
    }
    /* Nothing else is there; the map of a large arena is too large to look. */
    if (pages <= 1u << 16 && !f->index_ready) {
        for (uint64_t page = 0; page < pages; page++) entries -= f->table.map[page] != 0;
        HOLDS(entries == 0);
    }
    *leaves = used;
    return 0;
}

static int check_bins(struct freelist *f, const struct freelist_bins *b, uint64_t *members) {
    uint64_t count = 0;
    for (uint32_t class = 0; class < FREELIST_BINS; class++) {
        uint32_t row = class >> FREELIST_SUBBITS, before = 0;
        HOLDS((b->sub[row] >> (class & 31) & 1) == (b->head[class] != 0));
        HOLDS((b->rows >> row & 1) == (b->sub[row] != 0));
        for (uint32_t id = b->head[class]; id; id = link_of(f, b, id)->next) {
            const struct freelist_node *n = node_at(f, id);
            struct shape s = shape_of(f, n);
            HOLDS(id < f->nodes_used && is_free(n) && s.state != (b == &f->total ? COMMITTED : UNCOMMITTED));
            HOLDS(class_down(b == &f->total ? size_of(n) : longest(&s)) == class);
            HOLDS(link_of(f, b, id)->prev == before);
            before = id;
            count++;
        }
    }
    *members = count;
    return 0;
}

static int check_summary(const struct freelist *f) {
    uint64_t chunks = chunk_count(f), committed = 0;
    for (uint64_t word = 0; word < (chunks + 63) / 64; word++) {
        uint64_t bits = chunk_word(f, word);
        HOLDS((bits != 0) == (not_zero(f)[word / 64] >> (word % 64) & 1));
        HOLDS((bits == ~0ull) == (all_ones(f)[word / 64] >> (word % 64) & 1));
        HOLDS(word < chunks / 64 || bits >> (chunks % 64) == 0);
        committed += (uint64_t)__builtin_popcountll(bits);
    }
    HOLDS(committed << f->layout.chunk_shift == f->committed_granules);
    return 0;
}

int freelist_check(const struct freelist *f) {
    struct freelist *g = (struct freelist *)f;
    uint64_t at = 0, live = 0, blocks = 0, nodes = 0, free_committed = 0, committed = 0, partly = 0, uncommitted = 0;
    uint64_t members, leaves, spare = 0;
    uint32_t before = 0;
    int rc;
    for (uint32_t id = f->first; id; id = node_at(f, id)->next) {
        const struct freelist_node *n = node_at(f, id);
        HOLDS(id < f->nodes_used && n->prev == before && n->offset == at && size_of(n) && state_of(n) != UNUSED);
        if (is_free(n)) {
            HOLDS(!before || !is_free(node_at(f, before)));
            free_committed += committed_in(f, n->offset, end_of(n));
            committed += state_of(n) == COMMITTED;
            partly += state_of(n) == PARTLY_COMMITTED;
            uncommitted += state_of(n) == UNCOMMITTED;
            rc = check_range(f, n);
        } else {
            if (id == f->last_freed)
                free_committed += size_of(n);
            else
                live += size_of(n), blocks++;
            rc = check_block(f, id);
        }
        if (rc) return rc;
        at += size_of(n);
        before = id;
        HOLDS(++nodes < f->nodes_used);
    }
    HOLDS(at == f->layout.granules && live == f->live && blocks == f->blocks && free_committed == f->free_committed);
    for (uint32_t id = f->nodes_spare; id; id = node_at(f, id)->next) {
        HOLDS(state_of(node_at(f, id)) == UNUSED);
        HOLDS(++spare < f->nodes_used);
    }
    HOLDS(f->nodes_used <= f->nodes_ready && f->nodes_used == 1 + nodes + spare);
    HOLDS(f->nodes_free == f->nodes_ready - f->nodes_used + spare);
    if ((rc = check_map(f, &leaves))) return rc;
    spare = 0;
    for (uint32_t leaf = f->leaves_spare; leaf; leaf = f->table.leaf[leaf].node[0]) {
        for (uint32_t i = 1; i < FREELIST_PAGE_GRANULES; i++) HOLDS(f->table.leaf[leaf].node[i] == 0);
        HOLDS(++spare < f->leaves_used);
    }
    HOLDS(f->leaves_used <= f->leaves_ready && f->leaves_used == 1 + leaves + spare);
    HOLDS(f->leaves_free == f->leaves_ready - f->leaves_used + spare);
    if ((rc = check_bins(g, &g->committed, &members))) return rc;
    HOLDS(members == committed + partly);
    if ((rc = check_bins(g, &g->total, &members))) return rc;
    HOLDS(members == partly + uncommitted);
    return check_summary(f);
}
