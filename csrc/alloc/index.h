/* index.h: the free list with its memory: sparse tables, populated a unit at a time before the free list looks at them. It
 * knows no arena. The lock is its owner's, and is taken for moments only: nothing here makes a system call under it. */
#ifndef ARENA_INDEX_H
#define ARENA_INDEX_H

#include "alloc/freelist.h"
#include "arena.h"
#include "memory/registry.h"
#include "memory/table.h"
#include "sys/mutex.h"

struct index {
    struct freelist list; /* under the lock */
    struct mutex *lock;
    struct table nodes, leaves, map, side, chunks;
    uint64_t *ready; /* a bit for each unit of 2^unit_shift chunks: their part of map, side and chunks is populated */
    unsigned unit_shift;
};

/* For `bytes` in chunks of 2^chunk_shift bytes. *op: what failed; index_destroy undoes the half of it. */
int index_create(struct index *x, uint64_t bytes, unsigned chunk_shift, struct mutex *lock,
                 const struct os_features *features, const char **op);
void index_destroy(struct index *x);
/* Its mappings, for registry.h. */
size_t index_ranges(const struct index *x, struct registry_range *out);

/* Under the lock: is there room for a block more? -EAGAIN: once index_ensure was called. -ENOMEM: there cannot be. */
int index_room(const struct index *x);

/* What extends it is called outside the lock, and by two threads at once if need be. -ENOMEM, or what progress returned. */
/* So many nodes and leaves, or all that there can be, are at hand unless others take them. */
int index_ensure(struct index *x, uint64_t nodes, uint64_t leaves, arena_progress progress, void *arg);
/* A block may be put at this place, see freelist_alloc. */
int index_ensure_place(struct index *x, const struct freelist_block *place, arena_progress progress, void *arg);

#endif
