#include <errno.h>

#include "memory/commit.h"
#include "sys/bitmap.h"
#include "sys/residency.h"

/* As far as it goes: what the file does not give back is at least not mapped. */
static void undo(struct reservation *r, uint64_t first, uint64_t end) {
    bool gone;
    if (pages_give_back(r, first, end, false, &gone)) (void)pages_unmap(r, first, end);
}

/* Of pages that this operation has made, those that are zero go back. The others somebody has written to since, who does not
 * take our locks. In steps, so that there is little time between the look and the deed. */
static void undo_zeros(struct reservation *r, uint64_t first, uint64_t end) {
    uint64_t step = (POPULATE_STEP >> r->page_shift) + 1;
    while (first < end) {
        uint64_t n = end - first < step ? end - first : step;
        uint64_t zeros = backing_zeros(&r->backing, bytes_of(r, first), bytes_of(r, n)) >> r->page_shift;
        if (zeros) undo(r, first, first + zeros);
        first += zeros;
        if (zeros == n) continue;
        (void)pages_unmap(r, first, first + 1);
        first++;
    }
}

/* Of [first, end) what this operation has not made stays in the file. */
static void undo_made(struct reservation *r, uint64_t first, uint64_t end) {
    while (first < end) {
        uint64_t made = bit_next(r->made, first, end, true);
        if (made > first) (void)pages_unmap(r, first, made);
        first = bit_next(r->made, made, end, false);
        if (first > made) undo_zeros(r, made, first);
    }
}

/* Are all pages that are mapped now, and were absent, new in the file? Of hugetlb pages only their number can be had. */
static bool all_are_new(struct reservation *r, const struct reservation_op *op) {
    uint64_t mapped = 0, now = backing_allocated(&r->backing);
    /* A peer's page that was there could be taken for one of ours if the peer made another meanwhile. */
    if (op->allocated != bytes_of(r, r->committed)) return false;
    for (uint64_t from = op->first, start; bit_next_run(r->present, false, &from, op->end, &start);) {
        struct os_residency there = {0};
        if (os_residency(r->features, at_page(r, start), bytes_of(r, from - start), &there)) return false;
        mapped += there.present;
    }
    return now >= op->allocated && now - op->allocated == mapped;
}

/* Does the reservation know which pages beside those of peers it has made itself? */
static bool made_is_known(struct reservation *r, const struct reservation_op *op) {
    if (!op->locked || op->alone || op->owned_by_parent || !r->backing.ours) return false;
    return backing_shows_data(&r->backing) || all_are_new(r, op);
}

void commit_roll_back(struct reservation *r, const struct reservation_op *op) {
    uint64_t offset = bytes_of(r, op->first), bytes = bytes_of(r, op->end - op->first);
    bool locked = false;
    /* A fork in another thread, or a descriptor that is handed out, may bring peers at any moment, even while this goes on:
     * their first commit here waits until it is over. */
    bool alone = op->alone && backing_lock_early(&r->backing, offset, bytes, &locked) != -EBUSY;
    bool all_ours = alone && backing_alone(&r->backing);
    bool known = made_is_known(r, op);
    for (uint64_t from = op->first, start; bit_next_run(r->present, false, &from, op->end, &start);) {
        (void)pages_unlock(r, start, from);
        if (all_ours)
            undo(r, start, from);
        else if (known)
            undo_made(r, start, from);
        else /* what cannot be told from a peer's is left to the peer */
            (void)pages_unmap(r, start, from);
    }
    if (locked) backing_unlock(&r->backing, offset, bytes);
}

void commit_forget_made(struct reservation *r, const struct reservation_op *op) {
    if (!__atomic_load_n(&r->any_made, __ATOMIC_RELAXED)) return;
    for (uint64_t from = op->first, start; bit_next_run(r->made, true, &from, op->end, &start);)
        bit_fill_shared(r->made, start, from, false);
}
