#define _GNU_SOURCE
#include <errno.h>
#include <string.h>

#include "memory/decommit.h"
#include "memory/mlockall.h"
#include "memory/populate.h"
#include "memory/reservation_op.h"
#include "sys/bitmap.h"
#include "sys/mlock.h"
#include "sys/residency.h"

#define RELEASE_STEP ((uint64_t)64 << 20) /* 4 ms of 4 KiB pages: for how long one call keeps the mmap_lock */

/* --- commit ----------------------------------------------------------------------------------------------------------- */

int reservation_unmap_pages(struct reservation *r, uint64_t first, uint64_t end) {
    char *at = at_page(r, first);
    uint64_t bytes = bytes_of(r, end - first);
    if (!r->lazy && !backing_is_mapped_anew(&r->backing, r->features)) return decommit_pages(r->features, at, bytes);
    int rc = r->lazy ? os_decommit_lazy(&r->backing.mapping, at, bytes, bytes_of(r, first))
                     : os_map_anew(&r->backing.mapping, at, bytes, bytes_of(r, first));
    const char *unused;
    if (rc == 0) (void)reservation_advise(r, at, bytes, &unused);
    return rc;
}

/* *gone: nothing is mapped there any more, also where the file has refused to give back what is behind. */
static int give_back(struct reservation *r, uint64_t first, uint64_t end, bool discard, bool *gone) {
    /* A private mapping's copies hide what the file has, so they go first: while it still has them nothing was lost. Of a
     * shared mapping there is nothing but what the file has. */
    bool copies = !r->backing.kind->shared, unmapped = false;
    int rc = copies ? reservation_unmap_pages(r, first, end) : 0;
    *gone = copies && rc == 0;
    if (rc) return rc;
    rc = backing_give_back(&r->backing, at_page(r, first), bytes_of(r, first), bytes_of(r, end - first), discard,
                           &unmapped);
    if (rc == 0 && !copies && !unmapped) rc = reservation_unmap_pages(r, first, end);
    *gone = *gone || rc == 0;
    return rc;
}

int reservation_give_back(struct reservation *r, uint64_t first, uint64_t end, bool discard) {
    bool gone;
    return give_back(r, first, end, discard, &gone);
}

int reservation_lock_pages(struct reservation *r, uint64_t first, uint64_t end) {
    if (r->backing.kind->pool) return 0; /* never swapped, and mlock knows nothing of them */
    __atomic_store_n(&r->locked, true, __ATOMIC_RELAXED);
    if (mlockall_in_force()) { /* all memory, and so the bookkeeping too */
        (void)os_mlock(&r->present[first / 64], (end - first + 127) / 64 * sizeof *r->present);
        (void)os_mlock(&r->writable[first / 64], (end - first + 127) / 64 * sizeof *r->writable);
    }
    return os_mlock(at_page(r, first), bytes_of(r, end - first));
}

static bool is_to_be_locked(const struct reservation *r) { return r->mlocks || mlockall_in_force(); }

/* Bytes of the machine's memory for each byte committed. A file's pages cost nothing, for the kernel takes them back when
 * it needs to; not so those that are locked. */
static unsigned costs_of(const struct reservation *r, bool write) {
    const struct backing_kind *kind = r->backing.kind;
    unsigned costs = write ? kind->write_costs : kind->read_costs;
    bool of_a_file = r->backing.mapping.fd >= 0 && !r->backing.mapping.device && !kind->pool;
    return costs == 0 && of_a_file && is_to_be_locked(r) ? 1 : costs;
}

static int lock_pages(struct reservation *r, uint64_t first, uint64_t end) {
    return is_to_be_locked(r) ? reservation_lock_pages(r, first, end) : 0;
}

static int unlock_pages(struct reservation *r, uint64_t first, uint64_t end) {
    return __atomic_load_n(&r->locked, __ATOMIC_RELAXED) ? os_munlock(at_page(r, first), bytes_of(r, end - first)) : 0;
}

/* As far as it goes: what the file does not give back is at least not mapped. */
static void undo(struct reservation *r, uint64_t first, uint64_t end) {
    if (reservation_give_back(r, first, end, false)) (void)reservation_unmap_pages(r, first, end);
}

/* Of pages that this operation has made, those that are zero go back. The others somebody has written to since, who does not
 * take our locks. In steps, so that there is little time between the look and the deed. */
static void undo_zeros(struct reservation *r, uint64_t first, uint64_t end) {
    uint64_t step = (POPULATE_STEP >> r->page_shift) + 1, zeros;
    for (; first < end; first += zeros) {
        uint64_t n = end - first < step ? end - first : step;
        zeros = backing_zeros(&r->backing, bytes_of(r, first), bytes_of(r, n)) >> r->page_shift;
        if (zeros) undo(r, first, first + zeros);
        if (zeros < n) (void)reservation_unmap_pages(r, first + zeros, first + zeros + 1);
        if (zeros < n) zeros++;
    }
}

/* Of [first, end) what this operation has not made stays in the file. */
static void undo_ours(struct reservation *r, uint64_t first, uint64_t end) {
    while (first < end) {
        uint64_t made = bit_next(r->made, first, end, true);
        if (made > first) (void)reservation_unmap_pages(r, first, made);
        first = bit_next(r->made, made, end, false);
        if (first > made) undo_zeros(r, made, first);
    }
}

/* Are all pages that are mapped now, and were absent, new in the file? Of hugetlb pages only their number can be had. */
static bool all_are_new(struct reservation *r, const struct reservation_op *op) {
    uint64_t mapped = 0, now = backing_allocated(&r->backing);
    /* A peer's page that was there could be taken for one of ours if he made another meanwhile. */
    if (op->allocated != bytes_of(r, r->committed)) return false;
    for (uint64_t from = op->first; from < op->end;) {
        uint64_t start = bit_next(r->present, from, op->end, false);
        struct os_residency there = {0};
        from = bit_next(r->present, start, op->end, true);
        if (from > start && os_residency(r->features, at_page(r, start), bytes_of(r, from - start), &there))
            return false;
        mapped += there.present;
    }
    return now >= op->allocated && now - op->allocated == mapped;
}

void reservation_roll_back(struct reservation *r, const struct reservation_op *op) {
    uint64_t offset = bytes_of(r, op->first), bytes = bytes_of(r, op->end - op->first);
    bool locked = false;
    /* A fork in another thread, or a descriptor that is handed out, may bring peers at any moment, even while this goes on:
     * their first commit here waits until it is over. */
    bool alone = op->alone && backing_lock_early(&r->backing, offset, bytes, &locked) != -EBUSY;
    bool all_ours = alone && backing_alone(&r->backing);
    bool known = op->locked && !op->alone && !op->owned_by_parent && r->backing.ours &&
                 (backing_shows_data(&r->backing) || all_are_new(r, op));
    for (uint64_t from = op->first; from < op->end;) {
        uint64_t start = bit_next(r->present, from, op->end, false);
        from = bit_next(r->present, start, op->end, true);
        if (from == start) continue;
        (void)unlock_pages(r, start, from);
        if (all_ours)
            undo(r, start, from);
        else if (known)
            undo_ours(r, start, from);
        else /* what cannot be told from a peer's is left to the peer */
            (void)reservation_unmap_pages(r, start, from);
    }
    if (locked) backing_unlock(&r->backing, offset, bytes);
}

/* How the pieces of a commit are prepared. */
struct preparation {
    struct reservation *r;
    const struct reservation_op *op;
    bool write;
    bool busy; /* atomic: a thread is allocating */
    bool refused; /* atomic: it was the allocating that failed */
};

/* Notes the pages that the file lacks in [at, end): they are going to be made. Of a file of hugetlb pages that cannot be
 * asked; there all_are_new tells afterwards. */
static void note_missing(struct reservation *r, uint64_t at, uint64_t end) {
    while (at < end) {
        uint64_t start = at, stop = end;
        bool some = backing_shows_data(&r->backing) && backing_next_data(&r->backing, &start, &stop, end);
        uint64_t first = (at + bytes_of(r, 1) - 1) >> r->page_shift, missing = (some ? start : end) >> r->page_shift;
        if (first < missing) {
            bit_fill_shared(r->made, first, missing, true);
            __atomic_store_n(&r->any_made, true, __ATOMIC_RELAXED);
        }
        at = stop;
    }
}

static int prepare(void *self, char *at, uint64_t n) {
    struct preparation *p = self;
    struct reservation *r = p->r;
    uint64_t offset = (uint64_t)(at - r->base);
    if (p->op->locked && !p->op->alone && r->backing.ours) note_missing(r, offset, offset + n);
    /* fallocate locks the file. Of shared memory, a second thread had better let the populating allocate than wait; it is
     * told EFAULT when there is no room, and ENOSPC is read from that (backing_explain). */
    bool busy = r->backing.kind->shmem && __atomic_exchange_n(&p->busy, true, __ATOMIC_ACQUIRE);
    if (busy) return 0;
    int rc = backing_allocate(&r->backing, offset, n, p->write);
    __atomic_store_n(&p->busy, false, __ATOMIC_RELEASE);
    if (rc && rc != -EFAULT) __atomic_store_n(&p->refused, true, __ATOMIC_RELAXED);
    return rc;
}

void reservation_forget_made(struct reservation *r, const struct reservation_op *op) {
    if (!__atomic_load_n(&r->any_made, __ATOMIC_RELAXED)) return;
    for (uint64_t from = op->first; from < op->end;) {
        uint64_t start = bit_next(r->made, from, op->end, true);
        from = bit_next(r->made, start, op->end, false);
        bit_fill_shared(r->made, start, from, false);
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
            rc = os_make_accessible(at_page(r, start), bytes_of(r, from - start));
        }
        if (rc == 0) {
            *step = "mlock";
            rc = lock_pages(r, start, from); /* first: it is refused at once, or not at all */
        }
        if (rc == 0) {
            /* What is there already may have gone bad meanwhile: then a touch is a signal, and the call an answer. */
            p->fresh = which == LACKING;
            *step = p->write ? "madvise(MADV_POPULATE_WRITE)" : "madvise(MADV_POPULATE_READ)";
            rc = populate_range(p, at_page(r, start), bytes_of(r, from - start));
            if (rc && ((struct preparation *)p->prepare_arg)->refused) *step = "fallocate";
            if (rc && p->refused) *step = "preflight";
        }
        if (rc) return rc;
    }
    return 0;
}

static struct populate plan(struct reservation *r, struct preparation *how, unsigned threads, arena_progress progress,
                            void *arg) {
    const struct backing_kind *kind = r->backing.kind;
    return (struct populate){.features = r->features,
                             .preflight = &r->preflight,
                             .threads = threads,
                             .write = how->write,
                             .touchable = kind->touchable,
                             .page = r->backing.page,
                             .costs = costs_of(r, how->write),
                             .prepare = r->backing.mapping.fd >= 0 ? prepare : NULL,
                             .prepare_arg = how,
                             .progress = progress,
                             .progress_arg = arg,
                             .fork_generation = &fork_generation};
}

static void finish_commit(struct reservation *r, struct reservation_op *op, bool write, bool again, uint32_t epoch,
                          uint64_t *newly) {
    uint64_t added = bit_fill(r->present, op->first, op->end, true);
    if (write) (void)bit_fill(r->writable, op->first, op->end, true);
    r->committed += added;
    if (r->committed > r->peak) r->peak = r->committed;
    /* After a fork pages are private again only once everything committed was populated in one go. */
    if (again && r->committed == op->end - op->first) r->private_epoch = epoch;
    if (op->end > r->present_end) r->present_end = op->end;
    *newly = bytes_of(r, added);
}

/* A failure of a commit, told with what there was: by the preflight, or else by the backing and the machine. */
static int explain_commit(struct reservation *r, struct arena_error *e, int rc, const char *op, uint64_t offset,
                          uint64_t bytes, uint64_t requested, const struct preflight_report *report) {
    struct arena_error unused;
    if (!e) e = &unused;
    reservation_explain(e, rc, op, offset, requested);
    mutex_lock(&r->lock);
    e->committed = bytes_of(r, r->committed);
    mutex_unlock(&r->lock);
    if (strcmp(op, "mlock") == 0) {
        uint64_t limit, locked;
        os_mlock_limit(&limit, &locked);
        e->available = limit == UINT64_MAX ? limit : limit > locked ? limit - locked : 0;
        if (e->available < requested) strcpy(e->where, "RLIMIT_MEMLOCK");
        return rc;
    }
    if (report) {
        e->available = report->available;
        memcpy(e->where, report->where, sizeof e->where);
        return rc;
    }
    if (strcmp(op, "mprotect") == 0 && rc == -ENOMEM) {
        struct machine_look charge;
        machine_charge(requested, &charge);
        e->available = charge.available;
        memcpy(e->where, charge.where, sizeof e->where);
        if (charge.available != UINT64_MAX) return rc;
    }
    rc = backing_explain(&r->backing, rc, offset + bytes, requested, e);
    e->err = -rc;
    unsigned costs = costs_of(r, true);
    bool no_descriptor = rc == -EMFILE || rc == -ENFILE;
    if (e->available == UINT64_MAX && (rc == -ENOMEM || rc == -EFAULT || no_descriptor) && costs) {
        struct preflight_report machine;
        if (preflight_read(&r->preflight, &machine) == 0 && no_descriptor) return rc;
        e->available = no_descriptor || machine.available == UINT64_MAX ? UINT64_MAX : machine.available / costs;
        memcpy(e->where, machine.where, sizeof e->where);
    }
    return rc;
}

/* A commit that peers in other processes, or their lock, did not let begin. */
static int explain_wait(struct reservation *r, const struct reservation_op *op, int rc, struct arena_error *e) {
    op_explain_lock(r, op, rc, e);
    mutex_lock(&r->lock);
    if (e) e->committed = bytes_of(r, r->committed);
    mutex_unlock(&r->lock);
    return rc;
}

/* Nothing is begun that is known to be too much: for the machine or the cgroup, or for what the backing itself has left.
 * `absent`: bytes of which the backing has nothing yet. *promised: see preflight_whole. */
static int preflight(struct reservation *r, uint64_t bytes, uint64_t absent, bool write, uint64_t *promised,
                     struct preflight_report *report) {
    unsigned costs = costs_of(r, write);
    uint64_t want = costs && bytes > UINT64_MAX / costs ? bytes : bytes * costs;
    *promised = 0;
    int rc = want ? preflight_whole(&r->preflight, want, promised, report) : 0;
    if (rc && rc != -ENOMEM) report->available = UINT64_MAX; /* it could not be read */
    if (rc && report->available != UINT64_MAX) report->available /= costs;
    struct arena_error full;
    if (rc || (rc = backing_preflight(&r->backing, absent, &full)) == 0) return rc;
    preflight_keep_promise(*promised);
    *promised = 0;
    report->available = full.available;
    memcpy(report->where, full.where, sizeof report->where);
    return rc;
}

int reservation_preflight(struct reservation *r, uint64_t offset, uint64_t bytes, struct arena_error *error) {
    struct preflight_report report = {.available = UINT64_MAX};
    uint64_t promised;
    int rc = preflight(r, bytes, bytes, true, &promised, &report);
    if (promised) preflight_keep_promise(promised);
    return rc ? explain_commit(r, error, rc, "preflight", offset, bytes, bytes, &report) : 0;
}

/* Bytes of the present pages of [first, end) that a fork has made copy-on-write, and the child still has: to have them
 * writable takes as much again. */
static int shared_by_fork(const struct reservation *r, uint64_t first, uint64_t end, uint64_t *out) {
    int rc = 0;
    *out = 0;
    if (r->backing.kind->shared) return 0; /* one memory for both */
    for (uint64_t from = first; rc == 0 && from < end;) {
        uint64_t start = bit_next(r->present, from, end, true);
        from = bit_next(r->present, start, end, false);
        if (from > start) rc = os_mapped_by_others(at_page(r, start), bytes_of(r, from - start), out);
    }
    return rc;
}

int reservation_commit(reservation *r, uint64_t offset, uint64_t bytes, bool write, unsigned threads,
                       arena_progress progress, void *arg, uint64_t *newly, struct arena_error *error) {
    uint64_t none;
    if (!newly) newly = &none;
    *newly = 0;
    struct reservation_op op = {0};
    if (!reservation_pages_of(r, offset, bytes, &op.first, &op.end))
        return reservation_explain(error, -EINVAL, "range", offset, bytes);
    if (write && r->backing.mapping.readonly)
        return explain_commit(r, error, -EACCES, "readonly", offset, bytes, bytes, NULL);
    const uint64_t *map = write ? r->writable : r->present;
    uint64_t asked = 0;
    bool again;

    mutex_lock(&r->lock);
    for (;;) {
        if (r->refuse) {
            mutex_unlock(&r->lock);
            return reservation_refused(error, r->refuse, offset, bytes);
        }
        again = (write || r->backing.kind->shared) && r->shared_epoch != r->private_epoch;
        bool there = bit_all(map, op.first, op.end);
        struct reservation_op *other = op_in_the_way(r, op.first, op.end, there && !again);
        if (!other && there && !again) {
            mutex_unlock(&r->lock);
            return 0;
        }
        if (!other) break;
        int rc = op_wait_for(r, other, progress, arg, &asked);
        if (rc) {
            mutex_unlock(&r->lock);
            return reservation_explain(error, rc, rc == -EDEADLK ? "re-entry" : "wait", offset, bytes);
        }
    }
    op_begin(r, &op);
    uint32_t epoch = r->shared_epoch;
    mutex_unlock(&r->lock);

    uint64_t began = os_now_ns();
    struct preparation how = {.r = r, .op = &op, .write = write};
    struct populate p = plan(r, &how, threads, progress, arg);
    uint64_t pages = op.end - op.first;
    p.total = again ? bytes_of(r, pages) : bytes_of(r, pages - bit_count(map, op.first, op.end));
    struct preflight_report report = {.available = UINT64_MAX};
    const char *step = "preflight";
    uint32_t generation = 0;
    uint64_t lacking = bytes_of(r, pages - bit_count(map, op.first, op.end));
    uint64_t shared = 0;
    int rc = again ? shared_by_fork(r, op.first, op.end, &shared) : 0;
    if (rc == 0)
        rc = preflight(r, lacking + shared, bytes_of(r, pages - bit_count(r->present, op.first, op.end)), write,
                       &p.promised, &report);
    bool refused = rc != 0;
    if (rc == 0) {
        step = "wait";
        rc = op_lock_peers(r, &op, progress, arg);
        if (rc == 0 && !op.alone && r->backing.kind->pool) op.allocated = backing_allocated(&r->backing);
    }
    if (rc == 0) {
        generation = mlockall_generation();
        rc = populate_pages(r, &op, map, again ? ALL : LACKING, &p, &step);
        /* Whoever locked or unlocked all memory meanwhile found nothing here yet. */
        while (rc == 0 && generation != mlockall_generation()) {
            generation = mlockall_generation();
            step = "mlock";
            rc = lock_pages(r, op.first, op.end);
        }
        if (rc == 0 && progress && p.total) rc = progress(arg, p.total, p.total);
        /* First of all: in a cgroup without OOM killer every fault of this process hangs until memory is free again. */
        if (rc) reservation_roll_back(r, &op);
        reservation_forget_made(r, &op);
    }
    op_unlock_peers(r, &op);
    if (p.promised) preflight_keep_promise(p.promised);

    mutex_lock(&r->lock);
    while (rc == 0 && generation != mlockall_generation()) {
        /* They leave out what is in our hands. */
        generation = mlockall_generation();
        mutex_unlock(&r->lock);
        (void)lock_pages(r, op.first, op.end);
        mutex_lock(&r->lock);
    }
    if (rc == 0) {
        finish_commit(r, &op, write, again, epoch, newly);
        r->commits++;
        r->commit_ns += os_now_ns() - began;
    }
    op_end(r, &op);
    if (rc && strcmp(step, "wait") == 0) return explain_wait(r, &op, rc, error);
    return rc ? explain_commit(r, error, rc, step, offset, bytes, p.total, refused ? &report : NULL) : 0;
}

/* What is readable only, for `verify`: the rest of the present pages. */
static int populate_readable(struct reservation *r, const struct reservation_op *op, struct populate *p) {
    for (uint64_t from = op->first; from < op->end;) {
        uint64_t start = bit_next(r->present, from, op->end, true), stop = bit_next(r->present, start, op->end, false);
        uint64_t writable = bit_next(r->writable, start, stop, true);
        from = writable > start ? writable : bit_next(r->writable, start, stop, false);
        if (writable == start) continue;
        int rc = populate_range(p, at_page(r, start), bytes_of(r, from - start));
        if (rc) return rc;
    }
    return 0;
}

/* Populates again what is committed in the range: what a fork has made copy-on-write; or (`all`) whatever it is. */
static int repopulate(reservation *r, uint64_t offset, uint64_t bytes, bool all, unsigned threads,
                      arena_progress progress, void *arg, struct arena_error *error) {
    struct reservation_op op = {0};
    if (!reservation_pages_of(r, offset, bytes, &op.first, &op.end))
        return reservation_explain(error, -EINVAL, "range", offset, bytes);
    uint64_t asked = 0;
    mutex_lock(&r->lock);
    for (;;) {
        if (r->refuse || (!all && r->shared_epoch == r->private_epoch)) {
            int refuse = r->refuse;
            mutex_unlock(&r->lock);
            return refuse ? reservation_refused(error, refuse, offset, bytes) : 0;
        }
        struct reservation_op *other = op_in_the_way(r, op.first, op.end, false);
        if (!other) break;
        int rc = op_wait_for(r, other, progress, arg, &asked);
        if (rc) {
            mutex_unlock(&r->lock);
            return reservation_explain(error, rc, rc == -EDEADLK ? "re-entry" : "wait", offset, bytes);
        }
    }
    op_clip(r, &op);
    op_begin(r, &op);
    uint32_t epoch = r->shared_epoch;
    mutex_unlock(&r->lock);
    struct preparation how = {.r = r, .op = &op, .write = true}, reading = {.r = r, .op = &op, .write = false};
    struct populate p = plan(r, &how, threads, progress, arg);
    p.total = bytes_of(r, bit_count(all ? r->present : r->writable, op.first, op.end));
    struct preflight_report report = {.available = UINT64_MAX};
    const char *step = "preflight";
    uint64_t shared;
    int rc = shared_by_fork(r, op.first, op.end, &shared);
    if (rc == 0) rc = preflight(r, shared, 0, true, &p.promised, &report);
    bool refused = rc != 0;
    if (shared == 0) p.costs = 0; /* all of it is there, and the process's own */
    if (rc == 0) {
        step = "wait";
        rc = op_lock_peers(r, &op, progress, arg);
    }
    if (rc == 0) rc = populate_pages(r, &op, r->writable, HAVING, &p, &step);
    if (rc == 0 && all) {
        struct populate read = plan(r, &reading, threads, progress, arg);
        read.done = p.done;
        read.total = p.total;
        step = "madvise(MADV_POPULATE_READ)";
        rc = populate_readable(r, &op, &read);
    }
    reservation_forget_made(r, &op);
    op_unlock_peers(r, &op);
    if (p.promised) preflight_keep_promise(p.promised);
    mutex_lock(&r->lock);
    if (rc == 0 && op.first == 0 && op.end >= r->present_end) r->private_epoch = epoch;
    op_end(r, &op);
    if (rc && strcmp(step, "wait") == 0) return explain_wait(r, &op, rc, error);
    return rc ? explain_commit(r, error, rc, step, offset, bytes_of(r, op.end) - offset, p.total,
                               refused ? &report : NULL)
              : 0;
}

int reservation_repopulate(reservation *r, uint64_t offset, uint64_t bytes, unsigned threads, arena_progress progress,
                           void *arg, struct arena_error *error) {
    return repopulate(r, offset, bytes, false, threads, progress, arg, error);
}

int reservation_verify(reservation *r, uint64_t offset, uint64_t bytes, arena_progress progress, void *arg,
                       struct arena_error *error) {
    return repopulate(r, offset, bytes, true, 0, progress, arg, error);
}

/* Has somebody taken pages out of the file that are committed here? pread gives zeros for them, where a load might be a
 * signal. */
static bool was_punched(struct reservation *r, uint64_t offset, uint64_t bytes) {
    uint64_t at = offset >> r->page_shift, end = (offset + bytes + bytes_of(r, 1) - 1) >> r->page_shift;
    while (at < end) {
        mutex_lock(&r->lock);
        uint64_t start = bit_next(r->present, at, end, true);
        at = bit_next(r->present, start, end, false);
        mutex_unlock(&r->lock);
        uint64_t from = bytes_of(r, start), bytes_there = bytes_of(r, at - start);
        /* Not by a release of our own. */
        if (at > start && backing_has_hole(&r->backing, from, bytes_there) &&
            reservation_is_committed(r, from, bytes_there, false))
            return true;
    }
    return false;
}

int reservation_copy(reservation *r, uint64_t offset, void *buffer, uint64_t bytes, bool into_reservation) {
    struct reservation_pin here;
    uint64_t first, end;
    if (!reservation_pages_of(r, offset, bytes, &first, &end)) return -EINVAL;
    /* Of a shared file all can be read, committed or not: the kernel does it without mapping anything. */
    bool anywhere = !into_reservation && r->backing.kind->shared && r->backing.mapping.fd >= 0;
    if (into_reservation && r->backing.mapping.readonly) return -EACCES;
    int rc = reservation_pin_for_call(r, &here, anywhere ? 0 : offset, anywhere ? 0 : bytes, into_reservation);
    if (rc) return rc;
    rc = backing_copy(&r->backing, r->base + offset, offset, buffer, bytes, into_reservation);
    if (rc == 0 && anywhere && was_punched(r, offset, bytes)) rc = -EFAULT;
    reservation_unpin(r, &here);
    return rc;
}

/* --- release ---------------------------------------------------------------------------------------------------------- */

int reservation_release_begin(struct reservation *r, struct reservation_op *op, uint64_t offset, uint64_t bytes,
                              bool whole) {
    *op = (struct reservation_op){
        .first = offset >> r->page_shift, .end = (offset + bytes) >> r->page_shift, .release = true};
    mutex_lock(&r->lock);
    int rc = r->refuse;
    if (rc == 0) {
        struct reservation_op *other = op_in_the_way(r, op->first, op->end, false);
        if (other)
            rc = pthread_equal(other->thread, pthread_self()) ? -EDEADLK : -EAGAIN;
        else if (reservation_is_pinned(r, op->first, op->end))
            rc = -EBUSY;
    }
    if (rc == 0) {
        if (!whole) op_clip(r, op);
        op_begin(r, op);
    }
    mutex_unlock(&r->lock);
    return rc;
}

bool reservation_release_closes(const struct reservation *r) {
    return r->lazy || backing_is_mapped_anew(&r->backing, r->features);
}

/* Whatever the file has in the range goes, committed here or not. */
static int discard(struct reservation *r, const struct reservation_op *op, arena_progress progress, void *arg,
                   struct arena_error *error) {
    uint64_t step = bytes_of(r, 1) < RELEASE_STEP ? RELEASE_STEP : bytes_of(r, 1);
    uint64_t at = bytes_of(r, op->first), end = bytes_of(r, op->discard_end), asked = os_now_ns();
    int rc = 0;
    for (uint64_t n; rc == 0 && at < end; at += n) {
        n = end - at < step ? end - at : step;
        rc = reservation_give_back(r, at >> r->page_shift, (at + n) >> r->page_shift, true);
        if (rc == 0 && progress && os_now_ns() - asked > RESERVATION_WAIT_NS) {
            rc = progress(arg, at, end);
            asked = os_now_ns();
        }
        if (rc) reservation_explain(error, rc, "discard", at, n);
    }
    return rc;
}

/* What the machine gets of a range that is released: from a file that keeps what it has, a private mapping's copies. */
static uint64_t gets(const struct reservation *r, const struct reservation_op *op, uint64_t first, uint64_t end) {
    if (op->discard_end || !(backing_keeps(&r->backing) || op->theirs)) return bit_count(r->present, first, end);
    return r->backing.kind->shared ? 0 : bit_count(r->writable, first, end);
}

struct released {
    uint64_t pages, got;
    uint64_t failed; /* the first page that could not be released */
};

/* Releases present pages, and books them. What cannot be released whole, because of a page in the middle, or of a refusal
 * that was one for the moment, is released in halves, so that the ledger says in any case what is there. */
static int release_run(struct reservation *r, const struct reservation_op *op, uint64_t first, uint64_t end,
                       struct released *out) {
    bool gone = false;
    int rc = unlock_pages(r, first, end);
    if (rc == 0 && op->theirs) {
        rc = reservation_unmap_pages(r, first, end);
        gone = rc == 0;
    } else if (rc == 0) {
        rc = give_back(r, first, end, false, &gone);
    }
    if (rc && !gone && end - first > 1 && (rc == -ENOMEM || rc == -EINVAL)) {
        uint64_t middle = first + (end - first) / 2;
        int left = release_run(r, op, first, middle, out), right = release_run(r, op, middle, end, out);
        return left ? left : right;
    }
    /* Somebody has unmapped it: then it is not there, whatever is done about that. */
    if (rc == -ENOMEM && !os_is_mapped(at_page(r, first))) gone = true;
    if (rc && out->failed > first) out->failed = first;
    if (!gone) {
        (void)lock_pages(r, first, end);
        return rc;
    }
    mutex_lock(&r->lock);
    out->got += rc ? 0 : gets(r, op, first, end);
    uint64_t cleared = bit_fill(r->present, first, end, false);
    (void)bit_fill(r->writable, first, end, false);
    r->committed -= cleared;
    mutex_unlock(&r->lock);
    out->pages += cleared;
    return rc;
}

int reservation_release_finish(struct reservation *r, struct reservation_op *op, uint64_t *freed,
                               arena_progress progress, void *arg, struct arena_error *error) {
    uint64_t began = os_now_ns(), asked = began, at = op->first;
    struct released released = {.failed = UINT64_MAX};
    uint64_t step = bytes_of(r, 1) < RELEASE_STEP ? RELEASE_STEP >> r->page_shift : 1;
    int rc = op_lock_peers(r, op, progress, arg);
    if (rc) op_explain_lock(r, op, rc, error);
    while (rc == 0 && at < op->end) {
        uint64_t start = bit_next(r->present, at, op->end, true), limit = start + step;
        uint64_t end = bit_next(r->present, start, limit < op->end ? limit : op->end, false);
        if (end == start) break;
        /* A private mapping has put nothing into a file that others know: what is there is theirs. */
        op->theirs = !r->backing.kind->shared && r->backing.mapping.fd >= 0 && !backing_alone(&r->backing);
        rc = release_run(r, op, start, end, &released);
        if (rc) {
            reservation_explain(error, rc, "release", bytes_of(r, released.failed), bytes_of(r, end - released.failed));
            break;
        }
        at = end;
        if (progress && os_now_ns() - asked > RESERVATION_WAIT_NS) {
            rc = progress(arg, bytes_of(r, at - op->first), bytes_of(r, op->end - op->first));
            if (rc) reservation_explain(error, rc, "release", bytes_of(r, at), bytes_of(r, op->end - at));
            asked = os_now_ns();
        }
    }
    if (rc == 0 && op->discard_end) rc = discard(r, op, progress, arg, error);
    op_unlock_peers(r, op);
    mutex_lock(&r->lock);
    if (released.pages) r->releases++;
    r->release_ns += os_now_ns() - began;
    if (rc && error) error->committed = bytes_of(r, r->committed);
    op_end(r, op);
    if (freed) *freed = bytes_of(r, released.got);
    return rc;
}

int reservation_release(reservation *r, uint64_t offset, uint64_t bytes, bool discard, uint64_t *freed,
                        arena_progress progress, void *arg, struct arena_error *error) {
    uint64_t size = bytes_of(r, r->pages), page = bytes_of(r, 1), none;
    if (!freed) freed = &none;
    *freed = 0;
    if (offset > size || bytes > size - offset) return reservation_explain(error, -EINVAL, "range", offset, bytes);
    uint64_t start = (offset + page - 1) & ~(page - 1), end = (offset + bytes) & ~(page - 1);
    if (start >= end) return 0;
    discard = discard && r->backing.mapping.fd >= 0 && (!r->backing.ours || !r->backing.kind->shared);
    if (discard && r->backing.mapping.readonly) return reservation_explain(error, -EACCES, "discard", offset, bytes);
    struct reservation_op op;
    uint64_t asked = 0;
    int rc;
    while ((rc = reservation_release_begin(r, &op, start, end - start, discard)) == -EAGAIN) {
        mutex_lock(&r->lock);
        const struct reservation_op *other = op_in_the_way(r, op.first, op.end, false);
        rc = other ? op_wait_for(r, other, progress, arg, &asked) : 0;
        mutex_unlock(&r->lock);
        if (rc) return reservation_explain(error, rc, rc == -EDEADLK ? "re-entry" : "wait", offset, bytes);
    }
    if (rc)
        return reservation_explain(error, rc,
                                   rc == -EDEADLK     ? "re-entry"
                                   : rc == -EBUSY     ? "view"
                                   : rc == -ESHUTDOWN ? "reservation"
                                                      : "fork",
                                   offset, bytes);
    if (discard) op.discard_end = end >> r->page_shift;
    return reservation_release_finish(r, &op, freed, progress, arg, error);
}

bool reservation_fresh_is_zero(const struct reservation *r) { return backing_fresh_is_zero(&r->backing); }
