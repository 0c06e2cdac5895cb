/* mirror.h: memory that is mapped twice, one after the other, so that every window of up to its size is contiguous.
 *
 * A memfd whose size is sealed, shared with the children of a fork, and present in both mappings: a touch faults in neither.
 * Before the first lies a page of its own for whoever keeps count. */
#ifndef ARENA_MIRROR_H
#define ARENA_MIRROR_H

#include <stdbool.h>
#include <stdint.h>

#include <pthread.h>

#include "arena.h"
#include "memory/registry.h"
#include "sys/features.h"

struct mirror {
    char *base;     /* the page; the two mappings follow it. NULL: there is none (any more) */
    uint64_t bytes; /* of one mapping: whole pages */
    bool lock;      /* in any case, whatever lock_memory() does */
    bool changing;  /* it is being made, or about to be unmapped, by this thread */
    pthread_t thread;
    const struct os_features *features;
    struct registry_entry entry;
};

/* In place: *out is in the registry of registry.h, and does not move until mirror_destroy. features: stay where they are. bytes: rounded up to pages.
 * lock: mlocked. One mapping is enough for that, and counted: pages that are locked anywhere are reclaimed nowhere.
 * progress: between the steps of populating, or NULL. -errno, and nothing is left, with the step that failed in
 * error->op; -EINVAL of "size"; what progress said. */
int mirror_create(const struct os_features *features, uint64_t bytes, bool lock, const char *name,
                  arena_progress progress, void *arg, struct mirror *out, struct arena_error *error);
/* Takes long, as all unmapping. Nothing happens where there is no mirror. */
void mirror_destroy(struct mirror *m);

#endif
