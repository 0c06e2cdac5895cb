#include "memory/commit.h"
#include "sys/residency.h"
#include "sys/thread.h"

#include <errno.h>
#include <string.h>

#include "memory/explain.h"
#include "memory/mlockall.h"
#include "sys/bitmap.h"

/* --- begin -------------------------------------------------------------------------------------------------------- */

/* Under the lock: which pages of its range a commit has to populate, as things are. */
typedef enum commit_pages (*commit_look)(const struct commit *c);

/* Waits for operations in the way, and looks again after each. 0: it has begun, or (c->pages: NOTHING) need not. */
static int commit_begin(struct commit *c, commit_look look) {
    struct reservation *r = c->r;
    uint64_t asked = 0;
    int rc = 0;
    mutex_lock(&r->lock);
    while (rc == 0) {
        c->step = REFUSED;
        rc = r->refuse;
        if (rc) break;
        c->pages = look(c);
        if (c->pages == NOTHING) break;
        bool releases_only = c->pages == UNLESS_RELEASED;
        const struct reservation_op *other = op_in_the_way(r, c->op.first, c->op.end, releases_only);
        if (!other && releases_only) c->pages = NOTHING;
        if (!other) break;
        c->step = WAIT;
        rc = op_wait_for(r, other, c->progress, c->progress_arg, &asked);
    }
    if (rc == 0 && c->pages != NOTHING) {
        if (c->pages == COMMITTED) op_clip(r, &c->op);
        op_begin(r, &c->op);
        c->epoch = r->shared_epoch;
    }
    mutex_unlock(&r->lock);
    return rc;
}

/* --- populate ----------------------------------------------------------------------------------------------------- */

static const uint64_t *map_of(const struct commit *c) { return c->write ? c->r->writable : c->r->present; }

static void plan(struct commit *c) {
    struct reservation *r = c->r;
    const struct backing_kind *kind = r->backing.kind;
    c->preparation = (struct preparation){.base = r->base,
                                          .backing = &r->backing,
                                          .write = c->write,
                                          .page_shift = r->page_shift,
                                          .any_made = &r->any_made};
    c->populate = (struct populate){.features = r->features,
                                    .preflight = &r->preflight,
                                    .threads = c->threads,
                                    .write = c->write,
                                    .touchable = kind->touchable,
                                    .page = r->backing.page,
                                    .costs = pages_cost(r, c->write),
                                    .preparation = r->backing.mapping.fd >= 0 ? &c->preparation : NULL,
                                    .progress = c->progress,
                                    .progress_arg = c->progress_arg,
                                    .report = {.available = UINT64_MAX},
                                    .fork_generation = &fork_generation};
}

/* Bytes of the present pages of the range that a fork has made copy-on-write, and the child still has: to have them
 * writable takes as much again. */
static int shared_by_fork(const struct commit *c, uint64_t *out) {
    const struct reservation *r = c->r;
    int rc = 0;
    *out = 0;
    if (c->pages == ABSENT || r->backing.kind->shared) return 0; /* not asked for, or one memory for both */
    for (uint64_t from = c->op.first, start; rc == 0 && bit_next_run(r->present, true, &from, c->op.end, &start);)
        rc = os_mapped_by_others(at_page(r, start), bytes_of(r, from - start), out);
    return rc;
}

/* Nothing is begun that is known to be too much: for the machine or the cgroup, or for what the backing itself has left.
 * `absent`: bytes of which the backing has nothing yet. */
static int preflight(struct commit *c, uint64_t bytes, uint64_t absent) {
    struct populate *p = &c->populate;
    uint64_t want = p->costs && bytes > UINT64_MAX / p->costs ? bytes : bytes * p->costs;
    c->step = PREFLIGHT;
    int rc = want ? preflight_whole(&c->r->preflight, want, &p->promised, &p->report) : 0;
    if (rc == 0) return backing_preflight(&c->r->backing, absent, &p->report);
    if (rc != -ENOMEM) p->report.available = UINT64_MAX; /* it could not be read */
    if (p->report.available != UINT64_MAX) p->report.available /= p->costs;
    return rc;
}

static int look_ahead(struct commit *c) {
    const struct reservation *r = c->r;
    struct populate *p = &c->populate;
    uint64_t first = c->op.first, end = c->op.end, shared;
    c->step = PREFLIGHT;
    int rc = shared_by_fork(c, &shared);
    if (rc) return rc;
    if (c->pages == COMMITTED) {
        rc = preflight(c, shared, 0);
        if (shared == 0) p->costs = 0; /* all of it is there, and the process's own */
        return rc;
    }
    uint64_t lacking = bytes_of(r, end - first - bit_count(map_of(c), first, end));
    uint64_t absent = bytes_of(r, end - first - bit_count(r->present, first, end));
    p->total = c->pages == ALL ? bytes_of(r, end - first) : lacking;
    return preflight(c, lacking + shared, absent);
}

static int keep_peers_out(struct commit *c) {
    struct reservation *r = c->r;
    c->step = PEERS;
    int rc = op_lock_peers(r, &c->op, c->progress, c->progress_arg);
    if (rc) return rc;
    if (!c->op.alone && r->backing.kind->pool) c->op.allocated = backing_allocated(&r->backing);
    /* Pages are this commit's own only where peers are kept out and cannot take them for theirs. */
    if (c->op.locked && !c->op.alone && r->backing.ours) c->preparation.made = r->made;
    return 0;
}

/* The next run of pages to be populated: [*first, *from). */
static bool next_run(const struct commit *c, uint64_t *from, uint64_t *first) {
    if (c->pages != ALL) return bit_next_run(map_of(c), c->pages == COMMITTED, from, c->op.end, first);
    *first = *from;
    *from = c->op.end;
    return *first < *from;
}

static int populate_run(struct commit *c, uint64_t first, uint64_t end) {
    struct reservation *r = c->r;
    int rc = 0;
    if (r->lazy && c->pages != COMMITTED) {
        c->step = PROTECT;
        rc = os_make_accessible(at_page(r, first), bytes_of(r, end - first));
        if (rc) return rc;
    }
    c->step = MLOCK; /* first: it is refused at once, or not at all */
    rc = pages_lock(r, first, end);
    if (rc) return rc;
    c->step = POPULATE;
    /* What is there already may have gone bad meanwhile: then a touch is a signal, and the call an answer. */
    c->populate.fresh = c->pages == ABSENT;
    return populate_range(&c->populate, at_page(r, first), bytes_of(r, end - first));
}

/* Whoever locked or unlocked all memory meanwhile found nothing here yet. */
static int lock_again(struct commit *c) {
    int rc = 0;
    while (rc == 0 && c->op.mlockall_seen != mlockall_generation()) {
        c->op.mlockall_seen = mlockall_generation();
        c->step = MLOCK;
        rc = pages_lock(c->r, c->op.first, c->op.end);
    }
    return rc;
}

static int commit_populate(struct commit *c) {
    int rc = look_ahead(c);
    if (rc == 0) rc = keep_peers_out(c);
    if (rc) return rc;
    for (uint64_t from = c->op.first, start; rc == 0 && next_run(c, &from, &start);) rc = populate_run(c, start, from);
    if (c->pages == COMMITTED) return rc; /* nothing was absent, so there is nothing to roll back */
    if (rc == 0) rc = lock_again(c);
    uint64_t total = c->populate.total;
    if (rc == 0 && c->progress && total) rc = c->progress(c->progress_arg, total, total);
    /* First of all: in a cgroup without OOM killer every fault of this process hangs until memory is free again. */
    if (rc) commit_roll_back(c->r, &c->op);
    return rc;
}

/* --- end ---------------------------------------------------------------------------------------------------------- */

/* The ledger of what was populated, under the lock. */
static uint64_t book(struct commit *c) {
    struct reservation *r = c->r;
    uint64_t first = c->op.first, end = c->op.end;
    if (c->pages == COMMITTED) {
        if (first == 0 && end >= r->present_end) r->private_epoch = c->epoch;
        return 0;
    }
    uint64_t added = bit_fill(r->present, first, end, true);
    if (c->write) (void)bit_fill(r->writable, first, end, true);
    r->committed += added;
    if (r->committed > r->peak) r->peak = r->committed;
    /* After a fork pages are private again only once everything committed was populated in one go. */
    if (c->pages == ALL && r->committed == end - first) r->private_epoch = c->epoch;
    if (end > r->present_end) r->present_end = end;
    r->commits++;
    return bytes_of(r, added);
}

/* rc: of what it has come to. *newly: bytes that were absent. */
static int commit_end(struct commit *c, int rc, uint64_t began, uint64_t *newly, struct arena_error *error) {
    struct reservation *r = c->r;
    commit_forget_made(r, &c->op);
    op_unlock_peers(r, &c->op);
    if (c->populate.promised) preflight_keep_promise(c->populate.promised);
    mutex_lock(&r->lock);
    *newly = rc ? 0 : book(c);
    pages_catch_up_with_mlockall(r, &c->op);
    if (rc == 0 && c->pages != COMMITTED) r->commit_ns += os_now_ns() - began;
    op_end(r, &c->op);
    return rc ? commit_explain(c, rc, error) : 0;
}

static void end_with_the_thread(void *arg) {
    struct commit *c = arg;
    uint64_t newly;
    if (c->step > PEERS && c->pages != COMMITTED) commit_roll_back(c->r, &c->op);
    (void)commit_end(c, -ECANCELED, 0, &newly, NULL);
}

/* Does a part of a commit. In `progress` the interpreter, at its end, ends threads that wait for it (pthread_exit): the
 * commit is ended before the stack goes on which it lies, for others go by it. */
static int carry_out(struct commit *c, int (*part)(struct commit *c)) {
    int rc;
    pthread_cleanup_push(end_with_the_thread, c);
    rc = part(c);
    pthread_cleanup_pop(0);
    return rc;
}

/* --- the callers -------------------------------------------------------------------------------------------------- */

static int range_of(struct commit *c) {
    c->step = RANGE;
    return reservation_pages_of(c->r, c->offset, c->bytes, &c->op.first, &c->op.end) ? 0 : -EINVAL;
}

static enum commit_pages what_is_missing(const struct commit *c) {
    const struct reservation *r = c->r;
    bool copy_on_write = (c->write || r->backing.kind->shared) && r->shared_epoch != r->private_epoch;
    if (copy_on_write) return ALL;
    return bit_all(map_of(c), c->op.first, c->op.end) ? UNLESS_RELEASED : ABSENT;
}

int reservation_commit(reservation *r, uint64_t offset, uint64_t bytes, bool write, unsigned threads,
                       arena_progress progress, void *arg, uint64_t *newly, struct arena_error *error) {
    struct commit c = {.r = r,
                       .offset = offset,
                       .bytes = bytes,
                       .write = write,
                       .threads = threads,
                       .progress = progress,
                       .progress_arg = arg};
    uint64_t none;
    if (!newly) newly = &none;
    *newly = 0;
    int rc = range_of(&c);
    if (rc == 0 && write && r->backing.mapping.readonly) {
        c.step = READONLY;
        rc = -EACCES;
    }
    if (rc == 0) rc = commit_begin(&c, what_is_missing);
    if (rc) return commit_explain(&c, rc, error);
    if (c.pages == NOTHING) return 0;
    uint64_t began = os_now_ns();
    plan(&c);
    rc = carry_out(&c, commit_populate);
    return commit_end(&c, rc, began, newly, error);
}

static enum commit_pages what_a_fork_has_shared(const struct commit *c) {
    return c->r->shared_epoch == c->r->private_epoch ? NOTHING : COMMITTED;
}

int reservation_repopulate(reservation *r, uint64_t offset, uint64_t bytes, unsigned threads, arena_progress progress,
                           void *arg, struct arena_error *error) {
    struct commit c = {.r = r,
                       .offset = offset,
                       .bytes = bytes,
                       .write = true,
                       .threads = threads,
                       .progress = progress,
                       .progress_arg = arg};
    uint64_t none;
    int rc = range_of(&c);
    if (rc == 0) rc = commit_begin(&c, what_a_fork_has_shared);
    if (rc) return commit_explain(&c, rc, error);
    if (c.pages == NOTHING) return 0;
    plan(&c);
    c.populate.total = bytes_of(r, bit_count(r->writable, c.op.first, c.op.end));
    rc = carry_out(&c, commit_populate);
    return commit_end(&c, rc, 0, &none, error);
}

static enum commit_pages what_is_committed(const struct commit *c) {
    (void)c;
    return COMMITTED;
}

/* What is committed for reading only: the rest of the present pages. */
static int populate_readable(struct commit *c) {
    struct reservation *r = c->r;
    if (c->populate.promised) preflight_keep_promise(c->populate.promised); /* that was for what is written */
    c->populate.promised = 0;
    c->populate.costs = pages_cost(r, false);
    c->populate.write = c->preparation.write = false;
    c->step = POPULATE_READ;
    for (uint64_t from = c->op.first, start; bit_next_run(r->present, true, &from, c->op.end, &start);) {
        for (uint64_t at = start, first; bit_next_run(r->writable, false, &at, from, &first);) {
            int rc = populate_range(&c->populate, at_page(r, first), bytes_of(r, at - first));
            if (rc) return rc;
        }
    }
    return 0;
}

int reservation_verify(reservation *r, uint64_t offset, uint64_t bytes, arena_progress progress, void *arg,
                       struct arena_error *error) {
    struct commit c = {
        .r = r, .offset = offset, .bytes = bytes, .write = true, .progress = progress, .progress_arg = arg};
    uint64_t none;
    int rc = range_of(&c);
    if (rc == 0) rc = commit_begin(&c, what_is_committed);
    if (rc) return commit_explain(&c, rc, error);
    plan(&c);
    c.populate.total = bytes_of(r, bit_count(r->present, c.op.first, c.op.end));
    rc = carry_out(&c, commit_populate);
    if (rc == 0) rc = carry_out(&c, populate_readable);
    return commit_end(&c, rc, 0, &none, error);
}

int reservation_preflight(struct reservation *r, uint64_t offset, uint64_t bytes, struct arena_error *error) {
    struct commit c = {.r = r, .offset = offset, .bytes = bytes, .write = true};
    int rc = range_of(&c);
    plan(&c);
    c.populate.total = bytes;
    if (rc == 0) rc = preflight(&c, bytes, bytes);
    if (c.populate.promised) preflight_keep_promise(c.populate.promised);
    return rc ? commit_explain(&c, rc, error) : 0;
}
