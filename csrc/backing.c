#define _GNU_SOURCE
#include "backing.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "machine.h"

#define BUDGET_NS 100000000u

/* --- allocate and give back --------------------------------------------------------------------------------------- */

static int seek_fd(const struct backing *b) { return b->other >= 0 ? b->other : b->mapping.fd; }

/* Where the file system cannot allocate, zeros are written into the holes; in a file of somebody else that could
 * overwrite what he is writing there at this moment. */
static int fill_holes(const struct backing *b, uint64_t offset, uint64_t end) {
    struct os_file file;
    /* The position of a descriptor that is not ours is somebody's. */
    if (!b->ours && b->other < 0)
        return os_file_look(b->mapping.fd, &file) == 0 && file.allocated >= file.size ? 0 : -EOPNOTSUPP;
    while (offset < end) {
        uint64_t hole = os_next_data(seek_fd(b), offset, false), data;
        if (hole >= end) break;
        if (!b->ours) return -EOPNOTSUPP;
        data = os_next_data(seek_fd(b), hole, true);
        offset = data < end ? data : end;
        int rc = os_write_zeros(b->mapping.fd, hole, offset - hole);
        if (rc) return rc;
    }
    /* A sparse file on a file system that shows no hole of it anywhere: there may be some here. */
    if (os_file_look(b->mapping.fd, &file) == 0 && file.allocated < file.size &&
        os_next_data(seek_fd(b), 0, false) >= file.size)
        return -EOPNOTSUPP;
    return 0;
}

int backing_allocate(const struct backing *b, uint64_t offset, uint64_t bytes, bool write) {
    enum allocate when = write ? b->kind->for_write : b->kind->for_read;
    if (!b->allocates || when == AS_IS || (when == ALLOCATE_OURS && !b->ours)) return 0;
    uint64_t end = offset + bytes;
    if (!b->sealed) {
        struct os_file file;
        int rc = os_file_look(b->mapping.fd, &file);
        if (rc) return rc;
        if (offset >= file.size) return -EFAULT;
        if (end > file.size) end = file.size;
    }
    int rc = os_allocate(b->mapping.fd, offset, end - offset);
    return rc == -EOPNOTSUPP ? fill_holes(b, offset, end) : rc;
}

/* A file system that cannot punch holes keeps the blocks, but nobody reads what was in them. */
static int punch(const struct backing *b, uint64_t offset, uint64_t bytes) {
    int rc = os_punch(b->mapping.fd, offset, bytes);
    if (rc != -EOPNOTSUPP || !b->ours) return rc;
    uint64_t start = offset, stop;
    for (rc = 0; rc == 0 && backing_next_data(b, &start, &stop, offset + bytes); start = stop)
        rc = os_write_zeros(b->mapping.fd, start, stop - start);
    return rc;
}

int backing_give_back(const struct backing *b, void *at, uint64_t offset, uint64_t bytes, bool discard) {
    enum give_back how = b->kind->gives;
    if (b->mapping.fd >= 0 && !b->ours) how = UNMAP;
    if (discard && b->mapping.fd >= 0) how = PUNCH;
    if (how == REMOVE) return os_remove(at, bytes);
    /* First what may be refused (a sealed file). Where only zeros were written it is still mapped. */
    int rc = how == PUNCH ? punch(b, offset, bytes) : 0;
    return rc ? rc : os_release(at, bytes);
}

bool backing_alone(const struct backing *b) { return b->ours && !__atomic_load_n(&b->peers, __ATOMIC_RELAXED); }

bool backing_fresh_is_zero(const struct backing *b) { return backing_alone(b); }

uint64_t backing_allocated(const struct backing *b) {
    struct os_file file;
    return b->mapping.fd >= 0 && os_file_look(b->mapping.fd, &file) == 0 ? file.allocated : 0;
}

bool backing_shows_data(const struct backing *b) { return b->mapping.fd >= 0 && !b->kind->pool; }

bool backing_next_data(const struct backing *b, uint64_t *start, uint64_t *stop, uint64_t end) {
    *start = os_next_data(seek_fd(b), *start, true);
    if (*start >= end) return false;
    *stop = os_next_data(seek_fd(b), *start, false);
    if (*stop > end) *stop = end;
    return true;
}

int backing_advise(const struct backing *b, void *at, uint64_t bytes) {
    /* A kernel without THP has no MADV_NOHUGEPAGE either, and needs none; hugetlb knows neither. A file on disk would be
     * populated half as fast with it: its large folios come from the file system, and cannot be had by asking. */
    bool none = b->kind->pool || (b->mapping.fd >= 0 && !b->kind->shmem);
    int rc = none ? 0 : os_advise_huge(at, bytes, b->huge);
    if (rc && b->huge) return rc;
    return b->node < 0 ? 0 : os_bind(at, bytes, b->node);
}

/* --- peers -------------------------------------------------------------------------------------------------------- */

#define NO_LOCKS (-2)

bool backing_one_at_a_time(const struct backing *b) {
    return b->kind->pool && b->mapping.fd >= 0 && __atomic_load_n(&b->peers, __ATOMIC_RELAXED);
}

static void lock_all_of_pool(const struct backing *b, uint64_t *offset, uint64_t *bytes) {
    if (!backing_one_at_a_time(b)) return;
    *offset = 0;
    *bytes = b->bytes;
}

int backing_lock(struct backing *b, uint64_t offset, uint64_t bytes, bool *locked) {
    *locked = false;
    /* A length of 0 would be all of the rest; and to open a device a second time may do something. */
    if (bytes == 0 || !__atomic_load_n(&b->peers, __ATOMIC_RELAXED) || !b->kind->shared || b->mapping.fd < 0 ||
        b->mapping.readonly || b->mapping.device)
        return 0;
    lock_all_of_pool(b, &offset, &bytes);
    int other = __atomic_load_n(&b->other, __ATOMIC_ACQUIRE);
    if (other == -1) {
        int mine, none = -1;
        if (os_reopen(b->mapping.fd, &mine)) mine = NO_LOCKS;
        other = mine;
        if (!__atomic_compare_exchange_n(&b->other, &none, mine, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
            os_close_file(mine);
            other = none;
        }
    }
    if (other < 0) return 0;
    int rc = os_lock(other, offset, bytes, true);
    *locked = rc == 0;
    return rc == -EAGAIN ? rc : 0; /* a file system without locks has to do without */
}

void backing_unlock(struct backing *b, uint64_t offset, uint64_t bytes) {
    int other = __atomic_load_n(&b->other, __ATOMIC_ACQUIRE);
    lock_all_of_pool(b, &offset, &bytes);
    if (other >= 0 && bytes) (void)os_lock(other, offset, bytes, false);
}

/* In the child of a private mapping the copies are its own, but the file behind them is the parent's too, who may have pages
 * of it mapped for reading. So the child gives back its copies only; what its commits have put into the file behind goes with
 * the file. */
void backing_after_fork_child(struct backing *b) {
    os_close_file(b->other);
    b->other = -1;
    if (b->mapping.fd >= 0 && !b->kind->shared) b->ours = false;
}

/* --- why ---------------------------------------------------------------------------------------------------------- */

/* The tightest limit of a cgroup on pages of the pool. */
struct tightest {
    uint64_t available;
    char *where;
    size_t size;
};

static bool one_limit(void *arg, const struct machine_hugetlb *limit) {
    struct tightest *t = arg;
    uint64_t left = limit->limit > limit->usage ? limit->limit - limit->usage : 0;
    if (left < t->available) {
        t->available = left;
        size_t length = strlen(limit->path);
        snprintf(t->where, t->size, "%s", limit->path + (length < t->size ? 0 : length + 1 - t->size));
    }
    return true;
}

/* What the backing itself has left, apart from the machine's memory; *where: who says so. */
static uint64_t room(const struct backing *b, char *where, size_t size) {
    uint64_t least = UINT64_MAX;
    where[0] = 0;
    if (b->kind->pool) {
        struct os_pool pool;
        if (os_hugetlb(b->page, b->node, &pool)) return UINT64_MAX; /* nothing is known of it */
        snprintf(where, size, "%s", pool.where);
        struct tightest t = {.available = pool.free, .where = where, .size = size};
        (void)machine_hugetlb(b->page, one_limit, &t);
        least = t.available;
    }
    uint64_t fs = b->mapping.fd >= 0 ? os_file_room(b->mapping.fd) : UINT64_MAX;
    if (fs < least) {
        struct os_file file;
        least = fs;
        if (os_file_look(b->mapping.fd, &file) == 0) os_file_mount(file.device, where, size);
    }
    return least;
}

int backing_explain(const struct backing *b, int rc, uint64_t end, uint64_t bytes, struct arena_error *e) {
    struct os_file file;
    bool absent = rc == -EFAULT || rc == -ENOMEM, full = rc == -ENOSPC || rc == -EDQUOT;
    if (full || rc == -EOPNOTSUPP || rc == -EFBIG) e->op = "fallocate"; /* a populate call has no such answers */
    if (rc == -EFAULT && b->mapping.fd >= 0 && !b->sealed && os_file_look(b->mapping.fd, &file) == 0 &&
        file.type != OS_FILE_OTHER && end > ((file.size + b->page - 1) & ~(b->page - 1))) {
        e->op = "end of file";
        e->available = file.size;
        return rc;
    }
    if (!full && !(absent && (b->kind->pool || rc == -EFAULT))) return rc;
    uint64_t left = room(b, e->where, sizeof e->where);
    if (left == UINT64_MAX || (!full && !b->kind->pool && left >= bytes)) {
        e->where[0] = 0;
        return rc;
    }
    e->available = left;
    return rc == -EDQUOT ? rc : -ENOSPC;
}

int backing_preflight(struct backing *b, uint64_t bytes, struct arena_error *e) {
    /* What peers have put there already needs no room, and root may use what a disk does not show as available. */
    if (bytes == 0 || !backing_alone(b) || !(b->kind->pool || b->kind->shmem)) return 0;
    /* A dozen files are read for a pool, so the answer is kept as a budget, as preflight.c does. */
    int64_t want = bytes < INT64_MAX ? (int64_t)bytes : INT64_MAX;
    if (__atomic_fetch_sub(&b->budget, want, __ATOMIC_RELAXED) >= want &&
        os_now_ns() < __atomic_load_n(&b->good_for, __ATOMIC_RELAXED))
        return 0;
    char where[sizeof e->where];
    uint64_t left = room(b, where, sizeof where);
    __atomic_store_n(&b->budget, left < (uint64_t)1 << 40 ? (int64_t)(left / 8) : (int64_t)1 << 40, __ATOMIC_RELAXED);
    __atomic_store_n(&b->good_for, os_now_ns() + BUDGET_NS, __ATOMIC_RELAXED);
    if (left >= bytes) return 0;
    e->available = left;
    memcpy(e->where, where, sizeof where);
    return -ENOSPC;
}

/* --- copies ------------------------------------------------------------------------------------------------------- */

int backing_copy(const struct backing *b, void *at, uint64_t offset, void *buffer, uint64_t bytes, bool into) {
    struct os_file file;
    int fd = b->mapping.fd, rc;
    if (fd < 0 || !b->kind->shared || b->mapping.device || (into && os_appends(fd)))
        return os_copy(at, buffer, bytes, into);
    if (into) {
        /* A write beyond the end would make the file longer. */
        rc = os_file_look(fd, &file);
        if (rc == 0 && offset + bytes > file.size) rc = -EFAULT;
        if (rc == 0) rc = os_write_at(fd, offset, buffer, bytes);
    } else {
        rc = os_read_at(fd, offset, buffer, bytes);
    }
    /* hugetlbfs cannot be written, and devices need not know either. */
    return rc == -EINVAL || rc == -EBADF || rc == -ENXIO || rc == -ESPIPE ? os_copy(at, buffer, bytes, into) : rc;
}
