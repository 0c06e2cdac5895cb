#include "alloc/freelist.h"

#include <errno.h>
#include <string.h>

#include "alloc/freelist_bins.h"
#include "alloc/freelist_shape.h"

#define OWN_SCAN 8u      /* a close fit leaves less behind: bench/utilisation.py shows by how much */

/* --- tables ------------------------------------------------------------------------------------------------------- */

int freelist_plan(uint64_t granules, uint32_t chunk_shift, struct freelist_layout *out) {
    uint64_t chunks = granules >> chunk_shift;
    if (granules == 0 || granules > FREELIST_MAX_GRANULES || chunks << chunk_shift != granules || chunk_shift < 6 ||
        chunks > FREELIST_MAX_CHUNKS)
        return -EINVAL;
    uint64_t nodes = granules + 8, leaves = granules / FREELIST_PAGE_GRANULES + 1;
    if (nodes > FREELIST_MAX_NODES) nodes = FREELIST_MAX_NODES;
    if (leaves > LEAF_INDEX) leaves = LEAF_INDEX;
    *out = (struct freelist_layout){.granules = granules,
                                    .chunk_shift = chunk_shift,
                                    .max_nodes = (uint32_t)nodes,
                                    .max_leaves = (uint32_t)leaves,
                                    .node_bytes = nodes * sizeof(struct freelist_node),
                                    .leaf_bytes = leaves * sizeof(struct freelist_leaf),
                                    .map_bytes = granules / FREELIST_PAGE_GRANULES * sizeof(uint32_t),
                                    .side_bytes = (chunks + 1) * sizeof(struct freelist_side)};
    out->summary_bytes = 2 * summary_words(chunks) * sizeof(uint64_t);
    out->chunk_bytes = out->summary_bytes + (chunks + 63) / 64 * sizeof(uint64_t);
    return 0;
}

void freelist_touch(const struct freelist_layout *l, uint64_t first, uint64_t count, struct freelist_extent out[3]) {
    uint64_t pages = (1ull << l->chunk_shift) / FREELIST_PAGE_GRANULES;
    out[0] = (struct freelist_extent){first * pages * sizeof(uint32_t), count * pages * sizeof(uint32_t)};
    out[1] = (struct freelist_extent){first * sizeof(struct freelist_side), count * sizeof(struct freelist_side)};
    out[2].offset = l->summary_bytes + first / 64 * sizeof(uint64_t);
    out[2].bytes = (count / 64 + 2) * sizeof(uint64_t);
}

static inline uint32_t node_take(struct freelist *f) {
    uint32_t id = f->nodes_spare;
    f->nodes_free--;
    if (id)
        f->nodes_spare = node_at(f, id)->next;
    else
        id = f->nodes_used++;
    return id;
}

static inline void node_return(struct freelist *f, uint32_t id) {
    struct freelist_node *n = node_at(f, id);
    n->size = 0;
    n->next = f->nodes_spare;
    f->nodes_spare = id;
    f->nodes_free++;
}

/* Puts `id` between its neighbours-to-be. */
static inline void insert_between(struct freelist *f, uint32_t prev, uint32_t id, uint32_t next) {
    struct freelist_node *n = node_at(f, id);
    n->prev = prev;
    n->next = next;
    if (prev)
        node_at(f, prev)->next = id;
    else
        f->first = id;
    if (next) node_at(f, next)->prev = id;
}

static inline void unlink_node(struct freelist *f, uint32_t id) {
    struct freelist_node *n = node_at(f, id);
    if (n->prev)
        node_at(f, n->prev)->next = n->next;
    else
        f->first = n->next;
    if (n->next) node_at(f, n->next)->prev = n->prev;
    node_return(f, id);
}

/* --- the address map ---------------------------------------------------------------------------------------------- */

static __attribute__((noinline)) void map_add_leaf(struct freelist *f, uint64_t offset, uint32_t id) {
    uint32_t *entry = &f->table.map[offset / FREELIST_PAGE_GRANULES];
    if (!(*entry & LEAF_TAG)) {
        uint32_t leaf = f->leaves_spare;
        f->leaves_free--;
        if (leaf) {
            f->leaves_spare = f->table.leaf[leaf].node[0];
            f->table.leaf[leaf].node[0] = 0;
        } else {
            leaf = f->leaves_used++;
        }
        f->table.leaf[leaf].node[node_at(f, *entry)->offset % FREELIST_PAGE_GRANULES] = *entry;
        *entry = LEAF_TAG | 1u << LEAF_COUNT_SHIFT | leaf;
    }
    f->table.leaf[*entry & LEAF_INDEX].node[offset % FREELIST_PAGE_GRANULES] = id;
    *entry += 1u << LEAF_COUNT_SHIFT;
}

static inline void map_add(struct freelist *f, uint64_t offset, uint32_t id) {
    uint32_t *entry = &f->table.map[offset / FREELIST_PAGE_GRANULES];
    if (*entry)
        map_add_leaf(f, offset, id);
    else
        *entry = id;
}

static inline void map_remove(struct freelist *f, uint64_t offset) {
    uint32_t *entry = &f->table.map[offset / FREELIST_PAGE_GRANULES];
    if (!(*entry & LEAF_TAG)) {
        *entry = 0;
        return;
    }
    uint32_t leaf = *entry & LEAF_INDEX;
    f->table.leaf[leaf].node[offset % FREELIST_PAGE_GRANULES] = 0;
    *entry -= 1u << LEAF_COUNT_SHIFT;
    if ((*entry & ~LEAF_TAG) >> LEAF_COUNT_SHIFT) return;
    *entry = 0;
    f->table.leaf[leaf].node[0] = f->leaves_spare;
    f->leaves_spare = leaf;
    f->leaves_free++;
}

/* --- ranges ------------------------------------------------------------------------------------------------------- */

static inline void bins_remove(struct freelist *f, uint32_t id) {
    struct freelist_node *n = node_at(f, id);
    struct shape s = shape_of(f, n);
    if (s.state != COMMITTED) bin_remove(f, &f->total, id, size_of(n));
    if (s.state != UNCOMMITTED) bin_remove(f, &f->committed, id, longest(&s));
}

static inline void bins_add(struct freelist *f, uint32_t id, uint64_t offset, uint64_t size, const struct shape *s) {
    struct freelist_node *n = node_at(f, id);
    n->offset = offset;
    set_size(n, size, s->state);
    if (s->state == PARTLY_COMMITTED) {
        struct freelist_side *side = side_of(f, offset);
        side->head = s->head;
        side->tail = s->tail;
        side->inner = s->inner;
        side->inner_at = s->inner_at;
        side->inner_runs = s->inner_runs;
    }
    if (s->state != COMMITTED) bin_add(f, &f->total, id, size);
    if (s->state != UNCOMMITTED) bin_add(f, &f->committed, id, longest(s));
}

__attribute__((noinline)) void freelist_range_change(struct freelist *f, uint32_t id, uint64_t offset, uint64_t size,
                                                     const struct shape *s) {
    struct freelist_node *n = node_at(f, id);
    enum state before = state_of(n);
    if (before == COMMITTED && s->state == COMMITTED && same_class(size_of(n), size)) {
        n->offset = offset;
        set_size(n, size, COMMITTED);
        return;
    }
    if (before == PARTLY_COMMITTED && s->state == PARTLY_COMMITTED && same_class(size_of(n), size)) {
        struct freelist_side *from = side_of(f, n->offset), *to = side_of(f, offset);
        struct shape old = shape_of(f, n);
        if (same_class(longest(&old), longest(s))) {
            /* Links name nodes and not records, so a record may move. */
            *to = (struct freelist_side){s->head, s->tail, s->inner, s->inner_at, s->inner_runs, from->link};
            n->offset = offset;
            set_size(n, size, PARTLY_COMMITTED);
            return;
        }
    }
    bins_remove(f, id);
    bins_add(f, id, offset, size, s);
}

/* One end of a range moves over committed memory: last in, first out. Nothing is relinked unless a bin changes. */
static inline void move_ends(struct freelist *f, uint32_t id, uint64_t offset, uint64_t size) {
    struct freelist_node *n = node_at(f, id);
    uint64_t had = size_of(n), low = n->offset - offset; /* how much more there is at the low end, modulo 2^64 */
    if (state_of(n) == COMMITTED) {
        bool stays = same_class(had, size);
        if (!stays) bin_remove(f, &f->committed, id, had);
        n->offset = offset;
        set_size(n, size, COMMITTED);
        if (!stays) bin_add(f, &f->committed, id, size);
        return;
    }
    struct freelist_side *side = side_of(f, n->offset);
    uint64_t head = side->head + low, tail = side->tail + (size - had - low);
    uint64_t ends = head > tail ? head : tail, before = side->head > side->tail ? side->head : side->tail;
    uint64_t now = ends > side->inner ? ends : side->inner;
    if (before < side->inner) before = side->inner;
    bool total_stays = same_class(had, size), committed_stays = now && same_class(before, now);
    if (!total_stays) bin_remove(f, &f->total, id, had);
    if (!committed_stays) bin_remove(f, &f->committed, id, before);
    struct freelist_side *to = side_of(f, offset);
    if (to != side) *to = *side;
    to->head = head;
    to->tail = tail;
    n->offset = offset;
    set_size(n, size, now ? PARTLY_COMMITTED : UNCOMMITTED);
    if (!total_stays) bin_add(f, &f->total, id, size);
    if (!committed_stays && now) bin_add(f, &f->committed, id, now);
}

/* --- alloc -------------------------------------------------------------------------------------------------------- */

static inline uint64_t align_up(uint64_t n, uint64_t align) { return (n + align - 1) & ~(align - 1); }

/* Where in a run of granules a block fits, lowest or highest; false: nowhere. */
static inline bool fits(uint64_t run_at, uint64_t run, uint64_t size, uint64_t align, bool high, uint64_t *at) {
    if (run < size) return false;
    *at = high ? (run_at + run - size) & ~(align - 1) : align_up(run_at, align);
    return *at >= run_at && *at + size <= run_at + run;
}

/* Where in a free range; in what is committed of it, or anywhere. */
static inline bool place(const struct freelist *f, uint32_t id, bool committed, uint64_t size, uint64_t align,
                         uint64_t *at) {
    const struct freelist_node *n = node_at(f, id);
    uint64_t all = size_of(n);
    if (state_of(n) == COMMITTED || state_of(n) == UNCOMMITTED) return fits(n->offset, all, size, align, false, at);
    const struct freelist_side *s = side_of(f, n->offset);
    if (!committed) return fits(n->offset, all, size, align, s->tail > s->head, at);
    return fits(n->offset, s->head, size, align, false, at) ||
           fits(n->offset + all - s->tail, s->tail, size, align, true, at) ||
           fits(s->inner_at, s->inner, size, align, false, at);
}

/* The bins whose members may fit or may not, from the request's own up to `top`: member by member, up to a limit. */
static __attribute__((noinline)) uint32_t search_near(struct freelist *f, struct freelist_bins *b, uint64_t size,
                                                      uint64_t align, uint32_t top, uint32_t limit, uint64_t *at) {
    uint32_t class = bin_find(b, class_down(size));
    for (; class != NONE && class <= top; class = bin_find(b, class + 1)) {
        for (uint32_t id = b->head[class]; id; id = link_of(f, b, id)->next) {
            if (place(f, id, b == &f->committed, size, align, at)) return id;
            if (--limit == 0) return 0;
        }
    }
    return 0;
}

static inline uint32_t search(struct freelist *f, struct freelist_bins *b, uint64_t size, uint64_t align,
                              uint64_t *at) {
    uint32_t own = class_down(size), sure = class_up(size + align - 1);
    if (own != sure && b->head[own]) {
        uint32_t id = search_near(f, b, size, align, own, OWN_SCAN, at);
        if (id) return id;
    }
    uint32_t class = bin_find(b, sure);
    if (__builtin_expect(class != NONE, 1)) {
        uint32_t id = b->head[class];
        if (place(f, id, b == &f->committed, size, align, at)) return id;
    }
    return search_near(f, b, size, align, class_down(size + align - 1), FREELIST_SCAN, at);
}

static __attribute__((noinline)) uint32_t carve_slow(struct freelist *f, uint32_t id, uint64_t at, uint64_t size) {
    struct freelist_node *n = node_at(f, id);
    uint64_t offset = n->offset, all = size_of(n), left_size = at - offset, right_size = all - size - left_size;
    struct shape s = shape_of(f, n), left, right;
    if (left_size == 0 && right_size == 0) {
        bins_remove(f, id);
        return id;
    }
    cut(f, offset, all, &s, at, size, &left, &right);
    uint32_t taken = node_take(f);
    if (left_size == 0) {
        insert_between(f, n->prev, taken, id);
        freelist_range_change(f, id, at + size, right_size, &right);
    } else {
        insert_between(f, id, taken, n->next);
        freelist_range_change(f, id, offset, left_size, &left);
        if (right_size) {
            uint32_t rest = node_take(f);
            insert_between(f, taken, rest, node_at(f, taken)->next);
            bins_add(f, rest, at + size, right_size, &right);
        }
    }
    node_at(f, taken)->offset = at;
    return taken;
}

/* Takes [at, at + size) out of a free range; the node that stands for it now, in no bin and without a state. */
static inline uint32_t carve(struct freelist *f, uint32_t id, uint64_t at, uint64_t size) {
    struct freelist_node *n = node_at(f, id);
    uint64_t all = size_of(n);
    enum state state = state_of(n);
    bool low = at == n->offset && size < all &&
               (state == COMMITTED || (state == PARTLY_COMMITTED && size <= side_of(f, at)->head));
    if (__builtin_expect(!low, 0)) return carve_slow(f, id, at, size);
    uint32_t taken = node_take(f);
    insert_between(f, n->prev, taken, id);
    move_ends(f, id, at + size, all - size);
    node_at(f, taken)->offset = at;
    return taken;
}

/* There is a limit to the leaves; once it is reached, only a block that needs one is refused. */
static __attribute__((noinline, cold)) bool leaf_lacks(const struct freelist *f, uint64_t at) {
    uint32_t entry = f->table.map[at / FREELIST_PAGE_GRANULES];
    return entry && !(entry & LEAF_TAG);
}

static inline uint32_t next_serial(struct freelist *f) {
    if (__builtin_expect(++f->serial == 0, 0)) f->serial = 1;
    return f->serial;
}

/* Makes a block of a part of a free range, of which `there` granules are committed. */
static inline void take(struct freelist *f, uint32_t id, uint64_t at, uint64_t size, uint64_t there,
                        struct freelist_block *out) {
    bool committed = there == size;
    f->free_committed -= there;
    id = carve(f, id, at, size);
    struct freelist_node *n = node_at(f, id);
    set_size(n, size, committed ? LIVE : PENDING);
    n->serial = next_serial(f);
    map_add(f, at, id);
    f->live += size;
    f->blocks++;
    *out = (struct freelist_block){n->serial << 32 | id, at, size, committed};
}

/* The block freed last again, under another number, if it is what is asked for. */
static inline bool reuse_last_freed(struct freelist *f, uint64_t size, uint64_t align, struct freelist_block *out) {
    uint32_t id = f->last_freed;
    struct freelist_node *n = node_at(f, id);
    if (size_of(n) != size || (n->offset & (align - 1))) return false;
    f->last_freed = 0;
    set_size(n, size, LIVE);
    n->serial = next_serial(f);
    f->live += size;
    f->blocks++;
    f->free_committed -= size;
    *out = (struct freelist_block){n->serial << 32 | id, n->offset, size, true};
    return true;
}

bool freelist_is_short(const struct freelist *f) { return is_short(f); }

int freelist_alloc(struct freelist *f, uint64_t size, uint64_t align, unsigned flags, struct freelist_block *out) {
    if (__builtin_expect(align - 1 >= chunk_granules(f) || (align & (align - 1)) || size == 0, 0)) return -EINVAL;
    if (f->last_freed) {
        if (reuse_last_freed(f, size, align, out)) return 0;
        freelist_settle(f);
    }
    if (__builtin_expect(size > f->layout.granules, 0)) return -ENOSPC;
    if (__builtin_expect(is_short(f), 0)) return -EAGAIN;
    uint64_t at = 0, there = size;
    uint32_t id = search(f, &f->committed, size, align, &at);
    if (__builtin_expect(!id, 0)) {
        if (flags & FREELIST_COMMITTED_ONLY) return -ENOSPC;
        id = search(f, &f->total, size, align, &at);
        if (!id) return -ENOSPC;
        if (!is_ready_for(f, at, at + size)) {
            *out = (struct freelist_block){.handle = id, .offset = at, .size = size};
            return -ENODATA;
        }
        there = committed_in(f, at, at + size);
    }
    if (__builtin_expect(f->leaves_free < 1, 0) && leaf_lacks(f, at)) return -EAGAIN;
    take(f, id, at, size, there, out);
    return 0;
}

int freelist_take(struct freelist *f, const struct freelist_block *place, struct freelist_block *out) {
    uint32_t id = (uint32_t)place->handle;
    uint64_t at = place->offset, end = at + place->size;
    if (id == 0 || id >= f->nodes_used || is_short(f)) return -EAGAIN;
    const struct freelist_node *n = node_at(f, id);
    if (!is_free(n) || n->offset > at || end_of(n) < end || !is_ready_for(f, at, end)) return -EAGAIN;
    if (f->leaves_free < 1 && leaf_lacks(f, at)) return -EAGAIN;
    take(f, id, at, place->size, committed_in(f, at, end), out);
    return 0;
}

int freelist_hold(struct freelist *f, uint64_t size, struct freelist_block *out) {
    uint64_t at = 0;
    *out = (struct freelist_block){0};
    if (size == 0) return -EINVAL;
    if (size > f->layout.granules) return -ENOSPC;
    freelist_settle(f);
    if (search(f, &f->committed, size, 1, &at)) return 0;
    if (is_short(f)) return -EAGAIN;
    uint32_t id = search(f, &f->total, size, 1, &at);
    if (!id) return -ENOSPC;
    uint64_t above = chunk_above(f, at + size), first = chunk_next(f, chunk_below(f, at), above, false), last = first;
    for (uint64_t c = first; c < above; c = chunk_next(f, last, above, false)) last = chunk_next(f, c, above, true);
    if (first >= above) return 0; /* the search among what is committed has missed it */
    uint64_t from = first << f->layout.chunk_shift, end = last << f->layout.chunk_shift;
    if (from < at) from = at;
    if (end > at + size) end = at + size;
    struct freelist_block place = {.handle = id, .offset = from, .size = end - from};
    if (!is_ready_for(f, from, end)) {
        *out = place;
        return -ENODATA;
    }
    return freelist_take(f, &place, out);
}

/* --- free --------------------------------------------------------------------------------------------------------- */

/* The shape of two ranges that meet at `boundary`, as one. */
static inline struct shape merge(const struct shape *left, const struct shape *right, uint64_t boundary) {
    bool left_whole = left->state == COMMITTED, right_whole = right->state == COMMITTED;
    uint64_t middle = left->tail + right->head;
    if (left_whole && right_whole) return (struct shape){COMMITTED, middle, middle, 0, 0, 0};
    struct shape s = {.head = left_whole ? middle : left->head,
                      .tail = right_whole ? middle : right->tail,
                      .inner = left->inner,
                      .inner_at = left->inner_at,
                      .inner_runs = left->inner_runs + right->inner_runs};
    if (right->inner > s.inner) s.inner = right->inner, s.inner_at = right->inner_at;
    if (!left_whole && !right_whole && middle) {
        s.inner_runs++;
        if (middle > s.inner) s.inner = middle, s.inner_at = boundary - left->tail;
    }
    s.state = longest(&s) ? PARTLY_COMMITTED : UNCOMMITTED;
    return s;
}

/* A range that was live, committed as it may be, coalesces with its neighbours. */
static __attribute__((noinline)) void join(struct freelist *f, uint32_t id, const struct shape *own) {
    struct freelist_node *n = node_at(f, id);
    uint64_t start = n->offset, end = end_of(n);
    uint32_t prev = n->prev, next = n->next;
    bool left = prev && is_free(node_at(f, prev)), right = next && is_free(node_at(f, next));
    struct shape s = *own;
    if (!left && !right) {
        bins_add(f, id, start, end - start, &s);
        return;
    }
    if (left) {
        struct shape before = shape_of(f, node_at(f, prev));
        s = merge(&before, &s, start);
        start = node_at(f, prev)->offset;
    }
    if (right) {
        struct shape behind = shape_of(f, node_at(f, next));
        s = merge(&s, &behind, end);
        end = end_of(node_at(f, next));
    }
    if (left && right) {
        bins_remove(f, next);
        unlink_node(f, next);
    }
    unlink_node(f, id);
    freelist_range_change(f, left ? prev : next, start, end - start, &s);
}

void freelist_settle(struct freelist *f) {
    uint32_t id = f->last_freed;
    if (!id) return;
    f->last_freed = 0;
    struct freelist_node *n = node_at(f, id);
    uint64_t size = size_of(n);
    map_remove(f, n->offset);
    uint32_t prev = n->prev, next = n->next;
    enum state left = prev ? state_of(node_at(f, prev)) : LIVE, right = next ? state_of(node_at(f, next)) : LIVE;
    if ((right == COMMITTED || right == PARTLY_COMMITTED) && left < COMMITTED) {
        uint64_t offset = n->offset, all = size + size_of(node_at(f, next));
        unlink_node(f, id);
        move_ends(f, next, offset, all);
    } else if ((left == COMMITTED || left == PARTLY_COMMITTED) && right < COMMITTED) {
        unlink_node(f, id);
        move_ends(f, prev, node_at(f, prev)->offset, size_of(node_at(f, prev)) + size);
    } else {
        struct shape s = {COMMITTED, size, size, 0, 0, 0};
        join(f, id, &s);
    }
}

/* The same for a range of which only the bits say how it is committed. */
static __attribute__((noinline)) void join_pending(struct freelist *f, uint32_t id) {
    struct freelist_node *n = node_at(f, id);
    struct shape s = shape_measure(f, n->offset, size_of(n));
    f->free_committed += committed_in(f, n->offset, end_of(n));
    join(f, id, &s);
}

int freelist_free(struct freelist *f, uint64_t handle) {
    uint32_t id = live_node(f, handle);
    if (__builtin_expect(!id, 0)) return -EINVAL;
    struct freelist_node *n = node_at(f, id);
    uint64_t size = size_of(n);
    f->live -= size;
    f->blocks--;
    if (__builtin_expect(state_of(n) == PENDING, 0)) {
        map_remove(f, n->offset);
        join_pending(f, id);
        return 0;
    }
    f->free_committed += size;
    freelist_settle(f);
    set_size(n, size, LAST_FREED);
    f->last_freed = id;
    return 0;
}

int freelist_get(const struct freelist *f, uint64_t handle, struct freelist_block *out) {
    uint32_t id = live_node(f, handle);
    if (!id) return -EINVAL;
    describe(f, id, out);
    return 0;
}

int freelist_find(const struct freelist *f, uint64_t offset, struct freelist_block *out) {
    if (offset >= f->layout.granules || !is_ready(f, chunk_below(f, offset), chunk_below(f, offset))) return -ENOENT;
    uint32_t id = f->table.map[offset / FREELIST_PAGE_GRANULES];
    if (id & LEAF_TAG) id = f->table.leaf[id & LEAF_INDEX].node[offset % FREELIST_PAGE_GRANULES];
    if (!id || node_at(f, id)->offset != offset || id == f->last_freed) return -ENOENT;
    describe(f, id, out);
    return 0;
}

/* The end of a block, as a node of its own that nobody knows yet. */
static uint32_t split_live(struct freelist *f, uint32_t id, uint64_t keep) {
    struct freelist_node *n = node_at(f, id);
    uint32_t rest = node_take(f);
    insert_between(f, id, rest, n->next);
    node_at(f, rest)->offset = n->offset + keep;
    set_size(node_at(f, rest), size_of(n) - keep, state_of(n));
    set_size(n, keep, state_of(n));
    return rest;
}

int freelist_resize(struct freelist *f, uint64_t handle, uint64_t size, unsigned flags, struct freelist_block *out) {
    uint32_t id = live_node(f, handle);
    if (!id || size == 0) return -EINVAL;
    if (size > f->layout.granules) return -ENOSPC;
    freelist_settle(f);
    struct freelist_node *n = node_at(f, id);
    if (f->nodes_free < (size < size_of(n) ? 1 : 3)) return -EAGAIN;
    uint64_t had = size_of(n), end = n->offset + size;
    if (size < had) {
        join_pending(f, split_live(f, id, size)); /* by the bits, for either state */
    } else if (size > had) {
        uint32_t next = n->next;
        if (!next || !is_free(node_at(f, next)) || size_of(node_at(f, next)) < size - had) return -ENOSPC;
        uint64_t there = committed_in(f, n->offset + had, end);
        if (there < size - had && (flags & FREELIST_COMMITTED_ONLY)) return -ENOSPC;
        if (!is_ready_for(f, n->offset, end)) {
            *out = (struct freelist_block){.offset = n->offset, .size = size};
            return -ENODATA;
        }
        uint32_t more = carve(f, next, n->offset + had, size - had);
        unlink_node(f, more);
        set_size(n, size, state_of(n));
        f->free_committed -= there;
    }
    f->live += size - had;
    set_size(n, size, committed_in(f, n->offset, end) == size ? LIVE : PENDING);
    describe(f, id, out);
    return 0;
}

/* --- all of it ---------------------------------------------------------------------------------------------------- */

static void one_range(struct freelist *f) {
    memset(&f->committed, 0, sizeof f->committed);
    memset(&f->total, 0, sizeof f->total);
    f->nodes_used = 1;
    f->nodes_spare = f->last_freed = 0;
    f->nodes_free = f->nodes_ready - 1;
    f->live = f->blocks = 0;
    f->free_committed = f->committed_granules;
    uint32_t id = node_take(f);
    insert_between(f, 0, id, 0);
    struct shape s = shape_measure(f, 0, f->layout.granules);
    bins_add(f, id, 0, f->layout.granules, &s);
}

void freelist_init(struct freelist *f, const struct freelist_layout *layout, const struct freelist_tables *tables,
                   uint32_t nodes_ready, uint32_t leaves_ready, uint32_t serial) {
    memset(f, 0, sizeof *f);
    f->layout = *layout;
    f->table = *tables;
    f->nodes_ready = nodes_ready;
    f->leaves_ready = leaves_ready;
    f->leaves_used = 1;
    f->leaves_free = leaves_ready - 1;
    f->serial = serial;
    one_range(f);
}

void freelist_ready(struct freelist *f, uint32_t nodes, uint32_t leaves) {
    f->nodes_free += nodes - f->nodes_ready;
    f->leaves_free += leaves - f->leaves_ready;
    f->nodes_ready = nodes;
    f->leaves_ready = leaves;
}

void freelist_reset(struct freelist *f) {
    for (uint32_t id = f->first; id; id = node_at(f, id)->next) {
        if (!is_free(node_at(f, id))) map_remove(f, node_at(f, id)->offset);
    }
    one_range(f);
}
