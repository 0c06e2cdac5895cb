/* Blocks: they are found in the index, committed where they are not, resized in place, and freed. */
#include "alloc/arena_private.h"
#include "sys/list.h"

/* --- from what is committed --------------------------------------------------------------------------------------------- */

static void note_use(struct arena *a, const struct freelist_block *b) {
    struct freelist *f = &a->index.list;
    if (f->live > a->peak_live) a->peak_live = f->live;
    retention_note(&a->retention, granule_bytes(f->free_committed));
    uint64_t end = b->offset + b->size;
    if (end > a->never_used_from) a->never_used_from = end;
}

/* How much of a block, from its start, may hold old bytes, given where never used memory began before it. */
static uint64_t dirty_part(const struct arena *a, uint64_t never_used_from, const struct freelist_block *b) {
    uint64_t n = never_used_from > b->offset ? never_used_from - b->offset : 0;
    /* Asked last, for memory that is used again is the common case. */
    return granule_bytes(n < b->size && reservation_fresh_is_zero(&a->reservation) ? n : b->size);
}

/* The block was never handed out: what was never used of it still is. */
static void undo_use(struct arena *a, uint64_t offset, uint64_t size, uint64_t dirty) {
    if (a->never_used_from == offset + size) a->never_used_from = offset + granules_of(dirty);
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

/* --- alloc -------------------------------------------------------------------------------------------------------------- */

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
        rc = arena_explain(error, -ECANCELED, "resize", granule_bytes(wanted.size), UINT64_MAX);
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
        rc = arena_extend_index(a, rc, &b, &how, error);
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
