/* arena_private.h: what the parts of the arena share. Each calls those above it here and none below: arena_state.c,
 * arena_commit.c, arena_purge.c, then arena_blocks.c, arena_life.c and arena_look.c. */
#ifndef ARENA_PRIVATE_H
#define ARENA_PRIVATE_H

#include <errno.h>
#include <pthread.h>

#include "alloc/arena_pinned.h"
#include "alloc/index.h"
#include "alloc/retention.h"
#include "memory/reservation.h"
#include "sys/mutex.h"

/* A block whose chunks are being committed: in the child of a fork nobody is left to finish it. */
struct arena_pending {
    uint64_t handle;
    uint64_t first, count; /* chunks; 0: it only keeps the arena from being closed */
    uint64_t had;          /* granules before, of a block that grows; 0: it is new */
    pthread_t thread;
    struct arena_pending *next, *prev;
};

/* Each state follows on the one before. */
enum arena_state {
    ARENA_OPEN,
    ARENA_CLOSED,    /* gives out no block */
    ARENA_UNMAPPED,  /* or about to be: its memory is nobody's any more */
    ARENA_DESTROYED, /* about to be freed: in the child of a fork nobody else is left to do it */
};

struct arena {
    struct mutex lock;
    enum arena_state state; /* written under the lock, atomically */
    int forked; /* what a fork made of the memory: -ENOTCONN, it was not inherited; -EXDEV, it is the parent's, who alone
                 * gives it out or back; 0, it is this process's own */
    unsigned chunk_shift; /* bytes */
    bool read_only_populate;
    uint64_t peak_live; /* granules */
    uint64_t never_used_from; /* granules: nothing from here on was ever handed out since it was committed */
    struct retention retention;
    struct index index;

    uint64_t epoch; /* atomic: moves at a reset */
    uint64_t pins; /* objects that may still point at blocks which are freed: the mapping stays for them */
    uint64_t adapter_blocks; /* live blocks that are known by their address only (malloc_adapter.h) */
    uint64_t overflows; /* of its malloc adapters */
    int last_rc; /* why an adapter could not be served, last; 0: never */
    struct arena_error last_error;
    uint64_t (*now_ns)(void *);
    void *now_arg;
    struct arena_pending *pending;
    char *base;
    struct reservation reservation;
    struct registry_entry watch;
};

/* How a commit goes, and whom it asks whether to go on. */
struct commit_control {
    unsigned threads;
    arena_progress progress;
    void *arg;
};

/* What block is wanted; `hold`: what is lacking of a free range, instead of a block of the size (freelist_hold). */
struct arena_request {
    uint64_t bytes, align;
    unsigned flags;
    bool hold;
};

static inline int arena_explain(struct arena_error *e, int rc, const char *op, uint64_t requested, uint64_t available) {
    if (e) *e = (struct arena_error){.err = -rc, .op = op, .requested = requested, .available = available};
    return rc;
}

static inline uint64_t granule_bytes(uint64_t granules) { return granules << FREELIST_GRANULE_SHIFT; }
static inline uint64_t granules_of(uint64_t bytes) {
    return (bytes >> FREELIST_GRANULE_SHIFT) + ((bytes & (FREELIST_GRANULE - 1)) != 0);
}

/* In granules; 0, which the index refuses, for what is no power of two. */
static inline uint64_t align_granules(uint64_t align) {
    if (align & (align - 1)) return 0;
    return align > FREELIST_GRANULE ? align >> FREELIST_GRANULE_SHIFT : 1;
}

static inline void arena_describe(const struct arena *a, const struct freelist_block *b, struct arena_block *out) {
    out->handle = b->handle;
    out->offset = granule_bytes(b->offset);
    out->bytes = granule_bytes(b->size);
    out->address = a->base + out->offset;
    out->dirty = out->bytes;
}

/* --- its state, and who is inside, all under the lock: arena_state.c ---------------------------------------------------- */

static inline void arena_enter_state(struct arena *a, enum arena_state state) {
    __atomic_store_n(&a->state, state, __ATOMIC_RELAXED);
}
static inline bool arena_is_mapped(const struct arena *a) { return a->state < ARENA_UNMAPPED; }
/* 0, or why no block is given out. */
static inline int arena_refuses(const struct arena *a) { return a->state != ARENA_OPEN ? -ESHUTDOWN : a->forked; }
/* Is a commit or release under way? */
static inline bool arena_is_busy(struct arena *a) {
    return arena_is_mapped(a) && (a->pending || reservation_busy(&a->reservation));
}
/* Is it closed, and nobody left who could use its memory: no block, no pin, no call under way (which asks at its end)? */
static inline bool arena_is_over(struct arena *a) {
    return a->state == ARENA_CLOSED && !a->index.list.blocks && !a->pins && !arena_is_busy(a);
}
/* Drops the lock. Where the arena is over, its memory is unmapped: this is the one place where that happens. It takes long, so
 * a caller who holds the GIL asks arena_free_deferred for `due` instead, and lets go of it. */
void arena_unlock(struct arena *a);
void arena_pending_begin(struct arena *a, struct arena_pending *p);
/* Under the lock: the block that begins there, or -ENOENT. */
int arena_find_locked(struct arena *a, const void *address, struct freelist_block *out);

/* --- ranges: arena_commit.c --------------------------------------------------------------------------------------------- */

/* Outside the lock: extends the index by what it said that it lacks, for a block at this place. */
int arena_extend_index(struct arena *a, int lacks, const struct freelist_block *place, const struct commit_control *how,
                       struct arena_error *error);
/* Finds a free range and takes it; the lock is held on success. */
int arena_find_range(struct arena *a, const struct arena_request *q, const struct commit_control *how,
                     struct freelist_block *b, struct arena_error *error);
/* Commits the chunks of a block that is in the index already, and had so many granules before if it grows. *dirty: how much of
 * it, from its start, may hold old bytes. The lock is held on entry and on return, but not meanwhile: the block may be gone. */
int arena_commit_range(struct arena *a, const struct freelist_block *b, uint64_t had, const struct commit_control *how,
                       uint64_t *dirty, struct arena_error *error);
/* Under the lock: what the reservation has committed of these chunks, with an operation over, is committed in the index too.
 * `near`: see freelist_commit. */
void arena_resync(struct arena *a, uint64_t first, uint64_t count, uint64_t near);

/* --- what is freed: arena_purge.c, arena_blocks.c ----------------------------------------------------------------------- */

/* Outside the lock: the time, where it matters to what is freed. */
static inline uint64_t arena_clock(struct arena *a) {
    return retention_uses_clock(&a->retention) ? a->now_ns(a->now_arg) : 0;
}
/* Under the lock: something was freed. Is there anything to purge by now? */
static inline bool arena_is_due(struct arena *a, uint64_t now) {
    return retention_freed(&a->retention, granule_bytes(a->index.list.free_committed), now,
                           (uint64_t)1 << a->chunk_shift);
}

/* For malloc_adapter.c: blocks without a handle, which reset has to leave alone. A flag of arena_alloc, beside ARENA_ZERO; and
 * arena_free_deferred for the block of this handle or, with 0, at this address. -ENODEV: the arena's memory is gone. */
#define ARENA_ADAPTER 0x40000000u
int arena_alloc_committed_adapter(struct arena *a, uint64_t bytes, struct arena_block *out);
int arena_free_by_address(struct arena *a, const void *address, uint64_t handle, bool *due);

#endif
