#include <errno.h>

#include "memory/pages.h"
#include "memory/reservation_op.h"
#include "sys/bitmap.h"

/* Has somebody taken pages out of the file that are committed here? pread gives zeros for them, where a load might be a
 * signal. */
static bool was_punched(struct reservation *r, uint64_t offset, uint64_t bytes) {
    uint64_t at = offset >> r->page_shift, end = (offset + bytes + bytes_of(r, 1) - 1) >> r->page_shift;
    while (at < end) {
        uint64_t start;
        mutex_lock(&r->lock);
        bool some = bit_next_run(r->present, true, &at, end, &start);
        mutex_unlock(&r->lock);
        if (!some) break;
        uint64_t from = bytes_of(r, start), there = bytes_of(r, at - start);
        /* Not by a release of our own. */
        if (backing_has_hole(&r->backing, from, there) && reservation_is_committed(r, from, there, false)) return true;
    }
    return false;
}

int reservation_copy(reservation *r, uint64_t offset, void *buffer, uint64_t bytes, bool into_reservation) {
    struct reservation_pin here;
    uint64_t first, end;
    if (!reservation_pages_of(r, offset, bytes, &first, &end)) return -EINVAL;
    if (into_reservation && r->backing.mapping.readonly) return -EACCES;
    /* Of a shared file all can be read, committed or not: the kernel does it without mapping anything. */
    bool anywhere = !into_reservation && r->backing.kind->shared && r->backing.mapping.fd >= 0;
    int rc = reservation_pin_for_call(r, &here, anywhere ? 0 : offset, anywhere ? 0 : bytes, into_reservation);
    if (rc) return rc;
    rc = backing_copy(&r->backing, r->base + offset, offset, buffer, bytes, into_reservation);
    if (rc == 0 && anywhere && was_punched(r, offset, bytes)) rc = -EFAULT;
    reservation_unpin(r, &here);
    return rc;
}
