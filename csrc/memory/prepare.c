#include "memory/prepare.h"
#include "sys/files.h"

#include <errno.h>

#include "sys/bitmap.h"

/* Notes the pages that the file lacks in [at, end): they are going to be made. A file of hugetlb pages cannot be asked;
 * what was made of it the rollback finds out afterwards. */
static void note_missing(const struct preparation *p, uint64_t at, uint64_t end) {
    uint64_t page = (uint64_t)1 << p->page_shift;
    while (at < end) {
        uint64_t start = at, stop = end;
        bool some = backing_shows_data(p->backing) && backing_next_data(p->backing, &start, &stop, end);
        uint64_t first = (at + page - 1) >> p->page_shift;
        uint64_t missing = (some ? start : end) >> p->page_shift;
        if (first < missing) {
            bit_fill_shared(p->made, first, missing, true);
            __atomic_store_n(p->any_made, true, __ATOMIC_RELAXED);
        }
        at = stop;
    }
}

static int allocate(struct preparation *p, uint64_t offset, uint64_t bytes) {
    if (p->backing) return backing_allocate(p->backing, offset, bytes, p->write);
    int rc = os_allocate(p->fd, offset, bytes);
    return rc == -EOPNOTSUPP ? 0 : rc; /* then populating does it, and answers where it cannot */
}

int prepare_piece(struct preparation *p, const char *at, uint64_t bytes) {
    uint64_t offset = (uint64_t)(at - p->base);
    if (p->made) note_missing(p, offset, offset + bytes);
    /* fallocate locks the file. Of shared memory, a second thread had better let the populating allocate than wait; it is
     * told EFAULT when there is no room, and ENOSPC is read from that (backing_explain). */
    bool shmem = p->backing && p->backing->kind->shmem;
    if (shmem && __atomic_exchange_n(&p->busy, true, __ATOMIC_ACQUIRE)) return 0;
    int rc = allocate(p, offset, bytes);
    __atomic_store_n(&p->busy, false, __ATOMIC_RELEASE);
    if (rc && rc != -EFAULT) __atomic_store_n(&p->refused, true, __ATOMIC_RELAXED);
    return rc;
}
