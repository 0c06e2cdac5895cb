#define _GNU_SOURCE
#include "arena.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "alloc/arena_internal.h"
#include "memory/mlockall.h"
#include "sys/list.h"
#include "sys/page.h"
#include "sys/thread.h"

static void describe(const struct arena *a, const struct freelist_block *b, struct arena_block *out) {
    out->handle = b->handle;
    out->offset = bytes_of(b->offset);
    out->bytes = bytes_of(b->size);
    out->address = a->base + out->offset;
    out->dirty = out->bytes;
}

/* --- life --------------------------------------------------------------------------------------------------------------- */

static void fork_before(void *self) {
    struct arena *a = self;
    mutex_lock(&a->lock);
    if (!a->unmapped) reservation_before_fork(&a->reservation);
}

static void fork_parent(void *self) {
    struct arena *a = self;
    if (!a->unmapped) reservation_after_fork_parent(&a->reservation);
    mutex_unlock(&a->lock);
}

static void fork_child(void *self) {
    struct arena *a = self;
    mutex_reset(&a->lock);
    if (a->unmapped) {
        /* The thread that was to do it stayed with the parent. */
        a->reservation.refuse = -ESHUTDOWN;
        if (a->reservation.base) reservation_after_fork_child(&a->reservation);
        if (a->destroyed) {
            registry_remove(&a->entry);
            arena_index_free(a);
            free(a);
        }
        return;
    }
    reservation_after_fork_child(&a->reservation);
    /* As after a reset no block of before gives its memory to anybody. */
    if (a->reservation.lost) __atomic_fetch_add(&a->epoch, 1, __ATOMIC_RELEASE);
    if (a->reservation.dropped && !a->refuse) a->refuse = -ENOTCONN;
    if (a->reservation.fork == OS_FORK_SHARE) {
        /* The memory is the parent's too, but this index is not: two of them would give the same range out twice. */
        a->owned_by_parent = true;
        if (!a->refuse) a->refuse = -EXDEV;
    }
    for (struct arena_pending *p = a->pending, *next; p; p = next) {
        next = p->next;
        if (pthread_equal(p->thread, pthread_self())) continue;
        struct freelist_block b;
        /* Its commit may have ended while it waited for the lock to say so. */
        if (p->count && reservation_is_committed(&a->reservation, p->first << a->chunk_shift,
                                                 p->count << a->chunk_shift, !a->read_only_populate))
            freelist_commit(&a->index, p->first, p->count, p->handle);
        if (p->had)
            (void)freelist_resize(&a->index, p->handle, p->had, 0, &b);
        else
            (void)freelist_free(&a->index, p->handle);
        LIST_REMOVE(a->pending, p);
    }
}

static size_t arena_ranges(void *self, struct registry_range out[REGISTRY_RANGES]) {
    struct arena *a = self;
    size_t n = reservation_ranges(&a->reservation, out);
    return n + arena_index_ranges(a, out + n);
}

static int arena_lock_present(void *self, bool own) {
    struct arena *a = self;
    struct registry_range part[REGISTRY_RANGES];
    int rc = reservation_lock(&a->reservation, own);
    for (size_t i = own ? 0 : arena_index_ranges(a, part); rc == 0 && i-- > 0;)
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

int arena_create(const struct arena_config *config, arena **out, struct arena_error *error) {
    struct arena_config c = *config;
    struct reservation_config *rc_of = &c.reservation;
    uint64_t size = rc_of->size, chunk = c.chunk ? c.chunk : OS_HUGE;
    if (size == 0 || size > bytes_of(FREELIST_MAX_GRANULES))
        return arena_explain(error, -EINVAL, "size", size, UINT64_MAX);
    if (rc_of->readonly) return arena_explain(error, -EINVAL, "readonly", size, UINT64_MAX);
    while (!c.chunk && chunk > OS_PAGE && chunk > size) chunk >>= 1;
    uint64_t page = rc_of->pages == ARENA_PAGES_THP || rc_of->pages == ARENA_PAGES_HUGETLB ? rc_of->page_bytes
                                                                                           : OS_PAGE;
    if (page == 0) page = OS_HUGE;
    if (!c.chunk && chunk < page) chunk = page;
    /* A part of a huge page cannot be given back. */
    if (chunk < page || chunk > (uint64_t)1 << 30 || (chunk & (chunk - 1)) || size / chunk >= FREELIST_MAX_CHUNKS)
        return arena_explain(error, -EINVAL, "chunk", chunk, UINT64_MAX);
    if (rc_of->pages == ARENA_PAGES_AUTO && chunk < OS_HUGE) rc_of->page_bytes = chunk;
    rc_of->size = (size + chunk - 1) & ~(chunk - 1);
    rc_of->align = chunk; /* blocks are aligned to up to a chunk, by their offset */

    struct arena *a = calloc(1, sizeof *a);
    if (!a) return arena_explain(error, -ENOMEM, "malloc", sizeof *a, UINT64_MAX);
    memset((void *)a, 0, sizeof *a); /* calloc's pages may be promises too */
    a->lock.rank = MUTEX_RANK_ARENA;
    a->retain = c.retain;
    a->decay_ns = c.decay_ns;
    a->now_ns = c.now_ns ? c.now_ns : default_now;
    a->now_arg = c.now_arg;
    a->read_only_populate = c.read_only_populate;
    registry_lock();
    int rc = reservation_init(&a->reservation, rc_of, false, error);
    if (rc) {
        registry_unlock();
        free(a);
        return rc;
    }
    page = a->reservation.backing.page; /* a hugetlbfs file has the pages it has */
    if (!c.chunk && chunk < page) chunk = page;
    a->chunk_shift = (unsigned)__builtin_ctzll(chunk);
    size = usable_bytes(&a->reservation, chunk);
    if (chunk < page)
        rc = arena_explain(error, -EINVAL, "chunk", chunk, UINT64_MAX);
    else if (size == 0)
        rc = arena_explain(error, -EFAULT, "end of file", rc_of->size, 0);
    else
        rc = arena_index_create(a, size, error);
    if (rc) {
        arena_index_free(a);
        reservation_undo(&a->reservation, rc_of->path);
        registry_unlock();
        free(a);
        return rc;
    }
    a->base = a->reservation.base;
    a->entry = (struct registry_entry){fork_before,        fork_parent, fork_child, arena_ranges,
                                       arena_lock_present, a,           NULL,       NULL};
    registry_add(&a->entry);
    registry_unlock();
    *out = a;
    return 0;
}

int arena_close(arena *a, bool strict) {
    int rc = 0;
    mutex_lock(&a->lock);
    if (!a->unmapped && (a->pending || reservation_busy(&a->reservation))) rc = -EBUSY;
    if (rc == 0 && strict && a->index.blocks) rc = -ENOTEMPTY;
    if (rc == 0) {
        __atomic_store_n(&a->refuse, -ESHUTDOWN, __ATOMIC_RELAXED);
        a->retain = a->warmed = a->decay_ns = 0; /* nobody will want again what is free */
    }
    mutex_unlock(&a->lock);
    if (rc == 0) (void)arena_purge(a);
    return rc;
}

bool arena_is_closed(const arena *a) { return __atomic_load_n(&a->refuse, __ATOMIC_RELAXED) == -ESHUTDOWN; }

int arena_destroy(arena *a) {
    mutex_lock(&a->lock);
    bool mapped = !a->unmapped;
    if (mapped && (a->pending || reservation_busy(&a->reservation))) {
        mutex_unlock(&a->lock);
        return -EBUSY;
    }
    a->unmapped = a->destroyed = true;
    a->refuse = -ESHUTDOWN;
    mutex_unlock(&a->lock);
    if (mapped) (void)reservation_close(&a->reservation);
    registry_lock();
    registry_remove(&a->entry);
    arena_index_free(a);
    registry_unlock();
    free(a);
    return 0;
}

/* --- alloc -------------------------------------------------------------------------------------------------------------- */

static void note_use(struct arena *a, const struct freelist_block *b) {
    struct freelist *f = &a->index;
    if (f->live > a->peak_live) a->peak_live = f->live;
    if (f->free_committed < a->low_water) a->low_water = f->free_committed;
    uint64_t end = b->offset + b->size;
    if (end > a->never_used_from) a->never_used_from = end;
}

/* How much of a block, from its start, may hold old bytes, given where never used memory began before it. */
static uint64_t dirty_part(const struct arena *a, uint64_t never_used_from, const struct freelist_block *b) {
    uint64_t n = never_used_from > b->offset ? never_used_from - b->offset : 0;
    /* Asked last, for memory that is used again is the common case. */
    return bytes_of(n < b->size && reservation_fresh_is_zero(&a->reservation) ? n : b->size);
}

/* The block was never handed out: what was never used of it still is. */
static void undo_use(struct arena *a, uint64_t offset, uint64_t size, uint64_t dirty) {
    if (a->never_used_from == offset + size) a->never_used_from = offset + granules_of(dirty);
}

/* In granules; 0, which the index refuses, for what is no power of two. */
static uint64_t align_granules(uint64_t align) {
    if (align & (align - 1)) return 0;
    return align > FREELIST_GRANULE ? align >> FREELIST_GRANULE_SHIFT : 1;
}

static inline int alloc_committed(struct arena *a, uint64_t bytes, uint64_t align, bool adapter,
                                  struct arena_block *out) {
    struct freelist_block b;
    uint64_t want = granules_of(bytes), step = align_granules(align);
    mutex_lock(&a->lock);
    int rc = a->refuse;
    if (rc == 0) rc = freelist_alloc(&a->index, want, step, FREELIST_COMMITTED_ONLY, &b);
    if (rc) {
        mutex_unlock(&a->lock);
        return rc;
    }
    uint64_t never_used_from = a->never_used_from;
    note_use(a, &b);
    a->adapter_blocks += adapter;
    mutex_unlock(&a->lock);
    describe(a, &b, out);
    out->dirty = dirty_part(a, never_used_from, &b);
    return 0;
}

int arena_alloc_committed(arena *a, uint64_t bytes, uint64_t align, struct arena_block *out) {
    return alloc_committed(a, bytes, align, false, out);
}

int arena_alloc_committed_adapter(arena *a, uint64_t bytes, struct arena_block *out) {
    return alloc_committed(a, bytes, FREELIST_GRANULE, true, out);
}

static void pending_begin(struct arena *a, struct arena_pending *p) {
    p->thread = pthread_self();
    LIST_PUSH(a->pending, p);
}

/* What the memory of a block turned out to be. */
enum was { ABSENT, AS_KNOWN, STALE };

/* Commits the chunks of a block that is in the index already, and had so many granules before if it grows. *was: ABSENT,
 * all of them; STALE, the index took for absent what was there (another has committed it, or a release has failed). Takes
 * the lock at the end, and returns with it held. */
static int commit_block(struct arena *a, const struct freelist_block *b, uint64_t had, const struct commit_control *how,
                        enum was *was, struct arena_error *error) {
    uint64_t mask = ((uint64_t)1 << a->chunk_shift) - 1;
    uint64_t start = bytes_of(b->offset) & ~mask, end = (bytes_of(b->offset + b->size) + mask) & ~mask;
    struct arena_pending pending = {
        .handle = b->handle, .first = start >> a->chunk_shift, .count = (end - start) >> a->chunk_shift, .had = had};
    uint64_t newly = 0, granules = granules_of(end - start);
    uint64_t lacking = bytes_of(granules - freelist_committed_in(&a->index, granules_of(start), granules));
    pending_begin(a, &pending);
    mutex_unlock(&a->lock);
    int rc = reservation_commit(&a->reservation, start, end - start, !a->read_only_populate, how->threads,
                                how->progress, how->arg, &newly, error);
    mutex_lock(&a->lock);
    LIST_REMOVE(a->pending, &pending);
    *was = newly == end - start ? ABSENT : newly == lacking ? AS_KNOWN : STALE;
    if (rc == 0) freelist_commit(&a->index, pending.first, pending.count, b->handle);
    return rc;
}

/* Besides ARENA_*: what is lacking of a free range, instead of a block of the size. */
#define HOLD 0x80000000u

/* Finds a range and has it committed; on success the lock is held. *dirty: see struct arena_block. */
static int alloc_locked(struct arena *a, uint64_t bytes, uint64_t align, unsigned flags,
                        const struct commit_control *how, struct freelist_block *b, uint64_t *dirty,
                        struct arena_error *error) {
    uint64_t want = granules_of(bytes), step = align_granules(align);
    struct freelist *f = &a->index;
    for (;;) {
        mutex_lock(&a->lock);
        uint64_t never_used_from = a->never_used_from;
        int rc = a->refuse;
        if (rc == 0)
            rc = flags & HOLD ? freelist_hold(f, want, b)
                              : freelist_alloc(f, want, step, flags & ARENA_NO_GROW ? FREELIST_COMMITTED_ONLY : 0, b);
        if (rc == 0) {
            if (b->size == 0) return 0;
            if (!(flags & HOLD)) note_use(a, b);
            *dirty = dirty_part(a, never_used_from, b);
            if (b->committed) return 0;
            uint64_t offset = b->offset, size = b->size, before = *dirty;
            enum was was;
            rc = commit_block(a, b, 0, how, &was, error);
            /* Somebody else's reset, or a fork of which this is the child, may have taken the block away meanwhile. */
            if (rc == 0 && freelist_get(f, b->handle, b) == 0) {
                if (was == ABSENT && reservation_fresh_is_zero(&a->reservation)) *dirty = 0;
                if (was == STALE) *dirty = bytes_of(size);
                return 0;
            }
            (void)freelist_free(f, b->handle);
            undo_use(a, offset, size, before);
            arena_unlock(a);
            return rc ? rc : arena_explain(error, -ECANCELED, "reset", bytes, UINT64_MAX);
        }
        if (rc == -ENOSPC && error) {
            struct freelist_stats s;
            freelist_stats(f, &s);
            arena_explain(error, rc, "alloc", bytes,
                          bytes_of(flags & ARENA_NO_GROW ? s.largest_committed : s.largest_free));
            error->committed = bytes_of(s.committed);
        }
        mutex_unlock(&a->lock);
        if (rc == -EAGAIN || rc == -ENODATA)
            rc = arena_index_extend(a, rc, b, how, error);
        else if (rc != -ENOSPC)
            arena_explain(error, rc, "alloc", bytes, UINT64_MAX);
        if (rc) return rc;
    }
}

int arena_alloc(arena *a, uint64_t bytes, uint64_t align, unsigned flags, arena_progress progress, void *arg,
                struct arena_block *out, struct arena_error *error) {
    struct freelist_block b;
    struct commit_control how = {.threads = 0, .progress = progress, .arg = arg};
    uint64_t dirty;
    if (flags & ~(unsigned)(ARENA_ZERO | ARENA_NO_GROW | ARENA_ADAPTER))
        return arena_explain(error, -EINVAL, "flags", flags, UINT64_MAX);
    int rc = alloc_locked(a, bytes, align, flags, &how, &b, &dirty, error);
    if (rc) return rc;
    a->adapter_blocks += (flags & ARENA_ADAPTER) != 0;
    mutex_unlock(&a->lock);
    describe(a, &b, out);
    out->dirty = dirty;
    if (flags & ARENA_ZERO) {
        arena_zero(out->address, out->dirty);
        out->dirty = 0;
    }
    return 0;
}

int arena_resize(arena *a, uint64_t handle, uint64_t bytes, arena_progress progress, void *arg, struct arena_block *out,
                 struct arena_error *error) {
    struct freelist *f = &a->index;
    struct freelist_block b, old;
    struct commit_control how = {.threads = 0, .progress = progress, .arg = arg};
    for (;;) {
        mutex_lock(&a->lock);
        int rc = freelist_get(f, handle, &old);
        /* In a fork's child the memory behind the block is the parent's to give out, or there is none. */
        if (rc == 0 && granules_of(bytes) > old.size)
            rc = a->owned_by_parent ? -EXDEV : a->reservation.dropped ? -ENOTCONN : 0;
        if (rc == 0) rc = freelist_resize(f, handle, granules_of(bytes), 0, &b);
        if (rc == 0) {
            uint64_t never_used_from = a->never_used_from;
            enum was was = AS_KNOWN;
            note_use(a, &b);
            if (!b.committed && (rc = commit_block(a, &b, old.size, &how, &was, error)) != 0) {
                undo_use(a, b.offset, b.size, dirty_part(a, never_used_from, &b));
                if (freelist_get(f, handle, &b) == 0 && b.size == granules_of(bytes))
                    (void)freelist_resize(f, handle, old.size, 0, &b);
            } else if (freelist_get(f, handle, &b) != 0 || b.size != granules_of(bytes)) { /* by another, meanwhile */
                rc = arena_explain(error, -ECANCELED, "resize", bytes, UINT64_MAX);
            }
            arena_unlock(a);
            describe(a, &b, out);
            if (was != STALE) out->dirty = dirty_part(a, never_used_from, &b);
            return rc;
        }
        mutex_unlock(&a->lock);
        if (rc != -EAGAIN && rc != -ENODATA) return arena_explain(error, rc, "resize", bytes, UINT64_MAX);
        rc = arena_index_extend(a, rc, &b, &how, error);
        if (rc) return rc;
    }
}

/* --- warm --------------------------------------------------------------------------------------------------------------- */

int arena_warm(arena *a, uint64_t bytes, unsigned threads, arena_progress progress, void *arg,
               struct arena_error *error) {
    struct freelist_block b;
    struct commit_control how = {.threads = threads, .progress = progress, .arg = arg};
    struct arena_pending here = {0}; /* keeps close() out */
    uint64_t unused, size = bytes_of(a->index.layout.granules);
    mutex_lock(&a->lock);
    int rc = a->refuse;
    uint64_t before = bytes_of(a->index.free_committed), warmed = a->warmed;
    if (rc == 0) pending_begin(a, &here);
    mutex_unlock(&a->lock);
    if (rc) return arena_explain(error, rc, "warm", bytes, UINT64_MAX);
    rc = reservation_repopulate(&a->reservation, 0, size, threads, progress, arg, error);
    mutex_lock(&a->lock);
    LIST_REMOVE(a->pending, &here);
    arena_unlock(a);
    if (rc == 0) rc = alloc_locked(a, bytes, FREELIST_GRANULE, HOLD, &how, &b, &unused, error);
    if (rc) return rc;
    if (b.size) (void)freelist_free(&a->index, b.handle);
    if (bytes > a->warmed) a->warmed = bytes;
    mutex_unlock(&a->lock);
    rc = arena_index_warm(a, bytes / OS_PAGE + 4, &how);
    if (rc == 0) return 0;
    mutex_lock(&a->lock);
    if (a->warmed == bytes) a->warmed = warmed;
    mutex_unlock(&a->lock);
    (void)arena_release_free(a, before, &unused, NULL);
    return arena_explain(error, rc, "populating the index", bytes, UINT64_MAX);
}

/* --- looking at it ------------------------------------------------------------------------------------------------------ */

int arena_find_locked(struct arena *a, const void *address, struct freelist_block *out) {
    uintptr_t offset = (uintptr_t)address - (uintptr_t)a->base;
    if (offset & (FREELIST_GRANULE - 1) || offset >= bytes_of(a->index.layout.granules)) return -ENOENT;
    return freelist_find(&a->index, granules_of(offset), out);
}

int arena_find(arena *a, const void *address, struct arena_block *out) {
    struct freelist_block b;
    mutex_lock(&a->lock);
    int rc = arena_find_locked(a, address, &b);
    mutex_unlock(&a->lock);
    if (rc == 0) describe(a, &b, out);
    return rc;
}

size_t arena_blocks(arena *a, uint64_t *cursor, struct arena_block *out, size_t max) {
    struct freelist_block b[256];
    if (max > sizeof b / sizeof *b) max = sizeof b / sizeof *b;
    mutex_lock(&a->lock);
    size_t n = freelist_scan(&a->index, cursor, b, max);
    mutex_unlock(&a->lock);
    for (size_t i = 0; i < n; i++) describe(a, &b[i], &out[i]);
    return n;
}

void arena_get(arena *a, struct arena_stats *out) {
    struct freelist_stats s;
    struct reservation_stats r = {0};
    mutex_lock(&a->lock);
    freelist_stats(&a->index, &s);
    if (!a->unmapped) reservation_get(&a->reservation, &r);
    *out = (struct arena_stats){.reserved = r.size,
                                .committed = r.committed,
                                .live = bytes_of(s.live),
                                .free_committed = a->unmapped ? 0 : bytes_of(s.free_committed),
                                .blocks = s.blocks,
                                .peak_committed = r.peak_committed,
                                .peak_live = bytes_of(a->peak_live),
                                .commits = r.commits,
                                .releases = r.releases,
                                .commit_ns = r.commit_ns,
                                .release_ns = r.release_ns,
                                .largest_free = bytes_of(s.largest_free),
                                .free = bytes_of(s.free),
                                .overflows = a->overflows};
    mutex_unlock(&a->lock);
}

void *arena_address(arena *a) { return a->base; }
uint64_t arena_chunk(arena *a) { return (uint64_t)1 << a->chunk_shift; }
reservation *arena_reservation(arena *a) { return &a->reservation; }
uint64_t *arena_epoch(arena *a) { return &a->epoch; }
