/* How blocks end: free, retention and decay, trim, reset; and the mapping, when the last of a closed arena goes. */
#include <errno.h>

#include "alloc/arena_internal.h"

/* Under the lock: is nobody left who could use the memory of a closed arena? */
static bool is_over(struct arena *a) {
    if (a->refuse != -ESHUTDOWN || a->unmapped || a->index.blocks || a->pins) return false;
    return !a->pending && !reservation_busy(&a->reservation); /* a resize, a trim: they ask again at their end */
}

void arena_unlock(struct arena *a) {
    bool over = is_over(a);
    if (over) a->unmapped = true;
    mutex_unlock(&a->lock);
    if (over) (void)reservation_close(&a->reservation);
}

/* --- free, retention, release ------------------------------------------------------------------------------------------- */

/* Under the lock: bytes of free memory that are to be released now. */
static uint64_t excess(const struct arena *a, uint64_t free_committed) {
    uint64_t keep = a->retain > a->warmed ? a->retain : a->warmed;
    return free_committed > keep ? free_committed - keep : 0;
}

/* Memory is due when it was free during the whole of the last decay time: the low-water mark of a window. */
static bool retention(struct arena *a, uint64_t now) {
    uint64_t chunk = (uint64_t)1 << a->chunk_shift, free_committed = bytes_of(a->index.free_committed);
    if (a->decay_ns == 0) {
        a->purgeable = excess(a, free_committed);
    } else if (now >= a->window_end) {
        a->purgeable = a->window_end ? excess(a, bytes_of(a->low_water)) : 0;
        a->low_water = a->index.free_committed;
        a->window_end = a->decay_ns < UINT64_MAX - now ? now + a->decay_ns : UINT64_MAX;
    }
    return a->purgeable >= chunk;
}

static uint64_t clock_of(struct arena *a) { return a->decay_ns && a->retain != UINT64_MAX ? a->now_ns(a->now_arg) : 0; }

/* The lock is held on entry and dropped on return. */
static int free_deferred(struct arena *a, uint64_t handle, uint64_t now, bool pin, bool adapter, bool *due) {
    int rc = freelist_free(&a->index, handle);
    *due = false;
    if (rc == 0) {
        a->pins += pin;
        a->adapter_blocks -= adapter;
        if (a->retain != UINT64_MAX) *due = retention(a, now) || is_over(a);
    }
    mutex_unlock(&a->lock);
    return rc;
}

int arena_free_deferred(arena *a, uint64_t handle, bool *due) {
    uint64_t now = clock_of(a);
    mutex_lock(&a->lock);
    return free_deferred(a, handle, now, false, false, due);
}

int arena_free_deferred_pinned(arena *a, uint64_t handle, bool *due) {
    uint64_t now = clock_of(a);
    mutex_lock(&a->lock);
    return free_deferred(a, handle, now, true, false, due);
}

int arena_free_by_address(arena *a, const void *address, uint64_t handle, bool *due) {
    uint64_t now = clock_of(a);
    struct freelist_block b = {.handle = handle};
    mutex_lock(&a->lock);
    int rc = a->unmapped ? -ENODEV : handle ? 0 : arena_find_locked(a, address, &b);
    if (rc == 0) return free_deferred(a, b.handle, now, false, true, due);
    mutex_unlock(&a->lock);
    *due = false;
    return rc;
}

bool arena_unpin(arena *a) {
    mutex_lock(&a->lock);
    if (a->pins) a->pins--;
    bool due = is_over(a);
    mutex_unlock(&a->lock);
    return due;
}

/* Releases one run of at most `bytes`; the lock is held on entry and dropped on return. */
static int release_one(struct arena *a, uint64_t bytes, uint64_t *freed, struct arena_error *error) {
    struct freelist_span span;
    struct reservation_op op;
    *freed = 0;
    /* A freed block's object may still be read through. */
    bool closes = reservation_release_closes(&a->reservation);
    int rc = a->unmapped || a->owned_by_parent || (closes && a->pins) ? -ENOENT : 0;
    if (rc == 0) rc = freelist_pick(&a->index, bytes >> a->chunk_shift, &span);
    if (rc == 0) {
        rc = reservation_release_begin(&a->reservation, &op, span.first << a->chunk_shift, span.count << a->chunk_shift,
                                       false);
        if (rc) freelist_commit(&a->index, span.first, span.count, 0);
        if (rc && rc != -EAGAIN) arena_explain(error, rc, "release", bytes, UINT64_MAX);
    }
    if (rc) {
        arena_unlock(a);
        return rc;
    }
    uint64_t start = span.first << (a->chunk_shift - FREELIST_GRANULE_SHIFT);
    uint64_t end = (span.first + span.count) << (a->chunk_shift - FREELIST_GRANULE_SHIFT),
             never_used_from = a->never_used_from;
    if (a->never_used_from <= end && a->never_used_from > start) a->never_used_from = start;
    if (a->index.committed_granules == 0 && a->index.blocks == 0) a->never_used_from = 0;
    /* It is not free any more, and not due. */
    if (a->index.free_committed < a->low_water) a->low_water = a->index.free_committed;
    uint64_t gone = span.count << a->chunk_shift;
    a->purgeable = a->purgeable > gone ? a->purgeable - gone : 0;
    mutex_unlock(&a->lock);
    rc = reservation_release_finish(&a->reservation, &op, freed, NULL, NULL, error);
    if (rc) { /* some of it is there still, and not zero */
        mutex_lock(&a->lock);
        if (a->never_used_from < never_used_from) a->never_used_from = never_used_from;
        uint64_t chunk = (uint64_t)1 << a->chunk_shift;
        for (uint64_t c = span.first; c < span.first + span.count; c++) {
            if (reservation_is_committed(&a->reservation, c << a->chunk_shift, chunk, !a->read_only_populate))
                freelist_commit(&a->index, c, 1, 0);
        }
        mutex_unlock(&a->lock);
    }
    mutex_lock(&a->lock);
    arena_unlock(a);
    return rc;
}

int arena_purge(arena *a) {
    for (;;) {
        uint64_t freed, chunk = (uint64_t)1 << a->chunk_shift;
        mutex_lock(&a->lock);
        /* Some of what was due may be in use again. */
        uint64_t most = a->retain == UINT64_MAX ? 0 : excess(a, bytes_of(a->index.free_committed));
        if (a->decay_ns == 0 || a->purgeable > most) a->purgeable = most;
        uint64_t due = a->purgeable;
        if (due < chunk || is_over(a)) {
            arena_unlock(a);
            return 0;
        }
        int rc = release_one(a, due, &freed, NULL);
        if (rc) return rc == -ENOENT || rc == -EAGAIN ? 0 : rc;
    }
}

int arena_free(arena *a, uint64_t handle) {
    bool due;
    int rc = arena_free_deferred(a, handle, &due);
    if (rc == 0 && due) (void)arena_purge(a); /* the block is free either way */
    return rc;
}

int arena_release_free(struct arena *a, uint64_t keep, uint64_t *freed, struct arena_error *error) {
    uint64_t part;
    *freed = 0;
    for (;;) {
        mutex_lock(&a->lock);
        uint64_t have = bytes_of(a->index.free_committed);
        if (have <= keep || have - keep < (uint64_t)1 << a->chunk_shift) {
            mutex_unlock(&a->lock);
            return 0;
        }
        int rc = release_one(a, have - keep, &part, error);
        *freed += part;
        if (rc) return rc == -ENOENT || rc == -EAGAIN ? 0 : rc;
    }
}

int arena_trim(arena *a, uint64_t keep, uint64_t *freed, struct arena_error *error) {
    uint64_t unused;
    if (!freed) freed = &unused;
    mutex_lock(&a->lock);
    a->warmed = 0;
    mutex_unlock(&a->lock);
    return arena_release_free(a, keep, freed, error);
}

static int reset(struct arena *a, bool pin) {
    uint64_t now = clock_of(a);
    mutex_lock(&a->lock);
    /* An adapter's blocks have no object that could be told. */
    if (a->pending || a->adapter_blocks) {
        mutex_unlock(&a->lock);
        return -EBUSY;
    }
    if (pin) a->pins += a->index.blocks;
    freelist_reset(&a->index);
    __atomic_fetch_add(&a->epoch, 1, __ATOMIC_RELEASE);
    bool due = a->retain != UINT64_MAX && retention(a, now);
    arena_unlock(a);
    if (due) (void)arena_purge(a);
    return 0;
}

int arena_reset(arena *a) { return reset(a, false); }
int arena_reset_pinned(arena *a) { return reset(a, true); }
