/* arena_pinned.h: what the Python types need of an arena beyond arena.h: blocks that are freed while an object, which lives on,
 * may still point at their memory. A *pin* keeps the mapping for it. */
#ifndef ARENA_PINNED_H
#define ARENA_PINNED_H

#include "arena.h"

/* As arena_free_deferred, for a block whose object lives on: the mapping waits for arena_unpin, which answers as *due does. */
int arena_free_deferred_pinned(arena *a, uint64_t handle, bool *due);
bool arena_unpin(arena *a);
/* Frees every block; one pin for each. */
int arena_reset_pinned(arena *a);
/* Where the arena's epoch is, which moves at each reset. */
uint64_t *arena_epoch(arena *a);

#endif
