/* mirror.h: memory that is mapped twice, one after the other, so that every window of up to its size is contiguous.
 *
 * A memfd whose size is sealed, shared with the children of a fork, and present in both mappings: a touch faults in neither.
 * Before the first lies a page of its own for whoever keeps count. */
#ifndef ARENA_MIRROR_H
#define ARENA_MIRROR_H

#include <stdbool.h>
#include <stdint.h>

#include "arena.h"

struct mirror {
    char *base;     /* the page; the two mappings follow it */
    uint64_t bytes; /* of one mapping: whole pages */
};

/* bytes: rounded up to pages. lock: mlocked. One mapping is enough for that, and counted: pages that are locked anywhere
 * are reclaimed nowhere. tick: between the steps of populating, or NULL. -errno, and nothing is left, with the step that
 * failed in error->op; -EINVAL of "size"; what tick said. */
int mirror_create(uint64_t bytes, bool lock, const char *name, arena_tick tick, void *arg, struct mirror *out,
                  struct arena_error *error);
void mirror_destroy(struct mirror *m);

#endif
