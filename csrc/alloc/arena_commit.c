/* Ranges of an arena: found in the index, which is extended where that lacks something, and committed. */
#include "alloc/arena_private.h"
#include "sys/list.h"

static bool is_present(struct arena *a, uint64_t first, uint64_t count) {
    return reservation_is_committed(&a->reservation, first << a->chunk_shift, count << a->chunk_shift,
                                    !a->read_only_populate);
}

void arena_resync(struct arena *a, uint64_t first, uint64_t count, uint64_t near) {
    struct freelist *f = &a->index.list;
    uint64_t end = first + count;
    if (is_present(a, first, count)) {
        freelist_commit(f, first, count, near);
        return;
    }
    while (first < end) {
        uint64_t run = 0;
        while (first + run < end && is_present(a, first + run, 1)) run++;
        if (run) freelist_commit(f, first, run, near);
        first += run + 1; /* and the one that is absent */
    }
}

int arena_commit_range(struct arena *a, const struct freelist_block *b, uint64_t had, const struct commit_control *how,
                       uint64_t *dirty, struct arena_error *error) {
    uint64_t mask = ((uint64_t)1 << a->chunk_shift) - 1;
    uint64_t start = granule_bytes(b->offset) & ~mask, end = (granule_bytes(b->offset + b->size) + mask) & ~mask;
    uint64_t newly = 0, granules = granules_of(end - start);
    uint64_t absent = granule_bytes(granules - freelist_committed_in(&a->index.list, granules_of(start), granules));
    struct arena_pending pending = {
        .handle = b->handle, .first = start >> a->chunk_shift, .count = (end - start) >> a->chunk_shift, .had = had};
    arena_pending_begin(a, &pending);
    mutex_unlock(&a->lock);
    int rc = reservation_commit(&a->reservation, start, end - start, !a->read_only_populate, how->threads,
                                how->progress, how->arg, &newly, error);
    mutex_lock(&a->lock);
    LIST_REMOVE(a->pending, &pending);
    if (rc) return rc;
    arena_resync(a, pending.first, pending.count, b->handle);
    if (newly == end - start && reservation_fresh_is_zero(&a->reservation))
        *dirty = 0;
    else if (newly != absent) /* there was more than the index knew of: a release has failed meanwhile */
        *dirty = granule_bytes(b->size);
    return 0;
}

/* --- find -------------------------------------------------------------------------------------------------------------- */

int arena_extend_index(struct arena *a, int lacks, const struct freelist_block *place, const struct commit_control *how,
                       struct arena_error *error) {
    int rc = lacks;
    if (lacks == -EAGAIN) {
        rc = index_ensure(&a->index, 4, 2, how->progress, how->arg);
    } else if (lacks == -ENODATA) {
        mutex_lock(&a->lock);
        uint64_t absent = granule_bytes(place->size -
                                        freelist_committed_in(&a->index.list, place->offset, place->size));
        mutex_unlock(&a->lock);
        /* The index for memory that cannot be had is not populated. */
        if (!a->read_only_populate) {
            rc = reservation_preflight(&a->reservation, granule_bytes(place->offset), absent, error);
            if (rc) return rc;
        }
        rc = index_ensure_place(&a->index, place, how->progress, how->arg);
    }
    return rc ? arena_explain(error, rc, "populating the index", granule_bytes(place->size), UINT64_MAX) : 0;
}

/* Under the lock, which is dropped: there is no such range, or no room in the index for it. */
static int explain_full(struct arena *a, const struct arena_request *q, int rc, struct arena_error *error) {
    bool grows = !(q->flags & ARENA_NO_GROW);
    struct freelist_stats s = {0};
    if (error && rc == -ENOSPC) freelist_stats(&a->index.list, &s);
    mutex_unlock(&a->lock);
    if (rc == -ENOSPC) {
        arena_explain(error, rc, "alloc", q->bytes, granule_bytes(grows ? s.largest_free : s.largest_committed));
        if (error) error->committed = granule_bytes(s.committed);
    } else if (rc == -EAGAIN) {
        rc = grows ? arena_explain(error, -ENOMEM, "populating the index", q->bytes, UINT64_MAX)
                   : arena_explain(error, -ENOSPC, "index", q->bytes, UINT64_MAX);
    } else {
        arena_explain(error, rc, "alloc", q->bytes, UINT64_MAX);
    }
    return rc;
}

static int search(struct arena *a, const struct arena_request *q, struct freelist_block *b) {
    if (q->hold) return freelist_hold(&a->index.list, granules_of(q->bytes), b);
    return freelist_alloc(&a->index.list, granules_of(q->bytes), align_granules(q->align),
                          q->flags & ARENA_NO_GROW ? FREELIST_COMMITTED_ONLY : 0, b);
}

int arena_find_range(struct arena *a, const struct arena_request *q, const struct commit_control *how,
                     struct freelist_block *b, struct arena_error *error) {
    bool grows = !(q->flags & ARENA_NO_GROW);
    for (;;) {
        mutex_lock(&a->lock);
        int rc = arena_refuses(a), room = grows ? index_room(&a->index) : 0;
        if (rc == 0 && room) { /* before the search, which it would end */
            mutex_unlock(&a->lock);
            rc = arena_extend_index(a, room, &(struct freelist_block){.size = granules_of(q->bytes)}, how, error);
            if (rc) return rc;
            continue;
        }
        if (rc == 0) rc = search(a, q, b);
        if (rc == -ENODATA) {
            struct freelist_block place = *b;
            mutex_unlock(&a->lock);
            rc = arena_extend_index(a, rc, &place, how, error);
            if (rc) return rc;
            mutex_lock(&a->lock);
            rc = arena_refuses(a);
            if (rc == 0) rc = freelist_take(&a->index.list, &place, b);
            if (rc == -EAGAIN) { /* another was faster */
                mutex_unlock(&a->lock);
                continue;
            }
        }
        return rc ? explain_full(a, q, rc, error) : 0;
    }
}
