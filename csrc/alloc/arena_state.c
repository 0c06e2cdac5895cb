/* Who is inside of an arena, and where its memory ends. All of it but arena_unlock is under the lock. */
#include "alloc/arena_private.h"
#include "sys/list.h"

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
