#define _GNU_SOURCE
#include "reservation.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bitmap.h"
#include "list.h"
#include "populate.h"

#define RELEASE_STEP ((uint64_t)64 << 20) /* 4 ms of 4 KiB pages: for how long one call keeps the mmap_lock */
#define WAIT_NS 10000000u                 /* how often a waiter looks for signals */

static int explain(struct arena_error *e, int rc, const char *op, uint64_t offset, uint64_t requested) {
    if (e) {
        *e = (struct arena_error){
            .err = -rc, .op = op, .offset = offset, .requested = requested, .available = UINT64_MAX};
    }
    return rc;
}

static uint64_t bytes_of(const struct reservation *r, uint64_t pages) { return pages << r->page_shift; }
static char *at_page(const struct reservation *r, uint64_t page) { return r->base + bytes_of(r, page); }

/* The pages of a range, rounded outward. false: it is not in the reservation. */
static bool pages_of(const struct reservation *r, uint64_t offset, uint64_t bytes, uint64_t *first, uint64_t *end) {
    uint64_t size = bytes_of(r, r->pages), page = bytes_of(r, 1);
    if (offset > size || bytes > size - offset) return false;
    *first = offset >> r->page_shift;
    *end = bytes ? (offset + bytes + page - 1) >> r->page_shift : *first;
    return true;
}

/* --- creation --------------------------------------------------------------------------------------------------------- */

/* Advice that has to be there before the first page, and again after a range was mapped anew. */
static int advise(const struct reservation *r, void *at, uint64_t bytes) {
    /* A kernel without THP has no MADV_NOHUGEPAGE either, and needs none. */
    int rc = os_advise_huge(at, bytes, r->huge);
    if (rc && r->huge) return rc;
    if (!r->dump) (void)os_advise_dump(at, bytes, false);
    rc = os_advise_fork(at, bytes, r->fork);
    if (r->name) os_name(at, bytes, r->name);
    return rc;
}

static void watch_before(void *self) { reservation_before_fork(self); }
static void watch_parent(void *self) { reservation_after_fork_parent(self); }
static void watch_child(void *self) { reservation_after_fork_child(self); }

static int make_maps(struct reservation *r) {
    size_t words = (size_t)((r->pages + 63) / 64 + 511) & ~(size_t)511; /* whole 4 KiB each */
    void *maps;
    r->map_bytes = 2 * words * sizeof(uint64_t);
    int rc = os_reserve(r->map_bytes, OS_PAGE, &maps, &r->map_lazy);
    if (rc) return rc;
    if (r->map_lazy && (rc = os_open(maps, r->map_bytes)) != 0) {
        os_unmap(maps, r->map_bytes);
        return rc;
    }
    (void)os_advise_huge(maps, r->map_bytes, false);
    (void)os_advise_dump(maps, r->map_bytes, false);
    r->present = maps;
    r->writable = r->present + words;
    return 0;
}

int reservation_init(struct reservation *r, const struct reservation_config *c, bool watch, struct arena_error *error) {
    bool can = os_thp_allowed();
    if (c->size == 0) return explain(error, -EINVAL, "size", 0, 0);
    if (c->pages == ARENA_PAGES_THP && !can) return explain(error, -ENOTSUP, "transparent huge pages", 0, c->size);
    bool huge = c->pages == ARENA_PAGES_THP || (c->pages == ARENA_PAGES_AUTO && can && c->size >= OS_HUGE);
    uint64_t page = huge ? OS_HUGE : OS_PAGE, size = (c->size + page - 1) & ~(page - 1);
    if (size < c->size || size > (uint64_t)1 << 47) return explain(error, -ENOMEM, "mmap", 0, c->size);

    *r = (struct reservation){.huge = huge,
                              .page_shift = (unsigned)__builtin_ctzll(page),
                              .fork = (enum os_fork)c->fork,
                              .dump = c->dump,
                              .features = c->features ? c->features : os_features()};
    r->pages = size >> r->page_shift;
    preflight_init(&r->preflight, c->headroom);
    if (c->name && !(r->name = strdup(c->name))) return explain(error, -ENOMEM, "malloc", 0, c->size);
    void *base;
    int rc = os_reserve(size, OS_HUGE, &base, &r->lazy);
    if (rc) {
        free((char *)r->name);
        return explain(error, rc, "mmap", 0, size);
    }
    r->base = base;
    const char *op = "madvise";
    rc = advise(r, base, size);
    if (rc == 0) {
        op = "mmap of the page map";
        rc = make_maps(r);
    }
    if (rc) {
        os_unmap(base, size);
        free((char *)r->name);
        return explain(error, rc, op, 0, size);
    }
    if (watch) {
        r->watch = (struct fork_watch){watch_before, watch_parent, watch_child, r, NULL, NULL};
        forks_watch(&r->watch);
    }
    return 0;
}

bool reservation_busy(struct reservation *r) {
    lock_take(&r->lock);
    bool busy = r->ops != NULL;
    lock_drop(&r->lock);
    return busy;
}

int reservation_fini(struct reservation *r) {
    if (reservation_busy(r)) return -EBUSY;
    if (r->watch.self) forks_forget(&r->watch);
    uint64_t size = bytes_of(r, r->pages);
    if (!r->foreign) {
        /* Unmapping a present GiB of small pages holds the mmap_lock for 60 ms; giving it back first, in steps, does not. */
        for (uint64_t from = 0; !r->dropped && from < r->top;) {
            uint64_t start = bit_next(r->present, from, r->top, true), step = RELEASE_STEP >> r->page_shift;
            from = bit_next(r->present, start, start + step < r->top ? start + step : r->top, false);
            if (from > start) (void)os_release(at_page(r, start), bytes_of(r, from - start));
        }
        os_unmap(r->base, size);
    }
    os_unmap(r->present, r->map_bytes);
    free((char *)r->name);
    return 0;
}

int reservation_create(const struct reservation_config *config, reservation **out, struct arena_error *error) {
    struct reservation *r = malloc(sizeof *r);
    if (!r) return explain(error, -ENOMEM, "malloc", 0, config->size);
    int rc = reservation_init(r, config, true, error);
    if (rc)
        free(r);
    else
        *out = r;
    return rc;
}

int reservation_destroy(reservation *r) {
    int rc = reservation_fini(r);
    if (rc == 0) free(r);
    return rc;
}

void reservation_get(reservation *r, struct reservation_stats *out) {
    lock_take(&r->lock);
    *out = (struct reservation_stats){.size = bytes_of(r, r->pages),
                                      .page_size = bytes_of(r, 1),
                                      .committed = bytes_of(r, r->dropped ? 0 : r->committed),
                                      .peak_committed = bytes_of(r, r->peak),
                                      .commits = r->commits,
                                      .releases = r->releases,
                                      .commit_ns = r->commit_ns,
                                      .release_ns = r->release_ns,
                                      .address = (uintptr_t)r->base,
                                      .lazy = r->lazy,
                                      .dropped = r->dropped};
    lock_drop(&r->lock);
}

/* --- operations ------------------------------------------------------------------------------------------------------- */

static struct reservation_op *in_the_way(const struct reservation *r, uint64_t first, uint64_t end,
                                         bool releases_only) {
    for (struct reservation_op *op = r->ops; op; op = op->next) {
        if (op->first < end && first < op->end && (op->release || !releases_only)) return op;
    }
    return NULL;
}

static void op_begin(struct reservation *r, struct reservation_op *op) {
    op->thread = pthread_self();
    LIST_PUSH(r->ops, op);
}

static void op_remove(struct reservation *r, struct reservation_op *op) {
    LIST_REMOVE(r->ops, op);
    for (struct reservation_op *o = r->ops; o; o = o->next) {
        if (o->behind == op) o->behind = NULL;
    }
}

/* Ends the operation and drops the lock. */
static void op_end(struct reservation *r, struct reservation_op *op) {
    op_remove(r, op);
    __atomic_fetch_add(&r->turn, 1, __ATOMIC_RELEASE);
    bool wake = __atomic_load_n(&r->waiters, __ATOMIC_RELAXED) != 0;
    lock_drop(&r->lock);
    if (wake) os_wake_all(&r->turn);
}

/* What this thread, in a tick of its own operations, waits for. */
static void wait_behind(struct reservation *r, const struct reservation_op *other) {
    for (struct reservation_op *op = r->ops; op; op = op->next) {
        if (pthread_equal(op->thread, pthread_self())) op->behind = other;
    }
}

/* Waits, with the lock dropped meanwhile, until some operation ends or it is time to look for signals; *asked: when that was
 * last. -EDEADLK: it would wait for itself, at once or by way of others who wait in their ticks. */
static int wait_for(struct reservation *r, const struct reservation_op *other, arena_tick tick, void *arg,
                    uint64_t *asked) {
    for (const struct reservation_op *op = other; op; op = op->behind) {
        if (pthread_equal(op->thread, pthread_self())) return -EDEADLK;
    }
    wait_behind(r, other);
    uint32_t turn = __atomic_load_n(&r->turn, __ATOMIC_ACQUIRE);
    __atomic_fetch_add(&r->waiters, 1, __ATOMIC_RELAXED);
    lock_drop(&r->lock);
    if (*asked == 0) *asked = os_now_ns();
    os_wait(&r->turn, turn, WAIT_NS);
    __atomic_fetch_sub(&r->waiters, 1, __ATOMIC_RELAXED);
    uint64_t now = os_now_ns();
    int rc = 0;
    if (tick && now - *asked >= WAIT_NS) {
        *asked = now;
        rc = tick(arg, 0, 0);
    }
    lock_take(&r->lock);
    wait_behind(r, NULL);
    return rc;
}

/* What was never committed is not walked over: 64 TiB of holes cost nothing. */
static void clip(const struct reservation *r, struct reservation_op *op) {
    if (op->end > r->top) op->end = r->top > op->first ? r->top : op->first;
}

static bool covers(const uint64_t *map, uint64_t first, uint64_t end) {
    return bit_next(map, first, end, false) == end;
}

/* Under the lock. */
static bool all_committed(const struct reservation *r, uint64_t first, uint64_t end, bool write) {
    return !r->dropped && covers(write ? r->writable : r->present, first, end);
}

static bool being_released(const struct reservation *r, uint64_t first, uint64_t end) {
    return in_the_way(r, first, end, true) != NULL;
}

bool reservation_is_committed(reservation *r, uint64_t offset, uint64_t bytes, bool write) {
    uint64_t first, end;
    if (!pages_of(r, offset, bytes, &first, &end)) return false;
    lock_take(&r->lock);
    bool yes = all_committed(r, first, end, write) && !being_released(r, first, end);
    lock_drop(&r->lock);
    return yes;
}

static int look(struct reservation *r, struct reservation_view *v, uint64_t offset, uint64_t bytes, bool write,
                bool passing) {
    *v = (struct reservation_view){.passing = passing, .thread = pthread_self()};
    if (!pages_of(r, offset, bytes, &v->first, &v->end)) return -EINVAL;
    lock_take(&r->lock);
    int rc = being_released(r, v->first, v->end) ? -EBUSY : all_committed(r, v->first, v->end, write) ? 0 : -ENODATA;
    if (rc == 0) LIST_PUSH(r->views, v);
    lock_drop(&r->lock);
    return rc;
}

int reservation_look(struct reservation *r, struct reservation_view *v, uint64_t offset, uint64_t bytes, bool write) {
    return look(r, v, offset, bytes, write, false);
}

void reservation_look_away(struct reservation *r, struct reservation_view *v) {
    lock_take(&r->lock);
    LIST_REMOVE(r->views, v);
    lock_drop(&r->lock);
}

static bool looked_at(const struct reservation *r, uint64_t first, uint64_t end) {
    for (const struct reservation_view *v = r->views; v; v = v->next) {
        if (v->first < end && first < v->end) return true;
    }
    return false;
}

/* --- commit ----------------------------------------------------------------------------------------------------------- */

static int give_back(struct reservation *r, uint64_t first, uint64_t end) {
    char *at = at_page(r, first);
    uint64_t bytes = bytes_of(r, end - first);
    if (!r->lazy) return os_release(at, bytes);
    int rc = os_close(at, bytes);
    if (rc == 0) (void)advise(r, at, bytes);
    return rc;
}

/* What was absent when the operation began is given back. What was readable stays, though it takes memory now: somebody
 * may have written there. */
static void roll_back(struct reservation *r, const struct reservation_op *op) {
    for (uint64_t from = op->first; from < op->end;) {
        uint64_t start = bit_next(r->present, from, op->end, false);
        from = bit_next(r->present, start, op->end, true);
        if (from > start) (void)give_back(r, start, from);
    }
}

/* Which pages of an operation's range are populated. */
enum which { LACKING, ALL, HAVING };

static int populate_pages(struct reservation *r, const struct reservation_op *op, const uint64_t *map, enum which which,
                          struct populate *p, const char **step) {
    for (uint64_t from = op->first; from < op->end;) {
        uint64_t start = which == ALL ? from : bit_next(map, from, op->end, which == HAVING);
        from = which == ALL ? op->end : bit_next(map, start, op->end, which == LACKING);
        if (from == start) continue;
        int rc = 0;
        if (r->lazy && which != HAVING) {
            *step = "mprotect";
            rc = os_open(at_page(r, start), bytes_of(r, from - start));
        }
        if (rc == 0) {
            *step = p->write ? "madvise(MADV_POPULATE_WRITE)" : "madvise(MADV_POPULATE_READ)";
            rc = populate_range(p, at_page(r, start), bytes_of(r, from - start));
        }
        if (rc) return rc;
    }
    return 0;
}

static struct populate plan(struct reservation *r, bool write, unsigned threads, arena_tick tick, void *arg) {
    return (struct populate){.features = r->features,
                             .preflight = &r->preflight,
                             .threads = threads,
                             .write = write,
                             .huge = r->huge,
                             .tick = tick,
                             .tick_arg = arg,
                             .fork_count = &forks_count};
}

static void finish_commit(struct reservation *r, struct reservation_op *op, bool write, bool again, uint32_t epoch,
                          uint64_t *newly) {
    uint64_t added = bit_fill(r->present, op->first, op->end, true);
    if (write) (void)bit_fill(r->writable, op->first, op->end, true);
    r->committed += added;
    if (r->committed > r->peak) r->peak = r->committed;
    /* After a fork pages are private again only once everything committed was populated in one go. */
    if (again && r->committed == op->end - op->first) r->private_epoch = epoch;
    if (op->end > r->top) r->top = op->end;
    *newly = bytes_of(r, added);
}

/* A failure of a commit, told with what there was. */
static int explain_commit(struct arena_error *e, int rc, const char *op, uint64_t offset, uint64_t requested,
                          uint64_t committed, const struct preflight_report *report) {
    explain(e, rc, op, offset, requested);
    if (e) {
        e->committed = committed;
        e->available = report->available;
        memcpy(e->where, report->where, sizeof e->where);
    }
    return rc;
}

int reservation_preflight(struct reservation *r, uint64_t offset, uint64_t bytes, struct arena_error *error) {
    struct preflight_report report = {.available = UINT64_MAX};
    int rc = preflight_whole(&r->preflight, bytes, &report);
    if (rc == 0) return 0;
    lock_take(&r->lock);
    uint64_t committed = bytes_of(r, r->committed);
    lock_drop(&r->lock);
    return explain_commit(error, rc, "preflight", offset, bytes, committed, &report);
}

int reservation_commit(reservation *r, uint64_t offset, uint64_t bytes, bool write, unsigned threads, arena_tick tick,
                       void *arg, uint64_t *newly, struct arena_error *error) {
    uint64_t none;
    if (!newly) newly = &none;
    *newly = 0;
    struct reservation_op op = {0};
    if (!pages_of(r, offset, bytes, &op.first, &op.end)) return explain(error, -EINVAL, "range", offset, bytes);
    const uint64_t *map = write ? r->writable : r->present;
    uint64_t asked = 0;
    bool again;

    lock_take(&r->lock);
    for (;;) {
        if (r->dropped) {
            lock_drop(&r->lock);
            return explain(error, -ENOTCONN, "fork", offset, bytes);
        }
        again = write && r->shared_epoch != r->private_epoch;
        bool there = covers(map, op.first, op.end);
        struct reservation_op *other = in_the_way(r, op.first, op.end, there && !again);
        if (!other && there && !again) {
            lock_drop(&r->lock);
            return 0;
        }
        if (!other) break;
        int rc = wait_for(r, other, tick, arg, &asked);
        if (rc) {
            lock_drop(&r->lock);
            return explain(error, rc, rc == -EDEADLK ? "re-entry" : "wait", offset, bytes);
        }
    }
    op_begin(r, &op);
    uint32_t epoch = r->shared_epoch;
    lock_drop(&r->lock);

    uint64_t began = os_now_ns();
    struct populate p = plan(r, write, threads, tick, arg);
    p.total = bytes_of(r, op.end - op.first - (again ? 0 : bit_count(map, op.first, op.end)));
    struct preflight_report report = {.available = UINT64_MAX};
    const char *step = "preflight";
    int rc = write ? preflight_whole(&r->preflight, p.total, &report) : 0;
    if (rc == 0) {
        rc = populate_pages(r, &op, map, again ? ALL : LACKING, &p, &step);
        /* First of all: in a cgroup without OOM killer every fault of this process hangs until memory is free again. */
        if (rc) roll_back(r, &op);
        if (rc == -ENOMEM || rc == -EFAULT) preflight_read(r->preflight.headroom, &report);
    }

    lock_take(&r->lock);
    if (rc == 0) {
        finish_commit(r, &op, write, again, epoch, newly);
        r->commits++;
        r->commit_ns += os_now_ns() - began;
    }
    uint64_t committed = bytes_of(r, r->committed);
    op_end(r, &op);
    return rc ? explain_commit(error, rc, step, offset, p.total, committed, &report) : 0;
}

int reservation_repopulate(reservation *r, uint64_t offset, uint64_t bytes, bool always, unsigned threads,
                           arena_tick tick, void *arg, struct arena_error *error) {
    struct reservation_op op = {0};
    if (!pages_of(r, offset, bytes, &op.first, &op.end)) return explain(error, -EINVAL, "range", offset, bytes);
    uint64_t asked = 0;
    lock_take(&r->lock);
    for (;;) {
        if (r->dropped || (!always && r->shared_epoch == r->private_epoch)) {
            bool dropped = r->dropped;
            lock_drop(&r->lock);
            return dropped ? explain(error, -ENOTCONN, "fork", offset, bytes) : 0;
        }
        struct reservation_op *other = in_the_way(r, op.first, op.end, false);
        if (!other) break;
        int rc = wait_for(r, other, tick, arg, &asked);
        if (rc) {
            lock_drop(&r->lock);
            return explain(error, rc, rc == -EDEADLK ? "re-entry" : "wait", offset, bytes);
        }
    }
    clip(r, &op);
    op_begin(r, &op);
    uint32_t epoch = r->shared_epoch;
    lock_drop(&r->lock);
    struct populate p = plan(r, true, threads, tick, arg);
    p.total = bytes_of(r, bit_count(r->writable, op.first, op.end));
    const char *step = "populate";
    int rc = populate_pages(r, &op, r->writable, HAVING, &p, &step);
    lock_take(&r->lock);
    if (rc == 0 && op.first == 0 && op.end >= r->top) r->private_epoch = epoch;
    op_end(r, &op);
    return rc ? explain(error, rc, step, offset, p.total) : 0;
}

int reservation_verify(reservation *r, uint64_t offset, uint64_t bytes, arena_tick tick, void *arg,
                       struct arena_error *error) {
    return reservation_repopulate(r, offset, bytes, true, 0, tick, arg, error);
}

int reservation_copy(reservation *r, uint64_t offset, void *buffer, uint64_t bytes, bool into_reservation) {
    struct reservation_view here;
    int rc = look(r, &here, offset, bytes, into_reservation, true);
    if (rc) return r->dropped ? -ENOTCONN : rc;
    rc = os_copy(r->base + offset, buffer, bytes, into_reservation);
    reservation_look_away(r, &here);
    return rc;
}

/* --- release ---------------------------------------------------------------------------------------------------------- */

int reservation_release_begin(struct reservation *r, struct reservation_op *op, uint64_t offset, uint64_t bytes) {
    *op = (struct reservation_op){
        .first = offset >> r->page_shift, .end = (offset + bytes) >> r->page_shift, .release = true};
    lock_take(&r->lock);
    int rc = r->dropped ? -ENOTCONN : 0;
    if (rc == 0) {
        struct reservation_op *other = in_the_way(r, op->first, op->end, false);
        if (other)
            rc = pthread_equal(other->thread, pthread_self()) ? -EDEADLK : -EAGAIN;
        else if (looked_at(r, op->first, op->end))
            rc = -EBUSY;
    }
    if (rc == 0) {
        clip(r, op);
        op_begin(r, op);
    }
    lock_drop(&r->lock);
    return rc;
}

int reservation_release_finish(struct reservation *r, struct reservation_op *op, uint64_t *freed, arena_tick tick,
                               void *arg, struct arena_error *error) {
    uint64_t began = os_now_ns(), asked = began, at = op->first, step = RELEASE_STEP >> r->page_shift, total = 0;
    int rc = 0;
    while (rc == 0 && at < op->end) {
        uint64_t start = bit_next(r->present, at, op->end, true), limit = start + step;
        uint64_t end = bit_next(r->present, start, limit < op->end ? limit : op->end, false);
        if (end == start) break;
        rc = give_back(r, start, end);
        if (rc) {
            explain(error, rc, r->lazy ? "mmap(MAP_FIXED)" : "madvise(MADV_DONTNEED)", bytes_of(r, start),
                    bytes_of(r, end - start));
            break;
        }
        lock_take(&r->lock);
        uint64_t cleared = bit_fill(r->present, start, end, false);
        (void)bit_fill(r->writable, start, end, false);
        r->committed -= cleared;
        lock_drop(&r->lock);
        total += cleared;
        at = end;
        if (tick && os_now_ns() - asked > WAIT_NS) {
            rc = tick(arg, bytes_of(r, at - op->first), bytes_of(r, op->end - op->first));
            if (rc) explain(error, rc, "release", bytes_of(r, at), bytes_of(r, op->end - at));
            asked = os_now_ns();
        }
    }
    lock_take(&r->lock);
    if (total) r->releases++;
    r->release_ns += os_now_ns() - began;
    op_end(r, op);
    if (freed) *freed = bytes_of(r, total);
    return rc;
}

int reservation_release(reservation *r, uint64_t offset, uint64_t bytes, uint64_t *freed, arena_tick tick, void *arg,
                        struct arena_error *error) {
    uint64_t size = bytes_of(r, r->pages), page = bytes_of(r, 1), none;
    if (!freed) freed = &none;
    *freed = 0;
    if (offset > size || bytes > size - offset) return explain(error, -EINVAL, "range", offset, bytes);
    uint64_t start = (offset + page - 1) & ~(page - 1), end = (offset + bytes) & ~(page - 1);
    if (start >= end) return 0;
    struct reservation_op op;
    uint64_t asked = 0;
    int rc;
    while ((rc = reservation_release_begin(r, &op, start, end - start)) == -EAGAIN) {
        lock_take(&r->lock);
        const struct reservation_op *other = in_the_way(r, op.first, op.end, false);
        rc = other ? wait_for(r, other, tick, arg, &asked) : 0;
        lock_drop(&r->lock);
        if (rc) return explain(error, rc, rc == -EDEADLK ? "re-entry" : "wait", offset, bytes);
    }
    if (rc) return explain(error, rc, rc == -EDEADLK ? "re-entry" : rc == -EBUSY ? "view" : "fork", offset, bytes);
    return reservation_release_finish(r, &op, freed, tick, arg, error);
}

/* --- fork ------------------------------------------------------------------------------------------------------------- */

void reservation_before_fork(struct reservation *r) { lock_take(&r->lock); }

void reservation_after_fork_parent(struct reservation *r) {
    if (r->fork == OS_FORK_COPY) r->shared_epoch++;
    lock_drop(&r->lock);
}

/* The operations of threads that do not exist here: what they had half made present, or half given back, is absent. */
static void abandon(struct reservation *r, struct reservation_op *op) {
    if (!r->dropped && op->release) {
        (void)give_back(r, op->first, op->end);
        r->committed -= bit_fill(r->present, op->first, op->end, false);
        (void)bit_fill(r->writable, op->first, op->end, false);
    } else if (!r->dropped) {
        roll_back(r, op);
    }
    op_remove(r, op);
}

void reservation_after_fork_child(struct reservation *r) {
    lock_reset(&r->lock);
    r->waiters = 0;
    r->shared_epoch++;
    if (r->fork == OS_FORK_DROP && !r->dropped) {
        /* Zero pages where the memory was: an array that still points there reads zeros instead of crashing the child. If
         * something else was mapped there meanwhile it is not ours to unmap. */
        r->dropped = true;
        r->foreign = os_map_at(r->base, bytes_of(r, r->pages)) != 0;
    }
    for (struct reservation_op *op = r->ops, *next; op; op = next) {
        next = op->next;
        if (!pthread_equal(op->thread, pthread_self())) abandon(r, op);
    }
    for (struct reservation_view *v = r->views, *next; v; v = next) {
        next = v->next;
        if (v->passing && !pthread_equal(v->thread, pthread_self())) LIST_REMOVE(r->views, v);
    }
}
