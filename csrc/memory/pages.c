#include "memory/pages.h"
#include "memory/decommit.h"
#include "sys/mlock.h"

#include "memory/mlockall.h"
#include "sys/bitmap.h"

int pages_advise(const struct reservation *r, void *at, uint64_t bytes, const char **op) {
    int rc = backing_advise(&r->backing, at, bytes, op);
    if (rc) return rc;
    if (!r->dump) (void)os_advise_dump(at, bytes, false);
    *op = "madvise";
    rc = os_advise_fork(at, bytes, r->fork);
    if (r->name) os_name(r->features, at, bytes, r->name);
    return rc;
}

/* --- unmapping and giving back ------------------------------------------------------------------------------------ */

int pages_unmap(struct reservation *r, uint64_t first, uint64_t end) {
    char *at = at_page(r, first);
    uint64_t bytes = bytes_of(r, end - first), offset = bytes_of(r, first);
    int rc;
    if (r->lazy)
        rc = os_decommit_lazy(&r->backing.mapping, at, bytes, offset);
    else if (backing_is_mapped_anew(&r->backing, r->features))
        rc = os_map_anew(&r->backing.mapping, at, bytes, offset);
    else
        return decommit_pages(r->features, at, bytes);
    const char *unused;
    if (rc == 0) (void)pages_advise(r, at, bytes, &unused);
    return rc;
}

int pages_give_back(struct reservation *r, uint64_t first, uint64_t end, bool discard, bool *gone) {
    /* A private mapping's copies hide what the file has, so the copies go first: while the mapping still has them nothing
     * was lost. Of a shared mapping there is nothing but what the file has. */
    bool copies = !r->backing.kind->shared, unmapped = false;
    int rc = copies ? pages_unmap(r, first, end) : 0;
    *gone = copies && rc == 0;
    if (rc) return rc;
    rc = backing_give_back(&r->backing, at_page(r, first), bytes_of(r, first), bytes_of(r, end - first), discard,
                           &unmapped);
    if (rc == 0 && !copies && !unmapped) rc = pages_unmap(r, first, end);
    *gone = *gone || rc == 0;
    return rc;
}

/* --- locking ------------------------------------------------------------------------------------------------------ */

int pages_mlock(struct reservation *r, uint64_t first, uint64_t end) {
    if (r->backing.kind->pool) return 0; /* never swapped, and mlock knows nothing of them */
    __atomic_store_n(&r->locked, true, __ATOMIC_RELAXED);
    if (mlockall_in_force()) { /* all memory, and so the bookkeeping too */
        (void)os_mlock(&r->present[first / 64], (end - first + 127) / 64 * sizeof *r->present);
        (void)os_mlock(&r->writable[first / 64], (end - first + 127) / 64 * sizeof *r->writable);
    }
    return os_mlock(at_page(r, first), bytes_of(r, end - first));
}

static bool are_to_be_locked(const struct reservation *r) { return r->mlocks || mlockall_in_force(); }

int pages_lock(struct reservation *r, uint64_t first, uint64_t end) {
    return are_to_be_locked(r) ? pages_mlock(r, first, end) : 0;
}

int pages_unlock(struct reservation *r, uint64_t first, uint64_t end) {
    if (!__atomic_load_n(&r->locked, __ATOMIC_RELAXED)) return 0;
    return os_munlock(at_page(r, first), bytes_of(r, end - first));
}

void pages_catch_up_with_mlockall(struct reservation *r, struct reservation_op *op) {
    while (op->left_out || op->mlockall_seen != mlockall_generation()) {
        op->left_out = false;
        op->mlockall_seen = mlockall_generation();
        mutex_unlock(&r->lock);
        for (uint64_t from = op->first, start; bit_next_run(r->present, true, &from, op->end, &start);)
            (void)pages_lock(r, start, from);
        mutex_lock(&r->lock);
    }
}

/* A file's pages cost nothing, for the kernel takes them back when it needs to; not so those that are locked. */
unsigned pages_cost(const struct reservation *r, bool write) {
    const struct backing_kind *kind = r->backing.kind;
    unsigned costs = write ? kind->write_costs : kind->read_costs;
    bool of_a_file = r->backing.mapping.fd >= 0 && !r->backing.mapping.device && !kind->pool;
    return costs == 0 && of_a_file && are_to_be_locked(r) ? 1 : costs;
}
