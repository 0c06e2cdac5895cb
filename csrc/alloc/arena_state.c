/* What state an arena is in, who is inside of it, and where its memory ends. All of it but arena_unlock is under the lock. */
#include "alloc/arena_private.h"
#include "sys/list.h"

bool arena_is_busy(struct arena *a) { return arena_is_mapped(a) && (a->pending || reservation_busy(&a->reservation)); }

bool arena_has_no_users(struct arena *a) { return !a->index.list.blocks && !a->pins && !arena_is_busy(a); }

void arena_unlock(struct arena *a) {
    bool over = arena_is_over(a);
    if (over) arena_enter_state(a, ARENA_UNMAPPED);
    mutex_unlock(&a->lock);
    if (over) (void)reservation_close(&a->reservation);
}

void arena_pending_begin(struct arena *a, struct arena_pending *p) {
    p->thread = pthread_self();
    LIST_PUSH(a->pending, p);
}

int arena_find_locked(struct arena *a, const void *address, struct freelist_block *out) {
    uintptr_t offset = (uintptr_t)address - (uintptr_t)a->base;
    if (offset & (FREELIST_GRANULE - 1) || offset >= granule_bytes(a->index.list.layout.granules)) return -ENOENT;
    return freelist_find(&a->index.list, granules_of(offset), out);
}
