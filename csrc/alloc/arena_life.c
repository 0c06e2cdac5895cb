/* How an arena begins and ends: create, close, destroy, and what a fork makes of it. */
#include <stdlib.h>
#include <string.h>

#include "alloc/arena_private.h"
#include "alloc/geometry.h"
#include "memory/mlockall.h"
#include "sys/list.h"
#include "sys/thread.h"

static void fork_before(void *self) {
    struct arena *a = self;
    mutex_lock(&a->lock);
    if (arena_is_mapped(a)) reservation_before_fork(&a->reservation);
}

static void fork_parent(void *self) {
    struct arena *a = self;
    if (arena_is_mapped(a)) reservation_after_fork_parent(&a->reservation);
    mutex_unlock(&a->lock);
}

/* In the child the thread that was to unmap or free the arena is missing: it stayed with the parent. */
static void end_in_child(struct arena *a) {
    a->reservation.refuse = -ESHUTDOWN;
    if (a->reservation.base) reservation_after_fork_child(&a->reservation);
    if (a->state != ARENA_DESTROYED) return;
    registry_remove(&a->watch);
    index_destroy(&a->index);
    free(a);
}

/* In the child: settles the blocks of threads that stayed with the parent. */
static void settle_pending(struct arena *a) {
    struct freelist *f = &a->index.list;
    for (struct arena_pending *p = a->pending, *next; p; p = next) {
        next = p->next;
        if (pthread_equal(p->thread, pthread_self())) continue;
        struct freelist_block b;
        /* Its commit may have ended while it waited for the lock to say so. */
        if (p->count) arena_resync(a, p->first, p->count, p->handle);
        if (p->had)
            (void)freelist_resize(f, p->handle, p->had, 0, &b);
        else
            (void)freelist_free(f, p->handle);
        LIST_REMOVE(a->pending, p);
    }
}

static void fork_child(void *self) {
    struct arena *a = self;
    mutex_reset(&a->lock);
    if (!arena_is_mapped(a)) {
        end_in_child(a);
        return;
    }
    reservation_after_fork_child(&a->reservation);
    /* As after a reset no block of before gives its memory to anybody. */
    if (a->reservation.lost) __atomic_fetch_add(&a->epoch, 1, __ATOMIC_RELEASE);
    if (a->reservation.dropped)
        a->forked = -ENOTCONN;
    else if (a->reservation.fork == OS_FORK_SHARE)
        a->forked = -EXDEV; /* two indexes of the same memory would give the same range out twice */
    settle_pending(a);
}

static size_t arena_ranges(void *self, struct registry_range out[REGISTRY_RANGES]) {
    struct arena *a = self;
    size_t n = reservation_ranges(&a->reservation, out);
    return n + index_ranges(&a->index, out + n);
}

static int arena_lock_present(void *self, bool own) {
    struct arena *a = self;
    struct registry_range part[REGISTRY_RANGES];
    int rc = reservation_lock(&a->reservation, own);
    for (size_t i = own ? 0 : index_ranges(&a->index, part); rc == 0 && i-- > 0;)
        rc = mlockall_present(a->reservation.features, part[i].base, part[i].bytes);
    return rc;
}

static uint64_t default_now(void *arg) {
    (void)arg;
    return os_now_ns();
}

/* How much of the reservation there is a file for, in whole chunks. */
static uint64_t usable_bytes(const struct reservation *r, uint64_t chunk) {
    const struct backing *b = &r->backing;
    struct os_file file;
    uint64_t bytes = b->bytes;
    if (b->mapping.fd >= 0 && !b->ours && os_file_look(b->mapping.fd, &file) == 0 && file.type != OS_FILE_OTHER &&
        file.size < bytes)
        bytes = file.size;
    return bytes & ~(chunk - 1);
}

/* With the list of mappings held, for the reservation is not in it by itself. *made: what reservation_undo is for. */
static int create(struct arena *a, const struct arena_config *config, struct arena_error *error, bool *made) {
    struct reservation_config r = config->reservation;
    struct geometry g = choose_geometry(config, 0);
    if (g.rc == 0) {
        r.size = g.size;
        r.page_bytes = g.page_bytes;
        r.align = g.chunk; /* blocks are aligned to up to a chunk, by their offset */
        int rc = reservation_init(&a->reservation, &r, false, error);
        if (rc) return rc;
        *made = true;
        g = choose_geometry(config, a->reservation.backing.page);
    }
    if (g.rc) {
        bool of_chunk = strcmp(g.refused, "chunk") == 0;
        return arena_explain(error, g.rc, g.refused, of_chunk ? g.chunk : config->reservation.size, UINT64_MAX);
    }
    uint64_t bytes = usable_bytes(&a->reservation, g.chunk);
    if (bytes == 0) return arena_explain(error, -EFAULT, "end of file", r.size, 0);
    a->chunk_shift = (unsigned)__builtin_ctzll(g.chunk);
    const char *op;
    int rc = index_create(&a->index, bytes, a->chunk_shift, &a->lock, a->reservation.features, &op);
    return rc ? arena_explain(error, rc, op, bytes, UINT64_MAX) : 0;
}

int arena_create(const struct arena_config *config, arena **out, struct arena_error *error) {
    struct arena *a = calloc(1, sizeof *a);
    if (!a) return arena_explain(error, -ENOMEM, "malloc", sizeof *a, UINT64_MAX);
    memset((void *)a, 0, sizeof *a); /* calloc's pages may be promises too */
    a->lock.rank = MUTEX_RANK_ARENA;
    a->retention = (struct retention){.retain = config->retain, .decay_ns = config->decay_ns};
    a->now_ns = config->now_ns ? config->now_ns : default_now;
    a->now_arg = config->now_arg;
    a->read_only_populate = config->read_only_populate;
    bool made = false;
    registry_lock();
    int rc = create(a, config, error, &made);
    if (rc == 0) {
        a->base = a->reservation.base;
        a->watch = (struct registry_entry){fork_before,        fork_parent, fork_child, arena_ranges,
                                           arena_lock_present, a,           NULL,       NULL};
        registry_add(&a->watch);
        *out = a;
    } else {
        index_destroy(&a->index);
        if (made) reservation_undo(&a->reservation, config->reservation.path);
        free(a);
    }
    registry_unlock();
    return rc;
}

int arena_close(arena *a, bool strict) {
    mutex_lock(&a->lock);
    int rc = arena_is_busy(a) ? -EBUSY : 0;
    if (rc == 0 && strict && a->index.list.blocks) rc = -ENOTEMPTY;
    if (rc == 0) {
        if (a->state == ARENA_OPEN) arena_enter_state(a, ARENA_CLOSED);
        retention_end(&a->retention);
    }
    mutex_unlock(&a->lock);
    if (rc == 0) (void)arena_purge(a);
    return rc;
}

bool arena_is_closed(const arena *a) { return __atomic_load_n(&a->state, __ATOMIC_RELAXED) != ARENA_OPEN; }

int arena_destroy(arena *a) {
    mutex_lock(&a->lock);
    if (arena_is_busy(a)) {
        mutex_unlock(&a->lock);
        return -EBUSY;
    }
    bool mapped = arena_is_mapped(a);
    arena_enter_state(a, ARENA_DESTROYED);
    mutex_unlock(&a->lock);
    if (mapped) (void)reservation_close(&a->reservation);
    registry_lock();
    registry_remove(&a->watch);
    index_destroy(&a->index);
    registry_unlock();
    free(a);
    return 0;
}
