/* registry.h: every reservation and arena of this process: they have to be in a sane state in the child of a fork, and
 * what is sparse of them is not to be populated by who locks all memory (mlockall.h).
 *
 * pthread_atfork handlers walk this list: before the fork every lock is taken, so that the child sees no half-done index
 * work; afterwards the parent drops them and the child makes them new. */
#ifndef ARENA_REGISTRY_H
#define ARENA_REGISTRY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define REGISTRY_RANGES 8 /* at most, of one */

struct registry_range {
    char *base;
    size_t bytes;
};

struct registry_entry {
    void (*before)(void *self);
    void (*parent)(void *self);
    void (*child)(void *self);
    size_t (*ranges)(void *self, struct registry_range out[REGISTRY_RANGES]); /* its mappings */
    /* mlocks what is present of them; `own`: what it is to keep locked in any case, and no more. */
    int (*lock)(void *self, bool own);
    void *self;
    struct registry_entry *next, *prev;
};

/* Between these nobody forks or goes through the list: a mapping is made and put there, or unmapped and taken away, as one
 * step. Not recursive. */
void registry_lock(void);
void registry_unlock(void);
/* To be called between them. */
void registry_add(struct registry_entry *e);
void registry_remove(struct registry_entry *e);
const struct registry_entry *registry_first(void);

/* Moves in the child of every fork: compared, never interpreted. */
extern uint32_t fork_generation __attribute__((visibility("hidden")));

#endif
