#define _GNU_SOURCE
#include "memory/backing.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "memory/decommit.h"
#include "memory/huge_pages.h"
#include "memory/machine.h"
#include "memory/mounts.h"
#include "sys/advice.h"
#include "sys/file_lock.h"
#include "sys/thread.h"
#include "sys/vm_copy.h"

#define BUDGET_NS 100000000u

/* --- allocate and give back --------------------------------------------------------------------------------------- */

/* Memory that is allocated by its populating costs a system call less, and is refused as well: then EFAULT is read as
 * ENOSPC (backing_explain). What fallocate gains for more than this is its speed. */
#define NOT_WORTH_ALLOCATING ((uint64_t)64 << 10)

static int seek_fd(const struct backing *b) { return b->other >= 0 ? b->other : b->mapping.fd; }

/* Where the file system cannot allocate, zeros are written into the holes; in a file of somebody else that could
 * overwrite what he is writing there at this moment. */
static int fill_holes(const struct backing *b, uint64_t offset, uint64_t end) {
    struct os_file file;
    /* The position of a descriptor that is not ours is somebody's. */
    if (!b->ours && b->other < 0)
        return os_file_look(b->mapping.fd, &file) == 0 && file.allocated >= file.size ? 0 : -EOPNOTSUPP;
    uint64_t hole, data;
    int rc = 0;
    while (offset < end) {
        if ((rc = os_next_data(seek_fd(b), offset, false, &hole)) != 0 || hole >= end) break;
        if (!b->ours) return -EOPNOTSUPP;
        if ((rc = os_next_data(seek_fd(b), hole, true, &data)) != 0) break;
        offset = data < end ? data : end;
        if ((rc = os_write_zeros(b->mapping.fd, hole, offset - hole)) != 0) return rc;
    }
    /* A sparse file on a file system that shows no hole of it anywhere: there may be some here. */
    if (os_file_look(b->mapping.fd, &file) == 0 && file.allocated < file.size &&
        (rc || os_next_data(seek_fd(b), 0, false, &hole) || hole >= file.size))
        return -EOPNOTSUPP;
    return 0;
}

int backing_allocate(const struct backing *b, uint64_t offset, uint64_t bytes, bool write) {
    enum allocate when = write ? b->kind->for_write : b->kind->for_read;
    if (!b->allocates || when == AS_IS || (when == ALLOCATE_OURS && !b->ours)) return 0;
    if (b->kind->shmem && bytes <= NOT_WORTH_ALLOCATING) return 0;
    uint64_t end = offset + bytes;
    if (!b->sealed) {
        uint64_t size;
        int rc = os_file_size(b->mapping.fd, &size);
        if (rc) return rc;
        if (offset >= size) return -EFAULT;
        if (end > size) end = size;
    }
    /* What peers have put there already is not allocated once more, page by page, and the rest is by its populating. A disk
     * need not tell where its holes are. */
    int other = __atomic_load_n(&b->other, __ATOMIC_ACQUIRE);
    uint64_t data;
    if (b->kind->shmem && other >= 0 && (os_next_data(other, offset, true, &data) || data < end)) return 0;
    int rc = os_allocate(b->mapping.fd, offset, end - offset);
    return rc == -EOPNOTSUPP ? fill_holes(b, offset, end) : rc;
}

/* A file system that cannot punch holes keeps the blocks, but nobody reads what was in them. */
static int punch(const struct backing *b, uint64_t offset, uint64_t bytes, bool *punched) {
    int rc = os_punch(b->mapping.fd, offset, bytes);
    *punched = rc == 0;
    if (rc != -EOPNOTSUPP || !b->ours) return rc;
    uint64_t start = offset, stop;
    for (rc = 0; rc == 0 && backing_next_data(b, &start, &stop, offset + bytes); start = stop)
        rc = os_write_zeros(b->mapping.fd, start, stop - start);
    return rc;
}

bool backing_keeps(const struct backing *b) { return b->mapping.fd >= 0 && (!b->ours || b->kind->gives == UNMAP); }

int backing_give_back(const struct backing *b, void *at, uint64_t offset, uint64_t bytes, bool discard,
                      bool *unmapped) {
    *unmapped = false;
    if ((discard && b->mapping.fd >= 0) || (b->kind->gives == PUNCH && !backing_keeps(b)))
        return punch(b, offset, bytes, unmapped);
    if (b->kind->gives != REMOVE) return 0;
    int rc = decommit_shared(at, bytes);
    *unmapped = rc == 0;
    return rc;
}

bool backing_is_mapped_anew(const struct backing *b, const struct os_features *f) {
    return b->kind->pool && !f->dontneed_hugetlb;
}

bool backing_alone(const struct backing *b) { return b->ours && !__atomic_load_n(&b->peers, __ATOMIC_RELAXED); }

bool backing_fresh_is_zero(const struct backing *b) { return backing_alone(b); }

uint64_t backing_allocated(const struct backing *b) {
    struct os_file file;
    return b->mapping.fd >= 0 && os_file_look(b->mapping.fd, &file) == 0 ? file.allocated : 0;
}

bool backing_shows_data(const struct backing *b) { return b->mapping.fd >= 0 && !b->kind->pool; }

bool backing_next_data(const struct backing *b, uint64_t *start, uint64_t *stop, uint64_t end) {
    uint64_t data;
    int rc = os_next_data(seek_fd(b), *start, true, &data);
    if (rc == 0) *start = data;
    if (*start >= end) return false;
    if (rc || os_next_data(seek_fd(b), *start, false, stop) || *stop > end) *stop = end;
    if (*stop <= *start) *stop = *start + 1; /* punched out meanwhile: whoever walks on must not stand still */
    return true;
}

uint64_t backing_zeros(const struct backing *b, uint64_t offset, uint64_t bytes) {
    char part[4096];
    uint64_t done = 0;
    for (size_t n; done < bytes; done += n) {
        n = bytes - done < sizeof part ? (size_t)(bytes - done) : sizeof part;
        if (os_read_at(b->mapping.fd, offset + done, part, n)) break;
        if (part[0] || memcmp(part, part + 1, n - 1) != 0) break;
    }
    return done;
}

int backing_advise(const struct backing *b, void *at, uint64_t bytes, const char **op) {
    /* A kernel without THP has no MADV_NOHUGEPAGE either, and needs none; hugetlb knows neither. A file on disk would be
     * populated half as fast with it: its large folios come from the file system, and cannot be had by asking. */
    bool none = b->kind->pool || (b->mapping.fd >= 0 && !b->kind->shmem);
    int rc = none ? 0 : os_advise_huge(at, bytes, b->huge);
    *op = "madvise(MADV_HUGEPAGE)";
    if (rc && b->huge) return rc;
    *op = "mbind";
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

/* The description for locks and seeks, opened when it is first wanted. */
static int open_other(struct backing *b, int *out) {
    int mine, none = -1;
    *out = __atomic_load_n(&b->other, __ATOMIC_ACQUIRE);
    if (*out != -1) return 0;
    int rc = os_reopen(b->mapping.fd, &mine);
    /* That may be otherwise the next time. What else there is (no /proc, no right to open the file once more) stays so. */
    if (rc == -EMFILE || rc == -ENFILE || rc == -ENOMEM || rc == -EINTR) return rc == -EINTR ? -EAGAIN : rc;
    *out = rc ? NO_LOCKS : mine;
    if (!__atomic_compare_exchange_n(&b->other, &none, *out, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE)) {
        if (rc == 0) os_close_file(mine);
        *out = none;
    }
    return 0;
}

int backing_lock_early(struct backing *b, uint64_t offset, uint64_t bytes, bool *locked) {
    *locked = false;
    /* A length of 0 would be all of the rest; and to open a device a second time may do something. A private mapping puts
     * something into a file only if that is ours. */
    if (bytes == 0 || !(b->kind->shared || b->ours) || b->mapping.fd < 0 || b->mapping.readonly || b->mapping.device)
        return 0;
    lock_all_of_pool(b, &offset, &bytes);
    int other, rc = open_other(b, &other);
    if (rc || other < 0) return rc;
    __atomic_fetch_add(&b->holders, 1, __ATOMIC_SEQ_CST);
    rc = __atomic_load_n(&b->unlocking, __ATOMIC_SEQ_CST) ? -EAGAIN : os_file_lock(other, offset, bytes);
    *locked = rc == 0;
    if (rc) __atomic_fetch_sub(&b->holders, 1, __ATOMIC_SEQ_CST);
    return rc == -ENOLCK ? 0 : rc; /* a file system without locks has to do without */
}

int backing_lock(struct backing *b, uint64_t offset, uint64_t bytes, bool *locked) {
    *locked = false;
    return __atomic_load_n(&b->peers, __ATOMIC_RELAXED) ? backing_lock_early(b, offset, bytes, locked) : 0;
}

/* To unlock a range may split a lock in two, for which the kernel needs memory; to unlock all of the file needs none. So
 * whoever finds that nobody here has a lock any more does that, or lets the description go with its locks. */
static void unlock_all(struct backing *b, int other) {
    __atomic_store_n(&b->unlocking, true, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&b->holders, __ATOMIC_SEQ_CST) == 0 &&
        (os_file_unlock(other, 0, 0) == 0 || os_reopen_over(b->mapping.fd, other) == 0))
        __atomic_store_n(&b->stuck, false, __ATOMIC_RELAXED);
    __atomic_store_n(&b->unlocking, false, __ATOMIC_SEQ_CST);
}

void backing_unlock(struct backing *b, uint64_t offset, uint64_t bytes) {
    int other = __atomic_load_n(&b->other, __ATOMIC_ACQUIRE);
    lock_all_of_pool(b, &offset, &bytes);
    if (other < 0 || bytes == 0) return;
    if (os_file_unlock(other, offset, bytes)) __atomic_store_n(&b->stuck, true, __ATOMIC_RELAXED);
    bool last = __atomic_sub_fetch(&b->holders, 1, __ATOMIC_SEQ_CST) == 0;
    if (last && __atomic_load_n(&b->stuck, __ATOMIC_RELAXED)) unlock_all(b, other);
}

int backing_lock_holder(const struct backing *b, uint64_t offset, uint64_t bytes) {
    lock_all_of_pool(b, &offset, &bytes);
    return os_file_lock_holder(b->mapping.fd, offset, bytes);
}

/* In the child of a private mapping the copies are its own, but the file behind them is the parent's too, who may have pages
 * of it mapped for reading. So the child gives back its copies only; what its commits have put into the file behind goes with
 * the file. */
void backing_after_fork_child(struct backing *b) {
    os_close_file(b->other);
    b->other = -1;
    b->holders = 0;
    b->stuck = b->unlocking = false;
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
static uint64_t room_left(const struct backing *b, char *where, size_t size) {
    uint64_t least = UINT64_MAX;
    where[0] = 0;
    if (b->kind->pool) {
        struct huge_page_pool pool;
        if (huge_page_pool(b->page, b->node, &pool)) return UINT64_MAX; /* nothing is known of it */
        snprintf(where, size, "%s", pool.where);
        struct tightest t = {.available = pool.free, .where = where, .size = size};
        (void)machine_hugetlb(b->page, one_limit, &t);
        least = t.available;
    }
    uint64_t fs = b->mapping.fd >= 0 ? os_file_room(b->mapping.fd) : UINT64_MAX;
    if (fs < least) {
        struct os_file file;
        least = fs;
        struct mount mount;
        if (os_file_look(b->mapping.fd, &file) == 0) {
            (void)mounts_find(file.device, &mount);
            snprintf(where, size, "%s", mount.point);
        }
    }
    return least;
}

/* Did it end beyond the file, in a file that may be shorter than its mapping? */
static bool is_beyond_file(const struct backing *b, uint64_t end, struct arena_error *e) {
    struct os_file file;
    if (b->mapping.fd < 0 || b->sealed || os_file_look(b->mapping.fd, &file) || file.type == OS_FILE_OTHER)
        return false;
    if (end <= ((file.size + b->page - 1) & ~(b->page - 1))) return false;
    e->op = "end of file";
    e->available = file.size;
    return true;
}

/* Does what the backing has left explain it? For an error that may have another cause it has to be less than was wanted. */
static bool is_full(const struct backing *b, uint64_t less_than, struct arena_error *e) {
    uint64_t left = room_left(b, e->where, sizeof e->where);
    if (left != UINT64_MAX && left < less_than) {
        e->available = left;
        return true;
    }
    e->where[0] = 0;
    return false;
}

int backing_explain(const struct backing *b, int rc, uint64_t end, uint64_t bytes, struct arena_error *e) {
    switch (rc) {
        case -EFAULT: /* a page that could not be had: none is left in the file, in the pool or on the file system */
            if (is_beyond_file(b, end, e)) return rc;
            return is_full(b, b->kind->pool ? UINT64_MAX : bytes, e) ? -ENOSPC : rc;
        case -ENOMEM: /* of a pool: it is empty */ return b->kind->pool && is_full(b, UINT64_MAX, e) ? -ENOSPC : rc;
        case -ENOSPC:
        case -EDQUOT:
            e->op = "fallocate"; /* a populate call has no such answers */
            (void)is_full(b, UINT64_MAX, e);
            return rc;
        case -EOPNOTSUPP:
        case -EFBIG: e->op = "fallocate"; return rc;
        default: return rc;
    }
}

int backing_preflight(struct backing *b, uint64_t bytes, struct preflight_report *out) {
    /* What peers have put there already needs no room, and root may use what a disk does not show as available. */
    if (bytes == 0 || !backing_alone(b) || !(b->kind->pool || b->kind->shmem)) return 0;
    /* A dozen files are read for a pool, so the answer is kept as a budget, as preflight.c does. */
    int64_t want = bytes < INT64_MAX ? (int64_t)bytes : INT64_MAX;
    if (__atomic_fetch_sub(&b->budget, want, __ATOMIC_RELAXED) >= want &&
        os_now_ns() < __atomic_load_n(&b->good_for, __ATOMIC_RELAXED))
        return 0;
    char where[MACHINE_WHERE];
    uint64_t left = room_left(b, where, sizeof where);
    uint64_t most = (uint64_t)1 << 40, budget = left < most ? left / 8 : most;
    __atomic_store_n(&b->budget, (int64_t)budget, __ATOMIC_RELAXED);
    __atomic_store_n(&b->good_for, os_now_ns() + BUDGET_NS, __ATOMIC_RELAXED);
    if (left >= bytes) return 0;
    out->available = left;
    memcpy(out->where, where, sizeof where);
    return -ENOSPC;
}

/* --- copies ------------------------------------------------------------------------------------------------------- */

bool backing_has_hole(struct backing *b, uint64_t offset, uint64_t bytes) {
    if (bytes == 0 || b->mapping.fd < 0 || !b->kind->shmem || !b->kind->shared || backing_alone(b)) return false;
    int other;
    uint64_t hole;
    if (b->mapping.readonly || open_other(b, &other) || other < 0) return false;
    return os_next_data(other, offset, false, &hole) == 0 && hole < offset + bytes;
}

int backing_copy(const struct backing *b, void *at, uint64_t offset, void *buffer, uint64_t bytes, bool into) {
    int fd = b->mapping.fd, rc;
    if (fd < 0 || !b->kind->shared || b->mapping.device || (into && os_appends(fd)))
        return os_vm_copy(at, buffer, bytes, into);
    if (into) {
        /* A write beyond the end would make the file longer. */
        uint64_t size;
        rc = os_file_size(fd, &size);
        if (rc == 0 && offset + bytes > size) rc = -EFAULT;
        if (rc == 0) rc = os_write_at(fd, offset, buffer, bytes);
    } else {
        rc = os_read_at(fd, offset, buffer, bytes);
    }
    /* hugetlbfs cannot be written, and devices need not know either. */
    return rc == -EINVAL || rc == -EBADF || rc == -ENXIO || rc == -ESPIPE ? os_vm_copy(at, buffer, bytes, into) : rc;
}
