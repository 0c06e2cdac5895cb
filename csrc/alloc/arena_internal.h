/* arena_internal.h: what the Python types need of an arena beyond arena.h. */
#ifndef ARENA_INTERNAL_H
#define ARENA_INTERNAL_H

#include "alloc/freelist.h"
#include "memory/reservation.h"
#include "memory/table.h"
#include "sys/mutex.h"

/* A block whose chunks are being committed: in the child of a fork nobody is left to finish it. */
struct arena_pending {
    uint64_t handle;
    uint64_t first, count; /* chunks */
    uint64_t had;          /* granules before, of a block that grows; 0: it is new */
    pthread_t thread;
    struct arena_pending *next, *prev;
};

struct arena {
    struct mutex lock;
    int refuse;        /* 0, or why no block is given out: -ESHUTDOWN, -ENOTCONN */
    unsigned chunk_shift; /* bytes */
    uint64_t peak_live;   /* granules */
    uint64_t never_used_from;      /* granules: nothing from here on was ever handed out since it was committed */
    uint64_t low_water;       /* granules: the least that was free and committed since `window` began */
    uint64_t retain, warmed; /* bytes to keep: the user's, and what was warmed */
    struct freelist index;

    uint64_t epoch;       /* atomic: moves at a reset */
    uint64_t adapter_blocks; /* live blocks that are known by their address only (malloc_adapter.h) */
    uint64_t overflows;   /* of its adapters */
    int last_rc;          /* why an adapter could not be served, last; 0: never */
    struct arena_error last_error;
    uint64_t pins;        /* objects that may still point at blocks which are freed: the mapping stays for them */
    uint64_t purgeable;       /* bytes, for decay */
    uint64_t window_end;  /* ns */
    uint64_t decay_ns;
    uint64_t (*now_ns)(void *);
    void *now_arg;
    bool read_only_populate;
    bool unmapped;  /* or about to be */
    bool destroyed; /* or about to be: in the child of a fork nobody else is left to do it */
    bool owned_by_parent; /* in a fork's child: the memory is shared with the parent, who alone gives it out or back */
    struct arena_pending *pending;
    struct table nodes, leaves, map, side, chunks;
    uint64_t *index_ready; /* a bit for 2^unit_shift chunks: their part of map, side and chunks is populated */
    unsigned unit_shift;
    char *base;
    struct reservation reservation;
    struct registry_entry entry;
};

/* How a commit goes, and whom it asks whether to go on. */
struct commit_control {
    unsigned threads;
    arena_progress progress;
    void *arg;
};

static inline int arena_explain(struct arena_error *e, int rc, const char *op, uint64_t requested, uint64_t available) {
    if (e) *e = (struct arena_error){.err = -rc, .op = op, .requested = requested, .available = available};
    return rc;
}

static inline uint64_t bytes_of(uint64_t granules) { return granules << FREELIST_GRANULE_SHIFT; }
static inline uint64_t granules_of(uint64_t bytes) {
    return (bytes >> FREELIST_GRANULE_SHIFT) + ((bytes & (FREELIST_GRANULE - 1)) != 0);
}

/* Drops the lock. Where nobody is left who could use the memory of a closed arena, it is unmapped: this is the one place where
 * that happens. It takes long, so a caller who holds the GIL asks arena_free_deferred for `due` instead, and lets go of it. */
void arena_unlock(struct arena *a);
/* Under the lock: the block that begins there, or -ENOENT. */
int arena_find_locked(struct arena *a, const void *address, struct freelist_block *out);
/* arena_trim, but what was warmed stays so. */
int arena_release_free(struct arena *a, uint64_t keep, uint64_t *freed, struct arena_error *error);

/* For malloc_adapter.c: blocks without a handle, which reset has to leave alone. A flag of arena_alloc, beside ARENA_ZERO; and
 * arena_free_deferred for the block of this handle or, with 0, at this address. -ENODEV: the arena's memory is gone. */
#define ARENA_ADAPTER 0x40000000u
int arena_alloc_committed_adapter(struct arena *a, uint64_t bytes, struct arena_block *out);
int arena_free_by_address(struct arena *a, const void *address, uint64_t handle, bool *due);

/* The index's memory (arena_index.c). To be called outside the lock. arena_index_free also undoes half of a create. */
int arena_index_create(struct arena *a, uint64_t size, struct arena_error *error);
/* What the index said it needs before it can go on: -EAGAIN or -ENODATA, see freelist_alloc. */
int arena_index_extend(struct arena *a, int lacks, const struct freelist_block *b, const struct commit_control *how,
                       struct arena_error *error);
/* Nodes for so many blocks more, and a leaf. */
int arena_index_warm(struct arena *a, uint64_t blocks, const struct commit_control *how);
void arena_index_free(struct arena *a);
/* Its mappings, for registry.h. */
size_t arena_index_ranges(struct arena *a, struct registry_range *out);

/* Where the arena's epoch is, which moves at each reset. */
uint64_t *arena_epoch(arena *a);

/* As arena_free_deferred, for a block whose object lives on: the mapping waits for arena_unpin, which answers as *due does. */
int arena_free_deferred_pinned(arena *a, uint64_t handle, bool *due);
bool arena_unpin(arena *a);
/* Frees every block; one pin for each. */
int arena_reset_pinned(arena *a);

#endif
