/* freelist_shape.h: how a free range is committed, and what becomes of that when a block is cut out of it. Private to
 * the freelist's files. */
#ifndef ARENA_FREELIST_SHAPE_H
#define ARENA_FREELIST_SHAPE_H

#include "alloc/freelist_bins.h"

/* What goes into a side record, and the same for ranges that have none. */
struct shape {
    enum state state;
    uint64_t head, tail, inner, inner_at, inner_runs;
};

static inline uint64_t longest(const struct shape *s) {
    uint64_t n = s->head > s->tail ? s->head : s->tail;
    return n > s->inner ? n : s->inner;
}

static inline struct shape shape_of(const struct freelist *f, const struct freelist_node *n) {
    uint64_t size = size_of(n);
    switch (state_of(n)) {
        case COMMITTED: return (struct shape){COMMITTED, size, size, 0, 0, 0};
        case PARTLY_COMMITTED: {
            const struct freelist_side *s = side_of(f, n->offset);
            return (struct shape){PARTLY_COMMITTED, s->head, s->tail, s->inner, s->inner_at, s->inner_runs};
        }
        default: return (struct shape){UNCOMMITTED, 0, 0, 0, 0, 0};
    }
}

/* By the bits: for ranges that no cheaper way is known of. */
static inline struct shape shape_measure(const struct freelist *f, uint64_t offset, uint64_t size) {
    uint64_t end = offset + size, first = chunk_below(f, offset), last = chunk_above(f, end);
    unsigned shift = f->layout.chunk_shift;
    struct shape s = {UNCOMMITTED, 0, 0, 0, 0, 0};
    uint64_t at = chunk_next(f, first, last, false);
    if (at == last) return (struct shape){COMMITTED, size, size, 0, 0, 0};
    if (at > first) s.head = (at << shift) - offset;
    for (;;) {
        uint64_t start = chunk_next(f, at, last, true);
        if (start == last) break;
        at = chunk_next(f, start, last, false);
        if (at == last) {
            s.tail = end - (start << shift);
            break;
        }
        s.inner_runs++;
        if ((at - start) << shift > s.inner) {
            s.inner = (at - start) << shift;
            s.inner_at = start << shift;
        }
    }
    if (longest(&s)) s.state = PARTLY_COMMITTED;
    return s;
}

/* The shapes of what is left of a range on both sides when [at, at + size) goes. */
static inline void cut(const struct freelist *f, uint64_t offset, uint64_t all, const struct shape *s, uint64_t at,
                       uint64_t size, struct shape *left, struct shape *right) {
    uint64_t end = offset + all, left_size = at - offset, after = at + size, right_size = end - after;
    *left = *right = *s;
    if (s->state == COMMITTED || s->state == UNCOMMITTED) {
        if (s->state == COMMITTED) left->head = left->tail = left_size, right->head = right->tail = right_size;
        return;
    }
    if (left_size + size <= s->head) {
        *left = (struct shape){COMMITTED, left_size, left_size, 0, 0, 0};
        right->head -= left_size + size;
    } else if (right_size + size <= s->tail) {
        *right = (struct shape){COMMITTED, right_size, right_size, 0, 0, 0};
        left->tail -= right_size + size;
    } else if (s->inner_runs == 1 && at >= s->inner_at && after <= s->inner_at + s->inner) {
        left->tail = at - s->inner_at;
        right->head = s->inner_at + s->inner - after;
        left->inner = right->inner = left->inner_runs = right->inner_runs = 0;
    } else if (s->inner_runs == 0 && left_size == 0 && right_size > s->tail) {
        right->head = 0; /* it ends between head and tail, where nothing is committed */
    } else {
        if (left_size) *left = shape_measure(f, offset, left_size);
        if (right_size) *right = shape_measure(f, after, right_size);
        return;
    }
    if (left->state == PARTLY_COMMITTED && !longest(left)) left->state = UNCOMMITTED;
    if (right->state == PARTLY_COMMITTED && !longest(right)) right->state = UNCOMMITTED;
}

/* A free range becomes another, in freelist.c. Where its bins stay the same it stays in them. */
void freelist_range_change(struct freelist *f, uint32_t id, uint64_t offset, uint64_t size, const struct shape *s);

#endif
