/* Blocks: they are found in the index, committed where they are not, resized in place, and freed. */
#include "alloc/arena_private.h"
#include "sys/list.h"

/* --- from what is committed --------------------------------------------------------------------------------------------- */

static void note_use(struct arena *a, const struct freelist_block *b) {
    struct freelist *f = &a->index.list;
    if (f->live > a->peak_live) a->peak_live = f->live;
    retention_note(&a->retention, bytes_of(f->free_committed));
    uint64_t end = b->offset + b->size;
    if (end > a->never_used_from) a->never_used_from = end;
}

/* How much of a block, from its start, may hold old bytes, given where never used memory began before it. */
static uint64_t dirty_part(const struct arena *a, uint64_t never_used_from, const struct freelist_block *b) {
    uint64_t n = never_used_from > b->offset ? never_used_from - b->offset : 0;
    /* Asked last, for memory that is used again is the common case. */
    return bytes_of(n < b->size && reservation_fresh_is_zero(&a->reservation) ? n : b->size);
}

/* The block was never handed out: what was never used of it still is. */
static void undo_use(struct arena *a, uint64_t offset, uint64_t size, uint64_t dirty) {
    if (a->never_used_from == offset + size) a->never_used_from = offset + granules_of(dirty);
}

/* In granules; 0, which the index refuses, for what is no power of two. */
static uint64_t align_granules(uint64_t align) {
    if (align & (align - 1)) return 0;
    return align > FREELIST_GRANULE ? align >> FREELIST_GRANULE_SHIFT : 1;
}

static inline int alloc_committed(struct arena *a, uint64_t bytes, uint64_t align, bool adapter,
                                  struct arena_block *out) {
    struct freelist_block b;
    uint64_t want = granules_of(bytes), step = align_granules(align);
    mutex_lock(&a->lock);
    int rc = arena_refuses(a);
    if (rc == 0) rc = freelist_alloc(&a->index.list, want, step, FREELIST_COMMITTED_ONLY, &b);
    if (rc) {
        mutex_unlock(&a->lock);
        return rc;
    }
    uint64_t never_used_from = a->never_used_from;
    note_use(a, &b);
    a->adapter_blocks += adapter;
    mutex_unlock(&a->lock);
    arena_describe(a, &b, out);
    out->dirty = dirty_part(a, never_used_from, &b);
    return 0;
}

int arena_alloc_committed(arena *a, uint64_t bytes, uint64_t align, struct arena_block *out) {
    return alloc_committed(a, bytes, align, false, out);
}

int arena_alloc_committed_adapter(struct arena *a, uint64_t bytes, struct arena_block *out) {
    return alloc_committed(a, bytes, FREELIST_GRANULE, true, out);
}

/* --- what is committed -------------------------------------------------------------------------------------------------- */

void arena_pending_begin(struct arena *a, struct arena_pending *p) {
    p->thread = pthread_self();
    LIST_PUSH(a->pending, p);
}

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
    uint64_t start = bytes_of(b->offset) & ~mask, end = (bytes_of(b->offset + b->size) + mask) & ~mask;
    uint64_t newly = 0, granules = granules_of(end - start);
    uint64_t absent = bytes_of(granules - freelist_committed_in(&a->index.list, granules_of(start), granules));
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
        *dirty = bytes_of(b->size);
    return 0;
}

/* --- alloc -------------------------------------------------------------------------------------------------------------- */

/* Outside the lock: extends the index by what it said that it lacks, for a block at this place. */
static int extend_index(struct arena *a, int lacks, const struct freelist_block *place,
                        const struct commit_control *how, struct arena_error *error) {
    int rc = lacks;
    if (lacks == -EAGAIN) {
        rc = index_ensure(&a->index, 4, 2, how->progress, how->arg);
    } else if (lacks == -ENODATA) {
        mutex_lock(&a->lock);
        uint64_t absent = bytes_of(place->size - freelist_committed_in(&a->index.list, place->offset, place->size));
        mutex_unlock(&a->lock);
        /* The index for memory that cannot be had is not populated. */
        if (!a->read_only_populate) {
            rc = reservation_preflight(&a->reservation, bytes_of(place->offset), absent, error);
            if (rc) return rc;
        }
        rc = index_ensure_place(&a->index, place, how->progress, how->arg);
    }
    return rc ? arena_explain(error, rc, "populating the index", bytes_of(place->size), UINT64_MAX) : 0;
}

/* Under the lock, which is dropped: there is no such range, or no room in the index for it. */
static int explain_full(struct arena *a, const struct arena_request *q, int rc, struct arena_error *error) {
    bool grows = !(q->flags & ARENA_NO_GROW);
    struct freelist_stats s = {0};
    if (error && rc == -ENOSPC) freelist_stats(&a->index.list, &s);
    mutex_unlock(&a->lock);
    if (rc == -ENOSPC) {
        arena_explain(error, rc, "alloc", q->bytes, bytes_of(grows ? s.largest_free : s.largest_committed));
        if (error) error->committed = bytes_of(s.committed);
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
            rc = extend_index(a, room, &(struct freelist_block){.size = granules_of(q->bytes)}, how, error);
            if (rc) return rc;
            continue;
        }
        if (rc == 0) rc = search(a, q, b);
        if (rc == -ENODATA) {
            struct freelist_block place = *b;
            mutex_unlock(&a->lock);
            rc = extend_index(a, rc, &place, how, error);
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

/* The lock is held on success. *dirty: see struct arena_block. */
static int alloc_locked(struct arena *a, const struct arena_request *q, const struct commit_control *how,
                        struct freelist_block *b, uint64_t *dirty, struct arena_error *error) {
    int rc = arena_find_range(a, q, how, b, error);
    if (rc) return rc;
    uint64_t before = *dirty = dirty_part(a, a->never_used_from, b);
    note_use(a, b);
    if (b->committed) return 0;
    rc = arena_commit_range(a, b, 0, how, dirty, error);
    /* Somebody else's reset, or a fork of which this is the child, may have taken the block away meanwhile. */
    uint64_t offset = b->offset, size = b->size;
    if (rc == 0 && freelist_get(&a->index.list, b->handle, b) == 0) return 0;
    (void)freelist_free(&a->index.list, b->handle);
    undo_use(a, offset, size, before);
    arena_unlock(a);
    return rc ? rc : arena_explain(error, -ECANCELED, "reset", q->bytes, UINT64_MAX);
}

int arena_alloc(arena *a, uint64_t bytes, uint64_t align, unsigned flags, arena_progress progress, void *arg,
                struct arena_block *out, struct arena_error *error) {
    struct freelist_block b;
    struct commit_control how = {.threads = 0, .progress = progress, .arg = arg};
    struct arena_request q = {.bytes = bytes, .align = align, .flags = flags};
    uint64_t dirty;
    if (flags & ~(unsigned)(ARENA_ZERO | ARENA_NO_GROW | ARENA_ADAPTER))
        return arena_explain(error, -EINVAL, "flags", flags, UINT64_MAX);
    int rc = alloc_locked(a, &q, &how, &b, &dirty, error);
    if (rc) return rc;
    a->adapter_blocks += (flags & ARENA_ADAPTER) != 0;
    mutex_unlock(&a->lock);
    arena_describe(a, &b, out);
    out->dirty = dirty;
    if (flags & ARENA_ZERO) {
        arena_zero(out->address, out->dirty);
        out->dirty = 0;
    }
    return 0;
}

/* --- resize ------------------------------------------------------------------------------------------------------------- */

/* Under the lock: the block has its new size in the index, and gets the memory for it. *b: as it is afterwards. */
static int commit_resized(struct arena *a, struct freelist_block *b, uint64_t had, const struct commit_control *how,
                          uint64_t *dirty, struct arena_error *error) {
    struct freelist *f = &a->index.list;
    struct freelist_block wanted = *b;
    uint64_t before = *dirty = dirty_part(a, a->never_used_from, b);
    note_use(a, b);
    int rc = b->committed ? 0 : arena_commit_range(a, b, had, how, dirty, error);
    bool is_still = freelist_get(f, wanted.handle, b) == 0 && b->size == wanted.size;
    if (rc) {
        undo_use(a, wanted.offset, wanted.size, before);
        if (is_still) (void)freelist_resize(f, wanted.handle, had, 0, b);
    } else if (!is_still) { /* by another, meanwhile */
        rc = arena_explain(error, -ECANCELED, "resize", bytes_of(wanted.size), UINT64_MAX);
    }
    return rc;
}

int arena_resize(arena *a, uint64_t handle, uint64_t bytes, arena_progress progress, void *arg, struct arena_block *out,
                 struct arena_error *error) {
    struct freelist *f = &a->index.list;
    struct freelist_block b, old;
    struct commit_control how = {.threads = 0, .progress = progress, .arg = arg};
    uint64_t size = granules_of(bytes), dirty = 0;
    for (;;) {
        mutex_lock(&a->lock);
        int rc = freelist_get(f, handle, &old);
        /* In a fork's child the memory behind the block is the parent's to give out, or there is none. */
        if (rc == 0 && size > old.size) rc = a->forked;
        if (rc == 0) rc = freelist_resize(f, handle, size, 0, &b);
        if (rc == 0) {
            rc = commit_resized(a, &b, old.size, &how, &dirty, error);
            arena_unlock(a);
            arena_describe(a, &b, out);
            out->dirty = dirty;
            return rc;
        }
        if (rc == -EAGAIN) {
            rc = index_room(&a->index);
            if (rc == 0) rc = -EAGAIN;
            b = old;
        }
        mutex_unlock(&a->lock);
        if (rc != -EAGAIN && rc != -ENODATA && rc != -ENOMEM)
            return arena_explain(error, rc, "resize", bytes, UINT64_MAX);
        rc = extend_index(a, rc, &b, &how, error);
        if (rc) return rc;
    }
}

/* --- free --------------------------------------------------------------------------------------------------------------- */

/* The lock is held on entry and dropped on return. */
static inline int free_deferred(struct arena *a, uint64_t handle, uint64_t now, bool pin, bool adapter, bool *due) {
    int rc = freelist_free(&a->index.list, handle);
    *due = false;
    if (rc == 0) {
        a->pins += pin;
        a->adapter_blocks -= adapter;
        *due = arena_is_due(a, now) || arena_is_over(a);
    }
    mutex_unlock(&a->lock);
    return rc;
}

int arena_free_deferred(arena *a, uint64_t handle, bool *due) {
    uint64_t now = arena_clock(a);
    mutex_lock(&a->lock);
    return free_deferred(a, handle, now, false, false, due);
}

int arena_free_deferred_pinned(arena *a, uint64_t handle, bool *due) {
    uint64_t now = arena_clock(a);
    mutex_lock(&a->lock);
    return free_deferred(a, handle, now, true, false, due);
}

int arena_free_by_address(arena *a, const void *address, uint64_t handle, bool *due) {
    uint64_t now = arena_clock(a);
    struct freelist_block b = {.handle = handle};
    mutex_lock(&a->lock);
    int rc = arena_is_mapped(a) ? 0 : -ENODEV;
    if (rc == 0 && !handle) rc = arena_find_locked(a, address, &b);
    if (rc == 0) return free_deferred(a, b.handle, now, false, true, due);
    mutex_unlock(&a->lock);
    *due = false;
    return rc;
}

bool arena_unpin(arena *a) {
    mutex_lock(&a->lock);
    if (a->pins) a->pins--;
    bool due = arena_is_over(a);
    mutex_unlock(&a->lock);
    return due;
}

int arena_free(arena *a, uint64_t handle) {
    bool due;
    uint64_t now = arena_clock(a);
    mutex_lock(&a->lock);
    int rc = free_deferred(a, handle, now, false, false, &due);
    if (rc == 0 && due) (void)arena_purge(a); /* the block is free either way */
    return rc;
}
