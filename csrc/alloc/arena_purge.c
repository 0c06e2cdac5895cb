/* How much free memory an arena has: made present ahead (warm), given back (purge, trim), and all of it at once (reset). */
#include "alloc/arena_private.h"
#include "sys/list.h"
#include "sys/page.h"

/* --- release ------------------------------------------------------------------------------------------------------------ */

/* A run of free chunks on its way back to the machine. */
struct release {
    struct freelist_span span;
    struct reservation_op op;
    uint64_t never_used_from; /* before */
};

/* Under the lock: picks one run of at most `bytes`, which nobody can commit until release_do is over. */
static int release_pick(struct arena *a, uint64_t bytes, struct release *w, struct arena_error *error) {
    struct freelist *f = &a->index.list;
    if (!arena_is_mapped(a) || a->forked == -EXDEV) return -ENOENT;
    /* A freed block's object may still be read through. */
    if (a->pins && reservation_release_closes(&a->reservation)) return -ENOENT;
    int rc = freelist_pick(f, bytes >> a->chunk_shift, &w->span);
    if (rc) return rc == -ENOENT ? rc : arena_explain(error, rc, "release", bytes, UINT64_MAX);
    uint64_t first = w->span.first, count = w->span.count;
    rc = reservation_release_begin(&a->reservation, &w->op, first << a->chunk_shift, count << a->chunk_shift, false);
    if (rc) {
        freelist_unpick(f, &w->span);
        return rc == -EAGAIN ? rc : arena_explain(error, rc, "release", bytes, UINT64_MAX);
    }
    uint64_t start = granules_of(first << a->chunk_shift), end = granules_of((first + count) << a->chunk_shift);
    w->never_used_from = a->never_used_from;
    if (a->never_used_from <= end && a->never_used_from > start) a->never_used_from = start;
    if (f->committed_granules == 0 && f->blocks == 0) a->never_used_from = 0;
    retention_purged(&a->retention, count << a->chunk_shift, granule_bytes(f->free_committed));
    return 0;
}

/* Under the lock: some of it is there still, and not zero. */
static void release_failed(struct arena *a, const struct release *w) {
    if (a->never_used_from < w->never_used_from) a->never_used_from = w->never_used_from;
    arena_resync(a, w->span.first, w->span.count, 0);
}

/* Releases one run of at most `bytes`; the lock is held on entry and dropped on return. */
static int release_one(struct arena *a, uint64_t bytes, uint64_t *freed, struct arena_error *error) {
    struct release w;
    *freed = 0;
    int rc = release_pick(a, bytes, &w, error);
    if (rc == 0) {
        mutex_unlock(&a->lock);
        rc = reservation_release_finish(&a->reservation, &w.op, freed, NULL, NULL, error);
        mutex_lock(&a->lock);
        if (rc) release_failed(a, &w);
    }
    arena_unlock(a);
    return rc;
}

int arena_purge(arena *a) {
    uint64_t freed, chunk = (uint64_t)1 << a->chunk_shift;
    for (;;) {
        mutex_lock(&a->lock);
        uint64_t bytes = retention_to_purge(&a->retention, granule_bytes(a->index.list.free_committed));
        if (bytes < chunk || arena_is_over(a)) {
            arena_unlock(a);
            return 0;
        }
        int rc = release_one(a, bytes, &freed, NULL);
        if (rc) return rc == -ENOENT || rc == -EAGAIN ? 0 : rc;
    }
}

/* arena_trim, but what was warmed stays so. */
static int release_free(struct arena *a, uint64_t keep, uint64_t *freed, struct arena_error *error) {
    uint64_t part;
    *freed = 0;
    for (;;) {
        mutex_lock(&a->lock);
        uint64_t have = granule_bytes(a->index.list.free_committed);
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
    a->retention.warmed = 0;
    mutex_unlock(&a->lock);
    return release_free(a, keep, freed, error);
}

/* --- warm --------------------------------------------------------------------------------------------------------------- */

/* After a fork: what became copy-on-write is this process's own again. */
static int repopulate(struct arena *a, const struct commit_control *how, struct arena_error *error) {
    struct arena_pending here = {0}; /* keeps close() out */
    mutex_lock(&a->lock);
    int rc = arena_refuses(a);
    if (rc == 0) arena_pending_begin(a, &here);
    mutex_unlock(&a->lock);
    if (rc) return arena_explain(error, rc, "warm", 0, UINT64_MAX);
    rc = reservation_repopulate(&a->reservation, 0, granule_bytes(a->index.list.layout.granules), how->threads,
                                how->progress, how->arg, error);
    mutex_lock(&a->lock);
    LIST_REMOVE(a->pending, &here);
    arena_unlock(a);
    return rc;
}

/* The lock is held on success. */
static int warm_range(struct arena *a, uint64_t bytes, const struct commit_control *how, struct arena_error *error) {
    struct arena_request q = {.bytes = bytes, .align = FREELIST_GRANULE, .hold = true};
    struct freelist_block b;
    uint64_t unused;
    int rc = arena_find_range(a, &q, how, &b, error);
    if (rc || b.size == 0) return rc; /* nothing is lacking */
    if (!b.committed) rc = arena_commit_range(a, &b, 0, how, &unused, error);
    int gone = freelist_free(&a->index.list, b.handle);
    if (rc == 0 && gone == 0) return 0;
    arena_unlock(a);
    return rc ? rc : arena_explain(error, -ECANCELED, "reset", bytes, UINT64_MAX);
}

/* Under the lock: what the index needs for `blocks` more of any sizes, in the free memory that there is, in whichever order
 * they come and go: between any two blocks there may be a free range, and in each page a leaf. 0: for blocks of 4 KiB. */
static void index_needs(const struct freelist *f, uint64_t bytes, uint64_t blocks, uint64_t *nodes, uint64_t *leaves) {
    *nodes = bytes / OS_PAGE + 4;
    *leaves = 1;
    if (blocks == 0) return;
    uint64_t pages = f->free_committed / FREELIST_PAGE_GRANULES + 2 * (f->blocks + 1);
    *leaves = (blocks < pages ? blocks : pages) + 1;
    *nodes = blocks < UINT32_MAX ? 2 * blocks + f->blocks + 4 : UINT32_MAX; /* no index has as many */
}

int arena_warm(arena *a, uint64_t bytes, uint64_t blocks, unsigned threads, arena_progress progress, void *arg,
               struct arena_error *error) {
    struct commit_control how = {.threads = threads, .progress = progress, .arg = arg};
    uint64_t unused, nodes, leaves;
    mutex_lock(&a->lock);
    uint64_t free_before = granule_bytes(a->index.list.free_committed);
    mutex_unlock(&a->lock);
    int rc = repopulate(a, &how, error);
    if (rc == 0) rc = warm_range(a, bytes, &how, error);
    if (rc) return rc;
    uint64_t warmed_before = retention_warm(&a->retention, bytes);
    index_needs(&a->index.list, bytes, blocks, &nodes, &leaves);
    mutex_unlock(&a->lock);
    rc = index_ensure(&a->index, nodes, leaves, progress, arg);
    if (rc == 0) return 0;
    mutex_lock(&a->lock);
    retention_unwarm(&a->retention, bytes, warmed_before);
    mutex_unlock(&a->lock);
    (void)release_free(a, free_before, &unused, NULL);
    return arena_explain(error, rc, "populating the index", bytes, UINT64_MAX);
}

/* --- reset -------------------------------------------------------------------------------------------------------------- */

static int reset(struct arena *a, bool pin) {
    uint64_t now = arena_clock(a);
    mutex_lock(&a->lock);
    /* An adapter's blocks have no object that could be told. */
    if (a->pending || a->adapter_blocks) {
        mutex_unlock(&a->lock);
        return -EBUSY;
    }
    if (pin) a->pins += a->index.list.blocks;
    freelist_reset(&a->index.list);
    __atomic_fetch_add(&a->epoch, 1, __ATOMIC_RELEASE);
    bool due = arena_is_due(a, now);
    arena_unlock(a);
    if (due) (void)arena_purge(a);
    return 0;
}

int arena_reset(arena *a) { return reset(a, false); }
int arena_reset_pinned(arena *a) { return reset(a, true); }
